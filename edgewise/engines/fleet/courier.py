"""The coordinator's end of all streams: who is there, what they are sent, and what becomes of their answers.

It lives on one event loop in a thread of its own. The engine (`fleet.py`) hands it a window, and waits for
the window's answers in another thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from typing import Any, TypeVar

import grpc

from edgewise.allocator import Rest, give_back
from edgewise.device import Reply
from edgewise.engines.fleet.faults import Fault
from edgewise.engines.fleet.journal import Entry, Journal
from edgewise.engines.fleet.messages import FINISHED, REFUSED, STOPPING, TRAIN
from edgewise.engines.fleet.metrics import Metrics
from edgewise.engines.fleet.referee import Referee
from edgewise.engines.fleet.roster import Member, flag
from edgewise.engines.fleet.screen import Screen
from edgewise.engines.fleet.segment import Whole
from edgewise.engines.fleet.session import Session
from edgewise.engines.fleet.spool import Arrival, Spool
from edgewise.engines.fleet.window import Taken, Window
from edgewise.errors import EdgewiseError

T = TypeVar("T")
BRIEF = 1 << 20  # bytes of a vector that is looked at faster than another thread could be asked to
SMALL = 1 << 22  # bytes of a vector of which several may be in memory at once
HOT = 1 << 26  # bytes of a round's updates that are kept in memory: what is beyond lies in the spool
SILENT = 3  # beats without a word after which a stream is given up
log = logging.getLogger("edgewise.coordinator")


class Courier:
    """`plan`: what every agent is told. `longest`: bytes of an update's frame at most."""

    def __init__(
        self, run: str, plan: dict[str, Any], longest: int, journal: Journal, spool: Spool, screen: Screen
    ) -> None:
        self.run, self.plan, self.longest = run, plan, longest
        self.journal, self.spool, self.screen = journal, spool, screen
        self.version = version("edgewise")
        self.metrics, self.fault, self.referee = Metrics(), Fault(None, ()), Referee(self)
        journal.segment = spool.segment
        spool.segment.reached = lambda point, round: self.fault.reached(point, round)
        self.sessions: dict[int, Session] = {}
        self.revoked: set[int] = set()
        self.window: Window | None = None
        self.purpose = TRAIN
        self.owed: Callable[[int], int] = lambda held: 0  # see `begin`
        self._disk = ThreadPoolExecutor(4, "disk")
        self._look = ThreadPoolExecutor(1, "screen")  # long updates one at a time, not all in memory at once
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: tuple[int, str] | None = None
        self._begun = asyncio.Event()  # a window, by this process

    # ---- who is there ----

    async def serve(self, member: Member, context: Any) -> None:
        """Hold the stream of one agent."""
        # Else the first message begins the stream; gRPC fails to end one whose first message is on its way.
        await context.send_initial_metadata(())
        if self._ending is not None:
            session = Session(self, member, context)
            session.line.start()
            await session.dismiss(self._ending[1], self._ending[0])
            session.line.end()
            return
        self.revoked.discard(member.id)  # it may have joined anew
        while (old := self.sessions.get(member.id)) is not None:  # another one may come while this waits
            await self._replace(old)
        if member.id in self.revoked:  # meanwhile
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"device {member.id} was revoked")
        session = self.sessions[member.id] = Session(self, member, context)
        try:
            await session.run(context.read)
        except asyncio.CancelledError:
            pass  # gRPC tells the agent of the end of what returns, and not of what is cancelled
        finally:  # no waiting here: gRPC cancels a task whose stream has ended, whatever it is at
            session.ready = False
            session.left.set()
            if session.completing is None or session.completing.done():
                self._gone(session)
            else:  # until then the device's next stream has to wait
                session.completing.add_done_callback(lambda _: self._gone(session))

    def _gone(self, session: Session) -> None:
        if self.sessions.get(session.device) is session:
            del self.sessions[session.device]
            self._count()
            log.info("gone", extra={"device": session.device})
            self.referee.moved()

    async def _replace(self, old: Session) -> None:
        """The device has come again, by a new stream: what the old one had in hand is concluded first."""
        self.note("replaced", "its earlier stream was still open", device=old.device)
        if old.task is not None:
            old.task.cancel()
        await old.left.wait()  # not for its task, which then tells an agent that may be gone
        if old.completing is not None:
            await asyncio.wait([old.completing])
        self._gone(old)

    def arrived(self, session: Session, coming: bool) -> None:
        """A device is there; `coming`: its update of the open round is on its way, and needs no task."""
        log.info("ready", extra={"device": session.device})
        self._count()
        if not coming:
            self.push(session.device)
        self.referee.moved()

    def present(self) -> set[int]:
        """Devices that can be asked; another thread may want to know."""
        return {device for device, session in list(self.sessions.items()) if session.ready}

    def expel(self, device: int, reason: str) -> None:
        """End a revoked device's stream at once; no round waits for it."""
        if (session := self.sessions.get(device)) is not None:
            self._cut(session, reason)
        self.revoked.add(device)
        if self.window is not None and self.window.waits_for(device):
            self.window.excuse(device, reason)
            self.referee.reinforce(self.window)
            self.referee.consider(self.window)

    def supersede(self, device: int, fingerprint: str) -> None:
        """The device has this certificate from now on: whoever came with the one before is sent away."""
        session = self.sessions.get(device)
        if session is not None and session.member.fingerprint != fingerprint:
            self._cut(session, f"device {device} has another certificate by now")

    def _cut(self, session: Session, reason: str) -> None:
        session.ready = False
        session.line.say(farewell={"kind": REFUSED, "reason": reason})
        if session.task is not None:
            self.later(0.2, session.task.cancel)

    def _count(self) -> None:
        self.metrics.connected.set(len(self.present()))

    async def watch(self, beat: float) -> None:
        """Give up streams that have gone silent, and the memory that many newcomers left behind."""
        rest = Rest()
        while True:
            await asyncio.sleep(beat)
            if self._ending is None and rest.due(len(self.sessions)):
                self._disk.submit(give_back)
            limit = time.monotonic() - SILENT * beat
            for session in list(self.sessions.values()):
                if session.heard < limit and session.task is not None:
                    self.note("silent", f"nothing heard for {SILENT * beat:g} s", device=session.device)
                    session.task.cancel()

    # ---- a window ----

    def begin(self, window: Window, purpose: int, owed: Callable[[int], int]) -> None:
        """Open a window: its devices are sent their task as soon as they are there.

        `owed`: how many examples the update of a device that holds so many stands for.
        """
        self.window, self.purpose, self.owed = window, purpose, owed
        self._begun.set()
        self._disk.submit(self.spool.cool, window.round - 1)  # its updates are in the state by now
        self.metrics.round.set(window.round)
        for device in window.asked:
            if device in self.revoked and window.waits_for(device):
                window.excuse(device, "it was revoked")  # since the round was opened
            else:
                self.push(device)
        self.referee.moved()
        if window.enough and not window.valid:
            self.referee.reinforce(window)
        self.referee.consider(window)

    def push(self, device: int) -> None:
        """Send a device the task that the window has for it, if both are there."""
        window, session = self.window, self.sessions.get(device)
        if window is None or session is None or not session.ready or not window.waits_for(device):
            return
        frames = window.load(device, session.held)
        lengths = [sum(map(len, pieces)) for pieces in frames]
        body = {"round": window.round, "purpose": self.purpose, "lengths": lengths}
        pieces = [piece for frame in frames for piece in frame]
        session.line.push(
            pieces, done=lambda: self.metrics.sent.inc(sum(lengths)), shared=window.shared(frames), task=body
        )
        window.pushed.setdefault(device, time.monotonic())
        self.fault.reached("pushed", window.round)

    async def reopened(self, session: Session, round: int) -> None:
        """Where this process has not come yet to a round that waits for the device: wait until it has."""
        if self._begun.is_set():
            return
        opened = await asyncio.wrap_future(self.journal.round(self.run, round))
        if opened is None or opened.closed or session.device in opened.taken:
            return
        while not self._begun.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), self.plan["beat"])
            session.heard = time.monotonic()
            session.line.say(beat={"number": 0})

    def training(self, round: int, device: int) -> bool:
        """Whether an update of this round is waited for."""
        window = self.window
        asked = window is not None and self.purpose == TRAIN and window.round == round
        return asked and window is not None and window.waits_for(device)

    async def take(self, session: Session, arrival: Arrival | Whole, found: tuple[Reply, float]) -> bool:
        """Put an update into the journal and the round; False if the round was closed without it."""
        window, round, device = self.window, arrival.round, session.device
        reply, norm = found
        if window is None or not self.training(round, device):
            counts = await asyncio.wrap_future(self.journal.taken(self.run, round, device))
            return counts == arrival.digest
        window.doubt.add(device)
        try:
            entry = Entry(round, device, arrival.digest, arrival.length, norm, session.seconds)
            content = arrival.content if isinstance(arrival, Whole) else None
            await asyncio.wrap_future(self.journal.take(self.run, entry, content))
        except EdgewiseError:
            self.later(0, lambda: self.referee.consider(window))  # others may have waited for this one
            raise
        finally:
            window.doubt.discard(device)
        self.fault.reached("taken", round)
        if not window.waits_for(device):
            return True  # it has come twice, and counts once
        self.screen.norms.append(norm)
        hot = window.hot + arrival.length <= HOT
        window.hot += arrival.length if hot else 0
        window.take(device, Taken(arrival.digest, reply if hot else None))
        self.metrics.updates.labels("taken").inc()
        self.referee.timed(window, device)
        self.referee.consider(window)
        return True

    def late(self, session: Session, round: int, counted: bool) -> None:
        """An update of a round that has no place for it."""
        window = self.window
        if window is not None and window.round == round and session.device in window.pushed:
            self.referee.timed(window, session.device)
        self.metrics.updates.labels("late").inc()
        words = "another update of it counts" if counted else "the round is closed"
        self.note("late", words, round, session.device)

    async def refused(self, session: Session, round: int, reason: str) -> None:
        """An update that is no update: its device is flagged, and not waited for."""
        self.metrics.updates.labels("refused").inc()
        self.note("refused", reason, round, session.device)
        session.member = await asyncio.wrap_future(flag(self.journal, session.device))
        self.failed(session, round, reason)

    def failed(self, session: Session, round: int, reason: str) -> None:
        """The device cannot answer."""
        window = self.window
        if window is not None and window.round == round and window.waits_for(session.device):
            self.note("failed", reason, round, session.device)
            window.fail(session.device, reason)
            self.referee.reinforce(window)
            self.referee.consider(window)

    def scored(self, session: Session, scores: Any) -> None:
        window = self.window
        if window is None or self.purpose == TRAIN or window.round != scores.round:
            return
        if window.waits_for(session.device):
            window.take(session.device, scores)
            self.fault.reached("scored", window.round)
            self.referee.consider(window)

    # ---- the rest ----

    async def on_disk(self, action: Callable[..., T], *arguments: Any) -> T:
        """Do what blocks on the disk in another thread. Once begun it ends, whatever becomes of a stream."""
        return await self._elsewhere(self._disk, action, *arguments)

    async def concluded(self, arrival: Arrival | Whole, held: int) -> tuple[Reply, float]:
        """Look at an update, and make it last if it has a file: the reply and its norm.

        EdgewiseError if it may not count. `held`: the examples that its device has.
        """
        owed = self.owed(held)

        def finish() -> None:
            arrival.finish()
            self.fault.reached("spooled", arrival.round)

        def look() -> tuple[Reply, float]:
            device, round = arrival.device, arrival.round
            summed = isinstance(arrival, Arrival) and arrival.checksum.agrees
            return self.screen.check(arrival.content, device, round, owed, summed)

        def both() -> tuple[Reply, float]:
            finish()
            return look()

        if isinstance(arrival, Whole):
            self.metrics.received.inc(arrival.length)
            arrival.finish()
            return look() if self.screen.nbytes <= BRIEF else await self._elsewhere(self._look, look)
        if self.screen.nbytes <= SMALL:
            return await self.on_disk(both)
        await self.on_disk(finish)
        return await self._elsewhere(self._look, look)

    async def _elsewhere(self, executor: ThreadPoolExecutor, action: Callable[..., T], *arguments: Any) -> T:
        future = asyncio.get_running_loop().run_in_executor(executor, action, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    def note(self, kind: str, words: str, round: int | None = None, device: int | None = None) -> None:
        """Log and journal something that an operator may want to know."""
        log.warning(kind, extra={"device": device, "round": round, "words": words})
        self.metrics.events.labels(kind).inc()
        self.journal.event(kind, words, self.run, round, device)

    async def end(self, finished: bool) -> None:
        """Send everybody home: for good, or until the coordinator is back."""
        kind, reason = (FINISHED, "the run is finished") if finished else (STOPPING, "the coordinator stops")
        self._ending = (kind, reason)
        sessions = list(self.sessions.values())
        await asyncio.gather(*(session.dismiss(reason, kind) for session in sessions), return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        self._disk.shutdown(wait=False)
        self._look.shutdown(wait=False)

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def later(self, seconds: float, action: Callable[[], Any]) -> None:
        asyncio.get_running_loop().call_later(seconds, action)
