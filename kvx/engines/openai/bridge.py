"""An event loop in its own thread, behind an ordinary iterator.

The consumer of the iterator writes files in between; in a loop of the same thread, streams would
wait for that and time-outs would run.
"""

import queue
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from anyio.from_thread import start_blocking_portal

T = TypeVar("T")


def iterate(work: Callable[[Callable[[T], None]], Awaitable[None]]) -> Iterator[T]:
    """Yield what `work` hands to its argument, as it comes; raises what `work` raises.

    Closing the iterator cancels `work` and waits for it. So does an interruption, here or thrown
    in; what arrived until then is still yielded before it is raised. Every await of a cancelled
    `work` is cancelled: a clean-up that awaits needs `anyio.CancelScope(shield=True)`.
    """
    items: queue.SimpleQueue[T | Future[None]] = queue.SimpleQueue()
    interrupted: KeyboardInterrupt | None = None
    with start_blocking_portal() as portal:
        ended: Future[None] = portal.start_task_soon(work, items.put)
        ended.add_done_callback(items.put)
        try:
            while not isinstance(item := items.get(), Future):
                yield item
        except KeyboardInterrupt as error:
            interrupted = error
        finally:
            ended.cancel()
    while not items.empty():
        if not isinstance(item := items.get(), Future):
            yield item
    if interrupted is not None:
        raise interrupted
    try:
        ended.result()
    except BaseExceptionGroup as group:  # of tasks that ended together: the first says why
        raise group.exceptions[0] from None


def call(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, also inside a notebook's running event loop."""
    with start_blocking_portal() as portal:
        return portal.call(work)
