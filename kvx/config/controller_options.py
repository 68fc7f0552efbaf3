"""The options of `conf/controller/` by name, without Hydra."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvx.config.controller import ControllerConfig
from kvx.config.folders import conf_dir
from kvx.errors import UserError


def names() -> list[str]:
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def named(name: str) -> ControllerConfig:
    """An option. Raises `UserError` if there is none of this name, or its file is wrong."""
    if name not in names():
        raise UserError(f"controller={name}: there is {', '.join(names())}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(ControllerConfig), _read(name))
        option = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        path = _folder() / f"{name}.yaml"
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
    assert isinstance(option, ControllerConfig)
    return option


def _folder() -> Path:
    return conf_dir() / "controller"


def _read(name: str) -> Any:
    """An option's file, with the options of the same group that it begins from."""
    own = OmegaConf.load(_folder() / f"{name}.yaml")
    assert isinstance(own, DictConfig)
    order = own.pop("defaults", ["_self_"])
    return OmegaConf.merge(*(own if item == "_self_" else _read(item) for item in order))
