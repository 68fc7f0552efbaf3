"""One point's directory under many writers: whatever happens, no row is lost and none doubled."""

import fcntl
import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kvx.cli.command import compose
from kvx.engines.base import Measurement, Response, Timing, Trace
from kvx.errors import UserError
from kvx.points import Point, Request
from kvx.prepare.build import ensure_manifest
from kvx.store import contents, layout, locks
from kvx.store.completion import is_done
from kvx.store.point_dir import PointStore
from tests.waiting import HANGS_S

SMALL = ("dataset.source.n_examples=60", "dataset.sampling.n_per_bin=4", "press=knorm")
LATENCY = ("measure=both", "latency.n_per_bin=1", "latency.repeats=2")
AT = datetime(2026, 1, 1, tzinfo=UTC)
Write = Callable[[PointStore, slice], None]


def make_point(*overrides: str) -> Point:
    config = compose(*SMALL, "budget=0.5", *overrides)
    return Point(config, *ensure_manifest(config))


@pytest.fixture
def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Point:
    """20 requests and 10 latencies, nothing of it there yet."""
    monkeypatch.chdir(tmp_path)
    return make_point(*LATENCY)


def answer(request: Request) -> Response:
    trace = Trace([7, 8], [-0.5, -0.25], [1.0, 0.5])
    text = request.entry.example_id
    return Response(request, text, [7, 8], finish_reason="stop", budget_verified=True, trace=trace)


def measurement(request: Request, repeat: int) -> Measurement:
    return Measurement(request, repeat, Timing(0.1, 0.3, 0.1, 0.2, 0.2), 2, 4096, 1 << 20)


def write_answers(store: PointStore, part: slice) -> None:
    requests = [Request(store.point, e) for e in store.point.manifest.entries][part]
    for i in range(0, len(requests), 3):
        store.write([(answer(r), AT) for r in requests[i : i + 3]])


def write_latencies(store: PointStore, part: slice) -> None:
    items = [(Request(store.point, e), n) for e, n in store.point.latency_items][part]
    store.write_latency([(measurement(r, n), AT) for r, n in items])


def by_two_writers(point: Point, finish: bool) -> None:
    """What two workers would do, one after the other."""
    PointStore(point).recover()
    for writer, part in (("b", slice(0, None, 2)), ("a", slice(1, None, 2))):
        store = PointStore(point)
        store.resume(writer)
        write_answers(store, part)
        write_latencies(store, part)
        if finish:
            assert store.finish() is None
        store.close()


def rows(point: Point, kind: str) -> list[dict[str, Any]]:
    table = pq.read_table(point.dir / f"{kind}.parquet").to_pylist()
    assert isinstance(table, list)
    return table


def parquet(point: Point) -> set[str]:
    return {path.name for path in point.dir.glob("*.parquet")}


MERGED = {"requests.parquet", "traces.parquet", "latency.parquet"}


def work(writer: str, part: slice) -> str | None:
    """A worker in a process of its own."""
    store = PointStore(make_point(*LATENCY))
    store.resume(writer)
    write_answers(store, part)
    write_latencies(store, part)
    reason = store.finish()
    store.close()
    return reason


def test_processes_write_slices_of_one_point_at_once_and_finish_it_once(point: Point) -> None:
    with locks.claim([point.dir]) as claim:
        assert PointStore(point).recover() == layout.Present(set(), set())
        claim.share()
        with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(work, f"w{i}", slice(i, None, 3)) for i in range(3)]
            assert [job.result(timeout=HANGS_S) for job in jobs] == [None] * 3
    assert is_done(point)
    assert parquet(point) == MERGED
    expected = [e.example_id for e in point.manifest.entries]
    assert [row["example_id"] for row in rows(point, "requests")] == expected
    assert [row["request_id"].split("/")[1] for row in rows(point, "traces")] == expected
    assert len(rows(point, "latency")) == 10


def test_the_merged_tables_do_not_depend_on_who_did_what(point: Point) -> None:
    by_two_writers(point, finish=True)
    two = {kind: rows(point, kind) for kind in ("requests", "traces", "latency")}
    shutil.rmtree(point.dir)
    PointStore(point).recover()
    store = PointStore(point)
    store.resume("one")
    write_latencies(store, slice(None))
    write_answers(store, slice(None, None, -1))
    store.finish()
    store.close()
    assert {kind: rows(point, kind) for kind in two} == two


