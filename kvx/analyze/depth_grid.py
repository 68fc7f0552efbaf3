"""Needles at chosen depths: the mean score by depth and length, for each press and budget."""

import json
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kvx.analyze.figures import new_figure, save
from kvx.analyze.frames import Experiment
from kvx.data.frozen_examples import examples_file
from kvx.store.catalog import PointRecord

COLUMNS = 4  # panels side by side
PREFIX = "needle_depths"


class Panel(NamedTuple):
    """Mean scores [depth, length] of one press and budget; nan where nothing was asked."""

    title: str
    means: NDArray[np.float64]


class Grid(NamedTuple):
    """A model and task: depths in percent, lengths in tokens, and a panel per press and budget."""

    label: str
    task: str
    depths: list[float]
    lengths: list[int]
    panels: list[Panel]


def grids(experiment: Experiment, output: Path) -> list[Grid]:
    """One per model and task whose source places its needles at `depths`, and has a length."""
    found: dict[tuple[str, str], list[PointRecord]] = defaultdict(list)
    for point in experiment.points:
        if _depths(point) and _length(point) and None not in _depths_of(point.manifest_dir(output)):
            found[point.info["model"], point.info["dataset"]].append(point)
    return [_grid(experiment, output, *key, points) for key, points in found.items()]


def draw(found: list[Grid], folder: Path) -> list[Path]:
    """Write a heat map of each grid."""
    written = []
    for grid in found:
        several = sum(other.task == grid.task for other in found) > 1
        name = f"{PREFIX}_{grid.task}" + (f"_{grid.label.partition(',')[0]}" if several else "")
        written += save(_figure(grid), folder / f"{name.replace('/', '-')}.png")
    return written


def _depths(point: PointRecord) -> list[float]:
    return list(point.info["config"]["dataset"]["source"].get("depths") or [])


def _length(point: PointRecord) -> int | None:
    length: int | None = point.info["config"]["dataset"]["source"].get("length")
    return length


def _grid(
    experiment: Experiment, output: Path, model: str, dataset: str, points: list[PointRecord]
) -> Grid:
    depths = sorted({depth for point in points for depth in _depths(point)})
    lengths = sorted({length for point in points if (length := _length(point))})
    scores: dict[tuple[Any, ...], dict[tuple[int, int], list[float]]] = {}
    of_one_length = Counter((*_series(experiment, point), _length(point)) for point in points)
    for point in points:
        own = _series(experiment, point)
        # of points that differ in settings too, a panel for each
        several = of_one_length[*own, _length(point)] > 1
        label = experiment.variant_labels[point.info["variant_id"]] if several else ""
        cells = scores.setdefault((*own, label), defaultdict(list))
        column = lengths.index(_length(point) or 0)
        judged = experiment.of("judged", point.id)
        asked = _depths_of(point.manifest_dir(output))
        primary = judged["primary"].astype(bool)
        for place, score in zip(judged["place"][primary], judged["score"][primary], strict=True):
            cells[_nearest(depths, asked[place]), column].append(float(score))
    panels = []
    for own in sorted(scores):
        means = np.full((len(depths), len(lengths)), np.nan)
        for cell, values in scores[own].items():
            means[cell] = np.mean(values)
        press, controller, _, budget, label = own
        steered = "" if controller == "none" else f" + {controller}"
        panels.append(Panel(f"{press}{steered}, budget {budget}{label and f', {label}'}", means))
    task = points[0].info["config"]["dataset"]["task"]
    return Grid(f"{model}, {dataset}", task, depths, lengths, panels)


def _nearest(depths: list[float], asked: float | None) -> int:
    """Its number among `depths`: shares lose the last bits of a percentage."""
    assert asked is not None
    return int(np.argmin(np.abs(np.array(depths) - asked)))


def _series(experiment: Experiment, point: PointRecord) -> tuple[Any, ...]:
    """Press, controller and budget; the largest budget sorts first."""
    series = experiment.series_columns(point)
    return series["press"], series["controller"], -point.budget_asked, series["budget_label"]


@lru_cache
def _depths_of(manifest: Path) -> list[float | None]:
    """The depth in percent at which each example of a manifest was asked, in its order.

    None for one that does not tell, as another source's.
    """
    rows = pq.read_table(examples_file(manifest), columns=["meta_json"], partitioning=None)
    asked = (json.loads(text).get("asked_depth") for text in rows["meta_json"].to_pylist())
    return [None if depth is None else 100 * depth for depth in asked]


def _figure(grid: Grid) -> Figure:
    columns = min(COLUMNS, len(grid.panels))
    lines = -(-len(grid.panels) // columns)
    with mpl.rc_context({"font.size": 9, "figure.constrained_layout.use": True}):
        width = max(2.2, 0.75 * len(grid.lengths) + 0.8)
        height = max(1.8, 0.32 * len(grid.depths) + 0.8)
        figure = new_figure(width * columns + 0.8, height * lines + 0.5)
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axis, panel in zip(axes.flat, grid.panels, strict=False):
            image = axis.imshow(panel.means, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            axis.set_title(panel.title, fontsize=9)
            axis.set_xticks(range(len(grid.lengths)), [f"{n}" for n in grid.lengths])
            axis.set_yticks(range(len(grid.depths)), [f"{d:g}%" for d in grid.depths])
            for (row, column), mean in np.ndenumerate(panel.means):
                if np.isfinite(mean):
                    colour = "black" if mean > 0.6 else "white"
                    axis.text(column, row, f"{mean:.2f}", ha="center", va="center", color=colour)
        for axis in axes.flat[len(grid.panels) :]:
            axis.set_visible(False)
        figure.supxlabel("length (tokens of prompt and answer)")
        figure.supylabel("depth of the needle")
        figure.suptitle(f"{grid.label}: mean score", fontsize=10)
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure
