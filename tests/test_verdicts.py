"""What the report says of a point against its full cache, and when it says that it cannot."""

import pandas as pd
import pytest

from kvx.config.analyze import AnalyzeConfig
from kvx.report.findings import findings
from kvx.report.verdicts import Verdict, in_a_cell, in_words, lengths, verdict
from kvx.stats.clustered import paired_difference
from kvx.stats.paired import least_pairs, mcnemar_exact

CURVE = {
    "variant_id": "v", "variant": "v", "press": "snapkv", "controller": "none", "seed": 0,
    "budget_kind": "ratio", "budget_label": "0.5", "budget_asked": 0.5, "budget": 0.5,
    "point_id": "p",
}  # fmt: skip


def row_of(ours, twins, clusters=None, confidence=0.95, **changed):
    """A row of `comparisons`, the only one of its family."""
    names = list(range(len(ours))) if clusters is None else clusters
    found = paired_difference(ours, twins, names, confidence)
    return pd.Series(
        CURVE | {
            "metric": "exact_match", "primary": True, "higher_is_better": True,
            "bin": -1, "n_pairs": found.n_pairs, "n_missing": 0, "n_missing_full": 0,
            "n_clusters": found.n_clusters, "n_lost": found.n_lost, "n_won": found.n_won,
            "difference": found.difference, "mean": found.mean_a, "twin_mean": found.mean_b,
            "ci_low": found.interval.low, "ci_high": found.interval.high, "n_degenerate": 0,
            "p": found.p, "p_holm": found.p, "p_bh": found.p, "interaction_p_bh": None,
            "difference_from_failures": 0.0, "difference_from_truncated": 0.0,
        } | changed
    )  # fmt: skip


def told(row, **changed):
    """The sentences of a report on one compressed point, with a curve that breaks there."""
    stats = pd.DataFrame([CURVE | {"bin": -1, "bin_low_tokens": 1, "bin_high_tokens": 2}])
    curve = CURVE | {
        "n_clusters": row["n_clusters"], "n_boot": 2000, "transition_budget": 0.5,
        "transition_label": "0.5", "transition_above_label": "1", "transition_drop": 1.0,
        "transition_p": 0.03, "n_steps": 1, "lowest_label": "0.5", "lowest_difference": -1.0,
        "n_degenerate": 0, "zone_labels": ["0.5"], "zone_reasons": ["failures"],
    }  # fmt: skip
    config = AnalyzeConfig(**changed)
    return findings(stats, pd.DataFrame([row]), pd.DataFrame([curve]), {}, config)


@pytest.mark.parametrize(("alpha", "least"), [(0.05, 6), (0.1, 5), (0.01, 8), (0.001, 11)])
def test_the_least_number_is_where_an_exact_test_can_first_reach_the_level(alpha, least):
    assert least_pairs(alpha) == least
    assert mcnemar_exact(least, 0) < alpha <= mcnemar_exact(least - 1, 0)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("size", [1.0, 0.4])  # 0/1 scores with Newcombe's interval, graded ones
def test_examples_that_no_test_could_tell_by_get_no_verdict(n, size):
    row = row_of([0.01 * i * (size < 1) for i in range(n)], [size] * n)
    assert (row["ci_high"] < 0) == (size == 1)  # the interval alone would call it a loss
    first, second = told(row)
    assert f"too few examples (n = {n}) for a verdict on exact match against the" in first
    assert "loss" not in first
    assert "clear" not in first
    assert f"too few examples (n = {n}) to say whether or where it breaks" in second


def test_six_examples_that_are_all_lost_are_a_loss_and_at_99_percent_are_too_few():
    row = row_of([0.0] * 6, [1.0] * 6)
    first, second, third = told(row)
    assert "a loss of exact match" in first
    assert "breaks first between budgets 1 and 0.5" in second
    assert "instability zone" in third
    assert "too few examples (n = 6)" in told(row, confidence=0.99)[0]


def test_clusters_count_and_not_their_rows():
    row = row_of([0.0] * 20, [1.0] * 20, clusters=["a", "b"] * 10)
    assert verdict(row, 0.05) is Verdict.too_few
    assert in_words(row, 0.05) == (
        "too few independent examples (20 of 2 clusters) for a verdict on exact match"
    )


def test_graded_scores_of_which_few_differ_get_none_either():
    row = row_of([0.5, 0.5, 0.5, 0.5, *[1.0] * 2], [1.0] * 6)
    row["p"] = 0.125
    row["ci_high"] = -0.01
    assert in_words(row, 0.05).startswith("too few examples that differ (n = 4) for a verdict")


