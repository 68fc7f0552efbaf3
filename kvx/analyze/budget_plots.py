"""Plots over the KV budget: one line per press, or a panel for each where there are many."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kvx.analyze import curves
from kvx.analyze.columns import ALL_BINS, is_full
from kvx.analyze.curves import Curve, Interval
from kvx.analyze.figures import BEHIND, FULL, STYLE, Drawn, drawn, label_ends, new_figure

FEW = 6  # series that share a panel
COLUMNS = 6  # of small panels
CLOSE = 1.15  # ratio of budgets on a log scale below which labels would overlap
KINDS = {"ratio": "fraction of the prompt's entries kept", "tokens": "entries kept"}
PANELS = {
    "looping": "looping",
    "non_termination": "non-termination",
    "amnesia": "instruction amnesia",
    "silent_failure": "silent failure",
}


def series(frame: pd.DataFrame) -> pd.Series:
    """Press, and controller and seed where the experiment varies them, of every row."""
    names = frame["press"].astype(str)
    for name in ("controller", "seed"):
        if frame[name].nunique() > 1:
            names += f" {name}=" + frame[name].astype(str)
    return names


def compressed_looks(frame: pd.DataFrame) -> dict[str, Drawn]:
    """The look of every series that has a compressed point."""
    return drawn(series(frame)[~is_full(frame)])


def by_budget(
    frame: pd.DataFrame, label: str, interval: Interval, found: dict[str, Drawn]
) -> Figure:
    """All bins together over the budget, dearest first; fractions and tokens have their own axes.

    The full cache is a horizontal line, and where a press was run at budget 1.0, its first point.
    """
    frame = frame[frame["bin"] == ALL_BINS].sort_values("budget", ascending=False, kind="stable")
    frame = frame.assign(series=series(frame))
    found = _there(frame, found)
    full, kept = frame[is_full(frame)], frame[~is_full(frame)]
    kinds = [kind for kind in KINDS if (kept["budget_kind"] == kind).any()]
    limits = curves.height([curves.values(frame, interval)], unit=True)
    if len(kept) == 0:
        kinds = ["ratio"]
    with mpl.rc_context(STYLE):
        if len(found) <= FEW:
            figure = new_figure(5.4 * len(kinds) + 0.6, 3.8)
            axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)
            for axis, kind in zip(axes.flat, kinds, strict=True):
                axis.set_ylim(*limits)
                _shared(axis, frame, full, kind, found, interval)
                axis.set_xlabel(f"KV budget ({_what(frame, kind)}, log scale)")
            axes.flat[0].set_ylabel(label)
        else:
            figure = _multiples(frame, full, kinds, found, interval, limits)
            figure.supylabel(label, fontsize=10)
            told = " and ".join(_what(frame, kind) for kind in kinds)
            figure.supxlabel(f"KV budget ({told}, log scale); grey: the others", fontsize=10)
        explain(figure, frame)
    return figure


def _there(frame: pd.DataFrame, found: dict[str, Drawn]) -> dict[str, Drawn]:
    """Of all looks, those of the series that have a compressed point in `frame`."""
    names = set(frame.loc[~is_full(frame), "series"])
    return {name: look for name, look in found.items() if name in names}


def _what(frame: pd.DataFrame, kind: str) -> str:
    raised = (frame["controller"] != "none").any()
    return "before controllers raise it" if raised else KINDS[kind]


def at(rows: pd.DataFrame, kind: str) -> pd.Series:
    return rows["budget" if kind == "ratio" else "budget_asked"].astype(float)


def _curve(
    frame: pd.DataFrame, name: str, kind: str, look: Drawn, interval: Interval, apart: float = 1.0
) -> Curve:
    """A series' budgets of one kind, begun at its own full cache where that was run."""
    own = frame[frame["series"] == name]
    rows = own[(own["budget_kind"] == kind) & ~is_full(own)]
    if kind == "ratio":
        rows = pd.concat([own[is_full(own)], rows])
    style = {"color": look.colour, "marker": look.marker, "linestyle": "-"}
    x = at(rows, kind).to_numpy() * apart
    return Curve(x, curves.values(rows, interval), curves.hollow(rows), style)


