"""What controllers did, on disk: events survive as the responses do that they belong to."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.engines.base import Response
from kvx.guard.events import ACTIONS, INTERVENTIONS, Guarded, GuardEvent
from kvx.points import Point, Request
from kvx.store import contents, merge, schemas
from kvx.store.catalog import PointRecord, events_of, requests_of
from kvx.store.completion import is_done
from kvx.store.layout import EVENTS, read_done
from kvx.store.point_dir import PointStore
from kvx.store.records import event_rows, request_row
from tests.test_store import AT, Killed, answer, killed_at, make_point, parquet, rows, write_answers

MERGED = {"requests.parquet", "traces.parquet", "events.parquet"}
GUARD_COLUMNS = [n for n in schemas.REQUESTS.names if n.startswith("guard_")] + ["kv_bytes_host"]


def event(token: int, action: str, dropped: Sequence[int] = (), **fields: Any) -> GuardEvent:
    values: dict[str, Any] = {
        "token": token, "mode": "SAFE", "action": action, "reason": "loop", "hazard": None,
        "probe_nats": None, "budget_before": 0.5, "budget_after": 1.0,
        "n_kept": max(0, token + 1 - len(dropped)), "dropped_ids": list(dropped),
        "milliseconds": 2.5, **fields,
    }  # fmt: skip
    return GuardEvent(**values)


def guarded(request: Request, number: int) -> Response:
    """Every third response is left alone, the others are watched, rolled back and restarted."""
    events = [
        event(-1, "raise", probe_nats=1.5, reason="gate"),
        event(9, "roll_back", [7, 8, 9], hazard=0.75, reason="hazard"),
        event(12, "watch", mode="ALERT", budget_after=0.5),
    ][: number % 3 + (number % 3 > 1)]
    guard = Guarded(events, 0.5 + 0.1 * len(events), 20 + 3 * len(events), 7, 4096)
    return Response(**{**vars(answer(request)), "guard": guard})


@pytest.fixture
def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Point:
    """20 requests of a point with a controller, nothing of it there yet."""
    monkeypatch.chdir(tmp_path)
    return make_point("controller=reactive")


def write(store: PointStore, part: slice) -> None:
    entries = list(enumerate(store.point.manifest.entries))[part]
    for i in range(0, len(entries), 3):
        items = entries[i : i + 3]
        store.write([(guarded(Request(store.point, e), n), AT) for n, e in items])


def by_two_writers(point: Point, finish: bool) -> None:
    PointStore(point).recover()
    for writer, part in (("b", slice(0, None, 2)), ("a", slice(1, None, 2))):
        store = PointStore(point)
        store.resume(writer)
        write(store, part)
        if finish:
            assert store.finish() is None
        store.close()


def expected_events(point: Point) -> list[dict[str, Any]]:
    requests = [Request(point, e) for e in point.manifest.entries]
    return [row for n, r in enumerate(requests) for row in event_rows(guarded(r, n))]


def test_events_are_merged_in_the_manifests_order_and_summed_up(point: Point) -> None:
    by_two_writers(point, finish=True)
    assert is_done(point)
    assert parquet(point) == MERGED
    assert rows(point, "events") == expected_events(point)
    assert pq.read_schema(point.dir / "events.parquet") == schemas.EVENTS
    kept = rows(point, "requests")
    assert [r["guard_events"] for r in kept] == [(0, 1, 3)[n % 3] for n in range(20)]
    assert [r["guard_interventions"] for r in kept] == [(0, 1, 2)[n % 3] for n in range(20)]
    assert [r["guard_ms"] for r in kept] == [(0.0, 2.5, 7.5)[n % 3] for n in range(20)]
    assert {r["kv_bytes_host"] for r in kept} == {4096}
    last = next(r for r in rows(point, "events") if r["tokens_dropped"])
    assert (last["dropped_ids"], last["hazard"], last["n_kept"]) == ([7, 8, 9], 0.75, 7)


def test_a_kill_at_any_step_of_merging_loses_and_doubles_no_event(point: Point) -> None:
    by_two_writers(point, finish=True)
    expected = {kind: rows(point, kind) for kind in ("requests", "traces", "events")}
    step, finished = 0, False
    while not finished:
        shutil.rmtree(point.dir)
        by_two_writers(point, finish=False)
        with pytest.MonkeyPatch.context() as patch:
            killed_at(step, patch)
            try:
                PointStore(point).finish()
                finished = True
            except Killed:
                step += 1
        there = PointStore(point).recover()
        assert len(there.request_ids) == 20, step
        PointStore(point).finish()
        assert {kind: rows(point, kind) for kind in expected} == expected, step
        assert is_done(point)
        PointStore(point).recover()
        assert parquet(point) == MERGED, step
        assert not list(point.dir.glob(".*.tmp"))
    assert step > 10


def test_a_kill_while_shards_are_written_leaves_no_event_without_its_request(point: Point) -> None:
    for step in range(3):
        shutil.rmtree(point.dir, ignore_errors=True)
        PointStore(point).recover()
        store = PointStore(point)
        store.resume("a")
        with pytest.MonkeyPatch.context() as patch:
            killed_at(step, patch)  # traces, then events, then requests
            with pytest.raises(Killed):
                write(store, slice(0, 3))
        store.close()
        assert len(list(point.dir.glob("*-a-00000.parquet"))) == step
        again = PointStore(point)
        assert again.resume("a").request_ids == set()
        assert not list(point.dir.glob("*-a-*"))
        write(again, slice(None))
        again.close()
        assert PointStore(point).finish() is None
        assert rows(point, "events") == expected_events(point)


def test_rows_written_twice_have_their_events_once(point: Point) -> None:
    PointStore(point).recover()
    for writer in ("a", "b"):
        store = PointStore(point)
        store.resume(writer)
        write(store, slice(None))
        store.close()
    assert PointStore(point).finish() is None
    assert rows(point, "events") == expected_events(point)


def test_damaged_events_are_quarantined_with_their_requests(point: Point) -> None:
    by_two_writers(point, finish=True)
    path = point.dir / "events.parquet"
    path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
    assert not is_done(point)
    assert PointStore(point).recover().request_ids == set()
    assert len(list(point.dir.glob("quarantine/*"))) == 3
    store = PointStore(point)
    store.resume("c")
    write(store, slice(None))
    store.close()
    assert PointStore(point).finish() is None
    assert rows(point, "events") == expected_events(point)


def test_a_point_that_nothing_happened_to_has_an_empty_table_one_without_a_guard_none(
    point: Point,
) -> None:
    plain = make_point()
    for one in (point, plain):
        PointStore(one).recover()
        store = PointStore(one)
        store.resume("a")
        write_answers(store, slice(None))
        assert store.finish() is None
        store.close()
    assert parquet(point) == MERGED
    assert rows(point, "events") == []
    assert parquet(plain) == MERGED - {"events.parquet"}
    assert all(r[name] is None for r in rows(plain, "requests") for name in GUARD_COLUMNS)


def record(point: Point) -> PointRecord:
    done = read_done(point.dir)
    assert done is not None
    return PointRecord(point.dir, {"id": point.id}, done)


def without_guard_columns(path: Path) -> None:
    """As a kvx wrote it that knew no guard."""
    table = pq.read_table(path).drop_columns(GUARD_COLUMNS)
    pq.write_table(table, path, compression="zstd")


def test_points_of_a_kvx_without_a_guard_are_still_read(point: Point) -> None:
    plain = make_point()
    PointStore(plain).recover()
    store = PointStore(plain)
    store.resume("a")
    write_answers(store, slice(None))
    store.finish()
    store.close()
    without_guard_columns(plain.dir / "requests.parquet")
    by_two_writers(point, finish=True)
    old, new = record(plain), record(point)
    frame = requests_of([old, new])
    assert list(frame.columns) == schemas.REQUESTS.names
    assert frame["guard_events"].notna().sum() == 20
    assert len(events_of([old])) == 0
    assert list(events_of([old]).columns) == schemas.EVENTS.names
    assert len(events_of([old, new])) == len(expected_events(point))


def test_what_an_older_kvx_left_half_done_is_gone_on_with(point: Point) -> None:
    plain = make_point()
    PointStore(plain).recover()
    store = PointStore(plain)
    store.resume("a")
    write_answers(store, slice(0, 9))
    store.close()
    for shard in plain.dir.glob("requests-*.parquet"):
        without_guard_columns(shard)
    assert len(PointStore(plain).recover().request_ids) == 9
    later = PointStore(plain)
    later.resume("a")
    write_answers(later, slice(9, None))
    assert later.finish() is None
    later.close()
    assert not (plain.dir / "quarantine").exists()
    assert is_done(plain)
    assert len(rows(plain, "requests")) == 20


def test_a_file_with_other_columns_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "events-a-00000.parquet"
    table = schemas.EVENTS.empty_table()
    for wrong in (
        table.drop_columns(["action"]),
        table.append_column("more", pa.array([], pa.int32())),
        table.set_column(3, "index", pa.array([], pa.int64())),
    ):
        pq.write_table(wrong, path)
        with pytest.raises(contents.UnreadableError):
            contents.read(path, EVENTS)
    pq.write_table(table.drop_columns(["hazard"]), path)
    assert contents.read(path, EVENTS).schema == schemas.EVENTS
    assert contents.read(path, EVENTS, ["hazard", "token"]).column_names == ["hazard", "token"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Request:
    point = make_point("controller=reactive", f"paths.output={tmp_path_factory.mktemp('one')}")
    return Request(point, point.manifest.entries[0])


@given(actions=st.lists(st.sampled_from(ACTIONS)), dropped=st.lists(st.integers(0, 9), max_size=5))
def test_a_responses_columns_are_the_sums_of_its_events(
    made: Request, actions: list[str], dropped: list[int]
) -> None:
    events = [event(i, action, dropped) for i, action in enumerate(actions)]
    response = Response(made, "yes", guard=Guarded(events, 0.7, 40, 3, 1))
    row, table = request_row(response, AT), event_rows(response)
    assert json.loads(row["made_with"])["guard.shadow"] == "host"
    assert [r["index"] for r in table] == list(range(len(actions)))
    assert row["guard_events"] == len(table)
    assert row["guard_interventions"] == sum(r["action"] in INTERVENTIONS for r in table)
    assert row["guard_ms"] == pytest.approx(sum(r["milliseconds"] for r in table))
    assert all(r["tokens_dropped"] == len(r["dropped_ids"]) for r in table)
    read = pa.Table.from_pylist(table, schema=schemas.EVENTS).to_pylist()
    assert read == table
    twice = pa.Table.from_pylist(table * 2, schema=schemas.EVENTS)
    kept = merge._first(twice, pa.array([made.id]), "index")
    assert kept.to_pylist() == table


def test_an_unknown_hazard_is_null(made: Request) -> None:
    nothing = event(3, "alarm", hazard=float("nan"))
    (row,) = event_rows(Response(made, "yes", guard=Guarded([nothing], 1, 1, 0, 0)))
    assert row["hazard"] is None
