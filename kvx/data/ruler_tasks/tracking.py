"""Variable tracking: RULER's vt, chains of assignments hidden in noise."""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from kvx.data.ruler_tasks.drafts import Count, Draft, spread
from kvx.data.ruler_tasks.needles import NOISE

LETTERS, SHOT_LETTERS = 5, 3  # of a variable's name
LINES = 64  # whose tokens are counted, for the mean of all
SHOT_TOKENS, SHOT_LINES = 470, 5  # of the worked example, whose answer has 30 tokens


@dataclass(frozen=True)
class Tracking:
    """One chain of `hops` assignments after the first, whose value is asked for.

    `intro` stands before the text, `asks` (with {question}) after it in the worked example.
    """

    intro: str
    asks: str
    hops: int = 4
    chains: int = 1
    _sizes: dict[str, float] = field(default_factory=dict, repr=False)

    def draft(self, index: int, rng: random.Random, count: Count) -> Draft:
        shot = self._shot(rng, count)
        names, value, statements = self._chains(rng, LETTERS)
        places = [sorted(rng.random() for _ in chain) for chain in statements]
        if "own" not in self._sizes:  # the first example's serve all
            self._sizes["line"] = count([" ".join([f"{NOISE}\n"] * LINES)])[0] / LINES
            self._sizes["own"] = sum(count([shot, *(s for c in statements for s in c)]))
        size, own = self._sizes["line"], self._sizes["own"]
        return Draft(
            question=value,
            answers=tuple(names),
            build=lambda n: shot + self.intro + _hidden(statements, places, n),
            tokens=lambda n: own + n * size,
            least=self.hops + 2,
        )

    def _chains(self, rng: random.Random, letters: int) -> tuple[list[str], str, list[list[str]]]:
        """Names and value of the first chain, and the statements of all."""
        n = (self.hops + 1) * self.chains
        names: list[str] = []
        while len(names) < n:
            name = "".join(rng.choices(string.ascii_uppercase, k=letters))
            if name not in names:
                names.append(name)
        values = rng.sample(range(10_000, 99_999), self.chains)
        found = []
        for chain, value in enumerate(values):
            own = names[chain * (self.hops + 1) : (chain + 1) * (self.hops + 1)]
            steps = [f"VAR {b} = VAR {a} " for a, b in pairwise(own)]
            found.append([f"VAR {own[0]} = {value}", *steps])
        return names[: self.hops + 1], str(values[0]), found

    def _shot(self, rng: random.Random, count: Count) -> str:
        """The worked example before the task: about 470 tokens with names of three letters."""
        names, value, statements = self._chains(rng, SHOT_LETTERS)
        places = [sorted(rng.random() for _ in chain) for chain in statements]
        asked = self.asks.replace("{question}", value)

        def text(n: int) -> str:
            body = self.intro + _hidden(statements, places, n)
            return f"{body}\n{asked}{' '.join(names)}\n\n\n\n"

        if "shot" not in self._sizes:
            fits = count([text(2 * SHOT_LINES)])[0] <= SHOT_TOKENS
            self._sizes["shot"] = 2 * SHOT_LINES if fits else self.hops + 2
        return text(int(self._sizes["shot"]))


def _hidden(statements: Sequence[Sequence[str]], places: Sequence[Sequence[float]], n: int) -> str:
    """`n` lines of noise with each chain's statements at its places, in their order."""
    lines: list[Any] = [f"{NOISE}\n"] * n
    for chain, own in zip(statements, places, strict=True):
        positions = sorted(spread(own, len(lines)))
        for moved, (position, statement) in enumerate(zip(positions, chain, strict=True)):
            lines.insert(position + moved, statement)
    return " ".join(lines)
