"""Curves with whiskers, as plots of an experiment draw them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

CAP_POINTS = 5.0  # width of a whisker's ends
Interval = tuple[str, str, str]  # columns: the middle, and where its whisker ends
MEAN: Interval = ("mean", "ci_low", "ci_high")
EXCESS: Interval = ("excess", "excess_ci_low", "excess_ci_high")
MARGIN = 0.04


class Curve(NamedTuple):
    """`x` [n], `y` [n, 3] (middle and the whisker's ends), and which points are `hollow` [n]."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    hollow: NDArray[np.bool_]
    style: dict[str, Any]


def values(frame: pd.DataFrame, interval: Interval) -> NDArray[np.float64]:
    return frame[list(interval)].to_numpy(dtype=float)


def hollow(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are degenerate: they are not the press's quality, and get a hollow marker."""
    return (frame["n_degenerate"] > 0).to_numpy()


def draw(axis: Axes, curves: Sequence[Curve]) -> None:
    """Lines with markers, and the whiskers of all of them as one artist: hundreds would be slow."""
    whiskers, colours = [], []
    for x, y, empty, style in curves:
        axis.plot(x, y[:, 0], **style)
        if empty.any():
            axis.plot(
                x[empty],
                y[empty, 0],
                linestyle="",
                marker=style["marker"],
                markersize=style.get("markersize"),
                zorder=5,
                markerfacecolor="white",
                markeredgecolor=style["color"],
            )
        known = ~np.isnan(y).any(axis=1)
        at, ends = x[known], (y[known].min(axis=1), y[known].max(axis=1))
        whiskers.append(np.stack([np.stack([at, end], 1) for end in ends], 1))
        colours += [style["color"]] * len(at)
    if not colours:
        return
    segments = np.concatenate(whiskers)
    axis.add_collection(LineCollection(list(segments), colors=colours, linewidths=0.9))
    caps = segments.reshape(-1, 2)
    axis.scatter(
        caps[:, 0],
        caps[:, 1],
        marker="_",
        s=CAP_POINTS**2,
        linewidths=0.9,
        c=np.repeat(colours, 2).tolist(),
        zorder=2,
    )


def height(ys: Sequence[NDArray[np.float64]], unit: bool) -> tuple[float, float]:
    """Limits that hold every whisker; those of a share where all values are in [0, 1]."""
    known = np.concatenate([y.ravel() for y in ys]) if ys else np.empty(0)
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if unit and low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    room = MARGIN * (high - low or 1.0)
    return low - room, high + room
