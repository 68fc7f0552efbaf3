"""SHA-256 of whole files, cached under what the file system says of them.

Reading weights takes seconds per 10 GB, and every command asks for their identity. A hash is kept
with path, inode, size, mtime and ctime (which nobody can set back): in this process and, for large
files, in `kvx.config.folders.cache_dir()`. There each path has one small file, replaced atomically,
so writers need no lock. An entry that is damaged, or cannot be read or written, costs a second
reading and nothing else.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kvx.errors import UserError, unreadable
from kvx.identity.hashing import sha256_file, sha256_text

log = logging.getLogger(__name__)
FOLDER = "hashes"
LARGE_BYTES = 1 << 20  # a smaller file is read as fast as its cache entry
TICK_NS = 2_000_000_000  # of a file system's clock: within a tick, a second change does not show
TOLD_BYTES = 4 << 30  # reading more than this is announced
READERS = 4  # files read at once
ATTEMPTS = 3

_known: dict["Signature", str] = {}


class Signature(NamedTuple):
    """Changes whenever a file's content does; `path` is resolved."""

    path: str
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def is_settled(self) -> bool:
        """Whether a later change must show in the times."""
        return time.time_ns() - self.ctime_ns > TICK_NS


def signature(path: Path) -> Signature:
    """Raises `UserError` if there is no such file or it is out of reach."""
    try:
        resolved = path.resolve(strict=True)
        stat = resolved.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    name, times = str(resolved), (stat.st_mtime_ns, stat.st_ctime_ns)
    return Signature(name, stat.st_ino, stat.st_size, *times)


def sha256(path: Path) -> str:
    """SHA-256 of a whole file as it is now. Raises `UserError` if it cannot be read."""
    for _ in range(ATTEMPTS):
        before = signature(path)
        if (known := _recall(before)) is not None:
            return known
        settled = before.is_settled
        try:
            found = sha256_file(path)
        except OSError as error:
            raise unreadable(path, error) from None
        if signature(path) == before:
            if settled:
                _remember(before, found)
            return found
    raise UserError(f"{path}: changes while being read; wait until it is written")


def sha256_of(paths: Iterable[Path], what: str) -> dict[Path, str]:
    """SHA-256 of several files, read in parallel; a log line says so if `what` is large."""
    paths = list(paths)
    unread = [s for s in map(signature, paths) if _recall(s) is None]
    if (size := sum(s.size for s in unread)) > TOLD_BYTES:
        log.info("%s: reading %.0f GB of files to identify them by content", what, size / 1e9)
    if len(unread) < 2 or size < LARGE_BYTES:
        return {path: sha256(path) for path in paths}
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(sha256, paths), strict=True))


def _recall(of: Signature) -> str | None:
    if not of.is_settled:
        return None
    if (known := _known.get(of)) is None and of.size >= LARGE_BYTES:
        known = _read(of)
        if known is not None:
            _known[of] = known
    return known


def _remember(of: Signature, found: str) -> None:
    _known[of] = found
    if of.size < LARGE_BYTES:
        return
    path = _entry(of)
    body = [list(of), found]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps([*body, sha256_text(json.dumps(body))]))
        temporary.replace(path)
    except OSError as error:
        log.debug("%s: cannot be written (%s); the file is read again next time", path, error)


def _read(of: Signature) -> str | None:
    try:
        said, found, check = json.loads(_entry(of).read_text())
        whole = check == sha256_text(json.dumps([said, found]))
    except (OSError, ValueError, TypeError):
        return None
    return str(found) if whole and said == list(of) else None


def _entry(of: Signature) -> Path:
    from kvx.config.folders import cache_dir

    name = hashlib.sha256(os.fsencode(of.path)).hexdigest()[:32]
    return cache_dir() / FOLDER / f"{name}.json"
