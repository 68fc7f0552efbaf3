"""Putting a reply together from the parts a server sends; a pure parser with its own checks.

The openai client does not validate what it parses, so every field that is used is checked here.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from scipy.special import entr

from kvx.config import Api
from kvx.engines.base import KVUse, Timing, Trace
from kvx.engines.openai.fault import Fault, of_object

CONTENT_FILTER = "content_filter"
MOST_TOKENS, MOST_BYTES = 2**31, 2**53  # what tables hold


@dataclass(frozen=True)
class Accounting:
    """The server's own accounting of what it kept: the `kvx` object of a response."""

    press: str
    budget: float
    budget_kind: str
    kv: KVUse
    method: Any = None  # the press's class and parameters, if the server tells


@dataclass(frozen=True)
class Reply:
    """A complete answer. `tokens` (their text) and `trace` are there if log-probs were given."""

    text: str
    finish_reason: str
    output_tokens: int | None
    timing: Timing
    tokens: tuple[str, ...] = ()
    trace: Trace | None = None
    accounting: Accounting | None = None


@dataclass
class Parser:
    """Takes the parts of one reply in order: chunks of a stream, or one whole response."""

    api: Api
    text: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    top: list[list[float]] = field(default_factory=list)
    arrival_s: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage_tokens: Any = None
    accounting: Accounting | None = None
    first_s: float | None = None
    last_s: float | None = None

    def feed(self, part: Any, at_s: float) -> None:
        """One part that came `at_s` seconds after sending. Raises `Fault` for a wrong schema."""
        try:
            self._feed(part, at_s)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise Fault(
                f"the answer has a wrong schema ({type(error).__name__}: {error})"
            ) from None

    def _feed(self, part: Any, at_s: float) -> None:
        if not isinstance(part, dict):
            raise TypeError(f"a {type(part).__name__} where an object should be")
        if error := part.get("error"):
            raise of_object(error)
        if isinstance(usage := part.get("usage"), dict):
            self.usage_tokens = usage.get("completion_tokens", self.usage_tokens)
        if (said := part.get("kvx")) is not None:
            if "restart" in said:
                self._restart(said["restart"])
            else:
                self.accounting = accounting(said)
        choices = part["choices"]
        if not isinstance(choices, list):
            raise TypeError("choices is no list")
        for choice in choices:
            if choice.get("index", 0) == 0:
                self._choice(choice, at_s)

    def _choice(self, choice: dict[str, Any], at_s: float) -> None:
        if self.api is Api.chat:
            content = choice.get("delta") or choice.get("message") or {}
            text, refusal = content.get("content") or "", content.get("refusal") or ""
        else:
            text, refusal = choice["text"], ""
        if not isinstance(text, str) or not isinstance(refusal, str):
            raise TypeError("the text is no string")
        before = len(self.tokens)
        if (logprobs := choice.get("logprobs")) is not None:
            self._logprobs(logprobs)
        new = len(self.tokens) - before
        self.arrival_s += [at_s] * new
        self.text.append(text)
        self.refusal.append(refusal)
        if text or refusal or new:
            self.first_s = at_s if self.first_s is None else self.first_s
            self.last_s = at_s
        reason = choice.get("finish_reason") or self.finish_reason
        if reason is not None and not isinstance(reason, str):
            raise TypeError("the finish_reason is no string")
        self.finish_reason = reason

    def _restart(self, kept: dict[str, Any]) -> None:
        """A guarding server takes back what it streamed beyond so many characters and tokens."""
        n_characters, n_tokens = int(kept["kept_characters"]), int(kept["kept_tokens"])
        if min(n_characters, n_tokens) < 0:
            raise ValueError("a restart keeps less than nothing")
        self.text = ["".join(self.text)[:n_characters]]
        for items in (self.tokens, self.logprob, self.top, self.arrival_s):
            del items[n_tokens:]

    def _logprobs(self, logprobs: dict[str, Any]) -> None:
        if self.api is Api.chat:
            for item in logprobs.get("content") or ():
                top = [other["logprob"] for other in item.get("top_logprobs") or ()]
                self._token(item["token"], item["logprob"], top)
            return
        chosen = logprobs.get("token_logprobs") or ()
        tops = logprobs.get("top_logprobs") or [None] * len(chosen)
        for token, logprob, top in zip(logprobs.get("tokens") or (), chosen, tops, strict=True):
            self._token(token, logprob, list((top or {}).values()))

    def _token(self, token: str, logprob: float, top: list[float]) -> None:
        self.tokens.append(str(token))
        self.logprob.append(float(logprob))
        self.top.append(sorted(map(float, top), reverse=True))

    def finish(self, total_s: float, streamed: bool) -> Reply:
        """The whole reply, `total_s` seconds after sending. Raises `Fault` if it is not whole."""
        if self.finish_reason is None:
            how = "ended before it was finished" if self.text else "holds no choices"
            raise Fault(f"the answer {how}")
        text, refusal = storable("".join(self.text)), storable("".join(self.refusal))
        tokens = self.usage_tokens
        counted = isinstance(tokens, int) and not isinstance(tokens, bool)
        if not counted or not 0 <= tokens < MOST_TOKENS:
            tokens = len(self.tokens) or None
        latency_s = self.last_s if streamed and self.last_s is not None else total_s
        ttft_s = self.first_s if streamed else None
        several = ttft_s is not None and tokens is not None and tokens > 1
        tpot_s = (latency_s - ttft_s) / (tokens - 1) if several else None  # type: ignore[operator]
        return Reply(
            text or refusal,
            CONTENT_FILTER if refusal and not text else storable(self.finish_reason),
            tokens,
            Timing(ttft_s, latency_s, None, None, tpot_s),
            tuple(self.tokens),
            self._trace(streamed),
            self.accounting,
        )

    def _trace(self, streamed: bool) -> Trace | None:
        if not self.tokens or not all(self.top):
            return None
        entropy = entropy_nats(self.logprob, self.top)
        return Trace(
            None, self.logprob, entropy, source="top20", top_logprobs=self.top,
            arrival_s=self.arrival_s if streamed else None,
        )  # fmt: skip


