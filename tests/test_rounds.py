"""A whole run, small: what it writes down, what it repeats bit for bit, and where it stops."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgewise import data, models, records, wire
from edgewise.aggregators import MultiKrum
from edgewise.algorithms import Combined, FedAvg, SyncSGD
from edgewise.assemble import Parts, assemble
from edgewise.codecs import DGC, TopK, parse
from edgewise.cohorts import cohort
from edgewise.config import Config, read_toml
from edgewise.data import Dataset, Split
from edgewise.data.partition import Labels
from edgewise.deploy import assemble_coordinator
from edgewise.device import Reply, Task, Terms
from edgewise.engines import Inline
from edgewise.errors import Diverged, EdgewiseError, EdgewiseWarning
from edgewise.evaluate import evaluate
from edgewise.memories import Memories
from edgewise.models.norms import Batch, Group
from edgewise.optimizers import SGD
from edgewise.records import Checkpoint
from edgewise.rounds import Round, drive, run, total_rounds
from edgewise.schedules import Cosine, Plateau
from edgewise.vector import FlatModel, Layout, Mean, State

TINY = Config(devices=4, batch=8, width=4, steps=5, eval_every=2)
FIXUP = "fixup-resnet18"
CONTRACT = {"round", "step", "examples_seen", "lr", "train_loss", "seconds"}
CONTRACT |= {"bytes_up", "bytes_down", "bytes_up_each", "bytes_down_each"}
EVALUATED = {"accuracy", "loss", "per_class"}
DRIFT = {"drift_cosine", "drift_diversity"}
FORGETTING = {"forgetting", "forgetting_per_class"}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all the trimmings, to look at and not to touch."""
    out = tmp_path_factory.mktemp("run") / "new" / "folder"
    algorithm = FedAvg(SGD(lr=0.05), sync_every=3)
    config = replace(TINY, algorithm=algorithm, norm=Batch(), steps=11, cohort=0.5, warmup_epochs=0.1)
    assert len(list(run(config, out))) == 4
    return out


def played(config: Config, out: Path, **options: Any) -> tuple[list[dict[str, Any]], str]:
    """The rounds without what the clock says, and the digest of the model."""
    for _ in run(config, out, **options):
        pass
    summary = records.summary(out)
    assert summary is not None
    return [{**row, "seconds": 0} for row in records.rows(out)], summary["model_digest"]


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def strict(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=no_constant) for line in path.read_text().splitlines()]


# ---- what is written down ----


def test_rounds_jsonl_keeps_its_contract(finished: Path) -> None:
    rows = strict(finished / records.ROUNDS)
    assert [set(row) - EVALUATED for row in rows] == [CONTRACT | DRIFT] * 3 + [CONTRACT | DRIFT | FORGETTING]
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [3, 6, 9, 11]
    assert [row["examples_seen"] for row in rows] == [step * 8 * 2 for step in (3, 6, 9, 11)]
    # Half of four devices, each with all parameters and buffers in four bytes, in a frame.
    model = load_file(finished / records.MODEL)
    each = wire.LENGTH + 4 * sum(tensor.numel() for tensor in model.values())
    for way in ("up", "down"):
        assert [(row[f"bytes_{way}_each"], row[f"bytes_{way}"]) for row in rows] == [(each, 2 * each)] * 4
    assert all(0 < row["train_loss"] < 10 and row["seconds"] > 0 for row in rows)
    # A tenth of an epoch of 1,438 examples, 16 a step, is 9 steps of warm-up from a tenth of 0.05.
    share = 0.1 * 1438 / 16
    assert [row["lr"] for row in rows] == pytest.approx(
        [0.05 * min(1, 0.1 + 0.9 * done / share) for done in (0, 3, 6, 9)]
    )


def test_rounds_are_evaluated_when_they_are_due_and_at_the_end(finished: Path, tmp_path: Path) -> None:
    rows = strict(finished / records.ROUNDS)
    assert [bool(set(row) & EVALUATED) for row in rows] == [False, True, False, True]
    assert all(set(row) >= EVALUATED for row in rows[1::2])
    for every, expected in {0: [5], 3: [3, 5], 5: [5], 9: [5]}.items():
        rounds = list(run(replace(TINY, eval_every=every), tmp_path / str(every)))
        assert [row.round for row in rounds if row.accuracy is not None] == expected


