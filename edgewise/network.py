"""Seconds from bytes: how long the rounds of a run take on a fleet that is described, not owned.

    rate      = min(bandwidth, MSS / RTT * sqrt(3/2) / sqrt(loss))                   bytes a second
    transfer  = latency + waits + bytes / (1 - loss) / rate                          seconds
    device    = transfer(down) + steps * step + transfer(up)
    round     = the slowest device of the cohort

The bound by loss is that of Mathis, Semke, Mahdavi, Ott 1997, "The Macroscopic Behavior of the TCP Congestion
Avoidance Algorithm", https://doi.org/10.1145/263932.264023; the latency is one way, RTT is twice that. The
waits are TCP's slow start: windows of 10 segments (RFC 6928), then 20, 40, ... until they fill the link, each
waiting for its first acknowledgement (Kurose and Ross, "Computer Networking", the section on TCP's delay).
Connections stay open, but every transfer starts slowly, as after any pause (RFC 5681, section 4.1).

Left out: opening connections and TLS, packet headers (about 3 %), timeouts (they dominate beyond about 5 %
loss, and the bound is then too kind), congestion that changes during a run, newer TCPs that mind loss less,
and the coordinator's own computing. The coordinator's links are no bottleneck unless `server` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from edgewise import randomness, specs
from edgewise.errors import EdgewiseError

SEGMENT = 1460  # bytes of payload in a packet on Ethernet: TCP's MSS
FIRST_WINDOW = 10 * SEGMENT  # bytes sent before the first acknowledgement: RFC 6928

# Legal numbers, lowest and highest, and what they are.
RATES = (1e-6, 1e9, "Mbit/s")
SECONDS = (0.0, 1e9, "seconds")
LOSSES = (0.0, 0.99, "the share of packets lost")
SPREADS = (0.0, 5.0, "sigma of a log-normal factor")

Direction = Literal["up", "down"]
Seconds = NDArray[np.float64]


def _check(what: str, value: float, low: float, high: float, words: str) -> None:
    if not low <= value <= high:  # NaN neither
        raise EdgewiseError(f"{what} cannot be {value:g}; legal: {low:g} to {high:g} ({words})")


@dataclass(frozen=True)
class Link:
    """A device's way to the coordinator.

    `up` and `down` in Mbit/s (10**6 bits a second), as seen from the device; `latency` one way, in seconds;
    `loss` the share of packets lost.
    """

    up: float
    down: float
    latency: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        for name in ("up", "down"):
            _check(f"link: {name}", getattr(self, name), *RATES)
        _check("link: latency", self.latency, *SECONDS)
        _check("link: loss", self.loss, *LOSSES)

    def seconds(self, bytes: float, direction: Direction) -> float:
        """The time from the first byte sent to the last one received."""
        return float(transfer(self, bytes, self.up if direction == "up" else self.down))


# Starting points, not measurements of any fleet. No losses: radios repeat by themselves what they lose.
NETWORKS: dict[str, Link] = {
    # A switched office network, gigabit Ethernet. Illustrative.
    "ethernet": Link(1000, 1000, 0.0005),
    # Wireless LAN in a shop or a home behind a consumer's line. Illustrative; up is half of down.
    "wifi": Link(20, 40, 0.01),
    # Inside the ranges for active mobile connections in Grigorik 2013, "High Performance Browser Networking",
    # table 7-2: 4G 1 to 50 Mbit/s, below 100 ms; 3G 0.5 to 5 Mbit/s, 100 to 500 ms (round trips).
    "lte": Link(10, 20, 0.035),
    "3g": Link(1, 2, 0.1),
    # Geostationary: 4 x 35,786 km of space are 0.48 s of a round trip; 25/3 Mbit/s is a consumer's plan.
    "satellite": Link(3, 25, 0.3),
    # Category NB1, 3GPP release 13: peak rates 62 and 26 kbit/s, a round trip of 1.6 s at its best.
    "nbiot": Link(0.062, 0.026, 0.8),
}
FORMS = {"link": Link}


def parse(text: str, what: str = "network") -> Link:
    """The link that a text stands for: a name of NETWORKS, or link:UP:DOWN[:latency][:loss]."""
    if text in NETWORKS:
        return NETWORKS[text]
    if text.split(":")[0] not in FORMS:
        legal = ", ".join([*NETWORKS, *specs.forms(FORMS)])
        raise EdgewiseError(f"{what}: {text!r} is unknown; one of: {legal}")
    link: Link = specs.parse(FORMS, text, what)
    return link


@dataclass(frozen=True)
class Network:
    """A fleet: every device has `link`, times a factor of its own on both its bandwidths.

    The factor is e**(spread * z), z standard normal and addressed by (seed, device): its median is 1.
    `step`: seconds of one local step on a device, with a factor of its own (`step_spread`). `server`: Mbit/s
    that the coordinator has each way, an even share for each device of the cohort; what slow or late devices
    leave of theirs is not handed on.
    """

    link: Link
    spread: float = 0.0
    step: float = 0.0
    step_spread: float = 0.0
    server: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("spread", "step_spread"):
            _check(f"network: {name}", getattr(self, name), *SPREADS)
        _check("network: step", self.step, *SECONDS)
        if self.server is not None:
            _check("network: server", self.server, *RATES)

    def device_seconds(
        self, cohort: Sequence[int], up_each: ArrayLike, down_each: ArrayLike, steps: int
    ) -> Seconds:
        """What each device of the cohort takes, (C,): receive, compute `steps` local steps, send.

        `up_each` and `down_each` are bytes, (C,) in the cohort's order or one number for all of them.
        """
        bandwidth, compute = self._factors(cohort)
        share = math.inf if self.server is None else self.server / max(len(cohort), 1)
        down = transfer(self.link, down_each, np.minimum(self.link.down * bandwidth, share))
        up = transfer(self.link, up_each, np.minimum(self.link.up * bandwidth, share))
        return down + steps * self.step * compute + up

    def round_seconds(
        self, cohort: Sequence[int], up_each: ArrayLike, down_each: ArrayLike, steps: int
    ) -> float:
        """What a synchronous round takes: the slowest device of the cohort sets the pace."""
        return float(self.device_seconds(cohort, up_each, down_each, steps).max(initial=0.0))

    def _factors(self, cohort: Sequence[int]) -> tuple[Seconds, Seconds]:
        """Each device's factors on bandwidth and on the time of a step, (C,) both."""
        if self.spread == self.step_spread == 0:
            return np.ones(len(cohort)), np.ones(len(cohort))
        draws = np.array([_draws(self.seed, device) for device in cohort]).reshape(-1, 2)
        return np.exp(self.spread * draws[:, 0]), np.exp(self.step_spread * draws[:, 1])


