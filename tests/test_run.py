"""Runs resumed, killed, interrupted, out of disk or partly failing lose and repeat nothing."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kvpress import KnormPress

from kvx.config.folders import package_dir
from tests.conftest import Kvx, finish, kvx_process, request_rows
from tests.forked import Forked
from tests.waiting import HANGS_S, Gate, wait_until

SWEEP = ("-m", "press=snapkv,streaming", "budget=1.0,0.5,0.2")
SMALL = ("dataset.source.n_examples=60", "dataset.sampling.n_per_bin=4", "run.shard_requests=3")
# a press that goes no further than the test allows
SLOW = ("-m", "press=knorm", "press.method._target_=tests.presses.SlowPress",
        "budget=1.0,0.5,0.2")  # fmt: skip
RUNS = Path("outputs/runs/default")


@pytest.fixture(autouse=True)
def presses_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(package_dir().parent))


def shards() -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in RUNS.glob("points/*/*.parquet")}


def test_the_readme_sweep_makes_six_points_and_then_has_nothing_to_do(kvx: Kvx) -> None:
    assert kvx("run", *SWEEP, *SMALL).code == 0
    assert len(list(RUNS.glob("points/*/DONE"))) == 6
    before = shards()
    again = kvx("run", *SWEEP, *SMALL)
    assert again.code == 0
    assert "all 6 points are complete (120 requests); nothing to do" in again.err
    assert shards() == before


def test_a_finished_sweep_is_recognised_without_torch(kvx: Kvx, tmp_path: Path) -> None:
    assert kvx("run", *SMALL).code == 0
    code = (
        "import sys; from kvx.cli.command import run_stage\n"
        f"assert run_stage('run', {list(SMALL)!r}) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=HANGS_S)


def test_the_order_and_spelling_of_a_sweep_do_not_matter(kvx: Kvx) -> None:
    assert kvx("run", "-m", "press=snapkv", "budget=0.5,0.2", *SMALL).code == 0
    again = kvx("run", *SMALL, "-m", "budget.ratio=0.20,0.50", "press=snapkv")
    assert "all 2 points are complete" in again.err


@pytest.mark.parametrize(
    ("budgets", "names"),
    [
        (["budget=1.0,0.5"], ["knorm-0.5", "knorm-1", "none-1"]),
        (["budget=0.5,0.2"], ["knorm-0.2", "knorm-0.5", "none-1"]),
        (["budget=tokens", "budget.tokens=99,50"], ["knorm-50t", "knorm-99t", "none-1"]),
    ],
)
def test_none_in_a_sweep_is_the_full_cache(kvx: Kvx, budgets: list[str], names: list[str]) -> None:
    assert kvx("run", "-m", "press=none,knorm", *budgets, *SMALL).code == 0
    assert sorted(p.name.rsplit("-", 1)[0] for p in RUNS.glob("points/*")) == names
    later = kvx("score", "-m", "press=none,knorm", *budgets, *SMALL)
    assert later.code == 0, later.err


def test_one_sweep_over_two_experiments_keeps_them_apart(kvx: Kvx) -> None:
    assert kvx("run", "-m", "experiment_name=a,b", *SMALL).code == 0
    one, other = (request_rows(Path("outputs/runs") / name) for name in "ab")
    assert len(one) == 20
    pd.testing.assert_frame_equal(one, other)


def test_kill_9_at_random_moments_changes_nothing(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*SLOW, *SMALL, "run.shard_requests=2", "engine.max_rows=1")
    undisturbed = kvx("run", *arguments, "paths.output=undisturbed")
    assert undisturbed.code == 0
    gate, rng = Gate(tmp_path), random.Random(0)
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)

    def files() -> set[Path]:
        return set(Path("killed").glob("runs/*/points/*/*"))  # those that are being written too

    for number in range(5):
        process, have = Forked(tmp_path / "log", "run", *arguments, "paths.output=killed"), files()
        moment = gate.calls + rng.randint(1, 9)
        gate.allow(moment)
        if number % 2:  # where something has just been written
            gate.until(lambda: files() != have, "a new file", process)  # noqa: B023
        else:
            wait_until(lambda: gate.calls >= moment, "that many calls", process)  # noqa: B023
        assert process.poll() is None  # the gate holds it
        process.kill()
        assert process.poll() == -signal.SIGKILL
    gate.open()
    assert kvx("run", *arguments, "paths.output=killed").code == 0
    expected, found = (request_rows(Path(o) / "runs/default") for o in ("undisturbed", "killed"))
    pd.testing.assert_frame_equal(found, expected)
    assert not list(Path("killed").rglob("*.tmp"))


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path)
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    many = (*SLOW, "dataset.sampling.n_per_bin=40", "run.shard_requests=5")
    process = kvx_process(tmp_path, "run", *many)
    written = lambda: list(RUNS.glob("points/*/requests-*-00001*"))  # noqa: E731
    gate.until(written, "a second shard is there", process)
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert outcome.code == 130, outcome.err
    assert "type the same command to go on" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err
    assert len(request_rows(RUNS)) >= 10
    assert outcome.err.count("loading model") == 1  # once per process, whatever the points


def test_a_corrupt_shard_is_named_quarantined_and_redone(kvx: Kvx) -> None:
    assert kvx("run", *SMALL).code == 0
    expected = request_rows(RUNS)
    (shard,) = RUNS.glob("points/*/requests.parquet")
    shard.write_bytes(shard.read_bytes()[:300])
    stage = kvx("score")
    assert stage.code == 2
    assert str(shard) in stage.err
    redone = kvx("run", *SMALL)
    assert redone.code == 0
    assert "requests.parquet is corrupt" in redone.err
    assert len(list(shard.parent.glob("quarantine/requests.*"))) == 1
    pd.testing.assert_frame_equal(request_rows(RUNS), expected)


def test_a_shard_changed_after_the_end_is_redone_though_it_can_be_read(kvx: Kvx) -> None:
    assert kvx("run", *SMALL).code == 0
    expected = request_rows(RUNS)
    (shard,) = RUNS.glob("points/*/requests.parquet")
    table = pq.read_table(shard)
    column = table.schema.get_field_index("text")
    forged = pa.array(["forged"] * len(table))
    pq.write_table(table.set_column(column, table.schema.field("text"), forged), shard)
    redone = kvx("run", *SMALL)
    assert redone.code == 0
    assert "requests.parquet is corrupt: it changed after" in redone.err
    pd.testing.assert_frame_equal(request_rows(RUNS), expected)
    traces = [pq.read_table(p) for p in RUNS.glob("points/*/traces.parquet")]
    assert sum(map(len, traces)) == len(expected)


def test_an_interrupt_after_a_shard_is_in_place_doubles_no_row(
    kvx: Kvx, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kvx.store.atomic as files_module

    real, calls = files_module._fsync_dir, 0

    def interrupted(folder: Path) -> None:
        nonlocal calls
        calls += 1
        real(folder)
        if calls == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(files_module, "_fsync_dir", interrupted)
    assert kvx("run", *SMALL).code == 130
    monkeypatch.setattr(files_module, "_fsync_dir", real)
    assert kvx("run", *SMALL).code == 0
    assert request_rows(RUNS)["request_id"].is_unique
    assert "nothing to do" in kvx("run", *SMALL).err


def test_requests_without_a_response_are_asked_again_if_wanted(kvx: Kvx) -> None:
    """A time-out, the same as for an overloaded machine: here by a press that fails at first."""
    target = "press.method._target_=tests.test_engine.MoodyPress"
    arguments = ("press=knorm", target, "budget=0.5", *SMALL)
    assert kvx("run", *arguments).code == 0
    lost = (~request_rows(RUNS)["has_response"]).sum()
    assert 0 < lost < 20
    assert "nothing to do" in kvx("run", *arguments).err
    still = kvx(
        "run", *arguments, "run.retry_failed=true"
    )  # they fail again: complete all the same
    assert still.code == 0, still.err
    assert (~request_rows(RUNS)["has_response"]).sum() == lost
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.test_engine.MoodyPress.compress", KnormPress.compress)
        assert kvx("run", *arguments, "run.retry_failed=true").code == 0
    rows = request_rows(RUNS)
    assert rows["has_response"].all()
    assert rows["request_id"].is_unique
    assert len(rows) == 20


def test_one_failing_point_leaves_the_others_complete(kvx: Kvx) -> None:
    target = "press.method._target_=tests.test_engine.HalfHeartedPress,kvpress.KnormPress"
    outcome = kvx("run", "-m", "press=knorm", "budget=0.5", target, *SMALL)
    assert outcome.code == 1
    assert "1 of 2 points failed, the others are complete; knorm-0.5-" in outcome.err
    assert "Traceback" not in outcome.err
    assert len(list(RUNS.glob("points/*/DONE"))) == 1
    (failed,) = RUNS.glob("points/*/FAILED")
    assert "press=knorm was asked to keep" in failed.read_text()


def test_a_point_on_which_every_request_fails_has_failed(kvx: Kvx) -> None:
    outcome = kvx("run", "press=streaming", "press.method.n_sink=300", "budget=0.5", *SMALL,
                  "press.min_prompt_tokens=0", "dataset.source.max_words=250")  # fmt: skip
    assert outcome.code == 1
    assert "every request failed (AssertionError: Input should contain more tokens" in outcome.err


def test_two_processes_on_one_point_do_not_mix(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path)
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    arguments = (*SLOW[1:3], "budget=0.5", *SMALL)
    process = Forked(tmp_path / "log", "run", *arguments)
    written = lambda: list(RUNS.glob("points/*/requests-*"))  # noqa: E731
    gate.until(written, "a shard is there", process)
    second = kvx("run", *arguments)
    assert second.code == 2
    assert "another process is working on this point" in second.err
    assert process.poll() is None  # the gate holds it
    gate.open()
    process.communicate()
    assert process.poll() == 0
    rows = request_rows(RUNS)
    assert len(rows) == 20
    assert rows["request_id"].is_unique


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_later(kvx: Kvx, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)])
    if mount.returncode:
        pytest.skip("this system does not allow mounts")
    try:
        arguments = (*SWEEP, *SMALL, f"paths.output={disk}/outputs")
        full = kvx("run", *arguments)
        assert full.code == 1, full.err
        assert "disk full while writing" in full.err.splitlines()[-1]
        assert "Traceback" not in full.err
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert kvx("run", *arguments).code == 0
        rows = request_rows(disk / "outputs/runs/default")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert kvx("run", *SWEEP, *SMALL).code == 0
    pd.testing.assert_frame_equal(rows, request_rows(RUNS))


def test_another_manifest_under_the_same_point_is_refused(kvx: Kvx) -> None:
    assert kvx("run", *SMALL).code == 0
    (path,) = RUNS.glob("points/*/point.json")
    described = json.loads(path.read_text())
    described["manifest"]["sha256"] = "0" * 64
    path.write_text(json.dumps(described))
    outcome = kvx("run", *SMALL)
    assert outcome.code == 2
    assert "was run with another manifest" in outcome.err
