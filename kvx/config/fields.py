"""A field's help, range, and what it can change: defined once, at the field.

`kvx.points` makes a point's id of the fields that can change its results. `kvx.config.help` prints
the rest, for `--help` and for docs/fields.md.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from kvx.config.numbers import exact
from kvx.errors import UserError

ABOUT = "about"  # the metadata key
Check = Callable[[Any], str | None]  # of a value: what is wrong with it


@dataclass(frozen=True)
class Limits:
    """The bounds of a number; `words` replaces the text made from them."""

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
                return f"above {exact(low)} and at most {exact(high)}"
            return f"between {exact(low)} and {exact(high)}"
        assert low is not None
        if self.above is not None:
            return f"above {exact(low)}"
        return "0 or more" if low == 0 else f"at least {exact(low)}"


@dataclass(frozen=True)
class About:
    """The metadata of a field. One without any is part of a point's identity as it stands."""

    help: str = ""
    limits: Limits | None = None
    choices: Sequence[str] = ()
    check: Check | None = None
    typed: str = ""  # how it is typed, where that is shorter than its name
    # cannot change results: paths, logging, shard sizes
    neutral: bool = False
    # neutral, but may tip a near tie in the numbers: kept with every response
    recorded: bool = False
    # came later: at its default it changes no id
    added: bool = False
    # does not change an id by itself, but what it leads to may: it can be swept
    sweeps: bool = False
    # shapes how answers are scored, and makes no points
    scoring: bool = False
    # the field that takes the value over, and makes points in its place
    taken_over: str = ""
    # what tables call it: kept in a point's record, but in no id
    label: bool = False
    # only something derived from the value can change results: the function that derives it
    identity: Callable[[Any], Any] | None = None
    # as `identity`, where other parts of kvx derive it: a model's files, the day in the prompts
    derived: bool = False


def option(default: Any, help: str = "", **about: Any) -> Any:
    """A field of the schema. The other arguments are those of `About`, and bounds of `Limits`.

    The default is a value, or a class or function that makes one.

    With bounds, its number or the numbers of its list must be finite and within them; null is
    allowed where the field's type has it.
    """
    bounds = {f.name: about.pop(f.name) for f in dataclasses.fields(Limits) if f.name in about}
    limits = Limits(**bounds) if bounds else None
    neutral = about.pop("neutral", False) or about.get("recorded", False)
    metadata = {ABOUT: About(help=help, limits=limits, neutral=neutral, **about)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def free_form() -> Any:
    """A node that takes any key, and stays so while Hydra composes."""
    return DictConfig({}, flags={"struct": False})


def about(f: dataclasses.Field[Any]) -> About:
    found = f.metadata.get(ABOUT, _NOTHING)
    assert isinstance(found, About)
    return found


_NOTHING = About()


def check(config: Any, prefix: str = "") -> None:
    """Raises `UserError` naming the first field of a configuration with a value it cannot have."""
    for dotted, value, known, optional in _values(config, prefix):
        name = known.typed or dotted
        shown = exact(value) if isinstance(value, float) else value
        for number in value if isinstance(value, list) else [value]:
            is_number = isinstance(number, int | float)
            if is_number and known.limits is not None and not known.limits.allow(number):
                shown = exact(number) if isinstance(number, float) else number
                null = ", or null" if optional else ""
                raise UserError(f"{name}={shown}: must be {known.limits}{null}")
        if known.choices and value is not None and value not in known.choices:
            raise UserError(f"{name}={shown}: use one of {', '.join(known.choices)}")
        if known.check is not None and value is not None:
            wrong = known.check(value)
            if wrong is not None:
                raise UserError(f"{name}{wrong}")


def _values(config: Any, prefix: str) -> Iterator[tuple[str, Any, About, bool]]:
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            yield from _values(value, f"{name}.")
        if ABOUT in f.metadata:
            yield name, value, about(f), "None" in str(f.type)