def transfer(link: Link, bytes: ArrayLike, mbits: ArrayLike) -> Seconds:
    """Seconds for transfers of `bytes` over a link whose bandwidth is `mbits`; both of any shape alike."""
    round_trip = 2 * link.latency
    bound = math.inf
    if link.loss and round_trip:
        bound = SEGMENT / round_trip * math.sqrt(1.5 / link.loss)
    rate = np.minimum(np.asarray(mbits, np.float64) * 1e6 / 8, bound)
    sent = np.asarray(bytes, np.float64) / (1 - link.loss)
    # Windows that the transfer needs, and windows too small to keep the link busy until they are answered.
    windows = np.ceil(np.log2(sent / FIRST_WINDOW + 1))
    small = np.ceil(np.log2(np.maximum(rate * round_trip / FIRST_WINDOW, 1)))
    waits = np.minimum(np.maximum(windows - 1, 0), small)
    waiting = waits * round_trip - (2**waits - 1) * FIRST_WINDOW / rate
    return np.asarray(link.latency + waiting + sent / rate)


@lru_cache(maxsize=1 << 17)  # a device is asked in many rounds
def _draws(seed: int, device: int) -> tuple[float, float]:
    """Two standard normal draws that belong to a device: of its bandwidths, and of its speed."""
    generator = randomness.generator(seed, "network", device)
    link, speed = torch.randn(2, generator=generator, dtype=torch.float64).tolist()
    return link, speed
