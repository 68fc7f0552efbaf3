"""What live controllers did: counted per point beside the unguarded one, told in reports."""

import json
import shutil
import sqlite3
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvx.guard.events import Guarded
from kvx.learning.live_stats import KINDS, Figure, Pairs, Use, cost_figures, effect_figures, excess
from kvx.learning.ranking import Resampler
from kvx.stats.intervals import clopper_pearson
from kvx.stats.paired import newcombe_interval
from kvx.store import schemas
from tests.conftest import Kvx
from tests.test_catastrophes import FOLDER, LOOP, write_experiment
from tests.test_events import event, without_guard_columns

Answer = tuple[str, list[int] | None, str]
GOOD: Answer = ("Nora met Ivo", [1, 2, 3, 0], "stop")
AT_ONCE: Answer = (LOOP, [5] * 30, "length")
LATE: Answer = (LOOP, [*range(10, 30), *[5] * 20], "length")
FORGETS: Answer = ("Nora, and Ivo", [1, 2, 3, 4, 0], "stop")
SWEEP = ("controller=none,reactive,always_safe",)


def unguarded(number: int, budget: float) -> Answer:
    """0 to 2 loop with the full cache too; compressed 3 to 5 loop at once, 6 to 11 late, 20 to 27
    forget.
    """
    if number < 3:
        return AT_ONCE
    if budget == 1 or number >= 28 or 12 <= number < 20:
        return GOOD
    return AT_ONCE if number < 6 else LATE if number < 12 else FORGETS


def steered(number: int, controller: str) -> tuple[Answer, Guarded]:
    """always_safe answers as the full cache does. reactive cures what loops but 5 and 11, and 20;
    it takes 30 into a loop, and 31 through needless work.
    """
    if controller == "always_safe":
        start = [event(-1, "raise", reason="always_safe", milliseconds=1.0)]
        return unguarded(number, 1.0), Guarded(start, 1.0, 4, 0, 800)
    acted = number < 12 or number in (20, 30, 31)
    events = [event(3, "watch", mode="ALERT", budget_after=0.5, milliseconds=0.0)]
    if acted:
        events.append(event(24, "roll_back", [1] * 8, milliseconds=float(10 + number)))
    answer = unguarded(number, 0.5)
    if number in (3, 4, 6, 7, 8, 9, 10, 20):
        answer = GOOD
    if number == 30:
        answer = LATE
    n = len(answer[1] or [])
    return answer, Guarded(events, 0.75 if acted else 0.5, n + 8 * acted, 5 * acted, 4096)


@pytest.fixture
def analysed(kvx: Kvx) -> Kvx:
    write_experiment(unguarded, *SWEEP, guard=steered)
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    return kvx


def table() -> pd.DataFrame:
    frame: pd.DataFrame = pq.read_table(FOLDER / "guard_stats.parquet").to_pandas()
    return frame


def figures(controller: str) -> dict[tuple[str, str], Any]:
    rows = table()
    mine = rows[rows["controller"] == controller].fillna({"kind": ""}).to_dict("records")
    return {(row["figure"], row["kind"]): row for row in mine}


def counted(row: Any) -> tuple[int, int]:
    return int(row["count"]), int(row["n"])