def _full(axis: Axes, full: pd.DataFrame, interval: Interval) -> None:
    """The first full cache without a press, else any, as a line across the panel with its band."""
    if not len(full):
        return
    row = full.sort_values("press", key=lambda press: press != "none", kind="stable").iloc[0]
    middle, low, high = pd.to_numeric(row[list(interval)]).to_numpy(dtype=float)
    axis.axhline(middle, color=FULL, linewidth=0.9, linestyle=(0, (6, 3)), zorder=1)
    if np.isfinite([low, high]).all():
        axis.axhspan(low, high, color=FULL, alpha=0.06, linewidth=0, zorder=0)


def _shared(
    axis: Axes, frame: pd.DataFrame, full: pd.DataFrame, kind: str, found: dict[str, Drawn],
    interval: Interval,
) -> None:  # fmt: skip
    _full(axis, full, interval)
    names = [n for n in found if (_curve(frame, n, kind, found[n], interval).x).size]
    lines = [
        _curve(frame, n, kind, found[n], interval, 1 + 0.02 * (i - (len(names) - 1) / 2))
        for i, n in enumerate(names)
    ]
    curves.draw(axis, lines)
    budget_axis(axis, frame, kind)
    ends = [
        (line.y[-1, 0], name, found[name].colour)
        for line, name in zip(lines, names, strict=True)
        if np.isfinite(line.y[-1, 0])
    ]
    if len(full):
        middle = float(full.iloc[0][interval[0]])
        ends.append((middle, "full cache", FULL))
    label_ends(axis, [e for e in ends if np.isfinite(e[0])], 9, 0.065)


