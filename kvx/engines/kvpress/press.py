"""From a press's configuration to kvpress's object, fresh for every request."""

import importlib.util
from typing import Any

import hydra.utils

from kvx.errors import UserError
from kvx.points import Point


def build_press(point: Point, n_tokens: int) -> Any | None:
    """A new kvpress press for a prompt of `n_tokens`; None where nothing is dropped.

    A press keeps state on itself and on the model, so none is ever used twice.
    """
    ratio = point.compression_ratio(n_tokens)
    if ratio == 0.0:
        return None
    assert point.config.press.method is not None
    return _instantiate(point.config.press.method, ratio)


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
    try:
        _instantiate(config.method, 0.5)
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        reason = str(cause or error).splitlines()[0]
        if isinstance(cause, ImportError):
            package = str(config.method["_target_"]).split(".")[0]
            known = importlib.util.find_spec(package) is not None
            reason = "no such class" if known else f"cannot import {package}; set PYTHONPATH"
        raise UserError(f"press={config.name}: {config.method.get('_target_')}: {reason}") from None
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
