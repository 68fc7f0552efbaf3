"""The plot of controllers: what they prevent over what they keep on the device."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from kvx.analyze.figures import MARKERS, STYLE, new_figure, save
from kvx.analyze.looks import COLOURS
from kvx.learning.live_stats import ANY

NAME = "controllers.png"


def shown(stats: pd.DataFrame) -> pd.DataFrame:
    """Of `controller_stats` over all points, controllers [rows] with what they kept (`budget`) and
    prevented (`share`), each with `_low` and `_high`; only those of which both are known.
    """
    if stats.empty:
        return pd.DataFrame()
    own = stats[(stats["group"] == "all") & stats["versus"].isna()].set_index("controller")
    parts = []
    for name, chosen in (
        ("budget", own[own["figure"] == "mean_budget"]),
        ("share", own[(own["figure"] == "prevented") & (own["kind"] == ANY)]),
    ):
        columns = {"value": name, "ci_low": f"{name}_low", "ci_high": f"{name}_high"}
        parts.append(chosen[list(columns)].astype(float).rename(columns=columns))
    return parts[0].join(parts[1], how="inner").dropna(subset=["budget", "share"])


def draw(stats: pd.DataFrame, folder: Path, confidence: float) -> None:
    """Write the plot into `folder` if there is anything to show."""
    frame = shown(stats)
    if len(frame):
        save(trade_off(frame, f"{100 * confidence:g}% CI"), folder / NAME)


def trade_off(frame: pd.DataFrame, percent: str) -> Figure:
    with rc_context(STYLE):
        figure = new_figure(7.4, 4.2)
        axis = figure.subplots()
        for i, (name, row) in enumerate(frame.iterrows()):
            around = {
                axis_name: np.nan_to_num([[row[n] - row[f"{n}_low"]], [row[f"{n}_high"] - row[n]]])
                for axis_name, n in (("xerr", "budget"), ("yerr", "share"))
            }
            again = i >= len(COLOURS)  # the same colours with other markers
            axis.errorbar(
                row["budget"],
                row["share"],
                **around,
                fmt=MARKERS[(i + again) % len(MARKERS)],
                color=COLOURS[i % len(COLOURS)],
                mfc="white" if again else None,
                capsize=3,
                elinewidth=1,
                label=str(name),
            )
        axis.set_ylim(-0.04, 1.04)
        axis.set_xlim(0, 1.04)
        axis.set_xlabel(f"mean device budget ({percent})")
        axis.set_ylabel(f"excess catastrophes prevented ({percent})")
        figure.legend(title="controller", loc="outside right upper")
    return figure
