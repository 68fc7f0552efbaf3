"""Corrected p-values: the paper's own example, scipy's values, and an error rate by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from kvx.stats.multiplicity import benjamini_hochberg, holm

# the 15 p-values of Benjamini & Hochberg (1995), section 4: BH rejects the first 4 at 0.05
PAPER = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262,
    0.5719, 0.6528, 0.7590, 1.0,
]  # fmt: skip
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_the_papers_example_rejects_as_many_as_the_paper_says():
    assert (benjamini_hochberg(PAPER) <= 0.05).sum() == 4
    assert (holm(PAPER) <= 0.05).sum() == 3


def test_holm_by_hand():
    # sorted .01 .03 .04: 3 * .01, 2 * .03, then at least as large as the one before
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


@given(p_values)
def test_benjamini_hochberg_is_scipys(p):
    assert benjamini_hochberg(p) == pytest.approx(false_discovery_control(p), abs=1e-15)


@given(p_values)
def test_holm_lies_between_the_p_and_bonferroni_and_is_no_smaller_than_bh(p):
    found = holm(p)
    assert (found >= np.array(p) - 1e-15).all()
    assert (found <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert (found >= benjamini_hochberg(p) - 1e-12).all()


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
def test_unknown_p_values_stay_unknown_and_are_not_counted(correct):
    with_gaps = [np.nan, 0.01, np.nan, 0.2, 0.03]
    found = correct(with_gaps)
    assert np.isnan(found[[0, 2]]).all()
    assert found[[1, 3, 4]] == pytest.approx(correct([0.01, 0.2, 0.03]))
    assert np.isnan(correct([np.nan])).all()
    assert correct([]).shape == (0,)


@pytest.mark.parametrize("wrong", [[-0.1], [1.1], [[0.5]]])
def test_what_is_no_list_of_p_values_is_refused(wrong):
    with pytest.raises(ValueError, match="p_values"):
        holm(wrong)


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
def test_under_the_null_any_rejection_happens_in_at_most_five_percent_of_reports(correct):
    rng = np.random.default_rng(0)
    reports = 2000
    false = sum((correct(rng.uniform(size=50)) <= 0.05).any() for _ in range(reports))
    assert 0.035 <= false / reports <= 0.062  # 3 standard errors are 0.015
