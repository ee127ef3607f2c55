"""The reading end of a stream, for whoever may be cancelled.

gRPC writes what it reads into memory of the coroutine that waits for it. A coroutine that is cancelled
meanwhile frees that memory, and the process may end by SIGSEGV at any time after. So a task of its own reads,
which nobody cancels: it ends with its stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

SECONDS = 1.0  # for a read to come back once its channel is closed


class Ear:
    """`read` gives the next message, or `grpc.aio.EOF`. One message is read ahead."""

    def __init__(self, read: Callable[[], Awaitable[Any]]) -> None:
        self._found: asyncio.Queue[Any] = asyncio.Queue(1)
        self._closed = False
        self._task = asyncio.create_task(self._listen(read))

    async def next(self) -> Any:
        """What `read` gives, or raises."""
        found = await self._found.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """Nobody listens any more: what still comes is dropped."""
        self._closed = True
        while not self._found.empty():
            self._found.get_nowait()

    async def end(self) -> None:
        """Close, and wait until nothing is being read; the stream must be at its end."""
        self.close()
        await asyncio.wait([self._task], timeout=SECONDS)

    async def _listen(self, read: Callable[[], Awaitable[Any]]) -> None:
        while not self._closed:
            try:
                found = await read()
            except (Exception, asyncio.CancelledError) as error:
                found = error
            await self._found.put(found)
            if found is grpc.aio.EOF or isinstance(found, BaseException):
                return
