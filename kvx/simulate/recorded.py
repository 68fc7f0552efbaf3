"""An experiment's traces as controllers would have seen them, with forecasts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvx.analyze.columns import BUDGET
from kvx.analyze.frames import load_experiment
from kvx.config.schema import Config
from kvx.config.train import Labels
from kvx.errors import UserError
from kvx.guard.controllers.base import Thresholds
from kvx.guard.loop_follower import LoopDetector, repeated_tails
from kvx.learning.simulation import Trace, observations
from kvx.simulate import forecasts
from kvx.store.catalog import finished_points
from kvx.store.shards import read_inputs
from kvx.train import trace_data as learning


@dataclass(frozen=True)
class Recorded:
    """The traces [n] to replay. `about` [n]: point_id, cluster (a prompt, across its points),
    dataset, press, budget_label, the budget (`BUDGET`), degenerate. `cards` [n]: the thresholds of
    the model that made a trace's forecast. `source`: a sentence on where the forecasts come from.
    """

    traces: list[Trace]
    about: pd.DataFrame
    cards: list[Thresholds | None]
    source: str


def inputs_of(folder: Path, wants_model: bool) -> list[object]:
    """Identity of what `load` reads, cheaply."""
    points = [
        [p.id, p.content_sha256(), read_inputs(p.dir / "catastrophes.parquet")]
        for p in finished_points(folder)
    ]
    return [points, forecasts.identity(folder) if wants_model else None]


def load(config: Config, folder: Path, wants_model: bool) -> Recorded:
    """Every compressed response with a full trace; with `wants_model`, only those with a forecast.

    Raises `UserError` if there are no traces, no full cache to compare with, a model of other
    points, or none that does not know these prompts.
    """
    experiment = load_experiment(folder, Path(config.paths.output))
    seen = forecasts.own(experiment) if wants_model and forecasts.trained(folder) else None
    degenerate = seen is not None or config.train.degenerate
    data = learning.load(experiment, Labels.excess, degenerate)
    keep = data.compressed
    if seen is not None:
        keep = keep & data.frame["request_id"].isin(list(seen.hazard)).to_numpy()
    data = data.take(keep)
    if not len(data):
        raise UserError(f"{folder}: no compressed response to replay; run budgets below 1.0 too")
    if wants_model and seen is None:
        seen = forecasts.packaged(data, folder)
    requests = experiment.requests.set_index("request_id")
    ids, prompts = requests["token_ids"].to_dict(), requests["compressed_tokens"].to_dict()
    traces, cards = [], []
    for i, row in enumerate(data.frame.to_dict("records")):
        name = str(row["request_id"])
        own = slice(data.traces.starts[i], data.traces.starts[i + 1])
        signals = {n: data.traces.signals[n][own] for n in ("entropy_nats", "repetition_count")}
        n = len(signals["entropy_nats"])
        hazard = np.full(n, np.nan) if seen is None else seen.hazard[name]
        observed = observations(
            hazard,
            signals["entropy_nats"],
            loop_onsets(ids[name], n),
            np.nan_to_num(signals["repetition_count"]).astype(int).tolist(),
            float(data.traces.prefill["probe_kl_nats"][i, -1]),
            repeated_tails(ids[name]) if isinstance(ids[name], np.ndarray) else None,
        )
        excess = bool(row["excess"] or row["unplaced"])
        traces.append(
            Trace(
                name,
                observed,
                float(row["budget"]),
                int(prompts[name]),
                catastrophe=excess,
                derails=excess or bool(row["looping"] or row["capped"]),
                onset=int(row["onset"]) if row["excess"] and not np.isnan(row["onset"]) else None,
            )
        )
        cards.append(None if seen is None else seen.cards[name])
    source = "No trained model is among the controllers." if seen is None else seen.source
    told = ["point_id", "dataset", "press", *BUDGET, "budget_label", "degenerate"]
    about = data.frame[told].assign(cluster=data.frame["prompt"]).reset_index(drop=True)
    return Recorded(traces, about, cards, source)


def loop_onsets(token_ids: Any, n: int) -> list[int | None]:
    """After each of `n` tokens, the onset of the loop that the response is in; none without ids."""
    if not isinstance(token_ids, np.ndarray):
        return [None] * n
    detector = LoopDetector()
    return [detector.push(token) for token in token_ids.tolist()]