class Killed(BaseException):
    """Nothing that runs after it changes a file any more."""


def killed_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """From the given step on, files are neither renamed nor deleted, as after a kill."""
    done = 0
    patch.setattr(os, "getpid", lambda: 1)  # it was another process
    for name in ("rename", "unlink"):
        real = getattr(Path, name)

        def counted(self: Path, *a: Any, real: Any = real, **k: Any) -> Any:
            nonlocal done
            done += 1
            if done > step:
                raise Killed
            return real(self, *a, **k)

        patch.setattr(Path, name, counted)


@pytest.mark.parametrize("heir", ["the next run", "another worker"])
def test_a_kill_at_any_step_of_merging_loses_and_doubles_nothing(point: Point, heir: str) -> None:
    by_two_writers(point, finish=True)
    expected = {kind: rows(point, kind) for kind in ("requests", "traces", "latency")}
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
        if heir == "the next run":
            there = PointStore(point).recover()
            assert (len(there.request_ids), len(there.latency)) == (20, 10), step
        PointStore(point).finish()
        assert {kind: rows(point, kind) for kind in expected} == expected, step
        assert is_done(point)
        assert not list(point.dir.glob(".*.tmp")), step
        PointStore(point).recover()
        assert parquet(point) == MERGED, step
    assert step > 10  # 3 tables, DONE and the shards


def test_rows_written_twice_are_there_once(point: Point) -> None:
    PointStore(point).recover()
    for writer in ("a", "b"):
        store = PointStore(point)
        store.resume(writer)
        write_answers(store, slice(None))
        write_latencies(store, slice(None))
        store.close()
    assert PointStore(point).finish() is None
    assert [len(rows(point, k)) for k in ("requests", "traces", "latency")] == [20, 20, 10]


def test_a_resumed_writer_goes_on_numbering_and_touches_no_other(point: Point) -> None:
    PointStore(point).recover()
    store = PointStore(point)
    store.resume("w1")
    write_answers(store, slice(0, 3))
    store.close()
    other = point.dir / ".requests-w10-00000.parquet.1.tmp"
    for leftover in (point.dir / ".requests-w1-00001.parquet.1.tmp", other):
        leftover.write_bytes(b"half")
    (point.dir / "traces-w1-00001.parquet").write_bytes(b"its requests were never written")
    again = PointStore(point)
    assert len(again.resume("w1").request_ids) == 3
    write_answers(again, slice(3, 6))
    again.close()
    names = {path.name for path in layout.shards(point.dir, "requests")}
    assert names == {"requests-w1-00000.parquet", "requests-w1-00001.parquet"}
    assert list(point.dir.glob(".*.tmp")) == [other]


def test_a_point_that_failed_for_one_worker_is_finished_by_none(point: Point) -> None:
    PointStore(point).recover()
    first, second = PointStore(point), PointStore(point)
    first.resume("a")
    second.resume("b")
    write_answers(second, slice(None))
    first.fail("the budget is not what its label says")
    write_latencies(second, slice(None))
    assert second.finish() == "the budget is not what its label says"
    assert not (point.dir / "DONE").exists()
    for store in (first, second):
        store.close()
    assert PointStore(point).recover() == layout.Present(set(), set())
    assert not parquet(point)


def test_all_measurements_may_fail_without_costing_the_answers(point: Point) -> None:
    PointStore(point).recover()
    store = PointStore(point)
    store.resume("a")
    write_answers(store, slice(None))
    requests = [(Request(point, e), n) for e, n in point.latency_items]
    store.write_latency(
        [(Measurement(r, n, error_type="TIMEOUT", error_message="slow"), AT) for r, n in requests]
    )
    assert store.finish() is None
    store.close()
    done = layout.read_done(point.dir)
    assert done is not None
    assert (done.requests, done.latency_failed) == (20, 10)


