"""A whole fleet in this process: the coordinator as it is, and its agents on an event loop in one thread.

Nothing is faked: gRPC (TLS if there is an authority), the journal, the spool, the devices' memories on disk.
What a process of its own would add is a death by SIGKILL, and two seconds for PyTorch.

    fleet = InProcess(tmp_path, data, authority)
    rounds = fleet.play(config)             all rounds, with all devices
    fleet.digest == simulated(config, data, tmp_path / "inline")["model_digest"]

Agents come and go by `fleet.agents.start(3)` and `fleet.agents.stop(3)`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from edgewise import records, rounds, wire
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.deploy import Share, assemble_coordinator, equip
from edgewise.device import Memory
from edgewise.engines.fleet.agent import Agent
from edgewise.engines.fleet.certificates import fingerprint
from edgewise.engines.fleet.coordinate import Coordinator
from edgewise.engines.fleet.duty import Duty, Outfit, Training
from edgewise.engines.fleet.fleet import Fleet
from edgewise.engines.fleet.home import Home
from edgewise.engines.fleet.host import Ports
from edgewise.engines.fleet.identity import Authority, Identity
from edgewise.engines.fleet.keep import Keep
from edgewise.engines.fleet.link import Link
from edgewise.engines.fleet.policy import Policy
from edgewise.engines.fleet.roster import add
from edgewise.models.norms import Norm

T = TypeVar("T")
TINY = f"{__name__}:tiny"
SHAPE, CLASSES = (1, 4, 4), 6
PATIENCE = 120.0  # seconds for what takes a fraction of one on an idle machine


def tiny(shape: tuple[int, int, int], classes: int, norm: Norm) -> nn.Module:
    """A model of a few hundred numbers: a convolution, a norm, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3), norm.layer(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 2, classes)
    )


def specks(examples: int = 48, tests: int = 24) -> Dataset:
    """Small images of noise around a mean of their class."""
    draws = torch.Generator().manual_seed(1)
    labels = torch.arange(examples + tests) % CLASSES
    centres = torch.randint(0, 200, (CLASSES, *SHAPE), generator=draws)
    images = centres[labels] + torch.randint(0, 56, (examples + tests, *SHAPE), generator=draws)
    images = images.to(torch.uint8)
    parts = ((images[:examples], labels[:examples]), (images[examples:], labels[examples:]))
    return Dataset.of("specks", train=parts[0], test=parts[1])


def config(**flat: Any) -> Config:
    """A run of two rounds or so on `specks`, in which three devices hold two classes each."""
    plain = {"model": TINY, "devices": 3, "partition": "labels:2", "batch": 4, "lr": 0.05, "fused": "off"}
    local = 1 if flat.get("algorithm", "sync-sgd") == "sync-sgd" else 2
    return Config.of({**plain, "sync_every": local, "steps": 2 * local, "eval_every": 1, **flat})


def simulated(config: Config, dataset: Dataset, out: Path) -> dict[str, Any]:
    """The summary of the same run with the devices inline, one after the other."""
    for _ in rounds.run(replace(config, engine="inline", fused="off"), out, dataset=dataset):
        pass
    found = records.summary(out)
    assert found is not None
    return found


class Thread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="agents", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return self.begin(work).result(PATIENCE)

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        """Let what was cancelled come to its end, then stop."""

        async def rest() -> None:
            if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(tasks, timeout=20)

        self.call(rest())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@dataclass
class Agents:
    """Agents by device. `share`: how their data is dealt; `homes`: the folder with each one's home."""

    homes: Path
    dataset: Dataset
    share: Share
    allow: Iterable[str]
    address: str = ""
    running: dict[int, tuple[Agent, Future[None]]] = field(default_factory=dict)
    duty: Callable[[Any, int], Duty] | None = None  # in place of training
    tells: bool = False  # whether the coordinator may know of classes
    before: Callable[[int, int], None] | None = None  # called with device and round, before it trains
    thread: Thread = field(default_factory=Thread)
    executors: dict[int, ThreadPoolExecutor] = field(default_factory=dict)
    seeding: threading.Lock = field(default_factory=threading.Lock)  # models are made from one generator

    def start(self, device: int) -> Agent:
        """The device comes, as after a restart: it knows what lies in its home."""
        executor = self.executors.setdefault(device, ThreadPoolExecutor(1, f"device {device}"))
        agent = Agent(
            self._link(device),
            lambda plan: self._duty(plan, device),
            lambda run: Keep(self.homes / str(device) / "memory" / run),
            executor,
            once=True,
        )
        self.running[device] = (agent, self.thread.begin(agent.run()))
        return agent

    def stop(self, device: int) -> None:
        """The device goes without a word."""
        _, work = self.running.pop(device)
        self.thread.call(_end(work))

    def join(self) -> None:
        """Wait until all have been sent home; what ended one of them otherwise is raised here."""
        for _, work in self.running.values():
            work.result(PATIENCE)
        self.running.clear()

    def check(self) -> None:
        """Raise what has ended an agent, as the processes of `loopback` are checked on."""
        for _, work in list(self.running.values()):
            if work.done() and not work.cancelled() and (error := work.exception()) is not None:
                raise error

    def close(self) -> None:
        for device in list(self.running):
            self.stop(device)
        for executor in self.executors.values():
            executor.shutdown()
        self.thread.close()

    def _link(self, device: int) -> Link:
        identity = Identity(self.homes / str(device))
        credentials = identity.load()[1] if identity.joined else None
        return Link((self.address,), device, credentials)

    def _duty(self, plan: Any, device: int) -> Duty:
        with self.seeding:
            if self.duty is not None:
                return self.duty(plan, device)
            outfit = equip(plan, self.dataset, device, self.share, tuple(self.allow), "cpu")
            return Watched(outfit, self.tells, self.before)


