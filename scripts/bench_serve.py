"""What the server gets through: many streaming clients against one, and against the engine itself.

The same prompts, one press and budget, and exactly `--new-tokens` tokens each, for 1 client of a
server, `--clients` of them, and a batch of as many rows in the engine in this process; in turns,
several times. Decode throughput counts the tokens while all streams are running (from the last
first token to the first last one), so that prefills, which cannot be batched, do not count;
throughput in all counts everything from the first request to the last token.

    python scripts/bench_serve.py                               # SmolLM2, 16 clients
    python scripts/bench_serve.py --model tiny_recall --dataset recall
"""

import argparse
import asyncio
import dataclasses
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import httpx
import torch
from soak_serve import server

from kvx.cli.command import compose
from kvx.data.frozen_examples import load_examples
from kvx.data.prompt import PromptBuilder
from kvx.engines.base import PointWork
from kvx.engines.kvpress.batch import Batch
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.sequence import Action, Row, StepObserver
from kvx.points import Point, Request
from kvx.prepare.build import ensure_manifest

Times = list[list[float]]  # of every stream's tokens, seconds on one clock


class Arrivals(StepObserver):
    """An observer that notes when each row's tokens were chosen."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Action]:
        now = time.perf_counter()
        for row in rows:
            self.times.setdefault(row.request.id, []).append(now)
        return ()


def make_work(options: argparse.Namespace, folder: str) -> PointWork:
    config = compose(
        f"model={options.model}",
        f"dataset={options.dataset}",
        f"press={options.press}",
        f"budget={options.budget}",
        f"paths.output={folder}",
        "dataset.binning.n_bins=1",
        f"dataset.sampling.n_per_bin={options.clients}",
        "dataset.source.min_words=200",
        f"dataset.source.n_examples={options.clients}",
        f"dataset.source.max_words={options.words}",
        f"decoding.max_new_tokens={options.new_tokens}",
        "signals=off",
    )
    manifest, where = ensure_manifest(config)
    point, examples = Point(config, manifest, where), load_examples(where)
    pairs = [(Request(point, e), examples[e.example_id]) for e in manifest.entries]
    assert len(pairs) == options.clients
    return PointWork(point, tuple(pairs))


def by_engine(engine: KVPressEngine, work: PointWork) -> tuple[float, Times]:
    """Start and token times of the engine's own batch."""
    loaded = dataclasses.replace(engine.loaded, stop_ids=frozenset())
    arrivals = Arrivals()
    batch = Batch(loaded, work.point.config, engine.account())
    batch.observers.append(arrivals)
    start = time.perf_counter()
    assert len(list(batch.run([work]))) == len(work.requests)
    return start, list(arrivals.times.values())


async def by_server(url: str, bodies: Sequence[dict[str, Any]]) -> tuple[float, Times]:
    """Start and token times of one client per body, all at once.

    A piece of text that holds several tokens (a character of several) counts as all of them.
    """

    async def stream(body: dict[str, Any]) -> list[float]:
        times: list[float] = []
        tokens = 0
        async with client.stream("POST", "/completions", json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    times.append(time.perf_counter())
                    usage = json.loads(line.removeprefix("data: ")).get("usage")
                    tokens = usage["completion_tokens"] if usage else tokens
        assert tokens == body["max_tokens"]
        chunks = times[:-2]  # the last two say how it ended
        return [chunks[i * len(chunks) // tokens] for i in range(tokens)]

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await client.get("/models")  # connect
        start = time.perf_counter()
        return start, await asyncio.gather(*(stream(body) for body in bodies))


def rates(start: float, times: Times) -> tuple[float, float]:
    """Tokens per second while all streams run, and in all."""
    begin, end = max(t[0] for t in times), min(t[-1] for t in times)
    while_all = sum(1 for t in times for at in t if begin < at <= end)
    in_all = sum(map(len, times)) / (max(t[-1] for t in times) - start)
    return while_all / (end - begin), in_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dataset", default="niah")
    parser.add_argument("--press", default="snapkv")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    found: dict[str, list[tuple[float, float]]] = {"one": [], "many": [], "engine": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        server(f"model={options.model}") as (url, _),
    ):
        work = make_work(options, folder)
        engine = KVPressEngine(work.point.config)
        builder = PromptBuilder(engine.loaded.tokenizer, work.point.config)
        bodies = []
        for _, example in work.requests:
            compressed, rest = builder.texts(example)
            kvx = {
                "press": options.press,
                "budget": options.budget,
                "compress_chars": len(compressed),
            }
            bodies.append(
                {
                    "model": options.model, "prompt": compressed + rest, "temperature": 0,
                    "max_tokens": options.new_tokens, "ignore_eos": True, "stream": True,
                    "stream_options": {"include_usage": True}, "kvx": kvx,
                }
            )  # fmt: skip
        asyncio.run(by_server(url, [b | {"max_tokens": 4} for b in bodies[:2]]))  # warm-up
        for turn in range(options.rounds):
            one = bodies[turn % len(bodies)]
            found["one"].append(rates(*asyncio.run(by_server(url, [one]))))
            found["many"].append(rates(*asyncio.run(by_server(url, bodies))))
            found["engine"].append(rates(*by_engine(engine, work)))
            print({name: runs[-1] for name, runs in found.items()}, file=sys.stderr)
    tokens = [r.entry.prompt_tokens for r, _ in work.requests]
    print(
        f"{options.model}, {options.press} at {options.budget:g}, prompts of {min(tokens)} to "
        f"{max(tokens)} tokens, {options.new_tokens} new, {torch.get_num_threads()} threads, "
        f"median of {options.rounds}"
    )
    medians = {
        name: [statistics.median(column) for column in zip(*runs, strict=True)]
        for name, runs in found.items()
    }
    names = {"one": "1 client", "many": f"{options.clients} clients", "engine": "engine's batch"}
    for name, (decode, in_all) in medians.items():
        alone, engines = medians["one"][0], medians["engine"][0]
        print(
            f"{names[name]:>15}: {decode:7.1f} tokens/s while decoding ({decode / alone:.2f} of "
            f"one client, {decode / engines:.2f} of the engine), {in_all:7.1f} in all"
        )


if __name__ == "__main__":
    main()
