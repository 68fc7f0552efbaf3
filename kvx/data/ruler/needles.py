"""Needles in a haystack: RULER's eight niah tasks."""

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from kvx.data.files import read_text
from kvx.data.ruler.drafts import Count, Draft, spread
from kvx.data.ruler.words import nouns_and_adjectives
from kvx.data.texts import sentences_of, speech_files

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = 40  # places of a needle in a text, from its start to its end
NUMBERS, WORDS, UUIDS = "numbers", "words", "uuids"


def made_up(kind: str, rng: random.Random) -> str:
    """A key or value: seven digits, adjective-noun, or a UUID."""
    if kind == NUMBERS:
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == UUIDS:
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    nouns, adjectives = nouns_and_adjectives()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


@dataclass(frozen=True)
class Speeches:
    """The files of `folder`, in an order that `seed` decides, as sentences with their tokens."""

    folder: str
    seed: int
    _read: dict[Path, tuple[list[str], list[int]]] = field(default_factory=dict, repr=False)

    @cached_property
    def files(self) -> list[Path]:
        files = speech_files(self.folder)
        random.Random(self.seed).shuffle(files)
        return files

    def sentences(self, file: Path, count: Count) -> tuple[list[str], list[int]]:
        if file not in self._read:
            sentences = sentences_of(read_text(file))
            self._read[file] = sentences, count([f" {s}" for s in sentences])
        return self._read[file]

    def excerpt(
        self, index: int, rng: random.Random, tokens: int, count: Count
    ) -> tuple[str, list[str], list[int]]:
        """Consecutive sentences of at least `tokens` tokens, from a random one of file `index`.

        Goes on with the files after it, from the first one again behind the last. Returns the
        file's name, the sentences and their tokens.
        """
        files = self.files
        found: list[str] = []
        sizes: list[int] = []
        total, first = 0, index % len(files)
        while total < tokens:
            file = files[(index) % len(files)]
            sentences, counts = self.sentences(file, count)
            start = 0 if found else rng.randrange(len(sentences))
            found += sentences[start:]
            sizes += counts[start:]
            total += sum(counts[start:])
            index += 1
        return files[first].stem, found, sizes


@dataclass(frozen=True)
class Needles:
    """`keys` needles with `values` values each, of which `queries` keys are asked for.

    The haystack is repeated noise, other needles, or the text of speeches. `depths` (percent of the
    haystack) places the needle of a single-needle task, one depth after the other.
    """

    haystack: str  # noise, needles or text
    length: int
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_kind: str = WORDS
    value_kind: str = NUMBERS
    speeches: Speeches | None = None
    depths: Sequence[float] = ()

    def draft(self, index: int, rng: random.Random, count: Count) -> Draft:
        n_keys = max(self.keys, self.queries)
        keys: list[str] = []
        while len(keys) < n_keys:
            if (key := made_up(self.key_kind, rng)) not in keys:
                keys.append(key)
        values = [[made_up(self.value_kind, rng) for _ in range(self.values)] for _ in keys]
        needles = [self._needle(k, v) for k, own in zip(keys, values, strict=True) for v in own]
        rng.shuffle(needles)
        asked = rng.sample(range(n_keys), self.queries)
        question = _listed([keys[i] for i in asked])
        answers = tuple(v for i in asked for v in values[i])
        haystack = getattr(self, f"_in_{self.haystack}")
        return haystack(index, rng, count, needles, question, answers, set(keys))

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.value_kind, key=key, value=value)

    def _depth(self, index: int) -> float | None:
        return self.depths[index % len(self.depths)] / 100 if self.depths else None

    def _in_text(
        self, index: int, rng: random.Random, count: Count, needles: list[str], question: str,
        answers: tuple[str, ...], keys: set[str],
    ) -> Draft:  # fmt: skip
        assert self.speeches is not None
        name, sentences, sizes = self.speeches.excerpt(index, rng, self.length, count)
        before = [0, *accumulate(sizes)]
        depths = sorted(rng.sample(range(DEPTHS), len(needles)))
        own = sum(count([f" {n}" for n in needles]))
        places = [depth / (DEPTHS - 1) for depth in depths]
        if (depth := self._depth(index)) is not None:
            places = [depth]

        def positions(n: int) -> list[int]:
            return [min(n, int(n * place + 1e-9)) for place in places]

        def build(n: int) -> str:
            body = sentences[:n]
            for position, needle in sorted(
                zip(positions(n), needles, strict=True), key=lambda pair: -pair[0]
            ):
                body.insert(position, needle)
            return " ".join(body)

        return Draft(
            question, answers, build, lambda n: before[n] + own, least=len(needles),
            most=len(sentences), cluster=name, meta=lambda n: _told(positions(n), n),
        )  # fmt: skip

    def _in_noise(
        self, index: int, rng: random.Random, count: Count, needles: list[str], question: str,
        answers: tuple[str, ...], keys: set[str],
    ) -> Draft:  # fmt: skip
        size = (count(["\n".join([NOISE] * 9)])[0] - count([NOISE])[0]) / 8
        return self._in_lines(
            index, rng, needles, question, answers, lambda n: [NOISE] * n, lambda n: n * size
        )

    def _in_needles(
        self, index: int, rng: random.Random, count: Count, needles: list[str], question: str,
        answers: tuple[str, ...], keys: set[str],
    ) -> Draft:  # fmt: skip
        lines: list[str] = []

        def line() -> str:
            while (key := made_up(self.key_kind, rng)) in keys:
                pass
            return self._needle(key, made_up(self.value_kind, rng))

        def others(n: int) -> list[str]:
            lines.extend(line() for _ in range(n - len(lines)))
            return lines[:n]

        size = count(["\n".join(others(32))])[0] / 32
        return self._in_lines(index, rng, needles, question, answers, others, lambda n: n * size)

    def _in_lines(
        self, index: int, rng: random.Random, needles: list[str], question: str,
        answers: tuple[str, ...], lines: Any, tokens: Any,
    ) -> Draft:  # fmt: skip
        places = sorted(rng.random() for _ in needles)
        if (depth := self._depth(index)) is not None:
            places = [depth]

        def positions(n: int) -> list[int]:
            return spread([min(place, 1.0) for place in places], n + 1)

        def build(n: int) -> str:
            body = list(lines(n))
            for position, needle in sorted(
                zip(positions(n), needles, strict=True), key=lambda pair: -pair[0]
            ):
                body.insert(position, needle)
            return "\n".join(body)

        least = len(needles)
        return Draft(
            question, answers, build, tokens, least=least, meta=lambda n: _told(positions(n), n)
        )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"


def _told(positions: Sequence[int], n: int) -> dict[str, Any]:
    """Depths of the needles as shares of the haystack; of one needle its own."""
    depths = [round(position / n, 4) for position in positions]
    return {"depth": depths[0]} if len(depths) == 1 else {"depths": depths}
