"""From an experiment's traces to simulation.parquet, simulate.md and the Pareto plot."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.config.controller import ControllerConfig
from kvx.config.identity import resolved
from kvx.config.schema import Config
from kvx.config.simulate import SimulateConfig
from kvx.errors import UserError
from kvx.guard.own_code import controller_sources
from kvx.identity.hashing import digest, package_digest
from kvx.learning.simulation import Replayed, matching_rate, pareto_front, replay_all, summarise
from kvx.points import experiment_dir
from kvx.simulate import page, pareto_plot
from kvx.simulate.families import Entry, Policies, chosen, entries, sweeps
from kvx.simulate.recorded import Recorded, inputs_of, load
from kvx.simulate.summary_rows import ALL, CONTROLLER, SWEEP, counts, summary_columns
from kvx.store import schemas
from kvx.store.atomic import write_text
from kvx.store.shards import read_inputs, write_table
from kvx.train.build import FOLDER

log = logging.getLogger(__name__)
GROUPS = ("dataset", "press", "budget")
SWEEP_REPLAYS = 2_000  # traces that one point of a sweep over chance replays, at most


def simulate_experiment(config: Config) -> Path:
    """Write simulation.parquet, simulate.md and plots/pareto.png unless they are there; the page.

    Raises `UserError` if a controller makes no sense or needs a model that was not trained.
    """
    controllers = chosen(config)
    folder = experiment_dir(config)
    target = folder / FOLDER
    wants_model = any(c.needs_hazard for c in controllers)
    inputs = digest(
        [
            package_digest(),
            inputs_of(folder, wants_model),
            [[resolved(c), *controller_sources(c).values()] for c in controllers],
            dataclasses.asdict(config.simulate),
        ],
        16,
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
    log.info("simulate: %d traces, %d controllers → %s", len(recorded.traces),
             frame[frame["role"] == CONTROLLER]["controller"].nunique(), text)  # fmt: skip
    return text


def simulate_recorded(
    recorded: Recorded, controllers: Sequence[ControllerConfig], settings: SimulateConfig
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Rows of `schemas.SIMULATION`; and each controller's outcome per trace, in long form.

    Raises `UserError` if a random controller is to match one that is not simulated.
    """
    traces, clusters = recorded.traces, recorded.about["cluster"].tolist()
    done: dict[str, Replayed] = {}

    def replayed(name: str, policies: Policies) -> Replayed:
        if name not in done:
            done[name] = replay_all(traces, policies, settings.lateness_tokens)
        return done[name]

    def rate(others: Sequence[Entry]) -> float:
        match = next((e for e in others if e.name == settings.match), None)
        if match is None:
            names = ", ".join(e.name for e in others) or "none"
            raise UserError(
                f"simulate.match={settings.match}: is not simulated, so random has no rate; "
                f"choose from {names}, or set simulate.controllers"
            )
        share = float(replayed(match.name, match.policies).triggered.mean())
        return matching_rate(share, [t.n_tokens for t in traces])

    rows: list[dict[str, Any]] = []

    def add(group: str, keep: NDArray[np.bool_], found: Replayed, **about: Any) -> None:
        some = [t for t, k in zip(traces, keep, strict=True) if k]
        names = [c for c, k in zip(clusters, keep, strict=True) if k]
        summary = summarise(
            some, found.take(keep), names, settings.n_boot, settings.confidence, settings.seed
        )
        common = {**about, "group": group, "on_front": False}
        rows.append(common | counts(some, names) | summary_columns(summary))

    everything = np.ones(len(traces), dtype=bool)
    listed = entries(controllers, recorded.cards, settings.random_repeats, rate)
    for entry in listed:
        found = replayed(entry.name, entry.policies)
        about = {"role": CONTROLLER, "controller": entry.name, "family": entry.kind}
        add(ALL, everything, found, **about)
        for column in GROUPS:
            values = sorted(recorded.about[column].unique())
            for value in values if len(values) > 1 else ():
                keep = (recorded.about[column] == value).to_numpy()
                add(f"{column}={value}", keep, found, **about)
    repeats = max(1, min(settings.random_repeats, SWEEP_REPLAYS // max(1, len(traces))))
    for step in sweeps(controllers, settings.match, traces, settings.n_thresholds, repeats):
        found = replay_all(traces, step.policies, settings.lateness_tokens)
        add(ALL, everything, found, role=SWEEP, controller=step.family, family=step.family,
            threshold=step.threshold)  # fmt: skip
    whole = [row for row in rows if row["group"] == ALL]
    front = pareto_front(
        *([np.nan if r[name] is None else r[name] for r in whole]
          for name in ("prevented", "false_trigger_rate", "mean_budget"))
    )  # fmt: skip
    for row, is_best in zip(whole, front, strict=True):
        row["on_front"] = bool(is_best)
    return rows, outcomes(recorded, {e.name: done[e.name] for e in listed})


def outcomes(recorded: Recorded, done: dict[str, Replayed]) -> pd.DataFrame:
    """A row per controller and trace: what paired differences are made from."""
    catastrophe = [t.catastrophe for t in recorded.traces]
    return pd.concat(
        pd.DataFrame(
            {
                "controller": name, "cluster": recorded.about["cluster"].to_numpy(),
                "catastrophe": catastrophe, "prevented": found.prevented,
                "triggered": found.triggered, "mean_budget": found.mean_budget,
                "dropped_tokens": found.dropped_tokens,
            }
        )
        for name, found in done.items()
    )  # fmt: skip
