"""What a run would do: points and requests, done and left, memory and time."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from kvx.config.measures import Measure
from kvx.config.numbers import byte_count, duration, plural
from kvx.config.schema import BudgetConfig, Config, PlanFormat
from kvx.data.kv_layout import kv_layout
from kvx.data.tokenizer import model_hash
from kvx.plan.cost import calibrate, largest_prompts, runs_dir
from kvx.plan.reach import reach
from kvx.points import Point, budget_label, experiment_dir
from kvx.run import applicable
from kvx.run.planning import plan as points_of
from kvx.run.pools import Pool
from kvx.run.units import Todo, by_engine, make_units, todo_of
from kvx.store.completion import is_done
from kvx.store.journal import latest_rate

WIDTH = 100


@dataclass
class Group:
    """Points of one model, dataset and press; `*_left` counts what a run would still do."""

    model: str
    dataset: str
    press: str
    points: int = 0
    points_done: int = 0
    requests: int = 0
    requests_left: int = 0
    latencies: int = 0
    latencies_left: int = 0
    compared: int = 0
    compared_left: int = 0
    prompt_tokens_left: int = 0
    not_applicable: int = 0


@dataclass(frozen=True)
class Memory:
    """KV bytes of the largest prompt of each bin, at one budget."""

    model: str
    dataset: str
    budget: str
    bin_tokens: list[int]
    bin_bytes: list[int]


@dataclass(frozen=True)
class Estimate:
    """Seconds that one process needs for the answers that are left; None if unknown."""

    model: str
    seconds: float | None
    how: str


@dataclass(frozen=True)
class Plan:
    experiments: list[str]
    groups: list[Group]
    jobs: str
    memory: list[Memory]
    estimates: list[Estimate]
    not_applicable: list[str]  # a line for each press and reason
    reach: list[str]  # what so many prompts can find


def print_plan(configs: Sequence[Config], pool: Pool | None = None) -> None:
    """Print what a run of `configs` would do. Builds a manifest only if there is none yet."""
    plan = make_plan(points_of(configs), pool)
    if configs[0].plan.format is PlanFormat.json:
        print(json.dumps(asdict(plan), indent=1))
    else:
        _show(plan, Console(width=max(Console().width, WIDTH)))


def make_plan(points: Sequence[Point], pool: Pool | None = None) -> Plan:
    """The plan for `points`; loads no model unless `plan.calibrate` asks for it."""
    groups: dict[tuple[str, str, str], Group] = {}
    left_tokens: dict[str, int] = {}
    apart = applicable.not_applicable([point for point in points if not is_done(point)])
    todo = [_todo(point) for point in points if point.dir not in apart]
    for point in points:
        key = (point.config.model.name, point.manifest.dataset_id, point.config.press.name)
        groups.setdefault(key, Group(*key)).not_applicable += point.dir in apart
    for item in todo:
        config = item.point.config
        key = (config.model.name, item.point.manifest.dataset_id, config.press.name)
        tokens = _add(groups[key], item)
        left_tokens[key[0]] = left_tokens.get(key[0], 0) + tokens
    return Plan(
        experiments=sorted({str(experiment_dir(p.config)) for p in points}),
        groups=list(groups.values()),
        jobs=_jobs(todo, pool),
        memory=_memory([point for point in points if point.dir not in apart]),
        estimates=[
            _estimate([p for p in points if p.config.model.name == model], tokens)
            for model, tokens in left_tokens.items()
        ],
        not_applicable=applicable.in_lines(points, apart),
        reach=reach(points),
    )


def _add(group: Group, todo: Todo) -> int:
    """Count a point into its group; returns the prompt tokens of its missing answers."""
    point, entries = todo.point, todo.point.manifest.entries
    missing = [e for e in entries if e.example_id in todo.example_ids]
    tokens = sum(e.prompt_tokens for e in missing)
    group.points += 1
    group.points_done += not (missing or todo.latencies or todo.compared)
    group.requests += len(entries) if point.wants_answers else 0
    group.requests_left += len(missing)
    group.latencies += len(point.latency_items)
    group.latencies_left += todo.latencies
    group.compared += len(point.fidelity_entries)
    group.compared_left += len(todo.compared)
    group.prompt_tokens_left += tokens
    return tokens


def _todo(point: Point) -> Todo:
    if is_done(point):
        return Todo(point, frozenset())
    from kvx.store.contents import present  # importing Arrow costs more than finding nothing to do

    return todo_of(point, present(point.dir))


def _jobs(todo: Sequence[Todo], pool: Pool | None) -> str:
    """How the missing work would be spread over workers."""
    missing = [item for item in todo if item.example_ids or item.latencies or item.compared]
    if not missing:
        return "nothing to do"
    points = [item.point for item in missing]
    units = make_units(missing, pool.slices(points) if pool is not None else 1)
    kinds = Counter(unit.measure for unit in units)
    models = len(by_engine(points))
    answers, alone = kinds[Measure.quality], kinds[Measure.latency]
    text = f"{plural(answers, 'slice')} of the examples, each for all its points"
    if compared := kinds[Measure.fidelity]:
        text += f"; {plural(compared, 'slice')} compared with the full cache"
    if alone:
        text += f"; {plural(alone, 'unit')} of latencies, run alone"
    return f"{text}; {plural(models, 'model')}, loaded once per worker"


def _memory(points: Sequence[Point]) -> list[Memory]:
    rows: dict[tuple[Any, ...], Memory] = {}
    for point in points:
        model, dataset = point.config.model, point.manifest.dataset_id
        about, own = (model.name, dataset), point.config.budget
        if (*about, *own.key) in rows or (layout := kv_layout(model)) is None:
            continue
        largest = largest_prompts(point.manifest)
        kept = [point.kept_tokens(n) for n in largest]
        for budget, entries in ((BudgetConfig(), largest), (own, kept)):
            sizes = [layout.bytes(n, prompt) for n, prompt in zip(entries, largest, strict=True)]
            row = Memory(*about, budget_label(budget), largest, sizes)
            rows.setdefault((*about, *budget.key), row)
    return list(rows.values())


def _estimate(points: Sequence[Point], tokens: int) -> Estimate:
    config = points[0].config
    name = config.model.name
    if tokens == 0:
        return Estimate(name, 0.0, "no answer is missing")
    if config.plan.calibrate:
        per_token = calibrate(points)
        return Estimate(
            name,
            tokens * per_token,
            f"at most: {per_token * 1000:.2f} ms per prompt token, measured on one short prompt "
            "alone; points that share prefills take less",
        )
    rate = latest_rate(runs_dir(points[0]), model_hash(config.model))
    if rate is None:
        how = "no earlier run of this model to estimate from"
        return Estimate(name, None, f"{how}; plan.calibrate=true measures one prompt")
    per_s = rate.prompt_tokens / rate.seconds
    return Estimate(
        name,
        tokens / per_s,
        f"one process at {per_s:,.0f} prompt tokens/s, as in {rate.requests} requests of "
        f"{rate.points} points on {rate.machine} ({rate.at[:10]})",
    )


def _show(plan: Plan, console: Console) -> None:
    console.print(f"experiment: {', '.join(plan.experiments)}", soft_wrap=True, highlight=False)
    console.print()
    columns = [("points", "points"), ("done", "points_done"), ("requests", "requests"),
               ("left", "requests_left")]  # fmt: skip
    if plan.not_applicable:
        columns.insert(2, ("not applicable", "not_applicable"))
    if any(group.latencies for group in plan.groups):
        columns += [("latencies", "latencies"), ("left", "latencies_left")]
    if any(group.compared for group in plan.groups):
        columns += [("fidelity", "compared"), ("left", "compared_left")]
    table = _table("model", "dataset", "press", *(name for name, _ in columns))
    counted = [([g.model, g.dataset, g.press], [g]) for g in plan.groups]
    if len(plan.groups) > 1:
        counted.append((["all", "", ""], plan.groups))
    for names, groups in counted:
        totals = (sum(getattr(g, field) for g in groups) for _, field in columns)
        table.add_row(*names, *(f"{n:,}" for n in totals))
    console.print(table)
    for line in plan.not_applicable:
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"jobs: {plan.jobs}", highlight=False)
    for model, dataset in dict.fromkeys((m.model, m.dataset) for m in plan.memory):
        rows = [m for m in plan.memory if (m.model, m.dataset) == (model, dataset)]
        about = f"\nKV cache of {model} on {dataset}, for the largest prompt of each bin"
        console.print(about, highlight=False)
        table = _table("budget", *(f"{n} tokens" for n in rows[0].bin_tokens))
        for row in rows:
            table.add_row(row.budget, *map(byte_count, row.bin_bytes))
        console.print(table)
    console.print()
    for line in plan.reach:
        console.print(line, soft_wrap=True, highlight=False)
    for e in plan.estimates:
        time = "time: unknown" if e.seconds is None else f"time: about {duration(e.seconds)}"
        console.print(f"{time} for the answers of {e.model} ({e.how})", highlight=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    text = ("model", "dataset", "press", "budget")
    for name in columns:
        table.add_column(name, justify="left" if name in text else "right", no_wrap=True)
    return table
