"""Units of work: every missing request in exactly one slice, slices of like cost."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.cli.command import compose
from kvx.config.measures import Measure
from kvx.points import Point
from kvx.prepare.build import ensure_manifest
from kvx.run.units import Todo, balanced, make_units

COSTS = st.lists(st.integers(1, 4000), max_size=60).map(
    lambda costs: [(f"e{i}", cost) for i, cost in enumerate(costs)]
)


@given(COSTS, st.integers(1, 12))
def test_every_item_is_in_one_part_and_parts_cost_alike(
    costs: list[tuple[str, int]], n: int
) -> None:
    parts = balanced(costs, n)
    assert sorted(item for part in parts for item in part) == sorted(item for item, _ in costs)
    assert len(parts) == min(n, len(costs))
    price = dict(costs)
    totals = [sum(price[item] for item in part) for part in parts]
    if totals:  # moving one item from the dearest part cannot make it the cheapest's equal
        assert max(totals) - min(totals) <= max(price.values())
    order = [item for item, _ in costs]
    assert all(list(part) == sorted(part, key=order.index) for part in parts)
    assert balanced(costs, n) == parts


@pytest.fixture
def points(tmp_path: Path) -> list[Point]:
    """Two models with two points each."""
    small = ("dataset.source.n_examples=40", "dataset.sampling.n_per_bin=2", "measure=both")
    found = []
    for model in ("a", "b"):
        for budget in ("0.5", "0.2"):
            config = compose(
                "press=knorm", f"budget={budget}", f"model.name={model}", "latency.n_per_bin=1",
                f"model.revision={model}", f"paths.output={tmp_path}", *small,
            )  # fmt: skip
            found.append(Point(config, *ensure_manifest(config)))
    return found


def test_a_slice_has_all_points_of_one_model_and_latencies_come_last(points: list[Point]) -> None:
    ids = [e.example_id for e in points[0].manifest.entries]
    todo = [Todo(p, frozenset(ids), len(p.latency_items)) for p in points]
    units = make_units(todo, 3)
    assert [u.measure for u in units] == [Measure.quality] * 6 + [Measure.latency] * 2
    assert [u.model for u in units] == ["a", "a", "a", "b", "b", "b", "a", "b"]
    assert [u.slice for u in units[:3]] == ["s001of003", "s002of003", "s003of003"]
    assert all(len(u.configs) == 2 for u in units)
    assert sorted(e for u in units[:3] for e in u.example_ids) == sorted(ids)
    assert sum(u.load.requests for u in units[:3]) == 2 * len(ids)


def test_a_row_with_a_limit_of_its_own_counts_with_it(points: list[Point]) -> None:
    first, *others = points[0].manifest.entries
    own = (replace(first, max_new_tokens=500), *others)
    point = replace(points[0], manifest=replace(points[0].manifest, entries=own))
    usual = point.config.decoding.max_new_tokens
    (unit,) = make_units([Todo(point, frozenset(e.example_id for e in own))], 1)
    assert unit.load.output_tokens == 500 + len(others) * usual


def test_only_what_is_missing_is_cut(points: list[Point]) -> None:
    ids = [e.example_id for e in points[0].manifest.entries]
    todo = [Todo(points[0], frozenset(ids[:1])), Todo(points[1], frozenset(ids[:2]))]
    units = make_units([*todo, Todo(points[2], frozenset())], 3)
    assert [u.example_ids for u in units] in ([(ids[0],), (ids[1],)], [(ids[1],), (ids[0],)])
    needs = {u.example_ids[0]: [c.budget.ratio for c in u.configs] for u in units}
    assert needs == {ids[0]: [0.5, 0.2], ids[1]: [0.2]}
    assert {u.slice for u in units} == {"s001of002", "s002of002"}