def test_what_is_yielded_is_what_is_written(tmp_path: Path) -> None:
    rounds = list(run(TINY, tmp_path))
    assert all(isinstance(row, Round) for row in rounds)
    assert [json.loads(json.dumps(row.row())) for row in rounds] == records.rows(tmp_path)


def test_summary_json_keeps_its_contract(finished: Path) -> None:
    (summary,) = [json.loads((finished / records.SUMMARY).read_text(), parse_constant=no_constant)]
    rows = records.rows(finished)
    evaluated = [row["accuracy"] for row in rows if "accuracy" in row]
    assert set(summary) >= records.SUMMARISED | {"per_device"}
    assert summary["accuracy"] == evaluated[-1]
    assert summary["best_accuracy"] == max(evaluated)
    assert summary["last10_accuracy"] == pytest.approx(sum(evaluated) / len(evaluated))
    assert summary["per_class"] == rows[-1]["per_class"] and len(summary["per_class"]) == 10
    assert (summary["steps"], summary["rounds"], summary["examples_seen"]) == (11, 4, 11 * 8 * 2)
    for name in ("bytes_up", "bytes_down", "seconds"):
        assert summary[name] == pytest.approx(sum(row[name] for row in rows), abs=0.01)
    assert 0 <= summary["per_device"]["worst"] <= summary["per_device"]["mean"] <= 1


def test_bytes_are_told_for_each_device_where_they_differ(tmp_path: Path) -> None:
    config = replace(TINY, steps=4, cohort=3, codec=parse("int8:zstd"), codec_down=TopK(0.1))
    list(run(config, tmp_path))
    rows = strict(tmp_path / records.ROUNDS)
    for row in rows:
        for way in ("up", "down"):
            total, each = row[f"bytes_{way}"], row[f"bytes_{way}_each"]
            assert type(each) is int or (len(each) == 3 and len(set(each)) > 1)
            assert total == (3 * each if type(each) is int else sum(each))
    assert type(rows[0]["bytes_down_each"]) is int, "all are newcomers"
    assert any(type(row["bytes_up_each"]) is list for row in rows), "no two updates shrink alike"
    summary = records.summary(tmp_path) or {}
    assert summary["bytes_up"] == sum(row["bytes_up"] for row in rows)


def test_last10_is_of_the_last_ten_evaluations(tmp_path: Path) -> None:
    rows, _ = played(replace(TINY, steps=13, eval_every=1), tmp_path)
    accuracies = [row["accuracy"] for row in rows]
    assert len(set(accuracies)) > 3
    summary = records.summary(tmp_path) or {}
    assert summary["last10_accuracy"] == pytest.approx(sum(accuracies[3:]) / 10)
    assert summary["best_accuracy"] == max(accuracies)


def test_config_toml_leaves_nothing_open(finished: Path, tmp_path: Path, digits: Dataset) -> None:
    config = Config.of(read_toml(finished / records.CONFIG))
    given = {name for name, value in config.flat().items() if value not in (None, "auto")}
    left = set(config.flat()) - given
    # Of these none is decided by the run.
    assert left == {"data_dir", "epochs", "local_epochs", "processes", "start", "warmup_lr"}
    few = replace(digits, train=Split(digits.train.images[:160], digits.train.labels[:160]))
    assert len(list(run(Config(devices=4, batch=40, width=4), tmp_path, dataset=few))) == 10
    chosen = read_toml(tmp_path / records.CONFIG)
    assert (chosen["epochs"], chosen["eval_every"], chosen["fused"]) == (10.0, 1, "on")
    assert (chosen["accelerator"], chosen["augment"]) == ("cpu", "none")


def test_the_written_config_gives_the_same_run(finished: Path, tmp_path: Path) -> None:
    rows, digest = played(Config.of(read_toml(finished / records.CONFIG)), tmp_path)
    assert digest == (records.summary(finished) or {})["model_digest"]
    assert rows == [{**row, "seconds": 0} for row in records.rows(finished)]


