"""One direction of a stream: short messages go out at once, a long frame chunk by chunk between them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import grpc

from edgewise.engines.fleet.messages import CHUNK, carrying, chunk
from edgewise.wire import Bytes

RECENT = 8  # chunks that lines share
# What a write raises once its stream is at its end; whoever reads from the stream hears of it too.
BROKEN = (
    *(grpc.aio.AioRpcError, grpc.aio.AbortError, grpc.aio.InternalError, grpc.aio.UsageError),
    *(asyncio.CancelledError, asyncio.InvalidStateError, RuntimeError),
)


class Shared:
    """Chunks as messages, made once for all lines that are sent the same frames at about the same time.

    Only the last few are kept: a line that lags behind makes its own.
    """

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[int, bytes] = {}

    def message(self, number: int, parts: Sequence[Bytes]) -> bytes:
        """Chunk `number` of the frames, which these parts are."""
        found = self._made.get(number)
        if found is None:
            found = self._made[number] = chunk(parts)
            if len(self._made) > RECENT:
                del self._made[next(iter(self._made))]
        return found


class Line:
    """`make` turns a message's body into its envelope (`up` or `down`), `write` sends the bytes of one."""

    __slots__ = ("_busy", "_cargo", "_ended", "_make", "_wake", "_words", "_write", "_writing", "sent")

    def __init__(self, make: Callable[..., Any], write: Callable[[bytes], Awaitable[Any]]) -> None:
        self._make, self._write = make, write
        self._words: deque[Any] = deque()
        self._cargo: Iterator[bytes] | None = None
        self._wake = asyncio.Event()
        self._ended = False
        self._busy = False  # a message is being written
        self._writing: asyncio.Task[None] | None = None
        self.sent = 0  # bytes of frames

    @property
    def waiting(self) -> int:
        """Messages that are not out yet."""
        return len(self._words)

    def say(self, **body: Any) -> None:
        """Send a message as soon as the line is free."""
        self._words.append(self._make(**body).SerializeToString())
        self._wake.set()

    def push(
        self,
        frames: Sequence[Bytes],
        start: int = 0,
        done: Callable[[], None] | None = None,
        shared: Shared | None = None,
        **head: Any,
    ) -> None:
        """Send `head` with all bytes of the frames from `start` on. What was being pushed is dropped.

        `head` is one message; its `data` and as many chunks as it takes hold the bytes. They must not change
        meanwhile. A frame may come in pieces. `shared`: with other lines that push the same frames from the
        same `start` on.
        """
        chunks = _chunks(frames, start)
        first = next(chunks, [])
        self.sent += sum(map(len, first))
        self._words.append(carrying(self._make(**head), first))
        self._cargo = self._messages(chunks, shared or Shared(), done)
        self._wake.set()

    def drop(self) -> None:
        """Push no more of what is being pushed."""
        self._cargo = None

    def start(self) -> None:
        """Write, in a task of its own, until `end` or the end of the stream."""
        self._writing = asyncio.create_task(self._run())

    def end(self) -> None:
        """Write no more. What is being written comes to its end: gRPC would lose memory otherwise."""
        self._ended = True
        self._wake.set()

    async def _run(self) -> None:
        with suppress(*BROKEN):
            await self._write_on()

    async def _write_on(self) -> None:
        while not self._ended:
            if self._words:
                await self._put(self._words.popleft())
            elif self._cargo is not None:
                if (message := self._next()) is not None:
                    await self._put(message)
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _put(self, message: bytes) -> None:
        self._busy = True
        try:
            await self._write(message)
        finally:
            self._busy = False

    async def flush(self, seconds: float) -> None:
        """Wait until all short messages are out, or so long: the other end may have stopped to listen."""
        until = time.monotonic() + seconds
        while (self._words or self._busy) and time.monotonic() < until:
            await asyncio.sleep(0.005)

    def _next(self) -> bytes | None:
        assert self._cargo is not None
        message = next(self._cargo, None)
        if message is None:
            self._cargo = None
        return message

    def _messages(
        self, chunks: Iterator[list[memoryview]], shared: Shared, done: Callable[[], None] | None
    ) -> Iterator[bytes]:
        for number, parts in enumerate(chunks):
            self.sent += sum(map(len, parts))
            yield shared.message(number, parts)
        if done is not None:
            done()


def _chunks(frames: Sequence[Bytes], start: int) -> Iterator[list[memoryview]]:
    """The bytes from `start` on, up to CHUNK of them at a time, in parts that are views."""
    parts, room = list[memoryview](), CHUNK
    for frame in frames:
        skipped = min(start, len(frame))
        start -= skipped
        rest = memoryview(frame)[skipped:]
        while rest:
            parts.append(rest[:room])
            rest, room = rest[room:], room - len(parts[-1])
            if not room:
                yield parts
                parts, room = [], CHUNK
    if parts:
        yield parts
