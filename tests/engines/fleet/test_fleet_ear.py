"""The ear: who listens may be cancelled, and what reads is not."""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
import pytest

from edgewise.engines.fleet.ear import Ear


class Stream:
    """Gives what it is given to give, once there is `room`; says whether a read was cancelled."""

    def __init__(self, messages: Iterable[Any]) -> None:
        self.messages, self.reads, self.cut = list(messages), 0, False
        self.room = asyncio.Event()

    async def read(self) -> Any:
        self.reads += 1
        try:
            await self.room.wait()
        except asyncio.CancelledError:
            self.cut = True
            raise
        await asyncio.sleep(0)
        found = self.messages.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found


def test_messages_come_in_order_and_one_is_read_ahead() -> None:
    async def play() -> None:
        stream = Stream([b"1", b"2", b"3", grpc.aio.EOF])
        ear = Ear(stream.read)
        stream.room.set()
        await asyncio.sleep(0.01)
        assert stream.reads == 2  # one lies ready, one waits for its place
        assert [await ear.next() for _ in range(4)] == [b"1", b"2", b"3", grpc.aio.EOF]
        await ear.end()
        assert stream.reads == 4

    asyncio.run(play())


def test_who_listens_is_cancelled_and_what_reads_is_not() -> None:
    async def play() -> None:
        stream = Stream([b"1", grpc.aio.EOF])
        ear = Ear(stream.read)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ear.next(), 0.01)
        assert not stream.cut and stream.reads == 1
        stream.room.set()
        assert await ear.next() == b"1"
        await ear.end()
        assert not stream.cut

    asyncio.run(play())


@pytest.mark.parametrize("error", [RuntimeError("broken"), asyncio.CancelledError()])
def test_what_a_read_raises_is_raised_to_who_listens(error: BaseException) -> None:
    async def play() -> None:
        stream = Stream([b"1", error])
        stream.room.set()
        ear = Ear(stream.read)
        assert await ear.next() == b"1"
        with pytest.raises(type(error)):
            await ear.next()
        await ear.end()
        assert stream.reads == 2

    asyncio.run(play())


@pytest.mark.parametrize("listened", range(3))
def test_what_is_closed_reads_to_its_end_and_drops_what_comes(listened: int) -> None:
    async def play() -> None:
        stream = Stream([b"1", b"2", b"3", b"4", grpc.aio.EOF])
        ear = Ear(stream.read)
        stream.room.set()
        for _ in range(listened):
            await ear.next()
        await asyncio.sleep(0.01)
        await ear.end()
        assert not stream.cut and stream.reads <= listened + 3

    asyncio.run(play())
