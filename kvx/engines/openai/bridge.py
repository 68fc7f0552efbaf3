"""An event loop in a thread of its own, behind an ordinary iterator.

What consumes the iterator writes files in between: in a loop of the same thread that would let
streams wait and time-outs run.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None


def iterate(work: Callable[[Callable[[T], None]], Awaitable[None]]) -> Iterator[T]:
    """What `work` hands to its argument, as it comes; raises what `work` raises.

    Closing the iterator cancels `work` and waits for it. So does an interruption, here or thrown
    in; what has arrived by then still comes before it is raised.
    """
    items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()

    async def whole() -> None:
        task = asyncio.current_task()
        assert task is not None
        begun.set_result((asyncio.get_running_loop(), task))
        try:
            await work(items.put)
        except BaseExceptionGroup as group:  # of tasks that ended together: the first says why
            raise group.exceptions[0] from None

    def run() -> None:
        end = _End()
        try:
            asyncio.run(whole())
        except BaseException as error:  # noqa: BLE001  raised again in the consumer's thread
            end = _End(error)
        finally:
            items.put(end)

    thread = threading.Thread(target=run, name="kvx-openai", daemon=True)
    thread.start()
    item: T | _End | None = None

    def stop() -> None:
        loop, task = begun.result()
        with contextlib.suppress(RuntimeError):  # it ended by itself just now
            loop.call_soon_threadsafe(task.cancel)
        thread.join()

    try:
        while not isinstance(item := items.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    except KeyboardInterrupt:
        stop()
        while not isinstance(item, _End):
            if not isinstance(item := items.get(), _End):
                yield item
        raise
    finally:
        if not isinstance(item, _End):
            stop()
        thread.join()


def call(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, from anywhere: also inside a notebook's running event loop."""

    async def once(put: Callable[[T], None]) -> None:
        put(await work())

    (result,) = iterate(once)
    return result
