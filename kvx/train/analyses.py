"""Every figure about the hazard model: headline, ablations, leave-one-out, baselines."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.columns import BUDGET
from kvx.config.train import LeaveOut, Target, TrainConfig
from kvx.errors import UserError
from kvx.guard.hazard import HazardModel
from kvx.guard.trace_arrays import positions
from kvx.learning.evaluation import group_auroc, token_metrics, trace_metrics
from kvx.learning.fitting import OPERATING_POINTS
from kvx.learning.labels import token_labels
from kvx.train.crossfit import CrossFit, Table, crossfit
from kvx.train.detection import before_detection, until_detection, without
from kvx.train.early import early_metrics
from kvx.train.judge import Judge, Results
from kvx.train.prefill_gate import GATE, gate_metrics, has_probe
from kvx.train.reference import untrained
from kvx.train.trace_data import prompt_ids

HEADLINE = "headline"


def evaluate(
    table: Table, config: TrainConfig, fold: NDArray[np.int64]
) -> tuple[Results, CrossFit]:
    """All analyses; the cross-fitted scores of the model that is trained for `train.target`."""
    judge = Judge(table, config, fold)
    own = judge.fitted(config.features)
    judge.judge(HEADLINE, config.features, own)
    _as_the_original_counted(judge, own)
    _instant(judge, own)
    _gate(judge)
    _by_group(judge, own)
    judge.done("trained for the onset")
    for name in judge.ablations:
        judge.judge("features", name, judge.fitted(name))
        judge.done(f"features={name}")
    for name, cross in untrained(judge):
        judge.judge("baseline", name, cross, probability=False)
    judge.done("baselines")
    for horizon in sorted({*config.horizons, config.horizon}):
        cross = judge.fitted(config.features, horizon)
        judge.judge("horizon", str(horizon), cross, horizon=horizon)
        judge.done(f"horizon={horizon}")
    late = until_detection(judge)
    if late is not None:
        before_detection(judge, late)
    for group in config.leave_out:
        _leave_out(judge, group, f"leave_one_{group.name}_out")
        if late is not None:
            _leave_out(late, group, without(group))
    aimed = late if late is not None and config.target is Target.detection else judge
    return judge.results, aimed.fitted(config.features)


def _as_the_original_counted(judge: Judge, cross: CrossFit) -> None:
    """AUROC over all tokens, those after the onset as positives: easy, and no forecast."""
    data, lengths, onset = judge.data, judge.data.traces.lengths, judge.data.about.onset
    rows = judge.table.tokens(data.judged) & ~np.isnan(cross.score)
    label = token_labels(lengths, onset, judge.config.horizon)
    label |= positions(lengths) >= np.repeat(onset, lengths)  # false where there is none
    metric = group_auroc(
        cross.score[rows],
        label[rows],
        np.repeat(data.clusters, lengths)[rows],
        judge.resampler,
        "auroc_with_tokens_after_onset",
    )
    judge.add(HEADLINE, judge.config.features, [replace(metric, unit="tokens")])


def _instant(judge: Judge, cross: CrossFit) -> None:
    for what, metric in early_metrics(judge.table, judge.fold, judge.resampler, judge.config.seed):
        judge.add("early", what, [metric])
    if not judge.data.about.instant.any():
        judge.results.skip("instant onsets: there is none")
        return
    scored = judge.scored(cross.score, judge.data.judged)
    metrics = token_metrics(scored, judge.resampler) + trace_metrics(scored, judge.resampler)
    judge.add("with_instant", judge.config.features, metrics, scored.clusters)


def _gate(judge: Judge) -> None:
    if not has_probe(judge.data).any():
        judge.results.skip("gate: responses without a probe")
        return
    for name, metrics in gate_metrics(judge.data, judge.config, judge.fold, judge.resampler):
        judge.add(GATE, name, metrics)


def _by_group(judge: Judge, cross: CrossFit) -> None:
    """The headline model's figures for each dataset, press, budget that was asked for and model."""
    frame = judge.data.frame.reset_index(drop=True)
    for column in ("dataset", "press", "budget", "model"):
        by = frame[judge.data.compressed].groupby(BUDGET if column == "budget" else column)
        name = "budget_label" if column == "budget" else column
        named = sorted((str(rows[name].iloc[0]), rows.index) for _, rows in by)
        for group, rows in named if len(named) > 1 else ():
            judge.judge(f"by_{column}", group, cross, frame.index.isin(rows))


def _leave_out(judge: Judge, group: LeaveOut, analysis: str) -> None:
    """Score each press, model or dataset with models that saw neither it nor the prompt.

    A press is left out with all others of its method: SnapKV with another window is SnapKV.
    """
    data, config = judge.data, judge.config
    values = data.frame[group.name].to_numpy().astype(str)
    kin = data.frame["method"].to_numpy().astype(str) if group is LeaveOut.press else values
    members = np.unique(values[data.compressed]).tolist()
    if len(set(kin[data.compressed])) < 2:
        judge.results.skip(
            f"leave-one-{group.name}-out: there is one {group.name} only ({', '.join(members)})"
        )
        return
    names = judge.table.names_of(config.features)
    pooled = np.full(len(judge.table.features), np.nan, np.float32)
    limits = {name: np.full(len(data), np.nan) for name in OPERATING_POINTS}
    for member in members:
        ours = (values == member) & data.compressed
        if not (data.about.events & ours & ~data.about.instant).any():
            judge.results.skip(f"{analysis} {member}: nothing happened there")
            continue
        # datasets share no prompt: one model that saw none of this one serves every fold
        fold = np.where(ours, 0, 1) if group is LeaveOut.dataset else judge.fold
        learnt = ~np.isin(kin, kin[ours])
        try:
            cross = crossfit(judge.table, names, config.horizon, config, fold, learnt, ours)
        except UserError as error:  # too little is left to learn from; the other figures stand
            judge.results.skip(f"{analysis} {member}: {error}")
            continue
        judge.judge(analysis, member, cross, ours)
        tokens = judge.table.tokens(ours)
        pooled[tokens] = cross.score[tokens]
        for name, limit in cross.thresholds.items():
            limits[name][ours] = limit[ours]
        judge.done(f"{analysis} {member}")
    scored = ~np.isnan(limits["balanced"])
    if scored.any():
        judge.judge(analysis, "all", CrossFit(pooled, limits), scored)


def compare(
    table: Table,
    config: TrainConfig,
    fold: NDArray[np.int64],
    name: str,
    model: HazardModel,
    results: Results,
) -> None:
    """The figures of a model made elsewhere, with its own thresholds, on prompts new to it."""
    data = table.data
    fresh = ~np.isin(prompt_ids(data), model.card.get("data", {}).get("prompts", []))
    if not fresh.all():
        known = len(np.unique(data.clusters[~fresh]))
        rest = "the others are judged" if fresh.any() else "there is no other"
        results.skip(f"compare {name}: knows {known} of these prompts; {rest}")
    if not (fresh & data.judged).any():
        return
    score = model.predict(table.matrix(np.ones(len(table.features), bool), model.names))
    limits = {op: np.full(len(data), model.threshold(op)) for op in OPERATING_POINTS}
    judge = Judge(table, config, fold, results)
    judge.judge("compare", name, CrossFit(score, limits), fresh, horizon=model.horizon)
