"""Budgets on the command line: bare numbers and token counts, though `budget` is a config group."""

import re
from typing import Any

from hydra.core.override_parser.types import Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from kvx.config.numbers import exact
from kvx.config.overrides import parse
from kvx.errors import UserError

OPTIONS = ("ratio", "tokens", "certified")
TOKENS = re.compile(r"(\d+)t")  # as reports write a number of tokens: 256t
_BUDGET = re.compile(r"\+{0,2}budget=")
RANGE_DIGITS = 12  # Hydra adds a range's step again and again: 0.6 comes out as 0.6000000000000001


def with_budgets(argv: list[str]) -> list[str]:
    """Rewrite `budget=0.5,0.2` to `budget.ratio=0.5,0.2`, and `budget=256t` to a token budget."""
    return [b for a in argv for b in (_rewritten(a) if _BUDGET.match(a) else [a])]


def _rewritten(argument: str) -> list[str]:
    argument = argument.lstrip("+")  # the configuration has a budget already
    override = parse(argument)
    if override is None:
        raise UserError(f"{argument}: cannot be read; write e.g. budget=1.0,0.5,0.2")
    kinds: dict[str, list[Any]] = {"fractions": [], "tokens": [], "options": []}
    for value in _values(argument, override):
        kind, number = _kind(argument, value)
        kinds[kind].append(number)
    if sum(map(bool, kinds.values())) > 1:
        raise UserError(
            f"{argument}: mixes {' and '.join(_NAMES[k] for k, found in kinds.items() if found)}; "
            "sweep one of them at a time"
        )
    if kinds["tokens"]:
        return ["budget=tokens", "budget.tokens=" + ",".join(kinds["tokens"])]
    if kinds["options"]:
        return [argument]
    if isinstance(asked := override.value(), RangeSweep):
        _check_range(argument, asked, kinds["fractions"])
    return ["budget.ratio=" + ",".join(map(exact, kinds["fractions"]))]


_NAMES = {"fractions": "numbers", "tokens": "token counts", "options": "option names"}


def _values(argument: str, override: Override) -> list[Any]:
    value = override.value()
    if isinstance(value, list):
        listed = ",".join(map(str, value))
        raise UserError(f"{argument}: a list is not a budget; to sweep, type -m budget={listed}")
    if not override.is_sweep_override():
        return [value]
    try:
        values = list(override.sweep_iterator(transformer=lambda value: value))
    except (HydraException, AssertionError):  # interval(…), a range that never ends
        raise UserError(
            f"{argument}: cannot be swept; list the budgets, e.g. budget=1.0,0.5,0.2"
        ) from None
    if isinstance(override.value(), RangeSweep):
        values = [float(f"{v:.{RANGE_DIGITS}g}") for v in values]
    if not values:
        raise UserError(f"{argument}: holds no budget; list them, e.g. budget=1.0,0.5,0.2")
    return values


def _kind(argument: str, value: Any) -> tuple[str, Any]:
    if isinstance(value, QuotedString):
        value = value.text
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "fractions", value
    if (tokens := TOKENS.fullmatch(str(value))) is not None:
        return "tokens", tokens[1]
    if str(value) in OPTIONS:
        return "options", value
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    raise UserError(
        f"{argument}: {shown!r} is not a budget; give a fraction such as 0.5, or a number of "
        "tokens such as 256t"
    )


def _check_range(argument: str, asked: RangeSweep, values: list[float]) -> None:
    """Raises `UserError` for a range that rounding extends past the full cache."""
    beyond = [v for v in values if v > 1]
    if beyond and asked.step is not None and asked.step > 0 and min(values) <= 1:
        end = exact(float(f"{1 + float(asked.step) / 2:.{RANGE_DIGITS}g}"))
        start, step = (exact(float(v)) for v in (asked.start or 0, asked.step))
        raise UserError(
            f"{argument}: has {len(values)} values in Hydra, the last is {exact(values[-1])}, more "
            f"than the full cache; type budget=range({start},{end},{step})"
        )
