"""The files of `conf/controller/`, and the classes that they name."""

import dataclasses
import importlib
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from kvx.config.controller import ControllerConfig
from kvx.config.folders import conf_dir
from kvx.errors import UserError

TARGET = "_target_"


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.yaml"))


def shipped_fields() -> dict[str, Any]:
    """The fields of kvx's own controllers, whichever has them."""
    return {f.name: f for cls in _shipped() for f in dataclasses.fields(cls)}


def owner_of(field: str) -> type[ControllerConfig] | None:
    """A controller of kvx's that has a field of this name."""
    return next((c for c in _shipped() if field in {f.name for f in dataclasses.fields(c)}), None)


@cache
def _shipped() -> tuple[type[ControllerConfig], ...]:
    targets = (read(name)[TARGET] for name in names())
    return tuple(class_named(target) for target in dict.fromkeys(targets))


def class_named(target: Any) -> type[ControllerConfig]:
    if not isinstance(target, str) or target == MISSING:
        raise UserError(f"controller.{TARGET}: needs a class; choose controller={choices()}")
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
        except Exception as error:  # noqa: BLE001  importing a user's module may raise anything
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


def choices() -> str:
    return "|".join(names())


def folder() -> Path:
    return conf_dir() / "controller"


def read(name: str) -> Any:
    """An option's file, with the options of the same group that it begins from."""
    own = OmegaConf.load(folder() / f"{name}.yaml")
    assert isinstance(own, DictConfig)
    order = own.pop("defaults", ["_self_"])
    return OmegaConf.merge(*(own if item == "_self_" else read(item) for item in order))
