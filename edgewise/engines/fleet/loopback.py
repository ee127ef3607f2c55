"""A whole fleet on this machine: a coordinator in this process, and a process for each device's agent.

It is the real thing (certificates, TLS, the journal, the agents' own memories) with nobody to invite: what
`edgewise run --engine fleet` uses to show that a run deploys as it was simulated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgewise import specs
from edgewise.config import Config
from edgewise.data.partition import PARTITIONS
from edgewise.engines.fleet.certificates import fingerprint
from edgewise.engines.fleet.coordinate import Coordinator
from edgewise.engines.fleet.fleet import Fleet, Run
from edgewise.engines.fleet.home import Home
from edgewise.engines.fleet.host import Ports
from edgewise.engines.fleet.identity import Authority, Identity
from edgewise.engines.fleet.policy import Policy
from edgewise.engines.fleet.roster import add, members
from edgewise.errors import EdgewiseError

HOME = "fleet"  # in the run's folder
GRACE = 10.0  # seconds for agents to go by themselves


def loopback(run: Run, config: Config, folder: Path, note: dict[str, Any] | None) -> Fleet:
    """The engine of a run whose agents this process starts and ends."""
    home = Home(folder / HOME)
    authority = Authority.load(home.ca) if home.ca.is_dir() else Authority.create(home.ca)
    coordinator = Coordinator(home, authority, Ports("127.0.0.1:0", "127.0.0.1:0"))
    fleet = coordinator.fleet(run, Policy(), note)
    try:
        _enrol(home, authority, coordinator, config.devices)
        agents = Agents([_command(home, config, coordinator.address, n) for n in range(config.devices)], home)
    except BaseException:
        fleet.close()
        raise
    coordinator.watch_over(agents)
    return fleet


def _enrol(home: Home, authority: Authority, coordinator: Coordinator, devices: int) -> None:
    """Give every device its identity, as joining would."""
    known = {member.id for member in members(coordinator.journal).result()}
    for device in range(devices):
        folder = _home(home, device)
        identity = Identity(folder)
        if identity.joined and device in known:
            continue
        certificate = authority.sign(identity.request(), device)
        identity.accept(certificate, authority.ca)
        add(coordinator.journal, device, f"loopback {device}", fingerprint(certificate)).result()


def _home(home: Home, device: int) -> Path:
    return home.folder / "agents" / str(device)


def _command(home: Home, config: Config, address: str, device: int) -> list[str]:
    words = [
        *(sys.executable, "-m", "edgewise", "agent", "run", str(_home(home, device)), "--once"),
        *("--coordinator", address, "--data", config.data, "--devices", str(config.devices)),
        *("--partition", specs.text(PARTITIONS, config.partition), "--seed", str(config.seed)),
        *("--accelerator", config.accelerator, "--allow", config.model),
    ]
    return words + (["--data-dir", config.data_dir] if config.data_dir else [])


class Agents:
    """The agents' processes. Their logs lie in their homes."""

    def __init__(self, commands: list[list[str]], home: Home) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.logs = [_home(home, device) / "agent.log" for device in range(len(commands))]
        self.all: list[subprocess.Popen[bytes]] = []
        for command, log in zip(commands, self.logs, strict=True):
            with log.open("ab") as file:
                # A session of their own: Ctrl-C is for the coordinator, which ends them.
                self.all.append(
                    subprocess.Popen(
                        command, stdout=file, stderr=file, env=environment, start_new_session=True
                    )
                )

    def check(self) -> None:
        """EdgewiseError if an agent has ended though the run has not."""
        for device, agent in enumerate(self.all):
            if agent.poll() not in (None, 0):
                last = self.logs[device].read_text(errors="replace").strip().splitlines()[-1:]
                raise EdgewiseError(
                    f"agent {device} ended with status {agent.returncode}: {' '.join(last)[:400]}"
                )

    def end(self) -> None:
        """Wait a little for agents to go by themselves, then end them."""
        until = time.monotonic() + GRACE
        for agent in self.all:
            try:
                agent.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                agent.terminate()
        for agent in self.all:
            try:
                agent.wait(GRACE)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
