"""Latency is a measurement of its own: asked for, or nowhere."""

import math
import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from kvx.engines.base import LatencyWork, interleaved
from kvx.engines.kvpress.machine_load import OthersLoad
from kvx.stats.repeats import others_share, spread, unsteady
from kvx.store import contents, layout
from tests.conftest import Kvx

RUN = Path("outputs/runs/default")
SMALL = ("dataset.source.n_examples=60", "dataset.sampling.n_per_bin=3", "analyze.n_boot=200")
SWEEP = ("-m", "press=knorm", "budget=1.0,0.2", *SMALL)
MEASURED = ("measure=both", "latency.n_per_bin=1", "latency.repeats=2")


def table(name: str) -> pd.DataFrame:
    return pq.read_table(RUN / f"{name}.parquet").to_pandas()


def test_latency_is_nowhere_unless_asked_for_and_then_comes_from_what_ran_alone(kvx: Kvx) -> None:
    assert kvx("all", *SWEEP).code == 0
    stats = table("bin_stats")
    timed = ["latency_p50_s", "ttft_p95_s", "tpot_p50_s", "peak_memory_bytes_max"]
    assert stats[timed].isna().all(axis=None)
    assert (stats["n_latency"] == 0).all()
    assert "Latency" not in (RUN / "details.md").read_text()
    assert not (RUN / "plots/latency_p50_by_bin.png").exists()
    before = {p: p.stat().st_mtime_ns for p in RUN.glob("points/*/[rst]*.parquet")}

    later = kvx("all", *SWEEP, *MEASURED)
    assert later.code == 0, later.err
    assert "score: all 2 points are scored; nothing to do" in later.err
    assert {p: p.stat().st_mtime_ns for p in RUN.glob("points/*/[rst]*.parquet")} == before
    alone = pd.concat(pq.read_table(p).to_pandas() for p in RUN.glob("points/*/latency.parquet"))
    assert len(alone) == 2 * 5 * 2
    taken = alone.sort_values("finished_at")
    turns = list(zip(taken["repeat"], taken["example_id"], taken["point_id"], strict=True))
    for first, second in zip(turns[::2], turns[1::2], strict=True):  # both points, then the next
        assert first[:2] == second[:2]
        assert first[2] != second[2]
    assert taken["repeat"].is_monotonic_increasing
    assert 0 < (taken["point_id"].iloc[::2] == turns[0][2]).mean() < 1  # each comes first at times
    assert taken["others_cpu_share"].between(0, 1).all()
    assert taken["gpu_others"].isna().all()
    manifest = pq.read_table(next(RUN.glob("points/*/requests.parquet"))).to_pandas()
    assert set(alone["example_id"]) == set(manifest.drop_duplicates("bin")["example_id"])
    stats = table("bin_stats")
    for _, row in stats.iterrows():
        cell = alone[alone["point_id"] == row["point_id"]]
        cell = cell if row["bin"] == -1 else cell[cell["bin"] == row["bin"]]
        assert row["n_latency"] == len(cell) == (10 if row["bin"] == -1 else 2)
        assert row["latency_p50_s"] == cell["latency_s"].median()
        assert row["peak_memory_bytes_max"] == cell["peak_memory_bytes"].max()
        repeats = cell.groupby("example_id")["latency_s"]
        widths = (repeats.max() - repeats.min()) / repeats.median()
        assert row["latency_spread"] == pytest.approx(widths.median())
    text = (RUN / "details.md").read_text()
    assert "alone at batch 1, after a warm-up of 1 per point; examples per bin: 1, each " \
           "measured 2 times; on " in text  # fmt: skip
    assert "plots/latency_p50_by_bin.png" in text
    with sqlite3.connect(RUN / "kv_transition.sqlite") as connection:
        (n,) = connection.execute(
            "select count(*) from telemetry join requests using (request_id) where ttft_s > 0"
        ).fetchone()
    connection.close()
    assert n == 20
    assert "nothing to do" in kvx("run", *SWEEP, *MEASURED).err


def test_a_measurement_that_failed_is_counted(kvx: Kvx) -> None:
    target = "press.method._target_=tests.test_engine.MoodyPress"
    arguments = ("press=knorm", target, "budget=0.5", *SMALL, *MEASURED)
    assert kvx("all", *arguments).code == 0
    stats = table("bin_stats")
    overall = stats[stats["bin"] == -1].iloc[0]
    assert overall["n_latency"] > 0
    assert overall["n_latency_failed"] > 0
    assert overall["n_latency"] + overall["n_latency_failed"] == 10
    lost = stats[(stats["bin"] >= 0) & (stats["n_latency"] == 0)]
    assert len(lost)
    assert lost["latency_p50_s"].isna().all()


