"""How good a hazard score is: before the onset, per token and per trace, prompts resampled."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.guard.trace_arrays import positions, starts_of
from kvx.learning.labels import Targets, token_labels, usable_tokens
from kvx.learning.ranking import Estimate, Resampler, auroc, average_precision, calibration_error

RATES = (0.01, 0.05, 0.10)
LEADS = (32, 64)
BUCKETS = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Metric:
    """One figure with its interval; `n` and `n_positive` count tokens or traces, as `unit` says."""

    name: str
    estimate: Estimate
    n: int
    n_positive: int
    unit: str


@dataclass(frozen=True)
class Scored:
    """A score for every token of `n` traces laid end to end, and what became of them.

    `lengths` [n], `score` [tokens] (nan where there is none), `clusters` [n] the prompts' numbers.
    Tokens from the onset on and traces that are left out do not count. `room` [n]: how many tokens
    stand before the catastrophe starts, where that is not the onset of `about`, because what is to
    be foreseen is when it can be detected.
    """

    lengths: NDArray[np.int64]
    score: NDArray[np.float32]
    about: Targets
    clusters: NDArray[np.int64]
    horizon: int
    room: NDArray[np.float64] | None = None

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        return usable_tokens(self.lengths, self.about) & ~np.isnan(self.score)

    @cached_property
    def labels(self) -> NDArray[np.bool_]:
        return token_labels(self.lengths, self.about.onset, self.horizon)

    @cached_property
    def token_clusters(self) -> NDArray[np.int64]:
        return np.repeat(self.clusters, self.lengths)

    @cached_property
    def highest(self) -> NDArray[np.float32]:
        """Each trace's highest usable score; nan if it has none."""
        return highest(self.score, self.usable, self.lengths)


