"""Missing answers count as wrong, and scores that no statistic should be made from are refused."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Kvx

from kvx.scoring.failures import FailureType
from kvx.stats.paired import mcnemar_exact, newcombe_interval
from tests.test_catastrophes import Answer, write_experiment

FOLDER = Path("outputs/runs/default")
METRICS = "dataset.metrics=[exact_match]"
ASKED = {"question": "Where?", "reference": "Paris"}


def answers(wrong: int, late: int, late_full: int = 0) -> Answer:
    """Compressed, the first are wrong and of these the first `late`; the last ones of the full
    cache are late.
    """

    def answer(number: int, budget: float) -> tuple[str, list[int] | None, str]:
        if (budget < 1 and number < late) or (budget == 1 and number >= 40 - late_full):
            return "", None, FailureType.TIMEOUT
        return ("Rome" if budget < 1 and number < wrong else "Paris"), [1, 0], "stop"

    return answer


def analysed(kvx: Kvx, answer: Answer, *arguments: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`comparisons` and `bin_stats` over all bins, and a report beside them."""
    write_experiment(answer, METRICS, *arguments, **ASKED)
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    frames = (
        pq.read_table(FOLDER / f"{n}.parquet").to_pandas() for n in ("comparisons", "bin_stats")
    )
    compared, stats = (frame[frame["bin"] == -1].set_index("budget_label") for frame in frames)
    return compared, stats


def test_wrong_answers_that_become_time_outs_change_no_headline(kvx: Kvx) -> None:
    """They used to turn a loss of 0.40 into one of 0.13."""
    compared, stats = analysed(kvx, answers(wrong=16, late=12))
    row = compared.loc["0.5"]
    assert (row["n_pairs"], row["n_missing"], row["n_missing_full"]) == (40, 12, 0)
    assert row["difference"] == pytest.approx(-16 / 40)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(
        tuple(newcombe_interval(24, 16, 0, 0, 0.95))
    )
    assert row["p"] == row["p_holm"] == pytest.approx(mcnemar_exact(16, 0))
    assert (row["complete_pairs"], row["complete_difference"]) == (28, pytest.approx(-4 / 28))
    assert row["difference_from_failures"] == pytest.approx(-12 / 40)
    mean = stats.loc["0.5"]
    assert (mean["n"], mean["n_missing"], mean["mean"]) == (40, 12, pytest.approx(24 / 40))
    said = " ".join((FOLDER / "details.md").read_text().split("How to read failures")[1].split())
    assert "count as wrong answers in every mean score" in said
    assert mean["complete_mean"] == pytest.approx(24 / 28)
    text = (FOLDER / "details.md").read_text()
    assert "a loss of exact match" in text
    assert "Failed requests could explain 75% of it" in text  # no "at most"
    assert (
        "12 of 40 have no answer and count as wrong; the mean of the others alone is 0.86" in text
    )
    outcome = kvx("certify", "certify.alpha=0.5", "certify.loss=score")
    assert outcome.code == 0, outcome.err
    (page,) = FOLDER.glob("certificates/**/*.md")
    assert ".400" in page.read_text()  # the same 16 of 40


def test_where_the_full_cache_has_no_answer_there_is_nothing_to_lose(kvx: Kvx) -> None:
    compared, stats = analysed(kvx, answers(wrong=0, late=0, late_full=10))
    row = compared.loc["0.5"]
    assert (row["n_pairs"], row["n_missing"], row["n_missing_full"]) == (30, 0, 10)
    assert row["difference"] == 0  # no gain of 10
    assert stats.loc["1", "mean"] == pytest.approx(30 / 40)


@pytest.mark.parametrize(("late", "late_full", "said"), [
    (39, 0, "a loss of exact match against the full cache, 1.00 → 0.00"),
    (0, 39, "too few examples (n = 1) for a verdict on exact match"),
    (39, 39, "too few examples (n = 1) for a verdict on exact match"),
])  # fmt: skip
def test_where_nearly_all_fail_no_number_is_made_up(
    kvx: Kvx, late: int, late_full: int, said: str
) -> None:
    analysed(kvx, answers(wrong=40, late=late, late_full=late_full))
    text = (FOLDER / "details.md").read_text()
    assert said in text
    assert "nan" not in text


Change = Callable[[pd.DataFrame], pd.DataFrame]


def with_score(value: float | None) -> Change:
    def change(scores: pd.DataFrame) -> pd.DataFrame:
        scores.loc[3, "score"] = value
        return scores

    return change


def twice(scores: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([scores, scores.iloc[[3]]], ignore_index=True)


@pytest.mark.parametrize(("change", "row", "said"), [
    (with_score(37.0), 3, "the score 37 of exact_match"),
    (with_score(-0.25), 3, "is not a number from 0 to 1"),
    (with_score(float("inf")), 3, "the score inf of exact_match"),
    (with_score(None), 3, "is not a number, though the request has a response"),
    (twice, 40, "is there twice"),
])  # fmt: skip
def test_a_score_that_cannot_be_is_refused_with_its_file_and_row(
    kvx: Kvx, change: Change, row: int, said: str
) -> None:
    write_experiment(answers(wrong=10, late=0), METRICS, **ASKED)
    assert kvx("score").code == 0
    path = sorted(FOLDER.glob("points/*/scores.parquet"))[0]
    table = pq.read_table(path)
    changed = pa.Table.from_pandas(change(table.to_pandas()), table.schema, preserve_index=False)
    pq.write_table(changed, path)
    outcome = kvx("analyze")
    assert outcome.code == 2
    (line,) = outcome.err.strip().splitlines()
    assert f"scores.parquet: row {row}: " in line
    assert str(path.parent.name) in line
    assert said in line
