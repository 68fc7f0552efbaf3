"""The servers of one run: their pace, the rate limit, and retries."""

import logging
import random
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import tenacity

from kvx.config.engine import Api
from kvx.config.schema import Config
from kvx.data.example import Example
from kvx.engines.openai.body import BodyBuilder, route
from kvx.engines.openai.client import PATHS, Client, settings
from kvx.engines.openai.fault import Fault
from kvx.engines.openai.rate_limits import Pace, Rate
from kvx.engines.openai.reply import Reply
from kvx.errors import NotApplicableError, UserError
from kvx.points import Point, Request

log = logging.getLogger(__name__)
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0


@dataclass
class Lane:
    """One server and what was learnt about it."""

    client: Client
    pace: Pace
    is_kvx: bool = False
    presses: Sequence[str] | None = None  # that a kvx server serves
    gives_logprobs: bool = True
    stops: bool = True  # at stop strings, as far as is known


class Session:
    """An async context manager; `concurrency` replaces the configured one."""

    def __init__(self, points: Sequence[Point], concurrency: int | None = None) -> None:
        self.config: Config = points[0].config
        self.engine = settings(self.config)
        wanted = self.engine.concurrency if concurrency is None else concurrency
        self.lanes = {
            url: Lane(Client(url, self.config), Pace(wanted, self.engine.max_concurrency))
            for url in urls_of(points)
        }
        largest = max(tokens_of(Request(p, e)) for p in points for e in p.manifest.entries)
        self.rate = Rate(self.engine.rate_limit, largest)
        self._builders: dict[str, BodyBuilder] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Session":
        for url, lane in self.lanes.items():
            self._stack.push_async_callback(lane.client.close)
            try:
                about = await lane.client.about()
            except Fault as fault:
                await self._stack.aclose()
                raise refused(url, fault) from None
            lane.is_kvx, lane.presses = about.is_kvx, about.presses
            if about.models is not None and self.engine.model not in about.models:
                log.warning(
                    "run: %s lists no model %s (it lists %s); set engine.model",
                    url,
                    self.engine.model,
                    ", ".join(about.models[:5]) or "none",
                )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def width(self) -> int:
        """How many requests are worth holding: in flight, or waiting for a retry."""
        return 2 * sum(lane.pace.most for lane in self.lanes.values())

    def lane(self, point: Point) -> Lane:
        return self.lanes[route(point).url]

    async def ask(self, request: Request, example: Example) -> Reply:
        """The answer to one request, retried as configured. Raises `Fault`."""
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(1 + self.engine.max_retries),
            retry=tenacity.retry_if_exception(self._is_worth_retrying),
            wait=_backoff_s,
            reraise=True,
        )
        try:
            return await retrying(self._attempt, request, example)
        except Fault as fault:
            attempts = retrying.statistics["attempt_number"]
            if attempts > 1:
                fault.message += f" (the last of {attempts} attempts)"
            raise

    async def _attempt(self, request: Request, example: Example) -> Reply:
        lane, entry = self.lane(request.point), request.entry
        async with lane.pace.slot():
            await self.rate.wait(tokens_of(request))
            begun = time.monotonic()
            try:
                reply = await self._send(lane, request, example)
            except Fault as fault:
                if fault.is_push_back:
                    lane.pace.pushed_back(begun)
                raise
            if reply.cut and lane.stops:
                lane.stops = False
                log.warning(
                    "run: %s ignores the stop strings (decoding.until): its texts are cut here, "
                    "its token counts and times include what was cut",
                    lane.client.url,
                )
            lane.pace.succeeded(
                begun, reply.timing.latency_s, entry.prompt_tokens, reply.output_tokens or 1
            )
            return reply

    async def _send(self, lane: Lane, request: Request, example: Example) -> Reply:
        builder, asks = self.builder(request.point), lane.gives_logprobs
        body = builder.body(request, example, lane.is_kvx, asks)
        decoding = request.point.config.decoding
        total_s = decoding.timeout_s or self.engine.timeouts.total_s
        try:
            return await lane.client.ask(body, total_s, decoding.until)
        except Fault as fault:
            about_logprobs = fault.status in (400, 422) and "logprob" in fault.message.lower()
            if not (asks and about_logprobs and body.get("logprobs")):
                raise
            if lane.gives_logprobs:
                lane.gives_logprobs = False
                log.warning(
                    "run: %s refuses these log-probs (%s): answers will have no traces; "
                    "engine.top_logprobs=5 may be allowed",
                    lane.client.url,
                    fault.message,
                )
            again = builder.body(request, example, lane.is_kvx, logprobs=False)
            return await lane.client.ask(again, total_s, decoding.until)

    def builder(self, point: Point) -> BodyBuilder:
        """Makes the requests of a point, and of all that differ from it in budgets only."""
        variant = point.variant_id
        if variant not in self._builders:
            self._builders[variant] = BodyBuilder(point.config, point.manifest.date)
        return self._builders[variant]

    async def check_paths(self) -> None:
        """Raises `UserError` for a server that has no path for `engine.api`."""
        api = self.engine.api
        (other,) = [a for a in Api if a is not api]
        for url, lane in self.lanes.items():
            if lane.is_kvx or await lane.client.has(api):
                continue
            if await lane.client.has(other):
                raise UserError(
                    f"engine.api={api.name}: {url} has no {PATHS[api]}; set engine.api={other.name}"
                )
            whole = url.rstrip("/")
            for path in (PATHS[Api.chat], PATHS[Api.completions], "/v1"):
                whole = whole.removesuffix(path)
            whole += "/v1"
            end = "" if url == whole else f"; most servers' addresses end in /v1: {whole}"
            raise UserError(f"{url}: has neither {PATHS[api]} nor {PATHS[other]} (HTTP 404){end}")

    def check_presses(self, points: Sequence[Point]) -> None:
        """Raises `NotApplicableError` for points whose press a kvx server does not serve."""
        reasons: dict[Path, str] = {}
        for point in points:
            lane, press = self.lane(point), point.config.press.name
            if lane.presses is None or press in lane.presses or point.config.budget.is_full:
                continue
            listed = ", ".join(lane.presses)
            reasons[point.dir] = f"{lane.client.url} does not serve it; it serves {listed}"
        if reasons:
            raise NotApplicableError(next(iter(reasons.values())), reasons)

    def _is_worth_retrying(self, error: BaseException) -> bool:
        if not isinstance(error, Fault) or not error.transient:
            return False
        return (error.retry_after_s or 0) <= self.engine.max_retry_after_s


def _backoff_s(state: tenacity.RetryCallState) -> float:
    """What the server asks for, or twice as long each time; plus jitter in both cases."""
    backoff: float = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (state.attempt_number - 1))
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after_s if isinstance(error, Fault) else None
    if asked:  # "at once" is no advice
        return asked + random.uniform(0, min(backoff, asked / 2))
    return backoff * random.uniform(0.5, 1)


def urls_of(points: Iterable[Point]) -> list[str]:
    return list(dict.fromkeys(route(point).url for point in points))


def tokens_of(request: Request) -> int:
    """The most tokens that a request can use of a limit."""
    return request.entry.prompt_tokens + request.max_new_tokens


def refused(url: str, fault: Fault) -> UserError:
    """Why a server cannot be used at all, in one line."""
    if fault.status in (401, 403):
        return UserError(f"{url} refuses the key; set OPENAI_API_KEY ({fault.message})")
    return UserError(f"{url}: no server answers there ({fault.message})")
