"""Requests become jobs of the decoding thread; everything that can be wrong is checked here."""

import asyncio
import contextlib
import copy
import math
import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kvx.cli.checks import full_cache
from kvx.config.identity import is_guarded
from kvx.config.schema import Config
from kvx.data.manifest import Entry, Manifest
from kvx.data.prompt import PromptParts
from kvx.data.tokenizer import max_context_tokens
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.guarded import live_policy
from kvx.engines.kvpress.press_check import check_on_model
from kvx.engines.kvpress.sharing import ragged_obstacle
from kvx.errors import UserError
from kvx.points import Point, Request
from kvx.serve.api_errors import ApiError, invalid
from kvx.serve.guarding import with_controller
from kvx.serve.jobs import Done, Event, Job
from kvx.serve.loop import DecodeLoop
from kvx.serve.prometheus import Metrics
from kvx.serve.promise import Promise
from kvx.serve.prompts import PromptSplitter
from kvx.serve.requests import ChatRequest, CompletionRequest, Generation
from kvx.serve.served_presses import Presses
from kvx.serve.transcript import Piece, Restart, Transcript
from kvx.text.incremental import StopStrings, TokenText

GREEDY_BELOW = 1e-5  # only the likeliest token survives such a temperature
RECENT = 32  # answers that say how soon a place in the queue is free
LONGEST_WAIT_S = 60


class Ticket:
    """One request that was taken in: its events, in order, and the way to give it up."""

    def __init__(self, service: "Service", asked: Generation) -> None:
        self.service, self.asked = service, asked
        self.job: Job
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._ended = False

    def deliver(self, event: Event) -> None:
        self._events.put_nowait(event)

    async def next(self) -> Piece | Restart | Done:
        """The next event. Raises `ApiError` if the request came to nothing."""
        event = await self._events.get()
        if isinstance(event, Done | ApiError):
            self._ended = True
        if isinstance(event, ApiError):
            raise event
        return event

    def close(self) -> None:
        """The client has gone; frees the row of an answer that has not ended."""
        if not self._ended:
            self._ended = True
            self.service.metrics.disconnects.inc()
            self.service.loop.cancel(self.job)


