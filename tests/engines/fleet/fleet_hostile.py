"""Peers that say whatever a test wants them to, to a coordinator that runs for real, and what it makes of it.

site = Site(tmp_path)                     a coordinator with TLS, honest agents 0 and 1, device 2 for the test
with site.open(2) as round:               a round is open; device 2 is asked, and the honest agents wait
    head, frames = round.peers[2].task()  what device 2 is to do
    ...
assert 2 not in round.took               the others have answered, and the round's state is right
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from fleet_in_process import PATIENCE, TINY, InProcess, config, specks
from fleet_peer import Peer, until

from edgewise import records, rounds
from edgewise.assemble import Parts, assemble
from edgewise.config import Config
from edgewise.deploy import Share, equip
from edgewise.device import Memory, Reply, Task
from edgewise.engines import Inline
from edgewise.engines.fleet.duty import Training
from edgewise.engines.fleet.identity import Authority, Credentials, Identity
from edgewise.engines.fleet.logs import log_to
from edgewise.engines.fleet.messages import Down
from edgewise.engines.fleet.operator import Operator
from edgewise.engines.fleet.policy import Policy
from edgewise.errors import EdgewiseError
from edgewise.records import Checkpoint

ROUNDS = 10_000  # more than any test plays


class Waiting(Training):
    """Training that begins when the test says so."""

    gate = threading.Event()

    def train(self, frames: Sequence[bytes], memory: Memory) -> tuple[bytes, Memory]:
        assert self.gate.wait(PATIENCE)
        return super().train(frames, memory)


class Partly(Inline):
    """The reference: the same devices, of which some do not answer in some rounds."""

    absent: dict[int, list[int]]

    def ask(self, task: Task, cohort: Sequence[int]) -> Iterator[Reply]:
        missing = self.absent.get(task.round, [])
        return super().ask(task, [device for device in cohort if device not in missing])


class Reached(InProcess):
    """Says when the coordinator is there and everyone has joined."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.reached: Future[Any] = Future()

    def _reach(self, parts: Any, note: Any) -> Any:
        try:
            fleet = super()._reach(parts, note)
        except BaseException as error:
            self.reached.set_exception(error)
            raise
        self.reached.set_result(fleet)
        return fleet


@dataclass
class Open:
    """A round that is open; `took`: whose updates count in it."""

    number: int
    peers: dict[int, Peer] = field(default_factory=dict)
    took: set[int] = field(default_factory=set)


