"""Units of work: one model, one manifest, a slice of its examples, and all points that need them.

Examples are split among workers, points are not: all points of an example share one prefill.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvx.config.identity import resolved
from kvx.config.measures import Measure
from kvx.config.schema import Config
from kvx.identity.hashing import digest
from kvx.points import Point, request_id
from kvx.run.time_left import Load
from kvx.store.layout import Present


@dataclass(frozen=True)
class Todo:
    """What is missing of one point: answers to `example_ids`, and `latencies` measured alone.

    The examples `compared` are those that still are to be compared with the full cache.
    """

    point: Point
    example_ids: frozenset[str]
    latencies: int = 0
    latency_tokens: int = 0  # of their prompts
    compared: frozenset[str] = frozenset()


def todo_of(point: Point, present: Present) -> Todo:
    """What is missing of a point that holds what is `present`."""
    asked = point.manifest.entries if point.wants_answers else ()
    ids = {e.example_id: request_id(point.id, e.example_id) for e in asked}
    alone = [
        e.prompt_tokens
        for e, n in point.latency_items
        if (request_id(point.id, e.example_id), n) not in present.latency
    ]
    return Todo(
        point,
        frozenset(e for e, r in ids.items() if r not in present.request_ids),
        len(alone),
        sum(alone),
        frozenset(
            e.example_id
            for e in point.fidelity_entries
            if request_id(point.id, e.example_id) not in present.fidelity
        ),
    )


@dataclass(frozen=True)
class Unit:
    """What one worker does without asking again.

    `writer` names its shards: slice and run, which no two units share.
    """

    configs: tuple[Config, ...]
    example_ids: tuple[str, ...]  # empty for latencies: the points know their own
    writer: str
    measure: Measure
    load: Load  # for progress

    @property
    def model(self) -> str:
        return self.configs[0].model.name

    def __str__(self) -> str:
        return f"slice {self.slice} of model {self.model}"

    @property
    def slice(self) -> str:
        return self.writer.partition("-")[0]


@dataclass(frozen=True)
class Outcome:
    """How a unit ended: points that failed and why, or why the unit itself did.

    `lost` is what happened to its worker; `refused` a wrong request that only the worker could
    detect; `apart` why points are not applicable, by directory, which only a loaded model shows.
    What was written before counts all the same.
    """

    unit: Unit
    failed: dict[str, str] = field(default_factory=dict)
    lost: str | None = None
    refused: str | None = None
    apart: dict[Path, str] = field(default_factory=dict)


def by_engine(points: Sequence[Point]) -> list[list[Point]]:
    """Points that one loaded model can serve, together."""
    models: dict[str, list[Point]] = {}
    for point in points:
        config = point.config
        key = digest([resolved(config.engine), resolved(config.model), config.model.path])
        models.setdefault(key, []).append(point)
    return list(models.values())


def make_units(todo: Sequence[Todo], slices: int) -> list[Unit]:
    """All missing work: answers and comparisons with the full cache, each group's examples cut into
    at most `slices`; then the latencies.

    A group shares prefills: one model, one manifest. Slices are balanced by prompt tokens. A
    group's latencies are one unit, because they must run alone.
    """
    run = secrets.token_hex(4)
    missing = {item.point.dir: item for item in todo}
    groups: list[list[Todo]] = []
    for same_model in by_engine([item.point for item in todo]):
        manifests: dict[Path, list[Todo]] = {}
        for point in same_model:
            manifests.setdefault(point.manifest_dir, []).append(missing[point.dir])
        groups += manifests.values()
    answers = [unit for group in groups for unit in _answers(group, slices, run)]
    for group in groups:
        compared = [replace(item, example_ids=item.compared) for item in group if item.compared]
        answers += _answers(compared, slices, f"f{run}", Measure.fidelity) if compared else []
    return answers + [unit for group in groups for unit in _latencies(group, run)]


def _answers(
    group: Sequence[Todo], slices: int, run: str, measure: Measure = Measure.quality
) -> list[Unit]:
    wanted = frozenset[str]().union(*(item.example_ids for item in group))
    entries = [e for e in group[0].point.manifest.entries if e.example_id in wanted]
    tokens = {e.example_id: e.prompt_tokens for e in entries}
    limits = {e.example_id: e.max_new_tokens for e in entries if e.max_new_tokens is not None}
    parts = balanced(list(tokens.items()), slices)
    units = []
    for number, part in enumerate(parts, start=1):
        items = [item for item in group if not item.example_ids.isdisjoint(part)]
        asked = [item.example_ids.intersection(part) for item in items]
        longest = sum(
            limits.get(i, item.point.config.decoding.max_new_tokens)
            for ids, item in zip(asked, items, strict=True)
            for i in ids
        )
        load = Load(sum(map(len, asked)), sum(tokens[i] for ids in asked for i in ids), longest)
        configs = tuple(item.point.config for item in items)
        writer = f"s{number:03d}of{len(parts):03d}-{run}"
        units.append(Unit(configs, part, writer, measure, load))
    return units


def _latencies(group: Sequence[Todo], run: str) -> list[Unit]:
    items = [item for item in group if item.latencies]
    configs = tuple(item.point.config for item in items)
    load = Load(
        sum(item.latencies for item in items),
        sum(item.latency_tokens for item in items),
        sum(item.latencies * item.point.config.decoding.max_new_tokens for item in items),
    )
    return [Unit(configs, (), f"alone-{run}", Measure.latency, load)] if items else []


def balanced(costs: Sequence[tuple[str, int]], n: int) -> list[tuple[str, ...]]:
    """Cut items into at most `n` parts of nearly equal cost; order is kept within each.

    The most expensive first, each to the cheapest part so far.
    """
    n = max(1, min(n, len(costs)))
    total, chosen = [0] * n, [set[int]() for _ in range(n)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i][1], i)):
        cheapest = min(range(n), key=lambda part: (total[part], part))
        total[cheapest] += costs[index][1]
        chosen[cheapest].add(index)
    return [tuple(costs[i][0] for i in sorted(part)) for part in chosen if part]