def entropy_nats(chosen: list[float], tops: list[list[float]]) -> list[float]:
    """Entropy per token of the likeliest tokens and the rest taken as one outcome: a lower bound.

    A `chosen` token counts too where it is not among the `tops` (highest first).
    """
    known = [
        top if logprob >= top[-1] else [*top, logprob]
        for logprob, top in zip(chosen, tops, strict=True)
    ]
    width = max(map(len, known), default=0)
    padded = np.array([[*row, *[-np.inf] * (width - len(row))] for row in known])
    shares = np.exp(padded)
    rest = np.clip(1 - shares.sum(axis=1), 0, None)
    entropy: list[float] = entr(np.column_stack([shares, rest])).sum(axis=1).tolist()
    return entropy


def accounting(raw: dict[str, Any]) -> Accounting:
    """Raises what `Parser.feed` turns into a fault if a field is missing or no number."""
    kv, types = raw["kv"], {f.name: f.type for f in fields(KVUse)}
    numbers = {name: float(kv[name]) for name in types}
    if not all(0 <= value < MOST_BYTES for value in numbers.values()):  # nor is NaN
        raise ValueError("kv holds what is no amount")
    budget = float(raw["budget"])
    if not math.isfinite(budget):
        raise ValueError("the budget is no number")
    use = KVUse(**{n: int(v) if types[n] is int else v for n, v in numbers.items()})  # type: ignore[arg-type]
    press, kind = storable(str(raw["press"])), storable(str(raw["budget_kind"]))
    return Accounting(press, budget, kind, use, raw.get("method"))


def storable(text: str) -> str:
    """Text that can be written: halves of surrogate pairs joined, and replaced if alone."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
