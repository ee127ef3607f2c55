"""Rounds that do not go by the book: devices that are slow or apart, a round that was not opened."""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from fleet_in_process import InProcess, config, simulated, specks

from edgewise import records, rounds
from edgewise.assemble import assemble
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.device import Reply, Task
from edgewise.engines import Inline
from edgewise.engines.fleet.operator import ask
from edgewise.engines.fleet.policy import Policy
from edgewise.errors import EdgewiseError
from edgewise.memories import Memories

PATIENCE = 60


@pytest.fixture(scope="module")
def data() -> Dataset:
    return specks()


class Gate:
    """Holds some devices up in some rounds until it is opened."""

    def __init__(self, held: Callable[[int, int], bool]) -> None:
        self.held, self.open = held, threading.Event()

    def __call__(self, device: int, round: int) -> None:
        if self.held(device, round):
            assert self.open.wait(PATIENCE)

    def on(self, fleet: InProcess) -> None:
        assert fleet.agents is not None
        fleet.agents.before = self


class Absent(Inline):
    """The inline loop, without the devices that are missing in a round."""

    missing: Mapping[int, Sequence[int]]

    def ask(self, task: Task, cohort: Sequence[int]) -> Iterator[Reply]:
        return super().ask(task, [device for device in cohort if device not in self.missing[task.round]])


def left_out(
    config: Config, data: Dataset, out: Path, missing: Mapping[int, Sequence[int]]
) -> tuple[list[rounds.Round], str]:
    """The rounds of the inline loop without these devices, and the digest of its model."""

    def reach(parts: Any, note: Any) -> Absent:
        engine = Absent(parts.devices, parts.model, parts.work, Memories(note))
        engine.missing = missing
        return engine

    with closing(rounds.drive(config, out, lambda one: assemble(one, data), reach, False)) as play:
        found = list(play)
    summary = records.summary(out)
    assert summary is not None
    return found, summary["model_digest"]


# ---- who is missing ----


def test_a_round_without_a_device_is_that_of_an_engine_that_leaves_it_out(
    data: Dataset, tmp_path: Path
) -> None:
    """With what a codec loses both ways: the late device stands where it stood, and comes back."""
    lossy = {"codec": "topk:0.2:8", "codec_down": "int8", "norm": "batch"}
    settings = config(algorithm="fedavg", steps=10, **lossy)
    fleet = InProcess(tmp_path, data, policy=Policy(quorum=0.5))
    gate = Gate(lambda device, round: (device, round) == (2, 2))
    fleet.ready, fleet.gathered = gate.on, True
    found = []
    for row in fleet.drive(settings):
        found.append(row)
        if row.round == 2:
            gate.open.set()
    missing = {row.round: row.missing or [] for row in found}
    assert 2 in missing[2]
    expected, digest = left_out(settings, data, tmp_path / "inline", missing)
    assert fleet.digest == digest
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.missing, ours.examples_seen) == (theirs.missing, theirs.examples_seen)
        assert (ours.train_loss, ours.bytes_up) == (theirs.train_loss, theirs.bytes_up)
    assert found[1].examples_seen - found[0].examples_seen == 8 * (3 - len(missing[2]))
    answer = ask(fleet.home, {"what": "status"})
    assert any(one["kind"] == "missing" and one["round"] == 2 for one in answer["events"])
    assert not answer["running"] and all(device["flags"] == 0 for device in answer["devices"])


@pytest.mark.parametrize(("size", "spare", "asked"), [(1, 0.3, 2), (2, 0.5, 3), (1, 2.0, 3)])
def test_of_those_asked_beside_the_cohort_nobody_is_waited_for(
    data: Dataset, tmp_path: Path, size: int, spare: float, asked: int
) -> None:
    fleet = InProcess(tmp_path, data, policy=Policy(spare=spare))
    gate = Gate(lambda device, round: device >= size)
    fleet.ready, fleet.gathered = gate.on, True
    play = fleet.drive(config(devices=asked, cohort=size, partition="iid", steps=1))
    row = next(play)
    gate.open.set()
    assert list(play) == []
    assert row.missing is not None and len(row.missing) == asked - size
    assert row.examples_seen == 4 * size


def test_a_round_with_too_few_answers_ends_the_run_and_is_asked_again(data: Dataset, tmp_path: Path) -> None:
    fleet = InProcess(tmp_path, data)
    settings = config(steps=2)

    def fail(device: int, round: int) -> None:
        if device == 1:
            raise EdgewiseError("out of memory")

    def ready(fleet: InProcess) -> None:
        assert fleet.agents is not None
        fleet.agents.before = fail

    fleet.ready = ready
    with pytest.raises(EdgewiseError, match=r"round 1: 2 usable answers .* \(device 1: out of memory\)"):
        fleet.play(settings)
    fleet.ready = lambda fleet: None
    fleet.play(settings, resume=True)
    assert fleet.digest == simulated(settings, data, tmp_path / "inline")["model_digest"]


# ---- evaluation ----


def telling(fleet: InProcess) -> None:
    assert fleet.agents is not None
    fleet.agents.tells = True


def test_devices_evaluate_on_what_they_hold_out(data: Dataset, tmp_path: Path) -> None:
    """All test examples are held out by some device: together they see what the coordinator would see."""
    settings = config(steps=3)
    apart, central = InProcess(tmp_path / "apart", data), InProcess(tmp_path / "central", data)
    apart.central, apart.ready = False, telling
    ours, theirs = apart.play(settings), central.play(settings)
    assert apart.digest == central.digest
    for one, other in zip(ours, theirs, strict=True):
        assert one.accuracy == other.accuracy and one.per_class == other.per_class
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
        # labels:2, three devices: each is tested on its own two classes, of four examples each.
        assert one.per_class is not None and other.worst_device is None
        pairs = [one.per_class[2 * d : 2 * d + 2] for d in range(3)]
        assert one.worst_device == pytest.approx(min(sum(pair) / 2 for pair in pairs))  # type: ignore[arg-type]
    assert apart.summary["worst_device"] == ours[-1].worst_device
    assert "worst_device" not in central.summary


# ---- the journal ----


def test_a_round_that_was_not_opened_keeps_the_updates_that_came(data: Dataset, tmp_path: Path) -> None:
    """As where the disk was full at that moment only, and the coordinator died before the round's end."""
    settings = config(steps=3)
    fleet = InProcess(tmp_path, data)
    play = fleet.drive(settings, checkpoint_seconds=1000.0)
    next(play), next(play)
    with suppress(RuntimeError):
        play.throw(RuntimeError("the coordinator dies, without a checkpoint"))  # type: ignore[attr-defined]
    assert not (fleet.out / records.CHECKPOINT).exists()
    with closing(sqlite3.connect(fleet.home.journal_file)) as database:
        assert database.execute("DELETE FROM rounds WHERE number = 2").rowcount == 1
        database.commit()
    fleet.play(settings, resume=True)
    assert fleet.digest == simulated(settings, data, tmp_path / "inline")["model_digest"]
