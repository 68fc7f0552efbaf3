"""A break needs a test: rates of false and found breaks on curves whose truth is known."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from kvx.stats.transition import curve_steps, first_break

SCRIPT = Path(__file__).parent.parent / "scripts/curve_study.py"
SPEC = importlib.util.spec_from_file_location("curve_study", SCRIPT)
study = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(study)

CLIFF = [0.9, 0.9, 0.9, 0.6, 0.6, 0.6]


@pytest.mark.parametrize("n_budgets", [2, 10])
def test_a_flat_curve_of_four_examples_a_bin_does_not_break(n_budgets):
    found = study.breaks([0.8] * (n_budgets + 1), 20, 200, seed=1)
    assert found["tested"] <= 0.01
    assert found["classic"] >= 0.15  # what the rule alone would have said


@pytest.mark.parametrize(("n", "least"), [(8, 0.6), (10, 0.7), (24, 0.99)])
def test_a_cliff_of_thirty_points_is_found(n, least):
    found = study.breaks(CLIFF, 5 * n, 100, seed=2)
    assert found["tested"] >= least
    assert found["largest"] >= least - 0.05


def test_clusters_that_move_together_make_no_break():
    found = study.breaks([0.8] * 11, 120, 100, seed=3, cluster_size=12, icc=0.5)
    assert found["classic"] > 0.2
    assert found["tested"] <= 0.02


def test_steps_are_corrected_for_their_number():
    scores = np.ones((3, 20))
    scores[1:, :8] = 0  # exact McNemar 2 · 0.5^8 = 0.0078, and no change at the second step
    steps = curve_steps(scores, range(20))
    assert [(s.above, s.below) for s in steps] == [(0, 1), (1, 2)]
    assert [s.drop for s in steps] == pytest.approx([0.4, 0.0])
    assert [s.p for s in steps] == pytest.approx([2 * 2 * 0.5**8, 1.0])
    assert first_break(steps, 0.15, 0.05) == steps[0]
    assert first_break(steps, 0.5, 0.05) is None
    assert first_break(steps, 0.15, 0.01) is None


def test_too_few_clusters_test_nothing():
    scores = np.array([[1.0] * 20, [0.0] * 20])
    (step,) = curve_steps(scores, ["a", "b"] * 10)
    assert np.isnan(step.p)
    assert first_break([step], 0.15, 0.05) is None


def test_a_budget_without_scores_is_passed_over():
    scores = np.array([[1.0] * 10, [np.nan] * 10, [0.0] * 10])
    (step,) = curve_steps(scores, range(10))
    assert (step.above, step.below, step.drop) == (0, 2, 1.0)
    assert curve_steps(scores[:2], range(10)) == []


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="need"):
        curve_steps([[1.0, 0.0]], "abc")
    with pytest.raises(ValueError, match="drop=0"):
        first_break([], 0, 0.05)
