"""Counters of what this process is doing, for progress: raised by engines, read by anyone.

An engine whose requests take minutes tells of prefills, layers and steps, so that progress moves
before the first request is finished. Engines that tell nothing are measured by their answers.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from kvx.points import Request


@dataclass(frozen=True)
class Seen:
    """Counters since the process began. A phase's seconds run until the next phase is reported.

    `begun_tokens` are the prompt tokens of requests that were taken on, each counted for itself;
    `passed_tokens` those that went through the model, a prefix that requests share once.
    """

    doing: str = ""
    begun: int = 0
    begun_tokens: int = 0
    passed_tokens: int = 0
    prefill_s: float = 0.0
    output_tokens: int = 0
    steps: int = 0
    decode_s: float = 0.0


class Activity:
    """`seen` now; `listener` hears of changes, at most every `EVERY_S` seconds."""

    EVERY_S = 2.0

    def __init__(self) -> None:
        self.listener: Callable[[Seen], None] | None = None
        self._seen = Seen()
        self._phase: str | None = None
        self._at = self._told = time.monotonic()
        self._doing: tuple[str, tuple[int, ...]] = ("", ())

    @property
    def seen(self) -> Seen:
        form, numbers = self._doing
        return replace(self._seen, doing=form.format(*numbers))

    def say(self, doing: str) -> None:
        """Something that is neither prefill nor decoding, such as loading a model."""
        self._count(None)
        self._doing = (doing.replace("{", "{{").replace("}", "}}"), ())
        self._tell(now=True)

    def begin(self, requests: Iterable[Request]) -> None:
        """These are taken on: their prompts come next."""
        tokens = [r.entry.prompt_tokens for r in requests]
        self._seen = replace(
            self._seen,
            begun=self._seen.begun + len(tokens),
            begun_tokens=self._seen.begun_tokens + sum(tokens),
        )

    def prefill(self, tokens: int, layer: int, n_layers: int) -> None:
        """`layer` (from 1) of a pass over `tokens` of a prompt begins."""
        self._count("prefill", passed=tokens if layer == 1 else 0)
        self._doing = ("prefill of {:,} tokens, layer {} of {}", (tokens, layer, n_layers))
        self._tell()

    def step(self, rows: int) -> None:
        """One token for each of `rows` begins."""
        self._count("decode", rows=rows)
        self._doing = ("decoding {} rows, {:,} tokens so far", (rows, self._seen.output_tokens))
        self._tell()

    def _count(self, phase: str | None, passed: int = 0, rows: int = 0) -> None:
        """The time until now counts for the latest phase."""
        now, seen = time.monotonic(), self._seen
        spent = {name: now - self._at if self._phase == name else 0 for name in PHASES}
        self._phase, self._at = phase, now
        self._seen = Seen(
            begun=seen.begun,
            begun_tokens=seen.begun_tokens,
            passed_tokens=seen.passed_tokens + passed,
            prefill_s=seen.prefill_s + spent["prefill"],
            output_tokens=seen.output_tokens + rows,
            steps=seen.steps + (rows > 0),
            decode_s=seen.decode_s + spent["decode"],
        )

    def _tell(self, now: bool = False) -> None:
        if self.listener is None or not (now or self._at - self._told >= self.EVERY_S):
            return
        self._told = self._at
        self.listener(self.seen)


PHASES = ("prefill", "decode")
ACTIVITY = Activity()
