"""A round, or an evaluation, while it is open: who is asked, who has answered, and when that is enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from edgewise.device import Reply
from edgewise.engines.fleet.line import Shared
from edgewise.errors import EdgewiseError
from edgewise.wire import Bytes

Frames = Sequence[Sequence[Bytes]]  # those of a task, each in pieces


@dataclass(frozen=True)
class Taken:
    """An update that counts: its digest, and the reply itself if it is at hand."""

    digest: str
    reply: Reply | None = None


class Window:
    """`needed` answers make a round valid, `wanted` are enough; more may be asked than are wanted.

    `load` gives what a device is sent, from the round whose state it holds; the same object for all that are
    sent the same. `reserve`: whom to ask, in order,
    where too few are left of those that were asked; nobody if exactly these make up the round. `answers` has
    a future for every device that was asked: its answer, or None if the round closed without it; `outcome`
    says how it ended.
    They belong to whoever waits in another thread; all else is the event loop's.
    """

    def __init__(
        self,
        round: int,
        asked: Sequence[int],
        needed: int,
        wanted: int,
        load: Callable[[int, int], Frames],
        reserve: Sequence[int] = (),
    ) -> None:
        self.round, self.asked, self.needed, self.wanted = round, tuple(asked), needed, wanted
        self.load, self.reserve = load, reserve
        self.answers: dict[int, Future[Any]] = {device: Future() for device in asked}
        self.outcome: Future[None] = Future()
        self.taken: list[int] = []
        self.failed: dict[int, str] = {}
        self._excused = 0
        self.pushed: dict[int, float] = {}  # when the task went out
        self.closed = False
        self.hot = 0  # bytes of updates that answers hold in memory
        self.timed = False  # whether a timer runs that will close it
        self.looked = False  # whether one runs that will see who is left
        self.extending = False  # whether the journal is being told of further devices: one lot at a time
        self.doubt: set[int] = set()  # of whom something is on its way into the journal; it stays open for it
        self.began = time.monotonic()
        self._shared: dict[int, tuple[Frames, Shared]] = {}

    def resume(self, answers: Mapping[int, Any]) -> None:
        """These had come before the coordinator was started again."""
        for device, answer in answers.items():
            self.take(device, answer)

    def waits_for(self, device: int) -> bool:
        return not self.closed and device in self.answers and not self.answers[device].done()

    def shared(self, frames: Frames) -> Shared:
        """What lines share that push these frames of `load`."""
        return self._shared.setdefault(id(frames), (frames, Shared()))[1]

    def take(self, device: int, answer: Any) -> None:
        self.taken.append(device)
        self.answers[device].set_result(answer)

    def fail(self, device: int, reason: str) -> None:
        """The device was heard, and its answer is of no use; too late once the journal was given one."""
        if device not in self.doubt and not self.answers[device].done():
            self.failed[device] = reason
            self.answers[device].set_result(None)

    def excuse(self, device: int, reason: str) -> None:
        """The device is no longer of the fleet: what it would have given is not needed either."""
        self.fail(device, reason)
        self._excused += 1
        self.needed = max(1, min(self.needed, len(self.asked) - self._excused))

    @property
    def valid(self) -> bool:
        return len(self.taken) >= self.needed

    @property
    def enough(self) -> bool:
        """Nothing more is to come, or to be waited for."""
        return len(self.taken) >= self.wanted or len(self.taken) + len(self.failed) == len(self.asked)

    def missing(self) -> list[int]:
        """Devices that were asked and have not answered."""
        return [device for device, answer in list(self.answers.items()) if not answer.done()]

    def further(self, present: Collection[int]) -> list[int]:
        """Whom to ask beside, of those who are present, for as many answers as are needed."""
        hoped = len(self.taken) + sum(device in present for device in self.missing())
        rest = [device for device in self.reserve if device in present and device not in self.answers]
        return rest[: max(0, self.needed - hoped)]

    def extend(self, devices: Sequence[int]) -> None:
        """These are asked too."""
        self.asked += tuple(devices)
        self.answers |= {device: Future() for device in devices}

    def close(self) -> None:
        """Take no more, and tell those who wait: with an error in `outcome` if too few have answered."""
        self.closed = True
        for device in self.missing():
            self.answers[device].set_result(None)
        if self.valid:
            self.outcome.set_result(None)
            return
        reasons = "; ".join(f"device {device}: {reason}" for device, reason in sorted(self.failed.items()))
        self.outcome.set_exception(
            EdgewiseError(
                f"round {self.round}: {len(self.taken)} usable answers from {len(self.asked)} devices, "
                f"where {self.needed} are needed ({reasons}); run again to ask again, or lower --quorum"
            )
        )

    def abandon(self, error: BaseException) -> None:
        """It cannot be brought to an end: whoever waits is told so."""
        self.closed = True
        for device in self.missing():
            self.answers[device].set_result(None)
        if not self.outcome.done():
            self.outcome.set_exception(error)
