"""Observers of the decode loop: signals, traces and time limits."""

import time
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from kvx.engines.base import Trace
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.sequence import Action, Prefill, Row, StepObserver, Stop
from kvx.guard.signals import TokenSignals, token_signals
from kvx.scoring.repetition import Repetition

TIMEOUT = "timeout"


class StepSignals:
    """The signals of a step, computed once for all observers."""

    def __init__(self) -> None:
        self._logits: weakref.ref[torch.Tensor] | None = None
        self._signals: TokenSignals | None = None

    def of(self, logits: torch.Tensor, tokens: torch.Tensor) -> TokenSignals:
        """Signals of `logits` [rows, vocab] that chose `tokens` [rows]."""
        if self._signals is None or self._logits is None or self._logits() is not logits:
            self._signals = token_signals(logits, tokens)
            self._logits = weakref.ref(logits)
        return self._signals


class TraceObserver(StepObserver):
    """Records every token's log-prob and entropy, or with `full` all signals."""

    def __init__(self, loaded: LoadedModel, full: bool, signals: StepSignals | None = None) -> None:
        self.full = full
        self._signals = signals or StepSignals()
        self._thinking = loaded.thinking_ids if full else frozenset()
        self._rows: dict[int, _Recorded] = {}

    def on_prefill(self, rows: Sequence[Row], prefills: Sequence[Prefill]) -> Sequence[Action]:
        for row, prefill in zip(rows, prefills, strict=True):
            self._rows[id(row)] = _Recorded(prefill)
        return ()

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Action]:
        signals = self._signals.of(logits, tokens)
        for index, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            recorded = self._rows[id(row)]
            recorded.steps.append((signals, index))
            if self.full:
                recorded.repetition.append(recorded.tail.push(token))
        return ()

    def on_rebuilt(self, row: Row, logits: torch.Tensor | None) -> Sequence[Action]:
        self._rows[id(row)].keep(row.tokens)
        return ()

    def forget(self, rows: Sequence[Row]) -> None:
        """Forget rows that were given up."""
        for row in rows:
            self._rows.pop(id(row), None)

    def trace(self, row: Row) -> Trace:
        """The signals of a finished row, which is then forgotten."""
        recorded = self._rows.pop(id(row))

        def of(name: str) -> np.ndarray:
            return np.array([getattr(signals, name)[i] for signals, i in recorded.steps])

        entropy = of("entropy_nats")
        trace = Trace(row.tokens, of("logprob").tolist(), entropy.tolist())
        if not self.full:
            return trace
        counts, periods = zip(*recorded.repetition, strict=True)
        return replace(
            trace,
            top_logprobs=of("top_logprobs").tolist(),
            probe=recorded.prefill.probe,
            score_evicted=recorded.prefill.score_evicted,
            kept_percent=recorded.prefill.kept_percent,
            signals={
                **{n: of(n).tolist() for n in _STORED},
                "rank": of("rank").astype(int).tolist(),
                "entropy_change_nats": np.diff(entropy, prepend=entropy[:1]).tolist(),
                "repetition_count": list(counts),
                "period": list(periods),
                "thinking": [token in self._thinking for token in row.tokens],
            },
        )


_STORED = ("top1_prob", "top5_prob", "entropy_rest_nats", "mean_logprob", "margin")


class _Recorded:
    """The record of one row."""

    def __init__(self, prefill: Prefill) -> None:
        self.prefill = replace(prefill, logits=torch.empty(0))
        self.steps: list[tuple[TokenSignals, int]] = []  # a step, and the row's index in it
        self.tail = Repetition()
        self.repetition: list[tuple[int, int]] = []

    def keep(self, tokens: Sequence[int]) -> None:
        """Keep only the first `tokens`."""
        del self.steps[len(tokens) :]
        if self.repetition:
            self.tail = Repetition()
            self.repetition = [self.tail.push(token) for token in tokens]


class TimeLimit(StepObserver):
    """Stops every row that has run longer than `limit_s` seconds, alone or beside others."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Action]:
        now = time.perf_counter()
        return [Stop(row, TIMEOUT) for row in rows if now - row.started > self.limit_s]
