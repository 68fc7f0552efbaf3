"""simulate.md: what controllers would have done, at best, in tables."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kvx.analyze.columns import ALL
from kvx.config.controller import ControllerConfig
from kvx.config.numbers import plural
from kvx.config.schema import Config
from kvx.config.simulate import SimulateConfig
from kvx.report.tables import markdown, number
from kvx.report.wording import percent
from kvx.simulate.recorded import Recorded
from kvx.simulate.summary_rows import CONTROLLER, SWEEP
from kvx.stats.paired import paired_differences

PAGE = """# Controllers replayed over `{name}`

{recorded}

**Whatever is "prevented" here is prevented at best.** A replay knows when an alarm would have
come, not what the model would have said after it: every such share is an upper bound. {lateness}

## All controllers

{table}

{legend}

![prevented at best against false triggers and against mean KV budget](plots/pareto.png)

## Against the reactive guard

{against}

## Where

{groups}

## Thresholds on the Pareto front

{front}

## How this was made

{made}
"""
REACTIVE = "reactive"


def write(
    frame: pd.DataFrame,
    outcomes: pd.DataFrame,
    recorded: Recorded,
    controllers: Sequence[ControllerConfig],
    config: Config,
) -> str:
    """The page of `schemas.SIMULATION` rows and of `build.outcomes`."""
    settings = config.simulate
    single = frame[frame["role"] == CONTROLLER]
    return PAGE.format(
        name=config.experiment_name, recorded=_recorded(single, recorded),
        lateness=_lateness(settings), table=_controllers(single[single["group"] == ALL]),
        legend=_legend(settings), against=_against(outcomes, controllers, settings),
        groups=_groups(single, settings), front=_front(frame),
        made=_made(settings),
    )  # fmt: skip


def _recorded(single: pd.DataFrame, recorded: Recorded) -> str:
    row = single[single["group"] == ALL].iloc[0]
    about = recorded.about
    degenerate = int(about["degenerate"].sum())
    text = (
        f"{plural(int(row['n_traces']), 'response')} to {plural(int(row['n_prompts']), 'prompt')} "
        f"from {plural(about['point_id'].nunique(), 'compressed point')} "
        f"({', '.join(sorted(about['press'].unique()))}). "
        f"{plural(int(row['n_catastrophes']), 'excess catastrophe')}: derailed where the full "
        f"cache did not; {row['n_with_onset']} of them loop and so have a known onset, "
        f"{row['n_instant']} start within the first five tokens, where "
        f"monitoring has no lead; the other {row['n_preventable']} are called preventable. "
        f"{recorded.source}"
    )
    if degenerate:
        text += (
            f" {plural(degenerate, 'response')} are degenerate: at that budget and length "
            "the press is not what it is meant to be."
        )
    return text


def _lateness(settings: SimulateConfig) -> str:
    if settings.lateness_tokens is None:
        return (
            "An alarm is in time if the tokens it rolls back reach the onset: `rollback_tokens`, "
            "counted from the onset of a detected loop, and of a forecast or a rule from where the "
            "tokens began that stand at the end and stood together before. A catastrophe without "
            "an onset (it never ended, or broke its instruction) counts with any alarm."
        )
    return (
        f"An alarm is in time up to {plural(settings.lateness_tokens, 'token')} after the onset; "
        "of a catastrophe without an onset, up to that long after its last token."
    )


def _controllers(rows: pd.DataFrame) -> str:
    header = [
        "controller", "prevented at best", "of preventable", "of instant", "of loops",
        "loops seen coming",
        "false triggers", "mean KV budget", "median lead", "tokens dropped per 1,000",
    ]  # fmt: skip
    return markdown(
        header,
        [
            [
                row["controller"], share(row, "prevented"), share(row, "prevented_of_preventable"),
                share(row, "prevented_of_instant"), share(row, "prevented_of_loops"),
                share(row, "forecast"),
                share(row, "false_trigger_rate"), share(row, "mean_budget", "{:.3f}"),
                number(row["lead_median_tokens"], "{:.0f}"),
                share(row, "dropped_per_1000_tokens", "{:.0f}"),
            ]
            for _, row in rows.iterrows()
        ],
    )  # fmt: skip


def share(row: pd.Series, name: str, form: str = "{:.2f}") -> str:
    """`0.82 [0.70, 0.91]`; a dash where there is nothing to take a share of."""
    if pd.isna(row[name]):
        return "–"
    low, high = row[f"{name}_ci_low"], row[f"{name}_ci_high"]
    ends = "n/a" if pd.isna(low) else f"{form.format(low)}, {form.format(high)}"
    return f"{form.format(row[name])} [{ends}]"


def _legend(settings: SimulateConfig) -> str:
    return (
        "Shares are of excess catastrophes (prevented), of those with a known onset (loops; seen "
        "coming: the alarm is before the onset), of responses without an excess catastrophe "
        "(false triggers), of prompt entries over all tokens (mean KV budget: SAFE costs "
        f"the safe budget). In brackets {percent(settings.confidence)} intervals by resampling "
        f"prompts ({settings.n_boot:,} times); where all prompts agree, exact ones of as many "
        "trials as prompts. Lead: from the first alarm to the onset, of excess catastrophes with "
        "both; below 0 the alarm came after. Dropped tokens would be decoded twice. `no gate` is "
        "without the probe before the first token, `forecast alone` also without the loop "
        "detector. "
        f"`random` triggers as often as `{settings.match}` ({settings.random_repeats} seeds, mean)."
    )


def _against(
    outcomes: pd.DataFrame, controllers: Sequence[ControllerConfig], settings: SimulateConfig
) -> str:
    names = list(dict.fromkeys(outcomes["controller"]))
    if REACTIVE not in names:
        return "The reactive guard was not simulated."
    base = outcomes[outcomes["controller"] == REACTIVE]
    clusters = base["cluster"].tolist()
    events = base["catastrophe"].to_numpy(dtype=bool)
    others = [c.name for c in controllers if c.needs_hazard]
    parts = ("no gate", "forecast alone")
    others = [n for n in names if n in others or n.endswith(parts)]
    if not others:
        return "No controller with a forecast was simulated."
    rows = []
    for name in others:
        own = outcomes[outcomes["controller"] == name]
        columns = [("prevented", events), ("triggered", ~events), ("mean_budget", None),
                   ("dropped_tokens", None)]  # fmt: skip
        pairs = []
        for column, mask in columns:
            a, b = own[column].to_numpy(float), base[column].to_numpy(float)
            if mask is not None:
                a, b = np.where(mask, a, np.nan), np.where(mask, b, np.nan)
            pairs.append((a, b, clusters))
        found = paired_differences(pairs, settings.n_boot, settings.confidence, settings.seed)
        forms = ["{:+.2f}", "{:+.2f}", "{:+.3f}", "{:+.1f}"]
        cells = []
        for d, form in zip(found, forms, strict=True):
            ends = ", ".join(number(v, form) for v in d.interval)
            cells.append(f"{number(d.difference, form)} [{ends}]")
        rows.append([name, *cells])
    header = ["minus `reactive`", "prevented at best", "false triggers", "mean budget per response",
              "dropped tokens per response"]  # fmt: skip
    return markdown(header, rows) + (
        "\n\nDifferences on the same responses, with intervals by resampling prompts. The reactive "
        "guard has no model: it waits for a loop and rolls back before it."
    )


def _groups(single: pd.DataFrame, settings: SimulateConfig) -> str:
    names = [n for n in (settings.match, REACTIVE) if n in set(single["controller"])]
    rows = single[(single["group"] != ALL) & single["controller"].isin(names)]
    if rows.empty:
        return "All responses are of one dataset, press and budget."
    return markdown(
        ["", "controller", "excess catastrophes", "responses", "prevented at best",
         "false triggers", "mean KV budget", "tokens dropped per 1,000"],
        [
            [row["group"], row["controller"], row["n_catastrophes"], row["n_traces"],
             share(row, "prevented"), share(row, "false_trigger_rate"),
             share(row, "mean_budget", "{:.3f}"), share(row, "dropped_per_1000_tokens", "{:.0f}")]
            for _, row in rows.sort_values("group", kind="stable").iterrows()
        ],
    )  # fmt: skip


def _front(frame: pd.DataFrame) -> str:
    rows = frame[frame["on_front"] & (frame["role"] == SWEEP)]
    single = frame[frame["on_front"] & (frame["role"] == CONTROLLER)]["controller"]
    text = (
        "No other choice prevents as much at best with as few false triggers and as small a mean "
        "budget. The thresholds were swept on the very responses of this page: the front says what "
        "there is to choose from; it chooses nothing. Controllers on it: "
        f"{', '.join(f'`{n}`' for n in single) or 'none'}.\n\n"
    )
    if rows.empty:
        return text + "No swept threshold is on the front."
    table = markdown(
        ["family", "threshold", "prevented at best", "false triggers", "mean KV budget"],
        [
            [row["family"], f"{row['threshold']:.3g}", number(row["prevented"]),
             number(row["false_trigger_rate"]), number(row["mean_budget"], "{:.3f}")]
            for _, row in rows.sort_values(["family", "threshold"]).iterrows()
        ],
    )  # fmt: skip
    return text + table


def _made(settings: SimulateConfig) -> str:
    return (
        "`kvx.simulate`, one controller implementation for this and for live runs "
        "(`kvx/guard/controllers/`). After an alarm the controller goes on seeing what the "
        "compressed run did. All figures: `simulation.parquet`."
    )
