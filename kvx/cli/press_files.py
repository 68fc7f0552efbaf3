"""The presses of conf/press, read without composing a point for each."""

from pathlib import Path

from omegaconf import OmegaConf

from kvx.cli.command import compose
from kvx.config.folders import conf_dir
from kvx.config.inner_press import with_inner
from kvx.config.schema import PressConfig


def shipped_presses() -> list[PressConfig]:
    """Every press of `conf/press`, by the name of its file."""
    return [_read(path) for path in sorted((conf_dir() / "press").glob("*.yaml"))]


def _read(path: Path) -> PressConfig:
    loaded = OmegaConf.load(path)
    if "defaults" in loaded:  # only Hydra knows how to put it together, which takes its time
        return compose(f"press={path.stem}").press
    press = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PressConfig), loaded))
    assert isinstance(press, PressConfig)
    return with_inner(press)
