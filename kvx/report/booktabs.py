"""Tables for papers: LaTeX with the rules of booktabs."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

MATHS = {"−": "$-$", "–": "--", "≤": r"$\leq$", "≥": r"$\geq$", "×": r"$\times$", "→": r"$\to$",
         "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}"}  # fmt: skip


def booktabs(header: Sequence[Any], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """A LaTeX table, its first column to the left and the others to the right.

    Needs `\\usepackage{booktabs}`. Texts are escaped.
    """
    frame = pd.DataFrame([[str(c) for c in row] for row in rows], columns=[str(h) for h in header])
    style = frame.style.format(escape="latex").format_index(escape="latex", axis=1)
    text: str = style.hide(axis="index").to_latex(
        hrules=True,
        column_format="l" + "r" * (len(frame.columns) - 1),
        caption=_escaped(caption) or None,
        position="t" if caption else None,
        position_float="centering" if caption else None,
    )
    for sign, command in MATHS.items():
        text = text.replace(sign, command)
    return text


def _escaped(text: str) -> str:
    style = pd.DataFrame([[text]]).style.format(escape="latex").hide(axis="index")
    inner: str = style.hide(axis="columns").to_latex()
    return inner.splitlines()[1].removesuffix(r" \\")
