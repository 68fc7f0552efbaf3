"""Attributes of others, another value for a while."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_lock = threading.Lock()
_ABSENT = object()


@dataclass
class _Replaced:
    users: int
    before: Any


_replaced: dict[tuple[int, str], _Replaced] = {}


@contextlib.contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside this context, and then again what it was, or absent.

    For an owner that nobody else changes at the same time, unlike `replaced`.
    """
    if isinstance(getattr(type(owner), name, None), property):
        before = getattr(owner, name)
    else:
        own = vars(owner)
        before = own.get(name, own.get("_modules", {}).get(name, _ABSENT))
        if before is not _ABSENT:
            delattr(owner, name)  # a module may take the place of none, and the other way round
    setattr(owner, name, value)
    try:
        yield
    finally:
        if not isinstance(getattr(type(owner), name, None), property):
            delattr(owner, name)
        if before is not _ABSENT:
            setattr(owner, name, before)


@contextlib.contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """`owner.name` is `make(what it was)` while anybody is inside, in whatever order they leave.

    Those who come later share the first one's replacement, so `make` may not depend on who asks.
    """
    key = (id(owner), name)
    with _lock:
        if key in _replaced:
            _replaced[key].users += 1
        else:
            raw = vars(owner).get(name, _ABSENT)
            new = make(getattr(owner, name))
            _replaced[key] = _Replaced(1, raw)
            setattr(owner, name, staticmethod(new) if isinstance(raw, staticmethod) else new)
    try:
        yield
    finally:
        with _lock:
            found = _replaced[key]
            found.users -= 1
            if not found.users:
                del _replaced[key]
                if found.before is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, found.before)
