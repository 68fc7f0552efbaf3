"""The schema's field names: keys that no field takes, and the field that was probably meant."""

import dataclasses
import difflib
from collections.abc import Collection, Iterator
from types import NoneType
from typing import Any, get_args

from omegaconf import DictConfig, ListConfig, OmegaConf

from kvx.config.engine import EngineConfig, OpenAIConfig
from kvx.config.schema import Config
from kvx.errors import UserError

Field = dataclasses.Field[Any]
ENGINES = (EngineConfig, OpenAIConfig)
CUTOFF = 0.6  # difflib's ratio from which a name counts as near


def refuse_unknown(node: Any, path: str = "") -> None:
    """Raises `UserError` for a key of a composed configuration that no field of its schema takes.

    `+key=…`, `++key=…` and untyped files can add keys; without this they would do nothing. Nodes
    that are free-form by design (`press.method`, `dataset.source`) have no schema and take any.
    `path` is the dotted name of `node`.
    """
    for section, name, known in _unknown(node, path):
        key = f"{section}.{name}" if section else name
        raise UserError(f"{key}: {no_such_field(key, known)}")


def no_such_field(key: str, known: Collection[str] | None = None) -> str:
    """A hint for a dotted key that no field takes: the nearest field, or the existing ones.

    `known` are the names that could stand in its place; None: those of kvx's schema.
    """
    section = key.rpartition(".")[0]
    if key in paths():
        return "no field of this engine; it is one of engine=openai"
    known = fields_of(section) if known is None else known
    near = nearest(key, known)
    if near is not None:
        return f"no such field; did you mean {near}?"
    if known and section:
        return f"no such field; {section} has {', '.join(known)}"
    cfg = "hydra" if section.partition(".")[0] == "hydra" else "job"
    return f"no such field; see `--cfg {cfg}` for the fields there are"


def nearest(key: str, known: Collection[str]) -> str | None:
    """The nearest field to the dotted `key`: with the same name, else beside it, else anywhere."""
    section, _, name = key.rpartition(".")
    everything = list(paths())
    same = [path for path in everything if path.rpartition(".")[2] == name]
    beside = [f"{section}.{f}" if section else f for f in known]
    if section.partition(".")[0] == "hydra" or len(name) == 1:  # a letter alone tells nothing
        everything, same = [], []
    near = difflib.get_close_matches(name, [b.rpartition(".")[2] for b in beside], cutoff=0.9)
    if not near and (found := difflib.get_close_matches(key, same, n=1, cutoff=0.0)):
        return found[0]
    for choices, cutoff in ((beside, CUTOFF), (everything, 0.8)):
        names = {path.rpartition(".")[2]: path for path in reversed(choices)}
        if found := difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff):
            return names[found[0]]
    return None


def is_text(key: str) -> bool:
    """Whether a field of this dotted name takes a text and nothing else (null aside)."""
    section, _, name = key.rpartition(".")
    field = fields_of(section).get(name)
    return field is not None and set(get_args(field.type) or (field.type,)) <= {str, NoneType}


def fields_of(section: str) -> dict[str, Field]:
    """The fields of the part of a configuration with this dotted name, whichever engine or
    controller it has.
    """
    if section == "controller":
        from kvx.config.controller_files import shipped_fields  # imports the controllers

        return shipped_fields()
    classes: tuple[type, ...] = (Config,)
    for part in section.split(".") if section else ():
        found = [f for c in classes for f in dataclasses.fields(c) if f.name == part]
        inner = {cls for f in found if (cls := class_of(f.type)) is not None}
        classes = ENGINES if EngineConfig in inner else tuple(inner)
    return {f.name: f for c in classes for f in dataclasses.fields(c)}


def class_of(annotation: Any) -> type | None:
    """The dataclass in a field's type; None if there is none."""
    for part in (annotation, *get_args(annotation)):
        if dataclasses.is_dataclass(part) and isinstance(part, type):
            return part
    return None


def paths(section: str = "") -> Iterator[str]:
    """The dotted names of all fields below `section`."""
    for name in fields_of(section):
        path = f"{section}.{name}" if section else name
        yield path
        yield from paths(path)


def _unknown(node: Any, path: str) -> Iterator[tuple[str, str, list[str]]]:
    """Keys in `node` that its dataclass has no field for: where, the key, and the fields it has."""
    if not isinstance(node, DictConfig | ListConfig) or not isinstance(node._value(), dict | list):
        return  # a value, an interpolation, null or missing
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from _unknown(node._get_node(index), f"{path}[{index}]")
        return
    typed = OmegaConf.get_type(node)
    known = (
        [f.name for f in dataclasses.fields(typed)]
        if isinstance(typed, type) and dataclasses.is_dataclass(typed)
        else None
    )
    for key in node:
        if known is not None and key not in known and (path, key) != ("hydra", "env"):  # a group
            yield path, str(key), known
        else:
            yield from _unknown(node._get_node(key), f"{path}.{key!s}" if path else str(key))
