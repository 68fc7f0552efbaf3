"""Work shared by forked processes: they see what this one has, and send back what they find."""

import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from kvx.identity.provenance import usable_cores

T = TypeVar("T")
R = TypeVar("R")

FORK: Any = multiprocessing.get_context("fork" if sys.platform != "win32" else None)
MOST = 8  # processes: each takes some 200 MiB of its own
_work: Callable[[int], Any]  # what forked processes do; they inherit it


def processes(n_rows: int, least: int = 50_000) -> int:
    """How many processes pay for so many rows: 1 for little work, or where none can be forked."""
    if n_rows < least or not sys.platform.startswith("linux"):
        return 1
    return min(usable_cores(), MOST)


def in_order(function: Callable[[T], R], items: Sequence[T], n_processes: int) -> Iterator[R]:
    """`function` of each item, in the items' order, by `n_processes` forks of this process.

    Neither function nor items are sent, so they may be anything; results are pickled. The first
    error is raised here. With one process, or one item, nothing is forked.
    """
    if min(n_processes, len(items)) < 2:
        yield from map(function, items)
        return
    with _pool(lambda i: function(items[i]), min(n_processes, len(items))) as submit:
        waiting = [submit(i) for i in range(len(items))]
        for future in waiting:
            yield future.result()


@contextmanager
def beside(function: Callable[[], R], n_processes: int) -> Iterator[Callable[[], R]]:
    """Start `function` in a fork; call what this gives to wait for its result or error.

    With one process it is run when it is asked for. A fork that is not waited for is ended.
    """
    if n_processes < 2:
        yield function
        return
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send, args=(function, sender))
    with _no_warning():
        process.start()
    sender.close()

    def wait() -> R:
        try:
            found, error = receiver.recv()
        except EOFError:
            process.join()
            raise BrokenProcessPool(f"a process ended with code {process.exitcode}") from None
        if error is not None:
            raise error
        value: R = found
        return value

    try:
        yield wait
    finally:
        process.terminate()
        process.join()


def _send(function: Callable[[], Any], sender: Connection) -> None:
    _quiet()
    try:
        sender.send((function(), None))
    except Exception as error:  # noqa: BLE001  raised where it is waited for
        sender.send((None, error))


@contextmanager
def _pool(work: Callable[[int], Any], n: int) -> Iterator[Callable[[int], "Future[Any]"]]:
    global _work
    _work = work
    pool = ProcessPoolExecutor(n, FORK, initializer=_quiet)
    try:
        with _no_warning():
            yield lambda i: pool.submit(_call, i)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _no_warning() -> Iterator[None]:
    """What Python 3.12 says of forks: the threads are libraries' idle ones, which hold no lock."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        yield


def _quiet() -> None:
    """Ctrl-C is for the parent, which ends its forks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _call(number: int) -> Any:
    return _work(number)
