"""Every figure about the hazard model: headline, ablations, what is left out, baselines."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvx.errors import UserError
from kvx.guard.baselines import entropy_cusum
from kvx.guard.evaluation import (
    Metric,
    Scored,
    all_metrics,
    group_auroc,
    token_metrics,
    trace_metrics,
)
from kvx.guard.features import SETS, names_of
from kvx.guard.hazard import OPERATING_POINTS, HazardModel
from kvx.guard.labels import Role, token_labels
from kvx.guard.ranking import Resampler
from kvx.guard.traces import NO_PRESS, positions
from kvx.hashing import sha256_text
from kvx.train.crossfit import CrossFit, Mask, Table, crossfit, crossfit_fixed, limits_of
from kvx.train.data import REPEATED, Data
from kvx.train.early import early_metrics
from kvx.train_config import LeaveOut, TrainConfig

log = logging.getLogger(__name__)
HEADLINE = "headline"


@dataclass
class Results:
    """Rows of `schemas.EVALUATION`, and what could not be done, and why."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, analysis: str, name: str, metrics: list[Metric], n_prompts: int) -> None:
        for m in metrics:
            low, high = m.estimate.interval
            self.rows.append(
                {
                    "analysis": analysis, "name": name, "metric": m.name,
                    "value": _null(m.estimate.value), "ci_low": _null(low), "ci_high": _null(high),
                    "n": m.n, "n_positive": m.n_positive, "unit": m.unit, "n_prompts": n_prompts,
                }
            )  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """What every analysis needs."""

    table: Table
    config: TrainConfig
    fold: NDArray[np.int64]
    resampler: Resampler
    results: Results

    @property
    def data(self) -> Data:
        return self.table.data

    def scored(self, score: NDArray[np.float32], rows: Mask, horizon: int | None = None) -> Scored:
        """The compressed traces `rows` that are not left out, with their scores."""
        data = self.data
        rows = rows & data.compressed & (data.about.role != Role.LEFT_OUT)
        return Scored(
            data.traces.lengths[rows], score[self.table.tokens(rows)], data.about.take(rows),
            data.clusters[rows], horizon or self.config.horizon,
        )  # fmt: skip

    def judge(
        self, analysis: str, name: str, cross: CrossFit, rows: Mask | None = None,
        probability: bool = True, horizon: int | None = None,
    ) -> None:  # fmt: skip
        """All metrics of traces with something to see before their onset."""
        data = self.data
        rows = np.ones(len(data), bool) if rows is None else rows
        kept = rows & data.compressed & (data.about.role != Role.LEFT_OUT) & ~data.about.instant
        scored = self.scored(cross.score, kept, horizon)
        metrics = all_metrics(scored, limits_of(cross, kept), self.resampler, probability)
        self.results.add(analysis, name, metrics, len(np.unique(scored.clusters)))


def evaluate(
    table: Table, config: TrainConfig, fold: NDArray[np.int64]
) -> tuple[Results, CrossFit]:
    """All analyses; the cross-fitted scores of the model that is trained."""
    n_prompts = len(np.unique(table.data.clusters))
    resampler = Resampler(n_prompts, config.n_boot, config.confidence, config.seed)
    judge = Judge(table, config, fold, resampler, Results())
    started = time.perf_counter()
    cross: CrossFit | None = None
    for done in _analyses(judge):
        cross = done if isinstance(done, CrossFit) else cross
        what = HEADLINE if isinstance(done, CrossFit) else done
        log.info("train: %s done, %.0f s so far", what, time.perf_counter() - started)
    assert cross is not None
    return judge.results, cross


