"""The contract of an engine, for the fleet: the model of the inline loop, bit for bit.

Real agents over gRPC, in this process (fleet_in_process.py). The rows are pairs over the tables, not their
product: every codec goes up once and down once, under some algorithm, norm and precision; every algorithm
meets a lossless and a lossy codec.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from fleet_in_process import InProcess, config, simulated, specks
from specimens import TEXTS
from torch import nn

from edgewise import records
from edgewise.algorithms import ALGORITHMS, reads_updates
from edgewise.codecs import CODECS, DGC, inner, parse
from edgewise.data import Dataset
from edgewise.deploy import assemble_coordinator
from edgewise.engines.fleet.identity import Authority
from edgewise.engines.fleet.policy import Policy
from edgewise.errors import EdgewiseError
from edgewise.models import groupnorm
from edgewise.models.norms import NORMS

PLAIN = ("sync-sgd", "fedavg")
UNEVEN = ("fedavg", "fednova", "scaffold+fednova")  # where devices take unequal numbers of steps
UNEQUAL = {"partition": "quantity:1", "batch": 2, "sync_every": None, "local_epochs": 0.5, "steps": 10}
LOCKSTEP = "batch-sync"  # which a fleet cannot give
LOCAL = "batch-local"  # with which a fleet's devices evaluate, on what they hold out
JUDGED = ("accuracy", "per_class", "forgetting")
SAME = ("model_digest", "accuracy", "per_class", "steps", "rounds", "examples_seen", "bytes_up", "bytes_down")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return specks()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("fleet") / "ca")


def rows() -> Iterator[dict[str, Any]]:
    ups = [TEXTS[name][-1] for name in CODECS]
    downs = ["none" if isinstance(inner(parse(text)), DGC) else text for text in (*ups[5:], *ups[:5])]
    norms, turns = cycle(name for name in NORMS if name != LOCKSTEP), cycle(ALGORITHMS)
    for up, down, precision in zip(ups, downs, cycle(["fp32", "fp32", "fp64"]), strict=False):
        mixed = {"codec": up, "codec_down": down, "norm": next(norms), "precision": precision}
        reads = reads_updates(ALGORITHMS[algorithm := next(turns)]) and up.startswith("dgc")
        yield {"algorithm": "fedavg" if reads else algorithm, **mixed}
    for algorithm in PLAIN:
        yield {"algorithm": algorithm, "codec": "none", "norm": "batch"}
        yield {"algorithm": algorithm, "codec": "int8:zstd", "codec_down": "int4:zstd", "norm": "group"}
    if groupnorm.available():
        net = {"model": "resnet18", "width": 4, "norm": "group"}  # of which they change the last bits
        yield {"algorithm": "fedavg", **net, "kernels": "compiled"}
    for algorithm in UNEVEN:
        yield {"algorithm": algorithm, **UNEQUAL}
    yield {"algorithm": "fedavg", **UNEQUAL, "local_momentum": "average", "cohort": 2, "steps": 11}
    for policy in ("keep", "average"):
        yield {
            "algorithm": "fedavg",
            "local_momentum": policy,
            "codec_down": "int4:zstd",
            "cohort": 2,
            "steps": 6,
        }


def further() -> Iterator[dict[str, Any]]:
    """The other algorithms, lossless and lossy, some with a cohort."""
    norms = cycle(name for name in NORMS if name != LOCKSTEP)
    for algorithm in [name for name in ALGORITHMS if name not in PLAIN] + ["fedlmd+fedcm+fedadam"]:
        yield {"algorithm": algorithm, "codec": "none", "norm": next(norms), "precision": "fp64"}
        lossy = {"codec": "int8", "codec_down": "int4:zstd", "norm": "group"}
        yield {"algorithm": algorithm, **lossy, "cohort": 2, "steps": 12}


def named(row: dict[str, Any]) -> str:
    return " ".join(map(str, row.values()))


def agree(fleet: InProcess, expected: dict[str, Any], judged: bool = True) -> None:
    """`judged`: on the same examples, too."""
    same = [name for name in SAME if judged or name not in JUDGED]
    assert {name: fleet.summary[name] for name in same} == {name: expected[name] for name in same}


ROWS = [
    *(pytest.param(row, id=named(row)) for row in rows()),
    *(pytest.param(row, id=named(row), marks=pytest.mark.slow) for row in further()),
]


@pytest.mark.parametrize("row", ROWS)
def test_the_fleet_gives_the_model_of_the_inline_loop(
    data: Dataset, tmp_path: Path, row: dict[str, Any]
) -> None:
    settings = config(**row)
    fleet = InProcess(tmp_path, data)
    found = fleet.play(settings)
    judged = row.get("norm") != LOCAL
    agree(fleet, simulated(settings, data, tmp_path / "inline"), judged)
    names = ("train_loss", "drift_cosine", "drift_diversity", *(["forgetting"] if judged else []))
    expected = [[row.get(name) for name in names] for row in records.rows(tmp_path / "inline")]
    assert [[getattr(round, name) for name in names] for round in found] == expected
    assert all(isinstance(value, float) for value in expected[0][:3])


def test_over_tls_with_a_cohort_of_some_and_differences_that_some_missed(
    data: Dataset, authority: Authority, tmp_path: Path
) -> None:
    mixed = {"codec": "topk:0.2:8", "codec_down": "int8", "norm": "batch"}
    settings = config(devices=5, partition="iid", cohort=2, algorithm="fedavg", steps=16, **mixed)
    fleet = InProcess(tmp_path, data, authority)
    fleet.play(settings)
    agree(fleet, simulated(settings, data, tmp_path / "inline"))


def test_local_models_are_those_of_the_inline_loop(
    data: Dataset, authority: Authority, tmp_path: Path
) -> None:
    """Looked at through what devices sent, lossy as it is; what they hold is known where they tell."""
    settings = config(algorithm="fedavg", codec="int8", norm="batch", diagnose="full:2", steps=6)
    simulated(settings, data, tmp_path / "inline")
    expected = [row["probe"] for row in records.rows(tmp_path / "inline")]
    assert all(set(probe) >= {"own", "absent", "counterforce", "margin"} for probe in expected)
    for tells in (True, False):
        fleet = InProcess(tmp_path / str(tells), data, authority, Policy(labels=True))

        def ready(fleet: InProcess, tells: bool = tells) -> None:
            assert fleet.agents is not None
            fleet.agents.tells = tells

        fleet.ready = ready
        fleet.play(settings)
        found = [row["probe"] for row in records.rows(fleet.out)]
        known = set(expected[0]) if tells else {"devices", "images", "per_class"}
        assert found == [{name: probe[name] for name in probe if name in known} for probe in expected]


NORMED = f"{__name__}:normed"


def normed(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A model with a batch norm of its own."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 2, classes)
    )


def test_a_converted_model_that_starts_from_weights_and_learns_targets(data: Dataset, tmp_path: Path) -> None:
    """The coordinator alone has the weights' file: devices get the state that it begins with."""
    train, test = (
        replace(split, targets=torch.stack((split.labels % 2, split.labels // 2), 1).float())
        for split in (data.train, data.test)
    )
    dataset = replace(data, train=train, test=test)
    own = {"model": NORMED, "convert": True, "objective": "squared-error", "lr": 0.01}
    first = simulated(config(**own), dataset, tmp_path / "first")
    weights = (tmp_path / "first" / "model.safetensors").rename(tmp_path / "weights.safetensors")
    settings = config(**own, start=str(weights))
    fleet = InProcess(tmp_path, dataset)

    def hide(_: InProcess) -> None:
        weights.rename(tmp_path / "elsewhere")

    fleet.ready = hide  # before a device is there
    fleet.play(settings)
    weights.with_name("elsewhere").rename(weights)
    agree(fleet, simulated(settings, dataset, tmp_path / "inline"))
    assert fleet.summary["model_digest"] != first["model_digest"]


def test_a_coordinator_without_data_trains_for_classes_only(tmp_path: Path, data: Dataset) -> None:
    with pytest.raises(EdgewiseError, match="objective: a coordinator without data"):
        assemble_coordinator(config(objective="squared-error"), (data.shape, len(data.classes)))
    own = config(model=NORMED, convert=True)
    parts = assemble_coordinator(own, (data.shape, len(data.classes)))
    assert parts.model.layout == assemble_coordinator(own, data).model.layout
