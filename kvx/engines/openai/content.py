"""What one part of a reply says: text, reasoning, refusal, scored tokens, and usage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

# what servers call the reasoning they have parsed: vLLM, SGLang, llama.cpp, DeepSeek (the first),
# newer vLLM, OpenRouter, Groq, Ollama (the second), Ollama's own API (the third)
REASONING = ("reasoning_content", "reasoning", "thinking")
MOST_TOKENS = 2**31  # what tables hold


@dataclass(frozen=True)
class Said:
    text: str = ""
    reasoning: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class ScoredToken:
    """A token's text, its log-prob (nan if not given) and the likeliest ones', if given."""

    text: str
    logprob: float = math.nan
    top: tuple[float, ...] = ()


def of_chat(choice: dict[str, Any]) -> Said:
    """Read a choice of /chat/completions. Raises `TypeError` if the text is not a string."""
    message = choice.get("delta") or choice.get("message") or {}
    text, thought = _text(message.get("content"))
    refusal = message.get("refusal") or ""
    if not isinstance(refusal, str):
        raise TypeError("the refusal is not a string")
    return Said(text, _reasoning(message) + thought, refusal)


def of_completion(choice: dict[str, Any]) -> Said:
    """Read a choice of /completions. Raises `KeyError` if it is empty, `TypeError` as above."""
    if choice.get("finish_reason") is None and "text" not in choice:
        raise KeyError("text")
    text, thought = _text(choice.get("text"))
    return Said(text, _reasoning(choice) + thought)


def _reasoning(message: dict[str, Any]) -> str:
    found = (message.get(name) for name in REASONING)
    return next((text for text in found if isinstance(text, str) and text), "")


def _text(content: Any) -> tuple[str, str]:
    """Text and reasoning of `content`: a string, or a list of typed parts (Mistral, others)."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise TypeError("the text is not a string")
    texts, thoughts = [], []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif part.get("type") in ("thinking", "reasoning"):
            inner = next((part[n] for n in ("thinking", "reasoning", "text") if n in part), None)
            thoughts.append("".join(_text(inner)))
        elif isinstance(said := part.get("text"), str):
            texts.append(said)
    return "".join(texts), "".join(thoughts)


def scored_tokens(logprobs: Any) -> list[ScoredToken]:
    """The tokens of a choice's `logprobs`, of either API; what cannot be read is left out."""
    if not isinstance(logprobs, dict):
        return []
    if isinstance(items := logprobs.get("content"), list):
        return [
            ScoredToken(str(i.get("token") or ""), _number(i.get("logprob")), _tops(i))
            for i in items
            if isinstance(i, dict)
        ]
    tokens, chosen = _list(logprobs.get("tokens")), _list(logprobs.get("token_logprobs"))
    tops = _list(logprobs.get("top_logprobs"))
    return [
        ScoredToken("" if token is None else str(token), _number(value), _tops(top))
        for token, value, top in zip_longest(tokens, chosen, tops)
    ]


def _tops(of: Any) -> tuple[float, ...]:
    """The likeliest log-probs, highest first; empty if any of them is not a number."""
    if isinstance(of, dict) and "top_logprobs" in of:
        items = _list(of["top_logprobs"])
        values = [i.get("logprob") if isinstance(i, dict) else None for i in items]
    else:
        values = list(of.values()) if isinstance(of, dict) else []
    numbers = sorted(map(_number, values), reverse=True)
    return () if any(map(math.isnan, numbers)) else tuple(numbers)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float:
    """A log-prob; nan if it is not a number. -inf is one: the token cannot come."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def used(usage: dict[str, Any]) -> tuple[int | None, int | None]:
    """Tokens that were generated, and how many of them were reasoning; None where not told.

    Some servers (xAI) leave reasoning out of `completion_tokens`, as the total shows.
    """
    completion = _count(usage.get("completion_tokens"))
    details = usage.get("completion_tokens_details")
    reasoning = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    if reasoning is None:
        reasoning = _count(usage.get("reasoning_tokens"))
    total, prompt = _count(usage.get("total_tokens")), _count(usage.get("prompt_tokens"))
    if None not in (completion, reasoning, total, prompt):
        apart = total == prompt + completion + reasoning  # type: ignore[operator]
        completion += reasoning if apart else 0  # type: ignore[operator]
    return completion, reasoning


def _count(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_TOKENS:
        return None
    return value
