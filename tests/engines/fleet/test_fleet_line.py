"""One direction of a stream: what is pushed arrives whole from any byte on, and words go between chunks."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.engines.fleet import line as lines
from edgewise.engines.fleet.digest import Digest, digest_of
from edgewise.engines.fleet.line import RECENT, Line, Shared
from edgewise.engines.fleet.messages import CHUNK, Down, Up, down, up

SMALL = 8  # bytes of a chunk in most of these tests


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "CHUNK", SMALL)


class Wire:
    """What was written, in order; each write may be held up."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.before: Callable[[int], None] = lambda number: None
        self.room = asyncio.Event()
        self.room.set()

    async def write(self, message: bytes) -> None:
        await self.room.wait()
        self.before(len(self.messages))
        self.messages.append(Down.FromString(message))
        await asyncio.sleep(0)

    @property
    def kinds(self) -> list[str]:
        return [message.WhichOneof("body") for message in self.messages]

    def bytes(self, head: str) -> bytes:
        """Those of the last message of this kind and of the chunks after it."""
        start = len(self.messages) - 1 - self.kinds[::-1].index(head)
        rest = [one.chunk.data for one in self.messages[start:] if one.WhichOneof("body") == "chunk"]
        return b"".join([getattr(self.messages[start], head).data, *rest])


def play(test: Callable[[Line, Wire], Coroutine[Any, Any, None]]) -> Wire:
    """Run a test beside a line that writes."""

    async def both() -> Wire:
        wire = Wire()
        line = Line(down, wire.write)
        line.start()
        await test(line, wire)
        line.end()
        return wire

    return asyncio.run(both())


async def quiet(line: Line, wire: Wire) -> None:
    """Until nothing has been written for a while that is long for this loop."""
    seen = -1
    while seen != len(wire.messages):
        seen = len(wire.messages)
        for _ in range(20):
            await asyncio.sleep(0)


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=30), max_size=4), st.data())
def test_all_bytes_of_all_frames_from_any_offset(frames: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(frames)
    start = data.draw(st.integers(0, len(whole)))
    done: list[int] = []

    async def push(line: Line, wire: Wire) -> None:
        line.push(frames, start, lambda: done.append(1), task={"round": 3})
        await quiet(line, wire)

    wire = play(push)
    assert wire.bytes("task") == whole[start:] and wire.messages[0].task.round == 3
    assert done == [1]
    assert all(len(one.chunk.data) <= SMALL for one in wire.messages[1:])


@pytest.mark.parametrize("start", range(0, 27))
def test_every_offset_of_three_frames(start: int) -> None:
    frames = [b"abcdefgh", b"", b"ijklmnopqrstuvwxyz"]

    async def push(line: Line, wire: Wire) -> None:
        line.push(frames, start, task={"round": 1})
        await quiet(line, wire)
        assert line.sent == 26 - start

    assert play(push).bytes("task") == b"".join(frames)[start:]


def test_words_go_between_chunks() -> None:
    async def talk(line: Line, wire: Wire) -> None:
        wire.before = lambda number: line.say(beat={"number": number}) if number in (2, 3) else None
        line.push([bytes(range(48))], task={"round": 1})
        await quiet(line, wire)

    wire = play(talk)
    assert wire.kinds[:2] == ["task", "chunk"] and wire.kinds[-1] == "chunk"
    assert wire.kinds.index("beat") == 3  # the next one after the chunk during which it was said
    assert wire.bytes("task") == bytes(range(48))


def test_words_keep_their_order() -> None:
    async def talk(line: Line, wire: Wire) -> None:
        for number in range(100):
            line.say(beat={"number": number})
        assert line.waiting == 100
        await line.flush(60)
        await quiet(line, wire)

    assert [one.beat.number for one in play(talk).messages] == [*range(100)]


def test_a_word_is_out_once_it_is_written() -> None:
    """Not when its writing has begun: a stream that ends meanwhile tells the other end nothing."""

    async def talk(line: Line, wire: Wire) -> None:
        wire.room.clear()
        line.say(beat={"number": 1})
        while line.waiting:
            await asyncio.sleep(0)
        flushed = asyncio.create_task(line.flush(60))
        await asyncio.sleep(0.05)
        assert not flushed.done()
        wire.room.set()
        await flushed

    assert play(talk).kinds == ["beat"]


def test_a_new_push_takes_the_place_of_the_one_before() -> None:
    async def push(line: Line, wire: Wire) -> None:
        wire.before = lambda number: line.push([b"new" * 8], task={"round": 2}) if number == 2 else None
        line.push([b"old" * 100], task={"round": 1})
        await quiet(line, wire)

    wire = play(push)
    assert [one.task.round for one in wire.messages if one.WhichOneof("body") == "task"] == [1, 2]
    assert wire.bytes("task") == b"new" * 8  # after its head not a byte of the other


def test_two_pushes_before_anything_was_written() -> None:
    async def push(line: Line, wire: Wire) -> None:
        line.push([b"old" * 100], task={"round": 1})
        line.push([b"new" * 8], task={"round": 2})
        await quiet(line, wire)

    assert play(push).bytes("task") == b"new" * 8


def test_dropping_what_is_pushed() -> None:
    async def push(line: Line, wire: Wire) -> None:
        wire.before = lambda number: line.drop() if number == 2 else None
        line.push([bytes(800)], task={"round": 1})
        await quiet(line, wire)
        line.say(beat={"number": 1})
        await quiet(line, wire)

    assert play(push).kinds == ["task", "chunk", "chunk", "beat"]


def test_what_is_said_when_all_is_out_is_not_forgotten() -> None:
    async def push(line: Line, wire: Wire) -> None:
        line.push([bytes(20)], 0, lambda: line.say(beat={"number": 7}), task={"round": 1})
        await quiet(line, wire)

    assert play(push).kinds == ["task", "chunk", "chunk", "beat"]


def test_nothing_is_read_ahead_of_a_slow_reader() -> None:
    """A frame is one block of memory, and one chunk of it a copy: not more, however slow the other end is."""

    async def push(line: Line, wire: Wire) -> None:
        wire.room.clear()
        line.push([bytes(800)], task={"round": 1})
        await quiet(line, wire)
        assert line.sent == SMALL and wire.messages == []
        wire.room.set()
        await quiet(line, wire)
        assert line.sent == 800

    play(push)


def test_chunks_of_the_real_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "CHUNK", CHUNK)
    frames: Sequence[bytes] = [bytes([1]) * (CHUNK + 1), bytes([2]) * (2 * CHUNK)]

    async def push() -> list[int]:
        sizes: list[int] = []

        async def write(data: bytes) -> None:
            message = Up.FromString(data)
            kind = message.WhichOneof("body")
            sizes.append(len(getattr(message, kind).data))

        line = Line(up, write)
        line.start()
        line.push(frames, update={"round": 1})
        while sum(sizes) < 3 * CHUNK + 1:
            await asyncio.sleep(0)
        line.end()
        return sizes

    assert asyncio.run(push()) == [CHUNK, CHUNK, CHUNK, 1]


