"""How every plot looks: sizes, colours, the one look of each press, and how a figure is saved."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kvx.analyze.looks import COLOURS, looks
from kvx.store.atomic import write_bytes

FULL = COLOURS[0]  # the full cache is black
BEHIND = "#BBBBBB"  # what stands beside the series that a panel is about
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1, 1, 1)),
    (0, (1, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
)
DPI = 150
STYLE: Any = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.3, "legend.frameon": False, "figure.constrained_layout.use": True,
}  # fmt: skip
# text stays text, and the same figure is the same file
FILES: Any = {"svg.fonttype": "none", "svg.hashsalt": "kvx", "pdf.fonttype": 42}
UNDATED: dict[str, dict[str, None]] = {
    "png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None},
}  # fmt: skip


class Drawn(NamedTuple):
    """A look as matplotlib takes it."""

    colour: str
    marker: str


def drawn(names: Iterable[str]) -> dict[str, Drawn]:
    """How every series is drawn, the same in each plot that is given the same names."""
    own = set(names)
    return {
        name: Drawn(COLOURS[look.colour], MARKERS[look.marker])
        for name, look in looks(own).items()
        if name in own
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that pyplot does not know: its backend is the user's choice."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write `figure` as `path` with the ending of each of `formats` (png, svg, pdf)."""
    layout = figure.get_layout_engine()
    if layout is not None:  # savefig would draw the whole figure once more just to lay it out
        figure.set_dpi(DPI)
        layout.execute(figure)
        figure.set_layout_engine(None)
    written = []
    for ending in formats:
        buffer = io.BytesIO()
        with rc_context(FILES):
            figure.savefig(buffer, format=ending, dpi=DPI, metadata=UNDATED[ending])
        written.append(path.with_suffix(f".{ending}"))
        write_bytes(written[-1], buffer.getvalue())
    return written


def label_ends(
    axis: Axes, ends: Sequence[tuple[float, str, str]], size: float, apart: float
) -> None:
    """Names at the right edge of `axis`: (height in data units, text, colour) each.

    Names that would overlap move apart by `apart` (a share of the axis's height), in their order.
    """
    low, high = axis.get_ylim()
    placed = sorted(ends, key=lambda end: end[0])
    heights = [(min(max(y, low), high) - low) / (high - low) for y, _, _ in placed]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + apart)
    top = 1.0 + apart / 2
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], top)
        top = heights[i] - apart
    for height, (_, text, colour) in zip(heights, placed, strict=True):
        axis.annotate(
            text,
            (1.0, height),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            fontsize=size,
            va="center",
            annotation_clip=False,
        )
