"""From an experiment's traces to simulation.parquet, simulate.md and the Pareto plot."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.bin_stats import null
from kvx.analyze.columns import ALL, groups
from kvx.config.controller import ControllerConfig
from kvx.config.identity import resolved
from kvx.config.schema import Config
from kvx.config.simulate import SimulateConfig
from kvx.errors import UserError
from kvx.guard.own_code import controller_sources
from kvx.identity.hashing import digest, package_digest
from kvx.learning.ranking import Estimate
from kvx.learning.simulation import (
    Replayed,
    Summary,
    Trace,
    matching_rate,
    pareto_front,
    replay_all,
    summarise,
)
from kvx.points import experiment_dir
from kvx.simulate import page, pareto_plot
from kvx.simulate.families import Entry, chosen, entries, sweeps
from kvx.simulate.page import CONTROLLER, SWEEP
from kvx.simulate.recorded import Recorded, inputs_of, load
from kvx.store import schemas
from kvx.store.atomic import write_text
from kvx.store.shards import read_inputs, write_table
from kvx.train.build import FOLDER

log = logging.getLogger(__name__)
OUTCOMES = ("prevented", "triggered", "mean_budget", "dropped_tokens")  # compared trace by trace
SWEEP_REPLAYS = 2_000  # traces that one point of a sweep over chance replays, at most
COLUMNS = {  # fields of `Summary` whose columns have another name
    "prevented_preventable": "prevented_of_preventable",
    "prevented_instant": "prevented_of_instant", "prevented_placed": "prevented_of_loops",
    "false_triggers": "false_trigger_rate", "false_triggers_calm": "false_trigger_rate_calm",
    "triggered": "trigger_rate", "dropped_per_1000": "dropped_per_1000_tokens",
}  # fmt: skip


def simulate_experiment(config: Config) -> Path:
    """Write simulation.parquet, simulate.md and plots/pareto.png if stale; returns the page's path.

    Raises `UserError` if a controller makes no sense or needs a model that was not trained.
    """
    controllers = chosen(config)
    folder = experiment_dir(config)
    target = folder / FOLDER
    wants_model = any(c.needs_hazard for c in controllers)
    asked = [[resolved(c), *controller_sources(c).values()] for c in controllers]
    inputs = digest(
        [package_digest(), inputs_of(folder, wants_model), asked, asdict(config.simulate)], 16
    )
    table, text = target / "simulation.parquet", target / "simulate.md"
    plot = target / "plots" / "pareto.png"
    if read_inputs(table) == inputs and text.is_file() and plot.is_file():
        log.info("simulate: nothing to do → %s", text)
        return text
    recorded = load(config, folder, wants_model)
    rows, paired = simulate_recorded(recorded, controllers, config.simulate)
    figures = [f.name for f in schemas.SIMULATION if f.type == schemas.F64]
    frame = pd.DataFrame(rows, columns=schemas.SIMULATION.names).astype(
        dict.fromkeys(figures, float)
    )
    pareto_plot.pareto(frame[frame["group"] == ALL], plot)
    write_text(text, page.write(frame, paired, recorded, controllers, config))
    write_table(table, rows, schemas.SIMULATION, inputs)
    log.info(
        "simulate: %d traces, %d controllers → %s",
        len(recorded.traces),
        frame[frame["role"] == CONTROLLER]["controller"].nunique(),
        text,
    )
    return text


def simulate_recorded(
    recorded: Recorded, controllers: Sequence[ControllerConfig], settings: SimulateConfig
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Rows of `schemas.SIMULATION`, and each controller's outcome per trace.

    Raises `UserError` if a random controller is to match one that is not simulated.
    """
    traces, clusters = recorded.traces, recorded.about["cluster"].tolist()
    done: dict[str, Replayed] = {}

    def replayed(entry: Entry) -> Replayed:
        if entry.name not in done:
            done[entry.name] = replay_all(traces, entry.policies, settings.lateness_tokens)
        return done[entry.name]

    def rate(others: Sequence[Entry]) -> float:
        match = next((e for e in others if e.name == settings.match), None)
        if match is None:
            names = ", ".join(e.name for e in others) or "none"
            raise UserError(
                f"simulate.match={settings.match}: is not simulated, so random has no rate; "
                f"choose from {names}, or set simulate.controllers"
            )
        share = float(replayed(match).triggered.mean())
        return matching_rate(share, [t.n_tokens for t in traces])

    rows: list[dict[str, Any]] = []

    def add(role: str, entry: Entry, group: str, keep: NDArray[np.bool_], found: Replayed) -> None:
        some = [t for t, k in zip(traces, keep, strict=True) if k]
        names = [c for c, k in zip(clusters, keep, strict=True) if k]
        summary = summarise(
            some, found.take(keep), names, settings.n_boot, settings.confidence, settings.seed
        )
        about = {"role": role, "controller": entry.name, "family": entry.kind, "group": group,
                 "threshold": entry.threshold, "on_front": False}  # fmt: skip
        rows.append(about | _counts(some, names) | _columns(summary))

    listed = entries(controllers, recorded.cards, settings.random_repeats, rate)
    for entry in listed:
        found = replayed(entry)
        for group, keep in groups(recorded.about):
            add(CONTROLLER, entry, group, keep.to_numpy(), found)
    everything = np.ones(len(traces), dtype=bool)
    repeats = max(1, min(settings.random_repeats, SWEEP_REPLAYS // max(1, len(traces))))
    for step in sweeps(controllers, settings.match, traces, settings.n_thresholds, repeats):
        found = replay_all(traces, step.policies, settings.lateness_tokens)
        add(SWEEP, step, ALL, everything, found)
    whole = [row for row in rows if row["group"] == ALL]
    front = pareto_front(
        *(
            [np.nan if r[name] is None else r[name] for r in whole]
            for name in ("prevented", "false_trigger_rate", "mean_budget")
        )
    )
    for row, is_best in zip(whole, front, strict=True):
        row["on_front"] = bool(is_best)
    outcomes = [
        pd.DataFrame(
            {
                "controller": e.name,
                "cluster": clusters,
                "catastrophe": [t.catastrophe for t in traces],
                **{name: getattr(done[e.name], name) for name in OUTCOMES},
            }
        )
        for e in listed
    ]
    return rows, pd.concat(outcomes)


def _counts(traces: Sequence[Trace], clusters: Sequence[str]) -> dict[str, Any]:
    """How many traces, prompts and catastrophes a row covers."""
    events = [t for t in traces if t.catastrophe]
    instant = sum(t.instant for t in events)
    return {
        "n_traces": len(traces), "n_prompts": len(set(clusters)), "n_catastrophes": len(events),
        "n_with_onset": sum(t.placed for t in events), "n_preventable": len(events) - instant,
        "n_instant": instant,
    }  # fmt: skip


def _columns(summary: Summary) -> dict[str, Any]:
    """The columns of a summary, nan as null."""
    row: dict[str, Any] = {}
    for field in fields(summary):
        value, name = getattr(summary, field.name), COLUMNS.get(field.name, field.name)
        if isinstance(value, Estimate):
            low, high = value.interval
            row |= {f"{name}_ci_low": null(low), f"{name}_ci_high": null(high)}
            value = value.value
        row[name] = null(value)
    return row
