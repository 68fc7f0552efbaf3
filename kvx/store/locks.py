"""Who works on a point: kernel locks, freed whatever way their holder ends.

Every point directory has a `.lock` file. The parent of a run claims its points exclusively,
prepares them, and shares the claim with its workers, which join the points they write to. A second
parent is refused until the last of them is gone. There is a lock per point, not per sweep, because
sweeps may overlap and `kvx.status` asks for each point who is at work. The price is an open file
per point and process, so the soft limit is raised as needed. filelock and portalocker cannot turn
an exclusive claim into a shared one.
"""

import errno
import fcntl
import logging
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

from kvx.errors import UserError

log = logging.getLogger(__name__)
LOCK = ".lock"
CLAIM_WAIT_S = 0.3  # longer than `is_held` holds a lock
JOIN_WAIT_S = 10.0  # longer than a refused claim holds the locks it got
SPARE_FILES = 256  # for everything that is not a lock
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_BUSY = (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR)


class Claim(AbstractContextManager["Claim"]):
    """Locks on points; a context manager that frees them."""

    def __init__(self, handles: dict[Path, int]) -> None:
        self._handles = handles

    def share(self) -> None:
        """Let workers join; another claim still fails.

        The kernel converts a lock by freeing it first. Raises `UserError` if another parent takes
        it in between.
        """
        for folder, handle in self._handles.items():
            _wait(handle, fcntl.LOCK_SH, JOIN_WAIT_S, folder)

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles = {}

    def __exit__(self, *_: object) -> None:
        self.close()


def claim(folders: Sequence[Path]) -> Claim:
    """Lock all `folders` (made if need be) for this process alone.

    Raises `UserError`, and holds nothing, if another process works on any of them.
    """
    return _take(folders, fcntl.LOCK_EX, CLAIM_WAIT_S)


def join(folder: Path) -> Claim:
    """A worker's share in a point that its parent has claimed.

    Raises `UserError` if another process holds the point alone.
    """
    return _take([folder], fcntl.LOCK_SH, JOIN_WAIT_S)


def is_held(folder: Path) -> bool:
    """Whether any process works on the point; False where the file system has no locks."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # never claimed, or not ours to lock
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _BUSY
    finally:
        os.close(handle)
    return False


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock file `path` alone, waiting for it as long as it takes."""
    handle = _open(path)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            _unless_unsupported(error, path)
        yield
    finally:
        os.close(handle)


def _take(folders: Sequence[Path], mode: int, wait_s: float) -> Claim:
    handles: dict[Path, int] = {}
    try:
        for folder in sorted(set(folders)):  # in one order, so that one of two parents gets all
            folder.mkdir(parents=True, exist_ok=True)
            handles[folder] = _open(folder / LOCK)
            _wait(handles[folder], mode, wait_s, folder)
    except BaseException:
        Claim(handles).close()
        raise
    return Claim(handles)


def _wait(handle: int, mode: int, wait_s: float, folder: Path) -> None:
    """Lock within `wait_s` seconds, or raise `UserError`."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, mode | fcntl.LOCK_NB)
            return None
        except OSError as error:
            if error.errno not in _BUSY:
                return _unless_unsupported(error, folder)
        if time.monotonic() > deadline:
            raise UserError(
                f"{folder}: another process is working on this point; wait for it or stop it"
            )
        time.sleep(0.02)


def _unless_unsupported(error: OSError, path: Path) -> None:
    if error.errno not in _UNSUPPORTED:
        raise error
    _warn()
    log.debug("no lock on %s: %s", path, error)


@cache
def _warn() -> None:
    log.warning(
        "this file system has no locks: start no second run of the same points while one is going"
    )


def _open(path: Path) -> int:
    try:
        # read and write, or network file systems give no lock
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.EMFILE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            raise UserError(
                f"{path.parent}: too many points at once for this system's limit of {limit} open "
                "files; raise it (ulimit -Hn) or sweep fewer points"
            ) from None
        raise
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and handle > soft - SPARE_FILES:
        wanted = 2 * soft if hard == resource.RLIM_INFINITY else min(2 * soft, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, soft), hard))
    return handle
