"""Controllers of their configuration, and the options of `conf/controller/` by name."""

import dataclasses
import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, get_origin

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvx.config.controller import RECORD, ControllerConfig
from kvx.config.controller_files import (
    TARGET,
    choices,
    class_named,
    folder,
    names,
    owner_of,
    read,
    shipped_fields,
)
from kvx.config.field_names import no_such_field
from kvx.config.fields import check
from kvx.config.messages import plainly
from kvx.errors import UserError

# what is recorded of a controller beside its fields
RESERVED = frozenset({"kind", "label", "code", "guard"})


def named(name: str) -> ControllerConfig:
    """An option. Raises `UserError` if there is none of this name, or its file is wrong."""
    if name not in names():
        raise UserError(f"controller={name}: there is {', '.join(names())}")
    try:
        return made(OmegaConf.to_container(read(name), resolve=True))
    except (UserError, OmegaConfBaseException) as error:
        path = folder() / f"{name}.yaml"
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None


def made(settings: Any) -> ControllerConfig:
    """The controller of a composed configuration: a `_target_` and the fields of that class.

    Raises `UserError` naming the field for anything else.
    """
    if "kind" in settings:
        raise UserError(_instead_of_kind(settings["kind"]))
    cls = class_named(settings.get(TARGET, MISSING))
    fields = {f.name for f in dataclasses.fields(cls)}
    _check_class(cls, settings[TARGET], fields)
    given = {}
    for key, value in settings.items():
        if key in fields:
            given[key] = value
        elif key == TARGET:
            continue
        elif cls.acts or (owner := owner_of(key)) is None:
            raise UserError(f"controller.{key}: {_no_such_field(key, settings, fields)}")
        else:
            check(_typed(owner, {key: value}), "controller.")  # ignored, but not nonsense
    if given.get("name", MISSING) == MISSING:
        raise UserError("controller.name: needs a value")
    return _typed(cls, given)


def _check_class(cls: type[ControllerConfig], target: str, fields: set[str]) -> None:
    """Raises `UserError` for a class whose settings would be ignored or confused with kvx's."""
    if cls.__module__.partition(".")[0] == "kvx":
        return
    annotations = inspect.get_annotations(cls)
    if own := [name for name in annotations.keys() - fields if not _of_class(annotations[name])]:
        raise UserError(
            f"controller.{TARGET}={target}: {own[0]} is no field of it; decorate the class with "
            "@dataclass"
        )
    if taken := sorted(fields & RESERVED):
        raise UserError(
            f"controller.{TARGET}={target}: its field {taken[0]} needs another name; kvx records "
            "something else as that"
        )


def _of_class(annotation: Any) -> bool:
    """Whether it is a ClassVar; after `from __future__ import annotations` it is a string."""
    return get_origin(annotation) is ClassVar or "ClassVar" in str(annotation)


def _typed(cls: type[ControllerConfig], given: dict[str, Any]) -> ControllerConfig:
    try:
        known = _fields_of(cls)  # type: ignore[arg-type]  # mypy asks whether objects have a hash
        found = OmegaConf.to_object(OmegaConf.merge(known, {"name": "unnamed"} | given))
    except OmegaConfBaseException as error:
        key, why = str(error.full_key), plainly(str(error).splitlines()[0])
        raise UserError(f"controller.{key}={given.get(key)}: {why}") from None
    assert isinstance(found, ControllerConfig)
    return found


@lru_cache(maxsize=64)
def _fields_of(cls: type[ControllerConfig]) -> Any:
    """The fields of a class and their kinds. Finding out takes longer than setting them."""
    return OmegaConf.structured(cls)


def _no_such_field(key: str, settings: Mapping[str, Any], fields: set[str]) -> str:
    listed = sorted(fields, key=list(RECORD).index if fields <= set(RECORD) else None)
    if key in shipped_fields():
        return f"controller={settings.get('name')} has no such field; it has {', '.join(listed)}"
    return no_such_field(f"controller.{key}", listed)


def _instead_of_kind(kind: Any) -> str:
    """A hint for `controller.kind`, which no longer is a field."""
    of_kind = [n for n in names() if getattr(class_named(read(n)[TARGET]), "kind", None) == kind]
    choice = ", ".join(f"controller={n}" for n in of_kind) or f"controller={choices()}"
    return f"controller.kind={kind}: not a field; choose a controller by its name: {choice}"
