"""Loops as they happen: `kvx.scoring.loops`, one token at a time."""

from collections.abc import Hashable, Sequence

import numpy as np

from kvx.scoring.loops import MIN_REPEATED, PERIOD_RULE, TIMES, WINDOW_RULE, Loop
from kvx.scoring.repetition import WINDOW


def first_report(token_ids: Sequence[Hashable]) -> int | None:
    """Index of the token with which `LoopDetector` first reports a loop; None if it never does.

    At that token, and at none before it, the loop could have been detected.
    """
    detector = LoopDetector()
    reports = (at for at, token in enumerate(token_ids) if detector.push(token) is not None)
    return next(reports, None)


def repeated_tail(token_ids: Sequence[Hashable]) -> int:
    """Length of the longest suffix that occurred before, overlapping or not.

    Of a loop that is not long enough to be reported, the tokens since its onset.
    """
    n, longest = len(token_ids), 0
    for end in range(n - 2, -1, -1):
        # a longer match has to match this far back too
        if end < longest or token_ids[end - longest] != token_ids[n - 1 - longest]:
            continue
        size = 0
        while size <= end and token_ids[end - size] == token_ids[n - 1 - size]:
            size += 1
        longest = max(longest, size)
    return longest


def repeated_tails(token_ids: Sequence[int]) -> list[int]:
    """`repeated_tail` after each token, all at once."""
    ids = np.asarray(token_ids)
    runs = np.zeros(len(ids), np.int64)  # by the end of the earlier match
    found = []
    for at, token in enumerate(ids):
        runs[1:at] = np.where(ids[1:at] == token, runs[: max(0, at - 1)] + 1, 0)
        runs[:1] = at > 0 and ids[0] == token
        found.append(int(runs[:at].max(initial=0)))
    return found


class LoopDetector:
    """Follows one sequence. A token costs a few microseconds, however long the sequence is.

    `found` is `detectors.find_loop` of the tokens so far.
    """

    def __init__(self, token_ids: Sequence[Hashable] = ()) -> None:
        self.tokens: list[Hashable] = []
        self.found: Loop | None = None
        self._window: Loop | None = None
        self._places: dict[tuple[Hashable, ...], list[int]] = {}
        # per lag, how many tokens at the end equal the one that far before them. Of loops with
        # longer periods the window rule knows no later, and no later an onset
        self._repeated = [0] * WINDOW
        self._since: int | None = None
        for token in token_ids:
            self.push(token)

    def push(self, token: Hashable) -> int | None:
        """The onset of the loop that the sequence is in now, `token` included; None if in none."""
        tokens, repeated = self.tokens, self._repeated
        tokens.append(token)
        n = len(tokens)
        longest, period = 0, 0
        for lag in range(1, min(WINDOW, n)):
            if tokens[n - 1 - lag] != token:
                repeated[lag] = 0
                continue
            repeated[lag] += 1
            if repeated[lag] >= max(2 * lag, MIN_REPEATED) and repeated[lag] > longest:
                longest, period = repeated[lag], lag
        onsets = [n - longest] if longest else []
        if n >= WINDOW:
            places = self._places.setdefault(tuple(tokens[-WINDOW:]), [])
            if len(places) < TIMES:
                places.append(n - WINDOW)
            if len(places) >= TIMES:
                onsets.append(places[1])
                if self._window is None or places[1] < self._window.onset:
                    self._window = Loop(places[1], WINDOW_RULE, places[1] - places[0])
        self.found = self._window
        if longest and (self.found is None or n - longest < self.found.onset):
            self.found = Loop(n - longest, PERIOD_RULE, period)
        if not onsets:
            self._since = None
        elif self._since is None:
            self._since = min(onsets)
        return self._since

    def truncate(self, n_kept: int) -> None:
        """Forget the tokens from number `n_kept` on. Costs as much as pushing the others again."""
        self.__dict__ = LoopDetector(self.tokens[:n_kept]).__dict__
