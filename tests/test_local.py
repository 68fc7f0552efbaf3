"""hydra/launcher=kvx_local: what workers do together is what one process does alone."""

import os
import random
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kvx.config.folders import package_dir
from kvx.run.pools import local
from tests.conftest import Kvx, finish, kvx_process, request_rows
from tests.forked import ForkedWorker
from tests.waiting import Gate, wait_until

WORKERS = ("hydra/launcher=kvx_local", "hydra.launcher.workers=2")
DATA = ("dataset.source.n_examples=60", "dataset.sampling.n_per_bin=4", "run.shard_requests=2")
SWEEP = ("-m", "press=snapkv,streaming", "budget=1.0,0.5")
# a press that takes its time, one example after another: workers can be ended while they work
SLOW = ("-m", "press=knorm", "press.method._target_=tests.presses.SlowPress",
        "budget=0.8,0.6,0.4,0.2", "engine.max_rows=4")  # fmt: skip
RUNS = Path("outputs/runs/default")


@pytest.fixture(autouse=True)
def presses_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(package_dir().parent))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[ForkedWorker]:
    """Workers that find torch imported, all that are started: fresh ones are tested without it."""
    started: list[ForkedWorker] = []

    def start(*arguments: Any) -> ForkedWorker:
        started.append(ForkedWorker(*arguments))
        return started[-1]

    monkeypatch.setattr(local, "start_worker", start)
    return started


def children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def test_workers_give_what_one_process_gives(kvx: Kvx) -> None:
    together = kvx("run", *SWEEP, *DATA, *WORKERS)
    assert together.code == 0, together.err
    assert together.err.count("loading model") == 2
    rows = request_rows(RUNS)
    assert kvx("run", *SWEEP, *DATA, "paths.output=alone").code == 0
    pd.testing.assert_frame_equal(rows, request_rows(Path("alone/runs/default")))
    again = kvx("run", *SWEEP, *DATA, *WORKERS)
    assert "all 4 points are complete (80 requests); nothing to do" in again.err


@pytest.mark.usefixtures("forked")
def test_one_point_is_shared_among_workers_too_and_latency_is_measured_after(kvx: Kvx) -> None:
    arguments = ("measure=both", "latency.n_per_bin=1", "latency.repeats=2", "seed=3", *DATA)
    outcome = kvx("all", "press=knorm", "budget=0.5", *arguments, *WORKERS)
    assert outcome.code == 0, outcome.err
    (latency,) = RUNS.glob("points/*/latency.parquet")
    assert len(pd.read_parquet(latency)) == 10
    assert (RUNS / "report.md").exists()


@pytest.mark.usefixtures("forked")
def test_a_swept_experiment_takes_the_launcher_it_is_given(kvx: Kvx) -> None:
    outcome = kvx("run", "experiment=sanity", *WORKERS)
    assert outcome.code == 0, outcome.err
    assert "worker 1" in outcome.err
    assert len(list(Path("outputs/runs/sanity").glob("points/*/DONE"))) == 2


