"""How reports and tables name things and write numbers."""

from typing import Any

import pandas as pd


def interval(row: Any, low: str = "ci_low", high: str = "ci_high", sign: bool = False) -> str:
    """`[0.12, 0.30]`, or `[n/a]` where n is too small for one."""
    if pd.isna(row[low]) or pd.isna(row[high]):
        return "[n/a]"
    form = "{:+.2f}" if sign else "{:.2f}"
    return f"[{form.format(row[low])}, {form.format(row[high])}]"


def series_name(row: Any, with_variant: bool = False) -> str:
    """The press, and controller, seed, model and data where they are needed to tell it apart."""
    name = str(row["press"])
    if row["controller"] != "none":
        name += f" + {row['controller']}"
    if row["seed"] != 0:
        name += f" (seed {row['seed']})"
    return f"{name} [{row['model']}, {row['dataset']}]" if with_variant else name


def token_range(row: Any) -> str:
    """`200–297`: the edges of a bin in tokens."""
    return f"{row['bin_low_tokens']}–{row['bin_high_tokens']}"
