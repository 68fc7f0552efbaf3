"""What the report says about a curve: from scores with a known truth to its sentences."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from test_dose_response import logistic, study

from kvx.analyze.dose_stats import rows_of
from kvx.analyze.press_curves import KEYS, Curve
from kvx.analyze.transitions import rows_of as transition_rows
from kvx.config.analyze import AnalyzeConfig, Family
from kvx.report.curve_findings import curve_sentences
from kvx.report.summary import verdict_sentences
from kvx.stats.interaction import interaction_p

LEVELS = [1.0, 0.8, 0.6, 0.4, 0.3, 0.2]
CONFIG = AnalyzeConfig(n_boot=200)


def curve_of(rates, n, n_bins=5, budgets=LEVELS, seed=0, failed=None, **data):
    """A curve with `n` examples in each bin; `rates` [k] or, for each bin, [bins, k]."""
    rng = np.random.default_rng(seed)
    by_bin = np.broadcast_to(rates, (n_bins, len(budgets)))
    drawn = [study.draw_scores(one, n, rng, **data) for one in by_bin]
    scores = np.hstack([s for s, _ in drawn])
    clusters = np.concatenate([c + 1000 * b for b, (_, c) in enumerate(drawn)])
    bins = np.repeat(np.arange(n_bins), n)
    failed = np.zeros(scores.shape, dtype=bool) if failed is None else failed
    return made(scores, bins, clusters, failed, budgets)


def made(scores, bins, clusters, failed, budgets, kind="ratio"):
    key = dict.fromkeys(KEYS, "") | {"press": "snapkv", "controller": "none", "seed": 0}
    key |= {"variant_id": "v", "variant": "v", "model": "m", "dataset": "d", "budget_kind": kind}
    rows = [
        key | {
            "point_id": f"p{b}", "bin": int(index), "budget": b, "budget_label": f"{b:g}",
            "budget_measured": b / max(budgets), "metric": "exact_match", "primary": True,
            "n_degenerate": 0, "kv_bytes_mean": 1000 * b,
            "bin_low_tokens": 1000 * 2 ** max(int(index), 0),
            "bin_high_tokens": 2000 * 2 ** (4 if index < 0 else int(index)),
        }
        for b in budgets for index in [*np.unique(bins), -1]
    ]  # fmt: skip
    stats = pd.DataFrame(rows)
    overall = stats[stats["bin"] == -1].set_index("point_id")
    return Curve(key, overall, scores, failed, bins, clusters), stats


def told(curve, stats, config=CONFIG):
    transitions = pd.DataFrame(transition_rows([curve], config))
    doses = pd.DataFrame(rows_of([curve], stats, config))
    return curve_sentences("snapkv", transitions.iloc[0], config, doses)


def test_a_cliff_is_a_break_and_its_thresholds_lie_on_it():
    first, second = told(*curve_of([0.9, 0.9, 0.9, 0.3, 0.3, 0.3], 24))
    assert first.startswith("**snapkv keeps 95% of the score down to a budget between 0.")
    assert "breaks first between budgets 0.6 and 0.4** (-0." in second
    assert "corrected for 5 steps" in second


def test_a_decline_of_two_thirds_over_twenty_budgets_is_no_step_and_says_how_far_it_goes():
    budgets = np.linspace(1, 0.05, 21).round(3).tolist()
    sentences = told(*curve_of(np.linspace(0.9, 0.23, 21), 24, budgets=budgets))
    text = " ".join(sentences)
    assert "**snapkv has no step of ≥ 0.15 that a test can tell from chance** (20 steps, n" in text
    assert "At budget 0.05 it stands -0.6" in text
    assert sentences[0].startswith("**snapkv keeps 95% of the score down to budget 0.9")
    assert "half of it down to budget 0.3" in sentences[0]


@pytest.mark.parametrize(("n", "shape"), [(9, None), (10, "step")])
def test_a_slope_is_not_named_where_none_was_compared(n, shape):
    """Six budgets of 1, 1, 1, 0, 0, 0; nine prompts are too few to hold out a tenth."""
    scores = np.repeat([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], n).reshape(6, n)
    curve, stats = made(scores, np.zeros(n, int), np.arange(n), scores == 0, LEVELS)
    (row,) = transition_rows([curve], CONFIG)
    assert row["shape"] == shape
    assert "breaks first between budgets 0.6 and 0.4" in " ".join(told(curve, stats))


def test_a_cliff_that_few_examples_cannot_show_is_not_said_to_be_absent():
    """29 points in one step of five, 24 examples: seven are lost, p = 0.08 after correction."""
    scores = np.ones((6, 24))
    scores[3:, :7] = 0
    bins = np.zeros(24, int)
    text = " ".join(told(*made(scores, bins, np.arange(24), scores == 0, LEVELS)))
    assert "has no step of ≥ 0.15 that a test can tell from chance** (5 steps, n = 24)" in text
    assert "without a break" not in text
    assert "no transition" not in text


def test_a_break_that_a_slope_predicts_as_well_says_so():
    text = " ".join(told(*curve_of(np.linspace(0.9, 0.1, 6), 40)))
    assert "**snapkv falls first between budgets " in text
    assert "but a slope predicts held-out examples as well as a step" in text


def test_a_flat_curve_shows_no_step_and_keeps_its_score():
    text = " ".join(told(*curve_of([0.9] * 6, 60, pairing=0.95)))
    assert "**snapkv keeps 95% of the score at every budget tried**, down to 0.2" in text
    assert "has no step of ≥ 0.15 that a test can tell from chance" in text


def test_a_loss_at_one_length_is_told():
    rates = [0.9 * logistic(LEVELS, math.log2(0.1) + 0.6 * b, 0.2) / 0.99 for b in range(5)]
    first = told(*curve_of(np.clip(rates, 0, 1), 40))[0]
    assert first.startswith("**snapkv keeps 95% of the score down to budget 0.")
    assert " at 16000–32000 tokens**; at 1000–2000 tokens 40 examples cannot tell how far" in first
    assert "each doubling multiplies the budget it needs by 1." in first


def length_row(index, state, b95, low, high):
    return {
        **dict.fromkeys(KEYS, ""), "bin": index, "n": 20, "b95": b95, "b95_ci_low": low,
        "b95_ci_high": high, "b95_state": state, "b50": math.nan, "b50_state": "unknown",
        "lowest_budget": 0.5, "highest_budget": 0.8, "bin_low_tokens": 1000 * (index + 1),
        "bin_high_tokens": 1000 * (index + 2), "length_p_holm": 0.01 if index < 0 else math.nan,
        "shift_p": math.nan, "area_ci_high": -0.1, "n_degenerate": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("short", "long", "begins"),
    [
        (
            ("below_lowest", math.nan, 0.0, 0.94), ("reached", 0.7, 0.6, 0.75),
            "**snapkv keeps 95% of the score down to budget 0.7 [0.6, 0.75] at 2000–3000 tokens**; "
            "at 1000–2000 tokens 20 examples cannot tell how far (its loss differs between ",
        ),
        (
            ("below_lowest", math.nan, 0.0, 0.6), ("reached", 0.9, 0.85, 0.95),
            "**snapkv keeps 95% of the score at every budget tried (down to 0.5) at 1000–2000 "
            "tokens, and at no budget tried (from 0.8 down) at 2000–3000 tokens** (its loss ",
        ),
        (
            ("below_lowest", math.nan, 0.0, 0.94), ("reached", 0.6, 0.0, 0.9),
            "**snapkv depends on the length of the context** (its loss differs between lengths, ",
        ),
    ],
)  # fmt: skip
def test_what_a_length_cannot_tell_is_not_told(short, long, begins):
    curve = pd.Series(
        dict.fromkeys(KEYS, "")
        | {
            "n_clusters": 40, "n_steps": 2, "transition_budget": math.nan, "lowest_label": "0.5",
            "lowest_difference": -0.1, "zone_labels": [], "zone_reasons": [], "n_degenerate": 0,
        }
    )  # fmt: skip
    doses = pd.DataFrame([length_row(-1, *long), length_row(0, *short), length_row(1, *long)])
    assert curve_sentences("snapkv", curve, CONFIG, doses)[0].startswith(begins)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_clusters_get_one_sentence(n):
    scores = np.ones((3, 20))
    scores[1:] = 0
    clusters = np.arange(20) % n
    curve, stats = made(scores, np.zeros(20, int), clusters, scores == 0, [1.0, 0.5, 0.2])
    (only,) = told(curve, stats)
    assert f"too few examples (n = {n}) to say whether or where it breaks" in only


@pytest.mark.parametrize(
    ("scores", "n_bins"),
    [
        (np.zeros((3, 20)), 2),  # all failed, the full cache too
        (np.full((3, 20), np.nan), 2),  # no answer of the full cache
        (np.array([[1.0] * 20, [0.0] * 20, [0.0] * 20]), 1),  # all lost, one bin
        (np.ones((2, 20)), 20),  # one compressed budget, one prompt per bin
        (np.ones((3, 1)), 1),
    ],
)
def test_odd_tables_say_something_and_never_crash(scores, n_bins):
    n = scores.shape[1]
    bins = np.arange(n) * n_bins // n
    budgets = [1.0, 0.5, 0.2][: len(scores)]
    sentences = told(*made(scores, bins, np.arange(n), np.isnan(scores), budgets))
    assert sentences
    assert not any("nan" in sentence for sentence in sentences)


def test_a_score_lost_at_the_first_budget_tried_is_lost_between_it_and_the_full_cache():
    scores = np.repeat([1.0, 0.0, 0.0], 120).reshape(3, 120)
    curve, stats = made(scores, np.zeros(120, int), np.arange(120), scores == 0, [1.0, 0.5, 0.2])
    assert told(curve, stats)[0] == (
        "**snapkv keeps 95% of the score at no budget tried**, from 0.5 down; half of it down to a "
        "budget between 1 and 0.5."
    )


def test_the_length_test_is_that_of_the_comparisons():
    """Questions on one text in one bin are lost together: no effect of the length."""
    rng = np.random.default_rng(0)
    texts, bins = np.repeat(np.arange(20), 15), np.tile(np.repeat(range(3), 5), 20)
    scores = np.ones((3, 300))
    scores[1:] -= rng.integers(0, 2, (20, 3))[texts, bins]
    curve, stats = made(scores, bins, texts, scores == 0, [1.0, 0.5, 0.2])
    overall = next(row for row in rows_of([curve], stats, CONFIG) if row["bin"] == -1)
    assert overall["length_p"] == interaction_p(scores[1] - scores[0], bins, texts, CONFIG.seed)


def test_curves_over_tokens_and_over_fractions_are_told_apart():
    """Kept at 60 tokens of 100 and lost at 10, lost at all fractions: two curves of one press."""
    levels = {"ratio": [1.0, 0.0, 0.0], "tokens": [1.0, 1.0, 0.0]}
    budgets = {"ratio": [1.0, 0.5, 0.2], "tokens": [100.0, 60.0, 10.0]}
    transitions, doses = [], []
    for kind, rates in levels.items():
        scores, bins = np.repeat(rates, 40).reshape(3, 40), np.zeros(40, int)
        curve, stats = made(scores, bins, np.arange(40), scores == 0, budgets[kind], kind)
        transitions += transition_rows([curve], CONFIG)
        doses += rows_of([curve], stats, CONFIG)
    tables = pd.DataFrame(transitions), CONFIG, pd.DataFrame(doses)
    fractions, tokens = verdict_sentences(pd.DataFrame(), *tables)
    assert fractions.startswith("**snapkv keeps 95% of the score at no budget tried**, from 0.5")
    assert tokens.startswith(
        "**snapkv (budgets in tokens) keeps 95% of the score down to a share between 0.6 and 0.1**"
    )


def test_a_degenerate_curve_is_marked_where_its_score_is_kept():
    curve, stats = curve_of([0.9, 0.9, 0.9, 0.3, 0.3, 0.3], 24)
    assert "†" not in told(curve, stats)[0]
    stats.loc[stats["point_id"] == "p0.2", "n_degenerate"] = 7
    assert told(curve, stats)[0].endswith(" †.")


def test_curves_of_a_family_share_the_error_rate_of_the_length_test():
    """Two presses: Holm over both, or each press's own p if a curve is a family."""
    falls = [[0.9, 0.9, 0.9, 0.9, 0.9, 0.9 - 0.2 * b] for b in range(4)]
    one, stats = curve_of(falls, 30, n_bins=4)
    key = one.key | {"press": "tova"}
    other = dataclasses.replace(one, key=key)
    p = {}
    for family in Family:
        rows = rows_of([one, other], stats, dataclasses.replace(CONFIG, family=family))
        p[family] = [(row["length_p"], row["length_p_holm"]) for row in rows if row["bin"] == -1]
    for alone, together in p[Family.experiment]:
        assert together == pytest.approx(2 * alone)
    for alone, own in p[Family.curve]:
        assert own == pytest.approx(alone)
