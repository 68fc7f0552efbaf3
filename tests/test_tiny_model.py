"""The embedded model still recalls everything, and its cliffs are where they were."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kvx.config.folders import package_dir
from tests.conftest import Kvx

MODEL = package_dir() / "assets" / "tiny_recall"
# exact match over all bins of experiment=demo (n = 120 each), measured when the model was trained
CLIFFS = {
    ("snapkv", 1.0): 1.00, ("snapkv", 0.5): 0.58, ("snapkv", 0.2): 0.28,
    ("streaming", 1.0): 1.00, ("streaming", 0.5): 0.50, ("streaming", 0.2): 0.25,
}  # fmt: skip


def test_it_is_small() -> None:
    assert sum(f.stat().st_size for f in MODEL.iterdir()) < 1_000_000


def test_its_training_reached_full_recall() -> None:
    report = json.loads((MODEL / "training.json").read_text())
    assert min(report["token_accuracy_by_context_tokens"].values()) > 0.99


def test_the_cliffs_are_where_they_were(kvx: Kvx) -> None:
    assert kvx("all", "experiment=demo").code == 0
    stats = pq.read_table(Path("outputs/runs/demo/bin_stats.parquet")).to_pandas()
    overall = stats[(stats["bin"] == -1) & stats["primary"]]
    found = overall.set_index(["press", "budget"])["mean"].to_dict()
    assert found == pytest.approx(CLIFFS, abs=0.03)
    f1 = stats[(stats["bin"] == -1) & (stats["metric"] == "qa_f1")]
    half = f1.set_index(["press", "budget"])["mean"]["snapkv", 0.5]
    assert half > found["snapkv", 0.5] + 0.05  # several tokens: some answers are partly right
