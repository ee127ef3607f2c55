"""Network namespaces for the tests, and wires between them that lose, delay and reorder packets.

A wire is a pair of TUN devices, one in each namespace, with this process between them: every packet from one
is held for a while, or thrown away, before it is given to the other. So nothing is asked of the kernel that
may not be built in, as `netem` often is not, and chance is seeded. Packets travel between the namespaces that
are made here and nowhere else.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from dataclasses import dataclass

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
LARGEST = 1 << 16

# Run in a process of its own, which is nowhere else from here on.
INSIDE = """
import ctypes, os
descriptor = os.open(f"/run/netns/{os.environ['NAMESPACE']}", os.O_RDONLY)
if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0x40000000):
    raise OSError(ctypes.get_errno(), "setns")
from edgewise.cli import main
main()
"""


def missing() -> str | None:
    """Why there can be no namespaces here; None where there can."""
    if not os.path.exists("/dev/net/tun"):
        return "no /dev/net/tun"
    try:
        nets = Nets(1)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces are not permitted ({error})"
    nets.close()
    return None


@dataclass
class Weather:
    """Of one wire: seconds of delay and how far it varies, the share of packets lost, and whether any pass.

    A packet that is held longer than the next one arrives after it.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    cut: bool = False


class Nets:
    """A namespace for the coordinator and one for each device, joined by wires of a `Weather` each."""

    def __init__(self, devices: int, seed: int = 0) -> None:
        self.prefix = f"edgewise-{os.getpid()}-{time.monotonic_ns() % 100_000}"
        self.weather = [Weather() for _ in range(devices)]
        self.passed, self.lost = [0] * devices, [0] * devices  # bytes
        self.overtaken = 0  # packets that came before one that was sent earlier
        self._chance, self._names, self._ends = random.Random(seed), list[str](), list[tuple[int, int]]()
        self._running = True
        self._thread = threading.Thread(target=self._carry, daemon=True)
        try:
            self._make(None)
            for device in range(devices):
                self._make(device)
                ours = self._end(None, f"ew{device}", f"10.77.{device}.1")
                theirs = self._end(device, "ew", f"10.77.{device}.2")
                self._ends.append((ours, theirs))
        except BaseException:
            self.close()
            raise
        self._thread.start()

    def inside(self, device: int | None) -> dict[str, str]:
        """How `command.start` starts a process there."""
        return {"program": INSIDE, "NAMESPACE": self._name(device)}

    def address(self, device: int) -> str:
        """Of the coordinator, as the device sees it."""
        return f"10.77.{device}.1"

    def close(self) -> None:
        self._running = False
        if self._thread.is_alive():
            self._thread.join()
        for pair in self._ends:
            for end in pair:
                os.close(end)
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    # ---- how they are made ----

    def _name(self, device: int | None) -> str:
        return f"{self.prefix}-{'c' if device is None else device}"

    def _make(self, device: int | None) -> None:
        name = self._name(device)
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        self._names.append(name)
        self._ip(device, "link", "set", "lo", "up")

    def _ip(self, device: int | None, *words: str) -> None:
        subprocess.run(["ip", "-n", self._name(device), *words], check=True, capture_output=True)

    def _end(self, device: int | None, link: str, address: str) -> int:
        """The descriptor of a TUN device in a namespace."""
        end = _in_namespace(self._name(device), lambda: _tun(link))
        self._ip(device, "address", "add", f"{address}/24", "dev", link)
        self._ip(device, "link", "set", link, "up")
        return end

    # ---- packets ----

    def _carry(self) -> None:
        where = dict[int, tuple[int, int]]()  # by end: its device, and the other end
        for device, (ours, theirs) in enumerate(self._ends):
            where |= {ours: (device, theirs), theirs: (device, ours)}
        held: list[tuple[float, int, int, bytes]] = []
        number, last = 0, 0
        while self._running:
            wait = min(0.1, max(0.0, held[0][0] - time.monotonic())) if held else 0.1
            for end in select.select(list(where), [], [], wait)[0]:
                device, to = where[end]
                packet, weather = os.read(end, LARGEST), self.weather[device]
                if weather.cut or self._chance.random() < weather.loss:
                    self.lost[device] += len(packet)
                    continue
                self.passed[device] += len(packet)
                at = time.monotonic() + max(0.0, self._chance.gauss(weather.delay, weather.jitter))
                heapq.heappush(held, (at, number := number + 1, to, packet))
            while held and held[0][0] <= time.monotonic():
                _, sent, to, packet = heapq.heappop(held)
                self.overtaken += sent < last
                last = max(last, sent)
                os.write(to, packet)


def _tun(link: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", link.encode(), IFF_TUN | IFF_NO_PI))
    return end


def _in_namespace(name: str, action: object) -> int:
    """The result of an action in a namespace: a thread goes there, and ends."""
    found: list[int | OSError] = []

    def work() -> None:
        try:
            descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {name}")
                found.append(action())  # type: ignore[operator]
            finally:
                os.close(descriptor)
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]
