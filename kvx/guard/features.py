"""Feature sets by name, computed token by token: one implementation for training and live use."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvx.guard import blocks
from kvx.guard.blocks import Block, Floats
from kvx.guard.trace_arrays import Signals, Traces

_TOP = blocks.TopLogprobs.names[:-1]
_WINDOWED = ("entropy_nats", "logprob", "top1_prob", "entropy_rest_nats", "entropy_change_nats")
_SIZES = (8, 32, 64)
_DIRECT = (
    "entropy_nats", "top1_prob", "top5_prob", "entropy_rest_nats", "mean_logprob",
    "entropy_change_nats", "logprob", "rank", "repetition_count", "period", "thinking",
)  # fmt: skip
_PROBE = blocks.Prefill.NAMES[:9]
_METADATA = ("budget", "log_prompt_tokens", "log_kept_tokens", "token", "token_share")
_REPETITION = ("repetition_count", "sum_8_repetition_count", "period")

# the original KVGuard's: 29 of the token, 8 rolling ones, position and budget. It does not say of
# which four signals the rolling ones were
ORIGINAL = (
    "entropy_nats", "top1_prob", "top5_prob", *_TOP, "entropy_rest_nats", "mean_logprob",
    "entropy_change_nats", "has_previous", "repetition_count", "thinking",
    *(
        f"{kind}_8_{name}"
        for kind in ("mean", "std")
        for name in ("entropy_nats", "top1_prob", "entropy_rest_nats", "entropy_change_nats")
    ),
    "sum_8_repetition_count", "token_share", "budget",
)  # fmt: skip
_LONGER = tuple(
    f"{kind}_{size}_{name}" for size in _SIZES for kind in ("mean", "std") for name in _WINDOWED
)
_ACCUMULATED = tuple(
    name for signal in ("entropy_nats", "logprob") for name in blocks.Accumulated([signal]).names
)
_ADDED = (
    *_PROBE, "score_evicted", "log_prompt_tokens", "log_kept_tokens", "token", "logprob", "margin",
    "rank", "period", *(n for n in _LONGER if n not in ORIGINAL), *_ACCUMULATED,
    *blocks.Likeness.names,
)  # fmt: skip
FULL = (*ORIGINAL, *_ADDED)
# nothing but logits and the probe: no budget or what follows from it, no press, no prompt length,
# no token ids or what is counted from them, no position
LOGIT_ONLY = tuple(
    name
    for name in FULL
    if name not in (*_METADATA, *_REPETITION, "score_evicted", "thinking", "has_previous")
)
_NOT_FROM_TOP20 = (
    "top1_prob", "top5_prob", "entropy_rest_nats", "entropy_change_nats", "mean_logprob", "rank",
)  # fmt: skip
TOP20_ENTROPY = "entropy_top20_nats"  # what a server's log-probs give, whoever made the trace

SETS: dict[str, tuple[str, ...]] = {
    "original40": ORIGINAL,
    "full": FULL,
    "logit_only": LOGIT_ONLY,
    "no_budget": tuple(
        n for n in FULL if n not in ("budget", "log_kept_tokens", "score_evicted")
    ),
    "no_repetition": tuple(n for n in FULL if n not in _REPETITION),
    "metadata_only": _METADATA,
    "top20": tuple(
        n.replace("entropy_nats", TOP20_ENTROPY) for n in LOGIT_ONLY
        if n not in _PROBE and not n.endswith(_NOT_FROM_TOP20)
    ),
}  # fmt: skip


def names_of(feature_set: str, presses: Sequence[str] = ()) -> tuple[str, ...]:
    """The features of a set, in order; `metadata_only` also says which of `presses` it is.

    Raises `KeyError` for a set that does not exist.
    """
    names = SETS[feature_set]
    if feature_set == "metadata_only":
        names = (*names, *(f"press={press}" for press in sorted(set(presses))))
    return names


class FeatureState:
    """Features of rows that generate side by side, one token at a time.

    `names` are the features asked for, in order; raises `KeyError` for one that does not exist.
    A row's features depend on its own signals alone, to the last bit.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._blocks = _blocks_for(self.names)
        self._read = {name for block in self._blocks for name in block.needs}
        made = [name for block in self._blocks for name in block.names]
        place = {name: column for column, name in enumerate(made)}
        self._columns = np.array([place[name] for name in self.names], dtype=np.intp)
        self._width = len(made)
        self._t = np.zeros(0, np.int64)
        self._entropy = np.zeros(0, np.float32)

    @property
    def needs(self) -> frozenset[str]:
        """The signals that `step` reads."""
        own = self._read - {"entropy_change_nats", TOP20_ENTROPY} | {"entropy_nats"}
        if TOP20_ENTROPY in self._read:
            own |= {"top_logprobs", "logprob"}
        return frozenset(own)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """How many tokens each row has seen, [rows]."""
        return self._t

    def __len__(self) -> int:
        return len(self._t)

    def add(self, prefill: Signals) -> None:
        """Append new rows after the existing ones; see `traces.PREFILL` for `prefill`."""
        fresh = FeatureState(self.names)
        rows = len(prefill["budget"])
        for block in fresh._blocks:
            block.start(prefill, rows)
        fresh._t, fresh._entropy = np.zeros(rows, np.int64), np.zeros(rows, np.float32)
        self.join(fresh)

    def join(self, other: "FeatureState") -> None:
        """The rows of another state of the same features, however far they are, join these.

        A row that was rolled back is replayed alone and joins again. `other` is used up.
        """
        if other.names != self.names:
            raise ValueError("states of different features cannot be joined")
        if not len(self):
            self.__dict__ = other.__dict__
            return
        for block, theirs in zip(self._blocks, other._blocks, strict=True):
            block.join(theirs)
        self._t = np.concatenate([self._t, other._t])
        self._entropy = np.concatenate([self._entropy, other._entropy])

    def keep(self, rows: NDArray[Any]) -> None:
        """Only `rows` (a mask or numbers) stay, in that order."""
        for block in self._blocks:
            block.keep(rows)
        self._t, self._entropy = self._t[rows], self._entropy[rows]

    def step(self, signals: Signals) -> Floats:
        """Features [rows, names] of the token that every row has just chosen.

        `signals` maps at least `needs` to arrays [rows], `top_logprobs` to [rows, 20].
        """
        entropy = np.asarray(signals["entropy_nats"], np.float32)
        before = np.where(self._t > 0, self._entropy, entropy)
        known = {**signals, "entropy_change_nats": entropy - before}
        if TOP20_ENTROPY in self._read:
            known[TOP20_ENTROPY] = blocks.top20_entropy(signals["top_logprobs"], signals["logprob"])
        out = np.empty((len(self), self._width), np.float32)
        at = 0
        for block in self._blocks:
            block.step(known, self._t, out[:, at : at + len(block.names)])
            at += len(block.names)
        self._t, self._entropy = self._t + 1, entropy
        return out[:, self._columns]