def highest(
    score: NDArray[np.float32], usable: NDArray[np.bool_], lengths: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The highest usable score [tokens] of each trace [n]; nan if it has none."""
    found = np.full(len(lengths), np.nan, np.float32)
    held = np.flatnonzero(lengths > 0)
    if len(held):
        low = np.where(usable, score, -np.inf)
        peaks = np.maximum.reduceat(low, starts_of(lengths)[:-1][held])
        found[held] = np.where(np.isneginf(peaks), np.nan, peaks)
    return found


def first_alarm(scored: Scored, thresholds: ArrayLike) -> NDArray[np.float64]:
    """The first usable token whose score reaches its trace's threshold [n]; nan if none does."""
    limit = np.repeat(np.broadcast_to(np.asarray(thresholds), scored.lengths.shape), scored.lengths)
    at = np.where(scored.usable & (scored.score >= limit), positions(scored.lengths), np.inf)
    found = np.full(len(scored.lengths), np.nan)
    held = np.flatnonzero(scored.lengths > 0)
    if len(held):
        first = np.minimum.reduceat(at, starts_of(scored.lengths)[:-1][held])
        found[held] = np.where(np.isinf(first), np.nan, first)
    return found


def token_metrics(scored: Scored, resampler: Resampler, probability: bool = True) -> list[Metric]:
    """AUROC, AUPRC, its lift over the base rate and, of a `probability`, the calibration errors."""
    use = scored.usable
    score, label, clusters = scored.score[use], scored.labels[use], scored.token_clusters[use]
    n, n_positive = len(label), int(label.sum())
    ranked = resampler.ranked(score, label, clusters)
    base = n_positive / n if n else float("nan")
    precision = average_precision(score, label)
    found = {
        "auroc": ranked.auroc(auroc(score, label)),
        "auprc": ranked.average_precision(precision),
        "auprc_lift": ranked.lift(precision / base if base else float("nan")),
        "base_rate": ranked.base_rate(base),
    }
    if probability:
        for name, equal_mass in (("ece", False), ("ece_equal_mass", True)):
            cells = calibration_error(score, label, equal_mass)
            found[name] = resampler.calibration_error(*cells, clusters)
    return [Metric(name, value, n, n_positive, "tokens") for name, value in found.items()]


def trace_metrics(scored: Scored, resampler: Resampler) -> list[Metric]:
    """Trace-level AUROC and recall at 1, 5 and 10% false positives, on the curve of these very
    traces: what thresholds chosen elsewhere reach is in `alarm_metrics`.
    """
    known = ~np.isnan(scored.highest)
    score, event = scored.highest[known], scored.about.events[known]
    ranked = resampler.ranked(score, event, scored.clusters[known])
    found = {"trace_auroc": ranked.auroc(auroc(score, event))}
    for rate in RATES:
        found[f"recall_on_curve_at_{rate:.0%}"] = ranked.recall_at(rate)
    return [
        Metric(name, value, len(event), int(event.sum()), "traces") for name, value in found.items()
    ]


def alarm_metrics(
    scored: Scored, thresholds: NDArray[np.float64], resampler: Resampler, name: str
) -> list[Metric]:
    """Alarms at `thresholds` [n]: recall, false positives, leads, false alarms.

    `thresholds` were chosen on prompts that are not among these. Leads are of the events that were
    caught; `lead_median_roomy` of those that start only after 64 tokens.
    """
    alarm, events, clusters = first_alarm(scored, thresholds), scored.about.events, scored.clusters
    raised, sound = ~np.isnan(alarm), ~events & (scored.about.role == 0)
    lead = scored.about.onset - alarm
    caught = events & raised
    false = false_alarms(scored, thresholds)
    counts = {
        "recall": (raised[events], clusters[events]),
        "false_positive_rate": (raised[sound], clusters[sound]),
    }
    for least in LEADS:
        roomy = events & (scored.about.onset >= least)
        counts[f"recall_with_lead_{least}"] = ((lead >= least)[roomy], clusters[roomy])
    found = [
        Metric(
            f"{name}.{what}", resampler.share(values, of), len(values), int(values.sum()), "traces"
        )
        for what, (values, of) in counts.items()
    ]
    spread = {"lead_q25": 0.25, "lead_median": 0.5, "lead_q75": 0.75}
    starts = scored.about.onset if scored.room is None else scored.room
    roomy = caught & (starts >= LEADS[-1])
    for what, quantile, rows in [
        *((what, quantile, caught) for what, quantile in spread.items()),
        ("lead_median_roomy", 0.5, roomy),
    ]:
        value = resampler.quantile(lead[rows], clusters[rows], quantile)
        found.append(Metric(f"{name}.{what}", value, int(rows.sum()), int(rows.sum()), "traces"))
    rate = resampler.ratio(false[sound], scored.lengths[sound], clusters[sound], 1000.0)
    n_tokens = int(scored.lengths[sound].sum())
    per = Metric(
        f"{name}.false_alarms_per_1000_tokens", rate, n_tokens, int(false[sound].sum()), "tokens"
    )
    return [*found, per]


def false_alarms(scored: Scored, thresholds: ArrayLike) -> NDArray[np.int64]:
    """How often each trace's score rises to its threshold at tokens that are not positive."""
    limit = np.repeat(np.broadcast_to(np.asarray(thresholds), scored.lengths.shape), scored.lengths)
    above = scored.usable & (scored.score >= limit)
    before = np.concatenate([[False], above[:-1]]) & (positions(scored.lengths) > 0)
    rises = above & ~before & ~scored.labels
    of = np.repeat(np.arange(len(scored.lengths)), scored.lengths)
    return np.bincount(of, weights=rises, minlength=len(scored.lengths)).astype(np.int64)


def auroc_by_position(scored: Scored, resampler: Resampler) -> list[Metric]:
    """AUROC(t): of the tokens in each stretch of positions."""
    at, found = positions(scored.lengths), []
    for low, high in zip(BUCKETS, (*BUCKETS[1:], np.inf), strict=True):
        use = scored.usable & (at >= low) & (at < high)
        score, label = scored.score[use], scored.labels[use]
        if not label.any() or label.all():
            continue
        ranked = resampler.ranked(score, label, scored.token_clusters[use])
        end = "" if np.isinf(high) else f"{high - 1:.0f}"
        estimate = ranked.auroc(auroc(score, label))
        found.append(
            Metric(f"auroc_at_{low}-{end}", estimate, len(label), int(label.sum()), "tokens")
        )
    return found


def group_auroc(
    score: ArrayLike, positive: ArrayLike, clusters: ArrayLike, resampler: Resampler, name: str
) -> Metric:
    """AUROC of one score per trace [n]; nan scores do not count."""
    values, label = np.asarray(score, np.float64), np.asarray(positive, bool)
    known = ~np.isnan(values)
    ranked = resampler.ranked(values[known], label[known], np.asarray(clusters)[known])
    return Metric(
        name,
        ranked.auroc(auroc(values[known], label[known])),
        int(known.sum()),
        int(label[known].sum()),
        "traces",
    )


def all_metrics(
    scored: Scored,
    thresholds: Mapping[str, NDArray[np.float64]],
    resampler: Resampler,
    probability: bool = True,
) -> list[Metric]:
    """Everything about one score; `thresholds` [n] by operating point."""
    return [
        *token_metrics(scored, resampler, probability),
        *trace_metrics(scored, resampler),
        *(m for name, t in thresholds.items() for m in alarm_metrics(scored, t, resampler, name)),
        *auroc_by_position(scored, resampler),
    ]
