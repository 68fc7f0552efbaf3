"""Catastrophes beside the full cache: judged per response, counted per point, told in reports."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image

from kvx.cli.command import run_stage
from kvx.config.identity import is_guarded
from kvx.config.schema import Config
from kvx.engines.base import KVUse, Response
from kvx.guard.events import Guarded
from kvx.points import Point, Request
from kvx.run.planning import plan
from kvx.scoring.catastrophes import KINDS, Asked, loop_columns, pair
from kvx.scoring.failures import FailureType
from kvx.scoring.instructions import Instruction
from kvx.scoring.loops import find_loop
from kvx.stats.intervals import clopper_pearson
from kvx.stats.paired import newcombe_interval
from kvx.store import journal, locks, schemas
from kvx.store.point_dir import PointStore
from tests.conftest import Kvx

GOOD, LOOP = "Nora met Ivo in 1790", "no no"
FOLDER = Path("outputs/runs/default")


def response(**fields: Any) -> dict[str, Any]:
    """A row of CATASTROPHES: by default fluent, ended, and right."""
    return {
        "request_id": "p/e", "point_id": "p", "example_id": "e", "cluster": "e", "bin": 0,
        "n_tokens": 30, "unit": "token", "looping": False, "cap_reached": False,
        "loop_onset": None, "loop_rule": None, "loop_period": None, "instruction_kept": None,
        "question_recall": None, "score": None, "failure": None, **fields,
    }  # fmt: skip


def judged(own: dict[str, Any], twin: dict[str, Any]) -> dict[str, Any]:
    """What `pair` says of one response and its twin."""
    rows = pair(pd.DataFrame([response(**own)]), pd.DataFrame([response(**twin)]))
    assert len(rows) == 1
    return {k: None if pd.isna(v) else v for k, v in rows.iloc[0].items()}


def test_a_loop_that_the_twin_does_not_have_is_excess() -> None:
    loop = {"looping": True, "loop_onset": 7, "cap_reached": True, "failure": "TRUNCATED"}
    found = judged(loop, {})
    assert found["looping"]
    assert found["non_termination"]
    assert found["any"]
    assert found["excess_looping"]
    assert found["excess_non_termination"]
    assert found["excess_any"]
    assert found["onset"] == 7
    both = judged(loop, loop)
    assert both["looping"]
    assert both["twin_looping"]
    assert not both["excess_looping"]
    assert not both["excess_any"]
    cured = judged({}, loop)
    assert not cured["looping"]
    assert cured["twin_looping"]
    assert not cured["excess_looping"]
    assert cured["onset"] is None


def test_amnesia_is_an_instruction_that_only_the_twin_kept() -> None:
    kept, broken = {"instruction_kept": True}, {"instruction_kept": False}
    assert judged(broken, kept)["amnesia"]
    assert judged(broken, kept)["any"]
    assert not judged(broken, broken)["amnesia"]
    assert not judged(kept, kept)["amnesia"]
    back = judged(kept, broken)
    assert not back["amnesia"]
    assert back["twin_amnesia"]
    assert not back["excess_amnesia"]
    assert judged({}, kept)["amnesia"] is None  # cut before its end could tell


def test_amnesia_is_also_a_question_whose_names_are_gone() -> None:
    assert judged({"question_recall": 0.0}, {"question_recall": 0.5})["amnesia"]
    assert not judged({"question_recall": 0.2}, {"question_recall": 1.0})["amnesia"]
    assert not judged({"question_recall": 0.0}, {"question_recall": 0.4})["amnesia"]
    assert judged({}, {})["amnesia"] is None
    one = judged({"question_recall": 0.0, "instruction_kept": True},
                 {"question_recall": 0.5, "instruction_kept": True})  # fmt: skip
    assert one["amnesia"]


def test_a_silent_failure_ended_fluently_and_only_the_twin_was_right() -> None:
    right, wrong = {"score": 1.0}, {"score": 0.0}
    assert judged(wrong, right)["silent_failure"]
    assert not judged(wrong, right)["any"]  # it is no catastrophe: nothing shows it
    assert not judged(wrong, wrong)["silent_failure"]
    assert not judged({**wrong, "looping": True}, right)["silent_failure"]
    assert not judged({**wrong, "cap_reached": True, "failure": "TRUNCATED"}, right)[
        "silent_failure"
    ]
    assert not judged({**wrong, "failure": "REFUSAL"}, right)["silent_failure"]
    forgot = judged({**wrong, "instruction_kept": False}, {**right, "instruction_kept": True})
    assert forgot["amnesia"]
    assert not forgot["silent_failure"]
    assert judged({}, right)["silent_failure"] is None


def test_only_examples_that_both_answered_are_paired() -> None:
    own = pd.DataFrame([response(example_id=e) for e in "abc"])
    twin = pd.DataFrame([response(example_id=e, looping=e == "c") for e in "cbx"])
    found = pair(own, twin)
    assert list(found["example_id"]) == ["b", "c"]
    assert list(found["twin_looping"]) == [False, True]
    assert found["looping"].dtype == bool
    assert found["amnesia"].dtype == "boolean"
    assert len(pair(own, twin.iloc[:0])) == 0
    with pytest.raises(pd.errors.MergeError):
        pair(own, pd.concat([twin, twin]))


maybe = st.sampled_from([None, 0.0, 0.3, 0.5, 1.0])
responses = st.fixed_dictionaries(
    {
        "looping": st.booleans(), "cap_reached": st.booleans(),
        "instruction_kept": st.sampled_from([None, True, False]),
        "question_recall": maybe, "score": maybe,
        "failure": st.sampled_from([None, "TRUNCATED"]),
    }
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.tuples(responses, responses), min_size=1, max_size=30))
def test_pairing_is_even_handed(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    one, other = (
        pd.DataFrame([response(example_id=str(i), **r) for i, r in enumerate(side)])
        for side in zip(*pairs, strict=True)
    )
    there, back, alone = pair(one, other), pair(other, one), pair(one, one)
    for kind in KINDS:
        pd.testing.assert_series_equal(there[kind], back[f"twin_{kind}"], check_names=False)
        assert not alone[f"excess_{kind}"].fillna(False).any()
        assert not (there[f"excess_{kind}"] & back[f"excess_{kind}"]).fillna(False).any()
    assert not alone["amnesia"].fillna(False).any()
    assert not alone["silent_failure"].fillna(False).any()
    assert not (there["silent_failure"] & there["any"]).fillna(False).any()


def test_what_is_seen_in_one_response_alone() -> None:
    phrase = Instruction("end_phrase", "That is all.").dumps()
    found = Asked.of("Did Nora meet Ivo in 1790?", [phrase]).seen_in("Nora met Ivo", cut=False)
    assert found["instruction_kept"] is False
    assert found["question_recall"] == pytest.approx(2 / 3)
    cut = Asked.of("Why?", [phrase]).seen_in("Nora met", cut=True)
    assert cut["instruction_kept"] is None
    assert cut["question_recall"] is None
    assert Asked.of("Why?", ["Paris"]).seen_in("Paris", cut=False)["instruction_kept"] is None


def test_words_may_stand_for_tokens() -> None:
    words = ("well then " + "on and " * 12).split()
    by_word = loop_columns(find_loop(words), told=False)
    assert (by_word["looping"], by_word["loop_onset"], by_word["loop_period"]) == (True, 4, 2)
    assert not loop_columns(find_loop(list(range(40))), told=False)["looping"]
    told = loop_columns(None, told=True)
    assert (told["looping"], told["loop_onset"], told["loop_rule"]) == (True, None, "server")


Answer = Callable[[int, float], tuple[str, list[int] | None, str]]
Guard = Callable[[int, str], tuple[tuple[str, list[int] | None, str], Guarded]]


def write_experiment(
    answer: Answer, *arguments: str, per_cluster: int = 1, question: str = "Did Nora meet Ivo?",
    reference: str = Instruction("no_comma").dumps(), guard: Guard | None = None,
    choose: Callable[[Point], Answer] | None = None,
) -> None:  # fmt: skip
    """What a run leaves behind: 40 examples at two budgets, answered as `answer` says.

    `answer` takes the example's number and the budget; it gives text, token ids and finish reason,
    or TIMEOUT for no answer.
    At points with a controller `guard` says what it did and what came of it, from the number and
    the controller's name. With `choose` each point has its own `answer`.
    """
    rows = [
        {"id": f"e{i:02d}", "context": f"word {'w ' * i}", "question": question,
         "answers": [reference], "cluster": f"c{i // per_cluster}"}
        for i in range(40)
    ]  # fmt: skip
    pd.DataFrame(rows).to_json("data.jsonl", orient="records", lines=True)

    def write(configs: list[Config]) -> None:
        points = plan(configs)
        journal.begin(points)
        for point in points:
            with locks.claim([point.dir]) as claim:
                store = PointStore(point)
                store.recover()
                claim.share()
                store.resume("s001of001-drawn")
                store.write(
                    [
                        (respond(Request(point, entry)), datetime(2026, 1, 1, tzinfo=UTC))
                        for entry in point.manifest.entries
                    ]
                )
                store.finish()
                store.close()

    def respond(request: Request) -> Response:
        point, n = request.point, request.entry.compressed_tokens
        number = int(request.entry.example_id[1:])
        steered = None
        if guard is not None and is_guarded(point.config):
            (text, ids, reason), steered = guard(number, point.config.controller.name)
        else:
            own = answer if choose is None else choose(point)
            text, ids, reason = own(number, point.config.budget.ratio)
        if reason == FailureType.TIMEOUT:
            return Response(request, None, error_type=reason, error_message="too late")
        kept = point.kept_tokens(n)
        use = KVUse(kept, kept, kept, *[8 * kept] * 3, 8 * n, 8 * n)
        return Response(
            request, text, ids, output_tokens=len(text.split()), finish_reason=reason, kv=use,
            budget_verified=True, guard=steered,
        )  # fmt: skip

    common = (
        "-m", "press=knorm", "budget=1.0,0.5", "dataset=local", "dataset.source.path=data.jsonl",
        "dataset.binning.n_bins=2", "dataset.sampling.n_per_bin=20",
        "dataset.metrics=[instruction_kept]",
    )  # fmt: skip
    assert run_stage("run", [*common, *arguments], write) == 0


def stats(*index: str) -> pd.DataFrame:
    frame = pq.read_table(FOLDER / "catastrophe_stats.parquet").to_pandas()
    return frame.set_index(list(index)).sort_index() if index else frame


def derail(number: int, budget: float) -> tuple[str, list[int] | None, str]:
    """At half the budget 12 of 40 loop to the cap (3 of them at full budget too) and 8 forget."""
    if number < 3 or (number < 12 and budget < 1):
        return LOOP, [5] * 30, "length"
    if 20 <= number < 28 and budget < 1:
        return "Nora, and Ivo", [1, 2, 3, 4, 0], "stop"
    return "Nora met Ivo", [1, 2, 3, 0], "stop"


def test_rates_and_excess_are_counted_and_told(kvx: Kvx) -> None:
    write_experiment(derail)
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    for file in FOLDER.glob("points/*/catastrophes.parquet"):
        assert pq.read_schema(file).remove_metadata() == schemas.CATASTROPHES
    schema = pq.read_schema(FOLDER / "catastrophe_stats.parquet").remove_metadata()
    assert schema == schemas.CATASTROPHE_STATS

    all_bins = stats("budget_label", "bin", "kind").loc[("0.5", -1)]
    loops = all_bins.loc["looping"]
    assert (loops["n"], loops["n_pairs"], loops["n_clusters"]) == (40, 40, 40)
    assert (loops["rate"], loops["twin_rate"]) == pytest.approx((12 / 40, 3 / 40))
    assert loops["excess"] == pytest.approx(9 / 40)
    assert (loops["n_excess"], loops["n_cured"]) == (9, 0)
    exact, paired = clopper_pearson(12, 40, 0.95), newcombe_interval(3, 0, 9, 28, 0.95)
    assert (loops["ci_low"], loops["ci_high"]) == pytest.approx(tuple(exact))
    assert (loops["excess_ci_low"], loops["excess_ci_high"]) == pytest.approx(tuple(paired))
    assert loops["mcnemar_p"] == pytest.approx(2 * 0.5**9)
    assert all_bins.loc["non_termination", "excess"] == pytest.approx(9 / 40)
    # the looping answers hold no comma, and none of the names that the twin spoke of
    assert all_bins.loc["amnesia", "n_excess"] == 8 + 9
    assert all_bins.loc["silent_failure", "n_excess"] == 0
    assert all_bins.loc["any", "rate"] == pytest.approx(20 / 40)
    assert all_bins.loc["any", "excess"] == pytest.approx(17 / 40)

    by_bin = stats("budget_label", "kind", "bin").loc[("0.5", "looping")]
    assert by_bin.loc[[0, 1], "n_excess"].sum() == 9
    full = stats("budget_label", "bin", "kind").loc[("1", -1)]
    assert full.loc["looping", "rate"] == pytest.approx(3 / 40)
    assert full["twin_point_id"].isna().all()
    assert full["excess"].isna().all()
    assert pd.isna(full.loc["amnesia", "rate"])

    text = (FOLDER / "details.md").read_text()
    assert "## Catastrophes" in text
    cell = f"0.30 [{exact.low:.2f}, {exact.high:.2f}]<br>**+0.23** [{paired.low:+.2f}, "
    assert cell in text
    assert "nan" not in text
    assert "plots/excess_by_budget.png" in text
    pixels = image.imread(FOLDER / "plots" / "excess_by_budget.png")
    assert pixels.shape[0] > 300
    assert pixels[..., :3].std() > 0.05

    with sqlite3.connect(FOLDER / "kv_transition.sqlite") as connection:
        exported = pd.read_sql("select * from catastrophe_stats", connection)
        seen = pd.read_sql("select * from catastrophes", connection)
    connection.close()
    np.testing.assert_allclose(exported["excess"].dropna(), stats()["excess"].dropna())
    assert seen["looping"].sum() == 12 + 3


def test_nothing_is_done_twice_and_what_is_deleted_is_made_again(kvx: Kvx) -> None:
    write_experiment(derail)
    for stage in ("score", "analyze", "report"):
        assert kvx(stage).code == 0
    before = {p: p.stat().st_mtime_ns for p in FOLDER.rglob("*") if p.is_file()}
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0
        assert "nothing to do" in outcome.err
    assert {p: p.stat().st_mtime_ns for p in FOLDER.rglob("*") if p.is_file()} == before
    seen = sorted(FOLDER.glob("points/*/catastrophes.parquet"))
    seen[0].unlink()
    (FOLDER / "catastrophe_stats.parquet").unlink()
    missing = kvx("analyze")
    assert missing.code == 2
    assert "not scored yet; run kvx.score" in missing.err
    for stage in ("score", "analyze", "report"):
        assert kvx(stage).code == 0
    assert seen[0].is_file()
    assert (FOLDER / "catastrophe_stats.parquet").is_file()


def test_responses_that_share_a_cluster_are_resampled_together(kvx: Kvx) -> None:
    write_experiment(derail, per_cluster=4)
    assert kvx("score").code == 0
    assert kvx("analyze").code == 0
    loops = stats("budget_label", "bin", "kind").loc[("0.5", -1, "looping")]
    assert (loops["n"], loops["n_clusters"]) == (40, 10)
    assert (loops["ci_method"], loops["excess_ci_method"]) == (
        "korn_graubard",
        "cluster_t",
    )
    exact = clopper_pearson(12, 40, 0.95)
    assert loops["ci_high"] - loops["ci_low"] > exact.high - exact.low  # whole clusters loop
    assert pd.isna(loops["mcnemar_p"])


def test_what_cannot_be_measured_is_a_dash_not_a_zero(kvx: Kvx) -> None:
    """A server without token ids, and a question that names nothing to forget."""

    def plain(number: int, budget: float) -> tuple[str, list[int] | None, str]:
        return "on and " * 30 if number < 4 and budget < 1 else "Paris", None, "stop"

    metrics = "dataset.metrics=[exact_match]"
    write_experiment(plain, metrics, question="Where?", reference="Paris")
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    all_bins = stats("budget_label", "bin", "kind").loc[("0.5", -1)]
    assert all_bins.loc["looping", "n_excess"] == 4
    assert all_bins.loc["amnesia", "n_pairs"] == 0
    assert pd.isna(all_bins.loc["amnesia", "rate"])
    text = (FOLDER / "details.md").read_text()
    assert "Instruction amnesia was not measured" in text
    assert "loops were looked for among words" in text
    table = text.split("## Catastrophes")[1].split("## Cost")[0]
    (row,) = (line for line in table.splitlines() if line.startswith("| knorm | 0.5"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[5] == "–"
    assert cells[6].startswith("0.00 [")  # silent failures were looked for, and there was none
