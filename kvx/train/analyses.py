"""Every figure about the hazard model: headline, ablations, what is left out, baselines."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.columns import BUDGET
from kvx.config.train import LeaveOut, Target, TrainConfig
from kvx.errors import UserError
from kvx.guard.features import SETS, names_of
from kvx.guard.hazard import OPERATING_POINTS, HazardModel
from kvx.guard.trace_arrays import NO_PRESS, positions
from kvx.learning.evaluation import group_auroc, token_metrics, trace_metrics
from kvx.learning.labels import Role, token_labels
from kvx.learning.ranking import Resampler
from kvx.train.crossfit import CrossFit, Table, crossfit
from kvx.train.data import Data, prompt_ids
from kvx.train.detection import before_detection, until_detection, without
from kvx.train.early import early_metrics
from kvx.train.judge import Judge, Results
from kvx.train.prefill_gate import GATE, gate_metrics, has_probe
from kvx.train.reference import untrained

log = logging.getLogger(__name__)
HEADLINE = "headline"


def evaluate(
    table: Table, config: TrainConfig, fold: NDArray[np.int64]
) -> tuple[Results, CrossFit]:
    """All analyses; the cross-fitted scores of the model that is trained for `train.target`."""
    n_prompts = len(np.unique(table.data.clusters))
    resampler = Resampler(n_prompts, config.n_boot, config.confidence, config.seed)
    judge = Judge(table, config, fold, resampler, Results())
    started = time.perf_counter()
    made: dict[Target, CrossFit] = {}
    for done in _analyses(judge):
        what = done
        if not isinstance(done, str):
            made[done[0]] = done[1]
            what = f"trained for the {done[0].name}"
        log.info("train: %s done, %.0f s so far", what, time.perf_counter() - started)
    return judge.results, made[config.target]


def _analyses(judge: Judge) -> Iterator[tuple[Target, CrossFit] | str]:
    config, table, fold = judge.config, judge.table, judge.fold
    presses = _presses(judge.data)
    own = crossfit(table, names_of(config.features, presses), config.horizon, config, fold)
    judge.judge(HEADLINE, config.features, own)
    _as_the_original_counted(judge, own)
    _instant(judge, own)
    _gate(judge)
    _by_group(judge, own)
    yield Target.onset, own
    for name in judge.ablations:
        cross = own
        if name != config.features:
            names = names_of(name, presses)
            cross = crossfit(table, names, config.horizon, config, fold)
        judge.judge("features", name, cross)
        yield f"features={name}"
    for name, cross in untrained(judge):
        judge.judge("baseline", name, cross, probability=False)
    yield "baselines"
    names = names_of(config.features, presses)
    for horizon in sorted({*config.horizons, config.horizon}):
        cross = own
        if horizon != config.horizon:
            cross = crossfit(table, names, horizon, config, fold)
        judge.judge("horizon", str(horizon), cross, horizon=horizon)
        yield f"horizon={horizon}"
    late = until_detection(judge)
    if late is not None:
        for done in before_detection(judge, late, own, presses):
            yield done if isinstance(done, str) else (Target.detection, done)
    for group in config.leave_out:
        yield from _leave_out(judge, group, f"leave_one_{group.name}_out")
        if late is not None:
            yield from _leave_out(late, group, without(group))


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
        judge.results.skip("instant onsets: there is none")
        return
    scored = judge.scored(cross.score, np.ones(len(data), bool))
    metrics = [
        *token_metrics(scored, judge.resampler), *trace_metrics(scored, judge.resampler)
    ]  # fmt: skip
    n_prompts = len(np.unique(scored.clusters))
    judge.results.add("with_instant", judge.config.features, metrics, n_prompts)


def _gate(judge: Judge) -> None:
    data = judge.data
    if not has_probe(data).any():
        judge.results.skip("gate: responses without a probe")
        return
    for name, metrics in gate_metrics(data, judge.config, judge.fold, judge.resampler):
        judge.results.add(GATE, name, metrics, len(np.unique(data.clusters)))


def _by_group(judge: Judge, cross: CrossFit) -> None:
    """The headline model's figures for each dataset, press, budget that was asked for and model."""
    frame = judge.data.frame.reset_index(drop=True)
    for column in ("dataset", "press", "budget", "model"):
        by = frame[judge.data.compressed].groupby(BUDGET if column == "budget" else column)
        name = "budget_label" if column == "budget" else column
        named = sorted((str(rows[name].iloc[0]), rows.index) for _, rows in by)
        for group, rows in named if len(named) > 1 else ():
            judge.judge(f"by_{column}", group, cross, frame.index.isin(rows))


def _leave_out(judge: Judge, group: LeaveOut, analysis: str) -> Iterator[str]:
    """Each press, model or dataset scored by models that saw neither it nor the prompt.

    A press is left out with all others of its method: SnapKV with another window is SnapKV.
    """
    data, config = judge.data, judge.config
    values = data.frame[group.name].to_numpy().astype(str)
    kin = data.frame["method"].to_numpy().astype(str) if group is LeaveOut.press else values
    members = sorted(set(values[data.compressed]) - {NO_PRESS})
    if len(set(kin[data.compressed])) < 2:
        judge.results.skip(
            f"leave-one-{group.name}-out: there is one {group.name} only ({', '.join(members)})"
        )
        return
    names = names_of(config.features, _presses(data))
    pooled = np.full(len(judge.table.features), np.nan, np.float32)
    limits: dict[str, NDArray[np.float64]] = {}
    for member in members:
        ours = (values == member) & data.compressed
        if not (data.about.events & ours & ~data.about.instant).any():
            judge.results.skip(f"{analysis} {member}: nothing happened there")
            continue
        # datasets share no prompt: one model that saw none of it serves all
        fold = np.where(ours, 0, 1) if group is LeaveOut.dataset else judge.fold
        learnt = ~np.isin(kin, kin[ours])
        try:
            cross = crossfit(judge.table, names, config.horizon, config, fold, learnt, ours)
        except UserError as error:  # of what is left; the other figures stand
            judge.results.skip(f"{analysis} {member}: {error}")
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
        results.skip(f"compare {name}: knows {known} of these prompts; {rest}")
    if not (fresh & data.compressed & (data.about.role != Role.LEFT_OUT)).any():
        return
    n_prompts = len(np.unique(data.clusters))
    resampler = Resampler(n_prompts, config.n_boot, config.confidence, config.seed)
    score = model.predict(table.matrix(np.ones(len(table.features), bool), model.names))
    limits = {op: np.full(len(data), model.threshold(op)) for op in OPERATING_POINTS}
    judge = Judge(table, config, fold, resampler, results)
    judge.judge("compare", name, CrossFit(score, limits), fresh, horizon=model.horizon)


def _presses(data: Data) -> list[str]:
    return sorted(set(data.frame["press"]) - {NO_PRESS})


def all_names(data: Data) -> tuple[str, ...]:
    """The features of every set, once each."""
    names = [n for feature_set in SETS for n in names_of(feature_set, _presses(data))]
    return tuple(dict.fromkeys(names))


def own_names(data: Data, config: TrainConfig) -> tuple[str, ...]:
    return names_of(config.features, _presses(data))
