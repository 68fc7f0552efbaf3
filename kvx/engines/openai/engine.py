"""engine=openai: any server with OpenAI's API. Needs no torch.

A budget counts as verified if the server's own accounting proves it. Otherwise a probe before the
start tells whether the budget has an effect, and every row is marked as not verified.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from kvx.config import placeholders
from kvx.config.engine import Api
from kvx.config.schema import Config, PressConfig
from kvx.data.example import Example
from kvx.engines.base import (
    BudgetProof,
    LatencyWork,
    Measurement,
    PointFailed,
    PointWork,
    Response,
    interleaved,
)
from kvx.engines.openai import checks, proof
from kvx.engines.openai.body import route
from kvx.engines.openai.bridge import call, iterate
from kvx.engines.openai.client import settings
from kvx.engines.openai.fault import Fault
from kvx.engines.openai.proof import Finding
from kvx.engines.openai.reply import Reply
from kvx.engines.openai.session import Session, tokens_of, urls_of
from kvx.errors import UserError
from kvx.points import Point, Request
from kvx.text.reasoning import count_tokens, split

log = logging.getLogger(__name__)
Answer = Response | PointFailed
Measured = Measurement | PointFailed
UNPROBED = Finding(BudgetProof.NONE)


class OpenAIEngine:
    def __init__(self, config: Config) -> None:
        self.config = config

    def check(self, points: Sequence[Point]) -> None:
        """Raises `UserError` for what a server cannot be asked for, or if none answers."""
        for url in urls_of(points):
            checks.check_url(url)
        for point in points:
            engine, config = settings(point.config), point.config
            placeholders.fill(engine.extra_body, config.press.name, config.budget.amount)
            longest = max(tokens_of(Request(point, e)) for e in point.manifest.entries)
            if (limit := engine.rate_limit.max_tpm) is not None and longest > limit:
                raise UserError(
                    f"engine.rate_limit.max_tpm={limit}: one request needs up to {longest} tokens"
                )
        _check_presses(points)
        _warn_of_the_day(points)
        call(partial(_visit, points))

    def generate(self, work: Sequence[PointWork]) -> Iterator[Answer]:
        work = [item for item in work if item.requests]
        if work:
            yield from iterate(partial(_answer_all, work))

    def measure(self, work: Sequence[LatencyWork]) -> Iterator[Measured]:
        """One request at a time, timed by this client; the server must have nothing else to do."""
        work = [item for item in work if item.requests]
        if work:
            yield from iterate(partial(_measure_all, work))


def _warn_of_the_day(points: Sequence[Point]) -> None:
    """Warn that a server renders chats itself, with the day on which it is asked."""
    for point in points:
        config, date = point.config, point.manifest.date
        if date is not None and settings(config).api is Api.chat:
            log.warning(
                "run: model=%s: its chat template writes the day into prompts; with "
                "engine.api=chat the server writes its own, so prompts change every day "
                "(engine.api=completions sends the prompts of %s)",
                config.model.name,
                date,
            )
            return


def _check_presses(points: Sequence[Point]) -> None:
    """Raises `UserError` for points that would send the same requests under different labels.

    Endpoints know budgets only, and the parameters of a press are not sent at all.
    """
    engine = settings(points[0].config)
    known: dict[str, PressConfig] = {}
    for press in (point.config.press for point in points):
        if known.setdefault(press.name, press) != press:
            raise UserError(
                f"press={press.name}: its parameters are not sent, so points that differ in them "
                "would send the same requests; run one, with a server started with it"
            )
    if not engine.endpoints or "press" in placeholders.names(engine.extra_body):
        return
    presses = {p.config.press.name for p in points if p.kept_tokens(1000) < 1000}
    if len(presses) > 1:
        raise UserError(
            f"engine.endpoints are told apart by budget, not by press ({', '.join(sorted(presses))}"
            "); run one press at a time, or send ${press} in engine.extra_body"
        )


async def _visit(points: Sequence[Point]) -> None:
    async with Session(points) as session:
        await session.check_paths()
        session.check_presses(points)


async def _answer_all(work: Sequence[PointWork], put: Callable[[Answer], None]) -> None:
    points = [item.point for item in work]
    async with Session(points) as session:
        findings = await _probe(session, work)
        pending = iter(_by_example(work))
        failed: set[Path] = set()

        async def worker() -> None:
            for request, example in pending:
                folder = request.point.dir
                if folder in failed:
                    continue
                answer = await _answer(session, request, example, findings[folder])
                if folder in failed:
                    continue
                if isinstance(answer, PointFailed):
                    failed.add(folder)
                put(answer)

        async with asyncio.TaskGroup() as group:
            n = sum(len(item.requests) for item in work)
            for _ in range(min(n, session.width)):
                group.create_task(worker())


def _by_example(work: Sequence[PointWork]) -> list[tuple[Request, Example]]:
    """All points' requests of an example together, because servers cache recent prefixes."""
    pairs: dict[str, list[tuple[Request, Example]]] = {}
    for request, example in (pair for item in work for pair in item.requests):
        pairs.setdefault(example.example_id, []).append((request, example))
    return [pair for same in pairs.values() for pair in same]


