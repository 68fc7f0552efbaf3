"""How much a generation repeats itself, token by token."""

from collections import Counter

import numpy as np

WINDOW = 20  # tokens
MAX_PERIOD = 64  # tokens
MIN_PERIODIC = 8  # tokens that must repeat what stands one period before them


class Repetition:
    """The tail of one growing sequence of tokens; `push` costs a few microseconds at any length."""

    def __init__(self) -> None:
        self._tail: list[int] = []
        self._windows: Counter[tuple[int, ...]] = Counter()
        self._past = np.full(MAX_PERIOD, -1, dtype=np.int64)  # latest token first
        self._run = np.zeros(MAX_PERIOD, dtype=np.int32)  # per lag: tokens that repeat so far
        self._lags = np.arange(1, MAX_PERIOD + 1)

    def push(self, token: int) -> tuple[int, int]:
        """Repetition count and period after `token`.

        The count is how often the last 20 tokens occurred together before. The period is the
        smallest lag p at which at least max(p, 8) tokens up to this one equal the token p places
        before them; 0 if there is none.
        """
        self._run = (self._run + 1) * (self._past == token)
        self._past[1:] = self._past[:-1]
        self._past[0] = token
        self._tail.append(token)
        count = 0
        if len(self._tail) >= WINDOW:
            window = tuple(self._tail[-WINDOW:])
            self._tail = list(window)
            count = self._windows[window]
            self._windows[window] += 1
        periodic = self._run >= np.maximum(self._lags, MIN_PERIODIC)
        return count, int(periodic.argmax()) + 1 if periodic.any() else 0
