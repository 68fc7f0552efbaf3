"""Loops as they happen: `kvx.guard.detectors`, one token at a time."""

from collections.abc import Hashable, Sequence

from kvx.guard.detectors import MIN_REPEATED, PERIOD_RULE, TIMES, WINDOW_RULE, Loop
from kvx.guard.repetition import WINDOW


def first_report(token_ids: Sequence[Hashable]) -> int | None:
    """Index of the token with which `LoopDetector` first reports a loop; None if it never does.

    At that token, and at none before it, the loop could have been detected.
    """
    detector = LoopDetector()
    reports = (at for at, token in enumerate(token_ids) if detector.push(token) is not None)
    return next(reports, None)


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
