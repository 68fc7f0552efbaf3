"""The tables of report.md as LaTeX, and every analysed table as CSV."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from kvx.analyze.columns import ALL_BINS
from kvx.report import tables
from kvx.report.booktabs import booktabs
from kvx.store.atomic import write_text


def write_csv(frames: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """A file per table; lists are written as JSON."""
    written = []
    for name, frame in frames.items():
        lists = [c for c in frame.columns if frame[c].map(_is_list).any()]
        plain = frame.assign(**{c: frame[c].map(_as_json) for c in lists})
        written.append(folder / f"{name}.csv")
        write_text(written[-1], plain.to_csv(index=False))
    return written


def write_latex(frames: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Accuracy by bin and the comparison with the full cache, a file each; per variant."""
    stats, comparisons = frames["bin_stats"], frames["comparisons"]
    several = stats["variant_id"].nunique() > 1
    written = []
    for variant, rows in stats[stats["primary"]].groupby("variant_id", sort=False):
        compared = comparisons[comparisons["variant_id"] == variant]
        first = rows.iloc[0]
        about = first["variant"] if several else f"{first['model']} on {first['dataset']}"
        made = {
            "accuracy": (tables.accuracy_table(rows), "mean by context length in tokens"),
            "against_full_cache": (
                tables.comparison_table(compared), "paired differences from the full cache"
            ),
            "kv_cost": (
                tables.cost_table(rows[rows["bin"] == ALL_BINS]), "KV bytes and output tokens"
            ),
        }  # fmt: skip
        for name, (table, what) in made.items():
            if not table.startswith("|"):  # a sentence: there is nothing to show
                continue
            written.append(folder / (str(variant) if several else "") / f"{name}.tex")
            header, *cells = cells_of(table)
            write_text(written[-1], booktabs(header, cells, f"{about}: {what}."))
    return written


def cells_of(table: str) -> list[list[str]]:
    """The cells of a Markdown table, its header first."""
    lines = [line.strip().strip("|").split("|") for line in table.strip().splitlines()]
    return [
        [cell.strip().replace("**", "") for cell in line] for n, line in enumerate(lines) if n != 1
    ]


def _is_list(value: object) -> bool:
    return isinstance(value, list | np.ndarray)


def _as_json(value: object) -> object:
    return json.dumps(list(value)) if isinstance(value, list | np.ndarray) else value
