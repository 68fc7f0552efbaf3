"""Fitting on some prompts, choosing thresholds on others, scoring the rest."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from kvx.config.train import ClassWeight, TrainConfig
from kvx.errors import UserError
from kvx.guard import features
from kvx.guard.blocks import Floats
from kvx.guard.hazard import HazardModel
from kvx.learning.evaluation import highest
from kvx.learning.fitting import OPERATING_POINTS, Examples, FitSettings, fit, threshold_at
from kvx.learning.labels import Role, token_labels, usable_tokens
from kvx.learning.splits import PARTS, folds, parts
from kvx.train.trace_data import Data

Mask = NDArray[np.bool_]
BALANCE = {ClassWeight.balanced: 1.0, ClassWeight.sqrt: 0.5, ClassWeight.none: 0.0}
TRAIN, VALIDATION, THRESHOLD = PARTS


@dataclass(frozen=True)
class Table:
    """The `features` [tokens, names] of every token of `data`."""

    data: Data
    features: Floats
    names: tuple[str, ...]

    @classmethod
    def of(cls, data: Data) -> "Table":
        """The features of every set."""
        sets = (features.names_of(feature_set, data.presses) for feature_set in features.SETS)
        names = tuple(dict.fromkeys(chain.from_iterable(sets)))
        return cls(data, features.build(data.traces, names), names)

    def until_detection(self) -> "Table":
        """The same features, with events that start where their loop can be detected."""
        return replace(self, data=self.data.until_detection())

    def names_of(self, feature_set: str) -> tuple[str, ...]:
        return features.names_of(feature_set, self.data.presses)

    def columns(self, names: Sequence[str]) -> NDArray[np.intp]:
        place = {name: i for i, name in enumerate(self.names)}
        return np.array([place[name] for name in names], dtype=np.intp)

    def tokens(self, traces: Mask) -> Mask:
        return np.repeat(traces, self.data.traces.lengths)

    def matrix(self, tokens: Mask | NDArray[np.int64], names: Sequence[str]) -> Floats:
        """Features [tokens, names] of a mask or of numbers of tokens."""
        rows = np.arange(len(self.features))[tokens]
        return np.ascontiguousarray(self.features[np.ix_(rows, self.columns(names))])


@dataclass(frozen=True)
class CrossFit:
    """Scores of every token by a model fitted without its prompt; nan where not scored.

    `thresholds` [n] by operating point are those of the trace's fold.
    """

    score: NDArray[np.float32]
    thresholds: dict[str, NDArray[np.float64]]


def settings_of(config: TrainConfig) -> FitSettings:
    return FitSettings(
        rounds=config.rounds,
        patience=config.patience,
        max_depth=config.max_depth,
        eta=config.eta,
        subsample=config.subsample,
        colsample_bytree=config.colsample_bytree,
        min_child_weight=config.min_child_weight,
        seed=config.seed,
        balance=BALANCE[config.class_weight],
        calibration=config.calibration.name,
        threads=config.threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1,
    )


def outer_folds(data: Data, config: TrainConfig) -> NDArray[np.int64]:
    """The fold of each trace [n]."""
    of = folds(data.strata, config.folds, config.seed)
    return np.asarray(data.frame["prompt"].map(of), np.int64)


def inner_parts(data: Data, among: Mask, config: TrainConfig) -> NDArray[np.str_]:
    """Each trace's part, "" for those not `among`."""
    prompts = data.frame["prompt"]
    chosen = set(prompts[among])
    strata = {prompt: group for prompt, group in data.strata.items() if prompt in chosen}
    part = prompts.map(parts(strata, config.shares, config.seed)).where(among, "")
    return np.asarray(part, np.str_)


