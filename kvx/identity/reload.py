"""Code that this process holds: imported again when its file changed, and code without a file."""

import hashlib
import json
import logging
import marshal
import os
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

log = logging.getLogger(__name__)

# SHA-256 of each user module's text when it was last looked at
_seen: dict[str, str] = {}
# for each class that was looked at: its module and all that it imports
_together: set[frozenset[str]] = set()


@dataclass(frozen=True)
class Module:
    """A user's module: its file, that file's content, and the module names it imports."""

    name: str
    file: str
    sha256: str
    imports: tuple[str, ...]


def refresh(modules: Sequence[Module]) -> None:
    """Make sure that imported modules are what their files say.

    If one was imported and has changed, all are forgotten, because those that import it hold the
    old one. So are those that were looked at together with it for another class. The next import
    reads them anew.
    """
    _together.add(frozenset(module.name for module in modules))
    old = [module.name for module in modules if _is_old(module)]
    for module in modules:
        _drop_old_bytecode(module.file)
        _seen[module.name] = module.sha256
    if old:
        log.info("%s changed since this process imported it: imported again", ", ".join(old))
        forget(name for group in _together if not group.isdisjoint(old) for name in group)


def forget(names: Iterable[str]) -> None:
    """Make the next import of these modules read them anew."""
    for name in names:
        if name != "__main__":
            sys.modules.pop(name, None)


def _is_old(found: Module) -> bool:
    module = sys.modules.get(found.name)
    if module is None or found.name == "__main__":
        return False
    if found.name in _seen:
        return _seen[found.name] != found.sha256
    return _was_another(module, Path(found.file))


def _was_another(module: ModuleType, file: Path) -> bool:
    """Whether a module that was loaded before its first look was made from another text.

    Python's bytecode cache, where it may write one, holds time and size of the text that it
    compiled.
    """
    cached = getattr(module, "__cached__", None)
    if cached is None or sys.dont_write_bytecode or not os.access(Path(cached).parent, os.W_OK):
        return False
    try:
        with open(cached, "rb") as handle:
            header = handle.read(16)
        stat = file.stat()
    except OSError:
        return False
    if len(header) < 16 or header[:4] != MAGIC_NUMBER or header[4:8] != bytes(4):
        return False
    now = (int(stat.st_mtime) & 0xFFFFFFFF, stat.st_size & 0xFFFFFFFF)
    return now != struct.unpack("<II", header[8:16])


def _drop_old_bytecode(file: str) -> None:
    """Remove a bytecode cache that Python may wrongly trust: same size, same second."""
    if not file.endswith(".py"):
        return
    try:
        cached = Path(cache_from_source(file))
        if cached.stat().st_mtime_ns <= Path(file).stat().st_ctime_ns:
            cached.unlink()
    except (OSError, NotImplementedError):  # there is none, or it is not ours to remove
        return


@dataclass(frozen=True)
class Typed:
    """What was typed into a notebook: its content, and the modules it uses."""

    sha256: str
    modules: tuple[str, ...]


def digest_of_main(name: str) -> Typed | None:
    """SHA-256 of the compiled code of a class or function typed into a notebook, and of everything
    typed there that it uses. None if there is no such name.
    """
    module = sys.modules["__main__"]
    parts: dict[str, bytes] = {}
    modules: set[str] = set()
    waiting = [name.partition(".")[0]]
    if waiting[0] not in vars(module):
        return None
    while waiting:
        part = waiting.pop()
        if part in parts or part not in vars(module):
            continue
        value = vars(module)[part]
        if isinstance(value, ModuleType):
            modules.add(value.__name__)
        elif isinstance(where := getattr(value, "__module__", None), str) and where != "__main__":
            modules.add(where)
        codes, plain = _codes(value), _plain(value)
        if not codes and plain is None:
            continue
        parts[part] = b"".join(map(_without_places, codes)) + (plain or b"")
        waiting += [used for code in codes for used in _names(code)]
        if isinstance(value, type):
            waiting += [base.__name__ for base in value.__mro__[1:]]
            modules |= {base.__module__ for base in value.__mro__} - {"__main__"}
    found = hashlib.sha256()
    for part in sorted(parts):
        found.update(part.encode() + b"\0" + parts[part] + b"\0")
    return Typed(found.hexdigest(), tuple(sorted(modules)))


def _codes(value: Any) -> list[CodeType]:
    """The compiled code of a function, or of everything in a class that was typed there."""
    value = getattr(value, "__func__", getattr(value, "__wrapped__", value))
    if isinstance(value, property):
        return [c for f in (value.fget, value.fset, value.fdel) if f for c in _codes(f)]
    if isinstance(value, FunctionType):
        return [value.__code__] if value.__module__ == "__main__" else []
    if isinstance(value, type) and value.__module__ == "__main__":
        return [code for name in sorted(vars(value)) for code in _codes(vars(value)[name])]
    return []


def _plain(value: Any) -> bytes | None:
    """A constant, or the constants of a class."""
    if isinstance(value, bool | int | float | str | tuple | list | dict | None):
        try:
            return json.dumps(value, sort_keys=True).encode()
        except (TypeError, ValueError):  # it holds something that JSON cannot
            return None
    if isinstance(value, type) and value.__module__ == "__main__":
        own = {k: v for k, v in vars(value).items() if not k.startswith("__")}
        kept = {k: repr(v) for k, v in own.items() if _plain(v) is not None}
        return repr((sorted(kept.items()), [b.__qualname__ for b in value.__mro__])).encode()
    return None


def _without_places(code: CodeType) -> bytes:
    """Compiled code without the lines and the cell that it came from."""
    constants = tuple(
        _without_places(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts
    )
    return marshal.dumps(
        (code.co_code, repr(constants), code.co_names, code.co_varnames, code.co_name)
    )


def _names(code: CodeType) -> list[str]:
    inner = [name for c in code.co_consts if isinstance(c, CodeType) for name in _names(c)]
    return [*code.co_names, *inner]
