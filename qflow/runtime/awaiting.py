"""Awaiting: steps written with ``async def``. Their coroutines run on one event loop of the process, in a thread of its own.

A thread of the step waits for each, so that ``n`` of them are at work at once, and order, errors and replay are those of any
other step. One loop for all, for what coroutines share (a session, a pool of connections) belongs to a loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from functools import partial
from typing import Any

from qflow.runtime.needs import start_thread


class Loop:
    """An event loop in a thread of its own, which begins with the first that is waited for, and ends with `close`."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._ended = threading.Event()

    def wait(self, given: Any) -> Any:
        """What comes of what an ``async def`` gave: the result of a coroutine, or an iterator of an async generator's values."""
        return self._values(given) if isinstance(given, AsyncIterator) else self._result(_awaited(given))

    def close(self) -> None:
        """End it; nobody may wait any more."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._ended.wait()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self._thread = threading.get_ident()
        try:
            loop.run_forever()
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
            self._ended.set()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                start_thread("qflow-loop", partial(self._run, self._loop))
            return self._loop

    def _result(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop or self._started())
        if threading.get_ident() == self._thread:  # an iterator is closed, that was collected as garbage just here
            return None
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C, in the serial engine
            raise

    def _values(self, given: AsyncIterator[Any]) -> Iterator[Any]:
        async def following() -> tuple[Any, ...]:
            async for value in given:
                return (value,)
            return ()

        try:
            while found := self._result(following()):
                yield found[0]
                del found  # not kept alive while the next one is made
        finally:
            close = getattr(given, "aclose", None)
            if close is not None:
                self._result(_awaited(close()))


async def _awaited(given: Awaitable[Any]) -> Any:
    return await given


of_worker = Loop()
"""That of a worker process, which lasts as long."""
