"""Starting and stopping the server."""

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from kvx.config import Config
from kvx.errors import RunFailedError
from kvx.points import budget_label
from kvx.serve.address import base_url
from kvx.serve.app import create_app
from kvx.serve.service import Service

log = logging.getLogger(__name__)

END_S = 5.0  # for the last bytes of streams that were cut


class Server(uvicorn.Server):
    """uvicorn's server, that lets running answers end before it does."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.loop.close(self.service.config.serve.drain_s)
        await super().shutdown(sockets)


def run_server(config: Config, api_key: str | None, listener: socket.socket) -> None:
    """Serve on `listener` until SIGINT or SIGTERM.

    Raises `UserError` for a model or press that cannot be served.
    """
    service = Service(config)
    settings = uvicorn.Config(
        create_app(service, api_key),
        log_config=None,
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=int(config.serve.drain_s + END_S) + 1,
    )
    log.info(
        "serve: %s, press=%s budget=%s, at %s",
        config.model.name, config.press.name, budget_label(config.budget), base_url(listener),
    )  # fmt: skip
    with _signals_once():
        Server(service, settings).run(sockets=[listener])
    service.loop.join(END_S)
    if service.loop.broken:
        raise RunFailedError("the decoding thread ended; see above")
    log.info("serve: stopped")


@contextmanager
def _signals_once() -> Iterator[None]:
    """uvicorn raises the signal that stopped it again when it has; once is enough."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda *_: None) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
