"""From one command to a report: what the tables say is what the requests say."""

import contextlib
import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib import image

from kvx.cli.command import run_stage
from kvx.store import schemas
from tests.conftest import Kvx

DEMO = Path("outputs/runs/demo")
SMALL = ("experiment=demo", "dataset.source.n_examples=100", "dataset.sampling.n_per_bin=8")
TABLES = (
    "experiments", "datasets", "examples", "bins", "manifest_entries", "runs", "requests",
    "responses", "telemetry", "scores", "failures", "bin_stats", "transition_summary",
    "dose_response",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    with contextlib.chdir(folder):
        assert run_stage("all", list(SMALL)) == 0
    return folder


@pytest.fixture
def demo(kvx: Kvx, finished_demo: Path) -> Kvx:
    """`kvx` in a directory that holds a finished demo of its own."""
    shutil.copytree(finished_demo, ".", dirs_exist_ok=True)
    return kvx


def table(name: str) -> pd.DataFrame:
    return pq.read_table(DEMO / f"{name}.parquet").to_pandas()


def points(name: str) -> pd.DataFrame:
    files = sorted(DEMO.glob(f"points/*/{name}.parquet"))
    return pd.concat([pq.read_table(f).to_pandas() for f in files])


def test_all_makes_what_it_promises_and_then_has_nothing_to_do(demo: Kvx) -> None:
    plots = ["acc_by_bin", "fail_by_bin", "latency_p50_by_bin", "acc_by_budget"]
    for name in plots:
        pixels = image.imread(DEMO / "plots" / f"{name}.png")
        assert pixels.shape[0] > 300
        assert pixels[..., :3].std() > 0.05  # something is drawn
    text = (DEMO / "details.md").read_text()
    assert all(f"plots/{name}.png" in text for name in plots)
    before = {p: p.stat().st_mtime_ns for p in DEMO.rglob("*") if p.is_file()}
    again = demo("all", *SMALL)
    assert again.code == 0
    assert again.err.count("nothing to do") == 4
    assert {p: p.stat().st_mtime_ns for p in DEMO.rglob("*") if p.is_file()} == before


def _everything() -> tuple[dict[Path, pa.Table], list[str]]:
    tables = {path: pq.read_table(path, partitioning=None) for path in DEMO.rglob("*.parquet")}
    with contextlib.closing(sqlite3.connect(DEMO / "kv_transition.sqlite")) as connection:
        return tables, list(connection.iterdump())


def test_two_processes_make_what_one_makes(demo: Kvx, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, database = _everything()
    made = [p for p in tables if p.parent == DEMO or p.stem in schemas.SCORED]
    for path in made:
        path.unlink()
    for stage in ("score", "analyze"):
        monkeypatch.setattr(f"kvx.{stage}.build.processes", lambda _: 2)
    monkeypatch.setattr("kvx.store.catalog.MOST_REQUESTS", 60)  # a point at a time
    for stage in ("score", "analyze"):
        assert demo(stage, *SMALL).code == 0
    again, database_again = _everything()
    assert again.keys() == tables.keys()
    assert len(made) > 6 * 3 + 10
    for path, table in tables.items():
        assert again[path].equals(table), path
    assert database_again == database


def test_tables_have_their_pinned_schemas(demo: Kvx) -> None:
    pinned = {
        "bin_stats": schemas.BIN_STATS,
        "comparisons": schemas.COMPARISONS,
        "transitions": schemas.TRANSITIONS,
        "dose_response": schemas.DOSE_RESPONSE,
    }
    for name, schema in pinned.items():
        found = pq.read_schema(DEMO / f"{name}.parquet").remove_metadata()
        assert found == schema, name
    for name, schema in (("scores", schemas.SCORES), ("failures", schemas.FAILURES)):
        for file in DEMO.glob(f"points/*/{name}.parquet"):
            assert pq.read_schema(file).remove_metadata() == schema
    for file in DEMO.glob("points/*/requests.parquet"):
        assert pq.read_schema(file) == schemas.REQUESTS
        assert pa.types.is_timestamp(pq.read_schema(file).field("finished_at").type)


def test_bin_stats_follow_from_the_scores(demo: Kvx) -> None:
    scores, stats = points("scores"), table("bin_stats")
    graded = stats[(stats["metric"] == "qa_f1") & (stats["bin"] >= 0)]
    assert len(graded) == 6 * 5
    for _, row in graded.iterrows():
        same = scores["point_id"].eq(row["point_id"]) & scores["metric"].eq("qa_f1")
        cell = scores[same & scores["bin"].eq(row["bin"])]
        assert row["n"] == len(cell) == 8
        assert row["mean"] == pytest.approx(cell["score"].mean())
        assert row["sd"] == pytest.approx(cell["score"].std())
        assert row["complete_mean"] == row["mean"]
        assert row["ci_low"] < row["mean"] < row["ci_high"] or row["sd"] == 0
    exact = stats[(stats["metric"] == "exact_match") & (stats["bin"] >= 0)]
    assert set(exact["ci_method"]) == {"clopper_pearson"}
    assert set(graded["ci_method"]) <= {"korn_graubard", "all_alike"}
    full = exact[exact["budget"] == 1]
    assert (full["ci_low"].round(4) == 0.6306).all()  # 8 of 8: 0.025 ** (1 / 8)


def test_comparisons_are_paired_with_the_full_cache_of_the_same_press(demo: Kvx) -> None:
    scores = points("scores").set_index(["point_id", "metric", "example_id"])["score"]
    scores = scores.sort_index()
    compared = table("comparisons")
    overall = compared[compared["bin"] == -1]
    assert len(overall) == 4 * 2  # four compressed points, two metrics
    for _, row in overall.iterrows():
        ours = scores[row["point_id"], row["metric"]]
        twin = scores[row["twin_point_id"], row["metric"]]
        difference = (ours - twin.loc[ours.index]).to_numpy()
        assert row["twin_point_id"].startswith(row["press"] + "-1-")
        assert row["n_pairs"] == 40
        assert row["difference"] == pytest.approx(difference.mean())
        assert (row["n_lost"], row["n_won"]) == ((difference < 0).sum(), (difference > 0).sum())
        assert row["ci_low"] <= row["difference"] <= row["ci_high"]


def test_requests_are_responses_and_failures(demo: Kvx) -> None:
    requests, failures = points("requests"), points("failures")
    without = failures[~failures["has_response"]]
    assert len(requests) == 6 * 40
    assert len(requests) == requests["has_response"].sum() + len(without)
    cut = set(requests.loc[requests["finish_reason"] == "length", "request_id"])
    truncated = failures.loc[failures["error_type"] == "TRUNCATED", "request_id"]
    assert set(truncated) == cut


def test_sqlite_is_a_faithful_export(demo: Kvx) -> None:
    with sqlite3.connect(DEMO / "kv_transition.sqlite") as connection:
        names = {n for (n,) in connection.execute("select name from sqlite_master")}
        assert names.issuperset(TABLES)
        (n,) = connection.execute("select count(*) from requests").fetchone()
        assert n == 6 * 40
        means = pd.read_sql("select * from bin_stats order by point_id, bin, metric", connection)
        (lost,) = connection.execute(
            "select count(*) from requests r left join responses using (request_id) "
            "left join telemetry using (request_id) where responses.request_id is null"
        ).fetchone()
        assert lost == 0
    stats = table("bin_stats").sort_values(["point_id", "bin", "metric"])
    np.testing.assert_allclose(means["mean"], stats["mean"])
    connection.close()


def test_the_report_says_what_the_tables_say(demo: Kvx) -> None:
    text = (DEMO / "details.md").read_text()
    stats = table("bin_stats")
    overall = stats[(stats["bin"] == -1) & stats["primary"] & (stats["press"] == "snapkv")]
    half = overall[overall["budget"] == 0.5].iloc[0]
    assert f"**snapkv at budget 0.5**: a loss of exact match against the full cache, 1.00 → " \
           f"{half['mean']:.2f}" in text  # fmt: skip
    assert "Every budget of the 6 points in this report was measured" in text
    assert "**snapkv breaks first between budgets 1 and 0.5**" in text
    assert re.search(r"\| command \| `.*experiment=demo.*` \|", text)
    assert re.search(r"\| manifest sha256 \| `[0-9a-f]{64}` \|", text)
    assert "**Degenerate point.** snapkv-0.2-" in text
    assert "**Small bins.** The smallest holds 8" in text
    assert "nan" not in text.lower().replace("finance", "")


def test_the_short_report_has_a_verdict_a_row_per_point_and_what_to_beware(demo: Kvx) -> None:
    text = (DEMO / "report.md").read_text()
    assert len(text.splitlines()) < 60  # two screens
    verdict = text.split("## Verdict")[1]
    stats = table("bin_stats")
    overall = stats[(stats["bin"] == -1) & stats["primary"]]
    rows = [line for line in verdict.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(overall) == 6
    half = overall[(overall["press"] == "snapkv") & (overall["budget"] == 0.5)].iloc[0]
    (told,) = (row for row in rows if row.startswith("| snapkv | 0.5 "))
    assert f"| {half['mean']:.2f} [{half['ci_low']:.2f}, {half['ci_high']:.2f}] |" in told
    assert "**a loss**" in told
    assert "**snapkv keeps 95% of the score at no budget tried**, from 0.5 down" in verdict
    assert "**Small bins.**" in text
    for name in ("details.md", "report.html", "plots/acc_by_budget.png"):
        assert f"]({name})" in text
        assert (DEMO / name).is_file()


def test_a_lost_row_is_found(demo: Kvx) -> None:
    shard = sorted(DEMO.glob("points/*/requests.parquet"))[0]
    pq.write_table(pq.read_table(shard).slice(1), shard)
    outcome = demo("analyze", "experiment=demo", "analyze.n_boot=500")
    assert outcome.code == 2
    assert "39 requests, its manifest has 40; run kvx.run again" in outcome.err
    assert demo("run", *SMALL).code == 0
    assert demo("score", *SMALL).code == 0
    assert demo("analyze", *SMALL).code == 0


def test_scores_can_be_redone_with_other_metrics_without_a_model(demo: Kvx) -> None:
    shards = {p: p.stat().st_mtime_ns for p in DEMO.glob("points/*/requests.parquet")}
    assert demo("score", *SMALL, "score.metrics=[string_match_all]").code == 0
    assert set(points("scores")["metric"]) == {"string_match_all"}
    assert {p: p.stat().st_mtime_ns for p in DEMO.glob("points/*/requests.parquet")} == shards


def test_a_baseline_at_the_floor_is_called_out(kvx: Kvx) -> None:
    """With one token no answer is complete: the full cache fails too, and the report says so."""
    assert kvx("all", *SMALL, "decoding.max_new_tokens=1").code == 0
    text = (DEMO / "details.md").read_text()
    assert "**Full cache at the floor.** tiny_recall with the full cache scores below 0.2" in text
    assert "**Full cache at the token cap.**" in text


def test_a_press_without_its_own_full_cache_is_compared_with_none(kvx: Kvx) -> None:
    sweep = ("-m", "press=none,knorm", "budget=1.0,0.2", "dataset.sampling.n_per_bin=4")
    assert kvx("all", *sweep).code == 0
    assert kvx("all", "-m", "press=keydiff", "budget=0.2", "dataset.sampling.n_per_bin=4").code == 0
    folder = Path("outputs/runs/default")
    compared = pq.read_table(folder / "comparisons.parquet").to_pandas()
    twins = dict(zip(compared["press"], compared["twin_point_id"], strict=True))
    assert twins["keydiff"].startswith("none-1-")
    assert twins["knorm"].startswith("knorm-1-") or twins["knorm"].startswith("none-1-")
    transitions = pq.read_table(folder / "transitions.parquet").to_pandas()
    assert set(transitions["press"]) == {"keydiff", "knorm"}


def test_two_variants_are_reported_apart(kvx: Kvx) -> None:
    sweep = ("-m", "prompt.query_aware=true,false", "press=snapkv", "budget=1.0,0.2")
    assert kvx("all", *sweep, "dataset.sampling.n_per_bin=4").code == 0
    folder = Path("outputs/runs/default")
    compared = pq.read_table(folder / "comparisons.parquet").to_pandas()
    assert compared["variant_id"].nunique() == 2
    assert len(list(folder.glob("plots/*/acc_by_bin.png"))) == 2
    text = (folder / "details.md").read_text()
    assert "the press sees the context and the question" in text
    assert "the press sees the context, not the question" in text


def test_press_parameters_that_differ_make_series_of_their_own(kvx: Kvx) -> None:
    sweep = ("-m", "press=snapkv", "press.method.window_size=16,64", "budget=1.0,0.5,0.2")
    outcome = kvx("all", *sweep, "dataset.sampling.n_per_bin=3")
    assert outcome.code == 0, outcome.err
    folder = Path("outputs/runs/default")
    transitions = pq.read_table(folder / "transitions.parquet").to_pandas()
    assert len(transitions) == 2
    assert any("window_size=16" in press for press in transitions["press"])
    assert "snapkv(" in (folder / "details.md").read_text()


def test_budgets_in_tokens_have_a_curve_of_their_own(kvx: Kvx) -> None:
    few = "dataset.sampling.n_per_bin=3"
    assert kvx("all", "-m", "press=none,snapkv", "budget=1.0,0.5", few).code == 0
    tokens = ("budget=tokens", "budget.tokens=9000,5000,100")
    assert kvx("all", "-m", "press=snapkv", *tokens, few).code == 0
    transitions = pq.read_table("outputs/runs/default/transitions.parquet").to_pandas()
    curves = transitions.set_index("budget_kind")
    assert curves.loc["tokens", "n_budgets"] == 4
    assert curves.loc["tokens", "transition_label"] == "100t"
    assert curves.loc["tokens", "transition_above_label"] == "5000t"
    assert curves.loc["ratio", "n_budgets"] == 2


def test_a_failed_point_is_named_on_the_report(kvx: Kvx) -> None:
    few = "dataset.sampling.n_per_bin=3"
    target = "press.method._target_=kvpress.KnormPress,tests.test_engine.HalfHeartedPress"
    outcome = kvx("all", "-m", "press=knorm", "budget=1.0,0.5", target, few)
    assert outcome.code == 1
    text = Path("outputs/runs/default/details.md").read_text()
    assert "**Left out.** Point knorm-0.5-" in text
    assert "is in no table: failed: press=knorm was asked to keep" in text


def test_a_report_of_another_analysis_is_refused(demo: Kvx) -> None:
    other = ("analyze.confidence=0.8", "analyze.n_boot=500")
    assert demo("analyze", *SMALL, *other).code == 0
    stale = demo("report", *SMALL)
    assert stale.code == 2
    assert "run kvx.score and kvx.analyze with the same arguments" in stale.err
    assert demo("report", *SMALL, *other).code == 0
    assert "80% interval" in (DEMO / "details.md").read_text()


def test_what_is_deleted_is_made_again(demo: Kvx) -> None:
    (DEMO / "kv_transition.sqlite").unlink()
    (DEMO / "plots" / "acc_by_bin.png").unlink()
    assert demo("analyze", *SMALL).code == 0
    assert (DEMO / "kv_transition.sqlite").exists()
    assert (DEMO / "plots" / "acc_by_bin.png").exists()


def test_one_example_per_bin_says_that_it_cannot_say(kvx: Kvx) -> None:
    one = ("experiment=demo", "dataset.sampling.n_per_bin=1")
    assert kvx("all", *one).code == 0
    text = (DEMO / "details.md").read_text()
    assert "too few examples (n = 5) for a verdict on exact match" in text
    assert "too few examples (n = 5) to say whether or where it breaks" in text
    assert "nan" not in text