@pytest.mark.parametrize(
    ("model", "norm"), [("resnet18", Group()), ("resnet18", Batch()), ("fixup-resnet18", Group())]
)
def test_the_model_file_is_the_model(tmp_path: Path, digits: Dataset, model: str, norm: Any) -> None:
    config = replace(TINY, model=model, norm=norm)
    played(config, tmp_path)
    module = models.build(model, digits.shape, 10, config.width, norm, seed=1)
    module.load_state_dict(load_file(tmp_path / records.MODEL), strict=True)
    parts = assemble(config, digits)
    flat = FlatModel(module, Layout.of(module, parts.model.layout.fingerprint))
    summary = records.summary(tmp_path) or {}
    found = evaluate(flat, digits.test, parts.feed, 10)
    assert found.accuracy == summary["accuracy"] and list(found.per_class) == summary["per_class"]
    assert flat.read().digest(flat.layout) == summary["model_digest"]


def test_partition_csv_tells_who_holds_what(tmp_path: Path, digits: Dataset) -> None:
    list(run(replace(TINY, devices=5, partition=Labels(2), steps=1), tmp_path))
    head, *lines = [line.split(",") for line in (tmp_path / records.PARTITION).read_text().splitlines()]
    assert head == ["device", "examples", *digits.classes]
    table = torch.tensor([[int(word) for word in line] for line in lines])
    assert table[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(table[:, 1], table[:, 2:].sum(1))
    assert torch.equal(table[:, 2:].sum(0), torch.bincount(digits.train.labels))
    assert [row.nonzero().flatten().tolist() for row in table[:, 2:]] == [
        [2 * d, 2 * d + 1] for d in range(5)
    ]


def test_the_length_of_a_run_is_known_from_its_folder(finished: Path, tmp_path: Path) -> None:
    assert total_rounds(finished) == 4
    rounds = list(run(Config(devices=4, batch=40, width=4, epochs=0.5), tmp_path))
    assert total_rounds(tmp_path) == len(rounds) == round(0.5 * 1438 / 160)


# ---- bit for bit ----

WAYS = {
    "sync-sgd": TINY,
    "loop": replace(TINY, fused="off"),
    "batch norm": replace(TINY, norm=Batch(), partition=Labels(3)),
    "fedavg": replace(TINY, algorithm=FedAvg(sync_every=2), norm=Batch()),
    "cohort": replace(TINY, algorithm=FedAvg(sync_every=2, server_momentum=0.5), cohort=0.5),
    "no momentum": replace(TINY, algorithm=SyncSGD(SGD(momentum=0))),
    "plateau": replace(TINY, schedule=Plateau(0.5, patience=0), warmup_epochs=0.05, eval_every=1),
    "fixup": replace(TINY, model=FIXUP),
    "krum": replace(TINY, aggregate=MultiKrum(0), norm=Batch()),
    "topk": replace(TINY, codec=parse("topk:0.01")),
    "dgc": replace(TINY, codec=parse("dgc:0.01:3"), cohort=0.5),
    "drawn": replace(TINY, codec=parse("qsgd:4:nofeedback"), codec_down=parse("randomk:0.1:nofeedback")),
    "powersgd": replace(TINY, codec=parse("powersgd:2"), algorithm=FedAvg(sync_every=2), norm=Batch()),
}


@pytest.mark.parametrize("config", WAYS.values(), ids=WAYS)
def test_a_seed_repeats_a_run_and_another_does_not(config: Config, tmp_path: Path) -> None:
    first = played(config, tmp_path / "first")
    assert played(config, tmp_path / "again") == first
    rows, digest = played(replace(config, seed=1), tmp_path / "other")
    assert digest != first[1] and rows != first[0]


# ---- what a codec does to a run ----


@pytest.mark.parametrize(
    "algorithm", [SyncSGD(SGD(0.05)), FedAvg(SGD(0.05), sync_every=2, server_momentum=0.5)], ids=["1", "2"]
)
@pytest.mark.parametrize("way", ["codec", "codec_down"])
def test_all_values_sent_are_no_compression(tmp_path: Path, algorithm: Any, way: str) -> None:
    """With top-k of everything a run is the plain one, but for float32 where the run has float64."""
    config = replace(TINY, algorithm=algorithm, precision="fp64", fused="off")
    plain, _ = played(config, tmp_path / "plain")
    codec = parse("topk:1") if way == "codec" else TopK(1.0)
    all_sent, _ = played(replace(config, **{way: codec}), tmp_path / "all")
    few_sent, _ = played(replace(config, **{way: parse("topk:0.01:nofeedback")}), tmp_path / "few")
    losses, found, others = ([row["train_loss"] for row in rows] for rows in (plain, all_sent, few_sent))
    assert found == pytest.approx(losses, rel=1e-5)
    assert others != pytest.approx(losses, rel=1e-5)


def test_dgc_that_sends_everything_has_no_momentum(tmp_path: Path) -> None:
    """Momentum factor masking: what was sent starts from rest, so nothing is left of the velocity."""
    config = replace(TINY, algorithm=SyncSGD(SGD(0.05, 0.9, 5e-4)), precision="fp64", schedule=Cosine())
    dgc, _ = played(replace(config, codec=DGC(1.0, warmup=0)), tmp_path / "dgc")
    # Weight decay has no momentum any more, and is ten times as much instead.
    plain, _ = played(replace(config, algorithm=SyncSGD(SGD(0.05, 0.0, 5e-3))), tmp_path / "plain")
    heavy, _ = played(config, tmp_path / "heavy")
    losses, found, others = ([row["train_loss"] for row in rows] for rows in (plain, dgc, heavy))
    assert found == pytest.approx(losses, rel=1e-5)
    assert others != pytest.approx(losses, rel=1e-2)


@pytest.mark.parametrize(
    "algorithm", [SyncSGD(), FedAvg(sync_every=2, server_momentum=0.5)], ids=["sync-sgd", "fedavg"]
)
def test_dgc_moves_momentum_to_the_devices(tmp_path: Path, algorithm: Any) -> None:
    list(run(replace(TINY, algorithm=algorithm, codec=DGC(0.01)), tmp_path))
    checkpoint = Checkpoint.load(tmp_path / records.CHECKPOINT)
    assert not any(tensor.numel() for name, tensor in checkpoint.tensors.items() if "momentum" in name)
    note = checkpoint.note["memories"]
    for device in note["filed"]:
        path = tmp_path / records.MEMORIES / f"{device}-{note['steps'][str(device)]}.safetensors"
        assert Checkpoint.load(path).tensors["velocity"].count_nonzero() > 100
    assert note["filed"] == [0, 1, 2, 3]
    (kept,) = [line for line in (tmp_path / records.CONFIG).read_text().splitlines() if "codec =" in line]
    assert kept == 'codec = "dgc:0.01"', "the config says what was asked for"


def test_dgc_without_momentum_on_the_server_has_its_own(tmp_path: Path) -> None:
    for own, names in ((0.0, {"residual"}), (0.8, {"residual", "velocity"})):
        codec = DGC(0.01, warmup=0, momentum=own)
        config = replace(TINY, algorithm=FedAvg(sync_every=2), codec=codec)
        list(run(config, tmp_path / str(own)))
        files = sorted((tmp_path / str(own) / records.MEMORIES).iterdir())
        assert len(files) == 4
        assert all(Checkpoint.load(path).tensors.keys() == names for path in files)


def test_the_cohort_is_addressed_by_its_round() -> None:
    config = replace(TINY, devices=20, cohort=6.0)
    asked = [list(cohort(config, number)) for number in range(1, 40)]
    assert asked == [list(cohort(config, number)) for number in range(1, 40)]
    assert all(len(set(ids)) == 6 and ids == sorted(ids) for ids in asked)
    assert {id for ids in asked for id in ids} == set(range(20))
    assert len({tuple(ids) for ids in asked}) > 30
    assert asked != [list(cohort(replace(config, seed=1), number)) for number in range(1, 40)]
    assert list(cohort(TINY, 1)) == [0, 1, 2, 3]


# ---- where it stops ----

SPOILT = """
import torch
from torch import nn

class Spoilt(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Linear(shape[0] * shape[1] * shape[2], classes)
        self.zero = nn.Parameter(torch.zeros(1))

def white(shape, classes):
    class Model(Spoilt):
        def forward(self, x):  # not a number for an image that is all white
            return torch.where(x.flatten(1).amin(1, keepdim=True) > 1, torch.nan, self.layer(x.flatten(1)))
    return Model(shape, classes)

def steep(shape, classes):
    class Model(Spoilt):
        def forward(self, x):  # finite, with a gradient that is not
            return self.layer(x.flatten(1)) + self.zero.sqrt()
    return Model(shape, classes)

def huge(shape, classes):
    class Model(Spoilt):
        def forward(self, x):  # infinite in evaluation only
            return self.layer(x.flatten(1)) * (1 if self.training else torch.inf)
    return Model(shape, classes)
"""


@pytest.fixture
def spoilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spoilt_models.py").write_text(SPOILT)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("spoilt")
@pytest.mark.parametrize("algorithm", [SyncSGD(), FedAvg(sync_every=1)], ids=["fused", "loop"])
def test_a_loss_that_is_no_number_names_the_device(algorithm: Any, tmp_path: Path, digits: Dataset) -> None:
    config = replace(TINY, devices=10, partition=Labels(1), cohort=0.3, steps=50)
    config = replace(config, model="spoilt_models:white", algorithm=algorithm)
    asked = [cohort(config, number) for number in range(1, 51)]
    when = [next(number for number, ids in enumerate(asked, 1) if device in ids) for device in range(10)]
    first = max(when)
    spoilt = when.index(first)  # the device that is asked last, and not the first of its cohort
    assert first > 2 and asked[first - 1].index(spoilt) > 0
    images = digits.train.images.clone()
    images[digits.train.labels == spoilt] = 255
    white = replace(digits, train=replace(digits.train, images=images))
    says = rf"^round {first}, device {spoilt}: the loss is nan; training diverged"
    with pytest.raises(EdgewiseError, match=says):
        list(run(config, tmp_path / "run", dataset=white, checkpoint_seconds=0))
    kept = Checkpoint.load(tmp_path / "run" / records.CHECKPOINT)
    assert kept.note["round"] == first - 1 == len(records.rows(tmp_path / "run"))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.tensors.values())
    assert records.diverged(tmp_path / "run") and records.summary(tmp_path / "run") is None
    with pytest.raises(Diverged, match=says):
        list(run(config, tmp_path / "run", dataset=white, resume=True))
    assert says[1:] in (tmp_path / "run" / records.DIVERGED).read_text()
    whole = run(config, tmp_path / "run", dataset=digits, resume=True)
    for _ in whole:  # with images that do no harm it goes on, and nothing says that it did not
        assert not records.diverged(tmp_path / "run")
    assert records.summary(tmp_path / "run") is not None


