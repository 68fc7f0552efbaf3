"""One look per press, the same in every plot: colour, marker and dash.

The colours are Okabe and Ito's, which colour-blind people can tell apart; black is the first.
"""

from collections.abc import Iterable
from dataclasses import dataclass

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933")
# on a dark ground: the same hues, lighter
DARK_COLOURS = (
    "#E6E6E6", "#4FA3E0", "#F08A4B", "#2FC79B", "#E3A3C6", "#F2BD4B", "#8CCBF2", "#C6C65A",
)  # fmt: skip
N_MARKERS = 7
FULL_CACHE = "none"  # the press of points without one


@dataclass(frozen=True)
class Look:
    """Places in the palette, the list of markers and the list of dashes."""

    colour: int
    marker: int
    dash: int


def looks(presses: Iterable[str], more: Iterable[str] = ()) -> dict[str, Look]:
    """The look of each press of an experiment: by the sorted names, so by no table's order.

    Those of `more` come after them, and change no look of `presses`.

    `none` is black. The other seven colours come first with solid lines, then again with other
    markers and dashes: 49 presses look different.
    """
    first = set(presses) - {FULL_CACHE}
    names = [*sorted(first), *sorted(set(more) - first - {FULL_CACHE})]
    n = len(COLOURS) - 1
    found = {
        name: Look(1 + i % n, (i + i // n) % N_MARKERS, i // n % N_MARKERS)
        for i, name in enumerate(names)
    }
    return {FULL_CACHE: Look(0, 0, 0), **found}
