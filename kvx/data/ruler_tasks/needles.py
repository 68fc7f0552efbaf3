"""Needles in a haystack: RULER's eight niah tasks."""

import random
import uuid
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from kvx.data.files import read_text
from kvx.data.ruler_tasks.drafts import Count, Draft, spread
from kvx.data.ruler_tasks.words import nouns_and_adjectives
from kvx.data.texts import sentences_of, speech_files

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = 40  # places of a needle in a text, from its start to its end
PIECE_WORDS = 8  # in which a text is cut where it ends
MEASURED = 512  # lines whose tokens are counted, for the mean of all
NUMBERS, WORDS, UUIDS = "numbers", "words", "uuids"
NOISE_LINES, OTHERS, TEXT = "noise", "needles", "text"  # haystacks
Lines = Callable[[int], list[str]]


def made_up(kind: str, rng: random.Random) -> str:
    """A key or value: seven digits, adjective-noun, or a UUID."""
    if kind == NUMBERS:
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == UUIDS:
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    nouns, adjectives = nouns_and_adjectives()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


@dataclass(frozen=True)
class Excerpt:
    """Text in pieces of at most `PIECE_WORDS` words, with the tokens of each.

    `begins[i]`: piece i begins a sentence; only there may a needle stand.
    """

    name: str
    pieces: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    begins: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Speeches:
    """The files of `folder`, in an order that `seed` decides."""

    folder: str
    seed: int
    _read: dict[Path, Excerpt] = field(default_factory=dict, repr=False)

    @cached_property
    def files(self) -> list[Path]:
        files = speech_files(self.folder)
        random.Random(self.seed).shuffle(files)
        return files

    def whole(self, file: Path, count: Count) -> Excerpt:
        if file not in self._read:
            found = Excerpt(file.stem)
            for sentence in sentences_of(read_text(file)):
                words = sentence.split(" ")
                for at in range(0, len(words), PIECE_WORDS):
                    found.pieces.append(" ".join(words[at : at + PIECE_WORDS]))
                    found.begins.append(at == 0)
            found.sizes.extend(count([f" {piece}" for piece in found.pieces]))
            self._read[file] = found
        return self._read[file]

    def excerpt(self, index: int, rng: random.Random, tokens: int, count: Count) -> Excerpt:
        """At least `tokens` tokens from a random sentence of file `index` on.

        Goes on with the files after it, with the first one behind the last.
        """
        files = self.files
        found, total = Excerpt(files[index % len(files)].stem), 0
        while total < tokens:
            text = self.whole(files[index % len(files)], count)
            start = 0
            if not found.pieces:
                start = rng.choice([i for i, begins in enumerate(text.begins) if begins])
            found.pieces.extend(text.pieces[start:])
            found.sizes.extend(text.sizes[start:])
            found.begins.extend(text.begins[start:])
            total += sum(text.sizes[start:])
            index += 1
        return found


@dataclass(frozen=True)
class _Asked:
    """The needles of an example, its question and answers, and the keys that no other may have."""

    needles: list[str]
    question: str
    answers: tuple[str, ...]
    keys: frozenset[str]


