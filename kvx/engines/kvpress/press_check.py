"""Can a point's press do what its configuration asks? Found out before anything runs."""

import importlib.util
from typing import Any

import hydra.utils
import kvpress
from kvpress import BasePress, ScorerPress

from kvx.config import PressNeed
from kvx.engines.kvpress.parts import MASKING, packs, parts_of
from kvx.engines.kvpress.press import ALONE, instantiate
from kvx.errors import UserError, first_line
from kvx.points import Point
from kvx.sources import sources_of

# why presses of kvpress can have no point, by class; the class says the rest
REFUSED: tuple[tuple[type, str], ...] = (
    (
        kvpress.ComposedPress,
        "its budget is the product of its presses' own, so none can be set; use one of them alone",
    ),
    (
        kvpress.RestoreKVPress,
        "appends entries of its own to the prompt, and what follows them would be misplaced",
    ),
    (
        kvpress.FinchPress,
        "needs a delimiter token between context and question, which kvx's prompts do not have",
    ),
    (
        kvpress.KVgradPress,
        "needs gradients, and kvx runs the model without",
    ),
)


def check_press(point: Point) -> None:
    """Check the press and every prompt's length before anything runs.

    Raises `UserError` if it does not exist, takes other arguments or refuses a prompt.
    """
    config = point.config.press
    if config.method is None:
        return
    check_method(point)
    for entry in sorted(point.manifest.entries, key=lambda e: e.compressed_tokens):
        n = entry.compressed_tokens
        if point.compression_ratio(n) > 0 and n <= config.min_prompt_tokens:
            raise UserError(
                f"press={config.name}: needs prompts of more than {config.min_prompt_tokens} "
                f"tokens; example {entry.example_id} has {n}; "
                "lower the press's window or use longer contexts (dataset.binning.edges)"
            )
        point.degenerate_reason(n)  # raises for a condition that cannot be told of it


def check_method(point: Point) -> None:
    """Check the press without any prompt.

    Raises `UserError` if it does not exist, takes other arguments or does more than it declares.
    """
    config = point.config.press
    assert config.method is not None
    target = config.method.get("_target_")
    if sources_of(config.method) != point.press_sources:
        raise UserError(
            f"press={config.name}: the code of {target} changed while this run was starting; type "
            "the command again"
        )
    try:
        press = instantiate(config.method, 0.5)
    except UserError as error:
        raise UserError(f"press={config.name}: {error}") from None
    except hydra.errors.InstantiationException as error:
        reason = _why_not_made(error, str(target))
        raise UserError(f"press={config.name}: {target}: {reason}") from error
    except Exception as error:  # what a setter raises
        raise UserError(
            f"press={config.name}: {target}: no budget can be set: {first_line(error)}"
        ) from error
    _check_kind(point, press)
    _check_needs(point, press)


def check_on_model(point: Point, model: Any) -> None:
    """Let the press get ready for `model`, as it will for every prompt.

    Raises `UserError` if it cannot: some look files up by the model's name.
    """
    config = point.config.press
    if config.method is None:
        return
    press = instantiate(config.method, 0.5)
    try:
        press.post_init_from_model(model)
    except Exception as error:
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        raise UserError(
            f"press={config.name}: {type(press).__name__} cannot be used with {name}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _why_not_made(error: hydra.errors.InstantiationException, target: str) -> str:
    cause = error.__cause__
    if isinstance(cause, ImportError):
        package = target.split(".")[0]
        known = importlib.util.find_spec(package) is not None
        return "no such class" if known else f"cannot import {package}; set PYTHONPATH"
    return first_line(cause if cause is not None and str(cause) else error)


def _check_kind(point: Point, press: Any) -> None:
    """Raises `UserError` for what is no press, or none that kvx can run."""
    config = point.config.press
    name = f"press={config.name}: {type(press).__name__}"
    alone = ALONE & set(config.needs)
    if not isinstance(press, BasePress) and not (alone and callable(press)):
        raise UserError(f"{name} is no press: a press is a subclass of kvpress.BasePress")
    for part in parts_of(press):
        for kind, reason in REFUSED:
            if isinstance(part, kind):
                raise UserError(f"press={config.name}: {kind.__name__} {reason}")
        if _is_abstract(part):
            raise UserError(
                f"press={config.name}: {type(part).__name__} has no way to compress of its own; "
                "use a class with a score or compress method"
            )
        if isinstance(part, MASKING) and PressNeed.masks not in config.needs:
            raise UserError(
                f"press={config.name}: {type(part).__name__} hides entries instead of dropping "
                "them; declare press.needs=[masks] in its YAML"
            )
        if isinstance(part, kvpress.ObservedAttentionPress) and (
            PressNeed.attention_weights not in config.needs
        ):
            raise UserError(
                f"press={config.name}: {type(part).__name__} reads attention weights; declare "
                "press.needs=[attention_weights] in its YAML"
            )
    if packs(press) and point.guarded:
        raise UserError(
            f"{name} moves what it keeps to other positions, so a guard cannot give the rest back; "
            "use another press or controller=none"
        )


def _is_abstract(press: Any) -> bool:
    """Whether it would have to be subclassed first."""
    kind = type(press)
    if getattr(kind, "forward_hook", None) is not BasePress.forward_hook:
        return False  # has a way of its own
    if getattr(kind, "compress", None) is BasePress.compress:
        return True
    scores = getattr(kind, "compress", None) is ScorerPress.compress
    return scores and getattr(kind, "score", None) is ScorerPress.score


def _check_needs(point: Point, press: Any) -> None:
    """Raises `UserError` if the press does more than its YAML declares."""
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
