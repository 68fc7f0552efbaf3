"""A draft: an example whose context can be built from any number of units."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Count = Callable[[Sequence[str]], list[int]]  # tokens of each text


@dataclass(frozen=True)
class Draft:
    """`build(n)` is the context with `n` units (lines, sentences, words or documents).

    `tokens(n)` is about how many tokens they take, growing with n between `least` and `most`. How
    far it is off must hardly depend on n: `kvx.data.ruler_tasks.to_length` measures it.
    """

    question: str
    answers: tuple[str, ...]
    build: Callable[[int], str]
    tokens: Callable[[int], float]
    least: int = 1
    most: int = 10_000_000
    cluster: str = ""
    meta: Callable[[int], dict[str, Any]] = field(default=lambda n: {})


class Task(Protocol):
    """One of RULER's tasks: its examples one by one, each from a random generator of its own."""

    def draft(self, index: int, rng: random.Random, count: Count) -> Draft: ...


def shuffled(items: Sequence[str], seed: int) -> list[str]:
    """`items` in an order that `seed` (32 bits) decides, whatever numpy's version."""
    return [items[i] for i in np.random.RandomState(seed).permutation(len(items)).tolist()]


def spread(places: Sequence[float], n: int) -> list[int]:
    """Distinct positions in range(n) at the shares `places` [k] (each in [0, 1)), in their order.

    Where two fall together the later one moves to the next free position.
    """
    taken: set[int] = set()
    found = []
    for place in places:
        position = min(int(place * n), n - 1)
        while position in taken:
            position = (position + 1) % n
        taken.add(position)
        found.append(position)
    return found
