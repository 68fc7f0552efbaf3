"""Why servers say that an answer ended, in one vocabulary."""

from typing import Any

STOP, LENGTH, CONTENT_FILTER, REPETITION, TOOL_CALLS, BROKEN_OFF = (
    "stop", "length", "content_filter", "repetition", "tool_calls", "broken off",
)  # fmt: skip
# by what it means; compared in lower case, with _ for - and spaces
SAID: dict[str, tuple[str, ...]] = {
    STOP: (
        "stop",
        "eos", "eos_token", "stop_sequence", "stop_token", "stop_str", "stop_word",  # TGI, others
        "end_turn",  # Anthropic
        "eosfound", "stopstringfound",  # LM Studio
        "complete", "completed", "finished", "done", "end",
    ),
    LENGTH: (
        "length",
        "max_tokens", "max_token", "max_output_tokens", "max_new_tokens", "max_length",
        "maxtokens", "maxlength", "token_limit", "length_limit", "limit",
        "model_length",  # Mistral
        "maxpredictedtokensreached", "contextlengthreached",  # LM Studio
        "context_length", "context_length_exceeded", "model_context_window_exceeded",  # z.ai
        "incomplete",
    ),
    CONTENT_FILTER: (
        "content_filter", "content_filtered", "contentfilter",
        "safety", "recitation", "blocklist", "prohibited_content", "spii", "image_safety",  # Gemini
        "refusal",  # Anthropic
        "guardrail_intervened",  # Bedrock
        "sensitive",  # z.ai
    ),
    REPETITION: ("repetition", "repetition_detected", "repetition_truncation", "loop"),  # vLLM
    TOOL_CALLS: (
        "tool_calls", "tool_call", "toolcalls", "tool_use", "function_call", "tool",
        "malformed_function_call", "unexpected_tool_call",  # Gemini
    ),
    BROKEN_OFF: (
        "abort", "aborted", "cancelled", "canceled", "error", "failed", "timeout", "preempted",
        "insufficient_system_resource",  # DeepSeek
        "network_error",  # z.ai
        "userstopped", "modelunloaded",  # LM Studio
    ),
}  # fmt: skip
_MEANING = {word: meaning for meaning, words in SAID.items() for word in words}


def meaning(said: Any) -> str | None:
    """What `finish_reason` means; an unknown one is kept as it is, None stands for none.

    SGLang's own API wraps it: {"type": "length", "length": 64}. What is not text says nothing.
    """
    if isinstance(said, dict):
        said = said.get("type")
    if not isinstance(said, str) or not said.strip():
        return None
    word = said.strip().lower().replace("-", "_").replace(" ", "_")
    if word in ("null", "none"):
        return None
    return _MEANING.get(word.removeprefix("finish_reason_"), said.strip())