def _analyses(judge: Judge) -> Iterator[CrossFit | str]:
    config, table, fold = judge.config, judge.table, judge.fold
    presses = _presses(judge.data)
    own = crossfit(table, names_of(config.features, presses), config.horizon, config, fold)
    judge.judge(HEADLINE, config.features, own)
    _as_the_original_counted(judge, own)
    _instant(judge, own)
    _by_group(judge, own)
    yield own
    for name in config.ablations:
        cross = own
        if name != config.features:
            names = names_of(name, presses)
            cross = crossfit(table, names, config.horizon, config, fold)
        judge.judge("features", name, cross)
        yield f"features={name}"
    _baselines(judge)
    yield "baselines"
    names = names_of(config.features, presses)
    for horizon in sorted({*config.horizons, config.horizon}):
        cross = own
        if horizon != config.horizon:
            cross = crossfit(table, names, horizon, config, fold)
        judge.judge("horizon", str(horizon), cross, horizon=horizon)
        yield f"horizon={horizon}"
    for group in config.leave_out:
        yield from _leave_out(judge, group)


def _as_the_original_counted(judge: Judge, cross: CrossFit) -> None:
    """AUROC over all tokens, those after the onset as positives: easy, and no forecast."""
    data = judge.data
    rows = judge.table.tokens(data.compressed & (data.about.role != Role.LEFT_OUT))
    rows &= ~np.isnan(cross.score)
    lengths, onset = data.traces.lengths, data.about.onset
    label = token_labels(lengths, onset, judge.config.horizon)
    label |= positions(lengths) >= np.repeat(onset, lengths)  # false where there is none
    metric = group_auroc(
        cross.score[rows], label[rows], np.repeat(data.clusters, lengths)[rows], judge.resampler,
        "auroc_with_tokens_after_onset",
    )  # fmt: skip
    n_prompts = len(np.unique(data.clusters))
    judge.results.add(HEADLINE, judge.config.features, [replace(metric, unit="tokens")], n_prompts)


def _instant(judge: Judge, cross: CrossFit) -> None:
    data = judge.data
    for what, metric in early_metrics(judge.table, judge.fold, judge.resampler, judge.config.seed):
        judge.results.add("early", what, [metric], len(np.unique(data.clusters)))
    if not data.about.instant.any():
        judge.results.skipped.append("instant onsets: there is none")
        return
    scored = judge.scored(cross.score, np.ones(len(data), bool))
    metrics = [
        *token_metrics(scored, judge.resampler), *trace_metrics(scored, judge.resampler)
    ]  # fmt: skip
    n_prompts = len(np.unique(scored.clusters))
    judge.results.add("with_instant", judge.config.features, metrics, n_prompts)


def _by_group(judge: Judge, cross: CrossFit) -> None:
    """The headline model's figures for each dataset, press and budget."""
    frame = judge.data.frame
    for column in ("dataset", "press", "budget", "model"):
        values = frame[column].to_numpy()
        groups = np.unique(values[judge.data.compressed].astype(str))
        for group in groups if len(groups) > 1 else ():
            judge.judge(f"by_{column}", group, cross, values.astype(str) == group)


def _baselines(judge: Judge) -> None:
    """The two detectors that need no training but a scale."""
    data, config = judge.data, judge.config
    repeated = np.asarray(data.traces.signals[REPEATED])
    if np.isnan(repeated).any():
        judge.results.skipped.append("n-gram repetition detector: responses without token ids")
    else:
        cross = crossfit_fixed(data, repeated, config, judge.fold)
        judge.judge("baseline", "n-gram repetition", cross, probability=False)
    cross = crossfit_fixed(data, _cusum(judge), config, judge.fold)
    judge.judge("baseline", "entropy CUSUM", cross, probability=False)


def _cusum(judge: Judge) -> NDArray[np.float32]:
    """Entropy CUSUM; its scale is that of the sound traces of the other folds."""
    data, lengths = judge.data, judge.data.traces.lengths
    entropy = np.asarray(data.traces.signals["entropy_nats"], np.float64)
    score = np.full(len(entropy), np.nan, np.float32)
    for k in range(judge.config.folds):
        sound = judge.table.tokens((judge.fold != k) & (data.about.role == Role.NEGATIVE))
        if not sound.any():
            continue
        mean, sd = float(entropy[sound].mean()), float(entropy[sound].std())
        for i in np.flatnonzero(judge.fold == k):
            piece = slice(data.traces.starts[i], data.traces.starts[i] + lengths[i])
            score[piece] = entropy_cusum(entropy[piece], mean, sd)
    return score


