"""Assemble a reply from the parts a server sends; a pure parser with its own checks.

The openai client does not validate what it parses, so every field that is used is checked here. If
an optional one (log-probs, usage) is wrong, it is left out and the answer stays.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from scipy.special import entr

from kvx.config.engine import Api
from kvx.engines.base import KVUse, Timing, Trace
from kvx.engines.openai import content
from kvx.engines.openai.content import ScoredToken, scored_tokens, used
from kvx.engines.openai.fault import Fault, of_object
from kvx.engines.openai.finish import BROKEN_OFF, CONTENT_FILTER, meaning
from kvx.text.answer import answer_of

MOST_BYTES = 2**53  # what tables hold


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
    """A complete answer. `tokens` (their text) and `trace` are there if log-probs were given.

    `reasoning` is what the server sent beside the text; its tokens are among `output_tokens`, and
    `reasoning_tokens` is their number if the server tells it. `cut`: the server went on behind a
    stop string.
    """

    text: str
    finish_reason: str | None
    output_tokens: int | None
    timing: Timing
    tokens: tuple[str, ...] = ()
    trace: Trace | None = None
    accounting: Accounting | None = None
    reasoning: str | None = None
    reasoning_tokens: int | None = None
    cut: bool = False


@dataclass
class Parser:
    """Takes the parts of one reply in order: chunks of a stream, or one whole response.

    `until` are the stop strings, at which the text is cut if the server did not stop.
    """

    api: Api
    until: Sequence[str] = ()
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    scored: list[ScoredToken] = field(default_factory=list)
    arrival_s: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    accounting: Accounting | None = None
    first_s: float | None = None
    last_s: float | None = None

    def feed(self, part: Any, at_s: float) -> None:
        """Take one part that came `at_s` seconds after sending. Raises `Fault` if it is wrong."""
        try:
            self._feed(part, at_s)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"the answer has a wrong schema ({type(error).__name__}: {error})"
            raise Fault(what) from None

    def _feed(self, part: Any, at_s: float) -> None:
        if not isinstance(part, dict):
            raise TypeError(f"a {type(part).__name__} where an object should be")
        if error := part.get("error"):
            raise of_object(error)
        if isinstance(usage := part.get("usage"), dict):
            self.usage |= {name: value for name, value in usage.items() if value is not None}
        if (said := part.get("kvx")) is not None:
            if "restart" in said:
                self._restart(said["restart"])
            else:
                self.accounting = accounting(said)
        if part.get("choices") is None and isinstance(usage, dict):
            return  # some servers end a stream so
        choices = part["choices"]
        if not isinstance(choices, list):
            raise TypeError("choices is not a list")
        for choice in choices:
            if choice is not None and choice.get("index") in (None, 0, "0"):  # there is only one
                self._choice(choice, at_s)

    def _choice(self, choice: dict[str, Any], at_s: float) -> None:
        said = content.of_chat(choice) if self.api is Api.chat else content.of_completion(choice)
        tokens = scored_tokens(choice.get("logprobs"))
        self.scored += tokens
        self.arrival_s += [at_s] * len(tokens)
        self.text.append(said.text)
        self.reasoning.append(said.reasoning)
        self.refusal.append(said.refusal)
        if said.text or said.reasoning or said.refusal or tokens:
            self.first_s = at_s if self.first_s is None else self.first_s
            self.last_s = at_s
        self.finish_reason = meaning(choice.get("finish_reason")) or self.finish_reason

    def _restart(self, kept: dict[str, Any]) -> None:
        """A guarding server takes back what it streamed beyond this many characters and tokens."""
        n_characters, n_tokens = int(kept["kept_characters"]), int(kept["kept_tokens"])
        if min(n_characters, n_tokens) < 0:
            raise ValueError("a restart keeps a negative number")
        self.text = ["".join(self.text)[:n_characters]]
        del self.scored[n_tokens:]
        del self.arrival_s[n_tokens:]

    def finish(self, total_s: float, streamed: bool, whole: bool = False) -> Reply:
        """The whole reply, `total_s` seconds after sending. Raises `Fault` if it is not whole.

        With `whole` the server has marked the end and need not give a reason.
        """
        text, refusal, thought = (
            storable("".join(pieces)) for pieces in (self.text, self.refusal, self.reasoning)
        )
        if self.finish_reason is None and not (whole and self.text):
            how = "ended before it was finished" if self.text else "holds no choices"
            raise Fault(f"the answer {how}")
        if self.finish_reason == BROKEN_OFF:
            raise Fault("the server broke the answer off")
        tokens, reasoning_tokens = used(self.usage)
        if tokens is None:
            tokens = len(self.scored) or None
        latency_s = self.last_s if streamed and self.last_s is not None else total_s
        ttft_s = self.first_s if streamed else None
        several = ttft_s is not None and tokens is not None and tokens > 1
        tpot_s = (latency_s - ttft_s) / (tokens - 1) if several else None  # type: ignore[operator]
        reason = None if self.finish_reason is None else storable(self.finish_reason)
        said = answer_of(text, reason, self.until, strip_reasoning=False)
        return Reply(
            said.text if text else refusal,
            CONTENT_FILTER if refusal and not text else said.finish_reason,
            tokens,
            Timing(ttft_s, latency_s, None, None, tpot_s),
            tuple(token.text for token in self.scored),
            self._trace(streamed, tokens if thought else None),
            self.accounting,
            thought or None,
            reasoning_tokens,
            said.cut,
        )

    def _trace(self, streamed: bool, n_tokens: int | None) -> Trace | None:
        """None unless every token has its log-prob and the likeliest ones beside it.

        Some servers score only the answer's tokens, not the reasoning's: fewer than `n_tokens`.
        """
        if n_tokens is not None and len(self.scored) + 1 < n_tokens:  # the stop token may lack
            return None
        logprob = [token.logprob for token in self.scored]
        top = [list(token.top) for token in self.scored]
        if not top or not all(top) or not all(map(math.isfinite, logprob)):
            return None
        entropy = entropy_nats(logprob, top)
        return Trace(
            None,
            logprob,
            entropy,
            source="top20",
            top_logprobs=top,
            arrival_s=self.arrival_s if streamed else None,
        )


def entropy_nats(chosen: list[float], tops: list[list[float]]) -> list[float]:
    """Entropy per token, a lower bound: all but the likeliest tokens count as one outcome.

    A `chosen` token counts even if it is not among the `tops` (highest first).
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
    """Raises what `Parser.feed` turns into a fault if a field is missing or not a number."""
    kv, types = raw["kv"], {f.name: f.type for f in fields(KVUse)}
    optional = {"compressed_share"}  # servers of an older kvx do not send it
    given = [name for name in types if name not in optional or kv.get(name) is not None]
    numbers = {name: float(kv[name]) for name in given}
    if not all(0 <= value < MOST_BYTES for value in numbers.values()):  # nor is NaN
        raise ValueError("kv holds something that is not an amount")
    budget = float(raw["budget"])
    if not math.isfinite(budget):
        raise ValueError("the budget is not a number")
    use = KVUse(**{n: int(v) if types[n] is int else v for n, v in numbers.items()})  # type: ignore[arg-type]
    press, kind = storable(str(raw["press"])), storable(str(raw["budget_kind"]))
    return Accounting(press, budget, kind, use, raw.get("method"))


def storable(text: str) -> str:
    """Text that can be written: halves of surrogate pairs joined, and replaced if alone."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
