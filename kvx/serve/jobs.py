"""One request on its way through the decoding thread, and what comes back for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kvx.config.guard import StreamPolicy
from kvx.data.prompt import PromptParts
from kvx.engines.base import KVUse
from kvx.engines.kvpress.sequence import Row
from kvx.guard.events import Guarded
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
class Job:
    """What is to be generated, and how far it is.

    `row` is there from the prefill on. `deliver` takes events in the event loop of the server.
    `promised`: whether the server's certificate covers the request; None if it has none. `note`:
    why it does not have the server's budget; None if it has.
    """

    request: Request
    parts: PromptParts
    seed: int
    transcript: Transcript
    deliver: Callable[[Event], None]
    bytes: int  # of its cache, at most
    prompt_bytes: int = 0  # of its prompt's full cache, if a guard may give it that
    streams: bool = False
    logprobs: int | None = None
    ignore_stop: bool = False
    promised: bool | None = None
    note: str | None = None
    row: Row | None = None
    n_before: int = 0  # tokens that it had said when it was begun again
    host_bytes: int = 0  # of its guard's shadow
    cancelled: bool = False
    created: float = field(default_factory=time.perf_counter)  # seconds on that clock

    @property
    def guarded(self) -> bool:
        return self.request.point.guarded

    @property
    def certified(self) -> bool | None:
        """Whether the answer is as it was certified: a guard that began anew is not."""
        return self.promised and not (self.guarded and self.n_before)

    @property
    def n_tokens(self) -> int:
        """Of the answer so far."""
        return self.n_before + (len(self.row.tokens) if self.row is not None else 0)

    @property
    def said_ids(self) -> list[int]:
        """The tokens that it had said when it was begun again."""
        return self.transcript.text.token_ids[: self.n_before]

    def said(self) -> list[Piece | Restart]:
        """What its reader may hear now that he has not heard yet.

        Of a guarded answer only what is not taken back later, unless restarts are announced; who
        reads it whole hears nothing before its end.
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

    def rewind(self) -> None:
        """Make ready to go on after a failed step: forget what it chose and had not said.

        With a guard, that is what was not shown: what was becomes part of the prompt of a new row.
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
