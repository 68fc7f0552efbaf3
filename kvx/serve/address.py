"""Where the server listens, checked before anything slow is loaded."""

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator

from kvx.config.serve import ServeConfig
from kvx.errors import UserError

BACKLOG = 2048


def api_key_of(serve: ServeConfig) -> str | None:
    """Raises `UserError` if there is no key and other machines could connect."""
    key = serve.api_key or os.environ.get("KVX_API_KEY") or None
    if key is None and not _is_loopback(serve.host):
        raise UserError(
            f"serve.host={serve.host}: others can reach it, so it needs an API key; set "
            "KVX_API_KEY in the environment"
        )
    return key


@contextlib.contextmanager
def listening(serve: ServeConfig) -> Iterator[socket.socket]:
    """The listening socket; clients that connect wait until the server accepts.

    Raises `UserError` if the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((serve.host, serve.port), family=family, backlog=BACKLOG)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        reason = "the port is in use; choose another, or 0 for any free one"
        raise UserError(
            f"serve.host={serve.host} serve.port={serve.port}: "
            f"{reason if in_use else error.strerror or error}"
        ) from None
    with listener:
        yield listener


def base_url(listener: socket.socket) -> str:
    """The URL for a client on this machine."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
