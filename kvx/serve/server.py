"""Starting and stopping the server."""

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from kvx.config.identity import is_guarded
from kvx.config.schema import Config
from kvx.errors import RunFailedError
from kvx.guard.live_checks import keeps_all
from kvx.points import budget_label
from kvx.serve.address import base_url
from kvx.serve.app import create_app
from kvx.serve.promise import Promise
from kvx.serve.service import Service

log = logging.getLogger(__name__)

END_S = 5.0  # for the last bytes of streams that were cut
# longer than clients keep idle connections (httpx 5 s, proxies 60 s): a server that closed
# first could do so while a request is on its way
KEEP_ALIVE_S = 75


class Server(uvicorn.Server):
    """uvicorn's server, which lets running answers end first."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.loop.close(self.service.config.serve.drain_s)
        await super().shutdown(sockets)


def make_server(config: Config, api_key: str | None, promise: Promise | None = None) -> Server:
    """Loads the model. Raises `UserError` for a model or press that cannot be served."""
    service = Service(config, promise)
    settings = uvicorn.Config(
        create_app(service, api_key),
        log_config=None,
        access_log=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(config.serve.drain_s + END_S) + 1,
    )
    return Server(service, settings)


def run_server(
    config: Config, api_key: str | None, listener: socket.socket, promise: Promise | None = None
) -> None:
    """Serve on `listener` until SIGINT or SIGTERM.

    Raises `UserError` for a model or press that cannot be served.
    """
    server = make_server(config, api_key, promise)
    log.info("serve: %s, %s, at %s", config.model.name, point_of(config), base_url(listener))
    if (shortest := shortest_of(config)) is not None:
        log.info("serve: %s", shortest)
    with _signals_once():
        server.run(sockets=[listener])
    server.service.loop.join(END_S)
    if server.service.loop.broken:
        raise RunFailedError("the decoding thread ended; see above")
    log.info("serve: stopped")


def shortest_of(config: Config) -> str | None:
    """Which prompts are too short for the server's press; None if none are."""
    press = config.press
    if keeps_all(config) or press.min_prompt_tokens == 0:
        return None
    return (
        f"press={press.name} compresses prompts of more than {press.min_prompt_tokens} tokens; "
        "shorter ones keep their full cache, and the answer says so"
    )


def point_of(config: Config) -> str:
    """Press, budget and controller of a server, and whether the controller has nothing to do."""
    press, budget = config.press.name, budget_label(config.budget)
    text = f"press={press} budget={budget} controller={config.controller.name}"
    if not (is_guarded(config) and keeps_all(config)):
        return text
    named = "a press and a budget" if config.press.method is None else "a budget"
    return f"{text} (which follows only requests that name {named} below 1.0)"


@contextmanager
def _signals_once() -> Iterator[None]:
    """uvicorn raises the signal that stopped it a second time when it has stopped; ignore that."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda *_: None) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
