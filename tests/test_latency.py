"""Latency is a measurement of its own: asked for, or nowhere."""

import sqlite3
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from kvx.store import layout
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
    assert "Latency" not in (RUN / "report.md").read_text()
    assert not (RUN / "plots/latency_p50_by_bin.png").exists()
    before = {p: p.stat().st_mtime_ns for p in RUN.glob("points/*/[rst]*.parquet")}

    later = kvx("all", *SWEEP, *MEASURED)
    assert later.code == 0, later.err
    assert "score: all 2 points are scored; nothing to do" in later.err
    assert {p: p.stat().st_mtime_ns for p in RUN.glob("points/*/[rst]*.parquet")} == before
    alone = pd.concat(pq.read_table(p).to_pandas() for p in RUN.glob("points/*/latency.parquet"))
    assert len(alone) == 2 * 5 * 2
    manifest = pq.read_table(next(RUN.glob("points/*/requests.parquet"))).to_pandas()
    assert set(alone["example_id"]) == set(manifest.drop_duplicates("bin")["example_id"])
    stats = table("bin_stats")
    for _, row in stats.iterrows():
        cell = alone[alone["point_id"] == row["point_id"]]
        cell = cell if row["bin"] == -1 else cell[cell["bin"] == row["bin"]]
        assert row["n_latency"] == len(cell) == (10 if row["bin"] == -1 else 2)
        assert row["latency_p50_s"] == cell["latency_s"].median()
        assert row["peak_memory_bytes_max"] == cell["peak_memory_bytes"].max()
    text = (RUN / "report.md").read_text()
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
    text = (RUN / "report.md").read_text()
    assert f"Point {point.name} is in no table: it has no answers, only latencies." in text
