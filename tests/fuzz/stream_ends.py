"""The two ends of the stream under fuzz: a coordinator's courier, an agent; all real but the network."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "engines" / "fleet"))


from fleet_in_process import TINY, config, specks
from stream_words import Word, disturbed, varied

from edgewise import broadcast, wire
from edgewise.codecs import Sending
from edgewise.deploy import Share, assemble_coordinator, equip
from edgewise.engines.fleet import agent as agents
from edgewise.engines.fleet.agent import Agent
from edgewise.engines.fleet.courier import Courier
from edgewise.engines.fleet.digest import digest_of
from edgewise.engines.fleet.duty import Training
from edgewise.engines.fleet.ear import Ear
from edgewise.engines.fleet.journal import Journal
from edgewise.engines.fleet.keep import CURRENT, PENDING, Keep
from edgewise.engines.fleet.link import Disconnected, Link
from edgewise.engines.fleet.messages import EVALUATE, PROTOCOL, TRAIN, Down, Up, down
from edgewise.engines.fleet.policy import Policy
from edgewise.engines.fleet.roster import add, member
from edgewise.engines.fleet.screen import Screen
from edgewise.engines.fleet.segment import PAGE
from edgewise.engines.fleet.spool import Spool
from edgewise.engines.fleet.window import Window
from edgewise.errors import EdgewiseError

DEVICE, OTHER, EXAMPLES = 0, 1, 4


class Finding(Exception):
    """An end of the stream broke its word."""


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise Finding(what)


class Parts:
    """A run, and what both ends know of it."""

    def __init__(self, folder: Path) -> None:
        self.config = config(devices=2, partition="iid", codec="topk:0.5")
        self.dataset = specks()
        parts = assemble_coordinator(self.config, self.dataset)
        self.run, self.model = parts.fleet_run(folder), parts.model
        self.plan = self.run.plan(Policy(beat=100.0))
        self.screen = Screen(self.run.terms, self.run.layout, self.run.dtype)


class CoordinatorEnd:
    """`play` plays one conversation of device 0 in a round of its own."""

    way = "up"

    def __init__(self, parts: Parts, folder: Path) -> None:
        self.parts, self.journal = parts, Journal(folder / "journal.sqlite")
        self.spool, run = Spool(folder / "spool"), parts.run
        self.courier = Courier(run.id, parts.plan, run.longest, self.journal, self.spool, parts.screen)
        for device in (DEVICE, OTHER):
            add(self.journal, device, "device", f"print {device}").result()
        self.round, self.counts = 0, Counter[str]()

    def close(self) -> None:
        self.journal.close()

    def words(self, rng: Random) -> tuple[list[Word], int]:
        """What the device says, and the purpose of the window."""
        run, round, frame = self.parts.run, self.round, self.frame(rng)
        digest, purpose = bytes.fromhex(digest_of([frame])), rng.choice((TRAIN, TRAIN, TRAIN, EVALUATE))
        pending = {"pending_round": round, "pending_digest": digest, "in_hand": True}
        hello = {"protocol": PROTOCOL, "version": "1", "run": rng.choice(("", run.id)), "held": round - 1}
        ready = {"layout": self.parts.plan["layout"], "examples": 24, "tests": 12}
        size, start = rng.choice((100, 1 << 20)), rng.choice((0, 0, 50, len(frame), len(frame)))
        head = {"round": round, "digest": digest, "length": len(frame), "seconds": 0.1}
        pieces = [frame[at : at + size] for at in range(start, len(frame), size)]
        messages: list[tuple[str, dict[str, Any]]] = [
            ("hello", hello),
            ("ready", ready if rng.random() < 0.7 else {**ready, **pending}),
            ("beat", {"number": 1}),
            ("update", {**head, "data": frame[:start]}),
            *(("chunk", {"data": piece}) for piece in pieces),
            ("scores", {"round": round, "right": 3, "seen": 12, "loss": 1.0}),
            ("failure", {"round": round, "reason": "none"}),
        ]
        if purpose == TRAIN or rng.random() < 0.2:
            messages.pop(-1 if rng.random() < 0.2 else -2)
        return [varied("up", kind, body, rng) for kind, body in messages], purpose

    def frame(self, rng: Random) -> bytes:
        """An update of this round."""
        run, model = self.parts.run, self.parts.model
        update = torch.randn(run.layout.count, generator=torch.Generator().manual_seed(rng.randrange(100)))
        payload = run.terms.codec.encode(update.to(run.dtype), run.layout, {}, Sending(key=1))[0]
        agreed, buffers = run.terms.agreed, model.buffers.numpy().tobytes()
        marks = (wire.Kind.UPDATE, agreed.layout, agreed.codec)
        whole = wire.pack(wire.Frame(*marks, self.round, DEVICE, 0.5, EXAMPLES, payload, buffers))
        return bytes(whole if isinstance(whole, bytes | bytearray | memoryview) else b"".join(whole))

    async def play(self, rng: Random, number: int) -> None:
        """One conversation; Finding, or whatever escaped."""
        self.round = number + 1
        said, purpose = self.words(rng)
        await self.converse(disturbed(said, self.way, rng), purpose)

    async def converse(self, words: list[Word], purpose: int) -> None:
        """The device says this in a round of this purpose."""
        window = Window(self.round, (DEVICE, OTHER), 2, 2, lambda device, held: ({}, [b"task"]))
        self.courier.begin(window, purpose, lambda held: EXAMPLES)
        found = await asyncio.wrap_future(member(self.journal, DEVICE, f"print {DEVICE}"))
        stream = Stream(words)
        await self.courier.serve(found, stream)
        while self.courier.sessions:
            await asyncio.sleep(0)
        await self.check(window, purpose)
        self.counts.update(one.WhichOneof("body") for one in map(Down.FromString, stream.heard))
        self.spool.sweep(1 << 40)

    async def check(self, window: Window, purpose: int) -> None:
        demand(set(window.taken) <= {DEVICE} and not window.doubt, f"{window.taken} have answered")
        size = self.spool.size + self.spool.segment.size
        demand(size <= self.parts.run.longest + PAGE, f"{size} bytes in the spool")
        demand(not window.closed, "the round has ended without the other device")
        taken = await asyncio.wrap_future(self.journal.taken(self.parts.run.id, window.round, DEVICE))
        if purpose == TRAIN:
            demand((taken is not None) == (window.taken == [DEVICE]), "the journal and the round differ")
            self.counts["counted"] += taken is not None
        if taken is not None:
            demand(purpose == TRAIN, "an evaluation has taken an update")
            (place,) = await asyncio.wrap_future(
                self.journal.places(self.parts.run.id, window.round - 1)
            ) or [None]
            path = self.spool.segment.path if place else self.spool.file(window.round, DEVICE, taken)
            content = path.read_bytes()
            content = content[place.offset : place.offset + place.length] if place else content
            demand(digest_of([content]) == taken, "what counts is not what came")
            self.parts.screen.check(content, DEVICE, window.round, EXAMPLES)


class Stream:
    """What gRPC gives a session: `read` hears, `write` says."""

    def __init__(self, words: list[Word]) -> None:
        self._words, self.heard, self._begun = iter(words), list[bytes](), False

    async def send_initial_metadata(self, _: Any) -> None:
        assert not self._begun and not self.heard
        self._begun = True

    async def read(self) -> Any:
        await asyncio.sleep(0)
        word = next(self._words, grpc.aio.EOF)
        return word() if callable(word) else word

    async def write(self, data: bytes) -> None:
        self.heard.append(data)


class AgentEnd:
    """`play` plays one conversation of a coordinator with an agent."""

    way = "down"

    def __init__(self, parts: Parts, folder: Path) -> None:
        self.parts, self.folder = parts, folder / "homes"
        self.counts = Counter[str]()
        self.executor = ThreadPoolExecutor(1)
        self.share = Share(parts.config.partition, parts.config.devices, parts.config.seed)
        run, model = parts.run, parts.model
        way = broadcast.broadcast(run.down, run.layout, parts.config.seed)
        state = model.read().clone()
        way.announce(1, state)
        frame = wire.Frame(
            *(wire.Kind.STATE, run.terms.agreed.layout, bytes(8), 1, wire.EVERYONE, 1.0, 1),
            *(b"", state.buffers.numpy().tobytes()),
        )
        frames = broadcast.frames(way, DEVICE, frame, broadcast.marks(run.down))
        self.frames = [bytes(one) if isinstance(one, bytes) else b"".join(one) for one in frames]
        self.call: Call | None = None

    def close(self) -> None:
        self.executor.shutdown()

    def words(self, rng: Random) -> list[Word]:
        plan, content = self.parts.plan, b"".join(self.frames)
        size, start = rng.choice((500, 1 << 20)), rng.choice((0, 70))
        task = {
            "round": 1,
            "purpose": rng.choice((TRAIN, TRAIN, EVALUATE)),
            "lengths": [*map(len, self.frames)],
        }
        pieces = [content[at : at + size] for at in range(start, len(content), size)]
        first = [varied("down", "plan", plan, rng) if rng.random() < 0.3 else plain("plan", plan)]
        rest: list[Word] = [
            plain("beat", {"number": 1}),
            varied("down", "task", {**task, "data": content[:start]}, rng),
            *(plain("chunk", {"data": piece}) for piece in pieces),
            lambda: self.verdict(rng),
            varied("down", "task", {**task, "round": 2}, rng),
            varied("down", "farewell", {"kind": rng.choice((1, 2, 3)), "reason": "none"}, rng),
        ]
        return [*first, *first, *rest]

    def verdict(self, rng: Random) -> bytes:
        """On the update that has been sent."""
        assert self.call is not None
        update = self.call.update
        digest = update.digest if update is not None else bytes(32)
        body = {"round": 1, "digest": digest, "taken": rng.random() < 0.7, "again": rng.random() < 0.3}
        return varied("down", "verdict", body, rng)

    async def play(self, rng: Random, number: int) -> None:
        await self.converse(disturbed(self.words(rng), self.way, rng))

    async def converse(self, words: list[Word]) -> None:
        """The coordinator says this to an agent that has just been started."""
        folder = self.folder / "home"
        call = self.call = Call(words)
        link = Link(("nowhere:1",), DEVICE, None)
        agent = Agent(link, self.duty, lambda run: Keep(folder / run), self.executor, once=True)
        call.agent = agent
        real, agents.connect = agents.connect, call.connected  # type: ignore[assignment]
        try:
            await agent._stream("nowhere:1")
        except (Disconnected, EdgewiseError) as error:
            demand("\n" not in str(error), f"an error of several lines: {error}")
        finally:
            agents.connect = real
        while agent.working is not None:
            await asyncio.wait([agent.working])
        self.check(agent, folder, call)
        shutil.rmtree(folder, ignore_errors=True)

    def duty(self, plan: Any) -> Training:
        return Training(equip(plan, self.parts.dataset, DEVICE, self.share, (TINY,), "cpu"))

    def check(self, agent: Agent, folder: Path, call: Call) -> None:
        if agent._crash is not None:
            raise agent._crash
        self.counts.update(one.WhichOneof("body") for one in map(Up.FromString, call.said))
        files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
        depth = {path.relative_to(folder).parts[1:] for path in files}
        demand(depth <= {(CURRENT,), (PENDING,)}, f"files that are no memory: {files}")
        for kept in map(Keep, {path.parent for path in files}):
            demand(kept.round == 0 or kept.round in call.taken, "a memory moved on, and nobody said so")
            self.counts["moved on"] += kept.round > 0


class Attentive(Ear):
    """An ear that says whether somebody waits at it for the next message."""

    def __init__(self, read: Any) -> None:
        super().__init__(read)
        self._asked = False

    async def next(self) -> Any:
        self._asked = True
        try:
            return await super().next()
        finally:
            self._asked = False

    @property
    def waits(self) -> bool:
        return self._asked and self._found.empty()


class Call:
    """The agent's end of a stream, as gRPC gives it."""

    def __init__(self, words: list[Word]) -> None:
        self._words, self.said = iter(words), list[bytes]()
        self.update: Any = None
        self.taken: set[int] = set()
        self.agent: Any = None
        self.ear: Attentive | None = None
        self.over = False

    @asynccontextmanager
    async def connected(self, link: Link, address: str) -> AsyncIterator[tuple[Call, Ear]]:
        ear = self.ear = Attentive(self.read)
        try:
            yield self, ear
        finally:
            self.cancel()
            await ear.end()

    async def read(self) -> Any:
        await asyncio.sleep(0)
        word = next(self._words, grpc.aio.EOF)
        if callable(word):
            while not self.over and not self.settled():
                await asyncio.sleep(0.0005)
            word = word()
        if word is not grpc.aio.EOF:
            self._note(word)
        return word

    def settled(self) -> bool:
        """Whether the agent has heard all that came before (a message is read ahead), and has answered."""
        assert self.ear is not None
        agent = self.agent
        unsent = agent.line is not None and agent.outgoing is not None and self.update is None
        return self.ear.waits and agent.working is None and not unsent

    def _note(self, word: bytes) -> None:
        try:
            message = Down.FromString(word)
        except Exception:
            return
        if message.WhichOneof("body") == "verdict" and message.verdict.taken:
            self.taken.add(message.verdict.round)

    async def write(self, data: bytes) -> None:
        self.said.append(data)
        message = Up.FromString(data)
        if message.WhichOneof("body") == "update":
            self.update = message.update

    def cancel(self) -> None:
        self._words, self.over = iter(()), True

    async def code(self) -> Any:
        return grpc.StatusCode.UNAVAILABLE

    async def details(self) -> str:
        return "the conversation is over"


def plain(kind: str, body: dict[str, Any]) -> bytes:
    return bytes(down(**{kind: body}).SerializeToString())