def _leave_out(judge: Judge, group: LeaveOut) -> Iterator[str]:
    """Each press, model or dataset scored by models that saw neither it nor the prompt.

    A press is left out with all others of its method: SnapKV with another window is SnapKV.
    """
    data, config = judge.data, judge.config
    values = data.frame[group.name].to_numpy().astype(str)
    kin = data.frame["method"].to_numpy().astype(str) if group is LeaveOut.press else values
    members = sorted(set(values[data.compressed]) - {NO_PRESS})
    if len(set(kin[data.compressed])) < 2:
        judge.results.skipped.append(
            f"leave-one-{group.name}-out: there is one {group.name} only ({', '.join(members)})"
        )
        return
    names, analysis = names_of(config.features, _presses(data)), f"leave_one_{group.name}_out"
    pooled = np.full(len(judge.table.features), np.nan, np.float32)
    limits: dict[str, NDArray[np.float64]] = {}
    for member in members:
        ours = (values == member) & data.compressed
        if not (data.about.events & ours & ~data.about.instant).any():
            judge.results.skipped.append(f"{analysis} {member}: nothing happened there")
            continue
        # datasets share no prompt: one model that saw none of it serves all
        fold = np.where(ours, 0, 1) if group is LeaveOut.dataset else judge.fold
        learnt = ~np.isin(kin, kin[ours])
        try:
            cross = crossfit(judge.table, names, config.horizon, config, fold, learnt, ours)
        except UserError as error:  # of what is left; the other figures stand
            judge.results.skipped.append(f"{analysis} {member}: {error}")
            continue
        judge.judge(analysis, member, cross, ours)
        tokens = judge.table.tokens(ours)
        pooled[tokens] = cross.score[tokens]
        for name, limit in cross.thresholds.items():
            limits.setdefault(name, np.full(len(data), np.nan))[ours] = limit[ours]
        yield f"{analysis} {member}"
    if limits:
        scored = ~np.isnan(limits["balanced"])
        judge.judge(analysis, "all", CrossFit(pooled, limits), scored)


def compare(
    table: Table, config: TrainConfig, fold: NDArray[np.int64], name: str, model: HazardModel,
    results: Results,
) -> None:  # fmt: skip
    """The figures of a model made elsewhere, with its own thresholds, on prompts new to it."""
    data = table.data
    fresh = ~np.isin(prompt_ids(data), model.card.get("data", {}).get("prompts", []))
    known = len(np.unique(data.clusters[~fresh]))
    if known:
        rest = "the others are judged" if fresh.any() else "there is no other"
        results.skipped.append(f"compare {name}: knows {known} of these prompts; {rest}")
    if not (fresh & data.compressed & (data.about.role != Role.LEFT_OUT)).any():
        return
    n_prompts = len(np.unique(data.clusters))
    resampler = Resampler(n_prompts, config.n_boot, config.confidence, config.seed)
    score = model.predict(table.matrix(np.ones(len(table.features), bool), model.names))
    limits = {op: np.full(len(data), model.threshold(op)) for op in OPERATING_POINTS}
    judge = Judge(table, config, fold, resampler, results)
    judge.judge("compare", name, CrossFit(score, limits), fresh, horizon=model.horizon)


def prompt_ids(data: Data) -> list[str]:
    """What a card says of each trace's prompt: enough to know it again."""
    names = data.frame["prompt"]
    ids = {name: sha256_text(name)[:12] for name in names.unique()}
    return [ids[name] for name in names]


def _presses(data: Data) -> list[str]:
    return sorted(set(data.frame["press"]) - {NO_PRESS})


def all_names(data: Data) -> tuple[str, ...]:
    """The features of every set, once each."""
    names = [n for feature_set in SETS for n in names_of(feature_set, _presses(data))]
    return tuple(dict.fromkeys(names))


def own_names(data: Data, config: TrainConfig) -> tuple[str, ...]:
    return names_of(config.features, _presses(data))


def _null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
