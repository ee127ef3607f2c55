"""One direction of a stream: short messages go out at once, a long frame chunk by chunk between them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from edgewise.engines.fleet.messages import CHUNK


class Line:
    """`make` turns a message's body into its envelope (`up` or `down`), `write` sends one."""

    __slots__ = ("_cargo", "_make", "_wake", "_words", "_write", "sent")

    def __init__(self, make: Callable[..., Any], write: Callable[[Any], Awaitable[Any]]) -> None:
        self._make, self._write = make, write
        self._words: deque[Any] = deque()
        self._cargo: Iterator[bytes] | None = None
        self._wake = asyncio.Event()
        self.sent = 0  # bytes of frames

    @property
    def waiting(self) -> int:
        """Messages that are not out yet."""
        return len(self._words)

    def say(self, **body: Any) -> None:
        """Send a message as soon as the line is free."""
        self._words.append(self._make(**body))
        self._wake.set()

    def push(
        self, frames: Sequence[bytes], start: int = 0, done: Callable[[], None] | None = None, **head: Any
    ) -> None:
        """Send `head` with all bytes of the frames from `start` on. What was being pushed is dropped.

        `head` is one message; its `data` and as many chunks as it takes hold the bytes.
        """
        ((kind, body),) = head.items()
        cargo = _chunks(frames, start, done)
        first = next(cargo, b"")
        self.sent += len(first)
        self.say(**{kind: {**body, "data": first}})
        self._cargo = cargo

    def drop(self) -> None:
        """Push no more of what is being pushed."""
        self._cargo = None

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            if self._words:
                await self._write(self._words.popleft())
            elif self._cargo is not None:
                if (data := self._next()) is not None:
                    self.sent += len(data)
                    await self._write(self._make(chunk={"data": data}))
            else:
                self._wake.clear()
                await self._wake.wait()

    async def flush(self, seconds: float) -> None:
        """Wait until all short messages are out, or so long: the other end may have stopped to listen."""
        until = time.monotonic() + seconds
        while self._words and time.monotonic() < until:
            await asyncio.sleep(0.005)

    def _next(self) -> bytes | None:
        assert self._cargo is not None
        data = next(self._cargo, None)
        if data is None:
            self._cargo = None
        return data


def _chunks(frames: Sequence[bytes], start: int, done: Callable[[], None] | None) -> Iterator[bytes]:
    for frame in frames:
        view = memoryview(frame)
        skipped = min(start, len(view))
        start -= skipped
        for offset in range(skipped, len(view), CHUNK):
            yield bytes(view[offset : offset + CHUNK])
    if done is not None:
        done()
