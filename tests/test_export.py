"""kvx.export: results as files for papers, spreadsheets and kvpress's leaderboard."""

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from kvx.compare.kvpress_predictions import parsed, read_predictions
from kvx.data.example import Example
from kvx.export.leaderboard import metrics_of
from kvx.export.paper_tables import cells_of
from tests.conftest import Kvx

FOREIGN = Path(__file__).parent / "foreign" / "kvpress-0.5.5"
RUN = Path("outputs/runs/default")
SMALL = ("dataset.source.n_examples=60", "dataset.sampling.n_per_bin=2")


@pytest.fixture
def analysed(kvx: Kvx) -> Kvx:
    for stage in ("run", "score", "analyze"):
        assert kvx(stage, "-m", "press=snapkv", "budget=1.0,0.5", *SMALL).code == 0
    return kvx


def test_an_experiment_is_exported(analysed: Kvx) -> None:
    assert analysed("export", "export.formats=[csv,latex,svg,pdf,kvpress]").code == 0
    there = {p.relative_to(RUN / "export").as_posix() for p in (RUN / "export").rglob("*.*")}
    assert {"csv/bin_stats.csv", "latex/accuracy.tex", "plots/acc_by_bin.svg",
            "plots/acc_by_budget.pdf"} <= there  # fmt: skip
    assert not {name for name in there if name.endswith(".png")}
    stats = pq.read_table(RUN / "bin_stats.parquet").to_pandas()
    again = pd.read_csv(RUN / "export/csv/bin_stats.csv")
    assert list(again.columns) == list(stats.columns)
    assert again["mean"].to_numpy() == pytest.approx(stats["mean"].to_numpy(), nan_ok=True)
    tex = (RUN / "export/latex/accuracy.tex").read_text()
    assert tex.count(r"\\") == 1 + 2  # the header, a row per point
    assert r"recall\_\_kv" in tex

    half = RUN / "export/kvpress/recall__kv__tiny_recall__snapkv__0.50"
    assert {p.name for p in half.iterdir()} == {"predictions.csv", "metrics.json", "config.yaml"}
    back = read_predictions(half / "predictions.csv", "exact_match", None)
    all_bins = stats[(stats["bin"] == -1) & (stats["metric"] == "exact_match")]
    (mean,) = all_bins.loc[all_bins["budget_label"] == "0.5", "mean"]
    assert back.scores["exact_match"].mean() == pytest.approx(mean)
    told = json.loads((half / "metrics.json").read_text())
    assert told["kv"]["exact_match"] == pytest.approx(100 * mean)
    assert back.settings["press_init_command"] == (
        "SnapKVPress(compression_ratio=0.5, window_size=64, kernel_size=5)"
    )


def test_what_is_not_analysed_is_not_exported(analysed: Kvx) -> None:
    stale = analysed("export", "analyze.confidence=0.8")
    assert stale.code == 2
    assert "run kvx.score and kvx.analyze with the same arguments" in stale.err
    assert analysed("export", "export.formats=[]").code == 2
    assert analysed("export", "export.formats=[docx]").code == 2


def test_points_that_kvpress_has_one_name_for_are_refused_before_anything_is_written(
    analysed: Kvx,
) -> None:
    for value in (2, 3):
        asked = ("press=streaming", "budget=0.5", f"press.method.n_sink={value}", *SMALL)
        for stage in ("run", "score", "analyze"):
            assert analysed(stage, *asked).code == 0
    found = analysed("export", "export.formats=[csv,kvpress]")
    assert found.code == 2
    assert "kvpress's names do not tell them apart" in found.err
    assert not (RUN / "export").exists()


def test_metrics_of_ruler_are_those_that_kvpress_wrote() -> None:
    folder = FOREIGN / "ruler__4096__tiny_recall__snapkv__0.50"
    table = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
    asked = [
        Example(str(n), "c", row["question"], tuple(parsed(row["answer"])))
        for n, row in table.iterrows()
    ]
    found = metrics_of(
        ["string_match_all"], list(table["task"]), list(table["predicted_answer"]), asked
    )
    assert found == json.loads((folder / "metrics.json").read_text())


def test_cells_of_a_table() -> None:
    assert cells_of("| a | b |\n| --- | ---: |\n| x | **1** |") == [["a", "b"], ["x", "1"]]
