"""A real server on loopback, in a thread of the test process."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from openai import AsyncOpenAI, OpenAI

from kvx.cli.command import compose
from kvx.serve.certified import with_certified_budget
from kvx.serve.server import make_server
from kvx.serve.service import Service
from tests.waiting import HANGS_S, wait_until


@dataclass(frozen=True)
class Running:
    """A server that takes requests."""

    service: Service
    url: str  # ends in /v1

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=HANGS_S)

    def async_client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=HANGS_S)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Of the server's root."""
        return httpx.get(self.root + path, timeout=HANGS_S, **options)

    def health(self) -> dict[str, int]:
        found: dict[str, int] = self.get("/health").json()
        return found

    def at_work(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
        state = self.health()
        return state["running"], state["waiting"]

    def wait_until_idle(self) -> None:
        wait_until(lambda: self.at_work() == (0, 0), "nothing is running")

    def metric(self, name: str) -> float:
        """A counter of /metrics."""
        text = self.get("/metrics").text
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        return float(line.split()[1])


@contextlib.contextmanager
def serving(*overrides: str, api_key: str | None = None) -> Iterator[Running]:
    """`python -m kvx.serve` with these arguments, on a free port."""
    config, promise = with_certified_budget(compose("serve.drain_s=1", *overrides, stage="serve"))
    server = make_server(config, api_key, promise)
    service = server.service
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Running(service, f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        finally:
            server.should_exit = True
            thread.join(HANGS_S)
            service.loop.join(HANGS_S)
    assert not thread.is_alive()
    assert not service.loop.is_alive()


def post(url: str, body: Any, path: str = "/completions", **headers: str) -> httpx.Response:
    headers = {"content-type": "application/json", **headers}
    return httpx.post(url + path, content=json.dumps(body), headers=headers, timeout=HANGS_S)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The API's error object, whole."""
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error
