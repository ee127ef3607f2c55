"""Whole runs of what is added to federated averaging: in text, with every norm and codecs, and resumed."""

from __future__ import annotations

import tomllib
from contextlib import closing
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import rank_runs
import torch
from safetensors.torch import load_file

from edgewise import records, wire
from edgewise.algorithms import (
    ALGORITHMS,
    FedAvg,
    FedCM,
    FedDyn,
    FedLMD,
    FedProx,
    FedRS,
    momenta,
    parse,
    text,
)
from edgewise.assemble import assemble
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.device import Memory
from edgewise.errors import EdgewiseError
from edgewise.memories import Memories
from edgewise.models.norms import NORMS
from edgewise.optimizers import SGD
from edgewise.records import Checkpoint
from edgewise.rounds import run, total_rounds

ADDED = [name for name in ALGORITHMS if name not in ("sync-sgd", "fedavg")]
MIXED = ["fedlmd+fedcm+fedadam", "scaffold+fednova+fedrs", "sam+centralise+clip:0.5+fedacg+fedntd"]
LOSSY = {"codec": "topk:0.3", "codec_down": "int8", "cohort": 3}


@pytest.fixture(scope="module")
def specks() -> Dataset:
    return rank_runs.specks()


def config(algorithm: str, **settings: Any) -> Config:
    sizes = {"devices": 4, "partition": "labels:3", "model": "rank_runs:tiny", "batch": 4, "lr": 0.02}
    local = 2 if algorithm != "sync-sgd" else 1
    plain = {"sync_every": local, "steps": 5 * local, "precision": "fp64", "eval_every": 0, "momentum": 0.5}
    return Config.of({"algorithm": algorithm, **sizes, **plain, **settings})


def digest(folder: Path) -> str:
    summary = records.summary(folder)
    assert summary is not None
    return str(summary["model_digest"])


# ---- as text ----


@pytest.mark.parametrize(
    ("words", "algorithm"),
    [
        ("fedprox:0.1", FedAvg(parts=(FedProx(0.1),))),
        ("fedavg+fedprox:0.1", FedAvg(parts=(FedProx(0.1),))),
        ("fedcm:0.2+fedlmd", FedAvg(parts=(FedLMD(), FedCM(0.2)))),
        ("fedlmd:0.5:3", FedAvg(parts=(FedLMD(0.5, 3.0),))),
        ("fedavgm+fedcm", FedAvg(server_momentum=0.9, parts=(FedCM(),))),
    ],
)
def test_what_is_added_is_written_with_a_plus(words: str, algorithm: FedAvg) -> None:
    assert parse(words, SGD()) == algorithm
    told = Config.of({"algorithm": words})
    assert told.algorithm == algorithm and Config.of(told.flat()) == told
    assert "set" not in told.flat() and parse(text(algorithm), SGD()).parts == algorithm.parts  # type: ignore[attr-defined]


def test_numbers_are_set_by_name_too() -> None:
    flat = {"algorithm": "fedlmd+fedcm", "set": {"algorithm.beta": "0.5", "algorithm.alpha": 0.2}}
    found = Config.of(flat).algorithm
    assert found == FedAvg(parts=(FedLMD(0.5), FedCM(0.2)))
    assert Config.of(flat).flat()["algorithm"] == "fedlmd:0.5+fedcm:0.2"


@pytest.mark.parametrize("policy", momenta.POLICIES)
def test_what_becomes_of_local_momentum_is_a_setting(policy: str) -> None:
    for told in ({"local_momentum": policy}, {"set": {"algorithm.local_momentum": policy}}):
        found = Config.of({"algorithm": "fedprox", **told})
        assert found.algorithm == FedAvg(local_momentum=policy, parts=(FedProx(),))
        assert f'\nlocal_momentum = "{policy}"\n' in found.toml() and "set" not in found.flat()
        assert Config.of(tomllib.loads(found.toml().replace("version = 1", ""))) == found


