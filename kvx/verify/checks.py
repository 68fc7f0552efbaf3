"""Is an experiment fit to learn from? Each check says ok, warn or fail, and why."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kvx.analyze.frames import Experiment
from kvx.config.schema import Config
from kvx.scoring.loops import INSTANT
from kvx.store.catalog import PointRecord
from kvx.store.traces import Holds, holds, read_traces
from kvx.train import crossfit
from kvx.train.data import Data, load, outcomes_of

_NUMBERS = (
    "logprob", "entropy_nats", "top1_prob", "top5_prob", "entropy_rest_nats",
    "entropy_change_nats", "mean_logprob", "margin",
)  # fmt: skip


class Verdict(Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    check: str
    verdict: Verdict
    reason: str


def findings(
    experiment: Experiment, unfinished: Mapping[str, str], config: Config
) -> Iterator[Finding]:
    """All checks, in the order in which they can be understood."""
    points = [p for p in experiment.points if p.info["controller"] == "none"]
    yield _finished(points, unfinished)
    yield _responses(experiment)
    yield _budgets(experiment)
    yield (baseline := _baseline(experiment, points))
    traced = list(_traces(points, experiment))
    yield from traced
    yield _degenerate(experiment, config)
    yield from _baseline_is_sound(experiment, config)
    if any(f.verdict is Verdict.FAIL for f in (baseline, *traced)):
        yield Finding("labels", Verdict.FAIL, "cannot be made without traces and baseline")
        return
    data = load(experiment, config.train.labels, config.train.degenerate)
    yield _prompts(data, config)
    yield _balance(data, config)
    yield _leads(data, config)
    yield _splits(data, config)


def _judge(fails: bool, warns: bool = False) -> Verdict:
    return Verdict.FAIL if fails else Verdict.WARN if warns else Verdict.OK


def _finished(points: list[PointRecord], unfinished: Mapping[str, str]) -> Finding:
    first = next(iter(unfinished.items()), None)
    rest = f"; {len(unfinished)} left out, such as {first[0]} ({first[1]})" if first else ""
    return Finding("points", _judge(not points, bool(first)), f"{len(points)} finished{rest}")


def _responses(experiment: Experiment) -> Finding:
    requests = experiment.requests
    lost = int((~requests["has_response"].astype(bool)).sum())
    verdict = _judge(lost > len(requests) / 10, lost > 0)
    return Finding("responses", verdict, f"{len(requests) - lost} of {len(requests)} requests")


def _budgets(experiment: Experiment) -> Finding:
    answered = experiment.requests[experiment.requests["has_response"].astype(bool)]
    unproved = answered[~answered["budget_verified"].astype(bool)]
    if not len(unproved):
        return Finding("budgets", Verdict.OK, f"proved in all {len(answered)} responses")
    first = unproved.iloc[0]
    return Finding(
        "budgets", Verdict.FAIL,
        f"not proved in {len(unproved)} responses, such as {first['request_id']} "
        f"({first['budget_proof']})",
    )  # fmt: skip


def _baseline(experiment: Experiment, points: list[PointRecord]) -> Finding:
    """Every example of a compressed point must have been run with the full cache too."""
    requests = experiment.requests
    examples = requests.groupby("point_id")["example_id"].agg(set)
    answers = requests[requests["has_response"].astype(bool)]
    answered = answers.groupby("point_id")["example_id"].agg(set)
    alone = 0
    for point in points:
        twin = experiment.full_cache(point)
        if twin is None:
            return Finding("baseline", Verdict.FAIL, f"{point.id} has none; run budget=1.0 too")
        missing = examples[point.id] - examples[twin.id]
        if missing:
            reason = f"{twin.id} lacks {len(missing)} examples of {point.id}"
            return Finding("baseline", Verdict.FAIL, reason)
        alone += len(answered.get(point.id, set()) - answered.get(twin.id, set()))
    n = sum(p.is_full_cache for p in points)
    compressed = len(points) - n
    reason = f"{compressed} compressed points, {n} with the full cache"
    if alone:
        reason += f"; {alone} responses whose full-cache run failed are left out"
    return Finding("baseline", _judge(compressed == 0, alone > 0), reason)


def _traces(points: list[PointRecord], experiment: Experiment) -> Iterator[Finding]:
    """Complete, as long as the responses, and without holes in their numbers."""
    kinds, wrong, holes, no_probe = Counter[Holds](), [], [], 0
    for point in points:
        requests = experiment.requests[experiment.requests["point_id"] == point.id]
        requests = requests[requests["has_response"].astype(bool)]
        table = read_traces(point.dir, requests["request_id"].tolist())
        kinds.update(holds(table))
        if "entropy_nats" not in table.column_names:
            continue
        lengths = pc.list_value_length(table["entropy_nats"]).to_numpy(zero_copy_only=False)
        wrong += [point.id] * int((lengths != requests["output_tokens"].to_numpy(float)).sum())
        holes += [point.id] * any(_has_hole(table, name) for name in _NUMBERS)
        no_probe += (
            table["probe_kl_nats"].null_count if "probe_kl_nats" in table.column_names else 0
        )
    thin = {kind.value: kinds[kind] for kind in (Holds.NOTHING, Holds.LIGHT) if kinds[kind]}
    top20 = (
        f"; {kinds[Holds.TOP20]} from servers: features=top20 only" if kinds[Holds.TOP20] else ""
    )
    said = ", ".join(f"{n} {kind}" for kind, n in thin.items())
    yield Finding(
        "traces", _judge(bool(thin), bool(kinds[Holds.TOP20])),
        f"{said}: run with signals=full"
        if thin
        else f"{kinds[Holds.FULL]} with all signals{top20}",
    )  # fmt: skip
    yield Finding(
        "lengths", _judge(bool(wrong)),
        f"{len(wrong)} traces are not as long as their response, such as one of {wrong[0]}"
        if wrong else "one item per generated token",
    )  # fmt: skip
    yield Finding(
        "numbers", _judge(bool(holes)),
        f"nan or null among the signals of {', '.join(holes[:3])}" if holes else "no nan, no null",
    )  # fmt: skip
    n = sum(kinds.values())
    yield Finding(
        "probe", _judge(False, no_probe > 0),
        f"{no_probe} of {n} responses have none" if no_probe else f"known of all {n} responses",
    )  # fmt: skip


def _has_hole(table: pa.Table, name: str) -> bool:
    if name not in table.column_names:
        return False
    values = pc.list_flatten(table[name])
    return bool(values.null_count) or bool(pc.any(pc.is_nan(values)).as_py())


def _degenerate(experiment: Experiment, config: Config) -> Finding:
    rows = experiment.requests["degenerate"].astype(bool)
    share = float(rows.mean())
    if not rows.any():
        return Finding("degenerate", Verdict.OK, "none")
    points = sorted(experiment.requests.loc[rows, "point_id"].unique())
    left_out = "learnt from" if config.train.degenerate else "left out"
    return Finding(
        "degenerate", _judge(False, share > config.verify.max_degenerate),
        f"{share:.0%} of requests ({', '.join(points[:3])}{' …' * (len(points) > 3)}), {left_out}",
    )  # fmt: skip


def _baseline_is_sound(experiment: Experiment, config: Config) -> Iterator[Finding]:
    """Where the full cache itself seldom ends, or loops, little is left to compression."""
    outcomes = outcomes_of(experiment)
    full = {p.id for p in experiment.points if p.is_full_cache}
    ids = experiment.requests.loc[experiment.requests["point_id"].isin(full), "request_id"]
    own = outcomes.reindex(ids).dropna(subset="capped")
    for check, column, most, what in (
        ("caps", "capped", config.verify.max_baseline_capped, "reach the token cap"),
        ("loops", "looping", config.verify.max_baseline_looping, "loop"),
    ):
        if not len(own):
            yield Finding(check, Verdict.FAIL, "no full-cache response")
            continue
        share = float(own[column].astype(bool).mean())
        yield Finding(
            check, _judge(share > 0.9, share > most),
            f"{share:.0%} of full-cache responses {what} (up to {most:.0%} is good)",
        )  # fmt: skip


def _prompts(data: Data, config: Config) -> Finding:
    n, least = data.frame["prompt"].nunique(), 2 * config.train.folds
    wanted = config.verify.min_prompts
    return Finding(
        "prompts", _judge(n < least, n < wanted),
        f"{n} in {data.frame['dataset'].nunique()} datasets ({least} are needed, {wanted} wanted)",
    )  # fmt: skip


def _balance(data: Data, config: Config) -> Finding:
    events, frame = data.about.events, data.frame
    loops, excess = (
        int(frame["looping"].sum()),
        int((frame["excess"] & frame["onset"].notna()).sum()),
    )
    prompts, wanted = frame["prompt"][events].nunique(), config.verify.min_event_prompts
    unplaced = int((frame["unplaced"] & frame["onset"].isna()).sum())
    return Finding(
        "balance", _judge(not events.any(), prompts < wanted),
        f"{loops} of {len(data)} responses loop, {excess} where the full cache does not; "
        f"{unplaced} other catastrophes without an onset; events in {prompts} prompts "
        f"({wanted} wanted)",
    )  # fmt: skip


def _leads(data: Data, config: Config) -> Finding:
    onset = data.about.onset[data.about.events]
    late, roomy = int((onset > INSTANT).sum()), int((onset >= config.train.horizon).sum())
    return Finding(
        "leads", _judge(late == 0, roomy < config.verify.min_event_prompts),
        f"{len(onset) - late} events start at or before token {INSTANT}, {late} later, {roomy} "
        f"with room for the whole horizon of {config.train.horizon}",
    )  # fmt: skip


def _splits(data: Data, config: Config) -> Finding:
    """No prompt on two sides, and events on every side."""
    if data.frame["prompt"].nunique() < 2 * config.train.folds:
        return Finding("splits", Verdict.FAIL, "too few prompts to split")
    fold = crossfit.outer_folds(data, config.train)
    shared, empty, unlearnable = 0, [], []
    onset = data.about.onset
    for k in range(config.train.folds):
        part = crossfit.inner_parts(data, fold != k, config.train)
        part[fold == k] = "test"
        sides = data.frame.assign(side=part).groupby("prompt")["side"].nunique()
        shared += int((sides > 1).sum())
        for side in np.unique(part):
            latest = np.nan_to_num(onset[part == side], nan=-1).max(initial=-1)
            name = f"{side} of fold {k}"
            if latest <= INSTANT:
                empty.append(name)
            if latest < 1 and side in (crossfit.TRAIN, crossfit.VALIDATION):
                unlearnable.append(name)
    reason = f"{config.train.folds} folds, no prompt on two sides, events on every side"
    if empty:
        reason = f"no event after token {INSTANT} in {', '.join(empty[:3])}"
    if unlearnable:
        reason = f"nothing to learn from in {', '.join(unlearnable[:3])}"
    if shared:
        reason = f"{shared} prompts stand on two sides"
    return Finding("splits", _judge(bool(shared or unlearnable), bool(empty)), reason)
