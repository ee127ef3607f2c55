"""Points at which a process can be told to die, so that tests can kill it at every one of them.

A point is reached by name in a round; a process that was started with `--fault POINT@ROUND` kills itself
there as `kill -9` would. Without that flag nothing happens.
"""

from __future__ import annotations

import os
import signal

from edgewise.errors import EdgewiseError

COORDINATOR = (
    *("opened", "pushed", "arriving", "spooled", "taken", "told", "closed", "combined"),
    *("scored", "evaluated"),  # where devices evaluate
    *("saving", "swept"),
)
AGENT = ("asked", "trained", "kept", "sending", "sent", "heard", "moved")


class Fault:
    """One point in one round, or none."""

    def __init__(self, text: str | None, points: tuple[str, ...]) -> None:
        """`text`: "taken@3"; EdgewiseError for a point that there is not."""
        self.at: tuple[str, int] | None = None
        if text is not None:
            point, _, round = text.partition("@")
            if point not in points or not round.isdecimal():
                raise EdgewiseError(f"fault: {text!r} is not POINT@ROUND; points: {', '.join(points)}")
            self.at = (point, int(round))

    def reached(self, point: str, round: int) -> None:
        """Die here, if that was asked for."""
        if self.at == (point, round):
            os.kill(os.getpid(), signal.SIGKILL)
