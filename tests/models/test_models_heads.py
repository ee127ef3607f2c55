"""Heads: closed-form facts of each, every head with every norm, and what is frozen stays so, bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgewise import Config, FedAvg, Labels, SyncSGD, data, models, records, run
from edgewise.codecs import parse
from edgewise.errors import EdgewiseError
from edgewise.models.heads import HEADS, Etf, FeatureNorm, Linear, frame
from edgewise.models.norms import NORMS, Group
from edgewise.vector import FlatModel, Layout

SHAPE = (1, 8, 8)
every_head = pytest.mark.parametrize("head", HEADS)


def test_feature_norm_is_linear_on_features_of_one_length() -> None:
    layer = FeatureNorm(0.5).layer(16, 3)
    assert isinstance(layer, nn.Linear)
    x = torch.randn(5, 16)
    lengths = x.norm(dim=1, keepdim=True)
    by_hand = (x / lengths * 0.5 * math.sqrt(16)) @ layer.weight.T + layer.bias
    assert torch.allclose(layer(x), by_hand, atol=1e-6)
    assert torch.allclose(layer(x), layer(1000 * x), atol=1e-5)
    assert torch.equal(layer(torch.zeros(1, 16))[0], layer.bias)


def test_features_of_one_length_start_from_the_weights_of_a_linear_head() -> None:
    plain, scaled = (
        models.build("resnet18", SHAPE, 10, 4, Group(), 3, head) for head in (Linear(), FeatureNorm())
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), scaled.parameters(), strict=True))
    digests = {Layout.of(net, repr(net)).digest for net in (plain, scaled)}
    assert len(digests) == 2, "two machines must not take one for the other"


@pytest.mark.parametrize(("features", "classes"), [(16, 10), (10, 10), (7, 2), (64, 33)])
def test_a_frame_is_equiangular(features: int, classes: int) -> None:
    found = frame(features, classes).double()
    angles = found @ found.T
    expected = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    assert torch.allclose(angles, expected, atol=1e-6)
    assert torch.allclose(found.sum(0), torch.zeros(features, dtype=torch.float64), atol=1e-6)


def test_a_frame_is_that_of_its_seed_and_never_trained() -> None:
    one, again, other = (models.build("resnet18", SHAPE, 10, 4, Group(), seed, Etf()) for seed in (1, 1, 2))
    weights = [net.get_parameter("classifier.weight") for net in (one, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    layout = Layout.of(one)
    (frozen,) = (entry for entry in layout.params if entry.kind == "frozen")
    assert (frozen.name, frozen.shape) == ("classifier.weight", (10, 32))
    assert layout.frozen == slice(frozen.start, frozen.stop)
    assert Layout.of(nn.Linear(2, 2)).frozen == slice(0, 0)


@every_head
@pytest.mark.parametrize("norm", NORMS)
def test_every_head_with_every_norm(head: str, norm: str) -> None:
    net = models.build("resnet18", SHAPE, 10, 2, NORMS[norm](), 0, HEADS[head]())
    _learns(net)


@every_head
def test_every_head_with_fixup(head: str) -> None:
    net = models.build("fixup-resnet18", SHAPE, 10, 2, Group(), 0, HEADS[head]())
    _learns(net)


def _learns(net: nn.Module) -> None:
    """Gradients for all that is trained, in the flat vector, and a loss that falls."""
    flat = FlatModel(net, Layout.of(net))
    kept = flat.params[flat.layout.frozen].clone()
    x, y = torch.rand(8, *SHAPE), torch.arange(8)
    losses = []
    for _ in range(4):
        flat.grads.zero_()
        loss = nn.functional.cross_entropy(flat(x), y)
        loss.backward()
        flat.params.sub_(flat.grads, alpha=0.05 / max(1.0, float(flat.grads.norm())))
        losses.append(float(loss.detach()))
    assert flat(x).shape == (8, 10) and losses[-1] < losses[0]
    assert torch.equal(flat.params[flat.layout.frozen], kept)
    flat.check()
    trained = [p for p in net.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)


@pytest.mark.parametrize(
    ("algorithm", "codec"),
    [
        (SyncSGD(), "none"),
        (FedAvg(sync_every=2, server_momentum=0.5), "none"),
        (FedAvg(sync_every=2), "sign"),
    ],
    ids=["sync-sgd", "fedavg", "lossy"],
)
def test_a_run_leaves_the_frame_as_it_was(algorithm: SyncSGD | FedAvg, codec: str, tmp_path: Path) -> None:
    """Through momentum, weight decay, a mean over devices, and a codec that has no zero."""
    config = Config(devices=3, partition=Labels(4), batch=8, width=2, steps=4, eval_every=0, head=Etf())
    config = replace(config, algorithm=algorithm, codec=parse(codec))
    for _ in run(config, tmp_path):
        pass
    fresh = models.build("resnet18", data.load("digits").shape, 10, 2, config.norm, config.seed, Etf())
    ended = load_file(tmp_path / records.MODEL)
    assert torch.equal(ended["classifier.weight"], fresh.get_parameter("classifier.weight"))
    assert not torch.equal(ended["conv.weight"], fresh.get_parameter("conv.weight"))


def test_a_head_is_a_setting() -> None:
    config = Config.of({"head": "feature-norm:1", "model": "fixup-resnet18"})
    assert config.head == FeatureNorm(1.0) and config.flat()["head"] == "feature-norm:1"
    assert Config().flat()["head"] == "linear"
    for wrong in ("feature-norm:0", "etf:-1", "etf:inf", "arcface"):
        with pytest.raises(EdgewiseError, match=r"^head: "):
            Config.of({"head": wrong})


def test_a_head_that_does_not_fit_is_told_in_a_line() -> None:
    with pytest.raises(EdgewiseError, match=r"^head: etf has no frame for 10 classes in 8 features"):
        models.build("resnet18", SHAPE, 10, 1, Group(), 0, Etf())
    with pytest.raises(EdgewiseError, match=r"^head: model examples.shelf:model has its own"):
        models.build("examples.shelf:model", SHAPE, 10, 4, Group(), 0, Etf())
