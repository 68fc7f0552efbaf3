"""A sequence being generated, and what may watch and steer it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from kvx.config import DecodingConfig
from kvx.engines.base import KVUse, Probe
from kvx.engines.kvpress.cache import Bucket
from kvx.points import Request


@dataclass
class Row:
    """One running sequence.

    `position` is the logical position of the next token (prompt length + i). `decoding` is its own
    where rows beside it are decoded otherwise; `ignore_stop` lets it go on after a stop token.
    """

    request: Request
    position: int
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None  # stop | length | what a Stop action said
    generator: torch.Generator | None = None
    kv: KVUse | None = None  # of the prompt
    decoding: DecodingConfig | None = None
    ignore_stop: bool = False
    started: float = field(default_factory=time.perf_counter)  # seconds on that clock


@dataclass(frozen=True)
class Prefill:
    """What a prompt left behind: first-token logits [vocab] after compression and the question.

    `probe` and `score_evicted` as in `Trace`.
    """

    logits: torch.Tensor
    prompt_tokens: int
    compressed_tokens: int
    probe: Probe | None = None
    score_evicted: float | None = None


@dataclass(frozen=True)
class Stop:
    """Action: end a row with this finish reason."""

    row: Row
    reason: str


class StepObserver(Protocol):
    """Sees every row at every step; traces, time limits, controllers and streaming hang here."""

    def on_prefill(self, rows: Sequence[Row], prefills: Sequence[Prefill]) -> None:
        """Called once per row, before its first token is chosen."""
        ...

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Stop]:
        """Called after `logits` [rows, vocab] chose `tokens` [rows].

        The actions returned are carried out at once.
        """
        ...


def drop(bucket: Bucket, rows: list[Row], slot: int) -> None:
    """Take a row out of its bucket; the last one moves into its slot."""
    bucket.drop(slot)
    rows[slot] = rows[-1]
    rows.pop()


def without(
    buckets: Sequence[tuple[Bucket, list[Row]]], row: Row
) -> list[tuple[Bucket, list[Row]]]:
    """The buckets after `row` is taken out; their other rows may have changed places."""
    for bucket, rows in buckets:
        for slot in reversed(range(len(rows))):
            if rows[slot] is row:
                drop(bucket, rows, slot)
    return [(bucket, rows) for bucket, rows in buckets if rows]