def test_what_was_prevented_and_what_it_cost_is_counted(analysed: Kvx) -> None:
    schema = pq.read_schema(FOLDER / "guard_stats.parquet").remove_metadata()
    assert schema == schemas.GUARD_STATS
    found = figures("reactive")
    assert {k: counted(found["prevented", k]) for k in KINDS} == {
        "any": (8, 17), "looping": (7, 9), "instant": (2, 3), "non_termination": (7, 9),
        "amnesia": (8, 17),
    }  # fmt: skip
    assert counted(found["caused", "any"]) == (1, 23)
    assert counted(found["excess_unguarded", "any"]) == (17, 40)
    assert counted(found["excess", "any"]) == (10, 40)
    change = found["excess_difference", "any"]
    expected = newcombe_interval(9, 8, 1, 22, 0.95)
    assert change["value"] == pytest.approx(-7 / 40)
    assert (change["ci_low"], change["ci_high"]) == pytest.approx(tuple(expected))
    assert counted(found["false_interventions", ""]) == (3 + 2, 23)  # 0 to 2 loop either way
    assert counted(found["interventions", ""]) == (15, 40)
    share = clopper_pearson(15, 40, 0.95)
    row = found["interventions", ""]
    assert (row["ci_low"], row["ci_high"], row["ci_method"]) == (*share, "clopper_pearson")
    assert counted(found["answers_won", ""]) == (1, 40)
    assert counted(found["answers_lost", ""]) == (0, 40)

    points = {p.name.rpartition("-")[0]: p for p in FOLDER.glob("points/*")}
    rows = pq.read_table(points["knorm-0.5-reactive"] / "requests.parquet").to_pandas()
    weight = rows["guard_decoded_tokens"] * rows["compressed_tokens"]
    kept = rows["kv_entries_nominal"] / rows["compressed_tokens"]
    budget = (rows["guard_mean_budget"] * weight).sum() / weight.sum()
    saving = ((1 - rows["guard_mean_budget"]) * weight).sum() / ((1 - kept) * weight).sum()
    assert found["mean_budget", ""]["value"] == pytest.approx(budget)
    assert found["mean_budget", ""]["ci_low"] < budget < found["mean_budget", ""]["ci_high"]
    assert found["saving_kept", ""]["value"] == pytest.approx(saving)
    twice = 1000 * 15 * 8 / rows["output_tokens"].sum()
    assert found["decoded_twice_per_1000", ""]["value"] == pytest.approx(twice)
    assert found["host_bytes", ""]["value"] == 4096
    waits = sorted([*(10 + i for i in range(12)), 30, 40, 41])
    assert found["pause_p50_ms", ""]["n"] == 15  # those who watched waited for nothing
    assert found["pause_p50_ms", ""]["value"] == waits[7]
    assert found["pause_p99_ms", ""]["value"] == waits[-1]

    always = figures("always_safe")
    assert counted(always["prevented", "any"]) == (17, 17)
    assert always["mean_budget", ""]["value"] == 1
    assert always["saving_kept", ""]["value"] == 0
    assert pd.isna(always["saving_kept", ""]["ci_low"])  # all resamples agree
    assert counted(always["false_interventions", ""]) == (23, 23)


def test_curves_keep_controllers_apart_and_the_twin_has_none(analysed: Kvx) -> None:
    stats = pq.read_table(FOLDER / "catastrophe_stats.parquet").to_pandas()
    (full,) = (p.name for p in FOLDER.glob("points/knorm-1-*"))
    compressed = stats[(stats["budget_label"] == "0.5") & (stats["bin"] == -1)]
    assert set(compressed["twin_point_id"]) == {full}
    loops = compressed[compressed["kind"] == "looping"].set_index("controller")["rate"]
    assert dict(loops) == {"none": 12 / 40, "reactive": 6 / 40, "always_safe": 3 / 40}
    compared = pq.read_table(FOLDER / "comparisons.parquet").to_pandas()
    assert set(compared["twin_point_id"]) == {full}
    assert len(compared[compared["bin"] == -1]) == 3
    curves = pq.read_table(FOLDER / "transitions.parquet").to_pandas()
    assert list(curves["controller"]) == ["none"]  # the others' budget changes while they answer
    assert set(curves["n_budgets"]) == {2}
    (plain,) = (p.name for p in FOLDER.glob("points/knorm-0.5-????????"))
    assert set(table()["unguarded_point_id"]) == {plain}


def test_the_report_has_a_section_on_the_guard(analysed: Kvx) -> None:
    text = (FOLDER / "details.md").read_text()
    section = text.split("## Guard")[1].split("## Cost")[0]
    low, high = clopper_pearson(8, 17, 0.95)
    assert f"0.47 [{low:.2f}, {high:.2f}] (8 of 17)" in section
    assert "(2 of 3)" in section
    assert "(5 of 23)" in section
    assert "| knorm + reactive | 0.5 |" in section
    assert "4.0 KiB" in section
    assert "it is no saving" in section
    assert "The fewest excess catastrophes" in section
    assert "nan" not in text
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| knorm")]
    assert rows[:4] == ["knorm", "knorm", "knorm + always_safe", "knorm + reactive"]
    assert "**knorm + reactive at budget 0.5**" in text
    with sqlite3.connect(FOLDER / "kv_transition.sqlite") as connection:
        events = pd.read_sql("select * from events", connection)
        asked = pd.read_sql("select * from requests", connection)
        exported = pd.read_sql("select * from guard_stats", connection)
    connection.close()
    assert Counter(events["action"]) == {"watch": 40, "roll_back": 15, "raise": 40}
    assert events["dropped_ids"].iloc[-1] in ("[]", "[1, 1, 1, 1, 1, 1, 1, 1]")
    assert asked["guard_interventions"].sum() == 15 + 40
    assert len(exported) == len(table())
    for stage in ("score", "analyze", "report"):
        assert "nothing to do" in analysed(stage).err


