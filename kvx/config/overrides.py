"""Single overrides of the command line, as Hydra's grammar reads them."""

import os
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

_ASSIGNMENT = re.compile(r"((?:\+{0,2})[\w./@-]+)=(.+)", re.DOTALL)
# quoted already, a list, a mapping or a function: their own grammar, their own errors
_STRUCTURED = re.compile(r"['\"\[{]|\w+\(.*\)$", re.DOTALL)


def parse(argument: str) -> Override | None:
    """The parsed override, or None for a flag or something Hydra should complain about itself."""
    if argument.startswith("-") or "=" not in argument:
        return None
    try:
        return OverridesParser.create().parse_overrides([argument])[0]
    except HydraException:
        return None


def readable(argument: str) -> str:
    """Quote values that Hydra's grammar would refuse or change, so that they mean what was typed.

    It refuses `=`, `(`, `#`, `&`, `~` and letters beyond ASCII, as in `model.path=/x/epoch=3`; of a
    text that looks like a number it keeps the number (`experiment_name=007`, a git revision of
    digits). Commas separate the values of a sweep in these, as in all others.
    """
    found = (
        None
        if argument.startswith(("-", "budget=", "+budget=", "++budget="))
        else _ASSIGNMENT.fullmatch(argument)
    )
    if found is None:
        return argument
    key, text = found.groups()
    if text.startswith("~/"):  # shells leave it alone behind a `=`
        text = os.path.expanduser(text)
        argument = f"{key}={text}"
    override = parse(argument)
    if override is None:
        if _STRUCTURED.match(text):
            return argument
        return f"{key}={','.join(map(quoted, text.split(',')))}"
    value = override.value()
    values: list[Any] = [value]
    texts = [text]
    if isinstance(value, ChoiceSweep) and value.simple_form:
        values, texts = list(value.list), text.split(",")
    if any(isinstance(v, int | float) for v in values) and _is_text(key.lstrip("+")):
        return f"{key}={','.join(map(quoted, texts))}"
    return argument


def quoted(text: str) -> str:
    """A string of Hydra's grammar: only quotes, and backslashes before them, are escaped."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def _is_text(key: str) -> bool:
    from kvx.config.field_names import is_text  # and the schema

    return is_text(key)


def several(override: Override) -> bool:
    """Whether a sweep has more than one value."""
    try:
        return len(list(override.sweep_string_iterator())) > 1
    except HydraException:  # glob(…): only Hydra knows what it finds
        return True
