"""The plots of a report.

Readable in greyscale (markers and dashes) and by colour-blind people (Okabe–Ito colours).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kvx.analyze.columns import ALL_BINS
from kvx.store.files import write_bytes

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
Draw = Callable[[Axes, pd.DataFrame, float, dict[str, Any]], None]


def draw_all(stats: pd.DataFrame, folder: Path, confidence: float) -> list[Path]:
    """Write every plot; each of several variants (model, data, settings) gets its own folder."""
    primary = stats[stats["primary"]]
    variants = list(primary.groupby("variant_id"))
    written = []
    for variant, frame in variants:
        target = folder if len(variants) == 1 else folder / str(variant)
        metric = str(frame["metric"].iloc[0]).replace("_", " ")
        percent = f"{100 * confidence:g}% CI"
        figures = {
            "acc_by_bin": by_bin(
                frame, f"{metric} (mean, {percent})", _interval("mean", "ci_low", "ci_high")
            ),
            "fail_by_bin": by_bin(
                frame, f"failure rate ({percent})",
                _interval("failure_rate", "failure_ci_low", "failure_ci_high"),
            ),
            "acc_by_budget": by_budget(frame, f"{metric} (mean over all bins, {percent})"),
        }  # fmt: skip
        measured = frame[frame["n_latency"] > 0]
        if len(measured):
            figures["latency_p50_by_bin"] = by_bin(
                measured, "latency in s (median; whisker: p95)",
                _interval("latency_p50_s", "latency_p50_s", "latency_p95_s"), unit_interval=False,
            )  # fmt: skip
        for name, figure in figures.items():
            written.append(_save(figure, target / f"{name}.png"))
    return written


def expected(folder: Path, variants: set[str]) -> list[Path]:
    """The plots that every experiment has."""
    folders = [folder] if len(variants) == 1 else [folder / v for v in sorted(variants)]
    return [f / f"{n}.png" for f in folders for n in ("acc_by_bin", "fail_by_bin", "acc_by_budget")]


def series_label(row: pd.Series, varied: Sequence[str]) -> str:
    """Press, and controller and seed where the experiment varies them."""
    return " ".join([str(row["press"]), *(f"{name}={row[name]}" for name in varied)])


def by_bin(frame: pd.DataFrame, label: str, draw: Draw, unit_interval: bool = True) -> Figure:
    """One panel per press, one line per budget, over the context-length bins."""
    frame = frame[frame["bin"] != ALL_BINS]
    varied = [c for c in ("controller", "seed") if frame[c].nunique() > 1]
    frame = frame.assign(series=[series_label(row, varied) for _, row in frame.iterrows()])
    names = list(dict.fromkeys(frame["series"]))
    ordered = frame.sort_values("budget", ascending=False)
    budgets = list(dict.fromkeys(ordered["budget_label"]))
    styles = {b: i % len(COLOURS) for i, b in enumerate(budgets)}
    bins = frame.drop_duplicates("bin").sort_values("bin")
    with mpl.rc_context(STYLE):
        columns = min(3, len(names))
        lines = -(-len(names) // columns)
        figure, axes = plt.subplots(
            lines,
            columns,
            figsize=(max(5.2, 4.0 * columns), 3.4 * lines),
            sharey=True,
            squeeze=False,
        )
        for axis, name in zip(axes.flat, names, strict=False):
            panel = frame[frame["series"] == name]
            present = [b for b in budgets if (panel["budget_label"] == b).any()]
            for k, budget in enumerate(present):
                shift = (k - (len(present) - 1) / 2) * 0.09
                rows = panel[panel["budget_label"] == budget].sort_values("bin")
                i = styles[budget]
                draw(
                    axis, rows, shift,
                    {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": DASHES[i],
                     "label": str(budget)},
                )  # fmt: skip
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
        handles, labels = _legend(axes)
        if (frame["n_degenerate"] > 0).any():
            handles.append(Line2D([], [], linestyle="", marker="o", mfc="white", mec="black"))
            labels.append("hollow:\ndegenerate")
        figure.legend(handles, labels, title="KV budget", loc="outside right upper")
    return figure


def by_budget(frame: pd.DataFrame, label: str) -> Figure:
    """All bins together: one line per press over the budget, dearest first."""
    frame = frame[frame["bin"] == ALL_BINS]
    varied = [c for c in ("controller", "seed") if frame[c].nunique() > 1]
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.2, 3.8))
        groups = list(frame.groupby(["press", "controller", "seed"], sort=False))
        for i, (_, rows) in enumerate(groups):
            rows = rows.sort_values("budget")
            k = i % len(COLOURS)
            x = rows["budget"] * (1 + 0.012 * (i - (len(groups) - 1) / 2))
            style: dict[str, Any] = {
                "color": COLOURS[k],
                "marker": MARKERS[k],
                "linestyle": DASHES[k],
            }
            _hollow(axis, x, rows, "mean", style)
            axis.errorbar(
                x, rows["mean"], yerr=_errors(rows, "mean", "ci_low", "ci_high"), capsize=3,
                label=series_label(rows.iloc[0], varied), **style,
            )  # fmt: skip
        ticks = sorted(frame["budget"].unique())
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{t:.2g}" for t in ticks])
        axis.minorticks_off()
        axis.invert_xaxis()
        axis.set_ylim(-0.04, 1.04)
        axis.set_xlabel("KV budget (fraction of the prompt's entries kept, log scale)")
        axis.set_ylabel(label)
        figure.legend(title="press", loc="outside right upper")
    return figure


def _interval(middle: str, low: str, high: str) -> Draw:
    """Draws a line with error bars from three columns."""

    def draw(axis: Axes, rows: pd.DataFrame, shift: float, style: dict[str, Any]) -> None:
        _hollow(axis, rows["bin"] + shift, rows, middle, style)
        axis.errorbar(
            rows["bin"] + shift,
            rows[middle],
            yerr=_errors(rows, middle, low, high),
            capsize=3,
            **style,
        )

    return draw


def _hollow(
    axis: Axes, x: pd.Series, rows: pd.DataFrame, middle: str, style: dict[str, Any]
) -> None:
    """Degenerate cells get a hollow marker: they are not the press's quality."""
    at = (rows["n_degenerate"] > 0).to_numpy()
    axis.plot(
        x[at], rows.loc[at, middle], linestyle="", marker=style["marker"], zorder=5,
        markerfacecolor="white", markeredgecolor=style["color"], label="_degenerate",
    )  # fmt: skip


def _errors(rows: pd.DataFrame, middle: str, low: str, high: str) -> list[Any]:
    return [
        (rows[middle] - rows[low]).clip(lower=0).to_numpy(dtype=float),
        (rows[high] - rows[middle]).clip(lower=0).to_numpy(dtype=float),
    ]


def _legend(axes: Any) -> tuple[list[Any], list[str]]:
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _save(figure: Figure, path: Path) -> Path:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    plt.close(figure)
    write_bytes(path, buffer.getvalue())
    return path
