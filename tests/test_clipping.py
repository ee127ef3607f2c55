"""Adaptive gradient clipping: numbers by hand, what is exempt, and where it stands in a step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from edgewise.clipping import clip_units
from edgewise.errors import EdgewiseError
from edgewise.models import build
from edgewise.models.heads import Etf, FeatureNorm, Head, Linear
from edgewise.models.norms import NORMS
from edgewise.optimizers import SGD
from edgewise.vector import FlatModel, Layout


def flat(module: nn.Module) -> FlatModel:
    module = module.double()
    return FlatModel(module, Layout.of(module))


def test_units_by_hand() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, (1, 2)), nn.Linear(2, 2))
    model = flat(module)
    conv, head = module[0], module[1]
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]).view(2, 1, 1, 2))
        conv.bias.copy_(torch.tensor([0.0, 2.0]))
    assert conv.weight.grad is not None and conv.bias.grad is not None and head.weight.grad is not None
    conv.weight.grad.copy_(torch.tensor([[0.0, 10.0], [0.3, 0.4]]).view(2, 1, 1, 2))
    conv.bias.grad.copy_(torch.tensor([3.0, 4.0]))
    head.weight.grad.fill_(100)
    clip_units(model.params, model.grads, model.layout, limit=0.1, floor=0.5)
    # filter 0: |w| = 5, so 0.5 at most; filter 1: at the floor, 0.05 at most; the bias, one unit: 0.2 at most
    assert torch.allclose(conv.weight.grad.flatten(), torch.tensor([0, 0.5, 0.03, 0.04]).double(), atol=1e-15)
    assert torch.allclose(conv.bias.grad, torch.tensor([0.12, 0.16]).double(), atol=1e-15)
    assert (head.weight.grad == 100).all(), "the last layer is exempt"


def test_short_gradients_and_zeros_stay_as_they_are() -> None:
    model = flat(nn.Sequential(nn.Conv2d(2, 3, 2), nn.Linear(2, 2)))
    model.grads.copy_(torch.linspace(0, 1e-4, len(model.grads), dtype=torch.float64))
    before = model.grads.clone()
    clip_units(model.params, model.grads, model.layout, limit=0.01)
    assert torch.equal(model.grads, before)
    model.grads.zero_()
    clip_units(model.params, model.grads, model.layout, limit=0.01)
    assert not model.grads.any()


@pytest.mark.parametrize("name", ["resnet18", "fixup-resnet18"])
@pytest.mark.parametrize("head", [Linear(), FeatureNorm(), Etf()], ids=repr)
def test_the_last_layer_is_found_and_all_other_units_are_bound(name: str, head: Head) -> None:
    model = flat(build(name, (1, 4, 4), 3, 2, NORMS["batch"](), seed=0, head=head))
    assert model.layout.head == "classifier"
    model.grads.fill_(1000.0)
    clip_units(model.params, model.grads, model.layout, limit=0.01)
    for entry_name, parameter in model.module.named_parameters():
        assert parameter.grad is not None
        if entry_name.startswith("classifier."):
            assert (parameter.grad == 1000).all()
            continue
        units = parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[None]
        weights = parameter.flatten(1) if parameter.ndim > 1 else parameter[None]
        assert torch.allclose(units.norm(dim=1), 0.01 * weights.norm(dim=1).clamp(min=1), rtol=1e-12)


def test_it_comes_before_weight_decay_and_momentum() -> None:
    model = flat(nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Linear(1, 1, bias=False)))
    model.params.copy_(torch.tensor([2.0, 2.0]))
    model.grads.fill_(7.0)
    sgd = SGD(lr=0.5, momentum=0.9, weight_decay=0.1, agc=0.25)
    momentum = sgd.start(model.params)
    sgd.step(model.params, model.grads, momentum, 1.0, model.layout)
    # 0.25 * 2 + 0.1 * 2, and the last layer's 7 + 0.1 * 2
    assert torch.allclose(momentum, torch.tensor([0.7, 7.2]).double())


def test_a_model_without_matrices_has_no_last_layer() -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    model = flat(Scales())
    assert model.layout.head is None
    model.grads.fill_(5.0)
    clip_units(model.params, model.grads, model.layout, limit=0.5)
    assert model.grads.norm().item() == pytest.approx(0.5 * math.sqrt(3))


@pytest.mark.parametrize(
    "bad", [{"agc": -1.0}, {"agc": math.nan}, {"agc_floor": 0.0}, {"agc_floor": math.inf}]
)
def test_what_makes_no_sense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(EdgewiseError, match=rf"^sgd: {next(iter(bad))} is .*; legal: "):
        SGD(**bad)
