"""Which example of one result is which of another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.compare.results import KEYS, Result
from kvx.config.numbers import plural

WORDS = {
    "id": "the examples' ids",
    "prompt": "their whole prompts (context and question)",
    "asked": "their questions and reference answers",
}
# beyond this share of equal ids with other references, ids name other examples (0, 1, 2 …)
CONTRADICTED = 0.1


@dataclass(frozen=True)
class Pairs:
    """Rows [n] of `a` and of `b` that are one example; `by` is the key of `KEYS` that told it."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    by: str
    notes: Sequence[str] = ()


def pairs(a: Result, b: Result) -> Pairs:
    """By the key that pairs most examples, the first of `KEYS` among equals; may be empty."""
    found = [_by(key, a.examples, b.examples) for key in KEYS]
    return max(found, key=lambda p: len(p.a))


def clusters(a: Result, b: Result, paired: Pairs) -> NDArray[np.object_]:
    """Of each pair, what it must be resampled with; the pair itself where neither side tells."""
    for side, rows in ((a, paired.a), (b, paired.b)):
        known = side.examples["cluster"].to_numpy(dtype=object)[rows]
        if len(known) and not pd.isna(known).any():
            return known
    return np.arange(len(paired.a)).astype(object)


def _by(key: str, a: pd.DataFrame, b: pd.DataFrame) -> Pairs:
    left, right = _numbered(a[key]), _numbered(b[key])
    notes = []
    if key != "id":  # equal texts: in their order, where both sides have as many of them
        n_left, n_right = a[key].map(a[key].value_counts()), b[key].map(b[key].value_counts())
        twice = dict(zip(a[key], n_left, strict=True)), dict(zip(b[key], n_right, strict=True))
        unequal = {k for k in set(a[key]) & set(b[key]) if twice[0][k] != twice[1][k]}
        left, right = left[~a[key].isin(unequal)], right[~b[key].isin(unequal)]
        alike = int((n_left[left.index] > 1).sum())
        if alike:
            notes.append(
                f"{plural(alike, 'example')} of a share {WORDS[key].removeprefix('their ')} with "
                "another; they are paired in the order of the files"
            )
        if unequal:
            notes.append(f"{len(unequal)} keys occur another number of times in b; left out")
    both = pd.merge(
        left.rename("key").reset_index(), right.rename("key").reset_index(), on="key"
    ).sort_values("index_x")
    rows_a, rows_b = both["index_x"].to_numpy(), both["index_y"].to_numpy()
    if key == "id" and len(both):
        ours = a["references"].to_numpy(dtype=object)[rows_a]
        theirs = b["references"].to_numpy(dtype=object)[rows_b]
        other = ~(pd.isna(ours) | pd.isna(theirs)) & (ours != theirs)
        if other.mean() > CONTRADICTED:
            return Pairs(rows_a[:0], rows_b[:0], key)
        if other.any():
            notes.append(
                f"{plural(int(other.sum()), 'example')} with equal ids have other reference "
                "answers; left out"
            )
        rows_a, rows_b = rows_a[~other], rows_b[~other]
    return Pairs(rows_a, rows_b, key, notes)


def _numbered(keys: "pd.Series[str]") -> "pd.Series[str]":
    """The known keys; those that occur again get the number of their occurrence."""
    known = keys.dropna().astype(str)
    again = known.groupby(known).cumcount().astype(str)
    return known + "#" + again
