"""Controllers over all points they followed, and against each other, on a planted experiment."""

from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from matplotlib import image

from kvx.analyze import plots, tradeoff
from kvx.analyze.controller_stats import FULL, LARGER, STATIC
from kvx.report.controller_tables import prevented_table, price_table, versus_table
from kvx.store import schemas
from tests.conftest import Kvx
from tests.test_catastrophes import FOLDER, write_experiment
from tests.test_guard_stats import GOOD, Answer, steered, unguarded

PRESSES = "press=knorm,streaming"


def answer(number: int, budget: float) -> Answer:
    """Budget 0.75 is half as bad as 0.5."""
    if budget == 0.75 and number % 2:
        return unguarded(number, 1.0)
    return unguarded(number, budget)


@pytest.fixture
def stats(kvx: Kvx) -> pd.DataFrame:
    write_experiment(answer, PRESSES, "controller=none,reactive,always_safe", guard=steered)
    for static in ("press=knorm", "press=streaming"):
        write_experiment(answer, static, "budget=0.75")
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    table = pq.read_table(FOLDER / "controller_stats.parquet")
    assert table.schema.remove_metadata() == schemas.CONTROLLER_STATS
    found: pd.DataFrame = table.to_pandas()
    return found


def one(
    stats: pd.DataFrame, controller: str, figure: str, kind: str | None = None, **of: Any
) -> Any:
    rows = stats[(stats["controller"] == controller) & (stats["figure"] == figure)]
    rows = rows[rows["group"] == of.get("group", "all")]
    rows = rows[rows["versus"].fillna("") == of.get("versus", "")]
    rows = rows[rows["kind"].fillna("") == (kind or "")]
    assert len(rows) == 1, rows
    return rows.iloc[0]


def test_points_are_pooled_and_compared(stats: pd.DataFrame) -> None:
    """Both presses are the same 40 planted responses: twice the counts, the same prompts."""
    found = one(stats, "reactive", "prevented", "any")
    assert (found["count"], found["n"], found["n_clusters"]) == (16, 34, 17)
    assert one(stats, "always_safe", "prevented", "any")["value"] == 1.0
    assert one(stats, "none", "prevented", "any")["count"] == 0
    assert one(stats, "none", "mean_budget")["value"] == pytest.approx(
        0.5, abs=0.03
    )  # whole entries of short prompts
    assert one(stats, FULL, "mean_budget")["value"] == 1.0
    assert one(stats, FULL, "prevented", "any")["value"] == 1.0
    alone = one(stats, "reactive", "prevented", "any", group="press=knorm")
    assert (alone["count"], alone["n"]) == (8, 17)
    # of the 17 planted ones, those with an odd number are gone at the larger budget
    static = one(stats, STATIC, "prevented", "any")
    gone = sum(n % 2 for n in (*range(3, 12), *range(20, 28)))
    assert (static["count"], static["n"]) == (2 * gone, 34)
    assert one(stats, STATIC, "mean_budget")["value"] == pytest.approx(0.75, abs=0.03)


def test_a_controller_at_a_larger_budget_is_compared_at_the_one_that_was_run_without(
    kvx: Kvx, stats: pd.DataFrame
) -> None:
    for budget in ("budget=0.55", "budget=0.95"):  # both used about 0.5: the first is nearest
        write_experiment(answer, "press=knorm", budget, "controller=reactive", guard=steered)
    for stage in ("score", "analyze"):
        assert kvx(stage).code == 0
    after = pq.read_table(FOLDER / "controller_stats.parquet").to_pandas()
    moved = one(after, f"reactive{LARGER}", "prevented", "any")
    assert (moved["count"], moved["n"]) == (8, 17)
    assert one(after, "reactive", "prevented", "any")["n"] == 34  # as without it
    versus = one(after, "always_safe", "prevented_difference", "any", versus=f"reactive{LARGER}")
    assert (versus["n"], versus["value"]) == (17, pytest.approx(1 - 8 / 17))


def test_one_controller_against_another(stats: pd.DataFrame) -> None:
    versus = one(stats, "always_safe", "prevented_difference", "any", versus="reactive")
    assert versus["value"] == pytest.approx(1 - 8 / 17)
    back = one(stats, "reactive", "prevented_difference", "any", versus="always_safe")
    assert back["value"] == pytest.approx(8 / 17 - 1)
    assert back["ci_low"] <= back["value"] <= back["ci_high"]
    used = [one(stats, name, "mean_budget")["value"] for name in ("reactive", "always_safe")]
    budget = one(stats, "reactive", "mean_budget_difference", versus="always_safe")
    assert budget["value"] == pytest.approx(used[0] - used[1])
    assert budget["ci_low"] < budget["value"] < budget["ci_high"]
    dropped = one(stats, "reactive", "dropped_difference", versus="always_safe")
    assert dropped["value"] == pytest.approx(8 * 15 / 40)


def test_sound_responses_are_told_from_those_that_derail_anyway(stats: pd.DataFrame) -> None:
    """0 to 2 loop with the full cache too: an intervention there is false, but not needless."""
    false = one(stats, "reactive", "false_interventions")
    sound = one(stats, "reactive", "false_interventions_sound")
    assert (false["count"], false["n"]) == (10, 46)
    assert (sound["count"], sound["n"]) == (4, 40)


def test_the_plot_shows_what_each_one_prevents_and_keeps(stats: pd.DataFrame) -> None:
    frame = tradeoff.shown(stats)
    assert set(frame.index) == {"none", "reactive", "always_safe", FULL, STATIC}
    assert frame.loc["reactive", "share"] == pytest.approx(16 / 34)
    assert frame.loc[FULL, "budget"] == 1.0
    assert "(plots/controllers.png)" in (FOLDER / "details.md").read_text()
    pixels = image.imread(FOLDER / "plots" / tradeoff.NAME)
    assert pixels.std() > 0.05


def test_curves_are_of_what_has_no_controller_unless_nothing_else_is_compressed() -> None:
    points = pd.DataFrame(
        {
            "controller": ["none", "none", "reactive"], "budget_kind": "ratio",
            "budget_asked": [1.0, 0.5, 0.5],
        }
    )  # fmt: skip
    assert plots.plain(points)["controller"].tolist() == ["none", "none"]
    assert len(plots.plain(points.iloc[[0, 2]])) == 2


def test_the_tables_name_every_controller(stats: pd.DataFrame) -> None:
    report = (FOLDER / "details.md").read_text()
    for table in (prevented_table(stats), price_table(stats)):
        assert table in report
        for name in ("none", "reactive", "always_safe", FULL, STATIC):
            assert f"| {name} | 80 |" in table  # 40 responses of two presses
    assert "| always_safe | 34 |" in versus_table(stats, "reactive")


def test_without_a_controller_there_is_nothing_to_compare(kvx: Kvx) -> None:
    write_experiment(lambda number, budget: GOOD, "press=knorm")
    for stage in ("score", "analyze", "report"):
        assert kvx(stage).code == 0
    assert pq.read_table(FOLDER / "controller_stats.parquet").num_rows == 0
    assert "Controllers, all points together" not in (FOLDER / "details.md").read_text()
    assert not (FOLDER / "plots" / tradeoff.NAME).exists()