def test_a_sentence_never_contradicts_its_interval():
    """Of every table of 0/1 pairs: with an interval without zero nobody reads "no clear change"."""
    for n in range(1, 15):
        for lost in range(n + 1):
            for won in range(n + 1 - lost):
                same = n - lost - won
                row = row_of([0.0] * lost + [1.0] * won + [1.0] * same,
                             [1.0] * lost + [0.0] * won + [1.0] * same)  # fmt: skip
                found = verdict(row, 0.05)
                without_zero = row["ci_low"] > 0 or row["ci_high"] < 0
                assert (found is Verdict.unclear) <= (not without_zero), (n, lost, won)
                assert (found in (Verdict.loss, Verdict.gain)) <= without_zero
                assert (found in (Verdict.loss, Verdict.gain)) <= (row["p"] < 0.05)


def test_interval_and_test_at_odds_are_told_as_that():
    row = row_of([0.0] * 7 + [1.0] * 9, [1.0] * 6 + [0.0] + [1.0] * 9)
    odd = row.copy()
    odd["ci_high"], odd["p"] = -0.01, 0.07
    assert in_words(odd, 0.05).startswith("no verdict (the interval and the exact test disagree)")


def test_all_lost_by_the_same_is_a_loss_with_the_interval_of_clusters_as_trials():
    row = row_of([0.25] * 12, [0.75] * 12)
    # of all texts at most 1 - 0.025^(1/12) = 26% differ by anything else, up to +1
    assert row["ci_high"] == pytest.approx(-0.5 + (1 - 0.025 ** (1 / 12)) * 1.5)
    assert verdict(row, 0.05) is Verdict.loss
    alike = row_of([0.25] * 12, [0.25] * 12)
    assert verdict(alike, 0.05) is Verdict.unclear
    assert alike["ci_high"] == -alike["ci_low"] > 0.2


def test_a_change_that_many_comparisons_explain_is_not_called_a_loss():
    row = row_of([0.0] * 6 + [1.0] * 18, [1.0] * 24)
    assert row["p"] == pytest.approx(2 / 2**6)
    assert verdict(row, 0.05) is Verdict.loss
    row["p_holm"] = 50 * row["p"]
    assert in_words(row, 0.05) == (
        "no clear change of exact match (p = 0.031 alone, 1.6 corrected for the number of "
        "comparisons)"
    )


def test_bins_and_other_metrics_go_by_the_correction_for_exploration():
    lost = {"p_holm": 0.001, "p_bh": 0.2}
    for changed in ({"bin": 3}, {"primary": False}):
        row = row_of([0.0] * 9 + [1.0] * 15, [1.0] * 24, **lost, **changed)
        assert verdict(row, 0.05) is Verdict.may_be_chance
        row["p_bh"] = 0.01
        assert verdict(row, 0.05) is Verdict.loss


def test_a_full_cache_without_an_answer_leaves_nothing_to_compare():
    row = row_of([0.0] * 9, [float("nan")] * 9, n_missing_full=9)
    assert verdict(row, 0.05) is Verdict.nothing
    said = "no verdict on exact match: the full cache answered none of 9 examples"
    assert in_words(row, 0.05) == said
    assert told(row)[0] == f"**snapkv at budget 0.5**: {said}."


def test_a_loss_at_one_length_is_named_though_the_mean_hides_it():
    """Five bins of 24, and in one of them a 38-point cliff."""
    overall = row_of([0.0] * 9 + [1.0] * 111, [1.0] * 120, interaction_p_bh=0.001, p_holm=0.2)
    cliff = row_of([0.0] * 9 + [1.0] * 15, [1.0] * 24, bin=4, p_bh=0.02)
    others = [row_of([1.0] * 24, [1.0] * 24, bin=i, p_bh=1.0) for i in range(4)]
    bins = pd.DataFrame([*others, cliff])
    ranges = {("p", i): f"{i}000–{i}999" for i in range(5)}
    assert lengths(overall, bins, ranges, 0.05) == (
        " By length it is a loss at 4000–4999 tokens (-0.38, corrected p = 0.02). It depends on "
        "the length (press × length: corrected p = 0.001)."
    )
    said = "**a loss** at 4000–4999 tokens"
    assert in_a_cell(overall, bins, ranges, 0.05) == f"a change that may be chance; {said}"
    hidden = row_of([0.0] * 9 + [1.0] * 106 + [0.0] * 5, [1.0] * 115 + [0.0] * 5)
    hidden["interaction_p_bh"], hidden["p_holm"], hidden["p"] = 0.001, 0.8, 0.8
    hidden["ci_low"], hidden["ci_high"] = -0.1, 0.1
    assert in_a_cell(hidden, bins, ranges, 0.05) == f"no clear change; {said}"
    quiet = row_of([0.0] * 9 + [1.0] * 111, [1.0] * 120, interaction_p_bh=0.4, p_holm=0.2)
    assert lengths(quiet, bins, ranges, 0.05) == ""
    everywhere = pd.DataFrame(
        [row_of([0.0] * 9 + [1.0] * 15, [1.0] * 24, bin=i, p_bh=0.02) for i in range(5)]
    )
    lost = row_of([0.0] * 45 + [1.0] * 75, [1.0] * 120)
    assert lengths(lost, everywhere, ranges, 0.05) == (
        " It is a loss in every length bin (-0.38 to -0.38)."
    )