def test_a_point_with_latencies_alone_is_complete_and_left_out_with_a_word(kvx: Kvx) -> None:
    alone = ("press=knorm", "budget=0.5", *SMALL, *MEASURED, "measure=latency")
    first = kvx("all", *alone)
    assert first.code == 0, first.err
    assert "holds latencies only; nothing to score" in first.err
    assert "all 1 points are complete" in kvx("run", *alone).err
    (point,) = RUN.glob("points/*")
    done = layout.read_done(point)
    assert done is not None
    assert list(done.files) == ["latency.parquet"]
    score = kvx("score", *alone)
    assert score.code == 2
    assert "no finished point has answers, only latencies" in score.err
    assert kvx("all", "press=knorm", "budget=1.0", *SMALL).code == 0
    text = (RUN / "details.md").read_text()
    assert f"Point {point.name} is in no table: it has no answers, only latencies." in text


def work_of(name, examples, repeats):
    items = [(f"{name}{e}", SimpleNamespace(example_id=e), n) for n in repeats for e in examples]
    return LatencyWork(name, tuple(items))


def test_points_take_turns_and_the_first_of_them_rotates():
    work = [work_of(name, "xyz", range(2)) for name in "abc"]
    taken = [(item.point, example.example_id, n) for item, (_, example, n) in interleaved(work)]
    assert len(taken) == len(set(taken)) == 3 * 3 * 2
    assert [(n, e) for _, e, n in taken[::3]] == [(n, e) for n in range(2) for e in "xyz"]
    rounds = ["".join(p for p, _, _ in taken[i : i + 3]) for i in range(0, len(taken), 3)]
    assert rounds == ["abc", "bca", "cab", "bca", "cab", "abc"]
    # a slow minute in the middle is in all points: no point has two neighbours of its own
    assert not any(one[0] == two[0] for one, two in pairwise(taken) if one[1:] == two[1:])


def test_what_is_left_of_an_interrupted_measurement_takes_turns_too():
    work = [work_of("a", "xy", [1]), work_of("b", "xy", range(2)), work_of("c", "", range(2))]
    taken = [(item.point, example.example_id, n) for item, (_, example, n) in interleaved(work)]
    assert taken == [("b", "x", 0), ("b", "y", 0), ("b", "x", 1), ("a", "x", 1),
                     ("a", "y", 1), ("b", "y", 1)]  # fmt: skip


def test_the_spread_is_that_of_repeats_and_not_of_requests():
    assert spread([1.0, 1.1, 10.0, 11.0], ["x", "x", "y", "y"]) == pytest.approx(0.1 / 1.05)
    assert spread([8.35, 6.43], ["x", "x"]) > 0.2
    assert math.isnan(spread([1.0, 2.0, math.nan], ["x", "y", "y"]))
    assert others_share([0.5, 0.0, math.nan], [1.0, 3.0, 1.0]) == pytest.approx(0.125)
    assert math.isnan(others_share([math.nan], [1.0]))


def test_what_is_told_of_a_machine_that_is_not_quiet():
    assert unsteady(0.05, 0.02, 0) == []
    assert unsteady(None, None, None) == unsteady(math.nan, math.nan, None) == []
    assert unsteady(0.34, 0.5, 2) == [
        "other processes took 50% of the cores meanwhile",
        "other processes computed on the GPU meanwhile (2)",
        "repeats of the same request differ by 34%",
    ]


@pytest.fixture
def busy():
    """Two processes that do nothing but compute."""
    program = "print('at work', flush=True)\nwhile True: pass"
    others = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)
    ]
    for other in others:
        assert other.stdout.readline() == b"at work\n"
    yield others
    for other in others:
        other.kill()
        other.wait()


def test_load_of_others_is_measured_and_our_own_is_not(busy):
    others = OthersLoad()
    taken = [busy_s(other) for other in busy]
    while sum(busy_s(o) - before for o, before in zip(busy, taken, strict=True)) < 0.5:
        sum(range(100_000))
    found, share = others.cpu_share(), 0.5 / (OthersLoad()._begun - others._begun)
    assert found is not None
    assert 0 < found <= 1
    cores = others._before.cores
    assert found >= 0.8 * share / cores  # what the two took, and whoever else is here


def busy_s(process):
    return sum(psutil.Process(process.pid).cpu_times()[:2])


def test_a_loaded_machine_is_warned_of_while_running_and_in_the_report(kvx: Kvx, busy) -> None:
    done = kvx("all", *SWEEP, *MEASURED)
    assert done.code == 0, done.err
    assert "run: latencies were measured on a loaded machine: other processes took" in done.err
    text = (RUN / "details.md").read_text()
    assert "**Latencies on a loaded machine.** knorm-" in text
    assert "of the cores meanwhile" in text
    assert "CPU of others" in text


def test_tables_of_before_are_read_without_what_they_do_not_tell(kvx: Kvx, tmp_path: Path) -> None:
    assert kvx("run", "press=knorm", "budget=0.5", *SMALL, *MEASURED).code == 0
    (path,) = RUN.glob("points/*/latency.parquet")
    old = pq.read_table(path).drop_columns(["others_cpu_share", "gpu_others"])
    pq.write_table(old, tmp_path / "latency.parquet")
    table = contents.read(tmp_path / "latency.parquet", layout.LATENCY)
    assert table["others_cpu_share"].null_count == table.num_rows == 10
    assert table.drop_columns(["others_cpu_share", "gpu_others"]).equals(old)
