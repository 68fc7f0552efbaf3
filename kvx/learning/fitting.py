"""Fitting a hazard model, and choosing the thresholds of its card."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.config.train import TrainConfig
from kvx.guard.hazard import FORMAT, Floats, HazardModel
from kvx.learning.calibrating import FITS

if TYPE_CHECKING:
    import xgboost as xgb

# operating points, and the share of sound generations that may raise an alarm
OPERATING_POINTS = {"conservative": 0.01, "balanced": 0.05, "aggressive": 0.10}


@dataclass(frozen=True)
class Examples:
    """Tokens to learn from: `features` [n, features], `positive` [n], `weight` [n] or None."""

    features: Floats
    positive: NDArray[np.bool_]
    weight: Floats | None = None


@dataclass(frozen=True)
class FitSettings:
    """XGBoost's parameters under XGBoost's names."""

    rounds: int = TrainConfig.rounds
    patience: int = TrainConfig.patience
    max_depth: int = TrainConfig.max_depth
    eta: float = TrainConfig.eta
    subsample: float = TrainConfig.subsample
    colsample_bytree: float = TrainConfig.colsample_bytree
    min_child_weight: float = TrainConfig.min_child_weight
    balance: float = 0.5  # positives weigh (negatives per positive) to this power
    calibration: str = "platt"
    seed: int = 0
    threads: int = 1


def fit(
    train: Examples, validation: Examples, names: Sequence[str], horizon: int, settings: FitSettings
) -> HazardModel:
    """Boosted trees on `train`, stopped early and calibrated on `validation`.

    The same arguments give the same model. Raises `ValueError` if either side lacks a class.
    """
    for side, examples in (("train", train), ("validation", validation)):
        if examples.positive.all() or not examples.positive.any():
            raise ValueError(f"{side}: needs tokens with and without a catastrophe ahead")
    n_positive = float(train.positive.sum())
    weight = ((len(train.positive) - n_positive) / n_positive) ** settings.balance
    # what stops the fit early weighs as what is fitted
    learnt, watched = (_matrix(side, weight, settings) for side in (train, validation))
    parameters = {
        "objective": "binary:logistic", "eval_metric": "logloss", "tree_method": "hist",
        "max_depth": settings.max_depth, "eta": settings.eta, "subsample": settings.subsample,
        "colsample_bytree": settings.colsample_bytree, "seed": settings.seed,
        "min_child_weight": settings.min_child_weight, "nthread": settings.threads,
    }  # fmt: skip
    import xgboost as xgb

    booster = xgb.train(
        parameters,
        learnt,
        settings.rounds,
        evals=[(watched, "validation")],
        early_stopping_rounds=settings.patience,
        verbose_eval=False,
    )
    booster = booster[: booster.best_iteration + 1]
    booster.set_param({"nthread": 1})
    model = HazardModel(
        booster,
        {
            "format": FORMAT,
            "features": {"names": list(names)},
            "horizon_tokens": horizon,
            "trees": booster.num_boosted_rounds(),
        },
    )
    score = model.score(validation.features)
    fitted = FITS[settings.calibration](score, validation.positive)
    return model.with_card(calibration=fitted)


def threshold_at(scores: ArrayLike, rate: float) -> float:
    """The lowest threshold that at most the share `rate` of `scores` [n] reaches (score >= it).

    `scores` are the highest of each sound trace. Raises `ValueError` if there is none.
    """
    highest = np.sort(np.asarray(scores, np.float32))[::-1]
    if not len(highest):
        raise ValueError("scores: no sound trace to choose a threshold on")
    allowed = int(np.floor(rate * len(highest) + 1e-9))
    if allowed >= len(highest):
        return float(highest[-1])
    return float(np.nextafter(highest[allowed], np.float32(np.inf)))


def _matrix(examples: Examples, of_positives: float, settings: FitSettings) -> "xgb.DMatrix":
    weight = np.where(examples.positive, of_positives, 1.0)
    if examples.weight is not None:
        weight = weight * examples.weight
    import xgboost as xgb

    return xgb.DMatrix(
        examples.features, label=examples.positive, weight=weight, nthread=settings.threads
    )
