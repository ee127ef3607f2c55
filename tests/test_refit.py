"""The closed-form head: sums over skewed devices are the ridge regression on all data in one place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import edgewise
from safetensors.torch import save_file

from edgewise import Config, FedAvg, Labels, Trained, data, models, records, run, wire
from edgewise.config import read_toml
from edgewise.data import Dataset
from edgewise.data.batches import Augment
from edgewise.data.feed import Feed
from edgewise.data.partition import Iid, deal
from edgewise.errors import EdgewiseError
from edgewise.models.heads import HEADS, Etf, FeatureNorm
from edgewise.models.norms import Group
from edgewise.refit import Sums, freed, inputs, put, refit, sums

SKEWED = Config(
    devices=10, partition=Labels(2), batch=8, width=2, steps=4, eval_every=0, algorithm=FedAvg(sync_every=4)
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    out = tmp_path_factory.mktemp("refit") / "run"
    for _ in run(SKEWED, out, dataset=digits):
        pass
    return out


@pytest.mark.parametrize("model", models.MODELS)
@pytest.mark.parametrize("head", ["linear", "feature-norm"])
def test_ten_skewed_devices_are_one_machine(model: str, head: str, digits: Dataset) -> None:
    net = models.build(model, digits.shape, 10, 2, Group(), 0, HEADS[head]()).double()
    feed = Feed.of(digits, 1, Augment(), torch.float64, 0)
    few = replace(digits, train=digits.train.pick(torch.arange(600)))
    features = inputs(net.eval(), feed.plain(few.train.images)).detach()
    x = torch.cat([features, torch.ones(600, 1, dtype=torch.float64)], 1)
    y = torch.nn.functional.one_hot(few.train.labels, 10).double()
    shrink = 1e-2 * 600 * torch.eye(x.shape[1], dtype=torch.float64)
    shrink[-1, -1] = 0
    expected = torch.linalg.solve(x.T @ x + shrink, x.T @ y)
    for partition in (Labels(2), Iid()):
        parts = deal(partition, few.train, 10, 10, 0)
        put(net, [sums(net, few.train.pick(part), feed, 10).pack() for part in parts], 1e-2, 10)
        assert (net.get_parameter("classifier.weight") - expected[:-1].T).abs().max() < 1e-10
        assert (net.get_parameter("classifier.bias") - expected[-1]).abs().max() < 1e-10


def test_three_points_on_a_line() -> None:
    """One feature at -1, 0, 1 of classes 0, 0, 1: class 1 has slope 1/2 and mean 1/3; a ridge shrinks it."""
    found = Sums.of(torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([0, 0, 1]), 2)
    assert found.gram.tolist() == [[2, 0], [0, 3]] and found.cross.tolist() == [[-1, 1], [2, 1]]
    for ridge, slope in ((1e-12, 0.5), (1.0, 1 / 5)):
        weight, bias = found.solve(ridge)
        assert weight.flatten().tolist() == pytest.approx([-slope, slope])
        assert bias.tolist() == pytest.approx([2 / 3, 1 / 3])
    with pytest.raises(EdgewiseError, match=r"^refit: the features do not determine the weights"):
        Sums.of(torch.zeros(3, 1), torch.tensor([0, 0, 1]), 2).solve(0.0)


def test_sums_travel_as_they_are() -> None:
    features = torch.randn(20, 5, dtype=torch.float64)
    sent = Sums.of(features, torch.arange(20) % 3, 3)
    payload = sent.pack()
    assert len(payload) == 8 * (6 * 7 // 2 + 6 * 3)
    got = Sums.unpack(payload, 5, 3)
    assert torch.equal(got.gram, sent.gram) and torch.equal(got.cross, sent.cross)
    for wrong in (payload[:-1], b"", payload + bytes(8), b"\xff" * len(payload)):
        with pytest.raises(EdgewiseError, match=r"^refit: "):
            Sums.unpack(wrong, 5, 3)


def test_a_run_is_refitted(finished: Path, digits: Dataset, tmp_path: Path) -> None:
    found = refit(finished, 1e-3, out=tmp_path / "out", dataset=digits)
    summary = records.summary(finished) or {}
    assert found.trained == pytest.approx(summary["accuracy"]) and found.accuracy > found.trained + 0.2
    again = Trained.read(tmp_path / "out", digits)
    feed = Feed.of(digits, 1, Augment(), torch.float32, 0)
    with torch.no_grad():
        right = again.module(feed.plain(digits.test.images)).argmax(1) == digits.test.labels
    assert float(right.float().mean()) == pytest.approx(found.accuracy)
    each = wire.length(8 * (17 * 18 // 2 + 17 * 10), 0)
    assert (found.devices, found.examples, found.bytes_up) == (10, len(digits.train), 10 * each)
    told = json.loads((tmp_path / "out" / records.SUMMARY).read_text())
    assert told["accuracy"] == found.accuracy and told["refit"]["ridge"] == 1e-3
    assert told["bytes_up"] == summary["bytes_up"] + found.bytes_up
    assert told["model_digest"] != summary["model_digest"]
    with pytest.raises(EdgewiseError, match=r"holds a run already"):
        refit(finished, 1e-3, out=tmp_path / "out", dataset=digits)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": "fleet"}, "refit: real devices cannot be asked"),
        ({"model": "examples.shelf:model"}, "refit: model examples.shelf:model with this head"),
    ],
)
def test_what_cannot_be_refitted_is_told_in_a_line(
    changes: dict[str, Any], says: str, digits: Dataset, tmp_path: Path
) -> None:
    config = replace(SKEWED, width=4, steps=4, devices=2, **changes)
    net = models.build(config.model, digits.shape, 10, 4, Group(), 0, config.head)
    (tmp_path / records.CONFIG).write_text(config.toml())
    save_file(dict(net.state_dict()), tmp_path / records.MODEL)
    with pytest.raises(EdgewiseError, match=f"^{says}"):
        refit(tmp_path, dataset=digits)
    assert not (tmp_path / "refit").exists()


def test_a_frozen_head_is_freed_before_it_is_fitted(digits: Dataset, tmp_path: Path) -> None:
    for _ in run(replace(SKEWED, head=Etf(2.0)), tmp_path / "run", dataset=digits):
        pass
    images = torch.rand(8, *digits.shape)
    frozen, loose = (Trained.read(tmp_path / "run", digits) for _ in range(2))
    loose = freed(loose)
    assert loose.config == replace(frozen.config, head=FeatureNorm(2.0))
    assert (loose.module(images) - frozen.module(images)).abs().max() < 1e-5
    found = refit(tmp_path / "run", dataset=digits)
    again = Trained.read(found.path, digits)
    assert again.config.head == FeatureNorm(2.0)
    weight = again.module.get_parameter("classifier.weight")
    assert weight.requires_grad and not torch.equal(weight, frozen.module.get_parameter("classifier.weight"))
    assert found.trained == (records.summary(tmp_path / "run") or {})["accuracy"]
    assert found.accuracy == (records.summary(found.path) or {})["accuracy"]


def test_a_ridge_is_above_zero(finished: Path) -> None:
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(EdgewiseError, match=r"^refit: a ridge of .*; legal: above 0"):
            refit(finished, wrong)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    small = ("--width", 2, "--steps", 2, "--batch", 4, "--head", "feature-norm", "--eval-every", 0)
    assert edgewise("run", *small, "--out", "one", folder=tmp_path).status == 0
    done = edgewise("refit", "one", "--ridge", "0.01", folder=tmp_path)
    assert done.status == 0 and "sums of 10 devices" in done.out
    assert FeatureNorm() == Config.of(records_config(tmp_path / "one/refit")).head
    assert edgewise("refit", "two", folder=tmp_path).status == 2


def records_config(folder: Path) -> dict[str, Any]:
    return read_toml(folder / records.CONFIG)