def test_a_learning_rate_that_is_far_too_high(tmp_path: Path) -> None:
    config = replace(TINY, algorithm=SyncSGD(SGD(lr=1e6)), steps=20, eval_every=0)
    with pytest.raises(
        EdgewiseError, match=r"^round \d+, device \d: the loss is (nan|inf); training diverged"
    ):
        list(run(config, tmp_path, checkpoint_seconds=0))
    kept = Checkpoint.load(tmp_path / records.CHECKPOINT)
    assert len(strict(tmp_path / records.ROUNDS)) == kept.note["round"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.tensors.values())


@pytest.mark.usefixtures("spoilt")
@pytest.mark.parametrize(("steps", "every", "seconds"), [(1, 0, 9), (5, 1, 9), (5, 0, 0)])
def test_a_model_that_is_no_longer_finite_is_not_kept(
    steps: int, every: int, seconds: int, tmp_path: Path
) -> None:
    config = replace(TINY, model="spoilt_models:steep", steps=steps, eval_every=every)
    with pytest.raises(EdgewiseError, match=r"^round 1: the model is no longer finite; training diverged"):
        list(run(config, tmp_path / "run", checkpoint_seconds=seconds))
    assert not (tmp_path / "run" / records.CHECKPOINT).exists()
    assert records.summary(tmp_path / "run") is None


