"""An experiment's traces as a controller would have seen them, with forecasts of models that never
saw their prompts.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.frames import Experiment, load_experiment
from kvx.config import Config
from kvx.controller_config import OperatingPoint
from kvx.errors import UserError
from kvx.guard.hazard import CARD
from kvx.guard.loops import LoopDetector
from kvx.guard.simulation import Trace, observations
from kvx.simulate.controllers import Thresholds
from kvx.store.catalog import finished_points, read_frame
from kvx.store.shards import read_inputs
from kvx.train import data as learning
from kvx.train.build import FOLDER, PREDICTIONS, data_hash
from kvx.train_config import Labels


@dataclass(frozen=True)
class Recorded:
    """What is replayed. `about` [n]: point_id, cluster (a prompt, across its points), dataset,
    press, budget (its label), degenerate. `cards` [n]: the thresholds of the model that made a
    trace's forecast. `source`: a sentence on where the forecasts come from.
    """

    traces: list[Trace]
    about: pd.DataFrame
    cards: list[Thresholds | None]
    source: str


@dataclass(frozen=True)
class Forecasts:
    """Of each request, the hazard after every token [tokens], and its model's thresholds."""

    hazard: Mapping[str, NDArray[np.float32]]
    cards: Mapping[str, Thresholds]
    card: Mapping[str, Any]


def inputs_of(folder: Path, wants_model: bool) -> list[object]:
    """Identity of what `load` reads, cheaply."""
    points = [
        [p.id, p.content_sha256(), read_inputs(p.dir / "catastrophes.parquet")]
        for p in finished_points(folder)
    ]
    return [points, read_inputs(folder / FOLDER / PREDICTIONS) if wants_model else None]


def load(config: Config, folder: Path, wants_model: bool) -> Recorded:
    """Every compressed response with a full trace; with `wants_model`, only those with a forecast.

    Raises `UserError` if there are no traces, no full cache to compare with, or no model of these
    very points.
    """
    experiment = load_experiment(folder, Path(config.paths.output))
    forecasts = read_forecasts(folder) if wants_model else None
    if forecasts is not None:
        check_points(experiment, forecasts, folder)
    degenerate = forecasts is not None or config.train.degenerate
    data = learning.load(experiment, Labels.excess, degenerate)
    keep = data.compressed
    if forecasts is not None:
        keep = keep & data.frame["request_id"].isin(list(forecasts.hazard)).to_numpy()
    data = data.take(keep)
    if not len(data):
        raise UserError(f"{folder}: no compressed response to replay; run budgets below 1.0 too")
    requests = experiment.requests.set_index("request_id")
    ids, prompts = requests["token_ids"].to_dict(), requests["compressed_tokens"].to_dict()
    traces, cards = [], []
    for i, row in enumerate(data.frame.to_dict("records")):
        name = str(row["request_id"])
        own = slice(data.traces.starts[i], data.traces.starts[i + 1])
        signals = {n: data.traces.signals[n][own] for n in ("entropy_nats", "repetition_count")}
        n = len(signals["entropy_nats"])
        hazard = np.full(n, np.nan) if forecasts is None else forecasts.hazard[name]
        seen = observations(
            hazard, signals["entropy_nats"], loop_onsets(ids[name], n),
            np.nan_to_num(signals["repetition_count"]).astype(int).tolist(),
            float(data.traces.prefill["probe_kl_nats"][i, -1]),
        )  # fmt: skip
        excess = bool(row["excess"] or row["unplaced"])
        traces.append(
            Trace(
                name, seen, float(row["budget"]), int(prompts[name]), catastrophe=excess,
                derails=excess or bool(row["looping"] or row["capped"]),
                onset=int(row["onset"]) if row["excess"] and not np.isnan(row["onset"]) else None,
            )
        )  # fmt: skip
        cards.append(None if forecasts is None else forecasts.cards[name])
    labels = {p.id: str(p.info["budget_label"]) for p in experiment.points}
    about = data.frame[["point_id", "dataset", "press", "degenerate"]].assign(
        budget=data.frame["point_id"].map(labels), cluster=data.frame["prompt"]
    )
    return Recorded(traces, about.reset_index(drop=True), cards, _source(forecasts))


def read_forecasts(folder: Path) -> Forecasts:
    """What kvx.train left behind. Raises `UserError` if it did not or it cannot be read."""
    path = folder / FOLDER / PREDICTIONS
    if not path.is_file():
        raise UserError(
            f"{path}: no forecasts; run kvx.train with the same arguments, or simulate controllers "
            "without a model: simulate.controllers=[none,reactive,rule_based] "
            "simulate.match=reactive"
        )
    try:
        card = json.loads((folder / FOLDER / CARD).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / FOLDER / CARD}: cannot be read ({error}); run kvx.train again"
        ) from None
    frame = read_frame([path])
    names = {point: f"threshold_{point.name}" for point in OperatingPoint}
    known: dict[tuple[float, ...], Thresholds] = {}
    cards = {}
    columns = frame[list(names.values())].to_numpy(float).tolist()
    for request_id, values in zip(frame["request_id"], columns, strict=True):
        found = dict(zip(names, values, strict=True))
        # one object per fold: its policies are made once
        cards[request_id] = known.setdefault(tuple(values), found)
    return Forecasts(dict(zip(frame["request_id"], frame["hazard"], strict=True)), cards, card)


def check_points(experiment: Experiment, forecasts: Forecasts, folder: Path) -> None:
    """Raises `UserError` if the model is of other answers than there are now."""
    trained = forecasts.card.get("data", {}).get("points", {})
    changed = [p.id for p in experiment.points if trained.get(p.id, data_hash(p)) != data_hash(p)]
    if changed:
        raise UserError(
            f"{folder / FOLDER}: {changed[0]} has changed since its model was trained; run "
            "kvx.train again"
        )


def _source(forecasts: Forecasts | None) -> str:
    if forecasts is None:
        return "No trained model is among the controllers."
    card = forecasts.card
    training = card["training"]
    return (
        f"Each forecast (feature set `{training['features']}`, horizon {card['horizon_tokens']} "
        f"tokens) is that of a model of other prompts, with thresholds chosen on other prompts: "
        f"the {training['folds']} outer folds of `kvx.train`."
    )


def loop_onsets(token_ids: Any, n: int) -> list[int | None]:
    """After each of `n` tokens, the onset of the loop that the response is in; without ids, none.

    A server that gives no token ids shows a controller no loop.
    """
    if not isinstance(token_ids, np.ndarray):
        return [None] * n
    detector = LoopDetector()
    return [detector.push(token) for token in token_ids.tolist()]