def test_kill_9_of_workers_at_twenty_moments_changes_nothing(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: list[ForkedWorker]
) -> None:
    arguments = (*SLOW, *DATA, "run.shard_requests=1", "run.progress=false")
    assert kvx("run", *arguments, "paths.output=undisturbed").code == 0
    gate = Gate(tmp_path)
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    rng, killed, over = random.Random(0), 0, False

    def files() -> set[Path]:
        return set(RUNS.glob("points/*/*"))  # those that are being written too

    def kill() -> None:
        nonlocal killed
        while killed < 20 and not over:
            # half of the moments are within an example, half where something has just been written
            moment, have = gate.calls + rng.randint(1, 6), files()
            gate.allow(moment)
            if killed % 2:
                gate.until(lambda: over or files() != have, "a new file")  # noqa: B023
            else:
                wait_until(lambda: over or gate.calls >= moment, "that many calls")  # noqa: B023
            if workers := [w.pid for w in forked if Path(f"/proc/{w.pid}").exists()]:
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed += 1
        gate.open()

    with ThreadPoolExecutor() as threads:
        killing = threads.submit(kill)
        try:
            while (
                outcome := kvx("run", *arguments, *WORKERS, "hydra.launcher.slices=10")
            ).code and killed < 20:
                assert outcome.code == 1, outcome.err
                assert "was killed by SIGKILL" in outcome.err
                assert "type the same command again" in outcome.err.splitlines()[-1]
        finally:
            over = True
        killing.result()
    assert outcome.code in (0, 1)
    assert killed >= 15
    assert kvx("run", *arguments).code == 0
    expected = request_rows(Path("undisturbed/runs/default"))
    pd.testing.assert_frame_equal(request_rows(RUNS), expected)
    assert not list(RUNS.rglob("*.tmp"))


def test_ctrl_c_ends_the_workers_which_write_what_they_have(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path)
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    arguments = (*SLOW, *DATA, *WORKERS, "hydra.launcher.slices=2", "run.shard_requests=100")
    process = kvx_process(tmp_path, "run", *arguments, "run.shard_s=1000")
    wait_until(lambda: len(children(process.pid)) == 2, "both workers are there", process)
    gate.allow(60)  # 8 per example
    wait_until(lambda: gate.calls >= 60, "examples are done, and no more will be", process)
    workers = children(process.pid)
    assert len(workers) == 2
    assert not list(RUNS.glob("points/*/requests*"))
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert outcome.code == 130, outcome.err
    assert "interrupted" in outcome.err.splitlines()[-1]
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert len(request_rows(RUNS)) >= 2
    gate.open()
    assert kvx("run", *SLOW, *DATA).code == 0
    rows = request_rows(RUNS)
    assert len(rows) == 80
    assert rows["request_id"].is_unique


@pytest.mark.usefixtures("forked")
def test_a_point_that_fails_in_workers_leaves_the_others_complete(kvx: Kvx) -> None:
    target = "press.method._target_=tests.test_engine.HalfHeartedPress,kvpress.KnormPress"
    outcome = kvx("run", "-m", "press=knorm", "budget=0.5", target, *DATA, *WORKERS)
    assert outcome.code == 1
    assert "1 of 2 points failed, the others are complete; knorm-0.5-" in outcome.err
    assert len(list(RUNS.glob("points/*/DONE"))) == 1


@pytest.mark.usefixtures("forked")
def test_a_wrong_request_that_only_workers_can_see_ends_in_one_line(kvx: Kvx) -> None:
    outcome = kvx("run", "press=snapkv", "budget=0.5", "+press.method.windw=3", *DATA, *WORKERS)
    assert outcome.code == 2
    assert "press=snapkv: kvpress.SnapKVPress: " in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("field", ["workers", "slices"])
def test_no_workers_is_no_number_of_workers(kvx: Kvx, field: str) -> None:
    outcome = kvx("run", *DATA, "hydra/launcher=kvx_local", f"hydra.launcher.{field}=0")
    assert outcome.code == 2
    assert f"hydra.launcher.{field}=0: must be at least 1" in outcome.err


@pytest.mark.usefixtures("forked")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_stops_workers_in_one_line_and_the_run_goes_on_later(
    kvx: Kvx, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=250k", "tmpfs", str(disk)])
    if mount.returncode:
        pytest.skip("this system does not allow mounts")
    try:
        arguments = (*SWEEP, *DATA, f"paths.output={disk}/outputs")
        full = kvx("run", *arguments, *WORKERS)
        assert full.code == 1, full.err
        assert "disk full" in full.err.splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert kvx("run", *arguments, *WORKERS).code == 0
        rows = request_rows(disk / "outputs/runs/default")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert len(rows) == 80
    assert rows["request_id"].is_unique
