"""Starting and stopping the server."""

import errno
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from kvx.config import Config, ServeConfig
from kvx.errors import RunFailedError, UserError
from kvx.points import budget_label
from kvx.serve.app import create_app
from kvx.serve.service import Service

log = logging.getLogger(__name__)

BACKLOG = 2048
END_S = 5.0  # for the last bytes of streams that were cut


class Server(uvicorn.Server):
    """uvicorn's server, that lets running answers end before it does."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.loop.close(self.service.config.serve.drain_s)
        await super().shutdown(sockets)


def run_server(config: Config) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises `UserError` for a configuration, model or address that cannot be served.
    """
    _check(config.serve)
    api_key = config.serve.api_key or os.environ.get("KVX_API_KEY") or None
    if api_key is None and not _is_loopback(config.serve.host):
        raise UserError(
            f"serve.host={config.serve.host}: others can reach it, so it needs an API key; set "
            "KVX_API_KEY in the environment"
        )
    with _listening(config.serve) as listener:
        service = Service(config)
        server = Server(
            service,
            uvicorn.Config(
                create_app(service, api_key),
                log_config=None,
                access_log=False,
                ws="none",
                timeout_graceful_shutdown=int(config.serve.drain_s + END_S) + 1,
            ),
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        log.info(
            "serve: %s, press=%s budget=%s, at http://%s:%d/v1",
            config.model.name, config.press.name, budget_label(config.budget), shown, port,
        )  # fmt: skip
        with _signals_once():
            server.run(sockets=[listener])
        service.loop.join(END_S)
    if service.loop.failed and not server.should_exit:
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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _listening(serve: ServeConfig) -> Iterator[socket.socket]:
    where = f"serve.host={serve.host} serve.port={serve.port}"
    try:
        family = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((serve.host, serve.port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "the port is in use; choose another, or 0 for any free one"
        else:
            reason = error.strerror or str(error)
        raise UserError(f"{where}: {reason}") from None
    with listener:
        yield listener


def _check(serve: ServeConfig) -> None:
    limits = {
        "port": (0 <= serve.port < 2**16, "between 0 and 65535"),
        "queue": (serve.queue >= 1, "at least 1"),
        "max_rows": (serve.max_rows >= 1, "at least 1"),
        "max_context": (serve.max_context is None or serve.max_context >= 2, "at least 2, or null"),
        "max_request_bytes": (serve.max_request_bytes >= 1024, "at least 1024"),
        "drain_s": (0 <= serve.drain_s <= 3600, "between 0 and 3600"),
    }
    for name, (good, wanted) in limits.items():
        if not good:
            raise UserError(f"serve.{name}={getattr(serve, name)}: must be {wanted}")
