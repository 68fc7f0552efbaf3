"""Checks of `engine=openai` that the schema cannot express; needs no server and no client."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from kvx.config.engine import OpenAIConfig
from kvx.errors import UserError
from kvx.points import Point

SECRET = 8  # characters: shorter keys ("none", "EMPTY") are words


def check_url(url: str) -> None:
    """Raises `UserError` for what is not an address, or holds a password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url}: not a server's address; write e.g. http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"{parts.hostname}: a name or password in the address would be saved with the results; "
            "put the key in OPENAI_API_KEY"
        )
    if parts.query or parts.fragment:
        raise UserError(
            f"{parts.hostname}: remove what follows the path of the address; it would be saved "
            "with the results"
        )


def check_key(key: str | None, engine: OpenAIConfig) -> None:
    """Raises `UserError` for a key that cannot be sent, or one that would be saved."""
    if key is None:
        return
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY: holds a character that an HTTP header cannot")
    if len(key) >= SECRET and key in repr(engine):
        raise UserError(
            "the key is in a field of engine, which is saved with the results; remove it, "
            "OPENAI_API_KEY is sent anyway"
        )


def refuse_workers(points: Sequence[Point]) -> None:
    """Raises `UserError` where several processes would each apply a limit meant for all of them."""
    for point in points:
        engine = point.config.engine
        limits = engine.rate_limit if isinstance(engine, OpenAIConfig) else None
        if limits is not None and (limits.max_rpm is not None or limits.max_tpm is not None):
            raise UserError(
                "engine.rate_limit holds for one process, and one is enough to keep a server busy; "
                "leave hydra/launcher out"
            )
