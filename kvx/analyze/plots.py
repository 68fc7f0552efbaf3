"""The plots of a report.

Readable in greyscale (markers and dashes) and by colour-blind people (Okabe–Ito colours).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from kvx.analyze.columns import ALL_BINS, is_full
from kvx.analyze.naming import metric_title
from kvx.store.atomic import write_bytes

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1, 1, 1)),
    (0, (1, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
)
DPI = 150
STYLE: Any = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.3, "legend.frameon": False, "figure.constrained_layout.use": True,
}  # fmt: skip
CLOSE = 1.15  # ratio of budgets on a log scale below which labels would overlap
CAP_POINTS = 6.0  # width of a whisker's ends
Interval = tuple[str, str, str]  # columns: the middle, and where its whisker ends
MEAN: Interval = ("mean", "ci_low", "ci_high")
EXCESS: Interval = ("excess", "excess_ci_low", "excess_ci_high")
# the panels of the plot of catastrophes
PANELS = {
    "looping": "looping",
    "non_termination": "non-termination",
    "amnesia": "instruction amnesia",
    "silent_failure": "silent failure",
}


class Curve(NamedTuple):
    """`x` [n], `y` [n, 3] (middle and the whisker's ends), and which points are `hollow` [n]."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    hollow: NDArray[np.bool_]
    style: dict[str, Any]


def draw_all(
    stats: pd.DataFrame, catastrophes: pd.DataFrame, folder: Path, confidence: float
) -> list[Path]:
    """Write every plot; each of several variants (model, data, settings) gets its own folder."""
    primary = stats[stats["primary"]]
    variants = list(primary.groupby("variant_id"))
    written = []
    for variant, frame in variants:
        target = folder if len(variants) == 1 else folder / str(variant)
        metric = metric_title(str(frame["metric"].iloc[0]))
        percent = f"{100 * confidence:g}% CI"
        measured, frame = frame[frame["n_latency"] > 0], plain(frame)
        figures = {
            "acc_by_bin": by_bin(
                frame, f"{metric} (mean, {percent})", MEAN
            ),
            "fail_by_bin": by_bin(
                frame, f"failure rate ({percent})",
                ("failure_rate", "failure_ci_low", "failure_ci_high"),
            ),
            "acc_by_budget": by_budget(frame, f"{metric} (mean over all bins, {percent})"),
        }  # fmt: skip
        if len(measured):
            figures["latency_p50_by_bin"] = by_bin(
                measured,
                "latency in s (median; whisker: p95)",
                ("latency_p50_s", "latency_p50_s", "latency_p95_s"),
                unit_interval=False,
            )
        compared = plain(compressed(catastrophes[catastrophes["variant_id"] == variant]))
        if len(compared):
            label = f"excess over the full cache ({percent})"
            figures["excess_by_budget"] = excess_by_budget(compared, label)
        for name, figure in figures.items():
            written.append(save(figure, target / f"{name}.png"))
    return written


def expected(folder: Path, variants: set[str]) -> list[Path]:
    """The plots that every experiment has."""
    folders = [folder] if len(variants) == 1 else [folder / v for v in sorted(variants)]
    return [f / f"{n}.png" for f in folders for n in ("acc_by_bin", "fail_by_bin", "acc_by_budget")]


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the points of controllers, whose budget is not what they keep, if other compressed
    ones are left. What controllers do has a plot of its own (`tradeoff`).
    """
    alone = frame[frame["controller"] == "none"]
    return alone if (~is_full(alone)).any() else frame


def series(frame: pd.DataFrame) -> pd.Series:
    """Press, and controller and seed where the experiment varies them, of every row."""
    names = frame["press"].astype(str)
    for name in ("controller", "seed"):
        if frame[name].nunique() > 1:
            names += f" {name}=" + frame[name].astype(str)
    return names


def by_bin(
    frame: pd.DataFrame, label: str, interval: Interval, unit_interval: bool = True
) -> Figure:
    """One panel per press, one line per budget, over the context-length bins."""
    frame = frame[frame["bin"] != ALL_BINS].sort_values("bin", kind="stable")
    cut = frame.groupby("point_id", sort=False).indices
    x, y, hollow = _arrays(frame, "bin", interval)
    names = list(dict.fromkeys(series(frame)))
    points = frame.assign(series=series(frame)).drop_duplicates("point_id")
    points = points.sort_values("budget", ascending=False, kind="stable")
    styles = list(dict.fromkeys(points["budget_label"]))  # a text of the legend has one style
    bins = frame.drop_duplicates("bin")
    with mpl.rc_context(STYLE):
        columns = min(3, len(names))
        lines = -(-len(names) // columns)
        figure = new_figure(max(5.2, 4.0 * columns), 3.4 * lines)
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axis, name in zip(axes.flat, names, strict=False):
            present = points[points["series"] == name]
            panel = []
            for k, (point, told) in enumerate(
                zip(present["point_id"], present["budget_label"], strict=True)
            ):
                shift = (k - (len(present) - 1) / 2) * 0.09
                rows, style = cut[point], _style(styles.index(told), told)
                panel.append(Curve(x[rows] + shift, y[rows], hollow[rows], style))
            _draw(axis, panel)
            axis.set_title(name)
            axis.set_xticks(
                bins["bin"],
                [
                    f"{a}–\n{b}"
                    for a, b in zip(bins["bin_low_tokens"], bins["bin_high_tokens"], strict=True)
                ],
            )
            axis.set_xlabel("context length bin (tokens)")
            if unit_interval:
                axis.set_ylim(-0.04, 1.04)
            else:
                axis.set_ylim(bottom=0)
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for line in axes:
            line[0].set_ylabel(label)
        for axis in axes[1:, 1:].flat:  # as large as those of the first row and column
            axis.xaxis.set_in_layout(False)
            axis.yaxis.set_in_layout(False)
        _legend(figure, axes, frame, "KV budget")
    return figure


def by_budget(frame: pd.DataFrame, label: str) -> Figure:
    """All bins together: one line per press over the budget, dearest first."""
    names = dict.fromkeys(series(frame))
    frame = frame[frame["bin"] == ALL_BINS].sort_values("budget", kind="stable")
    with mpl.rc_context(STYLE):
        figure = new_figure(6.2, 3.8)
        axis = figure.subplots()
        _over_budgets(axis, frame, series(frame), list(names), MEAN)
        axis.set_ylim(-0.04, 1.04)
        what = "fraction of the prompt's entries kept"
        if (frame["controller"] != "none").any():
            what = "before controllers raise it"
        axis.set_xlabel(f"KV budget ({what}, log scale)")
        axis.set_ylabel(label)
        figure.legend(title="press", loc="outside right upper")
    return figure


def compressed(catastrophes: pd.DataFrame) -> pd.DataFrame:
    """The rows about all bins of points with a full cache beside them, of kinds in the plot."""
    shown = catastrophes["kind"].isin(PANELS) & (catastrophes["bin"] == ALL_BINS)
    return catastrophes[shown & (catastrophes["n_pairs"] > 0)]


def excess_by_budget(frame: pd.DataFrame, label: str) -> Figure:
    """One panel per kind of catastrophe that was measured, one line per press over the budget."""
    of_row = series(frame)
    names = list(dict.fromkeys(of_row))
    frame = frame.sort_values("budget", kind="stable")
    kinds = [kind for kind in PANELS if (frame["kind"] == kind).any()]
    with mpl.rc_context(STYLE):
        columns = min(2, len(kinds))
        lines = -(-len(kinds) // columns)
        figure = new_figure(max(6.2, 3.9 * columns + 1.4), 3.2 * lines)
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axis, kind in zip(axes.flat, kinds, strict=False):
            panel = frame[frame["kind"] == kind]
            _over_budgets(axis, panel, of_row[panel.index], names, EXCESS)
            axis.axhline(0, color="black", linewidth=0.8, zorder=1)
            axis.set_title(PANELS[kind])
            axis.set_xlabel("KV budget (log scale)")
        for axis in axes.flat[len(kinds) :]:
            axis.set_visible(False)
        for line in axes:
            line[0].set_ylabel(label)
        _legend(figure, axes, frame, "press")
    return figure


def _over_budgets(
    axis: Axes, frame: pd.DataFrame, of_row: pd.Series, names: list[str], interval: Interval
) -> None:
    """A line per series over the budget, dearest first; lines stand a little apart."""
    x, y, hollow = _arrays(frame, "budget", interval)
    cut = frame.groupby(of_row, sort=False).indices
    curves = []
    for i, name in enumerate(names):
        if name in cut:
            rows, apart = cut[name], 1 + 0.025 * (i - (len(names) - 1) / 2)
            curves.append(Curve(x[rows] * apart, y[rows], hollow[rows], _style(i, name)))
    _draw(axis, curves)
    ticks = sorted(frame["budget"].unique())
    named, last = [], 0.0
    for tick in ticks:  # names that stand too close would be unreadable
        far = tick >= CLOSE * last
        named.append(f"{tick:.3g}" if far else "")
        last = tick if far else last
    axis.set_xscale("log")
    axis.set_xticks(ticks, named)
    axis.minorticks_off()
    axis.set_xlim(ticks[-1] * 1.15, ticks[0] / 1.15)


def _arrays(
    frame: pd.DataFrame, x: str, interval: Interval
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Positions of points and whiskers, and which points are degenerate."""
    y = frame[list(interval)].to_numpy(dtype=float)
    return frame[x].to_numpy(dtype=float), y, (frame["n_degenerate"] > 0).to_numpy()


def _style(number: int, label: object) -> dict[str, Any]:
    i = number % len(COLOURS)
    return {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": DASHES[i], "label": str(label)}


def _draw(axis: Axes, curves: Sequence[Curve]) -> None:
    """Lines with markers, and the whiskers of all of them as one artist: hundreds would be slow.

    Degenerate cells get a hollow marker: they are not the press's quality.
    """
    whiskers, colours = [], []
    for x, y, hollow, style in curves:
        axis.plot(x, y[:, 0], **style)
        if hollow.any():
            axis.plot(
                x[hollow],
                y[hollow, 0],
                linestyle="",
                marker=style["marker"],
                zorder=5,
                markerfacecolor="white",
                markeredgecolor=style["color"],
                label="_degenerate",
            )
        known = ~np.isnan(y).any(axis=1)
        at, ends = x[known], (y[known].min(axis=1), y[known].max(axis=1))
        whiskers.append(np.stack([np.stack([at, end], 1) for end in ends], 1))
        colours += [style["color"]] * len(at)
    segments = np.concatenate(whiskers)
    axis.add_collection(LineCollection(list(segments), colors=colours))
    caps = segments.reshape(-1, 2)
    axis.scatter(
        caps[:, 0],
        caps[:, 1],
        marker="_",
        s=CAP_POINTS**2,
        linewidths=1.0,
        c=np.repeat(colours, 2).tolist(),
        zorder=2,
    )


def _legend(figure: Figure, axes: Any, frame: pd.DataFrame, title: str) -> None:
    """One legend for all panels, with the hollow marker where `frame` has a degenerate cell."""
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if (frame["n_degenerate"] > 0).any():
        hollow = Line2D([], [], linestyle="", marker="o", mfc="white", mec="black")
        found["hollow:\ndegenerate"] = hollow
    figure.legend([*found.values()], [*found], title=title, loc="outside right upper")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that pyplot does not know: its backend is the user's choice."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    import io

    layout = figure.get_layout_engine()
    if layout is not None:  # savefig would draw the whole figure once more just to lay it out
        figure.set_dpi(DPI)
        layout.execute(figure)
        figure.set_layout_engine(None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    write_bytes(path, buffer.getvalue())
    return path