class Site:
    """A coordinator in this process and honest agents; all further devices are the test's."""

    def __init__(
        self,
        folder: Path,
        devices: int = 3,
        quorum: float = 0.5,
        honest: Sequence[int] = (0, 1),
        beat: float = 10.0,
    ) -> None:
        self.folder, self.honest, self.quorum, self.dataset = folder, honest, quorum, specks()
        self.authority = Authority.create(folder / "home" / "ca")
        self.inside = Reached(folder, self.dataset, self.authority, Policy(quorum=quorum, beat=beat))
        self.inside.present = ()
        self.config = config(devices=devices, partition="iid", steps=ROUNDS, eval_every=0)
        self.log = folder / "log"
        self._kept = _log(self.log)
        self._worker = ThreadPoolExecutor(1)
        self._absent: dict[int, list[int]] = {}
        self._peers: list[Peer] = []
        self._memories: dict[int, Memory] = {}  # of the test's devices
        self._proposed: dict[int, Memory] = {}
        self.number = 0
        self.play = self.inside.drive(self.config, checkpoint_seconds=0)
        self.reference = rounds.drive(
            replace(self.config, engine="inline"), folder / "inline", self._assemble, self._inline, False, 0
        )

    def _assemble(self, config: Config) -> Parts:
        return assemble(config, self.dataset)

    def _inline(self, parts: Parts, note: Any) -> Partly:
        engine = parts.engine(note)
        assert isinstance(engine, Inline)
        partly = Partly(engine.devices, engine.model, engine.work, engine.memories)
        partly.absent = self._absent
        return partly

    # ---- rounds ----

    def start(self) -> Future[Any]:
        """Let the next round begin, with the honest agents waiting."""
        Waiting.gate.clear()
        result = self._worker.submit(next, self.play)
        self.inside.reached.result(PATIENCE)
        agents = self.inside.agents
        assert agents is not None
        if agents.duty is None:
            agents.duty = self._duty
            for device in self.honest:
                agents.start(device)
        return result

    def _duty(self, plan: Any, device: int) -> Waiting:
        return Waiting(equip(plan, self.dataset, device, self.share, (TINY,), "cpu"))

    @property
    def share(self) -> Share:
        return Share(self.config.partition, self.config.devices, self.config.seed)

    @contextmanager
    def open(self, *devices: int) -> Iterator[Open]:
        """A round that is open: at the end the honest agents answer, and its state must be as it should.

        `devices`: peers of the test's that are there, and are asked too.
        """
        if self.number == 0 and self.quorum < 1:
            self.finish(self.start(), Open(1))
        peers = {device: self.peer(device) for device in devices} if self.number else {}
        for peer in peers.values():
            peer.ready(peer.hello())
            peer.served()
        result = self.start()
        if not self.number:
            peers = {device: self.peer(device) for device in devices}
            for peer in peers.values():
                peer.ready(peer.hello())
        round = Open(self.number + 1, peers)
        courier = self.courier
        until(
            lambda: result.done() or (courier.window is not None and courier.window.round == round.number),
            "the round opens",
        )
        try:
            yield round
        except BaseException:
            with suppress(AssertionError):
                self.finish(result, round)
            raise
        self.finish(result, round)
        for peer in self._peers:
            peer.close()
        self._peers.clear()
        until(lambda: self.courier.sessions.keys() <= set(self.honest), "the test's peers are gone", 20)

    def finish(self, result: Future[Any], round: Open) -> None:
        Waiting.gate.set()
        row = result.result(PATIENCE)
        self.number, round.took = row.round, set(self.took(row.round))
        assert row.round == round.number and round.took & set(
            self.honest
        )  # on a busy machine not all in time
        self._absent[row.round] = [d for d in range(self.config.devices) if d not in round.took]
        self._memories |= {d: memory for d, memory in self._proposed.items() if d in round.took}
        self._proposed.clear()
        expected = next(self.reference)
        assert expected.round == row.round and expected.train_loss == row.train_loss
        for one, other in zip(self._state(self.inside.out), self._state(self.folder / "inline"), strict=True):
            assert torch.equal(one, other), f"round {row.round} ended in another state than it should"

    def took(self, round: int) -> dict[int, str]:
        return dict(self.journal.round(self.courier.run, round).result(PATIENCE).taken)

    def _state(self, out: Path) -> Iterator[torch.Tensor]:
        tensors = Checkpoint.load(out / records.CHECKPOINT).tensors
        return (tensors[name] for name in sorted(tensors))

    # ---- who is there ----

    @property
    def courier(self) -> Any:
        assert self.inside.engine is not None
        return self.inside.engine.courier

    @property
    def journal(self) -> Any:
        assert self.inside.engine is not None
        return self.inside.engine.journal

    def credentials(self, device: int) -> Credentials:
        return Identity(self.inside.agents_folder / str(device)).load()[1]

    def peer(self, device: int, **options: Any) -> Peer:
        """A stream with a device's certificate."""
        return self.stranger(self.credentials(device), **options)

    def stranger(self, credentials: Credentials | None, address: str | None = None, **options: Any) -> Peer:
        """A stream with whatever certificate, which ends with the round."""
        peer = Peer(address or self.address, credentials, **options)
        self._peers.append(peer)
        return peer

    @property
    def address(self) -> str:
        assert self.inside.agents is not None
        return self.inside.agents.address

    @property
    def join_address(self) -> str:
        assert self.inside.coordinator is not None
        return self.inside.coordinator.join_address

    def answer(self, device: int, frames: Sequence[bytes]) -> bytes:
        """The update that an honest device would send; if it is taken, its memory moves on."""
        duty = Training(equip(self.plan, self.dataset, device, self.share, (TINY,), "cpu"))
        pieces, self._proposed[device] = duty.train(frames, self._memories.get(device, Memory()))
        return b"".join(pieces)

    @property
    def plan(self) -> Any:
        return Down(plan=self.courier.plan).plan

    def ask(self, **request: Any) -> Any:
        """As the operator."""
        assert self.inside.engine is not None
        return self.inside.engine.host.call(Operator(self.journal, self.courier).answer(request))

    # ---- what was written down ----

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The coordinator's log, one event of it."""
        rows = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [row for row in rows if row["event"] == event and row["from"] == "edgewise.coordinator"]

    def noted(self, event: str, words: str, device: int | None = None) -> None:
        """Both the log and the journal say this."""

        def said() -> bool:
            lines = [
                row for row in self.lines(event) if words in row["words"] and row.get("device") == device
            ]
            rows = self.journal.ask(
                lambda database: database.execute(
                    "SELECT words FROM events WHERE kind = ? AND device IS ?", (event, device)
                ).fetchall()
            ).result(PATIENCE)
            return bool(lines) and any(words in row[0] for row in rows)

        until(said, f"{event}: {words}", 20)

    def close(self) -> None:
        Waiting.gate.set()
        for peer in self._peers:
            peer.close()
        if self.inside.reached.done():
            self.inside.reached.result().check = _given_up
        try:
            self._worker.submit(self.play.close).result(PATIENCE)
        finally:
            self.reference.close()
            self._worker.shutdown()
            _unlog(self._kept)


def _given_up() -> None:
    raise EdgewiseError("the test has ended")


def _log(path: Path) -> Any:
    logger = logging.getLogger("edgewise")
    kept = (list(logger.handlers), logger.level, logger.propagate, logging.raiseExceptions)
    log_to(path)
    return kept


def _unlog(kept: Any) -> None:
    logger = logging.getLogger("edgewise")
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.propagate, logging.raiseExceptions = kept[0], kept[2], kept[3]
    logger.setLevel(kept[1])
