"""The part of a configuration that identifies results: plain data without its neutral fields.

`kvx.points` makes a point's id of it, with the manifest, the model's files and the user's code.
"""

import dataclasses
from enum import Enum
from typing import Any

from kvx.config.controller import RECORD, ControllerConfig
from kvx.config.fields import about
from kvx.config.schema import Config


def resolved(value: Any) -> Any:
    """A configuration as plain data, without the fields that cannot change results."""
    if isinstance(value, ControllerConfig):
        return _recorded(value)
    if dataclasses.is_dataclass(value):
        return {
            f.name: resolved((about(f).identity or _itself)(getattr(value, f.name)))
            for f in dataclasses.fields(value)
            if not about(f).neutral and not _unused(f, getattr(value, f.name))
        }
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {k: resolved(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [resolved(v) for v in value]
    return value


def unlabelled(value: Any) -> dict[str, Any]:
    """A part of a configuration as `resolved`, without what tables call it."""
    labels = {f.name for f in dataclasses.fields(value) if about(f).label}
    return {name: plain for name, plain in resolved(value).items() if name not in labels}


def _recorded(controller: ControllerConfig) -> dict[str, Any]:
    """A controller as it is in a point's record: kvx's own as before there were classes."""
    fields = {f.name: resolved(getattr(controller, f.name)) for f in dataclasses.fields(controller)}
    target = {"_target_": controller.target} if controller.is_users else {}
    return {**RECORD, "kind": controller.kind, **fields, **target}


def _unused(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field that came later is at its default, as all points were before it."""
    if not about(field).added:
        return False
    made = field.default_factory
    return bool(value == (field.default if made is dataclasses.MISSING else made()))


def known_before(value: Any) -> dict[str, Any]:
    """A configuration as `dataclasses.asdict`, without fields that came later and are at their
    default.
    """
    unused = {f.name for f in dataclasses.fields(value) if _unused(f, getattr(value, f.name))}
    return {n: v for n, v in dataclasses.asdict(value).items() if n not in unused}


def made_with(value: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a configuration that name no point but may tip a near tie, by dotted name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), f"{prefix}{field.name}"
        if about(field).recorded and not _unused(field, inner):
            found[name] = inner
        elif dataclasses.is_dataclass(inner):
            found |= made_with(inner, f"{name}.")
    return found


def _itself(value: Any) -> Any:
    return value


def is_guarded(config: Config) -> bool:
    """Whether a controller steers the point's sequences."""
    return config.controller.acts