class Service:
    """The model, its decoding thread, and the limits of what is taken in.

    `promise` is the certificate of its budget, if it has one. Raises `UserError` for a model or
    press that cannot be served.
    """

    def __init__(self, config: Config, promise: Promise | None = None) -> None:
        engine = KVPressEngine(config)
        self.config, self.loaded, self.promise = config, engine.loaded, promise
        model = self.loaded.model
        if (obstacle := ragged_obstacle(model)) is not None:
            raise UserError(f"model={config.model.name}: cannot be served: it has {obstacle}")
        self.point = Point(config, _no_manifest(config), Path())
        self.presses = Presses(self.point)
        check_on_model(self.point, model)
        if is_guarded(config):
            live_policy(config.controller, config.guard)  # reads the hazard model, if there is one
        self.account = engine.account()
        limits = [max_context_tokens(config.model), config.serve.max_context or math.inf]
        self.max_context = int(min(limits))
        n_ids: int = model.get_input_embeddings().weight.shape[0]
        self.splitter = PromptSplitter(self.loaded.tokenizer, config, n_ids)
        self.tokenizer = copy.deepcopy(self.loaded.tokenizer)  # for the event loop
        self.metrics = Metrics()
        self.loop = DecodeLoop(self.loaded, config, self.account, self.metrics, self._send)
        self._register_gauges()
        self._preparing = 0
        self._ended: deque[float] = deque(maxlen=RECENT)
        self._asyncio: asyncio.AbstractEventLoop
        self.started = int(time.time())

    def start(self) -> None:
        """Begin to decode; to be called in the event loop that takes the events."""
        self._asyncio = asyncio.get_running_loop()
        self.loop.start()

    async def submit(self, asked: Generation) -> Ticket:
        """Raises `ApiError` for a request that cannot be answered, or not now."""
        if asked.model != self.config.model.name:
            raise ApiError(
                404,
                f"there is no model {asked.model!r} here, only {self.config.model.name!r}",
                "model",
                "model_not_found",
            )
        ticket = Ticket(self, asked)
        with self._place_in_queue():
            ticket.job = await asyncio.to_thread(self._prepare, asked, ticket)
            self.loop.submit(ticket.job)
        self.metrics.prompt_tokens.inc(ticket.job.parts.n_tokens)
        return ticket

    @contextlib.contextmanager
    def _place_in_queue(self) -> Iterator[None]:
        load = self.loop.load
        if self._preparing + load.waiting >= self.config.serve.queue:
            raise ApiError(
                429,
                f"{self.config.serve.queue} requests are waiting already; try again later",
                code="queue_full",
                retry_after_s=self._retry_after_s(),
            )
        if not (load.running or load.waiting):
            self._ended.clear()  # idle time would distort the pace
        self._preparing += 1
        try:
            yield
        finally:
            self._preparing -= 1

    def _retry_after_s(self) -> int:
        """Until a place is free, at the pace of the last answers."""
        if len(self._ended) < 2:
            return 1
        pace_s = (time.monotonic() - self._ended[0]) / len(self._ended)
        return min(LONGEST_WAIT_S, max(1, math.ceil(pace_s)))

    def _prepare(self, asked: Generation, ticket: Ticket) -> Job:
        """Everything about a request that needs no model; runs in a thread of its own."""
        press, budget = self.presses.resolve(asked.kvx)
        parts = self._parts(asked)
        n = len(parts.compressed_ids)
        own = self.config.decoding
        left = self.max_context - parts.n_tokens
        new = asked.tokens_asked or max(1, min(own.max_new_tokens, left))
        if new > left:
            raise invalid(
                f"This model's maximum context length is {self.max_context} tokens. However, you "
                f"requested {parts.n_tokens + new} tokens ({parts.n_tokens} in the prompt, {new} "
                "in the completion).",
                "messages" if isinstance(asked, ChatRequest) else "prompt",
                "context_length_exceeded",
            )
        temperature = own.temperature if asked.temperature is None else asked.temperature
        decoding = replace(
            own,
            max_new_tokens=new,
            temperature=0.0 if temperature < GREEDY_BELOW else temperature,
            top_p=own.top_p if asked.top_p is None else asked.top_p,
            top_k=own.top_k if asked.top_k is None else asked.top_k,
        )
        config = replace(self.config, press=press, budget=budget, decoding=decoding)
        covered = None
        if self.promise is not None:  # for a prompt that keeps everything, the length decides
            covered = self.promise.covers(self.config, asked, config, parts)
        note = self._too_short(config, asked, n)
        if note is not None:
            config = full_cache(config)
        point = with_controller(replace(self.point, config=config), asked.kvx.controller, n)
        request = Request(point, Entry("", 0, n, parts.n_tokens, n, "", ""))
        needed, cap = self.account.needed([request], point.guarded), self.account.cap_bytes
        if needed > cap:
            smaller = "controller none" if point.guarded else "a smaller budget"
            raise invalid(
                f"this request needs {needed / 2**30:.2f} GiB of KV cache, the server has "
                f"{cap / 2**30:.2f} GiB; ask for fewer max_tokens or {smaller}",
                "max_tokens",
                "kv_cache_exceeded",
            )
        return Job(
            request,
            parts,
            secrets.randbits(63) if asked.seed is None else asked.seed,
            Transcript(
                TokenText(self.loaded.tokenizer),
                StopStrings(asked.stops or own.until),
                point.guarded,
            ),
            ticket.deliver,
            needed,
            bool(asked.stream),
            logprobs=asked.logprobs_asked,
            ignore_stop=asked.ignore_eos,
            promised=covered,
            note=note,
        )

    def _too_short(self, config: Config, asked: Generation, n_tokens: int) -> str | None:
        """Why a prompt of `n_tokens` keeps its full cache; None if the press can compress it.

        Raises `ApiError` if the request itself named the press or the budget.
        """
        press = config.press
        ratio = replace(self.point, config=config).compression_ratio(n_tokens)
        if ratio == 0 or n_tokens > press.min_prompt_tokens:
            return None
        reason = (
            f"press={press.name} needs more than {press.min_prompt_tokens} tokens to compress, "
            f"this prompt has {n_tokens}"
        )
        if asked.kvx.names_a_budget:
            raise invalid(
                f"{reason}; ask for budget 1.0 or another press", "kvx.press", "prompt_too_short"
            )
        return f"{reason}: it keeps its full cache"

    def _parts(self, asked: Generation) -> PromptParts:
        compress_chars = asked.kvx.compress_chars
        if isinstance(asked, ChatRequest):
            messages = [{"role": m.role, "content": m.text} for m in asked.messages]
            return self.splitter.chat(messages, compress_chars, asked.chat_template_kwargs)
        assert isinstance(asked, CompletionRequest)
        return self.splitter.completion(asked.one_prompt, compress_chars)

    def _send(self, events: Sequence[tuple[Job, Event]]) -> None:
        """From the decoding thread into the event loop, all of a step at once."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._asyncio.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: Sequence[tuple[Job, Event]]) -> None:
        for job, event in events:
            if isinstance(event, Done | ApiError):
                self._ended.append(time.monotonic())
            job.deliver(event)

    def _register_gauges(self) -> None:
        gauge, loop, cap = self.metrics.gauge, self.loop, self.account.cap_bytes
        gauge("kvx_running_rows", "Requests being decoded", lambda: loop.load.running)
        gauge("kvx_waiting_requests", "Requests that wait for a row", lambda: loop.load.waiting)
        gauge("kvx_kv_cache_bytes", "Held by running rows", lambda: loop.load.cache_bytes)
        gauge("kvx_guard_host_bytes", "In guards' shadows", lambda: loop.load.host_bytes)
        gauge("kvx_kv_cache_cap_bytes", "What rows may hold together", lambda: cap)


def _no_manifest(config: Config) -> Manifest:
    """A server's points run no manifest."""
    return Manifest("", "", config.model.name, "", "", "", "", (), (), {})
