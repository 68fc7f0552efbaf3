"""The failure taxonomy, and the failures of requests that have no response.

A failure is not an inaccuracy: scores and failure rates are reported side by side. Failures seen in
a response's text are classified in `kvx.scoring.failure_rules`.
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

    The first that holds: RATE_LIMITED (429, or text saying so; before the context length, because a
    quota per minute also talks of tokens), CONTEXT_LENGTH_EXCEEDED, TIMEOUT, else ENGINE_ERROR. Of
    exceptions without text, such as `TimeoutError()`, pass the `repr`.
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
_N = r"[\d,.]+"
# how servers say that a prompt does not fit, and which servers
CONTEXT_LENGTH_WORDS: dict[str, str] = {
    r"context[_ ]length[_ ]exceeded|exceed_context_size_error": "OpenAI's code, llama.cpp's type",
    r"model_context_window_exceeded": "z.ai",
    r"maximum (?:context|prompt) length": "OpenAI, vLLM, SGLang, DeepSeek, OpenRouter, xAI",
    rf"model's context length is only {_N} tokens": "vLLM (its renderer, 2026)",
    r"cannot be greater than max_(?:total_tokens|model_len)": "vLLM (2026): no room for a prompt",
    r"longer than the (?:model's context|maximum model) length": "SGLang, Together, vLLM's engine",
    r"too long to fit into the model": "vLLM 0.6 to 0.9",
    r"max_tokens must be at least 1, got -": "vLLM: nothing is left after the prompt",
    r"is too long and exceeds limit of": "vLLM before 0.6",
    r"exceeds? (?:the )?(?:available )?(?:model'?s? )?(?:max(?:imum)? )?context "
    r"(?:size|length|window|limit)": "llama.cpp, OpenAI's responses, Ollama, Anthropic",
    r"context (?:size|length|window) (?:has been |was )?exceed": "llama.cpp decoding, MiniMax",
    r"larger than the max(?:imum)? context size": "llama.cpp with context shift",
    rf"exceeded max context length by {_N}": "Ollama",
    r"tokens to keep from the initial prompt is greater than the context length": "LM Studio 2026",
    r"trying to keep the first \d+ tokens when context": "LM Studio 0.3.13",
    r"reached context length of \d+ tokens": "LM Studio while decoding",
    r"loaded with (?:a )?context length of only": "LM Studio",
    rf"`?inputs`? tokens \+ `?max_new_tokens`? must be <= {_N}": "TGI, Together",
    rf"`?inputs`? must have less than {_N} tokens": "TGI",
    r"input token count\b.{0,40}\bexceeds the maximum number of tokens": "Gemini",
    r"sum of prompt length .{0,80}should not exceed max_(?:num_tokens|seq_len)": "TensorRT-LLM 1.x",
    r"`?default_max_tokens`? \(-?[\d.]+\) (?:must|should) be greater than 0": "TensorRT-LLM 1.x",
    r"prompt length \(\d+\) exceeds maximum (?:input|sequence) length": "TensorRT-LLM 0.x, Triton",
    rf"input length {_N} exceeds (?:the )?maximum (?:allowed )?input length": "DeepInfra, Poolside",
    rf"input length \({_N} tokens\) exceeds the maximum allowed length": "SGLang",
    rf"(?:prompt|input) (?:is|has) {_N} tokens, (?:which exceeds|but the configured context)":
        "forks of vLLM, ds4",
    rf"too large for model with {_N} maximum context length": "Mistral",
    r"prompt is too long": "Anthropic",
    r"prompt too long; exceeded": "Ollama",
    r"input is too long for (?:the )?requested model": "Bedrock",
    r"exceeded model token limit": "Kimi",
    r"prompt token count of \d+ exceeds the limit": "GitHub Copilot",
    r"range of input length should be": "DashScope",
    r"reduce the length of the (?:messages|input|prompt)": "Groq, OpenAI, vLLM",
    r"request_too_large|request exceeds the maximum size": "Anthropic, 413",
}  # fmt: skip
_CONTEXT_LENGTH = re.compile("|".join(CONTEXT_LENGTH_WORDS), re.IGNORECASE)
_TIMEOUT = re.compile(r"time[\s_-]?out|timed[\s_-]?out|deadline exceeded", re.IGNORECASE)
