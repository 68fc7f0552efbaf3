"""What a press keeps by its method is what tables, findings, proof and console call its budget.

Labels are for people: no table, finding or probe depends on how a budget is written.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from kvx.analyze.build import TABLES
from kvx.analyze.facts import keeps_another_number
from kvx.config.analyze import AnalyzeConfig
from kvx.config.schema import BudgetConfig, BudgetKind
from kvx.data.example import Example
from kvx.engines.base import BudgetProof
from kvx.engines.openai import proof
from kvx.points import Point, Request, budget_label
from kvx.report import proof_section
from kvx.report.findings import findings
from kvx.report.tables import comparison_table
from kvx.run.planning import plan
from kvx.run.work import answers_work
from kvx.store.layout import Present
from tests.conftest import Kvx
from tests.test_catastrophes import FOLDER, write_experiment
from tests.test_guard_stats import steered, unguarded
from tests.test_openai_parts import openai_config, reply_of
from tests.test_verdicts import row_of

ARGUMENTS = (
    "experiment_name=e", "dataset.source.n_examples=20", "dataset.sampling.n_per_bin=2",
    "dataset.binning.n_bins=2", "analyze.n_boot=200",
)  # fmt: skip


def test_chunkkv_is_told_by_what_it_kept_and_pyramidkv_is_marked(
    kvx: Kvx, capfd: pytest.CaptureFixture[str]
) -> None:
    """At budgets in fractions and in tokens, beside presses that keep what they are asked to."""
    presses = "press=none,chunkkv,pyramidkv,lagkv"
    assert kvx("run", *ARGUMENTS, "-m", presses, "budget=0.4").code == 0
    tokens = ("-m", "press=chunkkv", "budget=tokens", "budget.tokens=90")
    assert kvx("all", *ARGUMENTS, *tokens).code == 0
    folder = Path("outputs/runs/e")
    stats = pq.read_table(folder / "bin_stats.parquet").to_pandas()
    overall = stats[(stats["bin"] == -1) & stats["primary"]].set_index("point_id")
    (ratio,), (number,) = (
        [i for i in overall.index if i.startswith(f"chunkkv-{b}-")] for b in ("0.4", "90t")
    )
    rows = pq.read_table(folder / "points" / ratio / "requests.parquet").to_pandas()
    kept = (rows["kv_entries_effective"] / rows["compressed_tokens"]).mean()
    assert abs(kept - 0.4) > 0.005
    label = f"{kept:.3g} (asked 0.4)"
    assert overall.loc[ratio, "budget_label"] == label
    assert overall.loc[ratio, "budget"] == pytest.approx(kept)
    off = (rows["kv_entries_effective"] - rows["kv_entries_nominal"]).abs()
    assert ((rows["budget_proof"] == "by_method") == (off > 1)).all()
    assert rows["budget_verified"].all()
    rows = pq.read_table(folder / "points" / number / "requests.parquet").to_pandas()
    told = f"{rows['kv_entries_effective'].mean():.0f}t (asked 90t)"
    assert overall.loc[number, "budget_label"] == told
    others = [i for i in overall.index if not i.startswith(("chunkkv", "none"))]
    assert set(overall.loc[others, "budget_label"]) == {"0.4"}
    report = (folder / "details.md").read_text()
    for text in (f"| chunkkv | {label}", f"**chunkkv at budget {label}**", f"| chunkkv | {told}"):
        assert text in report
    assert "keeps by its method" in report
    assert f"**By their method** {', '.join(sorted([ratio, number]))} keep another" in report
    assert "all layers keep the same number of entries, which is SnapKV" in report
    assert "sinks and the latest" in report
    assert all(overall.loc[others, "n_degenerate"] > 0)
    marked = pd.concat(
        pq.read_table(folder / "points" / i / "requests.parquet").to_pandas() for i in others
    )
    assert set(marked["degenerate_reason"].dropna()) > {
        "all layers keep the same number of entries, which is SnapKV"
    }


def test_rows_of_earlier_versions_are_known_by_their_entries() -> None:
    """They called everything measured that was within the press's tolerance."""
    rows = pd.DataFrame({
        "point_id": ["a", "a", "b", "c"], "budget_verified": [True, True, True, False],
        "budget_proof": ["measured", "measured", "measured", "none"],
        "kv_entries_nominal": [50.0, 50.0, 50.0, np.nan],
        "kv_entries_effective": [60.0, 50.0, 49.5, np.nan],
        "kv_bytes_nominal": [5000, 5000, 5000, np.nan],
        "kv_bytes_effective": [6000, 5000, 4950, np.nan],
    })  # fmt: skip
    assert keeps_another_number(rows).tolist() == [True, False, False, False]
    found = proof_section.proofs(rows)
    assert found["a"] == [BudgetProof.BY_METHOD, BudgetProof.MEASURED]
    assert proof_section.short(found["a"]) == "keeps by its method"
    assert proof_section.short(found["b"]) == "in the cache"
    assert any("By their method** a keep" in line for line in proof_section.sentences(found))