class Watched(Training):
    """Training that may be held up, or made to fail, before it begins."""

    def __init__(self, outfit: Outfit, tells: bool, before: Callable[[int, int], None] | None) -> None:
        super().__init__(outfit, tells)
        self.before = before

    def train(self, frames: Sequence[bytes], memory: Memory) -> tuple[bytes, Memory]:
        if self.before is not None:
            self.before(self.outfit.device.id, wire.Header.parse(frames[-1]).round)
        return super().train(frames, memory)


async def _end(work: Future[None]) -> None:
    task = asyncio.wrap_future(work)
    task.cancel()
    await asyncio.wait([task])


class InProcess:
    """A coordinator in `folder`/home, a run in `folder`/run, agents in `folder`/agents.

    Without an authority there is no TLS. The same folder again goes on with what lies there.
    """

    def __init__(
        self, folder: Path, dataset: Dataset, authority: Authority | None = None, policy: Policy | None = None
    ) -> None:
        self.home, self.out, self.agents_folder = Home(folder / "home"), folder / "run", folder / "agents"
        self.dataset, self.authority, self.policy = dataset, authority, policy or Policy()
        self.home.ca.mkdir(parents=True, exist_ok=True)
        self.present: Iterable[int] | None = None  # who is started with a run; None: all
        self.gathered = False  # whether the first round waits until they are all there
        self.central = True  # whether the coordinator evaluates, or devices do
        self.ready: Callable[[InProcess], None] = lambda fleet: None  # called before any agent is there
        self.coordinator: Coordinator | None = None
        self.engine: Fleet | None = None
        self.agents: Agents | None = None

    def play(self, config: Config, **options: Any) -> list[rounds.Round]:
        """All rounds that are left."""
        with closing(self.drive(config, **options)) as play:
            return list(play)

    def drive(
        self, config: Config, *, checkpoint_seconds: float = 15.0, resume: bool = False
    ) -> Iterator[rounds.Round]:
        """The rounds, as `rounds.run` yields them. Closing it stops the coordinator, then the agents."""
        share = Share(config.partition, config.devices, config.seed)
        self.agents = Agents(self.agents_folder, self.dataset, share, (config.model,))
        try:
            yield from rounds.drive(
                replace(config, engine="fleet"),
                self.out,
                self._prepare,
                self._reach,
                resume,
                checkpoint_seconds,
            )
            self.agents.join()
        finally:
            self.agents.close()

    def here(self) -> set[int]:
        """The devices that the coordinator can ask."""
        assert self.engine is not None
        courier = self.engine.courier

        async def look() -> set[int]:
            return courier.present()

        return self.engine.host.call(look())

    def _prepare(self, config: Config) -> Any:
        shape = (self.dataset.shape, len(self.dataset.classes))
        return assemble_coordinator(config, self.dataset if self.central else shape)

    def _reach(self, parts: Any, note: Any) -> Fleet:
        assert self.agents is not None
        ports = Ports("127.0.0.1:0", "127.0.0.1:0", insecure=self.authority is None)
        coordinator = self.coordinator = Coordinator(self.home, self.authority, ports)  # type: ignore[arg-type]
        fleet = self.engine = coordinator.fleet(parts.fleet_run(self.out), self.policy, note)
        try:
            fleet.check = self.agents.check
            self.ready(self)
            self.agents.address = coordinator.address
            devices = range(parts.config.devices)
            for device in devices:
                self._enrol(coordinator, device)
            for device in devices if self.present is None else self.present:
                self.agents.start(device)
            while self.gathered and self.here() != set(self.agents.running):
                self.agents.check()
                time.sleep(0.005)
        except BaseException:
            fleet.close()
            raise
        return fleet

    def _enrol(self, coordinator: Coordinator, device: int) -> None:
        """Give a device its identity, as joining would."""
        identity = Identity(self.agents_folder / str(device))
        if self.authority is not None and not identity.joined:
            certificate = self.authority.sign(identity.request(), device)
            identity.accept(certificate, self.authority.ca)
            add(coordinator.journal, device, f"device {device}", fingerprint(certificate)).result(PATIENCE)

    @property
    def summary(self) -> dict[str, Any]:
        """What the finished run wrote down."""
        found: dict[str, Any] = json.loads((self.out / records.SUMMARY).read_text())
        return found

    @property
    def digest(self) -> str:
        return str(self.summary["model_digest"])