def test_the_server_s_rate_is_the_part_s_unless_it_is_given() -> None:
    def rate(**flat: Any) -> float:
        return Config.of(flat).algorithm.server_lr  # type: ignore[attr-defined]

    assert rate(algorithm="fedadam") == rate(algorithm="fedlmd+fedyogi") == 0.01
    assert rate(algorithm="fedadam", server_lr=0.3) == 0.3 and rate(algorithm="fedlmd") == 1.0


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ({"algorithm": "fedprox:x"}, r"^algorithm: 'fedprox:x' does not fit the form fedprox\[:mu\]$"),
        ({"algorithm": "fedprox:-1"}, r"^algorithm fedprox: mu is -1; legal: 0 or more$"),
        ({"algorithm": "feddyn:0"}, r"^algorithm feddyn: alpha is 0; legal: above 0$"),
        ({"algorithm": "fedcm:1.5"}, r"^algorithm fedcm: alpha is 1.5; legal: above 0, at most 1$"),
        ({"algorithm": "fedadam:1"}, r"^algorithm fedadam: beta1 is 1; legal: 0 or more, below 1$"),
        ({"algorithm": "scaffold+fedcm"}, "^algorithm: scaffold and fedcm together make no sense: .* drift"),
        ({"algorithm": "feddyn+fedadam"}, "^algorithm: feddyn and fedadam together .* its server; give one$"),
        ({"algorithm": "feddyn+fednova"}, "^algorithm: fednova and feddyn together .* its average"),
        ({"algorithm": "fedlc+fedlmd"}, "^algorithm: fedlc and fedlmd together .* its loss"),
        ({"algorithm": "sam+sam"}, "^algorithm: sam twice make no sense"),
        ({"algorithm": "fedadam", "server_momentum": 0.5}, "^server_momentum: fedadam has its own way"),
        ({"algorithm": "feddyn", "server_lr": 0.5}, "^server_lr: feddyn is defined for 1 only, and not 0.5$"),
        ({"algorithm": "sync-sgd+fedlmd"}, "^algorithm: 'sync-sgd.fedlmd' is unknown; one of: sync-sgd"),
        *(
            (
                {"algorithm": name, "local_momentum": "keep"},
                f"^local_momentum: {name} divides .*; give reset$",
            )
            for name in ("scaffold", "fedcm", "fednova")
        ),
        ({"algorithm": "fednova", "local_momentum": "average"}, "^local_momentum: fednova divides"),
        *(
            ({"algorithm": name, "local_momentum": "average"}, f"^local_momentum: .* and so does {name};")
            for name in ("scaffold", "fedcm")
        ),
        *(
            (
                {"algorithm": "fedavg", "local_momentum": policy, "momentum": 0},
                f"^local_momentum: there is none to {policy}: momentum is 0; give one, or reset$",
            )
            for policy in ("keep", "average")
        ),
        (
            {"algorithm": "fedavg", "local_momentum": "average", "nesterov": True},
            "^local_momentum: average reads plain momentum .*; leave nesterov off",
        ),
        ({"local_momentum": "keep"}, "^local_momentum: sync-sgd has none; it belongs to fedavg"),
        (
            {"algorithm": "fedavg", "local_momentum": "half"},
            "^local_momentum: 'half' is unknown; one of: reset",
        ),
        (
            {"algorithm": "fedavg", "local_momentum": "average", "codec": "dgc:0.01"},
            "^codec: dgc sends no updates but their momentum, and local_momentum average takes",
        ),
        (
            {"algorithm": "fedrs+feddyn", "set": {"algorithm.alpha": 0.2}},
            r"^set: algorithm.alpha is in 2 parts of fedrs\+feddyn",
        ),
        ({"algorithm": "fedprox", "set": {"algorithm.tau": 1}}, "^set: 'algorithm.tau' is unknown; .*mu"),
        *(
            ({"algorithm": name, "objective": "squared-error"}, f"^algorithm: {name} is for classification")
            for name in ("fedlc", "fedrs", "fedntd", "fedlmd")
        ),
        ({"algorithm": "sync-sgd", "local_epochs": 1}, "^local_epochs: sync-sgd has none"),
        *(
            ({"algorithm": name, "local_epochs": 1}, f"^local_epochs: {name} takes .*; add fednova")
            for name in ("scaffold", "fedcm")
        ),
        *(
            ({"algorithm": name, "codec": "dgc:0.01"}, "^codec: dgc sends no updates but their momentum")
            for name in ("scaffold", "feddyn", "fedcm", "fedacg")
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(flat: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgewiseError, match=says) as told:
        Config.of(flat)
    assert "\n" not in str(told.value)


def test_alone_they_take_each_other_s_numbers() -> None:
    assert Config.of({"algorithm": "fedrs:0.3+feddyn:0.2"}).algorithm == FedAvg(
        parts=(FedRS(0.3), FedDyn(0.2))
    )


# ---- runs ----


@pytest.mark.parametrize(
    "settings", [pytest.param({}, marks=pytest.mark.slow, id="lossless"), pytest.param(LOSSY, id="lossy")]
)
@pytest.mark.parametrize(
    ("algorithm", "policy"),
    [*((name, "reset") for name in [*ADDED, *MIXED]), ("fedavgm", "keep"), ("fedacg", "average")],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    specks: Dataset, tmp_path: Path, algorithm: str, policy: str, settings: dict[str, Any]
) -> None:
    """Also where devices' memories lie in files, and its rounds are those of a run that was not stopped."""
    told = config(algorithm, local_momentum=policy, **settings)
    rows = [row.row() for row in run(told, tmp_path / "whole", dataset=specks)]
    with closing(run(told, tmp_path / "parts", dataset=specks)) as play:
        next(play), next(play)
    with closing(run(told, tmp_path / "parts", dataset=specks, resume=True)) as play:
        next(play)
    list(run(told, tmp_path / "parts", dataset=specks, resume=True))
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert len(rows) == 5 and rows[-1]["train_loss"] == records.rows(tmp_path / "parts")[-1]["train_loss"]


UNEQUAL = {"partition": "quantity:2", "batch": 2, "local_epochs": 1.5, "epochs": 7}
UNEQUAL |= {"sync_every": None, "steps": None}


@pytest.mark.parametrize("algorithm", ["fedavg", "fednova", "feddyn", "scaffold+fednova"])
def test_local_epochs_are_steps_that_differ(specks: Dataset, tmp_path: Path, algorithm: str) -> None:
    """Each device as many as its examples come to; 9 on average and 42 in all are four rounds and a bit."""
    told = config(algorithm, **UNEQUAL)
    rows = list(run(told, tmp_path / "whole", dataset=specks))
    held = [
        int(line.split(",")[1]) for line in (tmp_path / "whole" / records.PARTITION).read_text().split()[1:]
    ]
    steps = [max(1, round(1.5 * count / 2)) for count in held]
    assert sum(held) == 48 and len(set(steps)) > 2
    assert [row.examples_seen for row in rows[:4]] == [2 * sum(steps) * number for number in (1, 2, 3, 4)]
    assert [row.step for row in rows] == [9, 18, 27, 36, 42] and total_rounds(tmp_path / "whole") == 5
    assert rows[4].examples_seen - rows[3].examples_seen < 2 * sum(steps)  # half a round is left
    with closing(run(told, tmp_path / "parts", dataset=specks)) as play:
        next(play), next(play)
    list(run(told, tmp_path / "parts", dataset=specks, resume=True))
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert "\nsync_every = 9\nlocal_epochs = 1.5\n" in (tmp_path / "whole" / records.CONFIG).read_text()


def test_steps_that_follow_from_local_epochs_are_not_given_otherwise(specks: Dataset) -> None:
    flat = {"model": "rank_runs:tiny", "algorithm": "fedavg", "devices": 4, "batch": 2, "local_epochs": 1.5}
    for every in (None, 9):
        assert assemble(Config.of({**flat, "sync_every": every}), specks).config.algorithm.sync_every == 9
    with pytest.raises(EdgewiseError, match=r"^sync_every: local_epochs 1.5 are 9 steps .* and not 8; give"):
        assemble(Config.of({**flat, "sync_every": 8}), specks)


def test_unequal_steps_tell_fednova_from_fedavg(specks: Dataset, tmp_path: Path) -> None:
    ends = {}
    for name in ("fedavg", "fednova"):
        list(run(config(name, **UNEQUAL), tmp_path / name, dataset=specks))
        tensors = load_file(tmp_path / name / records.MODEL)
        ends[name] = torch.cat([tensor.flatten() for tensor in tensors.values()])
    assert (ends["fedavg"] - ends["fednova"]).abs().max() > 1e-3


def test_every_algorithm_ends_elsewhere(specks: Dataset, tmp_path: Path) -> None:
    """Nothing that is added is lost on the way from its name to the devices and the server."""
    ends = {}
    for name in [*ADDED, "fedavg", *MIXED]:
        local = "fedntd:5" if name == "fedntd" else "clip:0.1" if name == "clip" else name
        list(run(config(local, steps=6), tmp_path / name, dataset=specks))
        ends[name] = digest(tmp_path / name)
    for policy in ("keep", "average"):
        list(run(config("fedavg", steps=6, local_momentum=policy), tmp_path / policy, dataset=specks))
        ends[policy] = digest(tmp_path / policy)
    # With as many steps on every device FedNova is FedAvg, but for rounding.
    assert len(set(ends.values())) == len(ends)


@pytest.mark.parametrize(
    ("algorithm", "policy", "vectors"),
    [
        *((name, "reset", 2) for name in ("scaffold", "fedcm")),
        *((name, "reset", 1) for name in ("fedavg", "feddyn", "fedacg", "fedlmd")),
        ("fedavg", "keep", 1),
        ("fedavg", "average", 2),
    ],
)
def test_what_goes_down_beside_the_state_is_counted(
    specks: Dataset, tmp_path: Path, algorithm: str, policy: str, vectors: int
) -> None:
    told = config(algorithm, cohort=2, steps=2, local_momentum=policy)
    (row,) = run(told, tmp_path / "run", dataset=specks)
    layout = assemble(told, specks).model.layout
    parameters, buffers = 8 * layout.count, 8 * layout.buffer_count
    assert row.bytes_down_each == vectors * (wire.LENGTH + parameters) + buffers
    assert row.bytes_up_each == wire.LENGTH + parameters + buffers


def test_only_what_was_taken_is_remembered(specks: Dataset, tmp_path: Path) -> None:
    told = config("scaffold", cohort=2, steps=2)
    list(run(told, tmp_path / "run", dataset=specks))
    note = Checkpoint.load(tmp_path / "run" / records.CHECKPOINT).note["memories"]
    assert len(note["filed"]) == 2
    memories = Memories(note, tmp_path / "run" / records.MEMORIES)
    for device in range(4):
        asked = device in note["filed"]
        assert bool(memories[device].algorithm) == asked and (memories[device] == Memory()) == (not asked)
        assert not asked or memories[device].algorithm["control"].any()


def test_a_memory_keeps_codec_and_algorithm_apart(tmp_path: Path) -> None:
    memory = Memory(3, {"residual": torch.ones(2)}, {"control": torch.zeros(4), "residual": torch.ones(1)})
    memories = Memories(folder=tmp_path / "m", budget=0)
    memories.propose(0, memory)
    memories.commit([0])
    found = memories[0]
    assert memory.nbytes == 4 * 7 and found.step == 3
    for one, other in ((found.codec, memory.codec), (found.algorithm, memory.algorithm)):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


ROWS = [
    *zip(cycle(name for name in NORMS if name != "batch-sync"), [*ADDED, *MIXED], strict=False),
]


@pytest.mark.parametrize(
    ("norm", "algorithm"),
    [
        *(pytest.param(*row) for row in ROWS),
        *(
            pytest.param(norm, algorithm, marks=pytest.mark.slow)
            for norm in NORMS
            for algorithm in [*ADDED, *MIXED]
            if norm != "batch-sync" and (norm, algorithm) not in ROWS
        ),
    ],
)
def test_every_norm_is_trained_by_every_algorithm(
    specks: Dataset, tmp_path: Path, norm: str, algorithm: str
) -> None:
    sizes = {"model": "resnet18", "width": 4, "norm": norm, "devices": 2, "precision": "fp32"}
    told = config(algorithm, **sizes, steps=4)
    first, last = run(told, tmp_path / "run", dataset=specks)
    assert max(first.train_loss, last.train_loss) < 20 and last.accuracy is not None


def test_batch_sync_is_refused(specks: Dataset) -> None:
    with pytest.raises(EdgewiseError, match="norm: batch-sync needs all devices in lockstep"):
        assemble(config("scaffold", model="resnet18", width=4, norm="batch-sync"), specks)
