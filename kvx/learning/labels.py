"""The labels of the hazard model: does a catastrophe start within the next H tokens?"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.guard.trace_arrays import positions
from kvx.scoring.loops import INSTANT


class Role(IntEnum):
    """The role of a trace in training and metrics."""

    NEGATIVE = 0  # no catastrophe
    EVENT = 1  # one with a known onset
    LEFT_OUT = 2  # one without an onset, or one that compression did not cause


@dataclass(frozen=True)
class Targets:
    """Per trace [n]: its role, and its onset, nan unless it is an event."""

    role: NDArray[np.int8]
    onset: NDArray[np.float64]

    def take(self, rows: NDArray[Any]) -> "Targets":
        return Targets(self.role[rows], self.onset[rows])

    @property
    def events(self) -> NDArray[np.bool_]:
        return np.asarray(self.role == Role.EVENT)

    @property
    def instant(self) -> NDArray[np.bool_]:
        """Events that start at or before token 4: no token signal can come before them."""
        return self.events & (self.onset <= INSTANT)


def targets(onset: ArrayLike, unplaced: ArrayLike, excess: ArrayLike, excess_only: bool) -> Targets:
    """Roles from each response's `onset` (nan: none), whether compression caused it a catastrophe
    that has no onset (`unplaced`), and whether its full cache is free of what has one
    (`excess`); all [n].

    With `excess_only`, one that the full cache shares is left out: compression did not cause
    it, and it is no example of a sound generation either. One without an onset is left out unless
    there is one with an onset too: an alarm in it is neither early nor false.
    """
    starts = np.asarray(onset, np.float64)
    placed = ~np.isnan(starts)
    counts = placed & np.asarray(excess, bool) if excess_only else placed
    derailed = placed | np.asarray(unplaced, bool)
    role = np.where(counts, Role.EVENT, np.where(derailed, Role.LEFT_OUT, Role.NEGATIVE))
    return Targets(role.astype(np.int8), np.where(counts, starts, np.nan))


def token_labels(lengths: ArrayLike, onset: ArrayLike, horizon: int) -> NDArray[np.bool_]:
    """For every token of traces of `lengths` [n], whether the onset comes within `horizon` tokens.

    Token t is positive if t < onset <= t + horizon. Tokens from the onset on are not (see
    `before_onset`). Raises `ValueError` for a horizon below 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon={horizon}: must be at least 1 token")
    left = _to_onset(lengths, onset)
    return np.asarray((left > 0) & (left <= horizon))


def before_onset(lengths: ArrayLike, onset: ArrayLike) -> NDArray[np.bool_]:
    """The tokens that may be learnt from and counted: all, or those before the onset: [tokens]."""
    left = _to_onset(lengths, onset)
    return np.asarray(np.isnan(left) | (left > 0))


def usable_tokens(lengths: ArrayLike, about: Targets) -> NDArray[np.bool_]:
    """Tokens before the onset of traces that are not left out: [tokens]."""
    sizes = np.asarray(lengths, np.int64)
    kept = np.repeat(about.role != Role.LEFT_OUT, sizes)
    return np.asarray(before_onset(sizes, about.onset) & kept)


def _to_onset(lengths: ArrayLike, onset: ArrayLike) -> NDArray[np.float64]:
    """The distance in tokens from each token to its trace's onset; nan without one."""
    sizes = np.asarray(lengths, np.int64)
    left: NDArray[np.float64] = np.repeat(np.asarray(onset, np.float64), sizes) - positions(sizes)
    return left
