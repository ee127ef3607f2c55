"""How long to wait for a device: learned from how long devices took, with no constant to guess.

The estimator of TCP's retransmission timer (Jacobson 1988; RFC 6298): a running mean of the times and of
their deviations, and the mean plus four deviations as the allowance.
"""

from __future__ import annotations

GAIN, SPREAD_GAIN, DEVIATIONS = 1 / 8, 1 / 4, 4
LEAST = 0.05  # seconds: below this a timer measures the machine, not the device


class Pace:
    def __init__(self) -> None:
        self.mean: float | None = None
        self.deviation = 0.0

    def note(self, seconds: float) -> None:
        """A device took so long, be it in time or late: what was late makes the next allowance longer."""
        if self.mean is None:
            self.mean, self.deviation = seconds, seconds / 2
            return
        self.deviation += SPREAD_GAIN * (abs(seconds - self.mean) - self.deviation)
        self.mean += GAIN * (seconds - self.mean)

    @property
    def allowance(self) -> float | None:
        """Seconds to wait for a device; None while nothing is known: as long as it takes."""
        if self.mean is None:
            return None
        return max(LEAST, self.mean + DEVIATIONS * self.deviation)
