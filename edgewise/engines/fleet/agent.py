"""The program on a device: it connects out, waits for tasks, and moves its memory on when an update counts.

What it was doing goes on while the network is away: an update that was trained is sent from where the
coordinator has it already, on the next stream.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import grpc

from edgewise.device import Memory
from edgewise.engines.fleet.digest import digest_of
from edgewise.engines.fleet.duty import Duty
from edgewise.engines.fleet.ear import Ear
from edgewise.engines.fleet.faults import Fault
from edgewise.engines.fleet.keep import Memories
from edgewise.engines.fleet.line import Line
from edgewise.engines.fleet.link import Beats, Disconnected, Link, Offence, connect, heard, why
from edgewise.engines.fleet.messages import EVALUATE, FINISHED, PROTOCOL, REFUSED, TRAIN, printable, up
from edgewise.engines.fleet.parcels import Incoming, Outgoing
from edgewise.errors import EdgewiseError
from edgewise.wire import Bytes

FIRST, LONGEST = 0.1, 30.0  # seconds between two attempts to connect
RETRY = 2.0  # seconds until a memory is written again that the disk had no room for
BACKLOG = 1000  # messages that may wait for the coordinator
RUN = re.compile(r"[0-9a-f]{32}", re.ASCII)  # a run's id, which names a folder here
BEATS = 0.05, 3600.0  # seconds between beats, from and to
FAREWELL = 5.0  # seconds for the coordinator to hear why this device cannot take part
log = logging.getLogger("edgewise.agent")


class Agent:
    """`prepare` turns a coordinator's plan into a duty, `remember` opens the memory of a run.

    With `once` the agent ends when a run does; otherwise it waits for the next one.
    """

    def __init__(
        self,
        link: Link,
        prepare: Callable[[Any], Duty],
        remember: Callable[[str], Memories],
        executor: Executor,
        once: bool = False,
        fault: Fault | None = None,
    ) -> None:
        self.link, self.prepare, self.remember, self.executor = link, prepare, remember, executor
        self.once, self.fault = once, fault or Fault(None, ())
        self.run_id = ""
        self.plan: bytes = b""
        self.duty: Duty | None = None
        self.keep: Memories | None = None
        self.incoming: Incoming | None = None
        self.outgoing: Outgoing | None = None
        self.next: tuple[Any, list[bytes]] | None = None  # a task that waits for the one before
        self.working: asyncio.Task[None] | None = None
        self.line: Line | None = None  # of the stream, once the coordinator has seen what was pending
        self._round = 0  # of the work in hand
        self._call: Any = None
        self._crash: BaseException | None = None

    async def run(self) -> None:
        """Serve until cancelled, or with `once` until a run is finished. EdgewiseError if sent away."""
        attempt = 0
        while self._crash is None:
            address = self.link.addresses[attempt % len(self.link.addresses)]
            try:
                if await self._stream(address):
                    return
                attempt = 0
            except Disconnected as reason:
                if self._crash is not None:
                    raise self._crash from None
                kept_out = self.line is None or isinstance(reason, Offence)
                attempt = attempt + 1 if kept_out else 0
                log.info("disconnected", extra={"words": str(reason), "peer": address})
            finally:
                self.line, self.incoming = None, None
            # Full jitter: a coordinator that comes back is not met by all its devices at once.
            await asyncio.sleep(random.uniform(0, min(LONGEST, FIRST * 2**attempt)))
        raise self._crash

    async def _stream(self, address: str) -> bool:
        """One stream, from hello to its end; whether the agent's work is done."""
        async with connect(self.link, address) as (call, ear):
            self._call = call
            line, beats = Line(up, call.write), Beats()
            line.say(hello=self._hello())
            line.start()
            beating: asyncio.Task[None] | None = None
            try:
                while (found := await heard(ear, first=beating is None)) is not None:
                    beats.heard()
                    if line.waiting > BACKLOG:
                        raise Offence("the coordinator talks faster than it listens")
                    kind, body = found
                    if kind == "farewell":
                        return self._farewell(body)
                    if kind == "plan":
                        await self._plan(body, line, ear)
                        beating = beating or asyncio.create_task(beats.run(line, body.beat, call))
                    else:
                        await self._on(kind, body, line)
                raise await why(call)
            finally:
                line.end()
                if beating is not None:
                    beating.cancel()

    # ---- what the coordinator says ----

    async def _plan(self, plan: Any, line: Line, ear: Ear) -> None:
        serial = plan.SerializeToString()
        if serial != self.plan:
            if not (RUN.fullmatch(plan.run) and BEATS[0] <= plan.beat <= BEATS[1]):
                raise Offence("a plan that makes no sense")
            await self._settle_down()
            try:
                self.duty = await self._away(self.prepare, plan)
                self.keep = await self._away(self.remember, plan.run)
            except EdgewiseError as error:
                await self._decline(str(error), line, ear)
                raise
            self.plan, self.run_id, self.outgoing, self.next = serial, plan.run, None, None
            # Hello could not say yet what is remembered of this run.
            line.say(hello=self._hello())
            return
        assert self.duty is not None and self.keep is not None
        pending = self.keep.pending
        line.say(
            ready={
                "layout": self.duty.layout,
                "examples": self.duty.examples,
                "tests": self.duty.tests,
                "labels": list(self.duty.labels) if plan.labels else [],
                "pending_round": pending.round if pending else 0,
                "pending_digest": pending.digest if pending else b"",
                "in_hand": pending is not None and self.outgoing is not None,
            }
        )
        self.line = line
        log.info("ready", extra={"words": f"run {plan.run[:8]}, {self.duty.examples} examples"})
        if pending is None and self.next is not None:
            self._begin()

    async def _decline(self, reason: str, line: Line, ear: Ear) -> None:
        """Let the coordinator know why this device cannot take part, and hear it out."""
        line.say(failure={"round": 0, "reason": reason})
        with suppress(TimeoutError, grpc.aio.AioRpcError):
            async with asyncio.timeout(FAREWELL):
                while await ear.next() is not grpc.aio.EOF:
                    pass

    def _hello(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "version": version("edgewise"),
            "run": self.run_id,
            "round": self.keep.round if self.keep else 0,
            "held": self.duty.held if self.duty else 0,
        }

    def _farewell(self, farewell: Any) -> bool:
        if farewell.kind == REFUSED:
            raise EdgewiseError(f"the coordinator refuses this device: {printable(farewell.reason)}")
        log.info("farewell", extra={"words": farewell.reason})
        return bool(farewell.kind == FINISHED and self.once)

    async def _on(self, kind: str, body: Any, line: Line) -> None:
        if kind not in ("", "beat") and (self.line is None or self.duty is None):
            raise Offence(f"'{kind}' came out of turn")
        if kind == "task":
            assert self.duty is not None
            size = sum(body.lengths)
            if size > self.duty.longest:
                raise Offence(f"a task of {size} bytes, where {self.duty.longest} are the most there can be")
            self.incoming = Incoming(body, [], size)
            self._chunk(body.data)
        elif kind == "chunk":
            if not body:
                raise Offence("a chunk with nothing in it")
            self._chunk(body)
        elif kind == "verdict":
            await self._verdict(body, line)

    def _chunk(self, data: Bytes) -> None:
        incoming = self.incoming
        if incoming is None or self.duty is None:
            return
        if self.duty.stores or not incoming.chunks:
            incoming.chunks.append(data)
        incoming.missing -= len(data)
        if incoming.missing < 0:
            raise Offence("a task longer than it announced")
        if incoming.missing == 0:
            self.incoming = None
            self.fault.reached("asked", incoming.head.round)
            if self._at_work_on(incoming.head):
                return
            self.next = (incoming.head, incoming.frames())
            self._begin()

    def _at_work_on(self, head: Any) -> bool:
        """Whether this very task is being worked on, or is done with, from a stream before this one."""
        assert self.keep is not None
        if head.purpose != TRAIN:
            return False
        working = self.working is not None and self._round == head.round
        done = self.outgoing is not None and self.outgoing.round == head.round
        return working or done or head.round <= self.keep.round

    async def _verdict(self, verdict: Any, line: Line) -> None:
        """Whether an update counts; the next task waits for the word."""
        assert self.keep is not None
        pending = self.keep.pending
        if pending is None or (pending.round, pending.digest) != (verdict.round, verdict.digest):
            return
        self.fault.reached("heard", verdict.round)
        if verdict.taken:
            await self._keep(self.keep.commit)
            self.fault.reached("moved", verdict.round)
        elif verdict.again and self.outgoing is not None:
            self._send(self.outgoing, line, verdict.offset)
            return
        else:
            line.drop()
            log.info("not taken", extra={"round": verdict.round, "words": verdict.reason})
            await self._keep(self.keep.forget)
        self.outgoing = None
        self._begin()

    # ---- work ----

    def _begin(self) -> None:
        """Start on the task that waits, unless another one is not done with."""
        assert self.keep is not None
        if self.next is None or self.working is not None or self.keep.pending is not None:
            return
        (head, frames), self.next = self.next, None
        self._round = head.round
        self.working = asyncio.create_task(self._work(head, frames))

    async def _work(self, head: Any, frames: Sequence[bytes]) -> None:
        assert self.duty is not None and self.keep is not None
        try:
            if head.purpose == TRAIN:
                await self._train(head.round, frames)
            elif head.purpose == EVALUATE:
                scores = await self._away(self.duty.score, frames, self.keep.memory)
                if self.line is not None:
                    self.line.say(scores=scores)
        except EdgewiseError as error:
            log.warning("failed", extra={"round": head.round, "words": str(error)})
            if self.line is not None:
                self.line.say(failure={"round": head.round, "reason": str(error)})
        except Exception as error:  # a fault of ours: it ends the agent, with its traceback
            self._crash = error
            self._call.cancel()
        finally:
            self.working = None
        self._begin()

    async def _train(self, round: int, frames: Sequence[bytes]) -> None:
        assert self.duty is not None and self.keep is not None
        if self.duty.brief and not self.keep.blocks:
            outgoing, memory, kept = self._learn(round, frames)
        else:
            outgoing, memory, kept = await self._away(self._learn, round, frames)
        while not kept:
            await asyncio.sleep(RETRY)
            kept = await self._away(self._remembered, outgoing, memory)
        self.outgoing = outgoing
        if self.line is not None:
            self._send(self.outgoing, self.line, 0)

    def _learn(self, round: int, frames: Sequence[bytes]) -> tuple[Outgoing, Memory, bool]:
        """Train, and make the memory that goes with the update last before anything of it is sent."""
        assert self.duty is not None and self.keep is not None
        began = time.monotonic()
        frame, memory = self.duty.train(frames, self.keep.memory)
        self.fault.reached("trained", round)
        digest = bytes.fromhex(digest_of(frame))
        outgoing = Outgoing(round, digest, frame, time.monotonic() - began)
        return outgoing, memory, self._remembered(outgoing, memory)

    def _remembered(self, outgoing: Outgoing, memory: Memory) -> bool:
        """Make a memory last; False while the disk has no room for it."""
        assert self.keep is not None
        try:
            self.keep.propose(outgoing.round, outgoing.digest, memory)
        except EdgewiseError as error:
            log.warning("deferred", extra={"round": outgoing.round, "words": str(error)})
            return False
        self.fault.reached("kept", outgoing.round)
        return True

    def _send(self, outgoing: Outgoing, line: Line, offset: int) -> None:
        self.fault.reached("sending", outgoing.round)
        head = {
            "round": outgoing.round,
            "digest": outgoing.digest,
            "length": outgoing.length,
            "offset": offset,
            "seconds": outgoing.seconds,
        }
        line.push(outgoing.frame, offset, lambda: self.fault.reached("sent", outgoing.round), update=head)

    async def _settle_down(self) -> None:
        """Let the work for an earlier plan come to its end; nobody waits for its result."""
        if self.working is not None:
            self.next = None
            await asyncio.wait([self.working])

    async def _keep(self, action: Callable[[], None]) -> None:
        assert self.keep is not None
        if self.keep.blocks:
            await self._away(action)
        else:
            action()

    async def _away(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Do in another thread what takes long or waits for the disk, so that the stream stays alive."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, action, *arguments)
