"""Summaries as rows of `schemas.SIMULATION`."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from kvx.learning.ranking import Estimate
from kvx.learning.simulation import Summary, Trace

CONTROLLER, SWEEP = "controller", "sweep"
# a field of `Summary` → the name of its columns
NAMES = {
    "prevented": "prevented", "prevented_preventable": "prevented_of_preventable",
    "prevented_instant": "prevented_of_instant", "prevented_placed": "prevented_of_loops",
    "forecast": "forecast",
    "false_triggers": "false_trigger_rate", "false_triggers_calm": "false_trigger_rate_calm",
    "triggered": "trigger_rate", "mean_budget": "mean_budget",
    "lead_median_tokens": "lead_median_tokens", "dropped_per_1000": "dropped_per_1000_tokens",
}  # fmt: skip


def counts(traces: Sequence[Trace], clusters: Sequence[str]) -> dict[str, Any]:
    """How much a row is about."""
    events = [t for t in traces if t.catastrophe]
    instant = sum(t.instant for t in events)
    return {
        "n_traces": len(traces), "n_prompts": len(set(clusters)), "n_catastrophes": len(events),
        "n_with_onset": sum(t.placed for t in events), "n_preventable": len(events) - instant,
        "n_instant": instant,
    }  # fmt: skip


def summary_columns(summary: Summary) -> dict[str, Any]:
    """The columns of a summary, nan as null."""
    row: dict[str, Any] = {}
    for field in fields(summary):
        value, name = getattr(summary, field.name), NAMES[field.name]
        if isinstance(value, Estimate):
            low, high = value.interval
            row |= {f"{name}_ci_low": null(low), f"{name}_ci_high": null(high)}
            value = value.value
        row[name] = null(value)
    return row


def null(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
