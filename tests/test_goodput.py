"""Goodput of answers on disk, and what a plan says of the prompts it would run."""

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from kvx.cli.command import run_stage
from kvx.scoring.failures import FailureType
from kvx.store import schemas
from tests.conftest import Kvx
from tests.test_catastrophes import FOLDER, write_experiment

Answer = tuple[str, list[int] | None, str]
LONG = "Nora met Ivo in the end and then they went home"


def rambling(number: int, budget: float) -> Answer:
    """At half the budget 10 are wrong, 5 are cut, and all that end are three times as long."""
    if budget == 1:
        return "Nora met Ivo", [1, 2, 3, 0], "stop"
    if number < 10:
        return "Nora, and Ivo", [1, 2, 3, 0], "stop"
    return LONG, [1] * 12, "length" if number < 15 else "stop"


def test_goodput_counts_answers_that_are_right_and_ended(kvx: Kvx) -> None:
    write_experiment(rambling)
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    table = pq.read_table(FOLDER / "goodput.parquet")
    assert table.schema.remove_metadata() == schemas.GOODPUT
    frame = table.to_pandas()
    overall = frame[frame["bin"] == -1].set_index("budget_label")
    half, full = overall.loc["0.5"], overall.loc["1"]
    assert full["correct_ended"] == 1
    assert half["correct_ended"] == pytest.approx(25 / 40)
    tokens = 10 * 4 + 30 * 12
    assert half["tokens_per_correct"] == pytest.approx(tokens / 25)
    assert half["inflation"] == pytest.approx(tokens / (40 * 4))
    assert half["inflation_ci_low"] > 1
    assert half["inflation_p_holm"] < 1e-3
    requests = pd.concat(
        pq.read_table(f).to_pandas() for f in FOLDER.glob("points/knorm-0.5-*/requests.parquet")
    )
    gib = requests["kv_bytes_physical"].sum() / 2**30
    assert half["correct_per_gib"] == pytest.approx(25 / gib)
    assert pd.isna(half["correct_per_s"])  # nothing was timed
    assert pd.isna(full["inflation"])
    report = (FOLDER / "details.md").read_text()
    assert "Length of the answers against the full cache: knorm at 0.5 ×2.50" in report


def test_late_answers_make_no_point_cheap(kvx: Kvx) -> None:
    """Of 20 answers that did not come nobody knows the bytes, so none are told per GiB."""

    def late(number: int, budget: float) -> Answer:
        lost = budget < 1 and number % 2
        return ("", None, FailureType.TIMEOUT) if lost else ("Nora met Ivo", [1, 0], "stop")

    write_experiment(late)
    assert kvx("score").code == 0
    assert kvx("analyze").code == 0
    frame = pq.read_table(FOLDER / "goodput.parquet").to_pandas()
    overall = frame[frame["bin"] == -1].set_index("budget_label")
    assert overall.loc["0.5", "correct_ended"] == 0.5
    assert overall["correct_per_gib"].isna().to_dict() == {"1": False, "0.5": True}
    assert overall.loc["0.5", "inflation"] == 1
    assert overall["inflation_ci_low"].isna().all()  # all alike


def planned(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `kvx plan` prints."""
    capfd.readouterr()
    code = run_stage("plan", ["dataset.source.n_examples=200", *arguments])
    out, err = capfd.readouterr()
    assert code == 0, err
    return out


def test_a_plan_says_what_its_prompts_can_find(kvx: Kvx, capfd: pytest.CaptureFixture[str]) -> None:
    swept = ("dataset.sampling.n_per_bin=10", "-m", "press=snapkv", "budget=1.0,0.5")
    shown = planned(capfd, *swept)
    assert "50 prompts; a difference of 18 points if 20% of answers differ is found in 80%" in shown
    assert '"loses at most 2 points" (analyze.margin) needs 1,546 prompts' in shown
    asked = planned(capfd, *swept, "plan.format=json", "analyze.margin=0.05")
    assert "needs 248 prompts" in json.loads(asked)["reach"][1]
    assert "is found in 80%" not in planned(capfd, "press=none")
