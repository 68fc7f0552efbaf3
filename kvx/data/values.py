"""What a cell of the user's data means as text, or one line that says why it is not text.

`at` names file, row and column in every error. Numbers keep the form they are written in: 42.0 is
"42", 0.5 is "0.5", an id of 1e16 has all its digits. Nothing becomes text by its Python repr.
"""

import ast
import io
import json
import math
import token
import tokenize
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

from kvx.errors import UserError, shown

_NO_CONTENT = (token.NEWLINE, tokenize.NL, token.ENDMARKER)
_WRAPPERS = ("array", "Decimal")  # beside what is numpy's own, such as np.int64
_NAMES = {"None": "None", "True": "True", "False": "False", "nan": "None"}
_NAMES |= {"True_": "True", "False_": "False"}  # as numpy prints them


def text(value: Any, at: str) -> str:
    """A string or number as text. Raises `UserError` for any other type and for broken strings."""
    value = _plain(value)
    if isinstance(value, str):
        return checked(value, at)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal) and math.isfinite(value):
        exact = value if isinstance(value, Decimal) else Decimal(repr(value))
        return str(int(value)) if value == int(value) else format(exact, "f")
    raise UserError(f"{at}: {_type_of(value)} where text is needed{_hint(value)}")


def checked(value: str, at: str) -> str:
    """`value`. Raises `UserError` if a tokenizer or a file could not hold it."""
    if "\x00" in value:
        raise UserError(f"{at}: a NUL character at {value.index(chr(0))}; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise UserError(
            f"{at}: a lone surrogate (\\u{code:04x}) at character {error.start}, which is half a "
            "character; replace it"
        ) from None
    return value


def label(value: Any, at: str) -> str | None:
    """An id or the name of a cluster; None if there is none. Zero and false are names."""
    value = _plain(value)
    if missing(value):
        return None
    if isinstance(value, bool | date):
        return str(value)
    return text(value, at) if str(value).strip() else None


def missing(value: Any) -> bool:
    """None, NaN, or what pandas writes for them."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | Decimal) and math.isnan(value)


def texts(value: Any, at: str) -> tuple[str, ...]:
    """Reference answers that are neither empty nor missing.

    `value` is one answer, a (nested) list of them, SQuAD's {text: ..}, or such a list as text (a
    cell of a csv file).
    """
    if isinstance(value, str):
        value = listed(value)
    return tuple(t for v in _leaves(value, at) if not missing(v) and (t := text(v, at)).strip())


def is_unanswerable(value: Any) -> bool:
    """Whether SQuAD 2 marks the question as unanswerable: by a list without texts."""
    if isinstance(value, str):
        value = listed(value)
    return isinstance(value, dict) and "text" in value and not list(_leaves(value["text"], ""))


def listed(cell: str) -> Any:
    """The list, or object with `text`, that `cell` writes in JSON or Python; else `cell` itself.

    Tuples and sets count only if they hold strings: (1, 2) is a place, {1, 2} an answer.
    """
    start = cell.lstrip()[:1]
    if start not in ("[", "{", "("):
        return cell
    found = literal(cell)
    if isinstance(found, tuple | set):
        of_texts = found and all(isinstance(v, str) for v in found)
        return (sorted(found) if isinstance(found, set) else list(found)) if of_texts else cell
    if isinstance(found, list) and start == "[":
        return found
    return found if isinstance(found, dict) and "text" in found else cell


def literal(cell: str) -> Any:
    """What `cell` writes in JSON, Python or numpy's print; None if it is none of these."""
    if (found := from_json(cell)) is not None:
        return found
    try:
        return ast.literal_eval(_with_commas(cell))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        return None


def from_json(cell: str) -> Any:
    """What `cell` writes in JSON; None if it is not JSON."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return None


def _with_commas(cell: str) -> str:
    """`cell` as a Python literal, which Python's and numpy's prints are not always.

    numpy prints arrays without commas, and Python would join the strings of `['a' 'b']`.
    `array([..], dtype=object)`, `np.str_('a')` and `Decimal('1')` stand for what they contain.
    Raises `ValueError` for other names.
    """
    parts: list[str] = []
    read = tokenize.generate_tokens(io.StringIO(cell.strip()).readline)
    tokens = [t for t in read if t.type not in _NO_CONTENT]
    literals = (token.STRING, token.NUMBER)
    wraps: list[bool] = []  # of each open parenthesis: does it only wrap a value?
    before: tokenize.TokenInfo | None = None
    at = 0
    while at < len(tokens):
        item, at = tokens[at], at + 1
        following = tokens[at] if at < len(tokens) else item
        name = item.string if item.type == token.NAME else None
        if name in ("np", "numpy") and following.string == ".":
            at += 1
            continue
        if name == "dtype":
            at += 2  # `=object`
            if parts and parts[-1] == ",":
                parts.pop()
            continue
        if name is not None and following.string == "(":
            if name not in _WRAPPERS and not (at > 1 and tokens[at - 2].string == "."):
                raise ValueError(name)
            wraps.append(True)
            item, at = following, at + 1
        elif name is not None and name not in _NAMES:
            raise ValueError(name)
        elif item.string == "(":
            wraps.append(False)
        is_value = item.type in (*literals, token.NAME)
        is_negative = item.string == "-" and item.end == following.start
        if before is not None and (
            ((is_value or is_negative) and before.type in (*literals, token.NAME))
            or (item.string in "[(" and before.string in "])")
        ):
            parts.append(",")
        if not (item.string in ("(", ")") and wraps and wraps[-1]):
            parts.append(_NAMES.get(item.string, item.string))
        if item.string == ")" and wraps:
            wraps.pop()
        before = item
    return " ".join(parts)


def _leaves(value: Any, at: str) -> Iterator[Any]:
    value = _plain(value)
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, at)
    elif isinstance(value, dict) and "text" in value:
        yield from _leaves(value["text"], at)
    else:
        yield value


def _plain(value: Any) -> Any:
    """numpy's scalars and arrays as Python's."""
    return value.tolist() if type(value).__module__ == "numpy" else value


def _type_of(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, list(value)[:4])) or 'nothing in it'}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"{type(value).__name__} {shown(value)}"


def _hint(value: Any) -> str:
    if isinstance(value, bool):
        return ": write the word that the answer should be, such as yes"
    if isinstance(value, dict | list | tuple):
        return "; write text, or name the file's layout in dataset.source.layout"
    return "; write it as text"
