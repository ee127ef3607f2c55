"""A fleet of real processes for the tests, and what watches over them: whoever dies is started again.

A coordinator and its agents speak over mutual TLS on this machine. Each can be armed with points at which it
kills itself (`faults.py`), one after the other: a process that was killed at one is started with the next.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import command
from command import Done, Running

from edgewise.engines.fleet.certificates import fingerprint
from edgewise.engines.fleet.home import Contact, Home
from edgewise.engines.fleet.identity import Authority, Identity
from edgewise.engines.fleet.keep import Keep
from edgewise.engines.fleet.roster import add


class Nets(Protocol):
    """Where processes run, if not all in one place. `device` None: the coordinator."""

    def inside(self, device: int | None) -> dict[str, str]: ...

    def address(self, device: int) -> str: ...


PATIENCE = 300.0  # seconds for a run that takes half a minute on an idle machine
MODULES = (
    *("edgewise.engines.fleet.coordinate", "edgewise.engines.fleet.agent", "edgewise.engines.fleet.join"),
    *("edgewise.deploy", "edgewise.rounds", "edgewise.engines.inline"),
)
MODEL = """
from torch import nn

def net(shape, classes, width=8):
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes)
    )
"""
DATA = ("--data", "digits")
PARTITION = "--partition"
DEAL = (PARTITION, "iid", "--seed", "3")  # unless the settings have another partition


@dataclass
class Unit:
    """A program that is started again when it dies, until it has ended with status 0.

    `faults`: where it is to die, one a start; `deaths`: how it has ended so far. An end that nobody asked
    for fails the test.
    """

    name: str
    launch: Callable[[Sequence[str]], Running]
    faults: list[str] = field(default_factory=list)
    process: Running | None = None
    deaths: list[int] = field(default_factory=list)
    killed: int = 0  # by the test, and not yet seen
    between: Callable[[], None] = lambda: None  # what happens while it is dead
    done: bool = False
    down: bool = False  # left dead on purpose

    def start(self) -> None:
        assert self.process is None or self.process.ended
        self.down = False
        self.process = self.launch(["--fault", self.faults[0]] if self.faults else [])

    def tend(self) -> None:
        """Start it again if it has died."""
        if self.process is None or self.done or self.down or not self.process.ended:
            return
        ended = self.process.wait()
        self.deaths.append(ended.status)
        if ended.status == 0:
            self.done = True
        elif ended.status == -signal.SIGKILL and self.killed:
            self.killed -= 1
            self.start()
        elif ended.status == -signal.SIGKILL and self.faults:
            del self.faults[0]
            self.between()
            self.start()
        else:
            raise AssertionError(f"{self.name} ended with {ended.status}: {ended.err[-3000:]}")

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        if number == signal.SIGKILL:
            self.killed += 1
        self.process.send(number)

    def leave(self, number: signal.Signals) -> Done:
        """Ask it to go, and see it gone, in good order."""
        self.down = True
        assert self.process is not None
        self.process.send(number)
        command.until(lambda: self.process and self.process.ended)
        ended = self.process.wait()
        assert ended.status == 0, ended
        assert "Traceback" not in ended.err, ended
        return ended

    def kill(self) -> None:
        """Dead, until `start`."""
        self.down = True
        if self.process is not None:
            if not self.process.ended:
                self.process.send(signal.SIGKILL)
            self.process.wait()


class Scene:
    """A fleet in a folder. `settings`: of the run; `policy`: further options of `coordinator run`."""

    def __init__(
        self,
        folder: Path,
        devices: int,
        settings: Sequence[object],
        policy: Sequence[object] = (),
        joined: int | None = None,
        nets: Nets | None = None,
    ) -> None:
        self.folder, self.devices, self.nets = folder, devices, nets
        given = list(settings)
        self.deal = (*DEAL, *(given[(at := given.index(PARTITION)) : at + 2] if PARTITION in given else ()))
        self.settings = [
            *(() if "--shape" in policy else DATA),
            *DEAL,
            *("--devices", devices, "--model", "tiny:net", "--batch", 4, "--accelerator", "cpu", *settings),
        ]
        self.policy = list(policy)
        self.port = free_port()
        (folder / "tiny.py").write_text(MODEL)
        self.home = Home(folder / "home")
        self.authority = Authority.create(self.home.ca)
        Contact(("127.0.0.1",), self.port).save(self.home.folder)
        for device in range(devices if joined is None else joined):
            self.enrol(device)
        self.coordinator = Unit("the coordinator", self._coordinator)
        self.agents = [
            Unit(f"agent {n}", self._agent(n)) for n in range(devices if joined is None else joined)
        ]

    def enrol(self, device: int) -> None:
        """Take a device in, as joining would; the coordinator must not be running."""
        identity = Identity(self.folder / f"agent{device}")
        certificate = self.authority.sign(identity.request(), device)
        identity.accept(certificate, self.authority.ca)
        with self.home.alone() as journal:
            add(journal, device, f"device {device}", fingerprint(certificate)).result()

    @property
    def units(self) -> list[Unit]:
        return [self.coordinator, *self.agents]

    def _coordinator(self, faults: Sequence[str]) -> Running:
        listen = ("--listen", f"{'0.0.0.0' if self.nets else '127.0.0.1'}:{self.port}")
        return command.start(
            *("coordinator", "run", "home", *self.settings, *listen, "--log", "coordinator.log"),
            *(*self.policy, *faults),
            folder=self.folder,
            **(self.nets.inside(None) if self.nets else {}),
        )

    def _agent(self, device: int) -> Callable[[Sequence[str]], Running]:
        def launch(faults: Sequence[str]) -> Running:
            host = self.nets.address(device) if self.nets else "127.0.0.1"
            share = (*DATA, *self.deal, "--devices", self.devices, "--allow", "tiny:net")
            return command.start(
                *("agent", "run", f"agent{device}", *share, "--coordinator", f"{host}:{self.port}"),
                *("--accelerator", "cpu", "--log", f"agent{device}.log", *faults),
                folder=self.folder,
                **(self.nets.inside(device) if self.nets else {}),
            )

        return launch

    def join(self, device: int) -> None:
        """A new device, in the way that a user lets it join a coordinator that runs."""
        done = command.edgewise("coordinator", "invite", "home", "--device", device, folder=self.folder)
        assert done.status == 0, done
        folder = f"agent{device}"
        done = command.edgewise("agent", "join", folder, done.out.strip(), folder=self.folder)
        assert done.status == 0, done
        self.agents.append(Unit(f"agent {device}", self._agent(device)))
        self.agents[-1].start()

    # ---- running ----

    def start(self) -> None:
        command.load(*MODULES)
        for unit in self.units:
            unit.start()

    def tend(self, until: Callable[[], Any] | None = None, patience: float = PATIENCE) -> None:
        """Watch over everybody until a condition holds; or else until the coordinator has finished."""
        end = time.monotonic() + patience
        while not (until() if until else self.coordinator.done):
            for unit in self.units:
                unit.tend()
            assert time.monotonic() < end, self.report()
            time.sleep(0.005)

    def play(self) -> None:
        """The whole run."""
        self.start()
        try:
            self.tend()
        finally:
            self.end()

    def end(self) -> None:
        for unit in self.units:
            unit.kill()

    # ---- what there is to see ----

    def report(self) -> str:
        """What to look at when something went wrong."""
        words = [f"{unit.name}: ended {unit.deaths}, still armed with {unit.faults}" for unit in self.units]
        for path in sorted(self.folder.glob("*.log")):
            words += [f"---- {path.name}", *path.read_text().splitlines()[-15:]]
        return "\n".join(words)

    def log(self, name: str, event: str) -> list[dict[str, Any]]:
        """The lines of a log with this event."""
        path = self.folder / f"{name}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return [row for row in rows if row["event"] == event]

    def rows(self, query: str) -> list[Any]:
        """Rows of the journal."""
        file = f"file:{self.home.journal_file}?mode=ro"
        with closing(sqlite3.connect(file, uri=True)) as database:
            return database.execute(query).fetchall()

    def round(self) -> int:
        """How many rounds were opened."""
        return int(self.rows("SELECT count(*) FROM rounds")[0][0])

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.home.run / "summary.json").read_text()))

    @property
    def digest(self) -> str:
        return str(self.summary["model_digest"])

    def check_journal(self, rounds: int, everybody: bool = True) -> None:
        """Every round closed, every update once and whole, and nothing left behind."""
        assert self.rows("SELECT number FROM rounds WHERE closed IS NULL") == []
        assert [row[0] for row in self.rows("SELECT number FROM rounds ORDER BY number")] == [
            *range(1, rounds + 1)
        ]
        updates = self.rows("SELECT round, device FROM updates ORDER BY round, device")
        assert len(updates) == len(set(updates))
        if everybody:
            assert updates == [(r, d) for r in range(1, rounds + 1) for d in range(self.devices)]
        assert [path for path in self.folder.glob("home/spool/**/*") if path.is_file()] == []

    def check_memories(self, steps: int) -> None:
        """Every device stands in its data where its updates that count have brought it, by so many each.

        Be it that it has not heard yet of the last one, and will when it comes again.
        """
        for device in range(self.devices):
            (folder,) = (self.folder / f"agent{device}" / "memory").iterdir()
            keep, where = Keep(folder), f"device = {device}"
            last, memory = keep.round, keep.memory
            if (pending := keep.pending) is not None:
                query = f"SELECT digest FROM updates WHERE {where} AND round = {pending.round}"
                if self.rows(query) == [(pending.digest.hex(),)]:
                    last, memory = pending.round, pending.memory
            counted = self.rows(f"SELECT count(*), max(round) FROM updates WHERE {where}")
            assert counted == [(memory.step // steps, last)], self.report()

    def check_faults(self) -> None:
        """Whoever was armed has died of it, every time."""
        for unit in self.units:
            assert unit.faults == [], self.report()


REPLAY = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fleet_replay import replay
replay()
"""


def replayed(scene: Scene) -> str:
    """The digest of a run in one process with the devices that the journal says were in each round."""
    done = command.edgewise("coordinator", folder=scene.folder, program=REPLAY)
    assert done.status == 0, done
    return done.out.strip()


def simulated(folder: Path, scene: Scene) -> str:
    """The digest of the same run with devices in one process."""
    options = ("--engine", "inline", "--fused", "off", "--out", "inline")
    done = command.edgewise("run", *scene.settings, *options, folder=folder)
    assert done.status == 0, done
    return str(json.loads((folder / "inline" / "summary.json").read_text())["model_digest"])


def free_port() -> int:
    """A port that is free, as the next one is, out of the range that systems give to those who call out."""
    for _ in range(1000):
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
