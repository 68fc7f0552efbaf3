"""Models of which the press compresses some layers only: what a budget is a share of."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kvx.cli.command import run_stage
from tests.families import WINDOW, write

RUN = (
    "-m", "experiment_name=mixed", "model=hf", "press=knorm", "budget=0.5,1.0",
    "decoding.max_new_tokens=4",
    "dataset.source.n_examples=40", "dataset.sampling.n_per_bin=2", "signals=off",
)  # fmt: skip
FOLDER = Path("outputs/runs/mixed")


def sentence() -> str:
    lines = (FOLDER / "details.md").read_text().splitlines()
    return next((line for line in lines if "of the KV bytes" in line), "")


def test_the_report_says_how_much_the_compressed_layers_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = write("gemma3_text", tmp_path / "mixed-layers")
    assert run_stage("all", [*RUN, f"model.path={model}"]) == 0
    files = sorted(FOLDER.glob("points/*/requests.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len(files) == 2
    types = json.loads((model / "config.json").read_text())["layer_types"]
    full = types.count("full_attention")
    for row in rows:
        n = row["compressed_tokens"]
        windows = (len(types) - full) * min(n, WINDOW - 1)
        assert row["kv_compressed_share"] == pytest.approx(full * n / (full * n + windows))
    mean = sum(row["kv_compressed_share"] for row in rows) / len(rows)
    stats = pq.read_table(FOLDER / "bin_stats.parquet").to_pandas()
    overall = stats[stats["primary"] & (stats["bin"] == -1)]
    assert overall["kv_compressed_share"].to_numpy() == pytest.approx(mean)
    for budget, measured in zip(overall["budget"], overall["budget_measured"], strict=True):
        assert measured == pytest.approx(budget, abs=0.003)  # of the entries, not of all bytes
    assert f"**Compressed layers hold {mean:.0%} of the KV bytes**" in sentence()


def test_where_all_layers_are_compressed_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [o for o in RUN if o != "model=hf"]
    assert run_stage("all", small) == 0
    rows = pq.read_table(next(FOLDER.glob("points/*/requests.parquet"))).to_pylist()
    assert {row["kv_compressed_share"] for row in rows} == {1.0}
    assert sentence() == ""
