"""Measures of a hazard score: against their definitions, and against worked examples."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvx.learning.baselines import entropy_cusum, repeated_ngrams
from kvx.learning.evaluation import (
    Scored,
    alarm_metrics,
    all_metrics,
    auroc_by_position,
    false_alarms,
    first_alarm,
    trace_metrics,
)
from kvx.learning.labels import Role, targets
from kvx.learning.ranking import Resampler, auroc, average_precision, calibration_error

NAN = float("nan")
ranking = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40)


def resampler(n_clusters, n_boot=400):
    return Resampler(n_clusters, n_boot, 0.95, 0)


def scored(score, lengths, onset, clusters=None, horizon=32):
    n = len(lengths)
    about = targets(onset, [False] * n, [True] * n, excess_only=True)
    of = np.arange(n) if clusters is None else np.array(clusters)
    return Scored(np.array(lengths), np.array(score, np.float32), about, of, horizon)


@given(ranking)
def test_auroc_is_the_share_of_pairs_in_the_right_order(rows):
    high = [s for s, positive in rows if positive]
    low = [s for s, positive in rows if not positive]
    found = auroc([s for s, _ in rows], [p for _, p in rows])
    if not high or not low:
        assert np.isnan(found)
        return
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in high for b in low]
    assert found == pytest.approx(np.mean(pairs))


@given(ranking)
def test_average_precision_by_its_definition(rows):
    score, label = np.array([s for s, _ in rows]), np.array([p for _, p in rows])
    found = average_precision(score, label)
    if not label.any():
        assert np.isnan(found)
        return
    expected = sum(
        (score[label] == s).sum() / label.sum() * label[score >= s].mean() for s in set(score)
    )
    assert found == pytest.approx(expected)


def test_a_perfect_and_an_inverse_ranking():
    assert auroc([1, 2, 3, 4], [False, False, True, True]) == 1.0
    assert auroc([4, 3, 2, 1], [False, False, True, True]) == 0.0
    assert average_precision([1, 2, 3, 4], [False, False, True, True]) == 1.0


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000))
def test_the_interval_of_an_auprc_is_that_of_resampling_prompts_one_by_one(seed):
    rng = np.random.default_rng(seed)
    n_clusters = 12
    clusters = rng.integers(0, n_clusters, 300)
    label = rng.random(300) < 0.3
    score = rng.normal(label * 0.8 + rng.normal(0, 0.5, n_clusters)[clusters], 1)
    by = resampler(n_clusters, 300)
    ranked, value = by.ranked(score, label, clusters), average_precision(score, label)
    interval = ranked.average_precision(value).interval
    draws = []
    for weights in by.weights.astype(int):
        rows = np.concatenate([np.flatnonzero(clusters == c).repeat(w)
                               for c, w in enumerate(weights)])  # fmt: skip
        draws.append(average_precision(score[rows], label[rows]))
    assert tuple(interval) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-9)


def test_many_rows_are_put_into_classes_without_moving_the_interval():
    rng = np.random.default_rng(1)
    clusters, label = rng.integers(0, 20, 60_000), rng.random(60_000) < 0.05
    score = rng.normal(label * 1.0, 1)
    by = resampler(20, 100)
    found = by.ranked(score, label, clusters)
    exact = [auroc(np.repeat(score, w), np.repeat(label, w))
             for w in by.weights.astype(int)[:, clusters][:20]]  # fmt: skip
    from kvx.learning.ranking import _auroc

    assert _auroc(*found._drawn)[:20] == pytest.approx(exact, abs=2e-4)


def test_one_prompt_gives_no_interval():
    found = resampler(3).ranked([1.0, 2.0], [False, True], [1, 1]).auroc(1.0)
    assert np.isnan(found.interval.low)


def test_shares_on_which_all_prompts_agree_are_not_certain():
    by = resampler(10)
    clusters = np.repeat(np.arange(10), 4)
    for value, interval in ((1, (0.6915, 1)), (0, (0, 0.3085))):  # 10 of 10, 0 of 10
        found = by.share(np.full(40, bool(value)), clusters)
        assert (found.value, *found.interval) == pytest.approx((value, *interval), abs=1e-4)
    label = np.arange(40) % 4 == 0
    recall = by.ranked(label.astype(float), label, clusters).recall_at(0.05)
    assert (recall.value, *recall.interval) == pytest.approx((1, 0.6915, 1), abs=1e-4)
    mixed = by.share(np.arange(40) < 20, clusters).interval
    assert 0 < mixed.low < 0.5 < mixed.high < 1


def test_calibration_error_of_a_worked_example():
    p = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9])
    label = np.array([True, False, False, False, True, True])
    error = resampler(2).calibration_error(*calibration_error(p, label, False), [0, 0, 0, 1, 1, 1])
    assert error.value == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)


def test_the_first_alarm_leads_and_what_comes_after_the_onset_does_not_count():
    s = scored([0, 0.9, 0, 0, 1.0, 0, 0, 0, 0, 0.8], [5, 5], [3, 3])
    assert first_alarm(s, 0.5).tolist()[0] == 1
    assert np.isnan(first_alarm(s, 0.5)[1])
    assert s.highest.tolist() == pytest.approx([0.9, 0.0])


def test_leads_recall_and_false_positives_of_a_worked_example():
    lengths, onset = [100, 100, 100, 100], [90, 40, NAN, NAN]
    score = np.zeros(400)
    score[10] = score[130] = score[250] = score[251] = score[260] = 0.8
    s = scored(score, lengths, onset, horizon=16)
    found = {m.name: m for m in alarm_metrics(s, np.full(4, 0.5), resampler(4), "x")}
    assert found["x.recall"].estimate.value == 1.0
    assert found["x.false_positive_rate"].estimate.value == 0.5
    assert found["x.lead_q25"].estimate.value == 10
    assert found["x.lead_q75"].estimate.value == 80
    assert found["x.recall_with_lead_32"].estimate.value == 0.5
    assert found["x.recall_with_lead_64"].n == 1  # only one onset leaves room for 64
    assert found["x.lead_median_roomy"].estimate.value == 80
    assert false_alarms(s, 0.5).tolist() == [1, 0, 2, 0]  # two in a row are one
    assert found["x.false_alarms_per_1000_tokens"].estimate.value == pytest.approx(10.0)


def test_roomy_leads_are_of_what_starts_late_wherever_it_is_detected():
    s = scored(np.tile([0.0] * 60 + [0.9] + [0.0] * 39, 3), [100] * 3, [80, 90, NAN])
    late = replace(s, room=np.array([40.0, 64.0, NAN]))
    for which, lead in ((s, 20), (late, 30)):
        found = {m.name: m for m in alarm_metrics(which, np.full(3, 0.5), resampler(3), "x")}
        assert found["x.lead_median"].estimate.value == 20
        assert found["x.lead_median_roomy"].estimate.value == lead


def test_recall_on_the_curve_takes_the_best_threshold_that_few_sound_traces_reach():
    n = 40
    score = np.concatenate([np.linspace(0, 0.5, n), [0.495, 0.9]])
    s = scored(score, [1] * (n + 2), [NAN] * n + [1, 1])
    found = {m.name: m.estimate.value for m in trace_metrics(s, resampler(n + 2))}
    assert found["recall_on_curve_at_1%"] == 0.5
    assert found["recall_on_curve_at_5%"] == 1.0


def test_traces_that_are_left_out_count_nowhere():
    s = scored([0.1, 0.2, 0.3], [1, 1, 1], [NAN] * 3)
    s.about.role[1] = Role.LEFT_OUT
    assert s.usable.tolist() == [True, False, True]
    assert np.isnan(s.highest[1])
    found = alarm_metrics(s, np.full(3, 0.15), resampler(3), "x")
    assert {m.name: m.n for m in found}["x.false_positive_rate"] == 2


def test_auroc_by_position_covers_every_usable_token_with_both_labels():
    rng = np.random.default_rng(0)
    s = scored(rng.random(4000), [100] * 40, [80.0] * 20 + [NAN] * 20)
    found = auroc_by_position(s, resampler(40))
    assert [m.name for m in found] == ["auroc_at_32-63", "auroc_at_64-127"]
    assert sum(m.n_positive for m in found) == 20 * 32


def test_everything_about_a_score_without_any_event_is_unknown_not_an_error():
    s = scored(np.zeros(30), [10, 10, 10], [NAN] * 3)
    found = {m.name: m.estimate.value
             for m in all_metrics(s, {"balanced": np.full(3, 0.5)}, resampler(3))}  # fmt: skip
    assert np.isnan(found["auroc"])
    assert np.isnan(found["balanced.recall"])
    assert found["balanced.false_positive_rate"] == 0.0


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.lists(st.integers(0, 4), min_size=30,
       max_size=30))  # fmt: skip
def test_a_quantile_is_one_of_the_values(values, clusters):
    found = resampler(5, 50).quantile(values, clusters[: len(values)], 0.5)
    assert found.value == sorted(values)[(len(values) + 1) // 2 - 1]


def test_the_repetition_detector_sees_a_repeated_phrase():
    shares = repeated_ngrams([*range(20), *range(10, 20), 99])
    assert shares[:23].tolist() == [0.0] * 23
    assert shares[-1] == shares[-2] == pytest.approx(7 / 64)


def test_the_cusum_forgets_what_was_low():
    entropy = [1.0] * 10 + [0.0] * 50 + [5.0] * 3
    found = entropy_cusum(entropy, mean=1.0, sd=1.0)
    assert found[59] == 0
    assert found[60:].tolist() == pytest.approx([3.5, 7.0, 10.5])
