"""One request on its way through the decoding thread, and what comes back for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from kvx.config.guard import StreamPolicy
from kvx.config.press_choices import PressLayers
from kvx.data.prompt import PromptParts
from kvx.engines.base import KVUse
from kvx.engines.kvpress.admission import Submission
from kvx.engines.kvpress.guarded import live_policy
from kvx.engines.kvpress.model import resolve_attention
from kvx.engines.kvpress.press import PointPress, runs_alone
from kvx.engines.kvpress.scheduler import Task
from kvx.engines.kvpress.sequence import Row
from kvx.guard.events import Guarded
from kvx.guard.live import SequenceGuard
from kvx.points import Request
from kvx.serve.api_errors import ApiError
from kvx.serve.transcript import Piece, Restart, Transcript


@dataclass(frozen=True)
class Done:
    """The end of a generation: `finish_reason` is stop or length.

    `guard` is what a controller did, None without one.
    """

    finish_reason: str
    completion_tokens: int
    kv: KVUse
    guard: Guarded | None = None


Event = Piece | Restart | Done | ApiError


@dataclass(eq=False)
class Job(Task):
    """What is to be generated, and how far it is.

    `deliver` takes events in the event loop of the server. `promised`: whether the server's
    certificate covers the request; None if it has none. `note`: why it does not have the server's
    budget; None if it has.
    """

    request: Request
    parts: PromptParts
    seed: int
    transcript: Transcript
    deliver: Callable[[Event], None]
    bytes: int  # of its cache, at most
    streams: bool = False
    logprobs: int | None = None
    ignore_stop: bool = False
    promised: bool | None = None
    note: str | None = None
    row: Row | None = None
    n_before: int = 0  # tokens of its answer from before the latest attempt
    cancelled: bool = False
    created: float = field(default_factory=time.perf_counter)  # seconds on that clock

    @property
    def guarded(self) -> bool:
        return self.request.point.guarded

    @property
    def certified(self) -> bool | None:
        """Whether the certificate covers the answer. A guard that was restarted is not covered."""
        return self.promised and not (self.guarded and self.n_before)

    @property
    def n_tokens(self) -> int:
        """Of the answer so far."""
        return self.n_before + (len(self.row.tokens) if self.row is not None else 0)

    @property
    def said_ids(self) -> list[int]:
        """The tokens of its answer from before the latest attempt."""
        return self.transcript.text.token_ids[: self.n_before]

    def said(self) -> list[Piece | Restart]:
        """Text that may be sent now and was not sent before.

        Of a guarded answer that is only what cannot be taken back any more, unless restarts are
        announced. An answer that is not streamed is sent at its end.
        """
        row = self.row
        if row is None or row.guard is None:
            return self.transcript.show(self.transcript.n_tokens)
        if self.request.point.config.guard.stream is StreamPolicy.restart and self.streams:
            return self.transcript.show(self.transcript.n_tokens)
        if not self.streams:
            return []
        said = self.transcript.show(self.n_before + row.guard.settled)
        row.guard.floor = max(row.guard.floor, self.transcript.shown_tokens - self.n_before)
        return said

    def submission(self) -> Submission:
        """Its first attempt, or what is left of its answer after one that failed.

        A row without a guard goes on with the tokens it has; all but the last are then in its
        cache. With a guard it gets a new row, whose prompt includes what was said before.
        """
        point, parts, row = self.request.point, self.parts, self.row
        config, n = point.config, len(parts.compressed_ids)
        guard = None
        said = [] if row is None else row.tokens[:-1]
        if self.guarded:
            policy = live_policy(config.controller, config.guard)
            share = point.kept_share(n)
            guard = partial(SequenceGuard, policy, config.guard, share, str(self.seed))
            said = self.said_ids
        left = config.decoding.max_new_tokens - len(said)
        return Submission(
            replace(parts, rest_ids=[*parts.rest_ids, *said]),
            PointPress(point, n),
            config.press.name,
            point.kept_tokens(n),
            left,
            self.seed,
            self.request,
            replace(config.decoding, max_new_tokens=left),
            self.ignore_stop,
            watched=self.guarded,
            probed=self.guarded,
            guard=guard,
            row=None if self.guarded else row,
            everywhere=config.press.layers is PressLayers.all,
            alone=runs_alone(point) and not self.guarded,
            attention=resolve_attention(config),
        )

    def begin(self, row: Row) -> None:
        before, self.row = self.row, row
        if before is None or before is row:
            return
        row.started = before.started
        if self.said_ids:  # it goes on; else it begins as if nothing had been
            row.generator = before.generator

    @property
    def complete(self) -> bool:
        """Whether its last token had been heard when a step failed."""
        row = self.row
        return (
            row is not None
            and row.finish_reason is not None
            and self.transcript.n_tokens == self.n_tokens
        )

    def again(self) -> None:
        """Prepare to go on after a failed step: forget tokens that were chosen and not decoded.

        With a guard, forget what was not sent; what was sent becomes part of a new row's prompt.
        """
        row, transcript = self.row, self.transcript
        if row is None:
            return
        row.finish_reason = None
        if self.guarded:
            transcript.rewind(min(transcript.shown_tokens, self.n_tokens))
            self.n_before = transcript.n_tokens
            row.tokens.clear()
        else:
            del row.tokens[transcript.n_tokens :]
