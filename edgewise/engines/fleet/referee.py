"""When a round, or an evaluation, has enough: by its answers, by the time devices take, by who is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgewise.engines.fleet.messages import TRAIN
from edgewise.engines.fleet.pace import Pace
from edgewise.engines.fleet.window import Window
from edgewise.errors import EdgewiseError

if TYPE_CHECKING:
    from edgewise.engines.fleet.courier import Courier

RETRY = 2.0  # seconds until the journal is asked again for what it could not write


class Referee:
    """Brings the courier's window to its end. It lives on the courier's event loop."""

    def __init__(self, courier: Courier) -> None:
        self.courier, self.pace = courier, Pace()

    def open(self, window: Window) -> bool:
        return window is self.courier.window and not window.closed

    def timed(self, window: Window, device: int) -> None:
        """An answer has come, in time or late."""
        seconds = time.monotonic() - window.pushed.get(device, window.began)
        self.pace.note(seconds)
        self.courier.metrics.answers.observe(seconds)

    def consider(self, window: Window) -> None:
        """Close the window if that is due, or see when it will be."""
        if not self.open(window) or window.doubt:
            return
        if window.enough:
            if window.valid or not window.extending:
                self._shut(window)
        elif window.valid and not window.timed:
            window.timed = True
            elapsed = time.monotonic() - window.began
            allowance = self.pace.allowance or 2 * elapsed  # as long again, while nothing is known
            self.courier.later(max(0.0, allowance - elapsed), lambda: self._overdue(window))

    # ---- too few are left ----

    def moved(self) -> None:
        """A device has come or gone; one that is gone has as long to come back as devices take to answer."""
        window = self.courier.window
        if window is not None and window.reserve and not window.looked and self.open(window):
            window.looked = True
            patience = self.pace.allowance or float(self.courier.plan["beat"])
            self.courier.later(patience, lambda: self._look(window))

    def _look(self, window: Window) -> None:
        if self.open(window) and window.doubt:  # what is on its way into the journal may be enough
            self.courier.later(0.01, lambda: self._look(window))
            return
        window.looked = False
        self.reinforce(window)

    def reinforce(self, window: Window) -> None:
        """Ask further devices where too few are left of those that were asked."""
        if not self.open(window) or not window.reserve or window.extending:
            return
        further = window.further(self.courier.present() - self.courier.revoked)
        if not further:
            return
        if self.courier.purpose != TRAIN:
            self._ask(window, further)
            return
        window.extending = True
        window.doubt.update(further)
        self.courier.spawn(self._extend(window, further))

    async def _extend(self, window: Window, further: Sequence[int]) -> None:
        """The journal knows whom a round asks before they are asked: it is played again from there."""
        courier = self.courier
        try:
            asked = (*window.asked, *further)
            await asyncio.wrap_future(courier.journal.open_round(courier.run, window.round, asked))
        except EdgewiseError as error:
            courier.note("deferred", f"devices {list(further)} cannot be asked: {error}", window.round)
            courier.later(RETRY, lambda: self._extended(window))
            return
        finally:
            window.doubt.difference_update(further)
        self._ask(window, further)
        self._extended(window)

    def _extended(self, window: Window) -> None:
        """Others may have gone meanwhile, or the journal was full."""
        window.extending = False
        self.reinforce(window)
        self.consider(window)

    def _ask(self, window: Window, further: Sequence[int]) -> None:
        window.extend(further)
        self.courier.note("asked", f"devices {list(further)} too, since others are gone", window.round)
        for device in further:
            if device in self.courier.revoked:  # since it was chosen
                window.excuse(device, "it was revoked")
            else:
                self.courier.push(device)

    # ---- its end ----

    def _overdue(self, window: Window) -> None:
        if not self.open(window):
            return
        if window.doubt:
            self.courier.later(0.01, lambda: self._overdue(window))
        else:
            self._shut(window)

    def _shut(self, window: Window) -> None:
        """Take no more from this moment on: what is journaled after it must not count."""
        window.closed = True
        self.courier.spawn(self._close(window))

    async def _close(self, window: Window) -> None:
        """Where answers are missing, the journal says so before anything rests on it."""
        courier = self.courier
        missing = sorted({*window.missing(), *window.failed})
        if courier.purpose == TRAIN and window.valid:
            closing = courier.journal.close_round(courier.run, window.round)
            if missing:
                try:
                    await asyncio.wrap_future(closing)
                except EdgewiseError as error:
                    window.abandon(error)
                    return
                courier.note("missing", f"closed without devices {missing}", window.round)
            courier.fault.reached("closed", window.round)
            courier.metrics.rounds.inc()
            courier.metrics.seconds.observe(time.monotonic() - window.began)
        window.close()
