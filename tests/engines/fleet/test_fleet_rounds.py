"""Rounds that do not go by the book: devices that are slow, fail, come late, are revoked, lie."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet_in_process import InProcess, config, specks

from edgewise.data import Dataset
from edgewise.engines.fleet.policy import Policy

PATIENCE = 60


@pytest.fixture(scope="module")
def data() -> Dataset:
    return specks()


class Gate:
    """Holds some devices up in some rounds until it is opened."""

    def __init__(self, held: Callable[[int, int], bool]) -> None:
        self.held, self.open = held, threading.Event()
        self.came: set[tuple[int, int]] = set()

    def __call__(self, device: int, round: int) -> None:
        self.came.add((device, round))
        if self.held(device, round):
            assert self.open.wait(PATIENCE)

    def on(self, fleet: InProcess) -> None:
        assert fleet.agents is not None
        fleet.agents.before = self


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
