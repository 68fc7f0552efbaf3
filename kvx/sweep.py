"""Typed configurations of a sweep, with few of Hydra's compositions, which take 80 ms each.

What a sweep changes is mostly local: an option of a group fills its own node (`press`), a value
sets one field. Hydra composes each choice of each swept group once; combinations of choices are put
together from those nodes, values are set on copies, and points share every typed node that neither
their choices nor an interpolation tells apart. Where a choice is not local (an experiment, a
`@package` header, a defaults list of its own) each of its combinations is composed by Hydra. A
point that meets any error is composed by Hydra as a whole, so that the error is Hydra's.
"""

import copy
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from kvx.config import Config, OpenAIConfig
from kvx.placeholders import as_typed

Overrides = tuple[str, ...]
Compose = Callable[[Sequence[str]], DictConfig]  # Hydra's composition of one point
IsGroup = Callable[[str], bool]
IsLocal = Callable[[str, str], bool]  # (group, option): nothing in its file reaches other nodes

NODES = tuple(f.name for f in dataclasses.fields(Config))
EVERYTHING = frozenset(NODES)
# resolvers that read no other node
SELF_CONTAINED = ("kvx_cache", "kvx_package", "kvx_env", "now", "oc.env", "hydra")
_INTERPOLATION = re.compile(r"\$\{\s*([^${}:]*?)\s*([:}])")


