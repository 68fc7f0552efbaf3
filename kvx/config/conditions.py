"""Expressions in a press's YAML: at which prompts and budgets it acts as another method, and what
a budget sets where it takes no compression ratio.

A condition is an expression of numbers, comparisons and `and`, `or`, `not`, `if else`, over

- `prompt_tokens`: tokens of the prompt's compressed part,
- `asked`: entries that the budget asks to keep of them, not rounded, as kvpress counts them,
- `kept`: the same, rounded as kvpress does,
- the arguments in `press.method`, by name; those of a wrapped press as `press.window_size`.

What a budget sets is such an expression over `budget` and the arguments.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from simpleeval import FeatureNotAvailable, InvalidExpression, NameNotDefined, SimpleEval

from kvx.config.schema import PressConfig
from kvx.errors import UserError

Names = Mapping[str, Any]

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_NODES: tuple[type[ast.AST], ...] = (
    ast.Name, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.IfExp, ast.Compare, ast.Call,
)  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "int": int, "min": min, "max": max, "round": round, "sum": sum, "len": len,
}  # fmt: skip


def names_of(method: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The arguments of a press's `method` by dotted name."""
    found: dict[str, Any] = {}
    for name, value in method.items():
        if isinstance(value, Mapping):
            found |= names_of(value, f"{prefix}{name}.")
        elif name != "_target_":
            found[prefix + name] = value
    return found


def reason(press: PressConfig, prompt_tokens: int, asked: float, kept: int) -> str | None:
    """The reason of the first condition in `degenerate_when` that is true; None if none is.

    Raises `UserError` for one that cannot be evaluated.
    """
    if not press.degenerate_when:
        return None
    names = names_of(press.method or {})
    names |= {"prompt_tokens": prompt_tokens, "asked": asked, "kept": kept}
    for rule in press.degenerate_when:
        try:
            if holds(rule.when, names):
                return rule.reason
        except ValueError as error:
            raise UserError(
                f"press={press.name}: degenerate_when: {rule.when!r}: {error}"
            ) from None
    return None


def check(press: PressConfig) -> None:
    """Raises `UserError` for an expression of its YAML that cannot be evaluated."""
    arguments(press, 0.5)
    for n in (1, 100, 10_000):
        for asked in (0.5, n / 2, float(n)):
            reason(press, n, asked, max(1, int(asked)))


def arguments(press: PressConfig, budget: float) -> dict[str, Any]:
    """What `press.budget_sets` makes of a budget, by argument. Raises `UserError`."""
    names = names_of(press.method or {}) | {"budget": budget}
    found = {}
    for name, expression in (press.budget_sets or {}).items():
        try:
            found[name] = value_of(expression, names)
        except ValueError as error:
            raise UserError(
                f"press={press.name}: budget_sets.{name}: {expression!r}: {error}"
            ) from None
    return found


def holds(condition: str, names: Names) -> bool:
    """Whether `condition` is true of `names`. Raises `ValueError` saying what is wrong with it."""
    return bool(value_of(condition, names))


def value_of(condition: str, names: Names) -> Any:
    """The value of an expression over `names`. Raises `ValueError` saying what is wrong with it."""
    try:
        return _Condition(names).eval(condition, _parsed(condition))
    except NameNotDefined as error:
        known = ", ".join(sorted(names))
        raise ValueError(f"{error.name!r} is not known; there are {known}") from None
    except (InvalidExpression, KeyError):  # KeyError: a comparison that is not in `_OPERATORS`
        raise ValueError(f"{condition} cannot stand in a condition") from None
    except (TypeError, ArithmeticError) as error:
        raise ValueError(str(error)) from None


@lru_cache(maxsize=256)
def _parsed(condition: str) -> ast.AST:
    try:
        return ast.parse(condition.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("is not an expression such as kept <= 2 * window_size") from None


class _Condition(SimpleEval):  # type: ignore[misc]
    """simpleeval without strings, items, methods and keyword arguments."""

    nodes: dict[type[ast.AST], Callable[..., Any]]

    def __init__(self, names: Names) -> None:
        super().__init__(_OPERATORS, _FUNCTIONS, names)
        self.nodes = {kind: self.nodes[kind] for kind in _NODES}
        self.nodes |= {ast.Constant: self._number, ast.Attribute: self._dotted}

    def _number(self, node: ast.Constant) -> Any:
        if not isinstance(node.value, int | float):
            raise FeatureNotAvailable()
        return node.value

    def _dotted(self, node: ast.Attribute) -> Any:
        name = ast.unparse(node)
        if not name.replace(".", "").isidentifier():
            raise FeatureNotAvailable()
        return self._eval_name(ast.Name(name))
