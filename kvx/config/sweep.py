"""Typed configurations of a sweep, with few of Hydra's compositions, which take 80 ms each.

What a sweep changes is mostly local: an option of a group fills its own node (`press`), a value
sets one field. Hydra composes one point; the nodes of other options are merged from the files that
Hydra lists, after the first one's has turned out to be Hydra's. Values are set on a copy, and
points share every typed node that neither their choices nor an interpolation tells apart. Where a
choice is not local (an experiment, a `@package` header, a defaults list of its own) each of its
combinations is composed by Hydra. A point that meets any error is composed by Hydra as a whole, so
that the error is Hydra's.
"""

import copy
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from kvx.config.composer import Composer, Parts, set_value
from kvx.config.controller_options import made
from kvx.config.engine import OpenAIConfig
from kvx.config.escapes import as_meant
from kvx.config.field_names import refuse_unknown
from kvx.config.inner_press import with_inner
from kvx.config.placeholders import as_typed
from kvx.config.press_config import PressConfig
from kvx.config.schema import Config
from kvx.config.tasks import KEY as TASK
from kvx.config.tasks import with_all_tasks
from kvx.errors import UserError

Overrides = tuple[str, ...]

NODES = tuple(f.name for f in dataclasses.fields(Config))
EVERYTHING = frozenset(NODES)
# resolvers that read no other node
SELF_CONTAINED = ("kvx_cache", "kvx_package", "kvx_env", "now", "oc.env", "hydra")
_INTERPOLATION = re.compile(r"\$\{\s*([^${}:]*?)\s*([:}])")


def typed(cfg: DictConfig) -> Config:
    """The dataclasses of a composed configuration.

    Raises `UserError` for keys that no field takes, or a primary file without the schema.
    """
    if OmegaConf.get_type(cfg) is not Config:
        raise UserError(
            "--config-name: the file is not checked against kvx's schema; begin its `defaults:` "
            "with `- config`, as conf/run.yaml does"
        )
    refuse_unknown(cfg)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    config.engine = _typed_node(cfg, "engine")
    config.controller = _typed_node(cfg, "controller")
    config.press = _typed_node(cfg, "press")
    for name in ("dataset", "decoding", "prompt", "score"):
        setattr(config, name, as_meant(getattr(config, name)))
    return config


def compose_sweep(points: Sequence[Sequence[str]], composer: Composer) -> list[Config]:
    """`[typed(composer.compose(point)) for point in points]`, quickly; raises what that would.

    A point with `dataset.task=all` stands for one of each task.

    Points that agree on a part of their configuration share it: treat it as frozen.
    """
    rows = with_all_tasks([tuple(point) for point in points], composer.compose)
    columns = _columns(rows, composer)
    if columns is None:
        return [typed(composer.compose(row)) for row in rows]
    sweep = _Sweep(columns, composer)
    configs = []
    for row in rows:
        try:
            configs.append(sweep.config(row))
        except Exception:  # noqa: BLE001  Hydra composes the point, or raises its own error
            configs.append(typed(composer.compose(row)))
    return configs


@dataclass(frozen=True)
class _Column:
    """One override of every point; `node` is the only part of the configuration it can change."""

    index: int
    overrides: dict[str, Override]
    node: str | None  # None: it may change anything
    is_group: bool

    @property
    def is_swept(self) -> bool:
        return len(self.overrides) > 1

    @property
    def replaces(self) -> bool:
        """Whether setting one value leaves nothing of the one that was set before."""
        return not any(
            o.is_add() or o.is_force_add() or isinstance(o.value(), dict | list)
            for o in self.overrides.values()
        )


def _columns(rows: Sequence[Overrides], composer: Composer) -> list[_Column] | None:
    """The columns of a grid of overrides; None if the order of its overrides could matter."""
    if len({len(row) for row in rows}) != 1:
        return None
    parser = OverridesParser.create()
    columns = []
    for index, texts in enumerate(zip(*rows, strict=True)):
        distinct = list(dict.fromkeys(texts))
        parsed = dict(zip(distinct, parser.parse_overrides(distinct), strict=True))
        keys = {o.get_key_element() for o in parsed.values()}
        first = next(iter(parsed.values()))
        if len(keys) != 1 or first.is_delete():
            return None
        # a task is laid over its dataset while Hydra composes
        group = composer.is_group(first.key_or_group) or first.key_or_group == TASK
        columns.append(_Column(index, parsed, _node(parsed, group, composer), group))
    values = [next(iter(c.overrides.values())).key_or_group for c in columns if not c.is_group]
    overlap = (
        a == b or a.startswith((f"{b}.", f"{b}[")) for a, b in itertools.permutations(values, 2)
    )
    return None if any(overlap) else columns


