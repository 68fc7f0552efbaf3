"""Plots of fidelity: over the budget (KL and agreement), and over the position in the answer."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kvx.analyze import budget_plots, curves
from kvx.analyze.budget_plots import FEW, KINDS, compressed_looks, series
from kvx.analyze.columns import ALL_BINS, is_full
from kvx.analyze.curves import Curve, Interval
from kvx.analyze.figures import STYLE, Drawn, label_ends, new_figure, save

BUDGET_PLOT, POSITION_PLOT = "fidelity_by_budget", "fidelity_by_position"
LEAST_KL = 1e-6  # what a logarithmic axis begins with: below lies rounding
KL: Interval = ("kl_nats", "kl_nats_ci_low", "kl_nats_ci_high")
AGREEMENT: Interval = ("agreement", "agreement_ci_low", "agreement_ci_high")
FIGURES = (
    (KL, "KL(full ‖ compressed)\nnats per token"),
    (AGREEMENT, "same likeliest token\nshare of tokens"),
)


def draw_all(
    stats: pd.DataFrame, folder: Path, confidence: float, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Write the plots of every variant; none for a table without compressed points."""
    found = compressed_looks(stats)
    variants = list(stats.groupby("variant_id"))
    written = []
    for variant, frame in variants:
        if is_full(frame).all():
            continue
        target = folder if len(variants) == 1 else folder / str(variant)
        percent = f"{100 * confidence:g}% CI"
        figures = {
            BUDGET_PLOT: by_budget(frame, percent, found),
            POSITION_PLOT: by_position(frame, percent, found),
        }
        for name, figure in figures.items():
            written += save(figure, target / f"{name}.png", formats)
    return written