def test_what_a_controller_gives_back_is_in_no_figure_about_memory(analysed: Kvx) -> None:
    goodput = pq.read_table(FOLDER / "goodput.parquet").to_pandas()
    overall = goodput[goodput["bin"] == -1].set_index(["controller", "budget_label"])
    assert overall["correct_per_gib"].isna().to_dict() == {
        ("none", "1"): False, ("none", "0.5"): False, ("reactive", "0.5"): True,
        ("always_safe", "0.5"): True,
    }  # fmt: skip
    doses = pq.read_table(FOLDER / "dose_response.parquet").to_pandas()
    assert set(doses["controller"]) == {"none"}
    lines = (FOLDER / "report.md").read_text().splitlines()
    cells = [[c.strip() for c in line.split("|")] for line in lines if line.startswith("| knorm +")]
    always, reactive = cells
    used = figures("reactive")["mean_budget", ""]["value"]
    assert (always[1], always[3], always[8]) == ("knorm + always_safe", "1.000", "–")
    assert (reactive[1], reactive[3], reactive[8]) == ("knorm + reactive", f"{used:.3f}", "–")


def test_without_a_guard_there_is_no_section(kvx: Kvx) -> None:
    write_experiment(unguarded)
    for stage in ("score", "analyze", "report"):
        assert kvx(stage).code == 0
    assert len(table()) == 0
    assert "## Guard" not in (FOLDER / "details.md").read_text()


def test_what_has_nothing_to_be_compared_with_is_a_dash(kvx: Kvx) -> None:
    write_experiment(unguarded, "controller=reactive", guard=steered)
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    found = figures("reactive")
    assert found["prevented", "any"]["n"] == 0
    assert pd.isna(found["prevented", "any"]["value"])
    assert counted(found["interventions", ""]) == (15, 40)
    text = (FOLDER / "details.md").read_text()
    assert "run the same press and budget with controller=none too" in text
    for point in FOLDER.glob("points/knorm-1-*"):
        shutil.rmtree(point)
    (FOLDER / "sweep.json").unlink()
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    assert "nan" not in (FOLDER / "details.md").read_text()


def test_responses_that_no_controller_touched_are_not_taken_for_guarded(kvx: Kvx) -> None:
    write_experiment(unguarded, "controller=none,reactive")
    for stage in ("score", "analyze", "report"):
        assert kvx(stage).code == 0
    assert figures("reactive")["interventions", ""]["n"] == 0
    assert figures("reactive")["false_interventions", ""]["n"] == 0
    text = (FOLDER / "details.md").read_text()
    assert "**No response of knorm-0.5-reactive-" in text
    assert "nan" not in text


def test_experiments_of_a_kvx_without_a_guard_are_still_analysed(kvx: Kvx) -> None:
    write_experiment(unguarded)
    for point in FOLDER.glob("points/*"):
        without_guard_columns(point / "requests.parquet")
        info = json.loads((point / "point.json").read_text())
        del info["guard"], info["config"]["guard"]
        (point / "point.json").write_text(json.dumps(info))
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    assert "## Guard" not in (FOLDER / "details.md").read_text()
    # one that is new joins them: the same data, the same twin
    write_experiment(unguarded, "controller=reactive", "budget=0.5", guard=steered)
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    assert counted(figures("reactive")["prevented", "any"]) == (8, 17)


def test_settings_that_differ_are_two_curves(kvx: Kvx) -> None:
    write_experiment(unguarded, "controller=none,reactive", guard=steered)
    more = ("controller=reactive", "guard.shadow=none", "guard.stream=restart")
    write_experiment(unguarded, *more, guard=steered)
    write_experiment(unguarded, "controller=reactive", "guard.let_go=false", guard=steered)
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    names = {"reactive", "reactive(shadow=none)", "reactive(let_go=False)"}
    assert set(table()["controller"]) == names
    report = (FOLDER / "details.md").read_text()
    assert "| guard | `as by default`<br>" in report or "<br>`as by default`" in report
    assert "`let_go False`" in report
    stats = pq.read_table(FOLDER / "bin_stats.parquet").to_pandas()
    assert stats["variant"].nunique() == 1
    assert "shadow" not in stats["variant"].iloc[0]


def test_responses_that_share_a_prompt_are_resampled_together(kvx: Kvx) -> None:
    write_experiment(unguarded, *SWEEP, guard=steered, per_cluster=4)
    assert kvx("score").code == 0
    assert kvx("analyze").code == 0
    row = figures("reactive")["interventions", ""]
    assert (row["n"], row["n_clusters"], row["ci_method"]) == (40, 10, "korn_graubard")
    exact = clopper_pearson(15, 40, 0.95)
    assert row["ci_high"] - row["ci_low"] > exact.high - exact.low  # whole prompts were acted on


flags = st.sampled_from([0.0, 1.0, np.nan])


