"""Devices that hold unequal amounts and pass as often over them: what each owes, and who starts again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fleet_in_process import SHAPE, InProcess, config, simulated, specks

from edgewise import records
from edgewise.config import Config, read_toml
from edgewise.data import Dataset
from edgewise.data.partition import deal
from edgewise.deploy import assemble_coordinator, equip
from edgewise.engines.fleet.duty import Idle, Training
from edgewise.engines.fleet.operator import ask
from edgewise.engines.fleet.policy import Policy
from edgewise.errors import EdgewiseError
from edgewise.optimizers import SGD

UNEVEN = {"partition": "quantity:1", "batch": 2, "sync_every": None, "local_epochs": 0.5, "steps": 11}
EVERY = 4  # 24 of 48 examples in batches of 2 on 3 devices; 11 are two rounds, and one of 3 steps


@pytest.fixture(scope="module")
def data() -> Dataset:
    return specks()


def uneven(**settings: Any) -> Config:
    return config(**{"algorithm": "scaffold+fednova", **UNEVEN, **settings})


def held(told: Config, data: Dataset) -> list[int]:
    """Examples by device."""
    parts = deal(told.partition, data.train, len(data.classes), told.devices, told.seed)
    return [len(part) for part in parts]


def owed(examples: list[int], steps: int = EVERY) -> list[int]:
    """Examples behind the updates of a round."""
    return [2 * max(1, round(count / 4 * steps / EVERY)) for count in examples]


def test_each_takes_the_steps_that_its_data_are(data: Dataset, tmp_path: Path) -> None:
    told, fleet = uneven(), InProcess(tmp_path, data)
    rows, amounts = fleet.play(told), held(told, data)
    assert len(set(owed(amounts))) == 3
    assert [row.step for row in rows] == [4, 8, 11]
    seen = sum(owed(amounts))
    assert [row.examples_seen for row in rows] == [seen, 2 * seen, 2 * seen + sum(owed(amounts, 3))]
    assert read_toml(fleet.out / records.CONFIG)["sync_every"] == EVERY
    assert fleet.digest == simulated(told, data, tmp_path / "inline")["model_digest"]


@pytest.mark.parametrize("seconds", [0.0, 1000.0], ids=["often", "seldom"])
def test_a_coordinator_that_dies_loses_nothing(data: Dataset, tmp_path: Path, seconds: float) -> None:
    """With a checkpoint of every round, and with none: then its rounds are played again from the journal."""
    told, fleet = uneven(local_momentum="reset", codec="int8"), InProcess(tmp_path, data)
    play: Iterator[Any] = fleet.drive(told, checkpoint_seconds=seconds)
    next(play), next(play)
    with suppress(RuntimeError):
        play.throw(RuntimeError("the coordinator dies"))  # type: ignore[attr-defined]
    assert (fleet.out / records.CHECKPOINT).exists() == (seconds == 0)
    fleet.play(told, resume=True)
    assert fleet.digest == simulated(told, data, tmp_path / "inline")["model_digest"]


def test_a_device_that_holds_more_by_now_takes_more_steps(data: Dataset, tmp_path: Path) -> None:
    told, fleet = uneven(algorithm="fednova", steps=12), InProcess(tmp_path, data)
    play = fleet.drive(told)
    first = next(play)
    play.close()  # type: ignore[attr-defined]
    other = replace(told, seed=7)
    assert held(other, data) != held(told, data)

    def deal_anew(fleet: InProcess) -> None:
        assert fleet.agents is not None
        fleet.agents.share = replace(fleet.agents.share, seed=7)

    fleet.ready = deal_anew
    second, third = fleet.play(told, resume=True)
    assert first.examples_seen == sum(owed(held(told, data)))
    assert third.examples_seen - second.examples_seen == sum(owed(held(other, data)))
    assert all(one["flags"] == 0 for one in ask(fleet.home, {"what": "status"})["devices"])


def test_another_number_of_steps_than_what_a_device_holds_comes_to_is_refused(
    data: Dataset, tmp_path: Path
) -> None:
    told, fleet = uneven(), InProcess(tmp_path, data, policy=Policy(quorum=0.5))
    amounts = held(told, data)

    def lies(plan: Any, device: int) -> Training:
        assert fleet.agents is not None
        duty = Training(equip(plan, data, device, fleet.agents.share, (told.model,), "cpu"))
        duty.examples *= 3 if device == 1 else 1  # in what it says of itself; it trains as it should
        return duty

    def ready(fleet: InProcess) -> None:
        assert fleet.agents is not None
        fleet.agents.duty = lies

    fleet.ready, fleet.gathered = ready, True
    rows = fleet.play(replace(told, steps=2 * EVERY))
    assert [row.missing for row in rows] == [[1], [1]]
    both = amounts[0], amounts[2]
    assert rows[0].examples_seen == sum(owed(list(both)))
    asked, sent = owed([3 * amounts[1]])[0], owed([amounts[1]])[0]
    words = f"an update of {sent} examples, where {asked} were asked for"
    answer = ask(fleet.home, {"what": "status"})
    assert any((one["device"], one["words"]) == (1, words) for one in answer["events"])


def test_devices_for_load_tests_count_as_many(data: Dataset, tmp_path: Path) -> None:
    told, fleet = uneven(algorithm="fedavg"), InProcess(tmp_path, data)

    def idles(plan: Any, device: int) -> Idle:
        assert fleet.agents is not None
        return Idle(equip(plan, data, device, fleet.agents.share, (told.model,), "cpu"), device)

    def ready(fleet: InProcess) -> None:
        assert fleet.agents is not None
        fleet.agents.duty = idles

    fleet.ready = ready
    assert fleet.play(told)[0].examples_seen == sum(owed(held(told, data)))


def test_a_coordinator_without_data_is_told_what_a_round_counts_for(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match=r"^local_epochs: a coordinator without data .* --sync-every too"):
        assemble_coordinator(uneven(), (SHAPE, 6))
    told, fleet = uneven(sync_every=EVERY), InProcess(tmp_path, data)
    fleet.central = False
    fleet.play(told)
    assert fleet.digest == simulated(told, data, tmp_path / "inline")["model_digest"]


def test_what_a_device_says_it_holds_costs_a_coordinator_no_time() -> None:
    """FedNova sums over the steps of every device: of 2^31 as of a few."""
    for sgd in (SGD(momentum=0.0), SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True)):
        few, many = sgd.reach(10_000), sgd.reach(1 << 31)
        rate = 1 / (1 - sgd.momentum) if sgd.momentum else 1.0
        assert many - few == pytest.approx(rate * ((1 << 31) - 10_000), rel=1e-12)
