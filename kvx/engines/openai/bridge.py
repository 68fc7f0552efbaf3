"""An event loop in a thread of its own, behind an ordinary iterator.

What consumes the iterator writes files in between: in a loop of the same thread that would let
streams wait and time-outs run.
"""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None


def iterate(work: Callable[[Callable[[T], None]], Awaitable[None]]) -> Iterator[T]:
    """What `work` hands to its argument, as it comes; raises what `work` raises.

    Closing the iterator (or an exception in its consumer) cancels `work` and waits for it.
    """
    items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(_whole(work, items.put))

    def run() -> None:
        try:
            loop.run_until_complete(task)
            end = _End()
        except BaseException as error:
            end = _End(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        items.put(end)

    thread = threading.Thread(target=run, name="kvx-openai", daemon=True)
    thread.start()
    try:
        while not isinstance(item := items.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


async def _whole(
    work: Callable[[Callable[[T], None]], Awaitable[None]], put: Callable[[T], None]
) -> None:
    try:
        await work(put)
    except BaseExceptionGroup as group:  # of tasks that ended together: the first says why
        raise group.exceptions[0] from None


def call(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, from anywhere: also inside a notebook's running event loop."""

    async def once(put: Callable[[T], None]) -> None:
        put(await work())

    (result,) = iterate(once)
    return result
