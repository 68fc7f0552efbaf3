"""What is said where a guard's forecasts come from the very prompts, or from another LLM."""

import json
from pathlib import Path

import pytest

from kvx.identity import hazard_files
from kvx.identity.hazard_files import prompt_hash
from kvx.learning.caveats import GuardedPoint, caveats
from tests.conftest import Kvx


@pytest.fixture
def hazard_model(tmp_path: Path) -> str:
    """The packaged model, as if it had been made from two other prompts."""
    for name in (hazard_files.MODEL, hazard_files.CARD):
        (tmp_path / name).write_bytes((hazard_files.DEFAULT / name).read_bytes())
    card = json.loads((tmp_path / hazard_files.CARD).read_text())
    card["data"]["prompts"] = [prompt_hash("a"), prompt_hash("b")]
    (tmp_path / hazard_files.CARD).write_text(json.dumps(card))
    return str(tmp_path)


def test_prompts_that_a_model_was_made_from_are_counted(hazard_model: str) -> None:
    points = [
        GuardedPoint("balanced", hazard_model, "smollm2", ("a", "c")),
        GuardedPoint("relax_only", hazard_model, "smollm2", ("a", "d")),
    ]
    (said,) = caveats(points)
    assert "1 of 3 prompts under controller balanced, relax_only" in said
    assert f"dataset.sampling.unseen_by={hazard_model} leaves them out" in said
    assert not list(caveats([GuardedPoint("balanced", hazard_model, "smollm2", ("c",))]))


def test_a_model_of_another_llm_is_named() -> None:
    (said,) = caveats([GuardedPoint("balanced", None, "llama", ("nobody",))])
    assert "made from answers of smollm2, not of llama" in said


def test_a_model_that_is_gone_says_nothing(tmp_path: Path) -> None:
    assert not list(caveats([GuardedPoint("balanced", str(tmp_path / "gone"), "x", ("a",))]))


def test_run_and_report_say_so(kvx: Kvx) -> None:
    sweep = ("-m", "press=knorm", "budget=1.0,0.5", "controller=none,balanced",
             "dataset.sampling.n_per_bin=2", "decoding.max_new_tokens=4")  # fmt: skip
    outcome = kvx("all", *sweep)
    assert outcome.code == 0, outcome.err
    says = "made from answers of smollm2, not of tiny_recall"
    assert outcome.err.count(says) == 1
    report = Path("outputs/runs/default/details.md").read_text()
    assert "**Hazard model.** The forecasts of controller balanced" in report
    assert says in report
