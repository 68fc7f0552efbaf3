"""Replays recorded traces through controllers.

A replay sees what the compressed run did; what a relaxed one would have done after the alarm it
cannot see. A catastrophe counts as prevented *at best* if the alarm came in time: an upper bound.
"""

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.guard.controllers.base import PREFILL, Follower, Mode, Observation, Policy
from kvx.learning.ranking import Estimate
from kvx.scoring.loops import INSTANT
from kvx.stats.bootstrap import (
    ClusterBootstrap,
    bootstrap_means,
    cluster_codes,
    percentile_interval,
)
from kvx.stats.intervals import UNKNOWN_INTERVAL, with_width

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Trace:
    """One response as a controller would have seen it, and how it ended.

    `observations`: the prefill's (token -1), then one for each token. `budget` is the point's,
    `entries` the number of prompt entries per head and layer, the weight of this trace in mean
    budgets. `catastrophe`: it derails and its full cache does not (excess); `derails`: it
    does, whatever the full cache. `onset` is the token at which a catastrophe starts, None if
    there is none or it has no such token.
    """

    key: str
    observations: Sequence[Observation]
    budget: float
    entries: int
    catastrophe: bool
    derails: bool
    onset: int | None

    @property
    def n_tokens(self) -> int:
        return len(self.observations) - 1

    @property
    def placed(self) -> bool:
        """Whether it is an excess catastrophe with a known onset."""
        return self.catastrophe and self.onset is not None

    @property
    def instant(self) -> bool:
        return self.onset is not None and self.onset <= INSTANT

    @property
    def deadline(self) -> int:
        """The token at which the catastrophe starts; the last one if it never ends."""
        return self.n_tokens - 1 if self.onset is None else self.onset

    @property
    def probe_nats(self) -> float:
        return self.observations[0].probe_nats

    @cached_property
    def hazard_peak(self) -> float:
        """The highest hazard; nan without any."""
        known = [o.hazard for o in self.observations if not math.isnan(o.hazard)]
        return max(known, default=math.nan)

    @cached_property
    def loops(self) -> bool:
        return any(o.loop_onset is not None for o in self.observations)

    def cusum_peak(self, reference_nats: float) -> float:
        """The highest sum of entropy above the reference; see `controller=rule_based`."""
        if reference_nats not in self._cusum_peaks:
            self._cusum_peaks[reference_nats] = self._cusum_peak(reference_nats)
        return self._cusum_peaks[reference_nats]

    @cached_property
    def _cusum_peaks(self) -> dict[float, float]:
        return {}

    def _cusum_peak(self, reference_nats: float) -> float:
        peak = total = 0.0
        for seen in self.observations[1:]:
            if not math.isnan(seen.entropy_nats):
                total = max(0.0, total + seen.entropy_nats - reference_nats)
                peak = max(peak, total)
        return peak


def observations(
    hazard: ArrayLike,
    entropy_nats: ArrayLike,
    loop_onsets: Sequence[int | None],
    repetition_counts: Sequence[int],
    probe_nats: float = math.nan,
    repeated: Sequence[int] | None = None,
) -> list[Observation]:
    """A controller's observations of a response of n tokens: n + 1, the prefill's first.

    Everything is [n]; `hazard` may hold nan. `loop_onsets` holds the onset where the sequence is in
    a loop that is known by then, `repeated` the `repeated_tails` (without: 0). Raises `ValueError`
    on lengths that differ.
    """
    columns = (
        np.asarray(hazard, dtype=float).tolist(), loop_onsets,
        np.asarray(entropy_nats, dtype=float).tolist(), repetition_counts,
        [math.nan] * len(loop_onsets), [0] * len(loop_onsets) if repeated is None else repeated,
    )  # fmt: skip
    tokens = [Observation(i, *row) for i, row in enumerate(zip(*columns, strict=True))]
    return [Observation(PREFILL, probe_nats=probe_nats), *tokens]


