"""Looping: whether a response repeats itself, and from which token on. Pure functions.

Two rules detect loops. The window rule is the original KVGuard's: a 20-token window occurs three
times; the onset is where the second one begins. The period rule finds shorter loops at the end of
the text: its tail repeats itself with a period; the onset is where the second repetition begins.
Both put the onset of a loop that both detect at the same token.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvx.scoring.repetition import WINDOW

TIMES = 3  # a window stands this often in a loop
MIN_REPEATED = 16  # tokens at the end that equal those one period before them
WINDOW_RULE, PERIOD_RULE = "window", "period"

# the most tokens from a loop's onset to its first report, if its period is at most a window: the
# window rule detects such a loop after two windows, the period rule shorter loops sooner
REPORT_TOKENS = max(2 * WINDOW, MIN_REPEATED)

INSTANT = 4  # an onset up to this token leaves per-token monitoring no lead
_RUN = 16  # a power of two, at most MIN_REPEATED and WINDOW
# odd, so that no digit is lost modulo 2^64
_BASE, _ROW = 0x9E3779B97F4A7C15, np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Loop:
    """A loop: the index of its onset, the rule that detected it, and its period.

    The period is the distance in tokens between the first two repetitions.
    """

    onset: int
    rule: str
    period: int


def find_loop(token_ids: Sequence[Hashable]) -> Loop | None:
    """The loop with the earliest onset in a whole response, or None.

    Takes token ids, or words where a server gave no ids. At equal onsets the window rule is named.
    Linear in the number of tokens.
    """
    found = [loop for loop in (window_loop(token_ids), period_loop(token_ids)) if loop is not None]
    return min(found, key=lambda loop: loop.onset, default=None)


def may_loop(tokens: NDArray[np.integer], starts: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Of each of n responses, whether `find_loop` could find anything in it; never wrongly False.

    `tokens` are the ids of all of them in a row, response i those from `starts[i]` to
    `starts[i + 1]` (`starts` [n + 1]). Both rules need 16 tokens in a row to occur twice in a
    response: hashes of all such runs are compared (Karp & Rabin 1987), which is ten times as fast
    as the rules.
    """
    n, run = len(starts) - 1, _RUN
    if len(tokens) < run:
        return np.zeros(n, dtype=bool)
    hashes, length, base = np.asarray(tokens).astype(np.uint64), 1, _BASE
    while length < run:  # of runs twice as long each time
        hashes = hashes[:-length] * np.uint64(base) + hashes[length:]
        length, base = 2 * length, base**2 % 2**64
    rows = np.repeat(np.arange(n), np.diff(starts))
    inside = rows[: len(hashes)] == rows[run - 1 :]  # runs within one response
    rows = rows[: len(hashes)][inside]
    # the row is mixed in: a run of two responses is not one that occurs twice
    hashes = hashes[inside] + (rows.astype(np.uint64) + np.uint64(1)) * _ROW
    ordered = np.sort(hashes)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    found = np.zeros(n, dtype=bool)
    if len(twice):
        found[rows[np.isin(hashes, np.unique(twice))]] = True
    return found


def window_loop(token_ids: Sequence[Hashable]) -> Loop | None:
    """By the window rule: the earliest second place of a 20-token window that occurs thrice."""
    tokens = tuple(token_ids)
    places: dict[tuple[Hashable, ...], list[int]] = {}
    best: tuple[int, int] | None = None
    for start in range(len(tokens) - WINDOW + 1):
        seen = places.setdefault(tokens[start : start + WINDOW], [])
        if len(seen) < TIMES:
            seen.append(start)
            if len(seen) == TIMES and (best is None or seen[1] < best[0]):
                best = seen[1], seen[1] - seen[0]
    return None if best is None else Loop(best[0], WINDOW_RULE, best[1])


def period_loop(token_ids: Sequence[Hashable]) -> Loop | None:
    """By the period rule: the tail holds at least three repetitions and 16 repeated tokens.

    A response that stopped by itself ends with a stop token, which repeats nothing: it got out of
    any repetition before.
    """
    tokens = list(token_ids)
    longest, found = 0, None
    for period, repeated in enumerate(_suffix_matches(tokens)):
        # not the shortest period: three lines that each end in a row of dots are a loop of lines
        if period and repeated >= max(2 * period, MIN_REPEATED) and repeated > longest:
            longest, found = repeated, period
    return None if found is None else Loop(len(tokens) - longest, PERIOD_RULE, found)


def _suffix_matches(tokens: list[Hashable]) -> list[int]:
    """For each lag p, how many tokens at the end equal the one p places before them.

    The Z-function of the reversed sequence (Gusfield 1997, Algorithms on Strings, chapter 1).
    """
    backwards = tokens[::-1]
    n = len(backwards)
    z = [0] * n
    left = right = 0
    for i in range(1, n):
        if i < right:
            z[i] = min(right - i, z[i - left])
        while i + z[i] < n and backwards[z[i]] == backwards[i + z[i]]:
            z[i] += 1
        if i + z[i] > right:
            left, right = i, i + z[i]
    return z