def test_latency_is_added_to_a_finished_point_and_its_answers_stay(point: Point) -> None:
    quality = make_point()
    assert quality.dir == point.dir
    PointStore(quality).recover()
    store = PointStore(quality)
    store.resume("a")
    write_answers(store, slice(None))
    assert store.finish() is None
    store.close()
    assert is_done(quality)
    assert not is_done(point)
    before = (point.dir / "requests.parquet").stat().st_mtime_ns
    assert len(PointStore(point).recover().request_ids) == 20
    later = PointStore(point)
    assert later.resume("a").latency == set()
    write_latencies(later, slice(None))
    assert later.finish() is None
    later.close()
    assert is_done(point)
    assert is_done(quality)
    assert (point.dir / "requests.parquet").stat().st_mtime_ns == before
    assert not is_done(make_point(*LATENCY, "latency.repeats=3"))


def test_half_done_answers_survive_a_run_for_latencies_only(point: Point) -> None:
    alone = make_point(*LATENCY, "measure=latency")
    PointStore(point).recover()
    store = PointStore(point)
    store.resume("a")
    write_answers(store, slice(0, 7))
    store.close()
    PointStore(alone).recover()
    later = PointStore(alone)
    later.resume("a")
    write_latencies(later, slice(None))
    assert later.finish() is None
    later.close()
    assert is_done(alone)
    there = PointStore(point).recover()
    assert (len(there.request_ids), len(there.latency)) == (7, 10)


def test_a_finished_point_is_trusted_by_size_and_time_and_hashed_only_if_touched(
    point: Point, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_two_writers(point, finish=True)
    hashed = []
    monkeypatch.setattr(layout, "sha256_file", lambda path: hashed.append(path.name) or "other")
    assert is_done(point)
    assert not hashed
    os.utime(point.dir / "traces.parquet")
    assert not is_done(point)
    assert hashed == ["traces.parquet"]
    monkeypatch.undo()
    monkeypatch.chdir(Path(point.config.paths.output).resolve().parent)


def test_a_damaged_shard_found_at_the_end_is_quarantined_and_its_rows_are_missing(
    point: Point,
) -> None:
    by_two_writers(point, finish=False)
    shard = point.dir / "requests-a-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-40] + b"x" * 40)
    assert PointStore(point).finish() is None
    assert not (point.dir / "DONE").exists()
    there = PointStore(point).recover()
    assert len(there.request_ids) == 17
    assert len(list(point.dir.glob("quarantine/*-a-00001.*"))) == 2


def test_shards_that_merges_take_away_while_they_are_read_are_not_missing(
    point: Point, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_two_writers(point, finish=False)
    ids, read, lost = contents.present(point.dir), contents.read, iter(range(8))

    def gone(*arguments: Any) -> Any:
        if next(lost, None) is not None:
            raise FileNotFoundError
        return read(*arguments)

    monkeypatch.setattr(contents, "read", gone)
    assert contents.present(point.dir) == ids
    monkeypatch.setattr(contents, "SETTLE_S", 0.05)
    lost = iter(range(10**6))
    with pytest.raises(FileNotFoundError):
        contents.present(point.dir)


def test_a_finished_file_that_somebody_deleted_holds_nothing(point: Point) -> None:
    by_two_writers(point, finish=True)
    layout.merged(point.dir, "requests").unlink()
    there = contents.present(point.dir)
    assert (len(there.request_ids), len(there.latency)) == (0, 10)


def test_a_claim_keeps_others_out_until_the_last_worker_has_left(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    claim = locks.claim(folders)
    with pytest.raises(UserError, match="another process is working on this point"):
        locks.claim([tmp_path / "c", folders[1]])
    assert not locks.is_held(tmp_path / "c")  # what it did get, it gave back
    claim.share()
    worker = locks.join(folders[0])
    claim.close()
    assert [locks.is_held(folder) for folder in folders] == [True, False]
    with pytest.raises(UserError, match="wait for it or stop it"):
        locks.claim(folders)
    worker.close()
    locks.claim(folders).close()


def test_more_points_than_open_files_are_claimed(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 300
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        with locks.claim([tmp_path / str(i) for i in range(1000)]):
            assert locks.is_held(tmp_path / "999")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_locks_in_the_file_system_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(handle: int, mode: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    locks._warn.cache_clear()
    with locks.claim([tmp_path / "a", tmp_path / "b"]) as claim:
        claim.share()
        locks.join(tmp_path / "a").close()
    assert caplog.text.count("no locks") == 1
