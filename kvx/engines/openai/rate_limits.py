"""How many requests are in flight, and how many begin per minute."""

import asyncio
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiolimiter import AsyncLimiter

from kvx.config.engine import AUTO, RateLimitConfig

START = 4
WINDOW = 4  # attempts at one limit before it is judged; as many as the limit, where that is more
# shares of the gain in throughput that more concurrency would bring at constant latency
WORTH_DOUBLING, WORTH_ONE_MORE = 0.1, 0.25
HOLD_WINDOWS = 8  # after a step back, before the next try
TOKEN_COST = 20  # of a new token, in prompt tokens: makes latencies of unlike requests comparable
MINUTE_S = 60.0


class Pace:
    """A limit on concurrent attempts that adapts to the server.

    By Little's law, concurrency / latency is throughput. The limit doubles while that brings at
    least 10% more, then grows by one while that brings a quarter of what it could, and steps back
    when latency rises as fast as concurrency. It is halved when the server pushes back, once per
    congestion.
    """

    def __init__(self, concurrency: int | str, most: int) -> None:
        self.adapts = concurrency == AUTO
        self.most = most if self.adapts else int(concurrency)
        self.limit = min(START, most) if self.adapts else self.most
        self.running = 0
        self._doubles = True
        self._changed = time.monotonic()
        self._costs: list[float] = []
        self._was_full = False
        self._best: tuple[float, int] | None = None  # throughput, and the limit that gave it
        self._hold = 0
        self._free = asyncio.Condition()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a place; yields when it was taken."""
        async with self._free:
            while self.running >= self.limit:
                self._was_full = True
                await self._free.wait()
            self.running += 1
        try:
            yield time.monotonic()
        finally:
            self.running -= 1
            async with self._free:
                self._free.notify(max(0, self.limit - self.running))

    def succeeded(self, begun: float, latency_s: float, prompt: int, new: int) -> None:
        """An attempt that began at `begun` (monotonic) was answered; tokens of its prompt and text.

        Only attempts that began under the present limit are counted.
        """
        if not self.adapts or begun < self._changed:
            return
        self._costs.append(latency_s / (prompt + TOKEN_COST * max(1, new)))
        if len(self._costs) >= max(WINDOW, self.limit):
            self._judge(self.limit / statistics.median(self._costs))

    def pushed_back(self, begun: float) -> None:
        """Halve the limit after a 429, a time-out or the like, unless the attempt began before a
        change.
        """
        if self.adapts and begun >= self._changed:
            self._doubles, self._best, self._hold = False, None, HOLD_WINDOWS
            self._set(self.limit // 2)

    def _judge(self, throughput: float) -> None:
        full, self._was_full = self._was_full, False
        self._costs.clear()
        if self._hold > 0:
            self._hold -= 1
            return
        if not full:  # nobody waited: a higher limit would change nothing
            return
        if self._best is None or throughput >= self._best[0] * self._wanted():
            most = throughput if self._best is None else max(throughput, self._best[0])
            self._best = (most, self.limit)
            self._set(2 * self.limit if self._doubles else self.limit + 1)
            return
        back, self._best, self._doubles, self._hold = self._best[1], None, False, HOLD_WINDOWS
        self._set(back)

    def _wanted(self) -> float:
        """The multiple of the best throughput at a lower limit that makes a higher one worth
        trying.
        """
        return 1 + WORTH_DOUBLING if self._doubles else 1 + WORTH_ONE_MORE / self.limit

    def _set(self, limit: int) -> None:
        limit = max(1, min(limit, self.most))
        if limit != self.limit:
            self.limit, self._changed = limit, time.monotonic()
        self._costs.clear()


class Rate:
    """`rate_limit`: attempts wait so that no minute holds more of them, or of their tokens."""

    def __init__(self, config: RateLimitConfig, largest_tokens: int) -> None:
        self._requests: AsyncLimiter | None = None
        self._tokens: AsyncLimiter | Minute | None = None
        if config.max_rpm is not None:
            self._requests = AsyncLimiter(1, 60 / config.max_rpm)
        if config.max_tpm is not None:
            most, burst = config.max_tpm, min(largest_tokens, config.max_tpm)
            # a bucket lets its size through at once, on top of what leaks from it in a minute
            even = 2 * burst <= most
            self._tokens = (
                AsyncLimiter(burst, 60 * burst / (most - burst)) if even else Minute(most)
            )

    async def wait(self, tokens: int) -> None:
        if self._requests is not None:
            await self._requests.acquire()
        if self._tokens is not None:
            await self._tokens.acquire(min(tokens, self._tokens.max_rate))


class Minute:
    """At most `max_rate` in any minute, for requests of which two may be too much."""

    def __init__(self, max_rate: int) -> None:
        self.max_rate = max_rate
        self._taken: deque[tuple[float, float]] = deque()  # when, how much
        self._turn = asyncio.Lock()

    async def acquire(self, amount: float) -> None:
        async with self._turn:
            while sum(taken for _, taken in self._taken) + amount > self.max_rate:
                await asyncio.sleep(max(0.0, self._taken[0][0] + MINUTE_S - time.monotonic()))
                self._taken.popleft()
            self._taken.append((time.monotonic(), amount))
