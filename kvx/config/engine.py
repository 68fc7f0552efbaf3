"""Configuration of the engines: the one in this process, and servers with OpenAI's API."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from kvx.config.field_kinds import IDENTITY, NEUTRAL, neutral, recorded
from kvx.config.ranges import within


@dataclass
class EngineConfig:
    """What decides how fast answers come and how much memory that takes.

    Which rows are decoded together changes how sums are rounded: a near tie can tip.
    """

    name: str = MISSING
    _target_: str = MISSING
    # one prefill for all points of an example, and all of them decoded together
    share: bool = recorded(True)
    # rows decoded together; the points of one example always are, if their caches fit
    max_rows: int = within(recorded(256), at_least=1)
    # KV caches held at once; null: a share of the memory that is free at the start
    max_cache_gib: float | None = within(recorded(None), above=0)


class Api(Enum):
    """Which endpoint of an OpenAI-compatible server is asked."""

    completions = "completions"  # the rendered prompt, as engine=kvpress sees it
    chat = "chat"  # one user message; the server's own template


@dataclass
class RateLimitConfig:
    """Upper limits per minute, of this process: requests, and prompt plus new tokens."""

    max_rpm: int | None = within(None, at_least=1)
    max_tpm: int | None = within(None, at_least=1)


@dataclass
class ServerTimeoutsConfig:
    """Seconds until an attempt is given up; `decoding.timeout_s` replaces `total_s`."""

    connect_s: float = within(10.0, above=0)
    first_token_s: float = within(300.0, above=0)
    between_tokens_s: float = within(60.0, above=0)
    total_s: float = within(900.0, above=0)


@dataclass
class OpenAIConfig(EngineConfig):
    """A server with OpenAI's API. Where it is and how fast it is asked is not part of a result.

    `endpoints` maps budgets to URLs; of it, only whether it is used identifies a point.
    `extra_body` is kept as typed: its `${press}` and `${budget}` are filled in for each request.
    Both are untyped, because a typed mapping takes no new keys from the command line.
    """

    api: Api = Api.completions
    model: str | None = None
    extra_body: Any = None
    # fields of a request that this server does not take
    omit: list[str] = field(default_factory=list)
    top_logprobs: int = within(20, at_least=0, at_most=20)
    endpoints: Any = field(default=None, metadata={IDENTITY: bool})
    base_url: str | None = neutral(None)
    stream: bool = neutral(True)
    concurrency: int | str = within(neutral("auto"), at_least=1, words="auto, or at least 1")
    max_concurrency: int = within(neutral(64), at_least=1)
    max_retries: int = within(neutral(5), at_least=0)
    max_retry_after_s: float = within(neutral(120.0), at_least=0)
    probe: bool = neutral(True)
    rate_limit: RateLimitConfig = field(default_factory=RateLimitConfig, metadata=NEUTRAL)
    timeouts: ServerTimeoutsConfig = field(default_factory=ServerTimeoutsConfig, metadata=NEUTRAL)