def _blocks_for(names: Sequence[str]) -> list[Block]:
    """The parts that make `names`, and only these. Raises `KeyError` for an unknown name."""
    asked = set(names)
    presses = [name.removeprefix("press=") for name in names if name.startswith("press=")]
    windows: dict[tuple[int, ...], list[str]] = {}
    for signal in (*_WINDOWED, TOP20_ENTROPY):
        sizes = tuple(s for s in _SIZES if {f"mean_{s}_{signal}", f"std_{s}_{signal}"} & asked)
        if sizes:
            windows.setdefault(sizes, []).append(signal)
    accumulated = [
        signal
        for signal in ("entropy_nats", TOP20_ENTROPY, "logprob")
        if asked.intersection(blocks.Accumulated([signal]).names)
    ]
    direct = [name for name in (*_DIRECT, TOP20_ENTROPY) if name in asked]
    candidates: list[Block] = [
        *([blocks.Direct(direct)] if direct else []),
        blocks.TopLogprobs(),
        blocks.Position(),
        *(blocks.Windows(signals, sizes) for sizes, signals in windows.items()),
        blocks.RecentRepetition(),
        *([blocks.Accumulated(accumulated)] if accumulated else []),
        blocks.Likeness(),
        blocks.Prefill(presses),
    ]
    chosen = [block for block in candidates if asked & set(block.names)]
    unknown = asked - {name for block in chosen for name in block.names}
    if unknown:
        raise KeyError(f"no such feature: {', '.join(sorted(unknown))}")
    return chosen


def build(traces: Traces, names: Sequence[str]) -> Floats:
    """Features [tokens, names] of every token of `traces`, computed as if they ran side by side."""
    state = FeatureState(names)
    out = np.empty((int(traces.starts[-1]), len(state.names)), np.float32)
    lengths, rows = traces.lengths, np.flatnonzero(traces.lengths > 0)
    if not len(rows):
        return out
    state.add({name: values[rows] for name, values in traces.prefill.items()})
    needs = state.needs
    for t in range(int(lengths.max())):
        running = lengths[rows] > t
        if not running.all():
            state.keep(running)
            rows = rows[running]
        tokens = traces.starts[rows] + t
        out[tokens] = state.step({name: traces.signals[name][tokens] for name in needs})
    return out
