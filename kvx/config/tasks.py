"""Several tasks in one dataset file: `tasks: {<task>: {source: …, metrics: …}}`.

`dataset.task=<task>` lays that entry over the file's other fields while Hydra composes, so an
experiment's values and the command line's come after it. `dataset.task=all` stands for every task
of the file. Once composed, `tasks` holds the names alone. A file with a defaults list inherits
another one's tasks, and drops one with `<task>: null`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from kvx.errors import UserError

ALL = "all"
KEY = "dataset.task"


def unknown_task(name: str, task: str, tasks: Sequence[str]) -> UserError:
    return UserError(
        f"{KEY}={task}: no task of dataset={name}; use {ALL}, or one of {', '.join(tasks)}"
    )


def laid_over(dataset: DictConfig, task: str | None) -> DictConfig:
    """A dataset's content with the entry of `task` over its other fields.

    Nested fields are merged one by one, lists replaced. An entry's `source` with a `_target_` of
    its own replaces the dataset's; a task of null is none of this dataset. Without a task, or with
    `all`, the dataset's own is taken. Raises `UserError` for a task that it does not have.
    """
    raw = {name: dataset._get_node(name) for name in dataset if name != "tasks"}
    tasks = [str(name) for name, entry in dataset.tasks.items() if entry is not None]
    chosen = str(dataset.task) if task in (None, ALL) else str(task)
    if chosen not in tasks:
        raise unknown_task(dataset.get("name", "…"), chosen, tasks)
    entry = dataset.tasks[chosen]
    if "_target_" in (OmegaConf.select(entry, "source") or ()):
        raw.pop("source", None)
    merged = OmegaConf.merge(raw, entry, {"task": chosen, "tasks": dict.fromkeys(tasks)})
    assert isinstance(merged, DictConfig)
    return merged


@contextlib.contextmanager
def tasks_laid_over() -> Iterator[None]:
    """While kvx composes: the files of a dataset are merged as `laid_over` by the asked task.

    Two steps of Hydra's loader are replaced for that, as it has no hook between reading files and
    merging them: the one that parses the command line, and the one that merges the files.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    loader: Any = ConfigLoaderImpl
    parse = loader._parse_overrides_and_create_caching_repo
    merge = loader._compose_config_from_defaults_list
    if getattr(parse, "lays_tasks", False):  # within another composition
        yield
        return

    def parsed(self: Any, config_name: Any, overrides: Any) -> Any:
        found, repo = parse(self, config_name, overrides)
        repo.task = _asked(found)
        return found, repo

    def merged(self: Any, defaults: Any, repo: Any) -> Any:
        files = [d for d in defaults if d.package == "dataset" and d.config_path]
        alone: Any = merge(self, files, repo).get("dataset") if files else None
        if not has_tasks(alone):
            return merge(self, defaults, repo)
        read = repo.load_config
        paths = [file.config_path for file in files]

        def laid(task: str | None) -> Any:
            def load(config_path: str) -> Any:
                found = read(config_path)
                if config_path not in paths:
                    return found
                last = config_path == paths[-1]
                node = laid_over(alone, task) if last else OmegaConf.create()
                return dataclasses.replace(found, config=node)

            repo.load_config = load
            try:
                return merge(self, defaults, repo)
            finally:
                repo.load_config = read

        cfg = laid(repo.task)
        chosen = cfg.dataset.task  # an experiment's file may name another one
        return cfg if repo.task is not None or chosen == alone.task else laid(chosen)

    parsed.lays_tasks = True  # type: ignore[attr-defined]
    loader._parse_overrides_and_create_caching_repo = parsed
    loader._compose_config_from_defaults_list = merged
    try:
        yield
    finally:
        loader._parse_overrides_and_create_caching_repo = parse
        loader._compose_config_from_defaults_list = merge


def _asked(overrides: Sequence[Override]) -> str | None:
    """The task that the command line names last."""
    values = [o.value() for o in overrides if o.key_or_group == KEY and not o.is_sweep_override()]
    return str(values[-1]) if values and values[-1] is not None else None


def has_tasks(config: Any) -> bool:
    """Whether the content of a dataset, or of one of its files, names its tasks."""
    return isinstance(config, DictConfig) and bool(config.get("tasks"))


def with_all_tasks(
    points: Sequence[tuple[str, ...]], compose: Callable[[Sequence[str]], DictConfig]
) -> list[tuple[str, ...]]:
    """The points of a sweep, those with `dataset.task=all` once per task of their dataset.

    A dataset without `tasks` has its own one.
    """
    parser = OverridesParser.create()
    known: dict[tuple[str, ...], list[str]] = {}
    found: list[tuple[str, ...]] = []
    for point in points:
        asked = [i for i, text in enumerate(point) if _is_all(text, parser)]
        if not asked:
            found.append(point)
            continue
        chooses = tuple(t for t in point if t.lstrip("+").startswith(("dataset=", "experiment=")))
        if chooses not in known:
            dataset = compose(chooses).dataset
            known[chooses] = list(map(str, dataset.get("tasks") or [dataset.task]))
        for task in known[chooses]:
            found.append(tuple(f"{KEY}={task}" if i in asked else t for i, t in enumerate(point)))
    return list(dict.fromkeys(found)) if len(found) != len(points) else found


def _is_all(text: str, parser: OverridesParser) -> bool:
    if not text.lstrip("+").startswith(f"{KEY}="):
        return False
    return bool(parser.parse_override(text).value() == ALL)