def _node(overrides: dict[str, Override], group: bool, composer: Composer) -> str | None:
    first = next(iter(overrides.values()))
    name = re.split(r"[.\[]", first.key_or_group)[0]
    if name not in EVERYTHING or first.package is not None or first.key_or_group == TASK:
        return None
    if not group:
        return name
    if len(overrides) == 1 or first.is_add():
        return None
    options = [override.value() for override in overrides.values()]
    local = all(isinstance(o, str) and composer.is_local(first.key_or_group, o) for o in options)
    return name if local else None


@dataclass
class _Draft:
    """A configuration that one point after the other is set on; `holds` what of each column."""

    cfg: DictConfig
    holds: dict[int, str]


@dataclass
class _Family:
    """Points that agree on every choice that is not local to its node.

    `composed` holds choices as Hydra composes them, without swept values. With `parts`, all but
    the choices of the `first` point are made by putting `options` into their nodes.
    """

    first: Overrides
    parts: Parts | None = None
    composed: dict[Overrides, DictConfig] = field(default_factory=dict)
    options: dict[tuple[str, str], Any] = field(default_factory=dict)
    draft: _Draft | None = None


class _Sweep:
    def __init__(self, columns: Sequence[_Column], composer: Composer) -> None:
        swept = [c for c in columns if c.is_swept]
        self.fixed = {next(iter(c.overrides)): c for c in columns if not c.is_swept}
        self.composer = composer
        self.values = [c for c in swept if not c.is_group]
        self.groups = [c for c in swept if c.is_group]
        self.wide = [c for c in self.groups if c.node is None]
        self.narrow = {c.node: c for c in self.groups if c.node is not None}
        self.replaceable = all(c.replaces for c in self.values)
        self.by_node = {n: [c.index for c in swept if c.node in (None, n)] for n in NODES}
        self.families: dict[Overrides, _Family] = {}
        self.references: dict[tuple[Any, ...], frozenset[str]] = {}
        self.nodes: dict[tuple[Any, ...], Any] = {}

    def config(self, row: Overrides) -> Config:
        """The typed configuration of a point, its nodes shared with points that have the same."""
        family = self._family(row)
        choices = () if family.parts is not None else self._choices(row)
        own = {n: (n, choices, *[row[i] for i in self.by_node[n]]) for n in NODES}
        cfg: DictConfig | None = None
        unseen = [name for name, key in own.items() if key not in self.references]
        if unseen:
            cfg = self._raw(family, row)
            for name in unseen:
                self.references[own[name]] = references(cfg, name)
        fields = {}
        for name in NODES:
            reached = (name, *[own[n] for n in sorted(self._reached(name, own))])
            if reached not in self.nodes:
                cfg = cfg if cfg is not None else self._raw(family, row)
                self.nodes[reached] = _typed_node(cfg, name)
            fields[name] = self.nodes[reached]
        return Config(**fields)

    def _reached(self, name: str, own: dict[str, tuple[Any, ...]]) -> set[str]:
        """The nodes that `name`'s value depends on: itself and what interpolations lead to."""
        reached, todo = {name}, [name]
        while todo:
            new = self.references[own[todo.pop()]] - reached
            reached |= new
            todo += new
        return reached

    def _choices(self, row: Overrides) -> Overrides:
        return tuple([row[c.index] for c in self.groups])

    def _family(self, row: Overrides) -> _Family:
        choices = tuple([row[c.index] for c in self.wide])
        if choices not in self.families:
            family = _Family(row)
            self._composed(family, row)
            if self.narrow:
                self._understand(family)
            self.families[choices] = family
        return self.families[choices]

    def _composed(self, family: _Family, row: Overrides) -> DictConfig:
        """The choices of a point as Hydra composes them."""
        choices = self._choices(row)
        if choices not in family.composed:
            family.composed[choices] = self.composer.compose([*self.fixed, *choices])
        return family.composed[choices]

    def _understand(self, family: _Family) -> None:
        """Find the parts; discard them if Hydra composes another node from them."""
        first, composed = family.first, self._composed(family, family.first)
        try:
            family.parts = self.composer.parts([*self.fixed, *self._choices(first)])
            for node, column in self.narrow.items():
                made = self._option(family, node, first[column.index])
                if _plain(made) != _plain(composed._get_node(node)):
                    family.parts = None
                    return
        except Exception:  # noqa: BLE001  Hydra composes every point of the family
            family.parts = None

    def _option(self, family: _Family, node: str, text: str) -> Any:
        """The node that an option makes, with the values that no point changes."""
        if (node, text) not in family.options:
            assert family.parts is not None
            column = self.narrow[node]
            chosen, asked = (column.overrides[t] for t in (family.first[column.index], text))
            cfg = family.parts.with_option(
                node, f"{node}/{chosen.value()}", f"{node}/{asked.value()}"
            )
            for override, fixed in self.fixed.items():
                if fixed.node == node:
                    set_value(cfg, fixed.overrides[override])
            family.options[node, text] = cfg._get_node(node)
        return family.options[node, text]

    def _raw(self, family: _Family, row: Overrides) -> DictConfig:
        """A point's configuration, interpolations unresolved; it lasts until the next point's."""
        draft, family.draft = family.draft, None  # an error leaves none behind
        # the points of the family do not differ in anything that Hydra has to compose
        local = family.parts is not None or not self.narrow
        if draft is None or not local or not self.replaceable:
            base = self._composed(family, family.first if local else row)
            holds = {c.index: family.first[c.index] for c in self.narrow.values()}
            draft = _Draft(copy.deepcopy(base), holds)
        replaced = set()
        for node, column in self.narrow.items() if local else ():
            if draft.holds[column.index] != row[column.index]:
                with open_dict(draft.cfg):
                    draft.cfg[node] = self._option(family, node, row[column.index])
                replaced.add(node)
        for column in self.values:
            if column.node in replaced or draft.holds.get(column.index) != row[column.index]:
                set_value(draft.cfg, column.overrides[row[column.index]])
        if set(draft.cfg) != EVERYTHING:
            raise KeyError("`+name=…` at the top: no node of the schema")
        draft.holds = dict(enumerate(row))
        family.draft = draft
        return draft.cfg


