"""Checks of a field's value that are more than a range."""

from collections.abc import Mapping
from datetime import date
from typing import Any


def template_kwargs(given: Any) -> str | None:
    if isinstance(given, Mapping):
        return None
    return f"={given}: use a mapping, such as {{enable_thinking: true}}"


def day(told: str) -> str | None:
    try:
        if date.fromisoformat(told).isoformat() == told:
            return None
    except ValueError:
        pass
    return f"={told}: write a day as 2026-01-31, or null"


def devices(given: Any) -> str | None:
    if isinstance(given, str | Mapping) and given:
        return None
    return (
        f"={given}: use auto, balanced, or a mapping of the model's parts to devices, such as "
        "{model: 0, lm_head: 1}"
    )
