"""Controllers beside each other, over all points they followed."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from kvx.analyze.columns import ALL
from kvx.config.numbers import byte_count
from kvx.learning.live_stats import ANY, KINDS
from kvx.report.guard_section import NO_KIND, PREVENTED, counted, of_count, with_interval
from kvx.report.tables import Cells, markdown, number

Figures = dict[tuple[str, str], Any]


def prevented_table(stats: pd.DataFrame, group: str = ALL) -> str:
    """Per controller and kind: the share of excess catastrophes that is gone."""

    def cells(figures: Figures) -> Cells:
        return tuple(of_count(figures["prevented", kind]) for kind in KINDS)

    return _table(stats, group, list(PREVENTED.values()), cells)


def price_table(stats: pd.DataFrame, group: str = ALL) -> str:
    """The costs of each controller in memory, tokens, time and answers."""

    def cells(figures: Figures) -> Cells:
        def of(name: str, form: str = "{:.2f}") -> str:
            return with_interval(figures[name, NO_KIND], form)

        pauses = figures["pause_p50_ms", NO_KIND]
        return (
            of_count(figures["caused", ANY]), of_count(figures["false_interventions", NO_KIND]),
            of_count(figures["false_interventions_sound", NO_KIND]),
            counted(figures["answers_lost", NO_KIND]), counted(figures["answers_won", NO_KIND]),
            of("mean_budget", "{:.3f}"), of("saving_kept"), of("decoded_twice_per_1000", "{:.0f}"),
            byte_count(figures["host_bytes", NO_KIND]["value"]),
            number(pauses["value"], "{:.0f}"),
            number(figures["pause_p99_ms", NO_KIND]["value"], "{:.0f}"),
        )  # fmt: skip

    header = [
        "new ones caused", "false interventions", "of sound responses", "answers lost",
        "answers won", "mean device budget", "KV saving kept", "decoded twice per 1,000",
        "host memory", "pause p50 (ms)", "p99 (ms)",
    ]  # fmt: skip
    return _table(stats, group, header, cells)


def versus_table(stats: pd.DataFrame, controller: str, group: str = ALL) -> str:
    """How `controller` differs from each other one, on the same responses."""
    chosen = stats[(stats["controller"] == controller) & (stats["group"] == group)]
    rows = []
    for other, frame in chosen.dropna(subset="versus").groupby("versus", sort=False):
        figures = _figures(frame)
        rows.append(
            [
                str(other), figures["prevented_difference", ANY]["n"],
                with_interval(figures["prevented_difference", ANY], "{:+.2f}"),
                with_interval(figures["prevented_difference", "looping"], "{:+.2f}"),
                with_interval(figures["mean_budget_difference", NO_KIND], "{:+.3f}"),
                with_interval(figures["dropped_difference", NO_KIND], "{:+.1f}"),
                with_interval(figures["false_interventions_difference", NO_KIND], "{:+.2f}"),
            ]
        )  # fmt: skip
    header = [
        f"{controller} against", "catastrophes", "prevented", "loops prevented",
        "mean device budget", "tokens taken back per response", "false interventions",
    ]  # fmt: skip
    return markdown(header, rows)


def _table(
    stats: pd.DataFrame, group: str, header: Cells, cells: Callable[[Figures], Cells]
) -> str:
    own = stats[stats["versus"].isna() & (stats["group"] == group)]
    rows = []
    for controller, frame in own.groupby("controller", sort=False):
        figures = _figures(frame)
        rows.append([str(controller), figures["interventions", NO_KIND]["n"], *cells(figures)])
    return markdown(["controller", "n", *header], rows)


def _figures(frame: pd.DataFrame) -> Figures:
    named = frame.assign(kind=frame["kind"].fillna(NO_KIND))
    return {(row["figure"], row["kind"]): row for row in named.to_dict("records")}
