"""Press against press, who leads and what is harmless: from answers on disk to the report."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvx.analyze.equal_budgets import Measured, same_budget
from kvx.analyze.leaders import budgets
from kvx.points import Point
from kvx.stats.paired import mcnemar_exact
from kvx.store import schemas
from tests.conftest import Kvx
from tests.test_catastrophes import FOLDER, write_experiment

RIGHT, WRONG = "Nora met Ivo", "Nora, and Ivo"
Answer = tuple[str, list[int] | None, str]


def failing(*numbers: range) -> Callable[[int, float], Answer]:
    """Right with the full cache; below it wrong for these examples."""

    def answer(number: int, budget: float) -> Answer:
        wrong = budget < 1 and any(number in some for some in numbers)
        return WRONG if wrong else RIGHT, [1, 2, 3, 0], "stop"

    return answer


def by_press(
    answers: Mapping[str, Callable[[int, float], Answer]],
) -> Callable[[Point], Callable[[int, float], Answer]]:
    return lambda point: answers.get(point.config.press.name, failing())


def tables(kvx: Kvx, *names: str) -> list[pd.DataFrame]:
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    return [pq.read_table(FOLDER / f"{name}.parquet").to_pandas() for name in names]


PRESSES = {
    "knorm": failing(range(20)),
    "tova": failing(range(2)),
    "streaming": failing(range(1, 4)),
}


def test_presses_at_one_budget(kvx: Kvx) -> None:
    write_experiment(failing(), "press=knorm,tova,streaming", choose=by_press(PRESSES))
    pairs, leading, harmless = tables(kvx, "press_pairs", "leaders", "equivalence")
    assert pq.read_schema(FOLDER / "press_pairs.parquet").remove_metadata() == schemas.PRESS_PAIRS
    overall = pairs[pairs["bin"] == -1].set_index(["press_a", "press_b"])
    assert len(overall) == 3  # full caches pair with nothing
    assert set(pairs["budget_by"]) == {"fraction"}
    row = overall.loc[("knorm", "tova")]
    assert (row["n_a_better"], row["n_b_better"]) == (0, 18)
    assert row["difference"] == pytest.approx(-18 / 40)
    assert row["p"] == pytest.approx(mcnemar_exact(18, 0))
    assert row["p_holm"] == pytest.approx(3 * row["p"])
    assert row["n_family"] == 3
    unclear = overall.loc[("streaming", "tova")]
    assert (unclear["n_a_better"], unclear["n_b_better"]) == (1, 2)
    assert unclear["p_holm"] == 1
    assert unclear["p_bh"] == 1
    assert set(pairs[pairs["bin"] != -1]["n_family"]) == {6}
    ranks = leading.set_index("press")
    assert ranks["rank"].to_dict() == {"tova": 1, "streaming": 2, "knorm": 3}
    assert ranks["rank_low"].to_dict() == {"tova": 1, "streaming": 1, "knorm": 3}
    assert ranks["rank_high"].to_dict() == {"tova": 2, "streaming": 2, "knorm": 3}
    assert ranks.loc["streaming", "difference"] == pytest.approx(-1 / 40)
    assert set(ranks["full_mean"]) == {1.0}
    at = harmless[harmless["bin"] == -1].set_index("press")
    assert at["loss"].to_dict() == pytest.approx({"knorm": 0.5, "tova": 0.05, "streaming": 0.075})
    assert not at["holds"].any()
    assert at["n_for_margin"].isna().all()  # each loses more than the margin
    report = (FOLDER / "report.md").read_text()
    assert "no press leads for certain at budget 0.5 (tova, streaming)" in report
    assert "Loses at most 2 points (95%, all budgets together): not shown at any" in report


def test_a_missing_answer_is_wrong(kvx: Kvx) -> None:
    """Time-outs in place of wrong answers flatter nobody."""
    write_experiment(failing(), "press=knorm,tova", choose=by_press({"tova": failing(range(10))}))
    assert kvx("score").code == 0
    (file,) = FOLDER.glob("points/tova-0.5-*/scores.parquet")
    scores = pq.read_table(file)
    lost = scores.column("score").to_pylist()
    late = [None if score == 0 else score for score in lost]
    assert late.count(None) == 10
    place = scores.schema.get_field_index("score")
    pq.write_table(
        scores.set_column(place, scores.schema.field(place), [pa.array(late, pa.float64())]), file
    )
    assert kvx("analyze").code == 0
    pairs = pq.read_table(FOLDER / "press_pairs.parquet").to_pandas()
    row = pairs[pairs["bin"] == -1].iloc[0]
    assert (row["n_pairs"], row["n_missing"], row["n_a_better"]) == (40, 10, 10)
    harmless = pq.read_table(FOLDER / "equivalence.parquet").to_pandas()
    tova = harmless[(harmless["bin"] == -1) & (harmless["press"] == "tova")].iloc[0]
    assert (tova["loss"], tova["n_missing"]) == (pytest.approx(0.25), 10)


def test_questions_on_few_texts_name_no_leader(kvx: Kvx) -> None:
    """40 questions on 4 texts: neither p nor rank, and the report says why."""
    write_experiment(failing(), "press=knorm,tova", choose=by_press(PRESSES), per_cluster=10)
    pairs, leading, harmless = tables(kvx, "press_pairs", "leaders", "equivalence")
    overall = pairs[pairs["bin"] == -1].iloc[0]
    assert (overall["method"], overall["n_clusters"]) == ("too_few_clusters", 4)
    assert pd.isna(overall["p"])
    assert set(leading["rank_high"] - leading["rank_low"]) == {1}
    assert not (harmless["holds"] == True).any()  # noqa: E712
    report = (FOLDER / "report.md").read_text()
    assert "too few independent prompts to rank at budget 0.5" in report


def test_one_press_alone_has_nothing_to_lead(kvx: Kvx) -> None:
    write_experiment(failing(range(40)))
    pairs, leading, harmless = tables(kvx, "press_pairs", "leaders", "equivalence")
    assert len(pairs) == 0
    assert len(leading) == 0
    assert set(harmless["loss"]) == {1.0}  # all failed: a number, and no verdict of harmless
    report = (FOLDER / "report.md").read_text()
    assert "Presses at equal" not in report
    assert "## Press against press" not in report


def point(press: str, share: float, **fields: object) -> Measured:
    own = {
        "point_id": f"{press}-{share}", "press": press, "seed": 0, "kind": "fraction",
        "asked": round(share, 1), "label": f"{share:g}", "share": share,
        "kv_bytes": 1000 * share, "n_degenerate": 0, **fields,
    }  # fmt: skip
    return Measured(**own)  # type: ignore[arg-type]


def test_budgets_are_equal_as_measured() -> None:
    """A press that keeps more than it was asked for is no match for one that does not."""
    points = [point("a", 0.5), point("a", 0.2), point("b", 0.51), point("c", 0.6, asked=0.5)]
    found = {(kind, p.point_id, q.point_id) for kind, p, q in same_budget(points, 0.05)}
    assert found == {("fraction", "a-0.5", "b-0.51")}
    ((kind, label, group),) = budgets(points, 0.05)
    assert (kind, label) == ("fraction", "0.5")
    assert set(group) == {"a", "b"}


def test_close_budgets_pair_with_the_nearest() -> None:
    points = [point("a", 0.50), point("a", 0.49), point("b", 0.497), point("b", 0.488)]
    found = [(p.share, q.share) for _, p, q in same_budget(points, 0.05)]
    assert sorted(found) == [(0.49, 0.488), (0.5, 0.497)]


def test_bytes_pair_what_budgets_do_not() -> None:
    """A press that hides entries holds all bytes: at equal bytes it meets the larger budget."""
    points = [
        point("evicts", 0.5),
        point("evicts", 0.9, asked=0.9),
        point("hides", 0.5, kv_bytes=900.0),
        point("counts", 0.5, kind="tokens", asked=64.0),
    ]
    found = {(kind, p.point_id, q.point_id) for kind, p, q in same_budget(points, 0.05)}
    assert found == {
        ("fraction", "evicts-0.5", "hides-0.5"),
        ("bytes", "evicts-0.9", "hides-0.5"),
        ("bytes", "counts-0.5", "evicts-0.5"),
    }
    groups = {(kind, tuple(sorted(g))) for kind, _, g in budgets(points, 0.05)}
    assert ("bytes", ("evicts", "hides")) in groups


def test_seeds_do_not_pair_across() -> None:
    points = [point("a", 0.5, seed=0), point("b", 0.5, seed=1), point("a", 0.5, seed=1)]
    assert [(p.seed, q.seed) for _, p, q in same_budget(points, 0.05)] == [(1, 1)]


def test_the_report_of_an_older_experiment_is_made_again(kvx: Kvx, tmp_path: Path) -> None:
    """Tables that an older kvx did not write are written."""
    write_experiment(failing(), "press=knorm,tova", choose=by_press(PRESSES))
    tables(kvx, "leaders")
    (FOLDER / "leaders.parquet").unlink()
    assert kvx("analyze").code == 0
    assert (FOLDER / "leaders.parquet").is_file()
