"""Statistics taken anew: what skewed devices' moments come to are the statistics of all data in one place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import edgewise
from safetensors.torch import load_file
from torch import nn

from edgewise import Config, FedAvg, Labels, Trained, data, records, run
from edgewise.conversion.recalibration import Moments, keeps, recalibrate
from edgewise.data import Dataset
from edgewise.data.batches import Augment, positions
from edgewise.data.feed import Feed
from edgewise.data.partition import deal
from edgewise.errors import EdgewiseError
from edgewise.models.norms import Batch, BatchFrozen, BatchRenorm, Group
from edgewise.restate import restate

SKEWED = Config(
    devices=5,
    partition=Labels(2),
    batch=8,
    width=2,
    steps=8,
    norm=Batch(),
    eval_every=0,
    algorithm=FedAvg(sync_every=4),
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    out = tmp_path_factory.mktemp("restate") / "run"
    list(run(SKEWED, out, dataset=digits))
    return out


def test_skewed_devices_are_one_machine(finished: Path, digits: Dataset, tmp_path: Path) -> None:
    found = restate(finished, 30, out=tmp_path / "new", dataset=digits)
    trained = Trained.read(finished, digits)
    parts = deal(SKEWED.partition, digits.train, 10, SKEWED.devices, SKEWED.seed)
    feed = Feed.of(digits, 1, Augment(), torch.float32, 0)
    drawn = [part[positions(SKEWED.seed, id, len(part), 0, 30)] for id, part in enumerate(parts)]
    for some, part in zip(drawn, parts, strict=True):  # of both classes, though they lie class by class
        assert set(digits.train.labels[some].tolist()) == set(digits.train.labels[part].tolist())
    together = feed.plain(digits.train.images[torch.cat(drawn)])
    expected = recalibrate(trained.module, [together]).state_dict()
    before, after = load_file(finished / records.MODEL), load_file(tmp_path / "new" / records.MODEL)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    kept = [name for name, module in trained.module.named_modules() if keeps(module)]
    assert changed == {f"{name}.{what}" for name in kept for what in ("running_mean", "running_var")}
    for name, tensor in after.items():
        assert torch.allclose(tensor, expected[name], rtol=1e-4, atol=1e-5), name
    assert (found.norms, found.devices, found.examples) == (len(kept), 5, 150)


def test_what_it_leaves_behind(finished: Path, digits: Dataset, tmp_path: Path) -> None:
    found = restate(finished, 7, out=tmp_path / "new", dataset=digits)
    told, was = (
        json.loads((folder / records.SUMMARY).read_text()) for folder in (tmp_path / "new", finished)
    )
    assert told["accuracy"] == found.accuracy == told["restated"]["accuracy"]
    assert found.trained == was["accuracy"] and told["model_digest"] != was["model_digest"]
    channels = [len(m.running_mean) for m in Trained.read(finished, digits).module.modules() if keeps(m)]  # type: ignore[arg-type]
    assert found.bytes_up == 5 * sum(64 + 8 * (1 + 2 * count) for count in channels)
    assert told["bytes_up"] == was["bytes_up"] + found.bytes_up
    again = restate(tmp_path / "new", 7, out=tmp_path / "again", dataset=digits)  # it is a run like any other
    assert again.accuracy == found.accuracy
    with pytest.raises(EdgewiseError, match="holds"):
        restate(finished, out=tmp_path / "new", dataset=digits)


@pytest.mark.parametrize("norm", [BatchFrozen(0.5), BatchRenorm()], ids=["batch-frozen", "batch-renorm"])
def test_every_norm_with_statistics(norm: BatchFrozen | BatchRenorm, digits: Dataset, tmp_path: Path) -> None:
    list(run(replace(SKEWED, norm=norm), tmp_path / "run", dataset=digits))
    found = restate(tmp_path / "run", 10, dataset=digits)
    assert found.path == tmp_path / "run" / "restated" and found.norms > 10


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"norm": Group()}, "^refit: the model resnet18 has no batch norm that keeps statistics"),
        ({"engine": "fleet"}, "^refit: real devices cannot be asked for the moments"),
    ],
    ids=["group", "fleet"],
)
def test_what_cannot_be_is_a_line(
    settings: dict[str, object], says: str, digits: Dataset, tmp_path: Path
) -> None:
    list(
        run(replace(SKEWED, **{k: v for k, v in settings.items() if k != "engine"}), tmp_path, dataset=digits)
    )
    config = tmp_path / records.CONFIG
    if "engine" in settings:
        config.write_text(config.read_text().replace('engine = "inline"', 'engine = "fleet"'))
    with pytest.raises(EdgewiseError, match=says):
        restate(tmp_path, dataset=digits)
    assert not (tmp_path / "restated").exists()


def test_moments_join_and_travel() -> None:
    values = torch.randn(40, 3, 5, dtype=torch.float64) * 7 + 100
    joined, empty = Moments(), Moments()
    for some in values.split([1, 7, 32]):
        one = Moments()
        one.add(some)
        joined.join(Moments.unpack(one.pack()))
    joined.join(empty)
    flat = values.transpose(0, 1).flatten(1)
    assert torch.allclose(joined.mean, flat.mean(1), rtol=1e-14)
    assert torch.allclose(joined.variance, flat.var(1, correction=0), rtol=1e-12)
    good = joined.pack()
    bad = [b"", good[:-1], good[:-8], bytes(len(good)), good[:-8] + b"\xff" * 8]
    for wrong in bad:
        with pytest.raises(EdgewiseError):
            Moments.unpack(wrong)


def test_the_command(finished: Path, tmp_path: Path) -> None:
    done = edgewise("refit", finished, "--statistics", "--examples", 5, "--out", "new", folder=tmp_path)
    assert done.status == 0 and "statistics of " in done.out
    for flags, says in (
        (("--statistics", "--ridge", 1), "refit: --ridge is for the last layer"),
        (("--examples", 3), "refit: --examples is for --statistics"),
        (("--statistics", "--examples", 0), "refit: statistics of 0 examples; legal: 1 or more"),
    ):
        wrong = edgewise("refit", finished, *flags, "--out", "other", folder=tmp_path)
        assert wrong.status == 2 and says in wrong.err and wrong.err.count("\n") <= 2
    assert isinstance(Trained.read(tmp_path / "new").module, nn.Module)