@pytest.mark.usefixtures("spoilt")
@pytest.mark.parametrize("codec", ["topk:0.1", "dgc:0.1", "int8", "sign:zstd", "topk:0.1:nofeedback"])
@pytest.mark.parametrize("algorithm", [SyncSGD(), FedAvg(sync_every=1)], ids=["sync-sgd", "fedavg"])
def test_an_update_that_is_not_finite_names_the_device(algorithm: Any, codec: str, tmp_path: Path) -> None:
    config = replace(TINY, model="spoilt_models:steep", algorithm=algorithm, codec=parse(codec), cohort=2)
    first = cohort(config, 1)[0]
    with pytest.raises(EdgewiseError) as told:
        list(run(config, tmp_path / "run", checkpoint_seconds=0))
    says = f"round 1, device {first}: the update is not finite; training diverged (try a lower lr"
    assert str(told.value).startswith(says) and "\n" not in str(told.value)
    assert not (tmp_path / "run" / records.CHECKPOINT).exists()


@pytest.mark.usefixtures("spoilt")
def test_a_state_that_cannot_be_sent_names_the_round(tmp_path: Path) -> None:
    config = replace(TINY, model="spoilt_models:steep", eval_every=0, codec_down=TopK(0.1))
    with pytest.raises(EdgewiseError, match=r"^round 1: the model is no longer finite; training diverged \("):
        list(run(config, tmp_path / "run"))
    assert not (tmp_path / "run" / records.CHECKPOINT).exists()


