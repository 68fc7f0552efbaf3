"""An experiment's traces as a controller would have seen them, with forecasts of models that never
saw their prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.frames import load_experiment
from kvx.config import Config
from kvx.controller_config import OperatingPoint
from kvx.errors import UserError
from kvx.guard.loops import LoopDetector
from kvx.guard.simulation import Trace, observations
from kvx.simulate.controllers import Thresholds
from kvx.store.catalog import finished_points
from kvx.store.shards import read_inputs
from kvx.train import data as learning
from kvx.train_config import Labels


@dataclass(frozen=True)
class Recorded:
    """What is replayed. `about` [n]: point_id, cluster (a prompt, across its points), dataset,
    press, budget, degenerate. `cards` [n]: the thresholds of the model that made a trace's
    forecast. `source`: a sentence on where the forecasts come from.
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
    return [points, read_inputs(folder / "guard" / FORECASTS) if wants_model else None]


def load(config: Config, folder: Path, wants_model: bool) -> Recorded:
    """Every compressed response with a full trace; with `wants_model`, only those with a forecast.

    Raises `UserError` if there are no traces, no full cache to compare with, or no model.
    """
    experiment = load_experiment(folder, Path(config.paths.output))
    degenerate = config.train.degenerate
    data = learning.load(experiment, Labels.excess, degenerate)
    data = data.take(data.compressed)
    if not len(data):
        raise UserError(f"{folder}: no compressed response to replay; run budgets below 1.0 too")
    forecasts = read_forecasts(folder) if wants_model else None
    if forecasts is not None:
        known = data.frame["request_id"].isin(forecasts.hazard).to_numpy()
        data = data.take(known)
        if not len(data):
            raise UserError(
                f"{folder / 'guard' / FORECASTS}: has no forecast for these points; run kvx.train "
                "again"
            )
    requests = experiment.requests.set_index("request_id")
    frame, starts = data.frame, data.traces.starts
    signals, prefill = data.traces.signals, data.traces.prefill
    traces, cards = [], []
    for i, row in enumerate(frame.itertuples()):
        own = slice(starts[i], starts[i + 1])
        n = int(starts[i + 1] - starts[i])
        hazard = np.full(n, np.nan)
        card = None
        if forecasts is not None:
            hazard, card = forecasts.hazard[row.request_id], forecasts.cards[row.request_id]
        counts = np.nan_to_num(signals["repetition_count"][own]).astype(int).tolist()
        happened = bool(row.excess) or bool(row.unplaced)
        asked = requests.loc[row.request_id]
        seen = observations(
            hazard, signals["entropy_nats"][own], loop_onsets(asked["token_ids"], n), counts,
            float(prefill["probe_kl_nats"][i, -1]),
        )  # fmt: skip
        traces.append(
            Trace(
                str(row.request_id), seen, float(row.budget), int(asked["compressed_tokens"]),
                happened, happened or bool(row.looping) or bool(row.capped),
                int(row.onset) if row.excess else None,
            )
        )  # fmt: skip
        cards.append(card)
    about = frame[["point_id", "dataset", "press", "budget", "degenerate"]].assign(
        cluster=frame["prompt"]
    )
    return Recorded(traces, about.reset_index(drop=True), cards, _source(forecasts, folder))


def loop_onsets(token_ids: NDArray[np.int32] | None, n: int) -> list[int | None]:
    """After each of `n` tokens, the onset of the loop that the response is in; without ids, none.

    A server that gives no token ids shows a controller no loop.
    """
    if token_ids is None:
        return [None] * n
    detector = LoopDetector()
    return [detector.push(token) for token in np.asarray(token_ids).tolist()]