def fit_parts(
    table: Table, part: NDArray[np.str_], names: Sequence[str], horizon: int, config: TrainConfig
) -> HazardModel:
    """A model of the train and validation parts, with thresholds chosen on the third.

    Raises `UserError` if one of the parts has no catastrophe to learn from.
    """
    data = table.data
    label = token_labels(data.traces.lengths, data.about.onset, horizon)
    usable = usable_tokens(data.traces.lengths, data.about)
    sides = []
    for name in (TRAIN, VALIDATION):
        rows = np.flatnonzero(usable & table.tokens(part == name))
        chosen, weight = _sample(rows, label, config, keep_positive=name == TRAIN)
        sides.append(Examples(table.matrix(chosen, names), label[chosen], weight))
    try:
        model = fit(sides[0], sides[1], names, horizon, settings_of(config))
    except ValueError as error:
        raise UserError(
            f"too few catastrophes with something before them to learn from ({error}); run more "
            "prompts or lower budgets"
        ) from None
    third = table.tokens(part == THRESHOLD)
    score = np.full(len(third), np.nan, np.float32)
    score[third] = model.predict(table.matrix(third, names))
    return model.with_card(thresholds=thresholds(data, part == THRESHOLD, score))


def thresholds(data: Data, among: Mask, score: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """By operating point, the score that at most its rate of sound compressed traces `among` reach.

    Raises `UserError` if there is no such trace.
    """
    lengths = data.traces.lengths
    peaks = highest(score, usable_tokens(lengths, data.about) & ~np.isnan(score), lengths)
    sound = among & data.compressed & (data.about.role == Role.NEGATIVE) & ~np.isnan(peaks)
    if not sound.any():
        raise UserError("no sound compressed response to choose thresholds on; run more prompts")
    return {
        name: {"hazard": threshold_at(peaks[sound], rate), "false_positive_rate": rate}
        for name, rate in OPERATING_POINTS.items()
    }


def crossfit(
    table: Table,
    names: Sequence[str],
    horizon: int,
    config: TrainConfig,
    fold: NDArray[np.int64],
    learnt: Mask | None = None,
    tested: Mask | None = None,
) -> CrossFit:
    """Each fold's traces scored by a model of the others'.

    Only `learnt` traces are learnt from and only `tested` ones scored, if given.
    """
    data = table.data
    learnt, tested = (np.ones(len(data), bool) if m is None else m for m in (learnt, tested))
    score = np.full(len(table.features), np.nan, np.float32)
    limits = {name: np.full(len(data), np.nan) for name in OPERATING_POINTS}
    for k in range(config.folds):
        ours = tested & (fold == k)
        if not ours.any():
            continue
        part = inner_parts(data, learnt & (fold != k), config)
        model = fit_parts(table, part, names, horizon, config)
        tokens = table.tokens(ours)
        score[tokens] = model.predict(table.matrix(tokens, names))
        for name, limit in limits.items():
            limit[ours] = model.threshold(name)
    return CrossFit(score, limits)


def crossfit_fixed(
    data: Data, score: NDArray[np.float32], config: TrainConfig, fold: NDArray[np.int64]
) -> CrossFit:
    """A score that needs no fitting, with thresholds chosen as those of a model would be."""
    limits = {name: np.full(len(data), np.nan) for name in OPERATING_POINTS}
    for k in range(config.folds):
        part = inner_parts(data, fold != k, config)
        chosen = thresholds(data, part == THRESHOLD, score)
        for name, limit in limits.items():
            limit[fold == k] = chosen[name]["hazard"]
    return CrossFit(score, limits)


def _sample(
    rows: NDArray[np.int64], label: Mask, config: TrainConfig, keep_positive: bool
) -> tuple[NDArray[np.int64], Floats | None]:
    """At most `train.max_tokens` of the tokens `rows`, and their weights.

    Drawn evenly, or with up to half of the places for positives and weights that undo the choice.
    """
    if len(rows) <= config.max_tokens:
        return rows, None
    rng = np.random.default_rng(config.seed)
    if not keep_positive:
        return np.sort(rng.choice(rows, config.max_tokens, replace=False)), None
    kept, weights = [], []
    n_positive = min(int(label[rows].sum()), config.max_tokens // 2)
    for group, n in ((rows[label[rows]], n_positive), (rows[~label[rows]], None)):
        size = min(len(group), config.max_tokens - n_positive if n is None else n)
        kept.append(rng.choice(group, size, replace=False))
        weights.append(np.full(size, len(group) / max(size, 1), np.float32))
    chosen = np.concatenate(kept)
    order = np.argsort(chosen)
    return chosen[order], np.concatenate(weights)[order]
