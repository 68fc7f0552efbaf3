"""The sentences of the report on which points lose at most the margin."""

from typing import Any

import pandas as pd

from kvx.report.equivalence_section import verdicts


def point(press: str, budget: float, holds: bool | None, **fields: Any) -> dict[str, Any]:
    return {
        "variant_id": "v", "variant": "v", "press": press, "controller": "none", "seed": 0,
        "budget_kind": "ratio", "budget_label": f"{budget:g}", "budget_asked": budget,
        "budget": budget, "bin": -1, "margin": 0.2, "holds": holds, "loss_upper": 0.1,
        "n_pairs": 40, "n_for_margin": None, "discordance": 0.16, "point_id": f"{press}-{budget}",
        **fields,
    }  # fmt: skip


def sentences(*points: dict[str, Any], several: bool = False) -> list[str]:
    return list(verdicts(pd.DataFrame(points), 0.95, several))


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
