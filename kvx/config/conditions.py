"""Conditions in a press's YAML: at which prompts and budgets it is not what its name says.

A condition is an expression of numbers, comparisons and `and`, `or`, `not`, `if else`, over

- `prompt_tokens`: tokens of the prompt's compressed part,
- `asked`: entries that the budget asks to keep of them, not rounded, as kvpress counts them,
- `kept`: the same, rounded as kvpress does,
- the arguments in `press.method`, by name; those of a wrapped press as `press.window_size`.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

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
_FUNCTIONS: dict[str, Callable[..., Any]] = {"int": int, "min": min, "max": max, "round": round}


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
    """Raises `UserError` for a condition that cannot be evaluated."""
    for n in (1, 100, 10_000):
        for asked in (0.5, n / 2, float(n)):
            reason(press, n, asked, max(1, int(asked)))


def holds(condition: str, names: Names) -> bool:
    """Whether `condition` is true of `names`. Raises `ValueError` saying what is wrong with it."""
    try:
        return bool(_value(_parsed(condition), names))
    except KeyError as error:
        known = ", ".join(sorted(names))
        raise ValueError(f"{error.args[0]!r} is not known; there are {known}") from None
    except (TypeError, ArithmeticError) as error:
        raise ValueError(str(error)) from None


@lru_cache(maxsize=256)
def _parsed(condition: str) -> ast.AST:
    try:
        return ast.parse(condition.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("is not an expression such as kept <= 2 * window_size") from None


def _value(node: ast.AST, names: Names) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return value
        case ast.Name() | ast.Attribute():
            return names[_dotted(node)]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(operand, names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.BoolOp(op=op, values=values):
            found = (_value(value, names) for value in values)
            return any(found) if isinstance(op, ast.Or) else all(found)
        case ast.IfExp(test=test, body=body, orelse=otherwise):
            return _value(body if _value(test, names) else otherwise, names)
        case ast.Compare(left=left, ops=ops, comparators=others) if _known(ops):
            sides = [_value(side, names) for side in (left, *others)]
            compared = zip(ops, sides, sides[1:], strict=False)
            return all(_OPERATORS[type(op)](one, other) for op, one, other in compared)
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(argument, names) for argument in given))
    raise ValueError(f"{ast.unparse(node)} cannot stand in a condition")


def _known(ops: Sequence[ast.cmpop]) -> bool:
    return all(type(op) in _OPERATORS for op in ops)


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise ValueError(f"{ast.unparse(node)} cannot stand in a condition")
