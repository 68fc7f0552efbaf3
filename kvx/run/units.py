"""Units of work: one model, one manifest, a slice of its examples, and all points that need them.

Scaling out cuts the examples, not the points: whoever works on an example needs one prefill for
all of its points.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvx.config.identity import resolved
from kvx.config.schema import Config, Measure
from kvx.identity.hashing import digest
from kvx.points import Point, request_id
from kvx.run.time_left import Load
from kvx.store.layout import Present


@dataclass(frozen=True)
class Todo:
    """What is missing of one point: answers to `example_ids`, and `latencies` measured alone."""

    point: Point
    example_ids: frozenset[str]
    latencies: int = 0
    latency_tokens: int = 0  # of their prompts


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
    )


@dataclass(frozen=True)
class Unit:
    """What one worker does without asking again.

    `writer` names its shards: the slice and the run, alike in no two units of any runs.
    """

    configs: tuple[Config, ...]
    example_ids: tuple[str, ...]  # none where latencies are measured: the points know their own
    writer: str
    measure: Measure
    n_requests: int  # to show progress by, with the tokens of their prompts and of longest answers
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def load(self) -> Load:
        return Load(self.n_requests, self.prompt_tokens, self.output_tokens)

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

    `lost` is what happened to its worker; `refused` a wrong request that only shows where the model
    is. What it wrote before that counts all the same.
    """

    unit: Unit
    failed: dict[str, str] = field(default_factory=dict)
    lost: str | None = None
    refused: str | None = None


def by_engine(points: Sequence[Point]) -> list[list[Point]]:
    """Points that one loaded model can serve, together."""
    models: dict[str, list[Point]] = {}
    for point in points:
        config = point.config
        key = digest([resolved(config.engine), resolved(config.model), config.model.path])
        models.setdefault(key, []).append(point)
    return list(models.values())


def group_points(points: Sequence[Point]) -> list[list[Point]]:
    """Points that one loaded model can serve from one prefill; groups of one model together."""
    groups: list[list[Point]] = []
    for same_model in by_engine(points):
        manifests: dict[Path, list[Point]] = {}
        for point in same_model:
            manifests.setdefault(point.manifest_dir, []).append(point)
        groups += manifests.values()
    return groups


def make_units(todo: Sequence[Todo], slices: int) -> list[Unit]:
    """All missing work: the examples of each group cut into at most `slices`, then the latencies.

    Slices are balanced by prompt tokens. Latencies of a group are one unit: they must run alone.
    """
    run = secrets.token_hex(4)
    missing = {item.point.dir: item for item in todo}
    groups = [[missing[p.dir] for p in group] for group in group_points([t.point for t in todo])]
    answers = [unit for group in groups for unit in _answers(group, slices, run)]
    return answers + [unit for group in groups for unit in _latencies(group, run)]


def _answers(group: Sequence[Todo], slices: int, run: str) -> list[Unit]:
    wanted = frozenset[str]().union(*(item.example_ids for item in group))
    entries = [e for e in group[0].point.manifest.entries if e.example_id in wanted]
    tokens = {e.example_id: e.prompt_tokens for e in entries}
    limits = {e.example_id: e.max_new_tokens for e in entries if e.max_new_tokens is not None}
    parts = balanced(list(tokens.items()), slices)
    units = []
    for number, part in enumerate(parts, start=1):
        items = [item for item in group if not item.example_ids.isdisjoint(part)]
        asked = [item.example_ids.intersection(part) for item in items]
        units.append(
            Unit(
                configs=tuple(item.point.config for item in items), example_ids=part,
                writer=f"s{number:03d}of{len(parts):03d}-{run}", measure=Measure.quality,
                n_requests=sum(map(len, asked)),
                prompt_tokens=sum(tokens[example] for ids in asked for example in ids),
                output_tokens=sum(
                    limits.get(i, item.point.config.decoding.max_new_tokens)
                    for ids, item in zip(asked, items, strict=True)
                    for i in ids
                ),
            )
        )  # fmt: skip
    return units


def _latencies(group: Sequence[Todo], run: str) -> list[Unit]:
    items = [item for item in group if item.latencies]
    configs = tuple(item.point.config for item in items)
    n = sum(item.latencies for item in items)
    prompts = sum(item.latency_tokens for item in items)
    outputs = sum(item.latencies * item.point.config.decoding.max_new_tokens for item in items)
    return [Unit(configs, (), f"alone-{run}", Measure.latency, n, prompts, outputs)] if n else []


def balanced(costs: Sequence[tuple[str, int]], n: int) -> list[tuple[str, ...]]:
    """Cut items into at most `n` parts of nearly equal cost; order is kept within each.

    The dearest first, each to the part that costs least so far.
    """
    n = max(1, min(n, len(costs)))
    total, chosen = [0] * n, [set[int]() for _ in range(n)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i][1], i)):
        cheapest = min(range(n), key=lambda part: (total[part], part))
        total[cheapest] += costs[index][1]
        chosen[cheapest].add(index)
    return [tuple(costs[i][0] for i in sorted(part)) for part in chosen if part]
