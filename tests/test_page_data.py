"""What report.html is given to draw."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from kvx.analyze.budget_plots import series
from kvx.analyze.columns import is_full
from kvx.analyze.looks import looks
from kvx.report.page.tables_shown import catastrophes_shown, points_shown

Asked = tuple[str, str, int, float]


def shown(asked: Iterable[Asked]) -> dict[Asked, dict[str, Any]]:
    """What is drawn of points of these presses, controllers, seeds and budgets."""
    first = stats(asked).assign(full=is_full)
    number = {point: i for i, point in enumerate(first["point_id"])}
    return dict(zip(asked, points_shown(first, ["v"], number, {}), strict=True))


def stats(asked: Iterable[Asked]) -> pd.DataFrame:
    rows = [
        {
            "variant_id": "v", "press": press, "controller": controller, "seed": seed,
            "budget_kind": "ratio", "budget_label": f"{budget}", "budget_asked": budget,
            "budget": budget, "point_id": f"{press}-{budget}-{controller}-{seed}",
        }
        for press, controller, seed, budget in asked
    ]  # fmt: skip
    return pd.DataFrame(rows)


def look(point: dict[str, Any]) -> tuple[int, int, int]:
    return point["colour"], point["marker"], point["dash"]


def test_a_press_looks_as_in_the_plots_with_controllers_and_several_seeds() -> None:
    presses, seeds = ("knorm", "snapkv"), (0, 1)
    asked = [
        (press, controller, seed, budget)
        for press in presses for controller in ("none", "reactive") for seed in seeds
        for budget in (0.5, 0.2)
    ]  # fmt: skip
    found = shown([("none", "none", 0, 1.0), *asked])
    alone = stats([a for a in asked if a[1] == "none"])
    plots = looks(series(alone))
    for one in asked:
        press, _, seed, _ = one
        as_plotted = plots[f"{press} seed={seed}"]
        assert look(found[one]) == (as_plotted.colour, as_plotted.marker, as_plotted.dash)
        assert found[one]["dashed"] == (one[1] == "reactive")
    assert len({look(found[one]) for one in asked}) == 4
    assert look(found["none", "none", 0, 1.0]) == (0, 0, 0)


def test_a_press_that_only_a_controller_ran_has_a_colour_too() -> None:
    asked = [("knorm", "none", 0, 0.5), ("adakv", "reactive", 0, 0.5)]
    found = shown(asked)
    assert look(found[asked[0]]) == (1, 0, 0)
    assert look(found[asked[1]]) == (2, 1, 0)


def test_where_all_points_have_controllers_each_has_a_look_of_its_own() -> None:
    asked = [("knorm", "reactive", 0, 0.5), ("knorm", "always_safe", 0, 0.5)]
    assert len({look(point) for point in shown(asked).values()}) == 2


def test_an_excess_is_bold_by_its_own_corrected_test() -> None:
    p = [0.049, 0.05, None]
    rows = pd.DataFrame({"kind": "looping", "excess": 0.5, "excess_p": 0.001, "excess_p_bh": p})
    found = catastrophes_shown(rows, 0.05)
    assert found["clear"].tolist() == [True, False, False]
    assert found["p"].tolist()[:2] == [0.049, 0.05]
