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
from kvx.train.trace_data import Data, load, outcomes_of

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
    """All checks, each after those that it builds on."""
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
        yield _found("labels", "cannot be made without traces and baseline", fails=True)
        return
    data = load(experiment, config.train.labels, config.train.degenerate)
    yield _prompts(data, config)
    yield _balance(data, config)
    yield _leads(data, config)
    yield _splits(data, config)


def _found(check: str, reason: str, fails: bool = False, warns: bool = False) -> Finding:
    return Finding(check, Verdict.FAIL if fails else Verdict.WARN if warns else Verdict.OK, reason)


def _finished(points: list[PointRecord], unfinished: Mapping[str, str]) -> Finding:
    first = next(iter(unfinished.items()), None)
    rest = f"; {len(unfinished)} left out, such as {first[0]} ({first[1]})" if first else ""
    return _found("points", f"{len(points)} finished{rest}", not points, bool(first))


def _responses(experiment: Experiment) -> Finding:
    requests = experiment.requests
    lost = int((~requests["has_response"].astype(bool)).sum())
    reason = f"{len(requests) - lost} of {len(requests)} requests"
    return _found("responses", reason, lost > len(requests) / 10, lost > 0)


def _budgets(experiment: Experiment) -> Finding:
    answered = experiment.requests[experiment.requests["has_response"].astype(bool)]
    unproved = answered[~answered["budget_verified"].astype(bool)]
    if not len(unproved):
        return _found("budgets", f"proved in all {len(answered)} responses")
    such = "{request_id} ({budget_proof})".format(**unproved.iloc[0])
    reason = f"not proved in {len(unproved)} responses, such as {such}"
    return _found("budgets", reason, fails=True)


def _baseline(experiment: Experiment, points: list[PointRecord]) -> Finding:
    """Every example of a compressed point must have been run with the full cache too."""
    requests = experiment.requests
    answers = requests[requests["has_response"].astype(bool)]
    examples, answered = (
        frame.groupby("point_id")["example_id"].agg(set) for frame in (requests, answers)
    )
    alone = 0
    for point in points:
        full = experiment.full_cache(point)
        if full is None:
            return _found("baseline", f"{point.id} has none; run budget=1.0 too", fails=True)
        if missing := examples[point.id] - examples[full.id]:
            reason = f"{full.id} lacks {len(missing)} examples of {point.id}"
            return _found("baseline", reason, fails=True)
        alone += len(answered.get(point.id, set()) - answered.get(full.id, set()))
    n = sum(p.is_full_cache for p in points)
    compressed = len(points) - n
    reason = f"{compressed} compressed points, {n} with the full cache"
    if alone:
        reason += f"; {alone} responses whose full-cache run failed are left out"
    return _found("baseline", reason, compressed == 0, alone > 0)


def _traces(points: list[PointRecord], experiment: Experiment) -> Iterator[Finding]:
    """Are traces complete, as long as the responses, and without holes in their numbers?"""
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
        if "probe_kl_nats" in table.column_names:
            no_probe += table["probe_kl_nats"].null_count
    thin = [f"{kinds[k]} {k.value}" for k in (Holds.NOTHING, Holds.LIGHT) if kinds[k]]
    servers = kinds[Holds.TOP20]
    reason = f"{kinds[Holds.FULL]} with all signals"
    reason += f"; {servers} from servers: features=top20 only" if servers else ""
    if thin:
        reason = f"{', '.join(thin)}: run with signals=full"
    yield _found("traces", reason, bool(thin), servers > 0)
    reason = "one item per generated token"
    if wrong:
        reason = f"{len(wrong)} traces are not as long as their response, such as one of {wrong[0]}"
    yield _found("lengths", reason, bool(wrong))
    reason = f"nan or null among the signals of {', '.join(holes[:3])}"
    yield _found("numbers", reason if holes else "no nan, no null", bool(holes))
    n = sum(kinds.values())
    reason = f"{no_probe} of {n} responses have none"
    yield _found("probe", reason if no_probe else f"known of all {n} responses", warns=no_probe > 0)


def _has_hole(table: pa.Table, name: str) -> bool:
    if name not in table.column_names:
        return False
    values = pc.list_flatten(table[name])
    return bool(values.null_count) or bool(pc.any(pc.is_nan(values)).as_py())


def _degenerate(experiment: Experiment, config: Config) -> Finding:
    rows = experiment.requests["degenerate"].astype(bool)
    share = float(rows.mean())
    if not rows.any():
        return _found("degenerate", "none")
    points = sorted(experiment.requests.loc[rows, "point_id"].unique())
    such = f"{', '.join(points[:3])}{' …' * (len(points) > 3)}"
    use = "learnt from" if config.train.degenerate else "left out"
    reason = f"{share:.0%} of requests ({such}), {use}"
    return _found("degenerate", reason, warns=share > config.verify.max_degenerate)


def _baseline_is_sound(experiment: Experiment, config: Config) -> Iterator[Finding]:
    """Where the full cache itself often loops or does not end, compression can add little."""
    outcomes = outcomes_of(experiment)
    full = {p.id for p in experiment.points if p.is_full_cache}
    ids = experiment.requests.loc[experiment.requests["point_id"].isin(full), "request_id"]
    own = outcomes.reindex(ids).dropna(subset="capped")
    for check, column, most, what in (
        ("caps", "capped", config.verify.max_baseline_capped, "reach the token cap"),
        ("loops", "looping", config.verify.max_baseline_looping, "loop"),
    ):
        if not len(own):
            yield _found(check, "no full-cache response", fails=True)
            continue
        share = float(own[column].astype(bool).mean())
        reason = f"{share:.0%} of full-cache responses {what} (up to {most:.0%} is good)"
        yield _found(check, reason, share > 0.9, share > most)


def _prompts(data: Data, config: Config) -> Finding:
    n, least, wanted = data.n_prompts, 2 * config.train.folds, config.verify.min_prompts
    datasets = data.frame["dataset"].nunique()
    reason = f"{n} in {datasets} datasets ({least} are needed, {wanted} wanted)"
    return _found("prompts", reason, n < least, n < wanted)


def _balance(data: Data, config: Config) -> Finding:
    events, frame = data.about.events, data.frame
    excess = int((frame["excess"] & frame["onset"].notna()).sum())
    unplaced = int((frame["unplaced"] & frame["onset"].isna()).sum())
    prompts, wanted = frame["prompt"][events].nunique(), config.verify.min_event_prompts
    reason = (
        f"{int(frame['looping'].sum())} of {len(data)} responses loop, {excess} where the full "
        f"cache does not; {unplaced} other catastrophes without an onset; events in {prompts} "
        f"prompts ({wanted} wanted)"
    )
    return _found("balance", reason, not events.any(), prompts < wanted)


def _leads(data: Data, config: Config) -> Finding:
    onset = data.about.onset[data.about.events]
    late, roomy = int((onset > INSTANT).sum()), int((onset >= config.train.horizon).sum())
    reason = (
        f"{len(onset) - late} events start at or before token {INSTANT}, {late} later, {roomy} "
        f"with room for the whole horizon of {config.train.horizon}"
    )
    return _found("leads", reason, late == 0, roomy < config.verify.min_event_prompts)


def _splits(data: Data, config: Config) -> Finding:
    """No prompt on two sides, and events on every side."""
    if data.n_prompts < 2 * config.train.folds:
        return _found("splits", "too few prompts to split", fails=True)
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
    return _found("splits", reason, bool(shared or unlearnable), bool(empty))
