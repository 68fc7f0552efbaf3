"""The sentences of the report on which points lose at most the margin."""

from typing import Any

import pandas as pd

from kvx.config.analyze import AnalyzeConfig, Family
from kvx.report import leaders_section
from kvx.report.equivalence_section import equivalence_table, verdicts
from kvx.report.tables import marked


def point(press: str, budget: float, holds: bool | None, **fields: Any) -> dict[str, Any]:
    return {
        "variant_id": "v", "variant": "v", "press": press, "controller": "none", "seed": 0,
        "budget_kind": "ratio", "budget_label": f"{budget:g}", "budget_asked": budget,
        "budget": budget, "bin": -1, "margin": 0.2, "holds": holds, "loss_upper": 0.1,
        "n_pairs": 40, "n_for_margin": None, "discordance": 0.16, "point_id": f"{press}-{budget}",
        "n_degenerate": 0,
        **fields,
    }  # fmt: skip


def sentences(
    *points: dict[str, Any], several: bool = False, family: Family = Family.experiment
) -> list[str]:
    return list(verdicts(pd.DataFrame(points), AnalyzeConfig(family=family), several))


def test_prompts_are_asked_for_only_where_the_margin_is_not_shown() -> None:
    """knorm at 0.5 is shown, though so few prompts would often miss it: tova's 90 are named."""
    first, second = sentences(
        point("knorm", 0.5, True, n_for_margin=47),
        point("tova", 0.5, False, n_for_margin=90),
        point("tova", 0.2, False, n_for_margin=120),
    )
    assert "shown for knorm down to budget 0.5" in first
    assert second == (
        "With 40 prompts tova at budget 0.5 would be shown to be within 20 points in fewer than "
        "80% of runs even if it lost nothing: 90 would do, at the 16% of answers that differ."
    )


def test_seeds_are_one_name() -> None:
    """A budget counts if all seeds hold there; the widest bound of them is told."""
    seeds = [
        point(press, budget, holds, seed=seed, loss_upper=0.05 + seed / 100)
        for press, budget, seed, holds in [
            *(("knorm", 0.5, seed, True) for seed in range(3)),
            *(("knorm", 0.2, seed, seed != 1) for seed in range(3)),
            *(("tova", 0.5, seed, seed != 2) for seed in range(3)),
            *(("random", 0.5, seed, None) for seed in range(3)),
        ]
    ]
    (only,) = sentences(*seeds)
    assert only.split(": ", 1)[1] == (
        "shown for knorm down to budget 0.5 (at most 7.0 points, n = 40); not shown at any budget "
        "for tova; too few independent prompts to say for random."
    )


def test_of_many_names_some_are_told() -> None:
    many = [
        point("knorm", 0.5, False, variant_id=f"v{i}", variant=f"v{i}", seed=seed)
        for i in range(6)
        for seed in range(2)
    ]
    (only,) = sentences(*many, several=True)
    assert only.endswith("for knorm [v0], knorm [v1], knorm [v2], knorm [v3] and 2 more.")


def test_degenerate_points_are_marked() -> None:
    (only,) = sentences(point("knorm", 0.5, True), point("knorm", 0.2, True, n_degenerate=29))
    assert "shown for knorm down to budget 0.2 † (at most" in only


def test_tables_know_what_is_degenerate() -> None:
    points = pd.DataFrame([point("knorm", b, True, loss=0.0, p_holm=0.01, n_missing=0,
                                 detectable=0.1) for b in (0.5, 0.2)])  # fmt: skip
    stats = pd.DataFrame({"point_id": ["knorm-0.2", "knorm-0.5"], "n_degenerate": [29, 0]})
    lines = equivalence_table(marked(points.drop(columns="n_degenerate"), stats)).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["0.5", "0.2 †"]


def test_leaders_that_are_degenerate_are_marked() -> None:
    ranks = [("0.5", "knorm", 1, 1, 3), ("0.5", "tova", 2, 2, 0),
             ("0.2", "knorm", 1, 2, 0), ("0.2", "tova", 1, 2, 4)]  # fmt: skip
    leaders = pd.DataFrame(
        [{"scope": "v", "metric": "m", "budget_by": "fraction", "budget_label": budget,
          "press": press, "rank_low": low, "rank_high": high, "n_degenerate": n,
          "p": None if press == "knorm" else 0.01}
         for budget, press, low, high, n in ranks]
    )  # fmt: skip
    (only,) = leaders_section.verdicts(leaders, False)
    assert "**knorm** leads at budget 0.5 †;" in only
    assert "at budget 0.2 (knorm, tova † may be first)." in only


def test_the_sentence_says_what_holds_together() -> None:
    told = {
        family: sentences(point("knorm", 0.5, True), family=family)[0].split(":")[0]
        for family in Family
    }
    assert told == {
        Family.experiment: "Loses at most 20 points (95%, all points together)",
        Family.variant: "Loses at most 20 points (95%, all points of a variant together)",
        Family.curve: "Loses at most 20 points (95%, all budgets of a press together)",
    }