@dataclass(frozen=True)
class Needles:
    """`keys` needles with `values` values each, of which `queries` keys are asked for.

    The haystack is repeated noise, other needles, or the text of `speeches`. `depths` (percent of
    the haystack) places the needle of a task that has one, one depth after the other.
    """

    haystack: str
    length: int
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_kind: str = WORDS
    value_kind: str = NUMBERS
    speeches: Speeches | None = None
    depths: Sequence[float] = ()
    _sizes: dict[str, float] = field(default_factory=dict, repr=False)

    def draft(self, index: int, rng: random.Random, count: Count) -> Draft:
        asked = self._asked(rng)
        depth = self.depths[index % len(self.depths)] / 100 if self.depths else None
        if self.haystack == TEXT:
            return self._in_text(asked, index, depth, rng, count)
        is_noise = self.haystack == NOISE_LINES
        noise, others = self._noise, self._others
        lines, size = noise(count) if is_noise else others(asked.keys, rng, count)
        return _among(asked, lines, size, depth, rng)

    def _asked(self, rng: random.Random) -> _Asked:
        n_keys = max(self.keys, self.queries)
        keys: list[str] = []
        while len(keys) < n_keys:
            if (key := made_up(self.key_kind, rng)) not in keys:
                keys.append(key)
        values = [[made_up(self.value_kind, rng) for _ in range(self.values)] for _ in keys]
        needles = [self._needle(k, v) for k, own in zip(keys, values, strict=True) for v in own]
        rng.shuffle(needles)
        asked = rng.sample(range(n_keys), self.queries)
        answers = tuple(v for i in asked for v in values[i])
        return _Asked(needles, _listed([keys[i] for i in asked]), answers, frozenset(keys))

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.value_kind, key=key, value=value)

    def _in_text(
        self, asked: _Asked, index: int, depth: float | None, rng: random.Random, count: Count
    ) -> Draft:
        assert self.speeches is not None
        text = self.speeches.excerpt(index, rng, self.length, count)
        before = [0, *accumulate(text.sizes)]
        begins = [i for i, is_one in enumerate(text.begins) if is_one]
        own = sum(count([f" {needle}" for needle in asked.needles]))
        drawn = sorted(rng.sample(range(DEPTHS), len(asked.needles)))
        places = [d / (DEPTHS - 1) for d in drawn] if depth is None else [depth]

        def positions(n: int) -> list[int]:
            sentences = bisect_left(begins, n)
            starts = [*begins[:sentences], n]
            return [starts[int(sentences * place + 1e-9)] for place in places]

        return Draft(
            question=asked.question,
            answers=asked.answers,
            build=lambda n: " ".join(_with(text.pieces[:n], asked.needles, positions(n))),
            tokens=lambda n: before[n] + own,
            most=len(text.pieces),
            cluster=text.name,
            meta=lambda n: _told(positions(n), n, depth),
        )

    def _noise(self, count: Count) -> tuple[Lines, float]:
        if NOISE_LINES not in self._sizes:
            text = "\n".join([NOISE] * MEASURED)
            self._sizes[NOISE_LINES] = count([text])[0] / MEASURED
        return (lambda n: [NOISE] * n), self._sizes[NOISE_LINES]

    def _others(
        self, keys: frozenset[str], rng: random.Random, count: Count
    ) -> tuple[Lines, float]:
        known: list[str] = []

        def line() -> str:
            while (key := made_up(self.key_kind, rng)) in keys:
                pass
            return self._needle(key, made_up(self.value_kind, rng))

        def others(n: int) -> list[str]:
            known.extend(line() for _ in range(n - len(known)))
            return known[:n]

        if OTHERS not in self._sizes:  # the first example's serve all
            self._sizes[OTHERS] = count(["\n".join(others(MEASURED))])[0] / MEASURED
        return others, self._sizes[OTHERS]


def _among(
    asked: _Asked, lines: Lines, size: float, depth: float | None, rng: random.Random
) -> Draft:
    """The needles among `lines(n)` of about `size` tokens each."""
    drawn = [rng.random() for _ in asked.needles]
    places = drawn if depth is None else [depth]

    def positions(n: int) -> list[int]:
        return sorted(spread(places, n + 1))

    return Draft(
        question=asked.question,
        answers=asked.answers,
        build=lambda n: "\n".join(_with(lines(n), asked.needles, positions(n))),
        tokens=lambda n: n * size,
        least=len(asked.needles),
        meta=lambda n: _told(positions(n), n, depth),
    )


def _with(body: list[str], needles: Sequence[str], positions: Sequence[int]) -> list[str]:
    """`body` with each needle before the element at its position (ascending)."""
    found: list[str] = []
    at = 0
    for position, needle in zip(positions, needles, strict=True):
        found += [*body[at:position], needle]
        at = position
    return found + body[at:]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"


def _told(positions: Sequence[int], n: int, asked: float | None) -> dict[str, Any]:
    """Depths of the needles as shares of the haystack; of one needle its own, and the one asked."""
    depths = [round(position / n, 4) for position in positions]
    if len(depths) > 1:
        return {"depths": depths}
    return {"depth": depths[0]} if asked is None else {"depth": depths[0], "asked_depth": asked}