@pytest.mark.parametrize("codec", ["topk:0.01", "dgc:0.01", "sign", "powersgd:2", "randomk:0.1:nofeedback"])
def test_a_run_that_diverges_with_a_codec_keeps_its_last_good_checkpoint(codec: str, tmp_path: Path) -> None:
    config = replace(TINY, algorithm=SyncSGD(SGD(lr=1e9)), steps=20, eval_every=0, codec=parse(codec))
    says = r"^round \d+(, device \d)?: (the loss|the update|the model) is .*; training diverged \("
    with pytest.raises(EdgewiseError, match=says):
        list(run(config, tmp_path, checkpoint_seconds=0))
    kept = Checkpoint.load(tmp_path / records.CHECKPOINT)
    assert len(strict(tmp_path / records.ROUNDS)) >= kept.note["round"] > 0
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.tensors.values())


@pytest.mark.usefixtures("spoilt")
def test_a_test_loss_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    rounds = list(run(replace(TINY, model="spoilt_models:huge"), tmp_path / "run"))
    rows = strict(tmp_path / "run" / records.ROUNDS)
    assert [set(row) & EVALUATED for row in rows if "accuracy" in row] == [{"accuracy", "per_class"}] * 3
    assert rounds[-1].loss is None and rounds[-1].accuracy is not None


