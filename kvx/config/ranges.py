"""Ranges of numeric configuration fields: declared beside the field, checked in one place."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kvx.config.numbers import exact
from kvx.errors import UserError

LIMITS = "limits"  # the metadata key


@dataclass(frozen=True)
class Limits:
    """What a number must satisfy; `words` replaces the text made of the bounds."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    words: str | None = None

    def allow(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.words is not None:
            return self.words
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        if low is not None and high is not None:
            if self.above is not None and self.at_most is not None:
                return f"above {low:g} and at most {high:g}"
            return f"between {low:g} and {high:g}"
        if self.above is not None:
            return f"above {low:g}"
        return "0 or more" if low == 0 else f"at least {low:g}"


def within(default: Any, **limits: Any) -> Any:
    """A field whose number, or whose list's numbers, must be finite and within `Limits(**limits)`.

    `default` may be a field with metadata of its own, as `neutral(…)` makes it. Null is allowed
    where the field's type has it.
    """
    made = default if isinstance(default, dataclasses.Field) else _field(default)
    metadata = {**made.metadata, LIMITS: Limits(**limits)}
    if made.default_factory is not dataclasses.MISSING:
        return field(default_factory=made.default_factory, metadata=metadata)
    return field(default=made.default, metadata=metadata)


def _field(default: Any) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default))
    return field(default=default)


def check(config: Any, prefix: str = "") -> None:
    """Raises `UserError` naming the first field of a configuration that is out of its range."""
    for name, value, limits, optional in _numbers(config, prefix):
        if not limits.allow(value):
            shown = exact(value) if isinstance(value, float) else value
            raise UserError(f"{name}={shown}: must be {limits}{', or null' if optional else ''}")


def _numbers(config: Any, prefix: str) -> Iterator[tuple[str, float, Limits, bool]]:
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{name}.")
        limits = f.metadata.get(LIMITS)
        if limits is None:
            continue
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float):
                yield name, number, limits, "None" in str(f.type)
