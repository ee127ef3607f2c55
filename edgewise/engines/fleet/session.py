"""One agent's stream, on the coordinator: what it says, in the order in which it may say it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from edgewise.engines.fleet import messages
from edgewise.engines.fleet.digest import SIZE
from edgewise.engines.fleet.ear import Ear
from edgewise.engines.fleet.journal import JournalError
from edgewise.engines.fleet.line import Line
from edgewise.engines.fleet.messages import (
    CHUNK,
    FINISHED,
    LARGEST,
    PROTOCOL,
    REFUSED,
    TRAIN,
    Up,
    chunk_data,
    down,
    printable,
)
from edgewise.engines.fleet.roster import Member, present
from edgewise.engines.fleet.segment import Whole
from edgewise.engines.fleet.spool import Arrival, DiskError
from edgewise.errors import EdgewiseError
from edgewise.wire import Bytes

if TYPE_CHECKING:
    from edgewise.engines.fleet.courier import Courier

BACKLOG = 1000  # messages that may wait for an agent
MOST = 1 << 40  # examples of a device
FAREWELL_SECONDS = 1.0  # that an agent has to take the last word
RETRY = 2.0  # seconds until an update is asked for again that the disk had no room for
log = logging.getLogger("edgewise.coordinator")


class Dismissed(Exception):
    """The agent is sent away, with a reason."""


class Session:
    """A device is `ready` once it has shown that it has the same model and nothing in doubt."""

    __slots__ = (
        "arrival",
        "completing",
        "courier",
        "examples",
        "heard",
        "held",
        "hello",
        "left",
        "line",
        "loose",
        "member",
        "pledged",
        "ready",
        "seconds",
        "task",
    )

    def __init__(self, courier: Courier, member: Member, context: Any) -> None:
        self.courier, self.member = courier, member
        self.line = Line(down, context.write)
        self.task: asyncio.Task[Any] | None = asyncio.current_task()
        self.left = asyncio.Event()  # once its stream is no longer listened to
        self.heard = time.monotonic()
        self.hello: Any = None
        self.examples = 0  # that the device trains on
        self.pledged = ("", 0)  # the digest of what was on its way before this stream; examples then
        self.held = 0  # the round whose state it holds
        self.ready = False
        self.arrival: Arrival | None = None
        self.loose = 0  # bytes of chunks since the last update that was let in
        self.completing: asyncio.Task[None] | None = None
        self.seconds = 0.0  # that the device took for what is arriving

    @property
    def device(self) -> int:
        return self.member.id

    async def run(self, read: Any) -> None:
        """Listen until the stream ends."""
        ear = Ear(read)
        self.line.start()
        try:
            while (data := await ear.next()) is not grpc.aio.EOF:
                self.heard = time.monotonic()
                if self.line.waiting > BACKLOG:
                    raise Dismissed("it talks faster than it listens")
                if len(data) > LARGEST:
                    raise Dismissed(f"a message of {len(data)} bytes, where {LARGEST} are the most")
                if (chunk := chunk_data(data)) is not None:
                    await self._on_chunk(chunk)
                else:
                    await self._on(*_parsed(data))
        except Dismissed as reason:
            await self.dismiss(str(reason))
        except JournalError as error:  # a fault of this side's: the agent comes again
            self.courier.note("deferred", str(error), device=self.device)
            await asyncio.sleep(RETRY)
        finally:
            self.line.end()
            ear.close()
            self._let_go()

    async def dismiss(self, reason: str, kind: int = REFUSED) -> None:
        """Say farewell with a reason, and see it out."""
        if kind == REFUSED:
            self.courier.note("refused", reason, device=self.device)
        self.line.drop()
        self.line.say(farewell={"kind": kind, "reason": reason})
        await self.line.flush(FAREWELL_SECONDS)

    async def _on(self, kind: str, body: Any) -> None:
        if kind == "hello" and not self.ready:
            self._hello(body)
        elif kind == "failure" and not self.ready:
            raise Dismissed(f"it cannot take part: {printable(body.reason)}")
        elif self.hello is None or not self._in_turn(kind):
            raise Dismissed(f"'{kind}' came out of turn")
        else:
            await getattr(self, f"_{kind}")(body)

    def _in_turn(self, kind: str) -> bool:
        """Whether this may come after hello."""
        return kind == "beat" or (kind != "hello" and (kind == "ready") != self.ready)

    def _hello(self, hello: Any) -> None:
        if hello.protocol != PROTOCOL:
            raise Dismissed(
                f"this agent speaks protocol {hello.protocol} (edgewise {hello.version[:40]!r}), "
                f"the coordinator {PROTOCOL} (edgewise {self.courier.version}); install the same edgewise"
            )
        self.hello = hello
        self.line.say(plan=self.courier.plan)

    async def _ready(self, ready: Any) -> None:
        courier, device, run = self.courier, self.device, self.courier.run
        if ready.layout != courier.plan["layout"]:
            raise Dismissed("its model has another layout: the model's code differs from the coordinator's")
        counts = max(ready.examples, ready.tests, *ready.labels)
        if counts > MOST or len(ready.labels) not in (0, courier.plan["classes"]):
            raise Dismissed("what it says of its data makes no sense")
        if ready.pending_round and len(ready.pending_digest) != SIZE:
            raise Dismissed("what it says of its pending update makes no sense")
        remembered = self.hello.round if self.hello.run == run else 0
        counted = await asyncio.wrap_future(courier.journal.last_taken(run, device))
        if remembered > counted:
            raise Dismissed(
                f"it remembers round {remembered}, which this coordinator's journal does not hold"
            )
        self.examples, before = ready.examples, self.member.examples
        self.pledged = (ready.pending_digest.hex(), self.examples if before is None else before)
        labels = ready.labels if courier.plan["labels"] else None
        await asyncio.wrap_future(present(courier.journal, device, ready.examples, ready.tests, labels))
        self.held = self.hello.held if self.hello.run == run else 0
        coming = False
        if ready.pending_round:
            await courier.reopened(self, ready.pending_round)
            coming = await self._settle(ready.pending_round, ready.pending_digest.hex()) and ready.in_hand
        elif remembered < counted:
            courier.note("forgot", f"it remembers round {remembered} of {counted}", device=device)
        self.ready = True
        courier.arrived(self, coming)

    async def _settle(self, round: int, digest: str) -> bool:
        """Say what became of an update that was on its way before this stream; whether it may still come."""
        courier = self.courier
        counts = await asyncio.wrap_future(courier.journal.taken(courier.run, round, self.device))
        open = courier.training(round, self.device)
        if counts != digest and not open:
            courier.late(self, round, counts is not None)
        offset = courier.spool.arrived(round, self.device, digest) if open else 0
        self._tell(round, digest, counts == digest, "" if counts or open else "late", offset, again=open)
        return open

    def _tell(
        self, round: int, digest: str, taken: bool, reason: str = "", offset: int = 0, again: bool = False
    ) -> None:
        body = {"round": round, "digest": bytes.fromhex(digest), "taken": taken, "reason": reason}
        self.line.say(verdict={**body, "offset": offset, "again": again})

    async def _beat(self, beat: Any) -> None:
        self.line.say(beat={"number": beat.number})

    # ---- an update ----

    async def _update(self, update: Any) -> None:
        """An upload begins, or goes on where it was cut off."""
        self._let_go()
        courier, device, digest = self.courier, self.device, update.digest.hex()
        if len(update.digest) != SIZE or not 0 <= update.seconds < math.inf:
            raise Dismissed("what it says of its update makes no sense")
        self.held = max(self.held, update.round)  # even if it is late
        counts = await self._counts(update.round)
        if counts == digest:
            self._tell(update.round, digest, True)  # it was, and the word of it was lost
        elif not courier.training(update.round, device):
            courier.late(self, update.round, counts is not None)
            self._tell(update.round, digest, False, "late")
        elif update.length > courier.longest:
            await self._refuse(
                update.round, digest, f"an update of {update.length} bytes, at most {courier.longest}"
            )
        else:
            self.loose, self.seconds = 0, update.seconds
            data = update.data  # a copy, every time it is asked for
            if not update.offset and len(data) == update.length:
                await self._complete(Whole(update.round, device, digest, data))
                return
            self.arrival = Arrival(courier.spool, update.round, device, digest, update.length, update.offset)
            if update.offset:
                words = f"at {update.offset} of {update.length} bytes"
                log.info("resumed", extra={"device": device, "round": update.round, "words": words})
            await self._more(self.arrival, data)

    async def _counts(self, round: int) -> str | None:
        """The digest of this device's update that counts in a round, if there is one."""
        if self.courier.training(round, self.device):
            return None
        counts = await asyncio.wrap_future(self.courier.journal.taken(self.courier.run, round, self.device))
        if counts is None:
            await self.courier.reopened(self, round)
        return counts

    async def _chunk(self, chunk: Any) -> None:
        await self._on_chunk(chunk.data)

    async def _on_chunk(self, data: Bytes) -> None:
        if not self.ready:
            raise Dismissed("'chunk' came out of turn")
        if self.arrival is not None:
            await self._more(self.arrival, data)
            return
        # Of an update that was turned down while it was on its way.
        self.loose += max(1, len(data))
        if self.loose > self.courier.longest + CHUNK:
            raise Dismissed("it sends chunks of no update")

    async def _more(self, arrival: Arrival, data: Bytes) -> None:
        self.courier.metrics.received.inc(len(data))
        await self._on_disk(arrival, arrival.write, data)
        self.courier.fault.reached("arriving", arrival.round)
        if self.arrival is arrival and arrival.complete:
            await self._complete(arrival)

    async def _on_disk(self, arrival: Arrival, action: Any, argument: Any) -> None:
        try:
            await self.courier.on_disk(action, argument)
        except DiskError as error:
            arrival.close()
            self.arrival = None
            await self._ask_again(arrival, str(error))
        except EdgewiseError as error:
            self.arrival = None
            await self._refuse(arrival.round, arrival.digest, str(error))
            arrival.discard()

    async def _ask_again(self, arrival: Arrival | Whole, reason: str) -> None:
        """The fault is on this side: the agent keeps its update and sends it once more, a little later."""
        self.courier.note("deferred", reason, arrival.round, self.device)
        await asyncio.sleep(RETRY)
        open = self.courier.training(arrival.round, self.device)
        self._tell(arrival.round, arrival.digest, False, reason, again=open)

    async def _complete(self, arrival: Arrival | Whole) -> None:
        """The bytes are here: look at them, make them last, and only then say so.

        It goes on even if the stream ends meanwhile: what the journal is about to take must reach the round.
        """
        self.arrival = None
        self.completing = asyncio.create_task(self._conclude(arrival))
        await asyncio.shield(self.completing)

    async def _conclude(self, arrival: Arrival | Whole) -> None:
        courier, round, digest = self.courier, arrival.round, arrival.digest
        try:
            held = self.pledged[1] if digest == self.pledged[0] else self.examples
            taken = await courier.take(self, arrival, await courier.concluded(arrival, held))
        except (DiskError, JournalError) as error:
            arrival.close()
            await self._ask_again(arrival, str(error))
            return
        except EdgewiseError as error:
            if courier.training(round, self.device):
                arrival.discard()
                await self._refuse(round, digest, str(error))
                return
            taken = False  # its round has ended meanwhile, and what was here of it may be swept
        if not taken:
            courier.late(self, round, False)
            arrival.discard()
        self._tell(round, digest, taken, "" if taken else "late")
        courier.fault.reached("told", round)

    async def _refuse(self, round: int, digest: str, reason: str) -> None:
        self._tell(round, digest, False, reason)
        await self.courier.refused(self, round, reason)

    # ---- other answers ----

    async def _scores(self, scores: Any) -> None:
        self.courier.scored(self, scores)

    async def _failure(self, failure: Any) -> None:
        self.courier.failed(self, failure.round, printable(failure.reason))

    def _let_go(self) -> None:
        if self.arrival is not None:
            self.arrival.close()
            self.arrival = None


def _parsed(data: bytes) -> tuple[str, Any]:
    """The kind of a message, and its body; Dismissed if there is none."""
    try:
        message = Up.FromString(data)
    except DecodeError:
        raise Dismissed("bytes that are no message") from None
    kind = message.WhichOneof("body")
    if kind is None:
        raise Dismissed("a message of no kind that is known here")
    return kind, getattr(message, kind)


__all__ = ["FINISHED", "TRAIN", "Dismissed", "Session", "messages"]
