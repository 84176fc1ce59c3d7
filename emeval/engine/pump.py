"""From a coroutine that emits items to a plain iterator, with nothing left behind when the iterator is dropped."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Emit = Callable[[T], Awaitable[None]]


def stream(produce: Callable[[Emit[T]], Awaitable[None]], room: int) -> Iterator[T]:
    """Run `produce(emit)` in an event loop of its own and yield what it emits.

    The loop lives in a thread, so that requests go on while the consumer is busy, and so that it works where a loop
    already runs (a notebook). `emit` waits while `room` items are not yet consumed, which keeps memory flat. Closing
    the iterator, or an interrupt, cancels the coroutine and waits until it has cleaned up.

    Raises:
        Exception: Whatever `produce` raises, after the items emitted before.
    """
    pump = _Pump(produce, room)
    try:
        yield from pump.items()
    finally:
        pump.stop()


class _Pump(Generic[T]):
    def __init__(self, produce: Callable[[Emit[T]], Awaitable[None]], room: int) -> None:
        self._produce = produce
        self._out: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(room)
        self._ready = threading.Event()
        # A daemon, so that a second interrupt while it cleans up can still end the program.
        self._thread = threading.Thread(target=self._run, name="emeval-pump", daemon=True)
        self._thread.start()
        self._ready.wait()

    def items(self) -> Iterator[T]:
        while (item := self._out.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._in_loop(self._room.release)
            yield item[0]

    def stop(self) -> None:
        if self._task:
            self._in_loop(self._task.cancel)
        self._thread.join()

    def _in_loop(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(call)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._ready.set()
        try:
            await self._produce(self._emit)
        except Exception as error:
            self._out.put(error)
        else:
            self._out.put(None)

    async def _emit(self, item: T) -> None:
        await self._room.acquire()
        self._out.put((item,))


async def run_all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them together; the first failure cancels the rest and is raised as itself, not as a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
