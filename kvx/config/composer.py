"""Hydra's composition of a point, and of one option of a group without the rest of the point."""

from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kvx.config.tasks import has_tasks

Compose = Callable[[Sequence[str]], DictConfig]  # Hydra's composition of one point


class NotLocalError(Exception):
    """An option's file may fill more than its own node."""


class Composer:
    """Asks Hydra's configuration loader; `overrides` are those of Hydra itself (`hydra.…`)."""

    def __init__(
        self, loader: Any, config_name: str, overrides: Sequence[str], compose: Compose
    ) -> None:
        self._loader, self._config_name = loader, config_name
        self._overrides = list(overrides)
        self._loaded: dict[str, Any] = {}
        self.compose = compose

    def is_group(self, key: str) -> bool:
        return bool(self._loader.repository.group_exists(key))

    def is_local(self, group: str, option: str) -> bool:
        """Whether the option's file has no `@package` header, no defaults list and no tasks."""
        loaded = self._load(f"{group}/{option}")
        if loaded is None or loaded.defaults_list or loaded.header.get("package"):
            return False
        return not has_tasks(loaded.config)

    def parts(self, overrides: Sequence[str]) -> "Parts":
        """What Hydra merges into a point.

        Raises `NotLocalError` if some choice depends on another one, or a file is out of reach.
        """
        asked = [*self._overrides, *overrides]
        found = self._loader.compute_defaults_list(self._config_name, asked, RunMode.RUN)
        parts = []
        for default in found.defaults:
            path, package = default.config_path, default.package or ""
            if package.split(".")[0] == "hydra" or path.startswith("hydra/"):
                continue  # no node of ours
            loaded = self._load(path)
            if loaded is None or "${" in repr([vars(d) for d in loaded.defaults_list or ()]):
                raise NotLocalError(path)
            parts.append((path, package))
        return Parts(parts, lambda path: self._load(path).config)

    def _load(self, path: str) -> Any:
        if path not in self._loaded:
            self._loaded[path] = self._loader.repository.load_config(path)
        return self._loaded[path]


class Parts:
    """The files of a composition in the order they are merged, each with its package."""

    def __init__(self, parts: Sequence[tuple[str, str]], load: Callable[[str], DictConfig]) -> None:
        self._parts, self._load = parts, load

    def with_option(self, node: str, chosen: str, option: str) -> DictConfig:
        """A configuration whose `node` is the one Hydra composes with `option` for `chosen`.

        Both are paths as `press/knorm`. Its other nodes mean nothing. Raises `NotLocalError` if
        the chosen file is not merged into `node` once, and whatever merging raises.
        """
        if [package for path, package in self._parts if path == chosen] != [node]:
            raise NotLocalError(chosen)
        merged = OmegaConf.create()
        for path, package in self._parts:
            part = _at(package, self._load(option if path == chosen else path))
            if node in part:
                merged.merge_with(OmegaConf.masked_copy(part, node))
        OmegaConf.set_struct(merged, True)
        return merged


def _at(package: str, config: DictConfig) -> DictConfig:
    if not package:
        return config
    root = OmegaConf.create()
    OmegaConf.update(root, package, config, merge=False)
    return root


def set_value(cfg: DictConfig, override: Override) -> None:
    """Set one value as Hydra does; raises for what Hydra would refuse."""
    key, value = override.key_or_group, override.value()
    if override.is_add() and not override.is_force_add():
        present = OmegaConf.select(cfg, key, throw_on_missing=False) is not None
        if present and not isinstance(value, dict | list):
            raise KeyError(key)
    adds = override.is_add() or override.is_force_add()
    OmegaConf.update(cfg, key, value, merge=True, force_add=adds)
