"""The report's live guard: what controllers cost and what they were good for."""

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from kvx.config.numbers import byte_count
from kvx.learning.live_stats import ANY, KINDS
from kvx.report.catastrophe_section import HEADERS
from kvx.report.tables import Cells, number, per_point

NO_KIND = ""
FEW = 20  # catastrophes; a share of fewer is too uncertain
PREVENTED = {kind: f"prevented: {HEADERS.get(kind, 'instant loops')}" for kind in KINDS}
Figures = dict[tuple[str, str], Any]


def device_budgets(stats: pd.DataFrame) -> dict[str, float]:
    """Guarded point → the share of its prompts' entries that was on the device."""
    used = stats[(stats["figure"] == "mean_budget") & stats["value"].notna()]
    return {str(row["point_id"]): float(row["value"]) for row in used.to_dict("records")}


def cost_table(stats: pd.DataFrame) -> str:
    """Per guarded point: interventions, device budget and saving, work done twice, waiting."""

    def cells(figures: Figures) -> Cells:
        def of(name: str, form: str = "{:.2f}") -> str:
            return with_interval(figures[name, NO_KIND], form)

        host = figures["host_bytes", NO_KIND]["value"]
        pauses = figures["pause_p50_ms", NO_KIND]
        return (
            figures["interventions", NO_KIND]["n"], of("interventions"),
            of("mean_budget", "{:.3f}"), of("saving_kept"), of("decoded_twice_per_1000", "{:.1f}"),
            of("recomputed_per_1000", "{:.1f}"), byte_count(host),
            pauses["n"], number(pauses["value"], "{:.1f}"),
            number(figures["pause_p99_ms", NO_KIND]["value"], "{:.1f}"),
        )  # fmt: skip

    header = [
        "n", "had an intervention", "mean device budget", "KV saving kept",
        "decoded twice per 1,000", "recomputed per 1,000", "host memory", "pauses", "p50 (ms)",
        "p99 (ms)",
    ]  # fmt: skip
    return _table(stats, header, cells)


def prevented_table(stats: pd.DataFrame) -> str:
    """Per guarded point and kind: the share of the unguarded point's excess catastrophes that is
    gone.
    """

    def cells(figures: Figures) -> Cells:
        return tuple(of_count(figures["prevented", kind]) for kind in KINDS)

    return _table(stats, list(PREVENTED.values()), cells)


def effect_table(stats: pd.DataFrame) -> str:
    """Per guarded point: excess rates without and with it, caused ones, answers, false alarms."""

    def cells(figures: Figures) -> Cells:
        change = figures["excess_difference", ANY]
        return (
            change["n"] or "–", number(figures["excess_unguarded", ANY]["value"]),
            number(figures["excess", ANY]["value"]), with_interval(change, "{:+.2f}"),
            of_count(figures["caused", ANY]), counted(figures["answers_lost", NO_KIND]),
            counted(figures["answers_won", NO_KIND]),
            with_interval(figures["score_difference", NO_KIND], "{:+.2f}"),
            of_count(figures["false_interventions", NO_KIND]),
        )  # fmt: skip

    header = [
        "pairs", "excess, unguarded", "excess, guarded", "change", "new ones caused",
        "answers lost", "answers won", "score", "false interventions",
    ]  # fmt: skip
    return _table(stats, header, cells)


def notes(stats: pd.DataFrame) -> Iterator[str]:
    """What is missing from the tables, and why."""
    points = stats.drop_duplicates("point_id")
    alone = points.loc[points["unguarded_point_id"].isna(), "point_id"]
    if len(alone):
        yield (
            f"What {', '.join(alone)} prevented is not known: run the same press and budget with "
            "controller=none too."
        )
    seen = stats[stats["figure"] == "interventions"]
    blank = seen.loc[seen["n"] == 0, "point_id"]
    if len(blank):
        yield (
            f"**No response of {', '.join(blank)} says what the controller did**: do not take them "
            "for guarded."
        )
    known = stats[(stats["figure"] == "excess") & (stats["kind"] == ANY)].set_index("point_id")
    paired = points[points["unguarded_point_id"].notna()]
    without = paired.loc[paired["point_id"].map(known["n"]) == 0, "point_id"]
    if len(without):
        yield (
            f"What {', '.join(without)} prevented is not known: run the full cache (budget=1.0) "
            "too, for without it nothing says what compression caused."
        )
    few = stats[(stats["figure"] == "prevented") & (stats["kind"] == ANY)]
    few = few[(few["n"] > 0) & (few["n"] < FEW)]
    if len(few):
        yield (
            f"The fewest excess catastrophes that could be prevented at a point are "
            f"{int(few['n'].min())}: read the intervals, not the shares."
        )


def _table(stats: pd.DataFrame, header: Cells, cells: Callable[[Figures], Cells]) -> str:
    named = stats.assign(kind=stats["kind"].fillna(NO_KIND))
    figures: dict[str, Figures] = {}
    for row in named.to_dict("records"):
        figures.setdefault(row["point_id"], {})[row["figure"], row["kind"]] = row
    points = stats.drop_duplicates("point_id")
    return per_point(points, header, lambda row: cells(figures[row["point_id"]]))


def with_interval(figure: Any, form: str) -> str:
    if not figure["n"]:
        return "–"
    low, high = figure["ci_low"], figure["ci_high"]
    if pd.isna(low) or pd.isna(high):
        return f"{form.format(figure['value'])} [n/a]"
    return f"{form.format(figure['value'])} [{form.format(low)}, {form.format(high)}]"


def counted(figure: Any) -> str:
    return f"{int(figure['count'])}" if figure["n"] else "–"


def of_count(figure: Any) -> str:
    """`0.83 [0.52, 0.98] (10 of 12)`."""
    if not figure["n"]:
        return "–"
    return f"{with_interval(figure, '{:.2f}')} ({int(figure['count'])} of {figure['n']})"
