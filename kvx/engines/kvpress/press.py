"""From a press's configuration to kvpress's object, fresh for every request."""

import importlib.util
import logging
from dataclasses import dataclass, replace
from typing import Any

import hydra.utils

from kvx.config import PressNeed
from kvx.errors import UserError
from kvx.points import Point
from kvx.sources import sources_of

# kvpress repeats its advice for every press object, of which there is one per request
logging.getLogger("kvpress").setLevel(logging.ERROR)

# these run alone; the other needs are met in a shared forward pass
ALONE = {PressNeed.changes_forward, PressNeed.masks}


@dataclass(frozen=True)
class PointPress:
    """A point's press for prompts whose compressed part has `n_tokens`.

    With a `budget`, the same press at another one than the point's.
    """

    point: Point
    n_tokens: int
    budget: float | None = None

    def build(self) -> Any | None:
        """A new kvpress press; None where nothing is dropped.

        A press keeps state on itself and on the model, so none is ever used twice.
        """
        ratio = self.point.compression_ratio(self.n_tokens)
        if self.budget is not None:
            ratio = 1.0 - self.budget
        if ratio == 0.0:
            return None
        assert self.point.config.press.method is not None
        return _instantiate(self.point.config.press.method, ratio)

    def at(self, budget: float) -> "PointPress":
        return replace(self, budget=budget)

    @property
    def method_key(self) -> str | None:
        """The same for presses that differ in their budget only; None if that changes scores."""
        config = self.point.config.press
        return None if config.score_uses_budget else repr(config.method)


def _instantiate(method: dict[str, Any], ratio: float) -> Any:
    """The press with its ratio set afterwards: wrappers pass it on to the press they wrap."""
    press = hydra.utils.instantiate(method, _convert_="all")
    if not hasattr(press, "compression_ratio"):
        raise UserError(f"{method['_target_']}: has no compression_ratio, so no budget can be set")
    press.compression_ratio = ratio
    return press


def check_press(point: Point) -> None:
    """Check the press before anything runs.

    Raises `UserError` if it does not exist, takes other arguments or refuses the prompts.
    """
    config = point.config.press
    if config.method is None:
        return
    check_method(point)
    shortest = min(point.manifest.entries, key=lambda e: e.compressed_tokens)
    if (
        point.compression_ratio(shortest.compressed_tokens) > 0
        and shortest.compressed_tokens <= config.min_prompt_tokens
    ):
        raise UserError(
            f"press={config.name}: needs prompts of more than {config.min_prompt_tokens} tokens; "
            f"example {shortest.example_id} has {shortest.compressed_tokens}; "
            "lower the press's window or use longer contexts (dataset.binning.edges)"
        )


def check_method(point: Point) -> None:
    """Check the press without any prompt.

    Raises `UserError` if it does not exist, takes other arguments or does more than it declares.
    """
    config = point.config.press
    assert config.method is not None
    if sources_of(config.method) != point.press_sources:
        raise UserError(
            f"press={config.name}: the code of {config.method.get('_target_')} changed while this "
            "run was starting; type the command again"
        )
    try:
        press = _instantiate(config.method, 0.5)
    except AttributeError as error:  # a compression_ratio that cannot be set
        target = config.method.get("_target_")
        raise UserError(f"press={config.name}: {target}: no budget can be set: {error}") from None
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        reason = str(cause or error).splitlines()[0]
        if isinstance(cause, ImportError):
            package = str(config.method["_target_"]).split(".")[0]
            known = importlib.util.find_spec(package) is not None
            reason = "no such class" if known else f"cannot import {package}; set PYTHONPATH"
        raise UserError(f"press={config.name}: {config.method.get('_target_')}: {reason}") from None
    _check_needs(point, press)


def _check_needs(point: Point, press: Any) -> None:
    """Raises `UserError` if the press does more than its YAML declares."""
    from kvpress import BasePress

    config = point.config.press
    if PressNeed.query_in_prompt in config.needs and not point.config.prompt.query_aware:
        raise UserError(
            f"press={config.name}: needs the question in what is compressed; "
            "add prompt.query_aware=true"
        )
    replaced = [
        name
        for name in ("__call__", "forward_hook")
        if getattr(type(press), name, None) is not getattr(BasePress, name)
    ]
    if replaced and not ALONE & set(config.needs):
        raise UserError(
            f"press={config.name}: {type(press).__name__} has a {replaced[0]} of its own, so it "
            "cannot share a prefill; declare press.needs=[changes_forward] (or masks) in its YAML"
        )


def runs_alone(point: Point) -> bool:
    """Whether this point's prompts need a forward pass of their own."""
    return bool(ALONE & set(point.config.press.needs)) and point.config.press.method is not None