def whole(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows over all tokens of the answers."""
    found: pd.DataFrame = frame[(frame["position_low"] == 1) & frame["position_high"].isna()]
    return found


def by_budget(frame: pd.DataFrame, percent: str, found: dict[str, Drawn]) -> Figure:
    """KL (logarithmic) and agreement over the budget: lines, or a row per press where many."""
    rows = whole(frame[frame["bin"] == ALL_BINS])
    rows = rows.assign(series=series(rows)).sort_values("budget", ascending=False, kind="stable")
    rows = rows[~is_full(rows)]
    kinds = [kind for kind in KINDS if (rows["budget_kind"] == kind).any()]
    with mpl.rc_context(STYLE):
        if rows["series"].nunique() > FEW:
            return _row_per_press(rows, percent)
        figure = new_figure(10.8, 3.8 * len(kinds))
        axes = figure.subplots(len(kinds), len(FIGURES), squeeze=False)
        for line, kind in zip(axes, kinds, strict=True):
            for axis, (interval, label) in zip(line, FIGURES, strict=True):
                _over_budget(axis, rows, kind, found, interval)
                axis.set_xlabel(f"KV budget ({KINDS[kind]}, log scale)")
                axis.set_ylabel(f"{label} ({percent})")
        budget_plots.explain(figure, rows)
    return figure


def _over_budget(
    axis: Axes, rows: pd.DataFrame, kind: str, found: dict[str, Drawn], interval: Interval
) -> None:
    own = rows[rows["budget_kind"] == kind]
    _height(axis, own, interval)
    lines, ends = [], []
    names = [name for name in found if (own["series"] == name).any()]
    for place, name in enumerate(names):
        mine, look = own[own["series"] == name], found[name]
        apart = 1 + 0.02 * (place - (len(names) - 1) / 2)
        style = {"color": look.colour, "marker": look.marker, "linestyle": "-"}
        x = budget_plots.at(mine, kind).to_numpy() * apart
        line = Curve(x, _floored(mine, interval), curves.hollow(mine), style)
        lines.append(line)
        ends.append((float(line.y[-1, 0]), name, look.colour))
    curves.draw(axis, lines)
    budget_plots.budget_axis(axis, rows, kind)
    ends = [end for end in ends if np.isfinite(end[0])]
    if axis.get_yscale() == "log":
        _label_log_ends(axis, ends)
    else:
        label_ends(axis, ends, 9, 0.065)


def _floored(rows: pd.DataFrame, interval: Interval) -> np.ndarray:
    y = curves.values(rows, interval)
    return np.maximum(y, LEAST_KL) if interval is KL else y


def _height(axis: Axes, rows: pd.DataFrame, interval: Interval) -> None:
    y = _floored(rows, interval)
    if interval is not KL:
        axis.set_ylim(*curves.height([y], unit=True))
        return
    known = y[np.isfinite(y)]
    axis.set_yscale("log")
    _plain_ticks(axis.yaxis)
    if known.size:
        # an interval that reaches 0 does not decide the scale
        low = max(float(known.min()), float(np.nanmin(y[:, 0])) / 10)
        axis.set_ylim(low / 1.3, float(known.max()) * 1.3)


def _plain_ticks(axis: Axis) -> None:
    """1, 2, 5, 10 in place of powers, of which a short axis has one or none."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _label_log_ends(axis: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """`label_ends` measures heights on a linear axis."""
    low, high = np.log(axis.get_ylim())
    shares = [((np.log(y) - low) / (high - low), name, colour) for y, name, colour in ends]
    beside = axis.inset_axes((0.0, 0.0, 1.0, 1.0))
    beside.set_axis_off()
    beside.set_ylim(0, 1)
    label_ends(beside, shares, 9, 0.065)


def _row_per_press(rows: pd.DataFrame, percent: str) -> Figure:
    """A row per press, the nearest to the full cache on top; a colour per budget."""
    order = rows.sort_values(["budget_kind", "budget"], ascending=[True, False], kind="stable")
    budgets = list(dict.fromkeys(zip(order["budget_kind"], order["budget_asked"], strict=True)))
    shades = mpl.colormaps["viridis"](np.linspace(0.1, 0.85, len(budgets)))
    names = list(rows.groupby("series")["kl_nats"].max().sort_values(ascending=False).index)
    place = {name: at for at, name in enumerate(names)}
    figure = new_figure(10.8, 1.3 + 0.27 * len(names))
    axes = figure.subplots(1, len(FIGURES), sharey=True)
    for axis, (interval, label) in zip(axes, FIGURES, strict=True):
        for number, ((kind, asked), shade) in enumerate(zip(budgets, shades, strict=True)):
            mine = rows[(rows["budget_kind"] == kind) & (rows["budget_asked"] == asked)]
            y = mine["series"].map(place).to_numpy(float)
            y = y + 0.5 * (number - (len(budgets) - 1) / 2) / len(budgets)
            middle, low, high = _floored(mine, interval).T
            axis.hlines(y, low, high, color=shade, linewidth=1.0)
            told = f"{asked:.0f}t" if kind == "tokens" else f"{asked:g}"
            empty = curves.hollow(mine)
            face = [("white" if hollow else mpl.colors.to_hex(shade)) for hollow in empty]
            axis.scatter(middle, y, s=22, color=face, edgecolors=[shade], zorder=3, label=told)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_ylim(-0.7, len(names) - 0.3)
        axis.set_xlabel(f"{label} ({percent})")
        if interval is KL:
            axis.set_xscale("log")
            _plain_ticks(axis.xaxis)
        else:
            axis.set_xlim(-0.02, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    for handle, shade in zip(handles, shades, strict=True):
        handle.set_facecolor([shade])
    figure.legend(handles, labels, loc="outside upper right", fontsize=8, ncols=8, title="budget")
    budget_plots.explain(figure, rows)
    return figure


def by_position(frame: pd.DataFrame, percent: str, found: dict[str, Drawn]) -> Figure:
    """A panel per press: KL over ranges of positions in the answer, a line per budget."""
    rows = frame[(frame["bin"] == ALL_BINS) & ~is_full(frame)]
    rows = rows[~((rows["position_low"] == 1) & rows["position_high"].isna())]
    rows = rows.assign(series=series(rows))
    names = [name for name in found if (rows["series"] == name).any()]
    budgets = rows.drop_duplicates("point_id").sort_values(
        ["budget_kind", "budget"], ascending=[True, False], kind="stable"
    )
    labels = list(dict.fromkeys(budgets["budget_label"]))
    shades = mpl.colormaps["viridis"](np.linspace(0.1, 0.85, len(labels)))
    colour = {told: mpl.colors.to_hex(s) for told, s in zip(labels, shades, strict=True)}
    lows = sorted(set(rows["position_low"]))
    columns = min(len(names), 3 if len(names) <= 6 else 6)
    small = len(names) > 6
    with mpl.rc_context(STYLE):
        wide, tall = (2.0, 1.9) if small else (3.7, 3.0)
        lines = -(-len(names) // columns)
        figure = new_figure(max(5.2, wide * columns), tall * lines + 0.5)
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axis, name in zip(axes.flat, names, strict=False):
            _height(axis, rows, KL)
            own, drawn, ends = rows[rows["series"] == name], [], []
            for _, mine in own.groupby("point_id", sort=False):
                mine = mine.sort_values("position_low")
                told = str(mine["budget_label"].iloc[0])
                style = {"color": colour[told], "marker": "o", "linestyle": "-",
                         "markersize": 3 if small else 5}  # fmt: skip
                x = mine["position_low"].map(lows.index).to_numpy(float)
                y = _floored(mine, KL)
                drawn.append(Curve(x, y, curves.hollow(mine), style))
                ends.append((float(y[-1, 0]), told, colour[told]))
            curves.draw(axis, drawn)
            _label_log_ends(axis, [end for end in ends if np.isfinite(end[0])])
            axis.set_title(name, color=found[name].colour, fontweight="bold", fontsize=9)
            axis.set_xticks(range(len(lows)), [_range(rows, low) for low in lows], fontsize=7)
            axis.tick_params(labelbottom=True)
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        figure.supxlabel("token of the full cache's answer; a line per KV budget", fontsize=10)
        figure.supylabel(f"{FIGURES[0][1]} ({percent})", fontsize=10)
        budget_plots.explain(figure, rows)
    return figure


def _range(rows: pd.DataFrame, low: int) -> str:
    high = rows.loc[rows["position_low"] == low, "position_high"].iloc[0]
    if pd.isna(high):
        return f"{low}–"
    return f"{low}" if high == low else f"{low}–{int(high)}"
