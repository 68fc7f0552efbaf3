"""Words to be counted: RULER's common words (cwe) and frequent words (fwe)."""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kvx.data.ruler_tasks.drafts import Count, Draft, shuffled
from kvx.data.ruler_tasks.words import all_words, nouns_and_adjectives

COMMON = 10  # words that appear most often, and are asked for
EASIER_BELOW = 4096  # tokens; shorter lists repeat less often
ENTRY_TOKENS = 3  # of a list's entry at least: number, dot and word
ZETA_2 = np.pi**2 / 6


@dataclass(frozen=True)
class CommonWords:
    """A numbered list in which ten words stand 30 times and all others 3 times.

    Below a length of 4,096 tokens 6 times and once. A worked example stands before it: 40 words, 10
    times and 3 times (20 words, 3 times and once). `intro` and `asks` are those of the task.
    """

    intro: str
    asks: str
    length: int
    _sizes: dict[str, int] = field(default_factory=dict, repr=False)

    def draft(self, index: int, rng: random.Random, count: Count) -> Draft:
        short = self.length < EASIER_BELOW
        shot = self._shot(rng, 20, 3, 1) if short else self._shot(rng, 40, 10, 3)
        often, seldom = (6, 1) if short else (30, 3)
        pool = self._pool(rng, COMMON + self.length // (ENTRY_TOKENS * seldom))
        common, order = pool[:COMMON], rng.getrandbits(32)
        sizes = self._tokens(pool, count)
        fixed = count([shot])[0] + often * sum(sizes[:COMMON])
        before = np.concatenate([[0], np.cumsum(sizes[COMMON:])])

        def entries(n: int) -> int:
            return often * COMMON + seldom * (n - COMMON)

        def tokens(n: int) -> float:
            return float(fixed + seldom * before[n - COMMON] + self._numbers(entries(n), count))

        def build(n: int) -> str:
            listed = common * often + pool[COMMON:n] * seldom
            return shot + self.intro + _numbered(shuffled(listed, order))

        return Draft("", tuple(common), build, tokens, least=COMMON + 1, most=len(pool))

    def _pool(self, rng: random.Random, n: int) -> list[str]:
        """`n` distinct words: wonderwords', and where they run out pairs of them."""
        words = rng.sample(all_words(), min(n, len(all_words())))
        if (more := n - len(words)) > 0:
            nouns, adjectives = nouns_and_adjectives()
            pairs = {f"{rng.choice(adjectives)}-{rng.choice(nouns)}": None for _ in range(2 * more)}
            words += list(pairs)[:more]
        return words

    def _tokens(self, pool: Sequence[str], count: Count) -> list[int]:
        if new := [word for word in pool if word not in self._sizes]:
            self._sizes.update(zip(new, count([f" {word}" for word in new]), strict=True))
        return [self._sizes[word] for word in pool]

    def _numbers(self, n: int, count: Count) -> int:
        """Tokens of the numbers ` 1.` to ` n.`."""
        known = self._number_sizes
        if len(known) <= n:
            first, last = len(known), max(1000, 2 * n)
            sizes = count([f" {i}." for i in range(first, last)])
            known.extend((known[-1] + np.cumsum(sizes)).tolist())
        return known[n]

    @cached_property
    def _number_sizes(self) -> list[int]:
        return [0]

    def _shot(self, rng: random.Random, n: int, often: int, seldom: int) -> str:
        words = rng.sample(all_words(), n)
        listed = words[:COMMON] * often + words[COMMON:] * seldom
        rng.shuffle(listed)
        return f"{self.intro}{_numbered(listed)}\n{self.asks}{_numbered(words[:COMMON])}\n"


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


@dataclass(frozen=True)
class FrequentWords:
    """Coded words whose frequency falls with the square of their rank (zeta distribution).

    The first rank is `...`, which does not count; the next three are asked for. There is a word for
    every 50 tokens of the length.
    """

    length: int
    letters: int = 6
    alpha: float = 2.0

    def draft(self, index: int, rng: random.Random, count: Count) -> Draft:
        size, words = max(4, self.length // 50), ["..."]
        while len(words) < size:
            word = "".join(rng.choices(string.ascii_lowercase, k=self.letters))
            if word not in words[1:]:
                words.append(word)
        sizes = np.array(count([f" {word}" for word in words]))
        shares = np.arange(1, size + 1) ** -self.alpha / ZETA_2
        order = rng.getrandbits(32)

        def repeats(n: int) -> NDArray[np.int64]:
            found: NDArray[np.int64] = np.floor(n * shares).astype(np.int64)
            return found

        def build(n: int) -> str:
            listed = [w for w, k in zip(words, repeats(n), strict=True) for _ in range(k)]
            return " ".join(shuffled(listed, order))

        return Draft(
            "", tuple(words[1:4]), build, lambda n: float(repeats(n) @ sizes),
            least=int(np.ceil(1 / shares[3])),
        )  # fmt: skip