@dataclass(frozen=True)
class Outcome:
    """One replay. `alarm` is the token of the first alarm (-1: at the gate), None without one.

    `rollback_to` is the first token that alarm throws away. `mean_budget` is over the response's
    tokens, `dropped_tokens` over all `n_alarms`.
    """

    alarm: int | None
    rollback_to: int | None
    mean_budget: float
    n_alarms: int
    dropped_tokens: int

    def prevents(self, trace: Trace, lateness: int | None) -> bool:
        """Whether the first alarm came in time to prevent `trace`'s excess catastrophe at best.

        That is at most `lateness` tokens after its onset; None: as long as its rollback reaches
        the onset.
        """
        if self.alarm is None or not trace.catastrophe:
            return False
        assert self.rollback_to is not None
        if lateness is None:
            return self.rollback_to <= trace.deadline
        return self.alarm <= trace.deadline + lateness

    def forecasts(self, trace: Trace) -> bool:
        """Whether the first alarm came before the onset's token: nothing wrong was there yet."""
        return trace.placed and self.alarm is not None and self.alarm < trace.deadline

    def lead(self, trace: Trace) -> float:
        """Tokens from the first alarm to the onset (below 0: too late); nan where either lacks."""
        return math.nan if self.alarm is None or not trace.placed else trace.deadline - self.alarm


def replay(trace: Trace, policy: Policy) -> Outcome:
    """One trace through a new controller.

    After an alarm the controller goes on seeing the trace as it was recorded.
    """
    if policy.config.stays_calm(trace, policy):  # most of a sweep's time
        return Outcome(None, None, trace.budget, 0, 0)
    controller = Follower(policy, trace.key)
    normal = policy.budget(Mode.NORMAL, trace.budget)
    safe = policy.budget(Mode.SAFE, trace.budget)
    first = start = None
    n_alarms = dropped = n_safe = 0
    step, last = controller.step, trace.n_tokens - 1
    for seen in trace.observations:
        mode, alarm, _, back, _ = step(seen)
        if alarm:
            n_alarms += 1
            dropped += seen.token + 1 - back
            if first is None:
                first, start = seen.token, back
        if mode is Mode.SAFE and seen.token < last:  # it is the next token that pays
            n_safe += 1
    share = n_safe / max(1, trace.n_tokens)
    return Outcome(first, start, normal + (safe - normal) * share, n_alarms, dropped)


@dataclass(frozen=True)
class Replayed:
    """The outcome of every trace, [n] each; means over repeats if there are several.

    `lead_tokens` is nan where there is none.
    """

    triggered: Floats
    prevented: Floats
    forecast: Floats
    lead_tokens: Floats
    mean_budget: Floats
    n_alarms: Floats
    dropped_tokens: Floats

    def take(self, rows: Bools) -> "Replayed":
        """The traces of a mask [n]."""
        return Replayed(*(getattr(self, f.name)[rows] for f in fields(self)))


def replay_all(
    traces: Sequence[Trace], policies: Sequence[Sequence[Policy]], lateness: int | None = None
) -> Replayed:
    """Every trace through a controller of its own: `policies` [repeats][n].

    Several repeats, of random controllers, are averaged. Raises `ValueError` on other lengths.
    """
    columns = np.empty((len(policies), len(traces), 7))
    for i, own in enumerate(policies):
        for k, (trace, policy) in enumerate(zip(traces, own, strict=True)):
            found = replay(trace, policy)
            columns[i, k] = (
                found.alarm is not None, found.prevents(trace, lateness), found.forecasts(trace),
                found.lead(trace), found.mean_budget, found.n_alarms, found.dropped_tokens,
            )  # fmt: skip
    means = columns.mean(axis=0)
    known = ~np.isnan(columns[:, :, 3])
    total = np.where(known, columns[:, :, 3], 0.0).sum(axis=0)
    lead = np.full(len(traces), np.nan)
    np.divide(total, known.sum(axis=0), out=lead, where=known.any(axis=0))
    means[:, 3] = lead
    return Replayed(*means.T)


@dataclass(frozen=True)
class Summary:
    """One controller over many traces.

    Shares are of traces: `prevented` of excess catastrophes, `prevented_preventable` of those that
    do not start within the first five tokens, `prevented_instant` of those that do,
    `prevented_placed` of those with a known onset (loops), `forecast` of the same (alarm before
    the onset), `false_triggers` of traces without an excess
    catastrophe, `false_triggers_calm` of traces that do not derail at all, `triggered` of all.
    `mean_budget` weighs every token by its prompt's entries. Tokens are dropped per 1,000.
    """

    prevented: Estimate
    prevented_preventable: Estimate
    prevented_instant: Estimate
    prevented_placed: Estimate
    forecast: Estimate
    false_triggers: Estimate
    false_triggers_calm: Estimate
    triggered: Estimate
    mean_budget: Estimate
    lead_median_tokens: float
    dropped_per_1000: Estimate


