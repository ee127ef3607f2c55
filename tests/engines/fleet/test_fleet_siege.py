"""A whole run with processes amid strangers who do their worst: it ends in the simulated model."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fleet_folders import joined
from fleet_peer import Peer
from fleet_processes import Scene, simulated

from edgewise.engines.fleet.identity import Authority, Identity
from edgewise.engines.fleet.join import join_fleet
from edgewise.engines.fleet.messages import PROTOCOL
from edgewise.engines.fleet.token import Token
from edgewise.errors import EdgewiseError

FILES = 600  # that the coordinator may open
ROUNDS = 200
FLOOD = 2 * FILES  # connections
# Run in place of the command.
FEW = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
from edgewise.cli import main
main()
"""


class Few:
    """Where the coordinator may open few files."""

    def inside(self, device: int | None) -> dict[str, str]:
        return {"program": FEW} if device is None else {}

    def address(self, device: int) -> str:
        return "127.0.0.1"


class Attacks:
    """What strangers do to a coordinator, and one that has joined and is not of the run: device 2."""

    def __init__(self, scene: Scene) -> None:
        self.folder, self.port = scene.folder, scene.port
        self.address, join = f"127.0.0.1:{self.port}", f"127.0.0.1:{self.port + 1}"
        self.ca = scene.authority.serve_as().ca
        self.foreign = joined(Authority.create(self.folder / "other"), self.folder / "foreign", 0)
        self.token = Token((self.address,), join, bytes(32), scene.authority.ca)
        self.held: list[socket.socket] = []

    def flood(self) -> None:
        """Connections on which nothing is said, more than there are descriptors."""
        for port in (self.port, self.port + 1) * 20:
            self.held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        while len(self.held) > FLOOD:
            self.held.pop(0).close()

    def noise(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(os.urandom(1 << 12))

    def stranger(self) -> None:
        peer = Peer(self.address, self.foreign, roots=self.ca)
        peer.hear("end")
        peer.close()

    def insider(self) -> None:
        peer = Peer(self.address, Identity(self.folder / "agent2").load()[1])
        peer.say(hello={"protocol": PROTOCOL, "run": "\0" * 100})
        peer.raw(os.urandom(1 << 10))
        peer.hear("end")
        peer.close()

    def thief(self) -> None:
        join_fleet(self.folder / "thief", self.token, "thief")

    @contextmanager
    def going_on(self) -> Iterator[list[int]]:
        """All of them again and again, each in a thread of its own; how often, in the end."""
        attacks = (self.flood, self.noise, self.stranger, self.insider, self.thief)
        over, counts = threading.Event(), [0] * len(attacks)
        numbers = range(len(attacks))
        threads = [threading.Thread(target=_again, args=(attacks[n], over, counts, n)) for n in numbers]
        for thread in threads:
            thread.start()
        try:
            yield counts
        finally:
            over.set()
            for thread in threads:
                thread.join()
            for connection in self.held:
                connection.close()


def _again(attack: Callable[[], None], over: threading.Event, counts: list[int], number: int) -> None:
    while not over.wait(0.02):
        with suppress(OSError, EdgewiseError):
            attack()
        counts[number] += 1


@pytest.mark.slow
def test_a_run_that_is_besieged_ends_in_the_simulated_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.engines.fleet.join.SECONDS", 2)
    scene = Scene(
        tmp_path, 2, ("--steps", ROUNDS, "--eval-every", 100, "--codec", "topk:0.1"), joined=3, nets=Few()
    )
    del scene.agents[2]
    attacks = Attacks(scene)
    scene.start()
    try:
        scene.tend(lambda: scene.round() >= 2)
        with attacks.going_on() as counts:
            scene.tend()
    finally:
        scene.end()
    assert all(counts) and counts[0] * 40 > FLOOD, counts
    scene.check_journal(ROUNDS)
    assert scene.digest == simulated(tmp_path, scene)
    assert scene.log("coordinator", "refused")
    assert "Traceback" not in (tmp_path / "coordinator.log").read_text()
