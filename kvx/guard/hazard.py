"""The hazard model: probability that a catastrophe starts within the next H tokens."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
Floats = NDArray[np.float32]


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
        """Scores on the logit scale, before calibration: [rows]."""
        margin: Floats = self.booster.inplace_predict(features, predict_type="margin")
        return margin

    def predict(self, features: Floats) -> Floats:
        """Calibrated hazard of each row of `features` [rows, names]: float32 [rows] in [0, 1]."""
        return self.hazard(self.score(features))

    def hazard(self, score: Floats) -> Floats:
        """The calibrated probability of a `score` on the logit scale, in [0, 1]."""
        return calibration.probability(self.card["calibration"], score)

    def with_card(self, **entries: Any) -> "HazardModel":
        return replace(self, card={**self.card, **entries})

    def files(self) -> dict[str, bytes]:
        """The files to write, by name; the card names the model it belongs to."""
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