def pairs_of(rows: list[tuple[float, ...]]) -> Pairs:
    columns = np.array(rows, dtype=float).reshape(len(rows), 5).T
    one = dict.fromkeys(KINDS, columns[0])
    other = dict.fromkeys(KINDS, columns[1])
    derailed = np.where(np.isnan(columns[1]), 0.0, columns[1])
    return Pairs(np.arange(len(rows)), columns[2], one, other, derailed, columns[3], columns[4])


def named(found: list[Figure]) -> dict[tuple[str, str | None], Figure]:
    assert len({(f.name, f.kind) for f in found}) == len(found)
    return {(f.name, f.kind): f for f in found}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(flags, flags, st.integers(0, 2), flags, flags), min_size=1, max_size=25))
def test_counts_add_up(rows: list[tuple[float, ...]]) -> None:
    pairs = pairs_of(rows)
    found = named(effect_figures(pairs, Resampler(len(rows), 100, 0.95, 0)))
    known = [(h, t, i) for h, t, i, *_ in rows if h == h and t == t]
    prevented, caused = found["prevented", "any"], found["caused", "any"]
    now, before = found["excess", "any"], found["excess_unguarded", "any"]
    assert now.n == before.n == len(known) == prevented.n + caused.n
    assert (now.count or 0) == (before.count or 0) - (prevented.count or 0) + (caused.count or 0)
    assert (before.count or 0) == prevented.n
    false = found["false_interventions", None]
    assert (false.n, false.count) == (
        sum(t == 0 for _, t, *_ in rows), sum(t == 0 and i > 0 for _, t, i, *_ in rows)
    )  # fmt: skip
    of_sound = found["false_interventions_sound", None]
    assert (of_sound.n, of_sound.count) == (false.n, false.count)  # here every derailing is excess
    for figure in found.values():
        if figure.n:
            low, high = figure.interval
            assert np.isnan(low) or low - 1e-9 <= figure.value <= high + 1e-9
        else:
            assert np.isnan(figure.value)
    # the other way round, what was prevented is what is caused
    turned = Pairs(
        pairs.clusters, pairs.intervened, pairs.there, pairs.here, pairs.derailed,
        pairs.score_there, pairs.score_here,
    )  # fmt: skip
    back = named(effect_figures(turned, Resampler(len(rows), 100, 0.95, 0)))
    assert back["answers_lost", None].count == found["answers_won", None].count
    difference = found["excess_difference", "any"].value, back["excess_difference", "any"].value
    assert np.isnan(difference[0]) or difference[0] == pytest.approx(-difference[1])


def use_of(budget: NDArray[np.float64], **fields: Any) -> Use:
    n = len(budget)
    ones = np.ones(n)
    values: dict[str, Any] = {
        "clusters": np.arange(n), "intervened": np.zeros(n), "mean_budget": budget,
        "nominal_budget": 0.25 * ones, "entries": 100 * ones, "decoded": 10 * ones,
        "output": 10 * ones, "dropped": np.zeros(n), "recomputed": np.zeros(n),
        "host_bytes": 8 * ones, "pause_ms": np.zeros(0), "pause_clusters": np.zeros(0, np.int64),
        **fields,
    }  # fmt: skip
    return Use(**values)


@given(st.lists(st.floats(0.25, 1.0), min_size=2, max_size=20))
def test_all_or_nothing_of_the_saving_is_kept_between_the_budget_and_one(
    budgets: list[float],
) -> None:
    found = named(cost_figures(use_of(np.array(budgets)), Resampler(len(budgets), 100, 0.95, 0)))
    mean, kept = found["mean_budget", None].value, found["saving_kept", None].value
    assert mean == pytest.approx(np.mean(budgets))
    assert kept == pytest.approx((1 - mean) / 0.75)
    assert -1e-9 <= kept <= 1 + 1e-9
    assert found["pause_p99_ms", None].n == 0
    assert np.isnan(found["pause_p99_ms", None].value)


def test_what_was_not_measured_is_left_out() -> None:
    use = use_of(np.array([0.25, np.nan, 1.0]), intervened=np.array([0.0, np.nan, 1.0]))
    found = named(cost_figures(use, Resampler(3, 100, 0.95, 0)))
    assert (found["interventions", None].n, found["interventions", None].count) == (2, 1)
    assert found["mean_budget", None].value == pytest.approx(0.625)
    nothing = named(cost_figures(use_of(np.full(3, np.nan)), Resampler(3, 100, 0.95, 0)))
    assert all(f.n == 0 and np.isnan(f.value) for f in nothing.values())


def test_excess_is_here_and_not_in_the_twin() -> None:
    here, twin = [1, 1, 0, 0, 1, np.nan], [0, 1, 0, 1, np.nan, 0]
    np.testing.assert_array_equal(excess(here, twin), [1, 0, 0, 0, np.nan, np.nan])