def _multiples(
    frame: pd.DataFrame, full: pd.DataFrame, kinds: Sequence[str], found: dict[str, Drawn],
    interval: Interval, limits: tuple[float, float],
) -> Figure:  # fmt: skip
    own = {
        (name, kind): _curve(frame, name, kind, look, interval)
        for kind in kinds
        for name, look in found.items()
    }
    panels = [panel for panel, curve in own.items() if curve.x.size]
    lines = -(-len(panels) // COLUMNS)
    figure = new_figure(2.0 * COLUMNS, 1.9 * lines + 0.5)
    axes = figure.subplots(lines, COLUMNS, sharey=True, squeeze=False)
    for axis, (name, kind) in zip(axes.flat, panels, strict=False):
        axis.set_ylim(*limits)
        for other, other_kind in panels:
            if other_kind == kind and other != name:
                behind = own[other, kind]
                axis.plot(behind.x, behind.y[:, 0], color=BEHIND, linewidth=0.7, zorder=1)
        _full(axis, full, interval)
        curve = own[name, kind]
        curves.draw(axis, [curve._replace(style={**curve.style, "markersize": 4})])
        budget_axis(axis, frame, kind, size=7)
        axis.tick_params(axis="y", labelsize=7)
        more = " (tokens)" if kind == "tokens" and len(kinds) > 1 else ""
        axis.set_title(name + more, color=found[name].colour, fontsize=9, fontweight="bold")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    return figure


def budget_axis(axis: Axes, frame: pd.DataFrame, kind: str, size: float = 9) -> None:
    """Budgets from the dearest to the cheapest, on a log scale; names that stand too close would be
    unreadable, so only the first of them is named.
    """
    rows = frame[(frame["budget_kind"] == kind) & ~is_full(frame)]
    own_full = is_full(frame) & frame["series"].isin(rows["series"])
    ticks = set(at(rows, kind)) | ({1.0} if kind == "ratio" and own_full.any() else set())
    ticks = ticks or {1.0}
    named, last = [], 0.0
    room = CLOSE * (1 if size > 8 else 1.6)
    for tick in sorted(ticks):
        far = tick >= room * last
        named.append(f"{tick:.3g}" if far else "")
        last = tick if far else last
    axis.set_xscale("log")
    axis.set_xticks(sorted(ticks), named, fontsize=size)
    axis.minorticks_off()
    axis.set_xlim(max(ticks) * 1.12, min(ticks) / 1.12)


def explain(figure: Figure, frame: pd.DataFrame) -> None:
    """What a hollow marker means, where there is one."""
    if (frame["n_degenerate"] > 0).any():
        handle = Line2D([], [], linestyle="", marker="o", mfc="white", mec="black", markersize=5)
        told = "hollow: degenerate, the press is not what it is meant to be there"
        figure.legend([handle], [told], loc="outside upper left", fontsize=8)


def excess_by_budget(
    frame: pd.DataFrame, label: str, interval: Interval, found: dict[str, Drawn]
) -> Figure:
    """A panel per kind of catastrophe that was measured: lines, or a heat map of many presses."""
    frame = frame.assign(series=series(frame))
    kinds = [kind for kind in PANELS if (frame["kind"] == kind).any()]
    found = _there(frame, found)
    if len(found) > FEW:
        return _heat_maps(frame, kinds, label, interval[0])
    frame = frame.sort_values("budget", ascending=False, kind="stable")
    scales = [kind for kind in KINDS if (frame["budget_kind"] == kind).any()]
    limits = curves.height([curves.values(frame, interval)], unit=False)
    with mpl.rc_context(STYLE):
        columns = len(scales) if len(scales) > 1 else min(2, len(kinds))
        panels = [(kind, scale) for kind in kinds for scale in scales]
        lines = -(-len(panels) // columns)
        figure = new_figure(5.0 * columns, 3.1 * lines)
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axis, (kind, scale) in zip(axes.flat, panels, strict=False):
            axis.set_ylim(*limits)
            axis.axhline(0, color="black", linewidth=0.8, zorder=1)
            rows = frame[frame["kind"] == kind]
            _shared(axis, rows, rows[:0], scale, found, interval)
            axis.set_title(PANELS[kind])
            axis.set_xlabel(f"KV budget ({KINDS[scale]}, log scale)")
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        figure.supylabel(label, fontsize=10)
        explain(figure, frame)
    return figure


def _heat_maps(frame: pd.DataFrame, kinds: Sequence[str], label: str, value: str) -> Figure:
    names = sorted(set(frame["series"]))
    order = frame.sort_values(["budget_kind", "budget"], ascending=[True, False], kind="stable")
    budgets = list(dict.fromkeys(order["budget_label"]))
    most = float(np.nanmax(np.abs(frame[value].to_numpy(float)), initial=0.0)) or 1.0
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = new_figure(
            1.6 + max(2.4, 0.52 * len(budgets)) * len(kinds), 1.2 + 0.27 * len(names)
        )
        axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)
        for axis, kind in zip(axes.flat, kinds, strict=True):
            rows = frame[frame["kind"] == kind]
            table = rows.pivot_table(index="series", columns="budget_label", values=value)
            cells = table.reindex(index=names, columns=budgets).to_numpy(float)
            image = axis.imshow(cells, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
            for (i, j), cell in np.ndenumerate(cells):
                if np.isfinite(cell):
                    dark = abs(cell) > 0.6 * most
                    axis.text(
                        j, i, f"{cell:+.2f}".replace("0.", "."), ha="center", va="center",
                        fontsize=7, color="white" if dark else "black",
                    )  # fmt: skip
            axis.set_title(PANELS[kind], fontsize=10)
            axis.set_xticks(range(len(budgets)), budgets, rotation=90, fontsize=8)
            axis.set_yticks(range(len(names)), names, fontsize=8)
        figure.supxlabel("KV budget; empty: not measured", fontsize=10)
        figure.colorbar(image, ax=axes.ravel().tolist(), label=label, shrink=0.8)
    return figure