def test_a_folder_with_a_run_is_not_written_over(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(EdgewiseError, match="holds a run already"):
        list(run(replace(TINY, data="nosuch"), finished))  # said before anything is loaded
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


def test_bad_input_leaves_no_folder(tmp_path: Path) -> None:
    for wrong in (
        {"data": "nosuch"},
        {"model": "nosuch"},
        {"partition": Labels(11)},
        {"fused": "on", "algorithm": FedAvg(local_epochs=1.0)},
    ):
        with pytest.raises(EdgewiseError):
            list(run(replace(TINY, **wrong), tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_the_time_between_checkpoints_is_a_time(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match=r"^checkpoint_seconds: "):
        next(run(TINY, tmp_path, checkpoint_seconds=seconds))


def test_a_batch_beyond_a_device_s_data_wraps_and_is_said(tmp_path: Path) -> None:
    with pytest.warns(
        EdgewiseWarning, match=r"^batch: 400 is more than device 0 holds \(360 examples\)"
    ) as said:
        rounds = list(run(replace(TINY, batch=400, steps=2), tmp_path))
    assert len(said) == 1
    assert rounds[-1].examples_seen == 2 * 4 * 400


# ---- engines that leave devices out ----


class Partial(Inline):
    """Some devices do not answer in some rounds; the others' replies count as device numbers have it."""

    missing: ClassVar = {2: [0, 3], 4: [1]}

    def ask(self, task: Task, cohort: Sequence[int]) -> Iterator[Reply]:
        there = [device for device in cohort if device not in self.missing.get(task.round, [])]
        for reply in super().ask(task, there):
            yield replace(reply, examples=reply.examples * (1 + reply.devices[0]))


def test_devices_that_do_not_answer_are_written_down_and_stand_where_they_stood(
    digits: Dataset, tmp_path: Path
) -> None:
    config = replace(TINY, algorithm=FedAvg(SGD(lr=0.05), sync_every=2), steps=8, eval_every=4, fused="off")
    engines: list[Partial] = []

    def reach(parts: Parts, note: Any) -> Partial:
        engines.append(Partial(parts.devices, parts.model, parts.work, Memories(note)))
        return engines[0]

    with closing(drive(config, tmp_path / "run", lambda one: assemble(one, digits), reach, False)) as play:
        found = list(play)
    assert [row.missing for row in found] == [None, [0, 3], None, [1]]
    rows = records.rows(tmp_path / "run")
    assert ["missing" in row for row in rows] == [False, True, False, True]
    weights = [sum(1 + d for d in range(4) if d not in Partial.missing.get(n, [])) for n in range(1, 5)]
    each = np.cumsum([16 * weight for weight in weights]).tolist()
    assert [row.examples_seen for row in found] == each
    assert records.summary(tmp_path / "run")["examples_seen"] == each[-1]  # type: ignore[index]
    assert engines[0].memories.steps() == {0: 6, 1: 6, 2: 8, 3: 6}
    sent = found[0].bytes_up // 4
    assert [row.bytes_up for row in found] == [4 * sent, 2 * sent, 4 * sent, 3 * sent]
    assert all(row.bytes_down == found[0].bytes_down for row in found)  # they were asked all the same


def test_a_reply_counts_by_its_examples(digits: Dataset, tmp_path: Path) -> None:
    config = replace(TINY, algorithm=SyncSGD(SGD(lr=0.05)), steps=1, fused="off")
    parts = assemble(config, digits)
    start = parts.model.read()
    task = Task(1, 1, 1.0, start)
    replies = list(Partial(parts.devices, parts.model, parts.work, Memories()).ask(task, range(4)))
    mean = Mean(start)
    for reply in replies:
        update = reply.update(config.codec, parts.model.layout, torch.float32)
        mean.add(State(update, reply.buffers), (1 + reply.devices[0]) * 8)
    algorithm = parts.terms.algorithm
    server = algorithm.step(algorithm.start(start), Combined(mean.value()), parts.model.layout)

    def reach(parts: Parts, note: Any) -> Partial:
        return Partial(parts.devices, parts.model, parts.work, Memories(note))

    with closing(drive(config, tmp_path / "run", lambda one: assemble(one, digits), reach, False)) as play:
        assert len(list(play)) == 1
    summary = records.summary(tmp_path / "run")
    assert summary is not None and summary["model_digest"] == server.state.digest(parts.model.layout)


def test_the_terms_of_a_run_are_those_of_its_devices(digits: Dataset) -> None:
    """A coordinator without data agrees on the same with its devices as a simulation does."""
    config = replace(TINY, codec=parse("dgc:0.1:3:8:0.9"), algorithm=SyncSGD(SGD(lr=0.05, momentum=0.9)))
    whole = assemble(config, digits)
    alone = assemble_coordinator(config, (digits.shape, len(digits.classes)))
    assert alone.terms == whole.terms and isinstance(whole.work, Terms)
    work = whole.work
    assert (work.algorithm, work.codec, work.agreed) == (
        *(whole.terms.algorithm, whole.terms.codec),
        whole.terms.agreed,
    )
    assert alone.feed is None and alone.dataset is None and alone.rounds == whole.rounds