def _plain(node: Any) -> str:
    """A node's type and everything in it, interpolations unresolved."""
    return repr((OmegaConf.get_type(node), OmegaConf.to_container(node, resolve=False)))


def _typed_node(cfg: DictConfig, name: str) -> Any:
    value = cfg[name]
    if not OmegaConf.is_config(value):
        return value
    if name == "controller":
        return made(OmegaConf.to_container(value, resolve=True))
    refuse_unknown(value, name)
    node = OmegaConf.to_object(value)
    if isinstance(node, OpenAIConfig):
        raw = OmegaConf.to_container(value, resolve=False)
        assert isinstance(raw, dict)
        node.extra_body = as_typed(raw["extra_body"], node.extra_body)
    if isinstance(node, PressConfig):
        return with_inner(node)
    return as_meant(node)


def references(cfg: DictConfig, name: str) -> frozenset[str]:
    """The nodes that the interpolations in node `name` lead to; all, where that is not plain."""
    found: set[str] = set()
    for path, text in _strings(cfg._get_node(name), (name,)):
        matches = list(_INTERPOLATION.finditer(text))
        if len(matches) != text.count("${"):
            return EVERYTHING
        for match in matches:
            target, end = match.groups()
            if end == ":" and target in SELF_CONTAINED:
                continue
            node = _target(path[:-1], target)
            if end == ":" or node not in EVERYTHING:
                return EVERYTHING
            found.add(node)
    return frozenset(found)


def _target(parent: tuple[str, ...], reference: str) -> str:
    """First part of the key that `reference`, found in container `parent`, stands for."""
    dots = len(reference) - len(reference.lstrip("."))
    start = parent[: len(parent) - dots + 1] if dots else ()
    return [*start, *re.split(r"[.\[]", reference[dots:])][0]


def _strings(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every raw string with its key; interpolations are not followed."""
    raw = node._value() if node is not None else None
    if isinstance(raw, str):
        yield path, raw
    elif isinstance(node, DictConfig) and raw is not None:
        for key in node:
            yield from _strings(node._get_node(key), (*path, str(key)))
    elif isinstance(node, ListConfig) and raw is not None:
        for index in range(len(node)):
            yield from _strings(node._get_node(index), (*path, str(index)))
