"""Many streaming clients at once, for a while: is any answer lost, crossed with another, or cut?

Every request's answer is known from asking for it alone first. Lengths, presses, budgets, numbers
of tokens, seeds and temperatures differ; some clients leave in the middle. Run by `make soak`.

    python scripts/soak_serve.py                                # 64 clients, 2 minutes
    python scripts/soak_serve.py --clients 16 --seconds 20
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

PRESSES = ("snapkv", "streaming", "knorm", "tova", "keydiff", "none", "pyramidkv", "chunkkv")
BUDGETS = (0.2, 0.5, 0.8)
N_BODIES = 96
LEAVES_EVERY = 11  # of a client's requests, one is given up in the middle


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[tuple[str, int]]:
    """`python -m kvx.serve` on a free port: its URL and process id."""
    command = [sys.executable, "-m", "kvx.serve", "serve.port=0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while "http://" not in (line := process.stderr.readline()):
            if not line:
                raise SystemExit("the server did not start")
        yield line[line.index("http://") :].strip(), process.pid
    finally:
        process.terminate()
        rest = process.communicate(timeout=60)[1]
        print(rest, end="", file=sys.stderr)
    if process.returncode != 0:
        raise SystemExit(f"the server ended with {process.returncode}")


def bodies() -> list[dict[str, Any]]:
    made = []
    for i in range(N_BODIES):
        press = PRESSES[i % len(PRESSES)]
        words = " ".join(f"w{(i + j) % 30} {(i * j) % 90}" for j in range(60 + 3 * i))
        made.append(
            {
                "model": "tiny_recall", "prompt": words, "max_tokens": 8 + i % 60, "seed": i,
                "temperature": (0, 0, 0.7, 1.5)[i % 4], "ignore_eos": i % 3 == 0,
                "stream": True, "stream_options": {"include_usage": True},
                "kvx": {"press": press, "budget": 1.0 if press == "none" else BUDGETS[i % 3]},
            }
        )  # fmt: skip
    return made


@dataclass(frozen=True)
class Answer:
    """What a stream said; `whole` if it ended as a stream must end."""

    text: str
    finish_reason: str | None
    completion_tokens: int | None
    kvx: str | None
    whole: bool


async def ask(client: httpx.AsyncClient, body: dict[str, Any], leave: bool) -> Answer | None:
    """None if the client left."""
    text, reason, tokens, kvx, done = "", None, None, None, False
    async with client.stream("POST", "/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            raise RuntimeError(f"{response.status_code}: {response.text}")
        async for line in response.aiter_lines():
            if not line:
                continue
            if leave and len(text) > 12:
                return None
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                done = True
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            for choice in chunk["choices"]:
                text += choice["text"]
                reason = choice["finish_reason"] or reason
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
                kvx = json.dumps(chunk["kvx"], sort_keys=True)
    return Answer(text, reason, tokens, kvx, done)


def judge(answer: Answer, asked: int, expected: list[Answer]) -> str:
    if answer == expected[asked]:
        return "right"
    if not answer.whole or expected[asked].text.startswith(answer.text):
        return "cut"
    return "crossed" if any(answer.text == other.text for other in expected) else "other text"


async def soak(url: str, clients: int, seconds: float) -> Counter[str]:
    found: Counter[str] = Counter()
    asked = bodies()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        expected = []
        for body in asked:
            answer = await ask(client, body, False)
            assert answer is not None
            assert answer.whole
            expected.append(answer)
        until = time.monotonic() + seconds

        async def one(number: int) -> None:
            turn = number
            while time.monotonic() < until:
                turn += 1
                which, leave = (number + 7 * turn) % len(asked), turn % LEAVES_EVERY == 0
                try:
                    answer = await ask(client, asked[which], leave)
                except (httpx.HTTPError, RuntimeError) as error:
                    found["lost"] += 1
                    print(f"lost: {error!r}", file=sys.stderr)
                    continue
                if answer is None:
                    found["left"] += 1
                    continue
                found[judge(answer, which, expected)] += 1
                found["tokens"] += answer.completion_tokens or 0

        await asyncio.gather(*(one(i) for i in range(clients)))
        await asyncio.sleep(0.5)
        state = (await client.get(url.removesuffix("/v1") + "/health")).json()
    found["still running"] = state["running"] + state["waiting"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with server("model=tiny_recall", "press=snapkv", "budget=0.2") as (url, pid):
        process = psutil.Process(pid)
        before = process.memory_info().rss
        begun = time.monotonic()
        found = asyncio.run(soak(url, options.clients, options.seconds))
        took = time.monotonic() - begun
        grown = process.memory_info().rss - before
    bad = sum(found[k] for k in ("lost", "cut", "crossed", "other text", "still running"))
    print(
        f"{options.clients} clients, {took:.0f} s: {found['right']} streams right, {bad} wrong "
        f"(lost {found['lost']}, cut {found['cut']}, crossed {found['crossed']}, other text "
        f"{found['other text']}, still running {found['still running']}); {found['left']} given up "
        f"by their clients; {found['tokens'] / options.seconds:.0f} tokens/s; the server's memory "
        f"grew by {grown / 2**20:.0f} MiB"
    )
    raise SystemExit(1 if bad or not found["right"] else 0)


if __name__ == "__main__":
    main()
