"""The Pareto plot: prevented at best against false triggers and against KV kept."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from kvx.analyze.figures import DASHES, MARKERS, STYLE, new_figure, save
from kvx.analyze.looks import COLOURS
from kvx.simulate.page import CONTROLLER, SWEEP

AXES = {
    "false_trigger_rate": "false triggers (share of responses without one)",
    "mean_budget": "mean KV budget (share of prompt entries, over all tokens)",
}
LABEL = "prevented at best (share of excess catastrophes)"
TITLE = "Replayed traces: an upper bound on what each controller prevents"


def pareto(table: pd.DataFrame, path: Path) -> None:
    """Draw sweeps as lines and controllers as points with whiskers; `table` has the group `ALL`.

    A part of a controller (`balanced, forecast alone`) is on a sweep, so it gets no point.
    """
    swept, single = table[table["role"] == SWEEP], table[table["role"] == CONTROLLER]
    single = single[~single["controller"].str.contains(", ")]
    with mpl.rc_context(STYLE):
        figure = new_figure(11.5, 5.0)
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (x, label) in zip(axes, AXES.items(), strict=True):
            _families(axis, swept, x)
            _controllers(axis, single, x, swept["family"].nunique())
            axis.set_xlabel(label)
            axis.set_ylim(-0.04, 1.04)
        figure.suptitle(TITLE)
        axes[0].set_xlim(-0.04, 1.04)
        axes[0].set_ylabel(LABEL)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
        save(figure, path)


def _reach(row: pd.Series, name: str) -> NDArray[np.float64]:
    """The whiskers of a share: down and up to the ends of its interval; 0 without one."""
    away = [[row[name] - row[f"{name}_ci_low"]], [row[f"{name}_ci_high"] - row[name]]]
    return np.asarray(np.clip(np.nan_to_num(away), 0.0, None), float)


def _families(axis: Axes, swept: pd.DataFrame, x: str) -> None:
    for i, (family, rows) in enumerate(swept.groupby("family", sort=False)):
        rows = rows.sort_values(["false_trigger_rate", "mean_budget"])
        axis.plot(
            rows[x],
            rows["prevented"],
            label=f"{family} (thresholds)",
            color=COLOURS[i % len(COLOURS)],
            linestyle=DASHES[i % len(DASHES)],
            linewidth=1.2,
            marker=".",
            markersize=4,
            alpha=0.8,
        )


def _controllers(axis: Axes, single: pd.DataFrame, x: str, first: int) -> None:
    for i, (_, row) in enumerate(single.iterrows()):
        colour = COLOURS[(first + i) % len(COLOURS)]
        axis.errorbar(
            float(row[x]),
            float(row["prevented"]),
            fmt=MARKERS[i % len(MARKERS)],
            color=colour,
            markersize=7,
            linestyle="",
            xerr=_reach(row, x),
            yerr=_reach(row, "prevented"),
            elinewidth=0.7,
            markeredgecolor="black",
            markeredgewidth=0.6,
            zorder=3,
            markerfacecolor=colour if i < len(MARKERS) else "white",
            label=str(row["controller"]),
        )
