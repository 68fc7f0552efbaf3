"""The plots of a report.

Readable by colour-blind people (Okabe–Ito colours), and with 18 presses: more than a few get a
panel each, with the others in grey. A press looks the same in every plot (`looks`).
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kvx.analyze import budget_plots, curves
from kvx.analyze.budget_plots import PANELS, by_budget, compressed_looks, excess_by_budget, series
from kvx.analyze.columns import ALL_BINS, is_full
from kvx.analyze.curves import EXCESS, MEAN, Curve, Interval
from kvx.analyze.figures import FULL, STYLE, Drawn, label_ends, new_figure, save
from kvx.analyze.naming import metric_title

ALWAYS = ("acc_by_bin", "fail_by_bin", "acc_by_budget")


def draw_all(
    stats: pd.DataFrame,
    catastrophes: pd.DataFrame,
    folder: Path,
    confidence: float,
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Write every plot; each of several variants (model, data, settings) gets its own folder."""
    primary = stats[stats["primary"]]
    variants = list(primary.groupby("variant_id"))
    found = compressed_looks(plain(primary))
    written = []
    for variant, frame in variants:
        target = folder if len(variants) == 1 else folder / str(variant)
        metric = metric_title(str(frame["metric"].iloc[0]))
        percent = f"{100 * confidence:g}% CI"
        measured, frame = frame[frame["n_latency"] > 0], plain(frame)
        figures = {
            "acc_by_bin": by_bin(
                frame, f"{metric} (mean, {percent})", MEAN, found
            ),
            "fail_by_bin": by_bin(
                frame, f"failure rate ({percent})",
                ("failure_rate", "failure_ci_low", "failure_ci_high"), found,
            ),
            "acc_by_budget": by_budget(
                frame, f"{metric} (mean over all bins, {percent})", MEAN, found
            ),
        }  # fmt: skip
        if len(measured):
            figures["latency_p50_by_bin"] = by_bin(
                measured,
                "latency in s (median; whisker: p95)",
                ("latency_p50_s", "latency_p50_s", "latency_p95_s"),
                found,
                unit=False,
            )
        compared = plain(compressed(catastrophes[catastrophes["variant_id"] == variant]))
        if len(compared):
            label = f"excess over the full cache ({percent})"
            figures["excess_by_budget"] = excess_by_budget(compared, label, EXCESS, found)
        for name, figure in figures.items():
            written += save(figure, target / f"{name}.png", formats)
    return written


def expected(folder: Path, variants: set[str], formats: Sequence[str] = ("png",)) -> list[Path]:
    """The plots that every experiment has."""
    folders = [folder] if len(variants) == 1 else [folder / v for v in sorted(variants)]
    return [f / f"{name}.{ending}" for f in folders for name in ALWAYS for ending in formats]


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the points of controllers, whose budget is not what they keep, if other compressed
    ones are left. What controllers do has a plot of its own (`tradeoff`).
    """
    alone = frame[frame["controller"] == "none"]
    return alone if (~is_full(alone)).any() else frame


def compressed(catastrophes: pd.DataFrame) -> pd.DataFrame:
    """The rows about all bins of points with a full cache beside them, of kinds in the plot."""
    shown = catastrophes["kind"].isin(PANELS) & (catastrophes["bin"] == ALL_BINS)
    found: pd.DataFrame = catastrophes[
        shown & (catastrophes["n_pairs"] > 0) & ~is_full(catastrophes)
    ]
    return found


def by_bin(
    frame: pd.DataFrame, label: str, interval: Interval, found: dict[str, Drawn], unit: bool = True
) -> Figure:
    """A panel per press over the context-length bins, a line per budget, dark is dear.

    Panels of presses that were not run with a full cache show the one without a press.
    """
    frame = frame[frame["bin"] != ALL_BINS].sort_values("bin", kind="stable")
    frame = frame.assign(series=series(frame))
    names = sorted(set(frame.loc[~is_full(frame), "series"])) or sorted(set(frame["series"]))
    points = frame.drop_duplicates("point_id").sort_values(
        ["budget_kind", "budget"], ascending=[True, False], kind="stable"
    )
    shared = points[is_full(points) & ~points["series"].isin(names)]["point_id"].tolist()[:1]
    labels = list(dict.fromkeys(points.loc[~is_full(points), "budget_label"]))
    shades = dict(
        zip(labels, mpl.colormaps["viridis"](np.linspace(0.1, 0.85, len(labels))), strict=True)
    )
    hexes = {told: mpl.colors.to_hex(shade) for told, shade in shades.items()}
    bins = frame.drop_duplicates("bin")
    columns = min(len(names), 3 if len(names) <= 6 else 5)
    small = len(names) > 6
    lines = -(-len(names) // columns)
    limits = curves.height([curves.values(frame, interval)], unit)
    with mpl.rc_context(STYLE):
        wide, tall = (2.7, 2.1) if small else (4.2, 3.3)
        figure = new_figure(max(5.2, wide * columns), tall * lines + 0.3)
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axis, name in zip(axes.flat, names, strict=False):
            axis.set_ylim(*limits)
            own = points[points["series"] == name]
            has_full = bool(is_full(own).any())
            order = [*([] if has_full else shared), *own["point_id"]]
            panel, ends = [], []
            for k, point in enumerate(order):
                rows = frame[frame["point_id"] == point]
                told = str(rows["budget_label"].iloc[0])
                full = bool(is_full(rows).any())
                colour, mark = (FULL, ".") if full else (hexes[told], "o")
                shift = (k - (len(order) - 1) / 2) * min(0.09, 0.5 / len(order))
                style = {"color": colour, "marker": mark, "linestyle": "--" if full else "-",
                         "markersize": 3 if small else 5,
                         "linewidth": 1.0 if small else 1.4}  # fmt: skip
                y = curves.values(rows, interval)
                x = rows["bin"].to_numpy(float) + shift
                panel.append(Curve(x, y, curves.hollow(rows), style))
                known = y[np.isfinite(y[:, 0]), 0]
                if known.size:
                    ends.append((float(known[-1]), "full" if full else told, colour))
            curves.draw(axis, panel)
            label_ends(axis, ends, 6.5 if small else 8.5, 0.1 if small else 0.065)
            colour = found[name].colour if name in found else FULL
            axis.set_title(name, color=colour, fontweight="bold", fontsize=9 if small else 11)
            edges = zip(bins["bin_low_tokens"], bins["bin_high_tokens"], strict=True)
            axis.set_xticks(
                bins["bin"], [f"{a}–\n{b}" for a, b in edges], fontsize=7 if small else 9
            )
            axis.tick_params(axis="y", labelsize=7 if small else 9)
            axis.tick_params(labelbottom=True)
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        figure.supxlabel("context length bin (tokens); a line per KV budget", fontsize=10)
        figure.supylabel(label, fontsize=10)
        budget_plots.explain(figure, frame)
    return figure
