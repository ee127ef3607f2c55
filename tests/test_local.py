"""Local training: one gradient, several steps, and the two places where algorithms plug in."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise import local
from edgewise.models import build
from edgewise.models.norms import Batch
from edgewise.optimizers import SGD
from edgewise.vector import FlatModel, Layout

STEPS, SIZE, CLASSES = 4, 6, 3


@pytest.fixture
def model() -> FlatModel:
    """With batch norm: what a step leaves in the buffers, and train mode, then matter."""
    module = build("resnet18", (1, 4, 4), CLASSES, 2, Batch(), seed=0).double()
    return FlatModel(module, Layout.of(module))


@pytest.fixture
def batches() -> list[local.Batch]:
    labels = torch.arange(SIZE) % CLASSES
    return [(torch.randn(SIZE, 1, 4, 4, dtype=torch.float64), labels.roll(step)) for step in range(STEPS)]


def plain_gradient(model: FlatModel, loss: Tensor, module: nn.Module) -> Tensor:
    parameters = dict(module.named_parameters())
    names = [entry.name for entry in model.layout.params]
    found = torch.autograd.grad(loss, [parameters[name] for name in names])
    return torch.cat([g.flatten() for g in found])


def test_gradient_is_that_of_the_mean_loss(model: FlatModel, batches: list[local.Batch]) -> None:
    x, y = batches[0]
    plain = copy.deepcopy(model.module).train()
    expected = F.cross_entropy(plain(x), y, reduction="none")
    model.module.eval()  # gradient trains whatever mode it finds
    losses = local.gradient(model, (x, y))
    assert losses.shape == (SIZE,) and not losses.requires_grad
    assert torch.allclose(losses, expected, rtol=0, atol=1e-14)
    assert torch.allclose(model.grads, plain_gradient(model, expected.mean(), plain), rtol=0, atol=1e-13)
    assert torch.equal(model.module.get_buffer("norm.running_mean"), plain.get_buffer("norm.running_mean"))


def test_gradient_adds_its_share(model: FlatModel, batches: list[local.Batch]) -> None:
    parts = []
    for batch in batches[:2]:
        model.grads.zero_()
        local.gradient(model, batch)
        parts.append(model.grads.clone())
    model.grads.zero_()
    local.gradient(model, batches[0], share=0.25)
    local.gradient(model, batches[1], share=0.75)
    assert torch.allclose(model.grads, 0.25 * parts[0] + 0.75 * parts[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_train_is_the_plain_loop(model: FlatModel, batches: list[local.Batch], momentum: float) -> None:
    sgd = SGD(0.05, momentum=momentum, weight_decay=0.01)
    plain = copy.deepcopy(model.module).train()
    optimizer = torch.optim.SGD(plain.parameters(), 0.05 * 0.5, momentum=momentum, weight_decay=0.01)
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(plain(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.grads.fill_(3)  # left by whoever used the model before
    assert local.train(model, iter(batches), sgd, factor=0.5).tolist() == pytest.approx(losses)
    for (name, found), expected in zip(
        model.module.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.allclose(found, expected, rtol=0, atol=1e-12), name
    model.check()


def test_momentum_starts_at_zero_every_time(model: FlatModel, batches: list[local.Batch]) -> None:
    start = model.read()
    for batch in batches:
        local.train(model, [batch], SGD(0.05, momentum=0.9))
    apart = model.read()
    model.write(start)
    for batch in batches:
        local.train(model, [batch], SGD(0.05, momentum=0))
    assert torch.equal(apart.params, model.params)
    model.write(start)
    local.train(model, batches, SGD(0.05, momentum=0.9))
    assert not torch.allclose(apart.params, model.params, atol=1e-3)


def test_an_objective_replaces_the_loss(model: FlatModel, batches: list[local.Batch]) -> None:
    def weighted(model: FlatModel, x: Tensor, y: Tensor) -> Tensor:
        return local.cross_entropy(model, x, y) * (1 + y)

    x, y = batches[0]
    plain = copy.deepcopy(model.module).train()
    expected = F.cross_entropy(plain(x), y, reduction="none") * (1 + y)
    start = model.read()
    loss = local.train(model, [(x, y)], SGD(1.0, 0, 0), plugs=local.Plugs(weighted))
    assert float(loss) == pytest.approx(expected.mean().item())
    moved = start.params - model.params
    assert torch.allclose(moved, plain_gradient(model, expected.mean(), plain), rtol=0, atol=1e-12)


def test_a_correction_changes_the_gradient_before_the_step(
    model: FlatModel, batches: list[local.Batch]
) -> None:
    """FedProx's pull towards the start, as a correction and as part of a plain loss."""
    start, mu = model.read(), 0.3
    plain = copy.deepcopy(model.module).train()
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    anchor = [p.detach().clone() for p in plain.parameters()]
    for x, y in batches:
        pull = sum((p - a).square().sum() for p, a in zip(plain.parameters(), anchor, strict=True))
        optimizer.zero_grad()
        (F.cross_entropy(plain(x), y) + mu / 2 * pull).backward()
        optimizer.step()

    def proximal(model: FlatModel) -> None:
        model.grads.add_(model.params - start.params, alpha=mu)

    local.train(model, batches, SGD(0.05, 0.9, 0.01), plugs=local.Plugs(corrections=(proximal,)))
    for own, expected in zip(model.module.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(own, expected, rtol=0, atol=1e-12)
