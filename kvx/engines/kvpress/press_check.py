"""Checks, before anything runs, that a point's press can do what its configuration asks."""

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import hydra.utils
import kvpress
from kvpress import BasePress, ScorerPress

from kvx.config.press_choices import PressLayers, PressNeed
from kvx.config.schema import PressConfig
from kvx.data.model_attention import ANGLES
from kvx.engines.kvpress.agreement import agreement_of
from kvx.engines.kvpress.applicability import unfit_prompt
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.parts import MASKING, own_line, packs, parts_of
from kvx.engines.kvpress.press import ALONE, instantiate
from kvx.engines.kvpress.sharing import ragged_obstacle
from kvx.engines.kvpress.wrapping import check_wrapping
from kvx.errors import UserError, first_line
from kvx.guard.own_code import check_code
from kvx.identity.user_code import sources_of
from kvx.points import Point

# by class: why a press of kvpress cannot be used
REFUSED: tuple[tuple[type, str], ...] = (
    (
        kvpress.RestoreKVPress,
        "appends entries to the prompt, so the text after them would be at wrong positions",
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
    check_code(point.config.controller, point.controller_sources)
    if (why := unfit_prompt(point)) is not None:
        raise UserError(f"press={config.name}: {why}")
    for n in {entry.compressed_tokens for entry in point.manifest.entries}:
        point.degenerate_reason(n)  # raises for a condition that cannot be evaluated


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
    check_wrapping(config.name, config.method)
    try:
        press = instantiate(config, 0.5)
    except UserError as error:
        told = str(error).removeprefix(f"press={config.name}: ")
        raise UserError(f"press={config.name}: {told}") from None
    except hydra.errors.InstantiationException as error:
        reason = _why_not_made(error, config.method)
        raise UserError(f"press={config.name}: {target}: {reason}") from error
    except Exception as error:  # what a setter raises
        raise UserError(
            f"press={config.name}: {target}: no budget can be set: {_told(error)}; use a "
            "press with a compression_ratio"
        ) from error
    _check_kind(point, press)
    _check_needs(point, press)


def check_on_model(point: Point, model: Any) -> None:
    """Let the press prepare for `model`, as it will for every prompt.

    Raises `UserError` if it cannot: some presses look up files by the model's name.
    """
    config = point.config.press
    if config.method is None:
        return
    press, layers = instantiate(config, 0.5), layers_of(model)
    if not layers.cached:
        raise UserError(
            f"press={config.name}: cannot be used with {type(model).__name__}: it has "
            f"{layers.obstacle or 'no layer with keys and values that kvx can follow'}"
        )
    if not layers.full and config.layers is PressLayers.full:
        window = max(layer.window or 0 for layer in layers.cached.values())
        raise UserError(
            f"press={config.name}: every layer of {type(model).__name__} has a window, of up to "
            f"{window} tokens, and none has full attention; press.layers=all compresses windows, "
            "of prompts that are no longer than them"
        )
    if len(layers.full) < len(layers.cached) or layers.recurrent:
        _check_mixed(config, press, type(model).__name__)
    if layers.shared and PressNeed.masks in config.needs:
        raise UserError(
            f"press={config.name}: hides entries from the attention of one layer, and layers of "
            f"{type(model).__name__} share their entries or their weights; use another press"
        )
    if PressNeed.uneven_layers in config.needs and (reason := ragged_obstacle(model)) is not None:
        raise UserError(
            f"press={config.name}: keeps another number of entries in each layer, and "
            f"{type(model).__name__} has {reason}; use another press"
        )
    angles = agreement_of(model).reasons.get(ANGLES, "") if packs(press) else ""
    if angles.startswith("kvpress's"):  # it can make them, and they are others
        raise UserError(
            f"press={config.name}: {type(press).__name__} turns keys to other positions, and "
            f"{angles}; use another press"
        )
    try:
        press.post_init_from_model(model)
    except Exception as error:
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        raise UserError(
            f"press={config.name}: {type(press).__name__} cannot be used with {name}: "
            f"{_told(error)}"
        ) from error


def _check_mixed(config: PressConfig, press: Any, model: str) -> None:
    """Raises `UserError` for a press that cannot leave out layers that keep no whole prompt."""
    kind, alone = type(press), ALONE & set(config.needs)
    if packs(press):
        raise UserError(
            f"press={config.name}: {kind.__name__} moves what it keeps to other positions, and "
            f"{model} has layers with a window or a state, which do not follow; use another press"
        )
    if alone and kind.__call__ is not BasePress.__call__:
        raise UserError(
            f"press={config.name}: {kind.__name__} works on all layers of a model, and those of "
            f"{model} are not all of full attention; use another press"
        )
    if alone and config.layers is PressLayers.all:
        raise UserError(
            f"press={config.name}: hides entries or changes the forward pass, which works "
            "in layers of full attention only; use press.layers=full"
        )


def _why_not_made(error: Exception, method: Mapping[str, Any]) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    targets = [str(method.get("_target_")), *_targets(method)]
    missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
    if missing and any(target == missing or target.startswith(f"{missing}.") for target in targets):
        package = missing.split(".")[0]
        known = importlib.util.find_spec(package) is not None
        return "no such class" if known else f"cannot import {package}; set PYTHONPATH"
    return _told(cause)


def _targets(method: Mapping[str, Any]) -> Iterator[str]:
    """The classes that a method names, including wrapped ones."""
    for name, value in method.items():
        if name == "_target_":
            yield str(value)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Mapping):
                yield from _targets(inner)


def _told(error: BaseException) -> str:
    """An exception's message, and where a user's own code raised it."""
    line, said = own_line(error), first_line(error)
    if line is None:
        return said
    kind = type(error).__name__
    return f"{said if said == kind else f'{kind}: {said}'} ({line})"


def _check_kind(point: Point, press: Any) -> None:
    """Raises `UserError` for something that is not a press, or not one that kvx can run."""
    config = point.config.press
    name = f"press={config.name}: {type(press).__name__}"
    alone = ALONE & set(config.needs)
    if not isinstance(press, BasePress) and not (alone and callable(press)):
        raise UserError(f"{name} is not a press: a press is a subclass of kvpress.BasePress")
    for part in parts_of(press):
        for kind, reason in REFUSED:
            if isinstance(part, kind):
                raise UserError(f"press={config.name}: {kind.__name__} {reason}")
        if isinstance(part, kvpress.RandomPress) and part.seed is not None:
            raise UserError(
                f"press={config.name}: press.method.seed={part.seed}: keeps the same positions in "
                "every layer and prompt; leave it out, kvx draws anew from the run's seed"
            )
        if _is_abstract(part):
            raise UserError(
                f"press={config.name}: {type(part).__name__} does not compress; "
                "use a class with a score or compress method"
            )
        unstructured = isinstance(part, kvpress.KVComposePress) and not part.structured
        if (isinstance(part, MASKING) or unstructured) and PressNeed.masks not in config.needs:
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
    if config.layers is PressLayers.all and point.guarded:
        raise UserError(
            f"press={config.name}: press.layers=all: a guard cannot give windows back; use "
            "press.layers=full or controller=none"
        )
    if packs(press) and point.guarded:
        raise UserError(
            f"{name} moves what it keeps to other positions, so a guard cannot give the rest back; "
            "use another press or controller=none"
        )


def _is_abstract(press: Any) -> bool:
    """Whether it is an abstract class of kvpress."""
    kind = type(press)
    if getattr(kind, "forward_hook", None) is not BasePress.forward_hook:
        return False  # compresses in its own hook
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
