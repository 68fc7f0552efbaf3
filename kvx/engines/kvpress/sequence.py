"""A sequence being generated, and the observers that watch and steer it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from kvx.config.schema import DecodingConfig
from kvx.engines.base import KVUse, Probe
from kvx.engines.kvpress.cache import Bucket
from kvx.guard.live import Change, SequenceGuard
from kvx.points import Request
from kvx.text.incremental import StopWatch


class Source(Protocol):
    """Where the compressed part of a row's prompt comes from, at any budget."""

    @property
    def logits(self) -> torch.Tensor:
        """Logits [vocab] after its last token."""
        ...

    def bucket(self, budget: float, room: int) -> Bucket:
        """A row of its own with the prompt at `budget`, and room for so many entries more."""
        ...

    @property
    def bytes(self) -> int:
        """What this row holds beside the device's caches."""
        ...


@dataclass(frozen=True)
class Origin:
    """What a row is rebuilt from: its prompt's compressed tokens, and the rest.

    Without a `source` it cannot be rebuilt. `press` is its press's name.
    """

    source: Source | None
    n_compressed: int
    rest_ids: Sequence[int]
    max_new_tokens: int
    press: str

    @property
    def room(self) -> int:
        """Entries appended to the compressed part, at most."""
        return len(self.rest_ids) + self.max_new_tokens


@dataclass
class Row:
    """One running sequence.

    `position` is the logical position of the next token: prompt length + i, less the positions that
    a press `packed` away (see `pack`). `decoding` is its own
    where rows beside it are decoded otherwise; `ignore_stop` lets it go on after a stop token. With
    a `guard` it may be taken back and go on with another budget, which needs an `origin`. `until`
    sees the stop strings of its text, where there are any. `asked` is None where the library
    decodes. `owner` is the scheduler's task.
    """

    asked: Request | None
    position: int
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None  # stop | length | what a Stop action said
    generator: torch.Generator | None = None
    kv: KVUse | None = None  # of the prompt
    packed: int = 0
    decoding: DecodingConfig | None = None
    ignore_stop: bool = False
    until: StopWatch | None = None
    opens_reasoning: bool = False  # its prompt ends with an open tag
    guard: SequenceGuard | None = None
    origin: Origin | None = None
    owner: Any = None
    started: float = field(default_factory=time.perf_counter)  # seconds on that clock

    def pack(self, positions: int) -> None:
        """Its press moved what it kept to the first positions; the text continues behind them."""
        self.position -= positions
        self.packed += positions

    @property
    def request(self) -> Request:
        """Of a row that belongs to a run or a server."""
        assert self.asked is not None
        return self.asked


@dataclass(frozen=True)
class Prefill:
    """The result of a prefill: first-token logits [vocab] after compression and the question.

    `probe`, `score_evicted` and `kept_percent` as in `Trace`; `full_logits` [vocab] are the full
    cache's, if they were computed.
    """

    logits: torch.Tensor
    prompt_tokens: int
    compressed_tokens: int
    probe: Probe | None = None
    score_evicted: float | None = None
    full_logits: torch.Tensor | None = None
    kept_percent: list[int] | None = None


@dataclass(frozen=True)
class Stop:
    """Action: end a row with this finish reason."""

    row: Row
    reason: str


@dataclass(frozen=True)
class Rebuild:
    """Action: take a row back to some of its tokens, and go on with another budget."""

    row: Row
    change: Change


Action = Stop | Rebuild


class StepObserver:
    """Sees every row at every step; traces, time limits, controllers and streaming hang here.

    The actions returned are carried out when all observers have seen the step.
    """

    def on_prefill(self, rows: Sequence[Row], prefills: Sequence[Prefill]) -> Sequence[Action]:
        """Called once per row, before its first token is chosen."""
        return ()

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Action]:
        """Called after `logits` [rows, vocab] chose `tokens` [rows]."""
        return ()

    def on_rebuilt(self, row: Row, logits: torch.Tensor | None) -> Sequence[Action]:
        """Called when `row` was taken back to the tokens it has now.

        `logits` [1, vocab] are those of its first token, if it has none.
        """
        return ()

    def on_end(self, rows: Sequence[Row]) -> None:
        """Called when `rows` have left, finished or given up."""


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
