"""One request on its way through the decoding thread, and what comes back for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kvx.data.prompt import PromptParts
from kvx.engines.base import KVUse
from kvx.engines.kvpress.rows import Row
from kvx.points import Request
from kvx.serve.errors import ApiError
from kvx.serve.text import StopStrings, TokenText


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability under the model (before temperature and cuts)."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class ScoredToken:
    """A chosen token and the likeliest ones at its place, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Piece:
    """Text that can be shown, and the tokens chosen since the last piece, if asked for."""

    text: str
    scored: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of a generation: `finish_reason` is stop or length."""

    finish_reason: str
    completion_tokens: int
    kv: KVUse


Event = Piece | Done | ApiError


@dataclass(eq=False)
class Job:
    """What is to be generated, and how far it is.

    `row` is there from the prefill on. `deliver` takes events in the event loop of the server.
    """

    request: Request
    parts: PromptParts
    seed: int
    text: TokenText
    stops: StopStrings
    deliver: Callable[[Event], None]
    bytes: int  # of its cache, at most
    logprobs: int | None = None
    ignore_stop: bool = False
    row: Row | None = None
    cancelled: bool = False
    created: float = field(default_factory=time.perf_counter)  # seconds on that clock

    def rewind(self) -> None:
        """Forget what a step chose that failed before it was said."""
        if self.row is not None:
            del self.row.tokens[self.text.n_tokens :]
            self.row.finish_reason = None