def summarise(
    traces: Sequence[Trace],
    replayed: Replayed,
    clusters: Collection[Hashable],
    n_boot: int,
    confidence: float,
    seed: int,
) -> Summary:
    """Shares with intervals by resampling prompts (`clusters` [n]).

    Where all prompts agree a bootstrap has no width: the interval is then the exact one of as many
    trials as there are prompts.
    """
    catastrophe = np.array([t.catastrophe for t in traces], dtype=bool)
    instant = np.array([t.instant for t in traces], dtype=bool)
    placed = np.array([t.placed for t in traces], dtype=bool)
    derails = np.array([t.derails for t in traces], dtype=bool)
    everything = np.ones(len(traces), dtype=bool)
    cells = {
        "prevented": (replayed.prevented, catastrophe),
        "prevented_preventable": (replayed.prevented, catastrophe & ~instant),
        "prevented_instant": (replayed.prevented, catastrophe & instant),
        "prevented_placed": (replayed.prevented, placed),
        "forecast": (replayed.forecast, placed),
        "false_triggers": (replayed.triggered, ~catastrophe),
        "false_triggers_calm": (replayed.triggered, ~derails),
        "triggered": (replayed.triggered, everything),
    }
    names = list(clusters)
    found = bootstrap_means(
        [(np.where(mask, values, np.nan), names) for values, mask in cells.values()],
        n_boot,
        confidence,
        seed,
    )
    shares = {
        name: Estimate(e.mean, with_width(e.interval, e.mean, e.n_clusters, confidence))
        for name, e in zip(cells, found, strict=True)
    }
    tokens = np.array([t.n_tokens for t in traces], dtype=float)
    entries = np.array([t.entries for t in traces], dtype=float)
    budget, dropped = (
        _ratio(top, bottom, names, n_boot, confidence, seed)
        for top, bottom in (
            (replayed.mean_budget * tokens * entries, tokens * entries),
            (1000 * replayed.dropped_tokens, tokens),
        )
    )
    leads = replayed.lead_tokens[~np.isnan(replayed.lead_tokens)]
    return Summary(
        **shares,
        mean_budget=budget,
        dropped_per_1000=dropped,
        lead_median_tokens=float(np.median(leads)) if leads.size else math.nan,
    )


def _ratio(
    sums: Floats,
    weights: Floats,
    clusters: Sequence[Hashable],
    n_boot: int,
    confidence: float,
    seed: int,
) -> Estimate:
    """Sum over `sums` by sum over `weights` ([n] each), resampled by cluster."""
    if not weights.sum():
        return Estimate(math.nan, UNKNOWN_INTERVAL)
    codes, n = cluster_codes(clusters)
    top, bottom = np.bincount(codes, sums, n), np.bincount(codes, weights, n)
    draws = ClusterBootstrap(n, n_boot, seed).means(top[None], bottom[None])
    return Estimate(float(sums.sum() / weights.sum()), percentile_interval(draws[0], confidence))


def pareto_front(prevented: ArrayLike, false_triggers: ArrayLike, mean_budget: ArrayLike) -> Bools:
    """Which choices [n] are on the Pareto front: none is as good in all and better in one.

    Higher is better in `prevented`, lower in the two others. Choices with a nan are on no front.
    """
    cost = np.stack(
        [
            -np.asarray(prevented, float),
            np.asarray(false_triggers, float),
            np.asarray(mean_budget, float),
        ],
        axis=1,
    )
    no_worse = (cost[:, None] <= cost[None]).all(axis=2)
    better = (cost[:, None] < cost[None]).any(axis=2)
    front: Bools = ~(no_worse & better).any(axis=0) & ~np.isnan(cost).any(axis=1)
    return front


def matching_rate(share: float, n_tokens: ArrayLike) -> float:
    """Alarms per token at which chance triggers `share` of traces of `n_tokens` [n] tokens."""
    lengths = np.asarray(n_tokens, dtype=float)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if float((1 - (1 - middle) ** lengths).mean()) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def thresholds(peaks: ArrayLike, n: int) -> list[float]:
    """Up to `n` thresholds that tell traces with these `peaks` [traces] apart, ascending.

    Half are spread evenly over the traces, half over the highest tenth, where few false alarms are.
    """
    known = np.asarray(peaks, dtype=float)
    known = known[np.isfinite(known)]
    if not known.size:
        return []
    shares = np.concatenate([np.linspace(0, 0.9, n - n // 2), np.linspace(0.9, 1, n // 2 + 1)[1:]])
    return sorted({float(v) for v in np.quantile(known, shares, method="nearest")})
