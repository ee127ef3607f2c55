"""Norms that stay on their device, where devices are real: in the agent's folder, and in its evaluations."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fleet_in_process import InProcess, config, simulated, specks
from safetensors.torch import load_file

from edgewise import records
from edgewise.assemble import assemble
from edgewise.data import Dataset
from edgewise.data.partition import alike
from edgewise.device import enter
from edgewise.engines.fleet.keep import Keep
from edgewise.errors import EdgewiseError
from edgewise.evaluate import evaluate
from edgewise.vector import State


@pytest.fixture(scope="module")
def data() -> Dataset:
    return specks()


def kept(fleet: InProcess, device: int) -> Keep:
    """The device's memory as it lies on its disk."""
    (folder,) = (fleet.agents_folder / str(device) / "memory").iterdir()
    return Keep(folder)


def telling(fleet: InProcess) -> None:
    assert fleet.agents is not None
    fleet.agents.tells = True


def test_agents_evaluate_with_norms_of_their_own(data: Dataset, tmp_path: Path) -> None:
    """Though the coordinator has test examples. Held to each device's model, put together here."""
    settings = config(algorithm="fedavg", norm="batch-local", steps=8)
    fleet = InProcess(tmp_path, data)
    fleet.ready = telling
    last = fleet.play(settings)[-1]
    assert fleet.digest == simulated(settings, data, tmp_path / "inline")["model_digest"]
    parts = assemble(settings, data)
    assert parts.held is not None and parts.feed is not None
    end, layout = load_file(fleet.out / records.MODEL), parts.model.layout
    shared = State(
        *(torch.cat([end[e.name].flatten() for e in part]) for part in (layout.params, layout.buffers))
    )
    seen, bare = [], []
    for device, held_out in enumerate(alike(parts.held, data.test.labels)):
        for local, found in ((kept(fleet, device).memory.local, seen), (None, bare)):
            enter(parts.model, shared, local)
            found.append(evaluate(parts.model, data.test.pick(held_out), parts.feed, len(data.classes)))
    accuracies = [one.accuracy for one in seen]
    assert last.accuracy == pytest.approx(sum(accuracies) / 3) and last.worst_device == min(accuracies)
    assert last.per_class == tuple(seen[label // 2].per_class[label] for label in range(6))
    assert last.loss == pytest.approx(sum(one.loss for one in seen) / 3, rel=1e-6)
    assert last.loss != pytest.approx(sum(one.loss for one in bare) / 3, rel=1e-3)
    assert fleet.summary["per_device"] == {"mean": last.accuracy, "worst": last.worst_device}


def test_they_outlive_the_agent(data: Dataset, tmp_path: Path) -> None:
    settings = config(norm="batch-local", steps=5)  # sync-sgd: the momentum of the device's own step, too
    fleet = InProcess(tmp_path, data)
    with closing(fleet.drive(settings)) as play:
        next(play)
        assert fleet.agents is not None
        for device in range(3):
            fleet.agents.stop(device)
            fleet.agents.start(device)
        assert len(list(play)) == 4
    assert fleet.digest == simulated(settings, data, tmp_path / "inline")["model_digest"]
    for device in range(3):
        memory, inline = kept(fleet, device).memory, tmp_path / "inline" / records.MEMORIES
        expected = records.Checkpoint.load(next(inline.glob(f"{device}-*.safetensors"))).tensors
        found = memory.tensors()
        assert found.keys() == expected.keys() >= {"local/params", "local/buffers", "algorithm/momentum"}
        assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.filterwarnings("ignore::edgewise.data.partition.UnheldClasses")
def test_where_no_device_holds_anything_out_it_is_said(data: Dataset, tmp_path: Path) -> None:
    settings = config(norm="batch-local", steps=1, devices=2, partition="labels:1")
    tested = replace(data, test=data.test.pick((data.test.labels == 5).nonzero().flatten()))
    says = "^round 1: norm: batch-local is evaluated on devices, and none has test examples$"
    with pytest.raises(EdgewiseError, match=says):
        InProcess(tmp_path, tested).play(settings)
    with pytest.raises(EdgewiseError, match=says):
        simulated(settings, tested, tmp_path / "inline")
