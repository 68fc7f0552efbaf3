"""Tables as columns of arrays, cut by bin and metric: cheap enough for thousands of cells."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ALL_BINS = -1  # the value of `bin` in rows about all bins together
ALL = "all"  # the group of all rows

# distinguishes the budgets of a press; `budget_label` is only for people
BUDGET = ["budget_kind", "budget_asked"]
# of points that lie on one curve over budgets these columns agree
CURVE = ["variant_id", "press", "controller", "seed", "budget_kind"]

Columns = dict[str, NDArray[Any]]


def is_full(frame: Any) -> Any:
    """Of each row of a table, or of one row, whether its point was asked for the full cache."""
    return (frame["budget_kind"] == "ratio") & (frame["budget_asked"] == 1.0)


def take(columns: Columns, rows: Any) -> Columns:
    """Those rows (a mask, numbers or a slice) of every column."""
    return {name: column[rows] for name, column in columns.items()}


def groups(frame: pd.DataFrame) -> Iterator[tuple[str, "pd.Series[bool]"]]:
    """`all`, then `dataset=…`, `press=…` and `budget=…` where there are several: name and rows.

    A group of a budget is what was asked for. Its name is what its points are told by.
    """
    yield ALL, pd.Series(True, index=frame.index)
    for name in ("dataset", "press"):
        values = sorted(set(frame[name]))
        for value in values if len(values) > 1 else ():
            yield f"{name}={value}", frame[name] == value
    number = frame.groupby(BUDGET).ngroup()
    told = [
        (", ".join(sorted(set(labels))), budget)
        for budget, labels in frame["budget_label"].groupby(number)
    ]
    for label, budget in sorted(told) if len(told) > 1 else ():
        yield f"budget={label}", number == budget


def by_bin(columns: Columns) -> Iterator[tuple[int, Columns]]:
    """Each bin's rows, then all rows as bin -1."""
    bins = columns["bin"]
    if len(bins) and (bins[1:] >= bins[:-1]).all():  # as manifests are: slices copy nothing
        found, starts = np.unique(bins, return_index=True)
        for index, start, end in zip(found, starts, [*starts[1:], len(bins)], strict=True):
            yield int(index), take(columns, slice(start, end))
    else:
        for index in np.unique(bins):
            yield int(index), take(columns, bins == index)
    yield ALL_BINS, columns


def by_metric(columns: Columns) -> Iterator[tuple[str, bool, Columns]]:
    """Each metric's name, whether it is the primary one, and its rows; by name."""
    names = columns["metric"]
    for metric in sorted(set(names)):
        rows = np.flatnonzero(names == metric)
        yield metric, bool(columns["primary"][rows[0]]), take(columns, rows)
