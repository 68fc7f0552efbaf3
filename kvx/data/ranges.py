"""Checks of a source's own numbers, which the schema does not know."""

from collections.abc import Sequence

from kvx.errors import UserError, shown


def check_least(name: str, value: object, least: int = 1) -> None:
    """Raises `UserError` unless `dataset.source.<name>` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(
            f"dataset.source.{name}={shown(value)}: must be a whole number of at least {least}"
        )


def check_range(low: str, low_value: int, high: str, high_value: int, least: int) -> None:
    """Raises `UserError` unless least <= low <= high."""
    check_least(low, low_value, least)
    check_least(high, high_value, least)
    if low_value > high_value:
        raise UserError(f"dataset.source.{low}={low_value}: must be at most {high}={high_value}")


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Raises `UserError` unless `dataset.source.<name>` is one of `known`."""
    if value not in known:
        raise UserError(f"dataset.source.{name}={shown(value)}: choose from {', '.join(known)}")
