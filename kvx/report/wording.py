"""How reports and tables name things and write numbers."""

from typing import Any

import pandas as pd

from kvx.analyze.naming import metric_title
from kvx.config.analyze import Family

DEGENERATE = "†"
ADAPTED = "‡"
# what shares one error rate, see `analyze.family`: tests of points, and of press against press
POINTS_OF = {
    Family.experiment: "all points",
    Family.variant: "all points of a variant",
    Family.curve: "all budgets of a press",
}
RANKS_OF = {
    Family.experiment: "all budgets",
    Family.variant: "all budgets of a variant",
    Family.curve: "the presses at one budget",
}


def interval(row: Any, low: str = "ci_low", high: str = "ci_high", sign: bool = False) -> str:
    """`[0.12, 0.30]`, or `[n/a]` where n is too small or nothing varies."""
    if pd.isna(row[low]) or pd.isna(row[high]):
        return "[n/a]"
    form = "{:+.2f}" if sign else "{:.2f}"
    return f"[{form.format(row[low])}, {form.format(row[high])}]"


def series_name(row: Any) -> str:
    """The press, with the controller and seed where they are not the default."""
    name = str(row["press"])
    if row["controller"] != "none":
        name += f" + {row['controller']}"
    return f"{name} (seed {row['seed']})" if row["seed"] != 0 else name


def full_name(row: Any, several: bool) -> str:
    """`series_name`, with the model, data and settings if there are several in the report."""
    return f"{series_name(row)} [{row['variant']}]" if several else series_name(row)


def curve_name(row: Any, several: bool) -> str:
    """`full_name`, told apart from the same press's curve over fractions if budgets are tokens."""
    in_tokens = " (budgets in tokens)" if row["budget_kind"] == "tokens" else ""
    return f"{full_name(row, several)}{in_tokens}"


def metric_name(row: Any) -> str:
    """`exact match`, and `distance (lower is better)`."""
    name = metric_title(str(row["metric"]))
    return name if row["higher_is_better"] else f"{name} (lower is better)"


def token_range(row: Any) -> str:
    """`200–297`: the edges of a bin in tokens."""
    return f"{row['bin_low_tokens']}–{row['bin_high_tokens']}"


def percent(share: float) -> str:
    return f"{100 * share:g}%"


def ranges_of(stats: pd.DataFrame) -> dict[Any, str]:
    """The tokens of each (point, bin) of bin_stats, as `token_range` tells them."""
    edges = stats[["point_id", "bin", "bin_low_tokens", "bin_high_tokens"]].to_dict("records")
    return {(row["point_id"], row["bin"]): token_range(row) for row in edges}
