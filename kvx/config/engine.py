"""Configuration of the engines: the one in this process, and servers with OpenAI's API."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from kvx.config.fields import option

AUTO = "auto"


@dataclass
class EngineConfig:
    """Fields that decide speed and memory, not answers.

    Which rows are decoded together changes how sums are rounded: a near tie can tip.
    """

    name: str = option(MISSING, "name of the engine")
    _target_: str = option(MISSING, "the engine's class")
    share: bool = option(
        True,
        "one prefill per example for all of its points, decoded together; false: each point alone",
        recorded=True,
    )
    max_rows: int = option(
        256,
        "rows decoded together; the points of one example always are, if their caches fit",
        recorded=True,
        at_least=1,
    )
    max_cache_gib: float | None = option(
        None,
        "KV caches held at once; null: 60% of the memory that is free at the start",
        recorded=True,
        above=0,
    )


class Api(Enum):
    """The endpoint of an OpenAI-compatible server."""

    completions = "completions"  # the rendered prompt, as engine=kvpress sees it
    chat = "chat"  # one user message; the server's own template


@dataclass
class RateLimitConfig:
    """Upper limits per minute, of this process."""

    max_rpm: int | None = option(None, "requests per minute", at_least=1)
    max_tpm: int | None = option(None, "prompt and new tokens per minute", at_least=1)


@dataclass
class ServerTimeoutsConfig:
    """Seconds until an attempt is given up."""

    connect_s: float = option(10.0, "until there is a connection", above=0)
    first_token_s: float = option(300.0, "from sending the request to its first token", above=0)
    between_tokens_s: float = option(60.0, "from one token to the next", above=0)
    total_s: float = option(900.0, "replaced by decoding.timeout_s", above=0)


def _auto_or_number(concurrency: int | str) -> str | None:
    if isinstance(concurrency, str) and concurrency != AUTO:
        return f"={concurrency}: must be auto, or at least 1"
    return None


def _mapping(body: Any) -> str | None:
    if isinstance(body, Mapping):
        return None
    return f"={body}: must be a mapping such as {{keep: ${{budget}}}}"


@dataclass
class OpenAIConfig(EngineConfig):
    """A server with OpenAI's API. Its address and the pace of requests are not part of an id.

    `endpoints` and `extra_body` are untyped, because a typed mapping takes no new keys from the
    command line.
    """

    api: Api = option(
        Api.completions,
        "completions: the prompt as engine=kvpress sees it; chat: the server's own template",
    )
    model: str | None = option(None, "the model's name at the server")
    extra_body: Any = option(
        None,
        'fields of each request, such as {compress: {method: "${press}", keep: "${budget}"}}; '
        "press and budget are filled in for each",
        check=_mapping,
    )
    omit: list[str] = option(
        [], "fields of a request that this server does not take, such as [seed, stream_options]"
    )
    top_logprobs: int = option(20, "asked for unless signals=off; 0: none", at_least=0, at_most=20)
    endpoints: Any = option(
        None,
        "one server per budget: {1.0: http://a:8000/v1, 0.2: http://b:8000/v1}; without it, and "
        "without extra_body, a kvx server is told the budget per request, any other is not told",
        identity=bool,
    )
    base_url: str | None = option(None, "where the server is", neutral=True)
    stream: bool = option(True, "false: no time to the first token is measured", neutral=True)
    concurrency: int | str = option(
        AUTO,
        "requests in flight; auto: grows while that pays, halves on 429 and time-outs",
        neutral=True,
        at_least=1,
        words="auto, or at least 1",
        check=_auto_or_number,
    )
    max_concurrency: int = option(64, "requests in flight at most", neutral=True, at_least=1)
    max_retries: int = option(
        5,
        "attempts after 429, 5xx, time-outs and broken connections or answers, with jitter",
        neutral=True,
        at_least=0,
    )
    max_retry_after_s: float = option(
        120.0, "a server that asks for a longer wait has refused", neutral=True, at_least=0
    )
    probe: bool = option(
        True,
        "compare the highest and the lowest budget at the start, if responses hold no accounting",
        neutral=True,
    )
    rate_limit: RateLimitConfig = option(RateLimitConfig, neutral=True)
    timeouts: ServerTimeoutsConfig = option(ServerTimeoutsConfig, neutral=True)