def tables() -> dict[str, pd.DataFrame]:
    """What was analysed, without the columns that hold labels."""
    found = {n: pq.read_table(FOLDER / f"{n}.parquet").to_pandas() for n in TABLES}
    return {
        name: frame.drop(columns=[c for c in frame if "label" in c or c == "group"])
        for name, frame in found.items()
    }


def test_tables_are_the_same_if_all_budgets_print_alike(
    kvx: Kvx, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if each prints as the full cache does."""
    swept = ("budget=1.0,0.5,0.4", "controller=none,reactive")
    write_experiment(unguarded, *swept, guard=steered)
    for stage in ("score", "analyze"):
        assert kvx(stage, "analyze.n_boot=200").code == 0
    named = tables()
    groups = set(pq.read_table(FOLDER / "controller_stats.parquet")["group"].to_pylist())
    assert groups == {"all", "budget=0.4", "budget=0.5"}
    monkeypatch.setattr("kvx.store.catalog.exact", lambda ratio: "1")
    (FOLDER / "bin_stats.parquet").unlink()
    for stage in ("analyze", "report"):
        assert kvx(stage, "analyze.n_boot=200").code == 0
    alike = tables()
    for name, frame in named.items():
        pd.testing.assert_frame_equal(frame, alike[name])
    stats = pq.read_table(FOLDER / "bin_stats.parquet").to_pandas()
    assert set(stats["budget_label"]) == {"1"}
    assert sorted(set(stats["budget_asked"])) == [0.4, 0.5, 1.0]
    report = (FOLDER / "details.md").read_text()
    assert report.count("**knorm at budget 1**:") == 2  # 0.5 and 0.4
    assert report.count("**knorm + reactive at budget 1**") == 2


def test_one_token_is_not_the_full_cache() -> None:
    """Though a label of 1 could mean either."""
    row = row_of([0.0] * 8, [1.0] * 8)
    row["budget_kind"], row["budget_asked"], row["budget_label"] = "tokens", 1.0, "1"
    stats = pd.DataFrame([row]).assign(bin_low_tokens=1, bin_high_tokens=2)
    compared = pd.DataFrame([row])
    told = findings(stats, compared, pd.DataFrame(), {}, AnalyzeConfig())
    assert told[0].startswith("**snapkv at budget 1**: a loss of exact match")
    assert "| snapkv | 1 | exact match | 1.00 | 0.00 |" in comparison_table(compared)
    full = compared.assign(budget_kind="ratio")
    assert comparison_table(full) == "No compressed point has a full cache beside it."
    (nothing,) = findings(stats, full, pd.DataFrame(), {}, AnalyzeConfig())
    assert "nothing can be compared" in nothing


@pytest.mark.parametrize(
    ("high", "low", "found", "asked"),
    [
        # other labels, but the same entries are kept: the same answers show nothing
        (BudgetConfig(), BudgetConfig(kind=BudgetKind.tokens, tokens=10**6), "PROBE_UNCLEAR", 1),
        (BudgetConfig(ratio=0.50001), BudgetConfig(ratio=0.5), "PROBE_UNCLEAR", 1),
        (BudgetConfig(), BudgetConfig(ratio=0.5), "PROBE_SAME", 3),
    ],
)
def test_a_probe_compares_budgets_by_what_they_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    high: BudgetConfig, low: BudgetConfig, found: str, asked: int,
) -> None:  # fmt: skip
    """Of a server that answers every budget alike."""
    monkeypatch.chdir(tmp_path)
    urls = {budget_label(b): f"http://{i}/v1" for i, b in enumerate((high, low))}
    (point,) = plan([openai_config("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1")])
    engine = replace(point.config.engine, endpoints=urls)
    configs = [replace(point.config, engine=engine, budget=budget) for budget in (high, low)]
    work = [
        answers_work(Point(c, point.manifest, point.manifest_dir), Present(set(), set()))
        for c in configs
    ]
    requests = []

    async def ask(request: Request, example: Example) -> proof.Reply:
        requests.append(request)
        return reply_of(-0.5, -0.6)

    finding = asyncio.run(proof.probe(work, ask))
    assert finding.proof is BudgetProof[found]
    assert len(requests) == asked
