"""The forecasts that controllers replay, by models that never saw the prompts they forecast.

They are the cross-fitted ones of the experiment's own model, or else those of the packaged model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.frames import Experiment
from kvx.config.controller import OperatingPoint as Point
from kvx.config.train import Target
from kvx.errors import UserError
from kvx.guard import features
from kvx.guard.controllers.base import Thresholds
from kvx.guard.hazard import CARD, DEFAULT, HazardModel
from kvx.identity import hazard_files
from kvx.store.catalog import read_frame
from kvx.store.shards import read_inputs
from kvx.train.build import FOLDER, PREDICTIONS, data_hash
from kvx.train.trace_data import Data, prompt_ids

OTHERWISE = (
    "run kvx.train with the same arguments, or simulate controllers without a model: "
    "simulate.controllers=[none,reactive,rule_based] simulate.match=reactive"
)

_OF_FOLD = ("threshold_{}", "gate_{}_nats")  # columns of predictions


@dataclass(frozen=True)
class Forecasts:
    """By request: the hazard after every token [tokens], and its model's thresholds.

    `source`: a sentence or two on where they come from.
    """

    hazard: Mapping[str, NDArray[np.float32]]
    cards: Mapping[str, Thresholds]
    source: str


def identity(folder: Path) -> str | None:
    """Identity of the forecasts that `folder` gets, without reading them."""
    if trained(folder):
        return read_inputs(folder / FOLDER / PREDICTIONS)
    return hazard_files.identity(DEFAULT)


def trained(folder: Path) -> bool:
    """Whether the experiment has a model of its own."""
    return (folder / FOLDER / PREDICTIONS).is_file()


def own(experiment: Experiment) -> Forecasts:
    """The forecasts of kvx.train.

    Raises `UserError` if they cannot be read, or if points have changed since.
    """
    guard = experiment.dir / FOLDER
    try:
        card = json.loads((guard / CARD).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{guard / CARD}: cannot be read ({error}); run kvx.train again") from None
    seen = card.get("data", {}).get("points", {})
    for p in experiment.points:
        if seen.get(p.id, data_hash(p)) != data_hash(p):
            raise UserError(
                f"{guard}: {p.id} has changed since its model was trained; run kvx.train again"
            )
    frame = read_frame([guard / PREDICTIONS])
    # predictions of an older kvx have no gates
    columns = frame.reindex(columns=[form.format(p.name) for form in _OF_FOLD for p in Point])
    known = {}  # one object per fold: its policies are made once
    for fold, row in columns.astype(float).groupby(frame["fold"]).first().iterrows():
        hazard, gate = (dict(zip(Point, part, strict=True)) for part in np.split(row.to_numpy(), 2))
        known[fold] = Thresholds(hazard, {p: n for p, n in gate.items() if not np.isnan(n)})
    source = (
        f"Each forecast ({_kind(card)}) is that of a model of other prompts, with thresholds "
        f"chosen on other prompts: the {card['training']['folds']} outer folds of `kvx.train`."
    )
    requests = frame["request_id"].tolist()
    cards = dict(zip(requests, frame["fold"].map(known), strict=True))
    return Forecasts(dict(zip(requests, frame["hazard"], strict=True)), cards, source)


def packaged(data: Data, folder: Path) -> Forecasts:
    """The forecasts of the packaged model, for an experiment without a model of its own.

    Raises `UserError` if that model was made from some of these prompts, or if the traces lack
    signals that it needs.
    """
    model = HazardModel.load(DEFAULT)
    ids = set(prompt_ids(data))
    shared = ids & set(model.card["data"]["prompts"])
    missing = f"{folder / FOLDER / PREDICTIONS}: no forecasts, and the model of the package"
    if shared:
        raise UserError(
            f"{missing} was made from {len(shared)} of these {len(ids)} prompts; {OTHERWISE}"
        )
    if np.isnan(data.traces.signals["top1_prob"]).any():
        raise UserError(f"{missing} needs more than a server's log-probs; {OTHERWISE}")
    hazard = model.predict(features.build(data.traces, model.names))
    pieces = np.split(hazard, data.traces.starts[1:-1])
    card = Thresholds.of(model.card)
    requests = data.frame["request_id"].tolist()
    made = model.card["data"]
    source = (
        f"This experiment has no model of its own: each forecast ({_kind(model.card)}) is that of "
        f"the model that comes with kvx, with its own thresholds. It was made from "
        f"`{model.card['experiment']}` ({', '.join(made['models'])} on "
        f"{', '.join(made['datasets'])}); none of the {len(ids)} prompts here was among its "
        f"{made['n_prompts']}. It was neither fitted nor calibrated for these responses"
    )
    if strange := sorted(set(data.frame["model"]) - set(made["models"])):
        source += f", nor for {', '.join(strange)}"
    return Forecasts(
        dict(zip(requests, pieces, strict=True)), dict.fromkeys(requests, card), f"{source}."
    )


def _kind(card: Mapping[str, Any]) -> str:
    training = card["training"]
    aim = training.get("target", Target.onset.name)
    return (
        f"feature set `{training['features']}`, horizon {card['horizon_tokens']} tokens, trained "
        f"for the {aim} of a loop"
    )
