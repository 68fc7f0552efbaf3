"""The hazard model: probability that a catastrophe starts within the next H tokens."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.config.train import TrainConfig
from kvx.errors import UserError
from kvx.guard import calibration
from kvx.guard.trees import Trees
from kvx.identity import hazard_files
from kvx.identity.hazard_files import CARD as CARD
from kvx.identity.hazard_files import DEFAULT as DEFAULT
from kvx.identity.hazard_files import MODEL as MODEL

if TYPE_CHECKING:
    import xgboost as xgb

FORMAT = 1
# operating points, and the share of sound generations that may raise an alarm
OPERATING_POINTS = {"conservative": 0.01, "balanced": 0.05, "aggressive": 0.10}
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Examples:
    """Tokens to learn from: `features` [n, features], `positive` [n], `weight` [n] or None."""

    features: Floats
    positive: NDArray[np.bool_]
    weight: Floats | None = None


@dataclass(frozen=True)
class FitSettings:
    """XGBoost's parameters by its own names where they are its own."""

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


@dataclass(frozen=True)
class HazardModel:
    """A fitted model with its card; `card["features"]["names"]` is the order of its columns."""

    booster: "xgb.Booster"
    card: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.card["features"]["names"])

    @cached_property
    def trees(self) -> Trees:
        """For a few rows at a time."""
        return Trees(self.booster)

    @property
    def horizon(self) -> int:
        return int(self.card["horizon_tokens"])

    def threshold(self, operating_point: str) -> float:
        """The hazard from which `conservative`, `balanced` or `aggressive` raises an alarm."""
        return float(self.card["thresholds"][operating_point]["hazard"])

    def score(self, features: Floats) -> Floats:
        """What the trees say, on the logit scale, before calibration: [rows]."""
        margin: Floats = self.booster.inplace_predict(features, predict_type="margin")
        return margin

    def predict(self, features: Floats) -> Floats:
        """Calibrated hazard of each row of `features` [rows, names]: float32 [rows] in [0, 1]."""
        return self.hazard(self.score(features))

    def hazard(self, score: Floats) -> Floats:
        """What a `score` on the logit scale means: calibrated, in [0, 1]."""
        return calibration.probability(self.card["calibration"], score)

    def with_card(self, **entries: Any) -> "HazardModel":
        return replace(self, card={**self.card, **entries})

    def files(self) -> dict[str, bytes]:
        """What is to be written, by file name; the card names the model it belongs to."""
        model = bytes(self.booster.save_raw("json"))
        card = {**self.card, "model_sha256": hashlib.sha256(model).hexdigest()}
        return {MODEL: model, CARD: (in_lines(card) + "\n").encode()}

    @classmethod
    def load(cls, folder: Path, features: Sequence[str] | None = None) -> "HazardModel":
        """The model of a folder. Raises `UserError` if its files are missing, damaged, do not
        belong together, or were made for other than the asked `features`.
        """
        folder = Path(folder)
        raw, text = hazard_files.read(folder)
        card = _checked_card(folder / CARD, text)
        if hashlib.sha256(raw).hexdigest() != card["model_sha256"]:
            raise UserError(
                f"{folder / MODEL}: is not the model that {CARD} describes; run kvx.train again"
            )
        if features is not None and list(features) != card["features"]["names"]:
            raise UserError(f"{folder / CARD}: {_difference(card['features']['names'], features)}")
        import xgboost as xgb

        booster = xgb.Booster({"nthread": 1})
        try:
            booster.load_model(bytearray(raw))
        except xgb.core.XGBoostError:
            raise UserError(f"{folder / MODEL}: is no XGBoost model; run kvx.train again") from None
        return cls(booster, card)


def in_lines(value: Any, indent: str = "") -> str:
    """JSON of `value` with what holds no other list or object on one line: a table row, say."""
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(value, dict | list) or not any(isinstance(v, dict | list) for v in inner):
        return json.dumps(value)
    deeper = indent + " "
    texts = [in_lines(v, deeper) for v in inner]
    if isinstance(value, dict):
        texts = [f"{json.dumps(key)}: {text}" for key, text in zip(value, texts, strict=True)]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}\n{deeper}" + f",\n{deeper}".join(texts) + f"\n{indent}{last}"


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
    fitted = calibration.FITS[settings.calibration](score, validation.positive)
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


def _checked_card(path: Path, text: str) -> dict[str, Any]:
    needed = ("features", "horizon_tokens", "calibration", "thresholds", "model_sha256")
    try:
        card = json.loads(text)
        version = card["format"]
        missing = [name for name in needed if name not in card]
        whole = isinstance(card["features"]["names"], list) and not missing
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is no card of a hazard model; run kvx.train again") from None
    if version != FORMAT:
        raise UserError(
            f"{path}: has format {version}, this kvx reads {FORMAT}; run kvx.train again"
        )
    if not whole:
        raise UserError(f"{path}: lacks {', '.join(missing) or 'names'}; run kvx.train again")
    assert isinstance(card, dict)
    return card


def _difference(have: Sequence[str], asked: Sequence[str]) -> str:
    """In words, how the features of a card differ from the asked ones."""
    lacking = [name for name in asked if name not in have]
    extra = [name for name in have if name not in asked]
    if not lacking and not extra:
        return "has the asked features in another order; train again"
    parts = [f"lacks {lacking[0]} and {len(lacking) - 1} more" if lacking else ""]
    parts.append(f"has {extra[0]} and {len(extra) - 1} more that are not asked" if extra else "")
    how = ", ".join(filter(None, parts))
    return f"its {len(have)} features are not the {len(asked)} asked ({how}); train again"
