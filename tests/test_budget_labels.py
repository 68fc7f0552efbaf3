"""What a press keeps by its method is what tables, findings, proof and console call its budget."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from kvx.analyze.frames import keeps_another_number
from kvx.engines.base import BudgetProof
from kvx.report import proof_section
from tests.conftest import Kvx

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
    report = (folder / "report.md").read_text()
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
    })  # fmt: skip
    assert keeps_another_number(rows).tolist() == [True, False, False, False]
    found = proof_section.proofs(rows)
    assert found["a"] == [BudgetProof.BY_METHOD, BudgetProof.MEASURED]
    assert proof_section.short(found["a"]) == "keeps by its method"
    assert proof_section.short(found["b"]) == "in the cache"
    assert any("By their method** a keep" in line for line in proof_section.sentences(found))
