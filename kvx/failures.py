"""The failure taxonomy, and the failures of requests that have no response.

A failure is not an inaccuracy: scores and failure rates are reported side by side. The wording of
errors is that of OpenAI, vLLM, SGLang and llama.cpp servers and of the openai client. Failures seen
in a response's text are told apart in `kvx.score.failures`.
"""

import re
from enum import StrEnum


class FailureType(StrEnum):
    """The first four leave no response; the last four are found in a response's text."""

    RATE_LIMITED = "RATE_LIMITED"
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    TIMEOUT = "TIMEOUT"
    ENGINE_ERROR = "ENGINE_ERROR"
    EMPTY_OUTPUT = "EMPTY_OUTPUT"
    TRUNCATED = "TRUNCATED"
    REFUSAL = "REFUSAL"
    FORMAT_ERROR = "FORMAT_ERROR"


def classify_error(message: str, status: int | None = None) -> FailureType:
    """The failure of a request without a response; `status` is the HTTP status, if there was one.

    The first that holds: RATE_LIMITED (429, or text saying so: a quota per minute also talks of
    tokens), CONTEXT_LENGTH_EXCEEDED, TIMEOUT, else ENGINE_ERROR. Some exceptions have no text, such
    as `TimeoutError()`: pass their `repr`.
    """
    if status == 429 or _RATE_LIMITED.search(message):
        return FailureType.RATE_LIMITED
    if _CONTEXT_LENGTH.search(message):
        return FailureType.CONTEXT_LENGTH_EXCEEDED
    # a 4xx that mentions a timeout rejects a parameter of that name
    rejected = status is not None and 400 <= status < 500
    if status in (408, 504, 524) or (not rejected and _TIMEOUT.search(message)):
        return FailureType.TIMEOUT
    return FailureType.ENGINE_ERROR


_RATE_LIMITED = re.compile(
    r"(?<![a-z])rate[\s_-]?limit"
    r"|too many requests"
    r"|(?:code|status|http)\b\W{0,3}429\b"
    r"|insufficient_quota|exceeded your current quota"
    r"|request queue is full",  # SGLang's --max-queued-requests, a 503
    re.IGNORECASE,
)
_CONTEXT_LENGTH = re.compile(
    r"context_length_exceeded|exceed_context_size_error"
    r"|maximum context length"  # OpenAI, vLLM, SGLang
    r"|exceeds? (?:the )?(?:available )?context (?:size|length|window)"  # llama.cpp, OpenAI
    r"|context (?:size|length|window) (?:has been |was )?exceeded"  # llama.cpp, while decoding
    r"|longer than the (?:model's context|maximum model) length"  # SGLang, vLLM
    r"|too long to fit into the model"  # vLLM
    r"|max_tokens must be at least 1, got -"  # vLLM: nothing is left after the prompt
    r"|input length \(\d+ tokens\) exceeds the maximum allowed length"  # SGLang
    r"|prompt is too long",
    re.IGNORECASE,
)
_TIMEOUT = re.compile(r"time[\s_-]?out|timed[\s_-]?out|deadline exceeded", re.IGNORECASE)
