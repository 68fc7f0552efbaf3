"""Drafts built as long as a prompt and its answer may be, in the model's own tokens."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from kvx.data.example import Example
from kvx.data.ruler_tasks.drafts import Count, Draft
from kvx.errors import UserError

BATCH_TOKENS = 400_000  # that are counted together: they lie in memory
SHORT = 0.01  # a prompt may be that much shorter than it could be
MOST_ROUNDS = 8

Make = Callable[[Draft, int, int], Example]  # of a draft, its index and its number of units
Texts = Callable[[Example], tuple[str, str]]


@dataclass
class _Open:
    """A draft on its way: what its `tokens` are worth, and the longest example that fits so far.

    A prompt of n units is expected to have `off + scale * tokens(n)` tokens.
    """

    index: int
    draft: Draft
    off: float
    scale: float
    last: tuple[float, int] | None = None  # what was measured: the draft's tokens, and the prompt's
    fits: int | None = None
    over: int | None = None  # units that were too many
    tried: int = 0

    def units(self, room: int) -> int:
        """The most units that are expected to fit."""
        low = self.draft.least if self.fits is None else self.fits
        high = self.draft.most if self.over is None else self.over - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.off + self.scale * self.draft.tokens(middle) <= room:
                low = middle
            else:
                high = middle - 1
        return low

    def learn(self, n: int, size: int, room: int) -> None:
        """The prompt with `n` units has `size` tokens."""
        told = self.draft.tokens(n)
        if self.last is not None and told != self.last[0]:
            slope = (size - self.last[1]) / (told - self.last[0])
            self.scale = slope if slope > 0 else self.scale
        self.off, self.last = size - self.scale * told, (told, size)
        self.tried += 1
        if size <= room:
            self.fits = n
        else:
            self.over = n


def fitted(
    drafts: Iterator[tuple[int, Draft]], make: Make, texts: Texts, count: Count, room: int
) -> Iterator[Example]:
    """An example of each draft whose prompt has `room` tokens at most, and hardly fewer.

    Each is counted as the model will see it. The next draft starts from how far the last estimate
    was off, so most are counted once. Raises `UserError` where the least does not fit.
    """
    off, scale = 0.0, 1.0
    batch = max(1, BATCH_TOKENS // room)
    first = True
    while todo := [_Open(i, d, off, scale) for i, d in islice(drafts, 1 if first else batch)]:
        first = False
        done: dict[int, Example] = {}
        pending = todo
        while pending:
            tries = [(one, one.units(room)) for one in pending]
            made = [make(one.draft, one.index, n) for one, n in tries]
            sizes = _sizes([texts(example) for example in made], count)
            left = []
            for (one, n), example, size in zip(tries, made, sizes, strict=True):
                one.learn(n, size, room)
                off, scale = one.off, one.scale
                if size <= room:
                    done[one.index] = example
                elif n <= one.draft.least:
                    raise _too_short(room, size)
                if not _is_done(one, n, size, room):
                    left.append(one)
            pending = left
        yield from (done[one.index] for one in todo)


def _is_done(one: _Open, n: int, size: int, room: int) -> bool:
    if one.fits is None:
        return False
    near = size <= room and size >= room * (1 - SHORT)
    return near or one.tried >= MOST_ROUNDS or one.units(room) == one.fits


def _sizes(prompts: Sequence[tuple[str, str]], count: Count) -> list[int]:
    parts = count([text for prompt in prompts for text in prompt])
    return [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]


def _too_short(room: int, size: int) -> UserError:
    return UserError(
        f"dataset.length: the shortest prompt of this task is {size - room} tokens too long for it"
    )


def seeded(seed: int, index: int) -> random.Random:
    return random.Random(f"ruler-{seed}-{index}")
