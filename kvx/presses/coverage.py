"""On which model families a press can be used, as far as it depends on the model's structure."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kvx.config.language_model import ModelConfig
from kvx.config.model_features import ModelFeature
from kvx.config.schema import PressConfig
from kvx.engines.kvpress.applicability import obstacle


@cache
def families() -> dict[str, dict[str, str]]:
    """By family, what it lacks and why: written by `scripts/family_features.py`."""
    found: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("families.yaml")))
    return dict(found)


def covered(press: PressConfig) -> list[str]:
    """The families that `press` can be used on."""
    return [
        family
        for family, missing in families().items()
        if obstacle(press, ModelConfig(name=family, path=""), missing) is None
    ]


def lacking(feature: ModelFeature) -> list[str]:
    """The families that lack a feature."""
    return [family for family, missing in families().items() if feature.name in missing]
