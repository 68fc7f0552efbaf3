"""What engine=openai adds to each request: against a server that answers at once, beside raw HTTP.

    python scripts/bench_openai_client.py [--requests 300] [--tokens 16] [--rounds 5]

The server is a process of its own that knows its answer beforehand. The same request bodies are
sent by a bare HTTP client (the one below openai's) that reads the stream to its end and parses
nothing, and by the engine: retries, pace, time-outs, parsing, checks and traces. Both send one
request at a time, so that the difference of the times per request is what the engine adds. Wall
time says so on an idle machine; CPU time of this process (not the server's) on any.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from openai import DefaultAsyncHttpxClient

from kvx.cli.command import compose
from kvx.engines.base import PointWork, Response
from kvx.engines.openai.body import BodyBuilder
from kvx.engines.openai.engine import OpenAIEngine
from kvx.run.planning import plan
from kvx.run.work import answers_work
from kvx.store.layout import Present

TOP = 20


def stream_of(tokens: int, logprobs: bool) -> bytes:
    """A finished stream of so many tokens, one per chunk."""
    events: list[Any] = []
    for n in range(tokens):
        choice: dict[str, Any] = {"index": 0, "text": f"w{n} ", "finish_reason": None}
        if logprobs:
            top = {f"t{i}": -1.0 - i for i in range(TOP)}
            choice["logprobs"] = {
                "tokens": [f"w{n} "], "token_logprobs": [-1.0], "top_logprobs": [top],
                "text_offset": [0],
            }  # fmt: skip
        events.append({"id": "x", "object": "text_completion", "choices": [choice]})
    end = {"index": 0, "text": "", "finish_reason": "stop"}
    events.append({"choices": [end], "usage": {"completion_tokens": tokens}})
    return b"".join(f"data: {json.dumps(e)}\n\n".encode() for e in events) + b"data: [DONE]\n\n"


def serve(tokens: int, logprobs: bool) -> None:
    """Answer every request with the same bytes; prints the port."""
    whole = stream_of(tokens, logprobs)
    headers = {"Content-Type": "text/event-stream"}

    async def generate(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=whole, headers=headers)

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny_recall", "owned_by": "bench"}]})

    async def run() -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/completions", generate)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


@dataclass(frozen=True)
class Cost:
    """Milliseconds per request."""

    wall: float
    cpu: float


class Clock:
    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def cost(self, n: int) -> Cost:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return Cost(1000 * wall / n, 1000 * cpu / n)


async def raw(url: str, bodies: list[bytes]) -> Cost:
    """All bodies, one after the other, answers read and thrown away; the first is not counted."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    async with DefaultAsyncHttpxClient(timeout=60) as client:
        for n, body in enumerate(bodies):
            async with client.stream(
                "POST", f"{url}/completions", content=body, headers=headers
            ) as answer:
                async for _ in answer.aiter_bytes():
                    pass
            if n == 0:
                clock = Clock()
        return clock.cost(len(bodies) - 1)


def engine(work: PointWork) -> Cost:
    """The same through the engine, from the first answer to the last."""
    answers = OpenAIEngine(work.point.config).generate([work])
    next(answers)
    clock = Clock()
    rest = list(answers)
    assert all(isinstance(item, Response) and item.has_response for item in rest)
    return clock.cost(len(rest))


def measure(n: int, tokens: int, logprobs: bool, rounds: int) -> None:
    with subprocess.Popen(
        [sys.executable, __file__, "--serve", "--tokens", str(tokens)]
        + (["--logprobs"] if logprobs else []),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        try:
            pairs = [one_round(url, n) for _ in range(rounds)]
        finally:
            process.terminate()
    print(f"{tokens} tokens, {'top 20 log-probs' if logprobs else 'no log-probs'}:")
    for kind in ("wall", "cpu"):
        bare = [getattr(one, kind) for one, _ in pairs]
        ours = [getattr(other, kind) for _, other in pairs]
        added = [b - a for a, b in zip(bare, ours, strict=True)]
        print(
            f"  {kind}: raw {statistics.median(bare):.2f} ms, "
            f"engine {statistics.median(ours):.2f} ms per request; "
            f"added {statistics.median(added):.2f} ms ({min(added):.2f}–{max(added):.2f})"
        )


def one_round(url: str, n: int) -> tuple[Cost, Cost]:
    """The same n requests: raw, and through the engine."""
    config = compose(
        "engine=openai",
        f"engine.base_url={url}",
        "engine.concurrency=1",
        "engine.probe=false",
        "dataset.binning.n_bins=1",
        f"dataset.sampling.n_per_bin={n}",
        f"dataset.source.n_examples={n}",
        "dataset.source.max_words=400",
    )
    (point,) = plan([config])
    work = answers_work(point, Present(set(), set()))
    builder = BodyBuilder(config)
    bodies = [json.dumps(builder.body(*pair, is_kvx=False)).encode() for pair in work.requests]
    return asyncio.run(raw(url, bodies)), engine(work)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--logprobs", action="store_true")
    parser.add_argument("--serve", action="store_true")
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.tokens, asked.logprobs)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for tokens in [asked.tokens] if asked.tokens else [1, 16, 64]:
            for logprobs in (False, True):
                measure(asked.requests, tokens, logprobs, asked.rounds)


if __name__ == "__main__":
    main()
