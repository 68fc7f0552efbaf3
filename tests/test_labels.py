"""Hazard labels: which tokens are positive, which count, and what a trace is to training."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.learning.labels import Role, before_onset, targets, token_labels, usable_tokens

NAN = float("nan")


def test_tokens_before_the_onset_are_positive_within_the_horizon():
    labels = token_labels([8, 3], [5, NAN], horizon=3)
    assert labels.tolist() == [False, False, True, True, True, False, False, False] + [False] * 3
    assert before_onset([8, 3], [5, NAN]).tolist() == [True] * 5 + [False] * 3 + [True] * 3


def test_a_catastrophe_at_the_first_token_leaves_nothing_to_learn_from():
    assert not token_labels([4], [0], 32).any()
    assert not before_onset([4], [0]).any()


@given(
    st.lists(st.tuples(st.integers(0, 30), st.one_of(st.none(), st.integers(0, 40))), max_size=6),
    st.integers(1, 40),
)
def test_labels_agree_with_their_definition(traces, horizon):
    lengths = [n for n, _ in traces]
    onset = [NAN if o is None else float(o) for _, o in traces]
    positive = [o is not None and t < o <= t + horizon for n, o in traces for t in range(n)]
    counts = [o is None or t < o for n, o in traces for t in range(n)]
    assert token_labels(lengths, onset, horizon).tolist() == positive
    assert before_onset(lengths, onset).tolist() == counts


def test_roles():
    onset = [NAN, 9, 9, NAN, 2, 9]
    unplaced = [False, False, False, True, False, True]
    excess = [False, True, False, False, True, True]
    of = targets(onset, unplaced, excess, excess_only=True)
    left_out, event, negative = Role.LEFT_OUT, Role.EVENT, Role.NEGATIVE
    assert of.role.tolist() == [negative, event, left_out, left_out, event, event]
    assert np.isnan(of.onset[[0, 2, 3]]).all()
    assert of.instant.tolist() == [False] * 4 + [True, False]
    shared_too = targets(onset, unplaced, excess, excess_only=False)
    assert shared_too.role.tolist() == [negative, event, event, left_out, event, event]


def test_traces_that_are_left_out_have_no_usable_token():
    of = targets([NAN, NAN, 2.0], [False, True, False], [False, False, True], excess_only=True)
    assert (
        usable_tokens([2, 2, 4], of).tolist()
        == [True, True, False, False] + [True] * 2 + [False] * 2
    )


def test_a_horizon_of_nothing_is_refused():
    with pytest.raises(ValueError, match="horizon=0"):
        token_labels([3], [1], 0)
