"""Hazards while sequences run: features and model, for rows that come, go and return."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvx.guard.features import FeatureState
from kvx.guard.hazard import Floats, HazardModel
from kvx.guard.trace_arrays import PROBE_TOKENS, Signals

Known = Mapping[str, Any]  # of one row, by the names of `traces.PREFILL`


class Forecaster:
    """Forecasts for any number of sequences, each known by a key of the caller's."""

    def __init__(self, model: HazardModel) -> None:
        self.model = model
        self._names = [model.names[column] for column in model.trees.columns]
        self._state = FeatureState(self._names)
        self._needs = self._state.needs
        self._order: list[int] = []  # keys in the order of the state
        self._seen: dict[int, list[tuple[Signals, int]]] = {}  # per token: a step, and which row

    @property
    def needs(self) -> frozenset[str]:
        """The signals that `step` reads."""
        return self._needs

    def add(self, key: int, known: Known) -> None:
        """A sequence begins; `known` is what was seen before its first token."""
        self._state.add(_table(known))
        self._order.append(key)
        self._seen[key] = []

    def forget(self, keys: Sequence[int]) -> None:
        """These sequences have ended."""
        gone = set(keys) & self._seen.keys()
        if gone:
            self._keep([i for i, key in enumerate(self._order) if key not in gone])
            for key in gone:
                del self._seen[key]

    def step(self, keys: Sequence[int], signals: Signals) -> Floats:
        """Hazard [rows] after the token that each of the sequences `keys` has just chosen.

        `signals` maps at least `needs` to arrays [rows], `top_logprobs` to [rows, 20]. Sequences
        that are not named stay where they are.
        """
        waiting = self._arrange(keys)
        features = self._state.step(signals)
        if waiting is not None:
            self._state.join(waiting)
        for row, key in enumerate(keys):
            self._seen[key].append((signals, row))
        return self.model.hazard(self.model.trees.margin(features))

    def rewind(self, key: int, n_kept: int, known: Known) -> None:
        """A sequence goes on from its first `n_kept` tokens; of its prompt, this is now `known`."""
        again = FeatureState(self._names)
        again.add(_table(known))
        kept = self._seen[key][:n_kept]
        for signals, row in kept:
            again.step({name: signals[name][row : row + 1] for name in again.needs})
        self._keep([i for i, other in enumerate(self._order) if other != key])
        self._state.join(again)
        self._order.append(key)
        self._seen[key] = kept

    def _arrange(self, keys: Sequence[int]) -> FeatureState | None:
        """Reorder the state to the rows `keys`; returns the rest."""
        if self._order == list(keys):
            return None
        place = {key: i for i, key in enumerate(self._order)}
        chosen = [place[key] for key in keys]
        others = [i for i in range(len(self._order)) if i not in set(chosen)]
        waiting = None
        if others:
            waiting = deepcopy(self._state)
            waiting.keep(_rows(others))
        order = self._order
        self._state.keep(_rows(chosen))
        self._order = [*keys, *(order[i] for i in others)]
        return waiting

    def _keep(self, rows: Sequence[int]) -> None:
        self._state.keep(_rows(rows))
        self._order = [self._order[i] for i in rows]


def _rows(rows: Sequence[int]) -> NDArray[np.intp]:
    return np.array(rows, dtype=np.intp)


def _table(known: Known) -> Signals:
    """What is known of a row, as `FeatureState.add` expects it."""
    table: dict[str, NDArray[Any]] = {}
    for name, value in known.items():
        if name.startswith("probe_"):
            items = np.asarray(value, np.float32)[-PROBE_TOKENS:]
            filled = np.full((1, PROBE_TOKENS), np.nan, np.float32)
            filled[0, PROBE_TOKENS - len(items) :] = items
            table[name] = filled
        else:
            table[name] = np.array([value], dtype=object if isinstance(value, str) else np.float32)
    return table
