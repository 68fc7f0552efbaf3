"""Words of needles and lists: wonderwords' (MIT), which RULER takes too."""

from functools import cache
from typing import Any

KINDS = ("noun", "adjective", "verb")


@cache
def of_kind(kind: str) -> tuple[str, ...]:
    """All nouns, adjectives or verbs, sorted."""
    return tuple(sorted(set(_lists().filter(include_parts_of_speech=[kind]))))


@cache
def _lists() -> Any:
    from wonderwords import RandomWord

    return RandomWord()  # takes a second


def nouns_and_adjectives() -> tuple[tuple[str, ...], tuple[str, ...]]:
    return of_kind("noun"), of_kind("adjective")


@cache
def all_words() -> tuple[str, ...]:
    """All nouns, adjectives and verbs, sorted, each once."""
    return tuple(sorted({word for kind in KINDS for word in of_kind(kind)}))
