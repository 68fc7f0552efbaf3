"""`${press}` and `${budget}` in `engine.extra_body`: kept as typed, filled in for each request.

Were they resolved like other interpolations, every budget would have a template of its own, and
points that differ in the budget alone would not be known to be comparable.
"""

import re
from typing import Any

from kvx.errors import UserError

_PLACEHOLDER = re.compile(r"\$\{\s*(press|budget)(?:\.(?:name|ratio|tokens))?\s*\}")


def as_typed(raw: Any, resolved: Any) -> Any:
    """`resolved`, but with the text of `raw` wherever that has a placeholder."""
    if isinstance(raw, str) and _PLACEHOLDER.search(raw):
        return raw
    if isinstance(raw, dict) and isinstance(resolved, dict):
        return {key: as_typed(raw[key], value) for key, value in resolved.items()}
    if isinstance(raw, list) and isinstance(resolved, list):
        return [as_typed(*pair) for pair in zip(raw, resolved, strict=True)]
    return resolved


def names(template: Any) -> set[str]:
    """Which of `press` and `budget` the template contains."""
    if isinstance(template, str):
        return {found[1] for found in _PLACEHOLDER.finditer(template)}
    if isinstance(template, dict):
        return set[str]().union(*map(names, template.values()))
    return set[str]().union(*map(names, template)) if isinstance(template, list) else set()


def fill(template: Any, press: str, budget: float) -> Any:
    """The template with its placeholders replaced; alone in a string, a budget is a number.

    Raises `UserError` for a string that mixes them with other interpolations.
    """
    if isinstance(template, dict):
        return {key: fill(value, press, budget) for key, value in template.items()}
    if isinstance(template, list):
        return [fill(value, press, budget) for value in template]
    if not isinstance(template, str):
        return template
    values = {"press": press, "budget": budget}
    if (alone := _PLACEHOLDER.fullmatch(template)) is not None:
        return values[alone[1]]
    text = _PLACEHOLDER.sub(lambda found: f"{values[found[1]]}", template)
    if "${" in text:
        raise UserError(
            f"engine.extra_body: {template!r}: only ${{press}} and ${{budget}} can stand in one "
            "text with each other"
        )
    return text
