"""Sweeps over fields that do not tell points apart: all values but one would be dropped silently.

`kvx.points` says what a point's id holds; this module says it of a configuration alone, before
there is a manifest or a model.
"""

import dataclasses
import json
from collections.abc import Sequence
from enum import Enum
from typing import Any

from kvx.config.field_names import fields_of
from kvx.config.fields import About, about
from kvx.config.identity import is_guarded, resolved
from kvx.config.numbers import exact
from kvx.config.schema import BudgetKind, Config
from kvx.errors import UserError


def why_dropped(key: str) -> str:
    return (
        f"several values, but {key} tells no points apart, so only one of them would run; give one "
        "value, or run each under an experiment_name of its own"
    )


def undistinguished(key: str) -> bool:
    """Whether a field of this dotted name is neutral, whatever the rest of the configuration."""
    parts, neutral = key.split("."), False
    for n in range(len(parts)):
        field = fields_of(".".join(parts[:n])).get(parts[n])
        if field is None:
            return neutral  # a group's option, or free-form
        neutral = (neutral or about(field).neutral) and not about(field).sweeps
    return neutral


def refuse_dropped(configs: Sequence[Config]) -> None:
    """Raises `UserError` where a sweep holds two values of a field for one and the same point."""
    _refuse_unused_budgets(configs)
    _refuse_budgets_without_effect(configs)
    _refuse_unread_of_guard(configs)
    varied = [
        f.name
        for f in dataclasses.fields(Config)
        if len({id(getattr(config, f.name)) for config in configs}) > 1
    ]
    guarded = any(map(is_guarded, configs))
    parts = _Parts(guarded)
    first: dict[str, Config] = {}
    for config in configs:
        known = first.setdefault(repr([parts.distinct(config, n) for n in varied]), config)
        if known is config:
            continue
        for name in varied:
            if (found := _difference(parts.rest(known, name), parts.rest(config, name))) is None:
                continue
            key = ".".join((name, *found[0]))
            typed = f"{key}={_told(found[1])},{_told(found[2])}"
            raise UserError(f"{typed}: {why_dropped(key)}")


def _refuse_unused_budgets(configs: Sequence[Config]) -> None:
    """Raises `UserError` for a number of tokens, or a fraction, that no point of a sweep reads.

    Not at the fields: `budget.kind` says which of the two is read, and a sweep may have both kinds.
    """
    kinds = {c.budget.kind for c in configs}
    tokens = sorted({c.budget.tokens for c in configs if c.budget.tokens is not None})
    ratios = sorted({c.budget.ratio for c in configs} - {1.0})
    if tokens and kinds == {BudgetKind.ratio}:
        raise UserError(
            f"budget.tokens={tokens[0]}: is read with budget=tokens only; add it, or type "
            f"budget={tokens[0]}t"
        )
    if ratios and kinds == {BudgetKind.tokens}:
        raise UserError(
            f"budget.ratio={exact(ratios[-1])}: is not read with budget=tokens; add budget=ratio, "
            "or leave it out"
        )


def _refuse_budgets_without_effect(configs: Sequence[Config]) -> None:
    """Raises `UserError` for several budgets of a press that keeps what a threshold leaves."""
    budgets: dict[str, dict[str, None]] = {}
    for config in configs:
        press, budget = config.press, config.budget
        if press.method is not None and press.budget_sets == {} and not budget.is_full:
            told = f"{budget.tokens}t" if budget.kind is BudgetKind.tokens else exact(budget.ratio)
            budgets.setdefault(press.name, {})[told] = None
    for name, several in budgets.items():
        if len(several) > 1:
            raise UserError(
                f"budget={','.join(several)}: press={name} keeps what its threshold leaves, "
                "whatever the budget; give one budget, and sweep press.method.threshold"
            )


def _refuse_unread_of_guard(configs: Sequence[Config]) -> None:
    """Raises `UserError` for values of `guard` that none of a sweep's controllers reads.

    Not at the fields of `guard`: the controllers' classes say what they read.
    """
    acting = [c.controller for c in configs if is_guarded(c)]
    reads = {
        "model": any(c.needs_hazard for c in acting),
        "let_go": not all(c.from_start for c in acting),
    }
    for name, read in reads.items():
        values = list(dict.fromkeys(getattr(c.guard, name) for c in configs))
        if acting and not read and len(values) > 1:
            listed = ",".join(map(_told, values))
            raise UserError(f"guard.{name}={listed}: {why_dropped(f'guard.{name}')}")


class _Parts:
    """The part of a node that makes points, and the rest; computed once for shared nodes."""

    def __init__(self, guarded: bool) -> None:
        self.guarded = guarded  # any point of the sweep
        self._known: dict[tuple[str, str, int], Any] = {}

    def distinct(self, config: Config, name: str) -> Any:
        return self._once("distinct", config, name, _distinct)

    def rest(self, config: Config, name: str) -> Any:
        """The rest, without what a sweep's grid repeats for points that do not read it."""
        if name in ("controller", "guard") and self.guarded and not is_guarded(config):
            return None
        return self._once("rest", config, name, _rest)

    def _once(self, kind: str, config: Config, name: str, make: Any) -> Any:
        node = getattr(config, name)
        guarded = name in ("controller", "guard") and is_guarded(config)
        key = (f"{kind}{guarded}", name, id(node))
        if key not in self._known:
            self._known[key] = make(name, node, guarded)
        return self._known[key]


def _distinct(name: str, node: Any, guarded: bool) -> Any:
    if not dataclasses.is_dataclass(node):
        return None if _about(name).neutral else resolved(node)
    known = {f.name: about(f) for f in dataclasses.fields(node)}
    swept = {n: getattr(node, n) for n, said in known.items() if said.sweeps}
    if _about(name).neutral:
        return swept
    own = resolved(node)
    plain = {n: v for n, v in own.items() if n not in known or not _apart(known[n])}
    # what of these two sections is read depends on whether the controller acts, not on a field
    if name == "controller" and not guarded:
        return {"name": plain["name"]}
    if name == "guard" and not guarded:
        return {}
    return plain | swept


def _apart(known: About) -> bool:
    """Whether a field of a point's record makes no points itself."""
    return known.scoring or known.label or bool(known.taken_over)


def _rest(name: str, node: Any, guarded: bool) -> Any:
    return None if _about(name).sweeps else node


def _told(value: Any) -> str:
    return value.name if isinstance(value, Enum) else json.dumps(value, default=str).strip('"')


def _about(name: str) -> About:
    return about(Config.__dataclass_fields__[name])


def _difference(one: Any, other: Any) -> tuple[tuple[str, ...], Any, Any] | None:
    """The first field in which two nodes of a kind differ: its path and both values."""
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        for field in dataclasses.fields(one):
            found = _difference(getattr(one, field.name), getattr(other, field.name))
            if found is not None:
                return (field.name, *found[0]), found[1], found[2]
        return None
    return None if one == other or one is None or other is None else ((), one, other)
