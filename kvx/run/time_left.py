"""How long a run still takes, learned from the work done so far.

An engine that reports its prefills and steps is timed by them: seconds per prompt token, seconds
per generated token, and tokens per answer. Old measurements (a first prefill, a loaded machine)
fade. Other engines are timed by their most recent finished requests.
"""

import operator
from collections import deque
from dataclasses import astuple, dataclass

from kvx.engines.activity import Seen

EARLY_SHARE, EARLY_REQUESTS = 0.05, 5  # of either: fewer say little
HALF_LIFE_S = 120.0
WINDOW_S, WINDOW_SHARE = 30.0, 0.25  # seconds of finished requests to look back on, at least


@dataclass(frozen=True)
class Load:
    """Work of one kind: requests, their prompt tokens, and the tokens their answers may have."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Load") -> "Load":
        return Load(*map(operator.add, astuple(self), astuple(other)))


NOTHING = Load()


@dataclass
class _Rate:
    """Seconds per token; both are halved every `HALF_LIFE_S` seconds of work."""

    seconds: float = 0.0
    tokens: float = 0.0

    def add(self, seconds: float, tokens: float) -> None:
        kept = 0.5 ** (seconds / HALF_LIFE_S)
        self.seconds, self.tokens = kept * self.seconds + seconds, kept * self.tokens + tokens

    @property
    def per_token(self) -> float | None:
        return self.seconds / self.tokens if self.tokens else None


class Pace:
    """The pace of `load`, all answers or all latencies, shared by `width` workers from `now` on."""

    def __init__(self, load: Load, now: float, width: int = 1) -> None:
        self.load, self.width, self.done = load, width, 0
        self._begun_tokens = self._output_tokens = 0
        self._prefill, self._decode = _Rate(), _Rate()
        self._pass, self._step = _Rate(), _Rate()  # the same seconds, per token passed and step
        self._finished: deque[tuple[float, int]] = deque([(now, 0)])
        self._start = now

    def learn(self, before: Seen, after: Seen) -> None:
        """Add what one worker did in between."""
        begun_tokens = after.begun_tokens - before.begun_tokens
        output_tokens = after.output_tokens - before.output_tokens
        self._begun_tokens += begun_tokens
        self._output_tokens += output_tokens
        prefill_s, decode_s = after.prefill_s - before.prefill_s, after.decode_s - before.decode_s
        self._prefill.add(prefill_s, begun_tokens)
        self._pass.add(prefill_s, after.passed_tokens - before.passed_tokens)
        self._decode.add(decode_s, output_tokens)
        self._step.add(decode_s, after.steps - before.steps)

    def finish(self, now: float) -> None:
        """One more request is done."""
        self.done += 1
        self._finished.append((now, self.done))

    @property
    def left(self) -> int:
        return max(0, self.load.requests - self.done)

    def per_s(self, now: float) -> float | None:
        """Recently finished requests per second; None while they are too few."""
        if self.done < min(EARLY_REQUESTS, EARLY_SHARE * self.load.requests):
            return None
        since = now - max(WINDOW_S, WINDOW_SHARE * (now - self._start))
        while len(self._finished) > 1 and self._finished[1][0] <= since:
            self._finished.popleft()
        # from one finished request to the next: the time before the first is start-up
        first = self._finished[min(1, len(self._finished) - 1)][0]
        n = max(count for at, count in self._finished if at <= first)
        if self.done - n < EARLY_REQUESTS:
            first, n = max(self._finished[0][0], since), self._finished[0][1]
        return (self.done - n) / max(now - first, 1e-9)

    def left_s(self, now: float) -> float | None:
        """Seconds until nothing is left; None while too little is known."""
        if not self.left:
            return 0.0
        rate = self.per_s(now)
        if rate is None:
            return None
        per_prompt, per_output = self._prefill.per_token, self._decode.per_token
        if per_prompt is None or per_output is None:  # this engine tells nothing
            return self.left / rate if rate else None
        prompts = max(0, self.load.prompt_tokens - self._begun_tokens)
        # counts tokens of unfinished answers for the finished ones: the likeliest final length
        length = self._output_tokens / self.done
        capped = min(length * self.load.requests, self.load.output_tokens)
        outputs = max(0.0, capped - self._output_tokens)
        return (prompts * per_prompt + outputs * per_output) / self.width

    def alone_s(self, load: Load) -> float | None:
        """Seconds of another `load` whose requests run one at a time, sharing nothing."""
        per_token, per_step = self._pass.per_token, self._step.per_token
        if per_token is None or per_step is None or not self.done:
            return None
        length = min(self._output_tokens / self.done, load.output_tokens / load.requests)
        return load.prompt_tokens * per_token + load.requests * length * per_step