def typed(cfg: DictConfig) -> Config:
    """The dataclasses of a composed configuration."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    config.engine = _typed_node(cfg, "engine")
    return config


def compose_sweep(
    points: Sequence[Sequence[str]], compose: Compose, is_group: IsGroup, is_local: IsLocal
) -> list[Config]:
    """`[typed(compose(point)) for point in points]`, quickly; raises what that would raise.

    Points that agree on a part of their configuration share it: treat it as frozen.
    """
    rows = [tuple(point) for point in points]
    columns = _columns(rows, is_group, is_local)
    if columns is None:
        return [typed(compose(row)) for row in rows]
    sweep = _Sweep(columns, compose)
    configs = []
    for row in rows:
        try:
            configs.append(sweep.config(row))
        except Exception:
            configs.append(typed(compose(row)))
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


def _columns(
    rows: Sequence[Overrides], is_group: IsGroup, is_local: IsLocal
) -> list[_Column] | None:
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
        group = is_group(first.key_or_group)
        columns.append(_Column(index, parsed, _node(parsed, group, is_local), group))
    values = [next(iter(c.overrides.values())).key_or_group for c in columns if not c.is_group]
    overlap = (
        a == b or a.startswith((f"{b}.", f"{b}[")) for a, b in itertools.permutations(values, 2)
    )
    return None if any(overlap) else columns


def _node(overrides: dict[str, Override], group: bool, is_local: IsLocal) -> str | None:
    first = next(iter(overrides.values()))
    name = re.split(r"[.\[]", first.key_or_group)[0]
    if name not in EVERYTHING or first.package is not None:
        return None
    if not group:
        return name
    options = [override.value() for override in overrides.values()]
    local = all(isinstance(o, str) and is_local(first.key_or_group, o) for o in options)
    return name if local and not first.is_add() else None


@dataclass
class _Family:
    """Points that agree on every choice that is not local to its node, and their compositions."""

    first: Overrides
    bases: dict[Overrides, DictConfig] = field(default_factory=dict)
    local: bool = True  # as far as seen, a choice changes its own node only
    joined: int = 0


class _Sweep:
    def __init__(self, columns: Sequence[_Column], compose: Compose) -> None:
        swept = [c for c in columns if c.is_swept]
        self.fixed = [next(iter(c.overrides)) for c in columns if not c.is_swept]
        self.compose = compose
        self.values = [c for c in swept if not c.is_group]
        self.groups = [c for c in swept if c.is_group]
        self.wide = [c for c in self.groups if c.node is None]
        self.narrow = [c for c in self.groups if c.node is not None]
        self.by_node: dict[str, list[int]] = {name: [] for name in NODES}
        for column in swept:
            for name in NODES if column.node is None else (column.node,):
                self.by_node[name].append(column.index)
        self.families: dict[Overrides, _Family] = {}
        self.references: dict[tuple[Any, ...], frozenset[str]] = {}
        self.nodes: dict[tuple[Any, ...], Any] = {}

    def config(self, row: Overrides) -> Config:
        """The typed configuration of a point, its nodes shared with points that have the same."""
        family = self.families.setdefault(tuple(row[c.index] for c in self.wide), _Family(row))
        base = self._base(family, row)
        choices = () if family.local else self._choices(row)
        own = {n: (n, choices, *(row[i] for i in self.by_node[n])) for n in NODES}
        cfg: DictConfig | None = None
        if any(key not in self.references for key in own.values()):
            cfg = self._raw(base, row)
            for name, key in own.items():
                self.references.setdefault(key, references(cfg, name))
        fields = {}
        for name in NODES:
            reached = tuple(own[n] for n in sorted(self._reached(name, own)))
            if (name, reached) not in self.nodes:
                cfg = cfg if cfg is not None else self._raw(base, row)
                self.nodes[name, reached] = _typed_node(cfg, name)
            fields[name] = self.nodes[name, reached]
        return Config(**fields)

    def _reached(self, name: str, own: dict[str, tuple[Any, ...]]) -> set[str]:
        """The nodes that `name`'s value depends on: itself and what interpolations lead to."""
        reached, todo = {name}, [name]
        while todo:
            new = self.references[own[todo.pop()]] - reached
            reached |= new
            todo += new
        return reached

    def _raw(self, base: DictConfig, row: Overrides) -> DictConfig:
        cfg = copy.deepcopy(base)
        for column in self.values:
            _apply(cfg, column.overrides[row[column.index]])
        if set(cfg) != EVERYTHING:
            raise KeyError("`+name=…` at the top: no node of the schema")
        return cfg

    def _choices(self, row: Overrides) -> Overrides:
        return tuple(row[c.index] for c in self.groups)

    def _base(self, family: _Family, row: Overrides) -> DictConfig:
        """The composed choices of a point's groups, before values are set."""
        choices = self._choices(row)
        if choices not in family.bases:
            family.bases[choices] = self._new_base(family, row)
        return family.bases[choices]

    def _new_base(self, family: _Family, row: Overrides) -> DictConfig:
        differs = [c for c in self.narrow if row[c.index] != family.first[c.index]]
        if family.local and len(differs) > 1:
            joined = self._join(family, row, differs)
            family.joined += 1
            if family.joined > 1 or not family.local:
                return joined if family.local else self._composed(row)
            composed = self._composed(row)  # the first one is compared as a whole
            family.local = _plain(joined) == _plain(composed)
            return composed
        composed = self._composed(row)
        if differs and family.local:
            nodes = [c.node for c in differs]
            first = self._base(family, family.first)
            family.local = _plain(composed, nodes) == _plain(first, nodes)
        return composed

    def _composed(self, row: Overrides) -> DictConfig:
        return self.compose([*self.fixed, *self._choices(row)])

    def _join(self, family: _Family, row: Overrides, differs: Sequence[_Column]) -> DictConfig:
        """The first point's choices, with the nodes of the choices that differ in this one."""
        joined = copy.deepcopy(self._base(family, family.first))
        for column in differs:
            assert column.node is not None
            alone = list(family.first)
            alone[column.index] = row[column.index]
            chosen = self._base(family, tuple(alone))
            with open_dict(joined):
                joined[column.node] = chosen._get_node(column.node)
        return joined


def _plain(cfg: DictConfig, without: Sequence[str | None] = ()) -> str:
    """Everything in a configuration but some nodes, interpolations unresolved."""
    container = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(container, dict)
    return repr({k: v for k, v in container.items() if k not in without})


def _apply(cfg: DictConfig, override: Override) -> None:
    """Set one value as Hydra does; raises for what Hydra would refuse."""
    key, value = override.key_or_group, override.value()
    if override.is_add() and not override.is_force_add():
        present = OmegaConf.select(cfg, key, throw_on_missing=False) is not None
        if present and not isinstance(value, dict | list):
            raise KeyError(key)
    adds = override.is_add() or override.is_force_add()
    OmegaConf.update(cfg, key, value, merge=True, force_add=adds)


def _typed_node(cfg: DictConfig, name: str) -> Any:
    value = cfg[name]
    if not OmegaConf.is_config(value):
        return value
    node = OmegaConf.to_object(value)
    if isinstance(node, OpenAIConfig):
        raw = OmegaConf.to_container(value, resolve=False)
        assert isinstance(raw, dict)
        node.extra_body = as_typed(raw["extra_body"], node.extra_body)
    return node


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
