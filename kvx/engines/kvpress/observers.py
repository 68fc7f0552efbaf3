"""Observers of the decode loop that the harness itself needs."""

import time
from collections.abc import Sequence

import torch

from kvx.engines.base import Trace
from kvx.engines.kvpress.rows import Prefill, Row, Stop

TIMEOUT = "timeout"


class TraceObserver:
    """Records log-probability and entropy (nats) of every chosen token, in float32."""

    def __init__(self) -> None:
        self._signals: dict[int, tuple[list[int], list[float], list[float]]] = {}

    def on_prefill(self, rows: Sequence[Row], prefills: Sequence[Prefill]) -> None:
        for row in rows:
            self._signals[id(row)] = ([], [], [])

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Stop]:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        entropy = torch.special.entr(logprobs.exp()).sum(-1).tolist()
        for row, token, logprob, nats in zip(rows, tokens.tolist(), chosen, entropy, strict=True):
            ids, probs, entropies = self._signals[id(row)]
            ids.append(token)
            probs.append(logprob)
            entropies.append(nats)
        return ()

    def trace(self, row: Row) -> Trace:
        """The signals of a finished row; forgets it."""
        return Trace(*self._signals.pop(id(row)))


class TimeLimit:
    """Stops every row that has run longer than `limit_s` seconds, alone or beside others."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s

    def on_prefill(self, rows: Sequence[Row], prefills: Sequence[Prefill]) -> None:
        return None

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Stop]:
        now = time.perf_counter()
        return [Stop(row, TIMEOUT) for row in rows if now - row.started > self.limit_s]
