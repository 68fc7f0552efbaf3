"""simulate.md: what controllers would have done, at best, in tables."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kvx.analyze.columns import ALL
from kvx.config.controller import ControllerConfig
from kvx.config.numbers import plural
from kvx.config.schema import Config
from kvx.config.simulate import SimulateConfig
from kvx.report.tables import markdown, number
from kvx.report.template import render
from kvx.report.wording import percent
from kvx.simulate.recorded import Recorded
from kvx.stats.paired import paired_differences

CONTROLLER, SWEEP = "controller", "sweep"  # roles of rows
REACTIVE = "reactive"
# header → column and form
COLUMNS = {
    "prevented at best": ("prevented", "{:.2f}"),
    "of preventable": ("prevented_of_preventable", "{:.2f}"),
    "of instant": ("prevented_of_instant", "{:.2f}"),
    "of loops": ("prevented_of_loops", "{:.2f}"),
    "loops seen coming": ("forecast", "{:.2f}"),
    "false triggers": ("false_trigger_rate", "{:.2f}"),
    "mean KV budget": ("mean_budget", "{:.3f}"),
    "median lead": ("lead_median_tokens", "{:.0f}"),
    "tokens dropped per 1,000": ("dropped_per_1000_tokens", "{:.0f}"),
}
OF_GROUPS = ("prevented at best", "false triggers", "mean KV budget", "tokens dropped per 1,000")
OF_FRONT = ("prevented at best", "false triggers", "mean KV budget")


def write(
    frame: pd.DataFrame,
    outcomes: pd.DataFrame,
    recorded: Recorded,
    controllers: Sequence[ControllerConfig],
    config: Config,
) -> str:
    """The page of `schemas.SIMULATION` rows and of `build.outcomes`."""
    settings, single = config.simulate, frame[frame["role"] == CONTROLLER]
    whole, front = single[single["group"] == ALL], frame[frame["on_front"]]
    on_front = front[front["role"] == CONTROLLER]["controller"]
    return render(
        Path(__file__).with_name("simulate.md.j2"),
        name=config.experiment_name,
        settings=settings,
        plural=plural,
        row=whole.iloc[0].to_dict(),
        about=recorded.about,
        degenerate=int(recorded.about["degenerate"].sum()),
        source=recorded.source,
        confidence=percent(settings.confidence),
        table=_table(["controller"], whole, COLUMNS),
        against=_against(outcomes, controllers, settings),
        groups=_groups(single, settings),
        on_front=", ".join(f"`{name}`" for name in on_front),
        front=_front(front[front["role"] == SWEEP]),
    )


def _table(first: list[str], rows: pd.DataFrame, columns: Iterable[str]) -> str:
    """The columns `first` as they are, then shares of `COLUMNS` with their intervals."""
    shown = [COLUMNS[name] for name in columns]
    cells = [
        [*(row[name] for name in first), *(share(row, *column) for column in shown)]
        for _, row in rows.iterrows()
    ]
    return markdown([*first, *columns], cells)


def share(row: pd.Series, name: str, form: str = "{:.2f}") -> str:
    """`0.82 [0.70, 0.91]`; a dash where there is nothing to take a share of."""
    if pd.isna(row[name]) or f"{name}_ci_low" not in row:
        return number(row[name], form)
    low, high = row[f"{name}_ci_low"], row[f"{name}_ci_high"]
    ends = "n/a" if pd.isna(low) else f"{form.format(low)}, {form.format(high)}"
    return f"{form.format(row[name])} [{ends}]"


def _against(
    outcomes: pd.DataFrame, controllers: Sequence[ControllerConfig], settings: SimulateConfig
) -> str:
    """Paired differences of controllers with a forecast, minus the reactive guard."""
    names = list(dict.fromkeys(outcomes["controller"]))
    if REACTIVE not in names:
        return "The reactive guard was not simulated."
    forecasting = {c.name for c in controllers if c.needs_hazard}
    others = [n for n in names if n in forecasting or n.endswith(("no gate", "forecast alone"))]
    if not others:
        return "No controller with a forecast was simulated."
    base = outcomes[outcomes["controller"] == REACTIVE]
    clusters, events = base["cluster"].tolist(), base["catastrophe"].to_numpy(dtype=bool)
    everything = np.ones(len(base), dtype=bool)
    columns = (
        ("prevented", events, "{:+.2f}"), ("triggered", ~events, "{:+.2f}"),
        ("mean_budget", everything, "{:+.3f}"), ("dropped_tokens", everything, "{:+.1f}"),
    )  # fmt: skip
    rows = []
    for name in others:
        own = outcomes[outcomes["controller"] == name]
        pairs = []
        for column, mask, _ in columns:
            a, b = (np.where(mask, side[column].to_numpy(float), np.nan) for side in (own, base))
            pairs.append((a, b, clusters))
        found = paired_differences(pairs, settings.n_boot, settings.confidence, settings.seed)
        cells = [name]
        for d, (_, _, form) in zip(found, columns, strict=True):
            ends = ", ".join(number(v, form) for v in d.interval)
            cells.append(f"{number(d.difference, form)} [{ends}]")
        rows.append(cells)
    header = [
        "minus `reactive`",
        "prevented at best",
        "false triggers",
        "mean budget per response",
        "dropped tokens per response",
    ]
    return markdown(header, rows) + (
        "\n\nDifferences on the same responses, with intervals by resampling prompts. The reactive "
        "guard has no model: it waits for a loop and rolls back before it."
    )


def _groups(single: pd.DataFrame, settings: SimulateConfig) -> str:
    names = [n for n in (settings.match, REACTIVE) if n in set(single["controller"])]
    rows = single[(single["group"] != ALL) & single["controller"].isin(names)]
    rows = rows.sort_values("group", kind="stable").rename(
        columns={"group": "", "n_catastrophes": "excess catastrophes", "n_traces": "responses"}
    )
    first = ["", "controller", "excess catastrophes", "responses"]
    return "" if rows.empty else _table(first, rows, OF_GROUPS)


def _front(swept: pd.DataFrame) -> str:
    """Swept thresholds on the front, without intervals."""
    cells = [
        [
            row["family"],
            f"{row['threshold']:.3g}",
            *(number(row[column], form) for column, form in map(COLUMNS.__getitem__, OF_FRONT)),
        ]
        for _, row in swept.sort_values(["family", "threshold"]).iterrows()
    ]
    return markdown(["family", "threshold", *OF_FRONT], cells) if cells else ""