# ---- lines that are sent the same ----


@pytest.mark.parametrize("lag", [0, 1, 3 * RECENT])
def test_lines_that_push_the_same_share_its_chunks_while_they_keep_up(lag: int) -> None:
    frame = bytes(range(256)) * SMALL
    chunks = len(frame) // SMALL - 1  # the first bytes go with the head

    async def lagging() -> tuple[Wire, Wire, int]:
        shared, one, two = Shared(), Wire(), Wire()
        made = set[int]()

        def noted(number: int, parts: Sequence[Any], real: Any = shared.message) -> bytes:
            message: bytes = real(number, parts)
            alive.append(message)  # so that no other message gets its place
            made.add(id(message))
            return message

        alive, sharing = list[bytes](), type("Noting", (), {"message": staticmethod(noted)})()
        two.room.clear()
        for wire in (one, two):
            line = Line(down, wire.write)
            line.start()
            line.push([frame], shared=sharing, task={"round": 1})
        while len(two.messages) < chunks + 1:
            if len(one.messages) > min(lag, chunks):
                two.room.set()
            await asyncio.sleep(0)
        return one, two, len(made)

    one, two, made = asyncio.run(lagging())
    assert one.bytes("task") == two.bytes("task") == frame
    assert made == chunks if lag < RECENT else made > 1.5 * chunks


def test_a_digest_is_the_published_one_however_the_bytes_come() -> None:
    # Of nothing, and of 1,023 bytes that count up to 250: the test vectors of the BLAKE3 repository.
    assert digest_of([]) == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    data = bytes(i % 251 for i in range(1023))
    assert digest_of([data]) == "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11"
    digest = Digest()
    for byte in range(0, len(data), 100):
        digest.add(memoryview(data)[byte : byte + 100])
    assert digest.hex == digest_of([data[:5], data[5:]]) == digest_of([data])
