"""A sweep from Python: keyword values become overrides, and overrides become points."""

import enum
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import UnionType
from typing import Any, get_args, get_origin

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from kvx.cli.arguments import after_options, refuse_sweeps, understood
from kvx.cli.command import requested
from kvx.config.composer import Composer
from kvx.config.field_names import fields_of
from kvx.config.folders import conf_dir
from kvx.config.numbers import exact
from kvx.config.overrides import quoted
from kvx.config.schema import Config, register, shared_store
from kvx.config.sweep import compose_sweep
from kvx.errors import UserError
from kvx.identity.user_code import look_again

STAGE = "all"
# text that Hydra's grammar does not reinterpret
_PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)
_BUDGET = re.compile(r"\d+t")


def arguments(fields: Mapping[str, Any]) -> list[str]:
    """`{"press": ["snapkv", "knorm"], "seed": 1}` as `press=snapkv,knorm`, `seed=1`.

    A list or tuple sweeps; for a field that is a list, only a list of lists does. Raises
    `UserError` for a value that no configuration can hold, and for a field of Hydra's own.
    """
    return [f"{key}={_values(key, value)}" for key, value in fields.items()]


def points(argv: Sequence[str]) -> list[Config]:
    """The checked configurations of `kvx.all -m argv`, with an experiment's own sweep.

    Hydra's global state is restored. Raises `UserError` and Hydra's errors.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # slow: 0.1 s

    register()
    look_again()
    refuse_sweeps(STAGE, list(argv))
    argv = after_options(understood(list(argv)))
    parse = OverridesParser.create().parse_overrides
    fixed = [a for a, o in zip(argv, parse(argv), strict=True) if not o.is_sweep_override()]
    folder = str(conf_dir().resolve())
    with shared_store(), initialize_config_dir(folder, version_base="1.3"):
        hydra = hydra_compose(STAGE, fixed, return_hydra_config=True).hydra
        own = understood([f"{k}={v}" for k, v in (hydra.sweeper.get("params") or {}).items()])
        refuse_sweeps(STAGE, own)
        rows = BasicSweeper.split_arguments(parse([*own, *argv]), None)[0]
        loader = GlobalHydra.instance().config_loader()
        compose = partial(hydra_compose, STAGE)
        return requested(compose_sweep(rows, Composer(loader, STAGE, [], compose)), points=True)


def _values(key: str, value: Any) -> str:
    if key.lstrip("+").partition("/")[0].partition(".")[0] == "hydra":
        raise UserError(f"{key}: Hydra's own settings belong on a command line")
    is_several = isinstance(value, list | tuple)
    if is_several and _is_list(key) and not any(isinstance(v, list | tuple) for v in value):
        return _text(key, value)
    if is_several and not value:
        raise UserError(f"{key}=[]: a sweep without values; give at least one")
    return ",".join(_text(key, v) for v in value) if is_several else _text(key, value)


def _is_list(key: str) -> bool:
    """Whether the field of this dotted name is a list."""
    section, _, name = key.lstrip("+").rpartition(".")
    field = fields_of(section).get(name)
    if field is None:
        return False
    kinds = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
    return any(get_origin(kind) is list for kind in kinds)


def _text(key: str, value: Any) -> str:
    """A value in Hydra's grammar. Raises `UserError` for what it cannot hold."""
    inner: Callable[[Any], str] = lambda v: _text(key, v)  # noqa: E731
    match value:
        case None:
            return "null"
        case enum.Enum():
            return value.name
        case bool():
            return str(value).lower()
        case str() if _PLAIN.fullmatch(value) or (key == "budget" and _BUDGET.fullmatch(value)):
            return value
        case str():
            return quoted(value)
        case numbers.Integral():
            return str(int(value))
        case numbers.Real():
            return exact(float(value))
        case os.PathLike():
            return quoted(os.fspath(value))
        case list() | tuple():
            return f"[{','.join(map(inner, value))}]"
        case dict():
            return "{" + ",".join(f"{inner(k)}:{inner(v)}" for k, v in value.items()) + "}"
    raise UserError(f"{key}: a configuration cannot hold {type(value).__name__}")