async def _probe(session: Session, work: Sequence[PointWork]) -> dict[Path, Finding]:
    """What is known before the start about each point's budget."""
    findings = {item.point.dir: UNPROBED for item in work}
    if not session.engine.probe:
        return findings
    for group in proof.comparable(work):
        if session.lane(group[0].point).is_kvx:
            continue
        try:
            finding = await proof.probe(group, session.ask)
        except Fault as fault:
            log.warning("run: the budget could not be probed: %s", fault.message)
            continue
        if finding.says is not None:
            log.warning("run: %s; rows are marked budget_verified=false", finding.says)
        findings |= {item.point.dir: finding for item in group}
    return findings


async def _ask(session: Session, request: Request, example: Example) -> Reply | PointFailed:
    """The reply; a failed point if the server's accounting contradicts it. Raises `Fault`."""
    reply = await session.ask(request, example)
    if reply.accounting is not None:
        told = session.lane(request.point).is_kvx
        reason = proof.contradiction(request, reply.accounting, told)
        if reason is not None:
            return PointFailed(request.point, reason)
    return reply


async def _answer(session: Session, request: Request, example: Example, known: Finding) -> Answer:
    try:
        reply = await _ask(session, request, example)
    except Fault as fault:
        return Response(
            request,
            None,
            error_type=fault.kind.value,
            error_message=fault.message,
            budget_proof=BudgetProof.NONE,
            machine=route(request.point).url,
        )
    if isinstance(reply, PointFailed):
        return reply
    said, builder = reply.accounting, session.builder(request.point)
    opened = builder.opens_reasoning(example) and reply.reasoning is None
    thought, tokens = reply.reasoning, reply.reasoning_tokens
    if thought is None:
        thought = split(reply.text, opened is True).reasoning
    if tokens is None:
        tokens = count_tokens(builder.prompts.tokenizer.encode, thought)
    return Response(
        request,
        text=reply.text,
        reasoning=reply.reasoning,
        reasoning_tokens=tokens,
        opens_reasoning=opened,
        output_tokens=reply.output_tokens,
        finish_reason=reply.finish_reason,
        timing=reply.timing,
        kv=None if said is None else said.kv,
        budget_verified=said is not None,
        budget_proof=known.proof if said is None else proof.of_accounting(request, said),
        trace=reply.trace,
        machine=route(request.point).url,
    )


async def _measure_all(work: Sequence[LatencyWork], put: Callable[[Measured], None]) -> None:
    async with Session([item.point for item in work], concurrency=1) as session:
        for item in work:
            for request, example, _ in item.requests[:1] * item.point.config.latency.warmup:
                with contextlib.suppress(Fault):  # the measurement itself will say so
                    await session.ask(request, example)
        failed: set[Path] = set()
        for item, (request, example, repeat) in interleaved(work):
            if item.point.dir in failed:
                continue
            measured = await _measure(session, request, example, repeat)
            put(measured)
            if isinstance(measured, PointFailed):
                failed.add(item.point.dir)


async def _measure(session: Session, request: Request, example: Example, repeat: int) -> Measured:
    where = f"{route(request.point).url}, timed by its client"
    try:
        reply = await _ask(session, request, example)
    except Fault as fault:
        return Measurement(
            request, repeat, machine=where, error_type=fault.kind.value, error_message=fault.message
        )
    if isinstance(reply, PointFailed):
        return reply
    said = reply.accounting
    return Measurement(
        request,
        repeat,
        reply.timing,
        reply.output_tokens,
        kv_bytes_peak=None if said is None else said.kv.bytes_peak,
        machine=where,
    )
