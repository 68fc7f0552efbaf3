"""Controllers of their configuration, and the options of `conf/controller/` by name."""

import dataclasses
import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvx.config.controller import RECORD, ControllerConfig
from kvx.config.folders import conf_dir
from kvx.config.messages import plainly
from kvx.errors import UserError

TARGET = "_target_"


def names() -> list[str]:
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def named(name: str) -> ControllerConfig:
    """An option. Raises `UserError` if there is none of this name, or its file is wrong."""
    if name not in names():
        raise UserError(f"controller={name}: there is {', '.join(names())}")
    try:
        return made(OmegaConf.to_container(_read(name), resolve=True))
    except (UserError, OmegaConfBaseException) as error:
        path = _folder() / f"{name}.yaml"
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None


def made(settings: Any) -> ControllerConfig:
    """The controller of a composed configuration: a `_target_` and the fields of that class.

    Raises `UserError` naming the field for anything else.
    """
    if "kind" in settings:
        raise UserError(_instead_of_kind(settings["kind"]))
    cls = _class(settings.get(TARGET, MISSING))
    fields = {f.name for f in dataclasses.fields(cls)}
    given = {}
    for key, value in settings.items():
        if key in fields:
            given[key] = value
        elif key != TARGET and (cls.acts or key not in shipped_fields()):
            raise UserError(f"controller.{key}: {_no_such_field(key, settings, fields)}")
    if given.get("name", MISSING) == MISSING:
        raise UserError("controller.name: needs a value")
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
    except OmegaConfBaseException as error:
        key, why = str(error.full_key), plainly(str(error).splitlines()[0])
        raise UserError(f"controller.{key}={given.get(key)}: {why}") from None
    assert isinstance(found, ControllerConfig)
    return found


def current(controller: ControllerConfig) -> ControllerConfig:
    """The same settings in the class as it is now: a module may have been read again since."""
    cls = _class(controller.target) if controller.is_users else type(controller)
    return controller if cls is type(controller) else cls(**vars(controller))


def shipped_fields() -> dict[str, Any]:
    """The fields of kvx's own controllers, whichever has them."""
    return {f.name: f for cls in _shipped() for f in dataclasses.fields(cls)}


@cache
def _shipped() -> tuple[type[ControllerConfig], ...]:
    targets = (_read(name)[TARGET] for name in names())
    return tuple(_class(target) for target in dict.fromkeys(targets))


def _class(target: Any) -> type[ControllerConfig]:
    if not isinstance(target, str) or target == MISSING:
        raise UserError(f"controller.{TARGET}: needs a class; choose controller={_choice()}")
    parts = target.split(".")
    found: Any = None
    reason = "no such module"
    for n in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:n])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if f"{module}.".startswith(f"{error.name}."):
                continue
            reason = str(error)
            break
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error) or 'on import'}"
            break
        reason = f"{module} has no {'.'.join(parts[n:])}"
        for part in parts[n:]:
            found = getattr(found, part, None)
        break
    if found is None or isinstance(found, type(importlib)):
        raise UserError(f"controller.{TARGET}={target}: {reason}")
    if not isinstance(found, type) or not issubclass(found, ControllerConfig):
        raise UserError(
            f"controller.{TARGET}={target}: must be a subclass of kvx.guard.controllers.Controller"
        )
    return found


def _no_such_field(key: str, settings: Mapping[str, Any], fields: set[str]) -> str:
    from kvx.config.field_names import no_such_field

    listed = sorted(fields, key=list(RECORD).index if fields <= set(RECORD) else None)
    if key in shipped_fields():
        return f"controller={settings.get('name')} has no such field; it has {', '.join(listed)}"
    return no_such_field(f"controller.{key}", listed)


def _instead_of_kind(kind: Any) -> str:
    """What to choose where `controller.kind` was typed, which is not a field any more."""
    of_kind = [n for n in names() if getattr(_class(_read(n)[TARGET]), "kind", None) == kind]
    choice = ", ".join(f"controller={n}" for n in of_kind) or f"controller={_choice()}"
    return f"controller.kind={kind}: not a field; choose a controller by its name: {choice}"


def _choice() -> str:
    return "|".join(names())


def _folder() -> Path:
    return conf_dir() / "controller"


def _read(name: str) -> Any:
    """An option's file, with the options of the same group that it begins from."""
    own = OmegaConf.load(_folder() / f"{name}.yaml")
    assert isinstance(own, DictConfig)
    order = own.pop("defaults", ["_self_"])
    return OmegaConf.merge(*(own if item == "_self_" else _read(item) for item in order))
