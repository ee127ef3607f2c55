"""SGD on a flat vector: numbers by hand, and torch.optim.SGD with parameter groups."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgewise.errors import EdgewiseError
from edgewise.models import build
from edgewise.models.kinds import kinds
from edgewise.models.norms import NORMS
from edgewise.optimizers import SGD
from edgewise.vector import Entry, FlatModel, Layout

FACTORS = (1.0, 1.0, 0.5, 0.25, 0.25)


def segments(*sizes: tuple[str, int]) -> Layout:
    entries, start = [], 0
    for kind, size in sizes:
        entries.append(Entry(f"{kind}{start}", (size,), kind, start))
        start += size
    return Layout(tuple(entries), ())


def test_two_steps_by_hand() -> None:
    sgd = SGD(lr=0.1, momentum=0.5, weight_decay=0.1)
    params, layout = torch.tensor([1.0], dtype=torch.float64), segments(("weight", 1))
    momentum = sgd.start(params)
    # g = 2 + 0.1 * 1 = 2.1;  m = 2.1;  w = 1 - 0.1 * 2.1
    sgd.step(params, torch.tensor([2.0], dtype=torch.float64), momentum, 1.0, layout)
    assert params.item() == pytest.approx(0.79, abs=1e-15) and momentum.item() == pytest.approx(2.1)
    # g = 2 + 0.1 * 0.79 = 2.079;  m = 0.5 * 2.1 + 2.079 = 3.129;  w = 0.79 - 0.5 * 0.1 * 3.129
    sgd.step(params, torch.tensor([2.0], dtype=torch.float64), momentum, 0.5, layout)
    assert params.item() == pytest.approx(0.63355, abs=1e-15) and momentum.item() == pytest.approx(3.129)


def test_nesterov_by_hand() -> None:
    sgd = SGD(lr=0.1, momentum=0.5, weight_decay=0.0, nesterov=True)
    params, layout = torch.tensor([1.0], dtype=torch.float64), segments(("weight", 1))
    momentum = sgd.start(params)
    # m = 2;  w = 1 - 0.1 * (2 + 0.5 * 2)
    sgd.step(params, torch.tensor([2.0], dtype=torch.float64), momentum, 1.0, layout)
    assert params.item() == pytest.approx(0.7, abs=1e-15) and momentum.item() == 2


def groups(module: nn.Module, sgd: SGD) -> list[dict[str, object]]:
    """PyTorch's parameter groups: Fixup's scalars at a tenth of lr, the rest at lr * lr_scale."""
    kind = kinds(module)
    rates = {name: sgd.lr * (0.1 if kind[name] == "scalar" else sgd.lr_scale) for name in kind}
    decays = {
        name: sgd.weight_decay * (sgd.decay == "all" or p.ndim > 1) for name, p in module.named_parameters()
    }
    return [
        {"params": [p], "lr": rates[name], "weight_decay": decays[name]}
        for name, p in module.named_parameters()
    ]


@pytest.mark.parametrize("name", ["resnet18", "fixup-resnet18"])
@pytest.mark.parametrize(
    "sgd",
    [
        SGD(0.1, momentum=0, weight_decay=0),
        SGD(0.1, momentum=0.9, weight_decay=0),
        SGD(0.1, momentum=0, weight_decay=0.01),
        SGD(0.1, momentum=0.9, weight_decay=0.01, lr_scale=4),
        SGD(0.1, momentum=0.9, weight_decay=0.01, nesterov=True, lr_scale=0.5),
        SGD(0.1, momentum=0.9, weight_decay=0.01, nesterov=True, lr_scale=2, decay="weights"),
    ],
)
def test_five_steps_are_those_of_torch(name: str, sgd: SGD) -> None:
    module = build(name, (1, 4, 4), 3, 2, NORMS["batch"](), seed=0).double()
    plain = copy.deepcopy(module)
    flat = FlatModel(module, Layout.of(module))
    torch_sgd = torch.optim.SGD(groups(plain, sgd), momentum=sgd.momentum, nesterov=sgd.nesterov)
    peaks = [group["lr"] for group in torch_sgd.param_groups]
    momentum = sgd.start(flat.params)
    for factor in FACTORS:
        for group, peak in zip(torch_sgd.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        for parameter, own in zip(plain.parameters(), flat.module.parameters(), strict=True):
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient.clone()
            assert own.grad is not None
            own.grad.copy_(gradient)
        torch_sgd.step()
        sgd.step(flat.params, flat.grads, momentum, factor, flat.layout)
    for parameter, own in zip(plain.parameters(), flat.module.parameters(), strict=True):
        assert torch.allclose(own, parameter, rtol=0, atol=1e-13)
    flat.check()


def test_without_momentum_nothing_is_kept() -> None:
    params = torch.zeros(5, dtype=torch.float64)
    assert SGD(momentum=0).start(params).shape == (0,)
    kept = SGD(momentum=0.9).start(params)
    assert kept.shape == (5,) and kept.dtype == torch.float64 and not kept.any()


def test_rates_by_kind() -> None:
    layout = segments(("bias", 2), ("norm", 3), ("scalar", 4), ("weight", 5))
    assert SGD(lr=0.5, lr_scale=2, scalar_share=0.25).rates(layout) == [
        (slice(0, 5), 1.0),
        (slice(5, 9), 0.125),
        (slice(9, 14), 1.0),
    ]
    assert SGD(lr=0.5, lr_scale=0.1).rates(layout) == [(slice(0, 14), 0.05)]


def test_decay_of_weights_leaves_out_norms_biases_and_scalars() -> None:
    layout = segments(("bias", 1), ("norm", 1), ("scalar", 1), ("weight", 2))
    params = torch.ones(5, dtype=torch.float64)
    sgd = SGD(lr=1, momentum=0, weight_decay=0.5, decay="weights")
    sgd.step(params, torch.zeros_like(params), sgd.start(params), 1.0, layout)
    assert params.tolist() == [1, 1, 1, 0.5, 0.5]
    with pytest.raises(EdgewiseError, match=r"^sgd: decay is 'none'; one of: all, weights"):
        SGD(decay="none")


def test_what_is_frozen_stays_whatever_the_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    flat = FlatModel(module, Layout.of(module))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    sgd = SGD(0.1, momentum=0.9, weight_decay=0.1)
    momentum = sgd.start(flat.params)
    for _ in range(3):
        flat.grads.zero_()
        flat(torch.randn(5, 3)).square().sum().backward()
        sgd.step(flat.params, flat.grads, momentum, 1.0, flat.layout)
    flat.check()
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias"}
    assert [kind for kind, _ in flat.layout.segments] == ["bias", "frozen", "weight"]


@pytest.mark.parametrize("share", [-0.1, float("nan"), float("inf")])
def test_a_scalar_share_that_makes_no_sense_is_refused(share: float) -> None:
    with pytest.raises(EdgewiseError, match="scalar_share is"):
        SGD(scalar_share=share)
