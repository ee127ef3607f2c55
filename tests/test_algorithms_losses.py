"""What is put in place of cross-entropy, and what is done to gradients, with all numbers written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise import local
from edgewise.algorithms import SAM, Centralise, Clip, FedAvg, FedLC, FedLMD, FedNTD, FedRS, Own
from edgewise.algorithms.places import Outset
from edgewise.optimizers import SGD
from edgewise.vector import FlatModel, Layout

DOUBLE = torch.float64


def biased(logits: Sequence[float]) -> FlatModel:
    """A model whose logits are these for a black pixel: its biases."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, len(logits))).double()
    model = FlatModel(module, Layout.of(module))
    with torch.no_grad():
        module[1].weight.zero_()
        module[1].bias.copy_(torch.tensor(logits))
    return model


def outset(model: FlatModel, counts: Sequence[int] | None) -> Outset:
    own = Own(counts=None if counts is None else torch.tensor(counts))
    return Outset(model, model.params.clone(), SGD(), 1.0, own)


def loss_of(
    part: Any, teacher: Sequence[float], student: Sequence[float], counts: Sequence[int], y: int
) -> float:
    """Of one example, on a device whose round began with the teacher's logits."""
    model = biased(teacher)
    objective = part.objective(outset(model, counts))
    with torch.no_grad():
        model.module[1].bias.copy_(torch.tensor(student))  # type: ignore[union-attr]
    loss = objective(model, torch.zeros(1, 1, 1, 1, dtype=DOUBLE), torch.tensor([y]))
    loss.sum().backward()
    assert model.grads.isfinite().all() and loss.shape == (1,)
    return float(loss.detach())


def softmax(values: Sequence[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


def divergence(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_fedlc_by_hand() -> None:
    """16^(-1/4) = 1/2, 81^(-1/4) = 1/3; class 2 is absent and out of the sum."""
    right, other = math.exp(1 - 0.6 / 2), math.exp(2 - 0.6 / 3)
    found = loss_of(FedLC(0.6), (0, 0, 0), (1, 2, 7), (16, 81), 0)
    assert found == pytest.approx(-math.log(right / (right + other)))
    assert loss_of(FedLC(), (0, 0, 0), (1, 2, 7), (0, 5), 1) == 0  # the only class that it sees


def test_fedrs_by_hand() -> None:
    """r = 0.5 + 0.5 * n / 8: 1, 0.75 and, of the absent class, 0.5."""
    found = loss_of(FedRS(0.5), (0, 0, 0), (1.0, 2.0, -4.0), (8, 4), 1)
    assert found == pytest.approx(-math.log(softmax([1.0, 1.5, -2.0])[1]))


def test_fedntd_by_hand() -> None:
    """Without the true class 1, at temperature 2, weighed by beta * 4."""
    found = loss_of(FedNTD(0.3, 2.0), (2.0, 9.0, 4.0), (6.0, 1.0, 0.0), (1, 1, 1), 1)
    apart = divergence(softmax([1.0, 2.0]), softmax([3.0, 0.0]))
    assert found == pytest.approx(-math.log(softmax([6.0, 1.0, 0.0])[1]) + 0.3 * 4 * apart)


def test_fedlmd_by_hand() -> None:
    """Device with classes 0 and 1: the teacher over classes 2 and 3, the student over 0, 2 and 3."""
    found = loss_of(FedLMD(0.3, 2.0), (9.0, 9.0, 4.0, 2.0), (6.0, 1.0, 0.0, 2.0), (3, 1), 1)
    teacher, student = softmax([2.0, 1.0]), softmax([3.0, 0.0, 1.0])
    apart = divergence(teacher, student[1:])
    assert found == pytest.approx(-math.log(softmax([6.0, 1.0, 0.0, 2.0])[1]) + 0.3 * 4 * apart)


def test_fedlmd_looks_at_classes_and_not_at_how_many_are_in_a_batch() -> None:
    """A batch of five examples, on a device with one of four classes, is five times the loss of one."""
    model = biased((1.0, 0.0, 2.0, -1.0))
    objective = FedLMD().objective(outset(model, (0, 0, 9)))
    x, y = torch.zeros(5, 1, 1, 1, dtype=DOUBLE), torch.full((5,), 2)
    losses = objective(model, x, y).detach()
    teacher = student = softmax([1.0, 0.0, -1.0])  # the absent ones are just those that are not true
    expected = -math.log(softmax([1.0, 0.0, 2.0, -1.0])[2]) + divergence(teacher, student)
    assert losses.tolist() == pytest.approx([expected] * 5)


def test_a_device_that_lacks_nothing_learns_with_cross_entropy() -> None:
    found = loss_of(FedLMD(5.0), (9.0, 0.0), (1.0, 3.0), (4, 2), 0)
    assert found == pytest.approx(-math.log(softmax([1.0, 3.0])[0]))


def test_the_teacher_is_the_round_s_first_model_as_it_is_evaluated() -> None:
    """Its statistics stay as they are, it takes no part in the gradient, and the student's move once."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    model = FlatModel(module, Layout.of(module))
    x, y = torch.randn(6, 1, 2, 2, dtype=DOUBLE), torch.tensor([0, 1, 0, 1, 0, 1])
    expected = module.eval()(x).detach()
    teacher = model.teacher()
    model.params.mul_(1.5)
    local.gradient(model, (x, y))
    grads, buffers = model.grads.clone(), model.buffers.clone()
    assert torch.equal(teacher(x), expected) and not teacher(x).requires_grad
    assert torch.equal(model.grads, grads) and torch.equal(model.buffers, buffers)
    model.check()
    again = model.teacher()  # of the next round
    assert torch.equal(again(x), module.eval()(x).detach()) and not torch.equal(again(x), expected)


def test_a_loss_by_class_needs_classes() -> None:
    for part in (FedLC(), FedRS(), FedLMD()):
        with pytest.raises(ValueError, match="not told its classes"):
            part.objective(outset(biased((0, 0)), None))


# ---- gradients ----


def bowl(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """1.5 w_0^2 + 0.5 w_1^2, whatever the batch: gradient (3 w_0, w_1)."""
    w = model.module.weight
    return (1.5 * w[0, 0].square() + 0.5 * w[0, 1].square())[None]


def test_sam_by_hand() -> None:
    """At (1, 4) the gradient is (3, 4) of norm 5: looked at from there by 0.5, at (1.3, 4.4)."""
    module = nn.Linear(2, 1, bias=False).double()
    model = FlatModel(module, Layout.of(module))
    model.params.copy_(torch.tensor([1.0, 4.0]))
    batch = (torch.zeros(1), torch.zeros(1))
    update, loss, _ = FedAvg(SGD(0.1, 0, 0), parts=(SAM(0.5),)).learn(model, [batch], 1.0, bowl)
    assert update.tolist() == pytest.approx([-0.39, -0.44], abs=1e-15)
    assert loss == 1.5 + 8  # before the look
    model.params.zero_()
    update, _, _ = FedAvg(SGD(0.1, 0, 0), parts=(SAM(0.5),)).learn(model, [batch], 1.0, bowl)
    assert not update.any()  # where there is no gradient there is no direction


def test_centralised_gradients_have_mean_zero_by_output() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 2)).double()
    model = FlatModel(module, Layout.of(module))
    model.grads.copy_(torch.arange(model.layout.count, dtype=DOUBLE).square())
    before = {name: p.grad.clone() for name, p in module.named_parameters()}
    Centralise().correction(outset(model, None))(model)
    for name, parameter in module.named_parameters():
        grad, was = parameter.grad, before[name]
        if was.dim() > 1:
            was = was - was.flatten(1).mean(1).view(-1, *[1] * (was.dim() - 1))
        assert grad is not None and torch.allclose(grad, was, rtol=0, atol=1e-10)


def test_clipping_by_hand() -> None:
    model = biased((0.0, 0.0))
    for norm, expected in (
        (2.5, [1.5, 2.0, 0.0, 0.0]),
        (5.0, [3.0, 4.0, 0.0, 0.0]),
        (9.0, [3.0, 4.0, 0.0, 0.0]),
    ):
        model.grads.copy_(torch.tensor([3.0, 4.0, 0.0, 0.0]))
        Clip(norm).correction(outset(model, None))(model)
        assert model.grads.tolist() == expected


def test_kept_momentum_goes_on_where_it_was() -> None:
    """Four rounds of one step are one round of four."""
    module = nn.Linear(2, 1, bias=False).double()
    model, sgd, batch = FlatModel(module, Layout.of(module)), SGD(0.1, 0.5, 0), (torch.zeros(1),) * 2
    ends = []
    for algorithm, rounds, steps in (
        (FedAvg(sgd, local_momentum="keep"), 4, 1),
        (FedAvg(sgd), 1, 4),
        (FedAvg(sgd), 4, 1),
    ):
        model.params.copy_(torch.tensor([1.0, 4.0]))
        memory: Any = {}
        for _ in range(rounds):
            memory = algorithm.learn(model, [batch] * steps, 1.0, bowl, Own(memory)).memory
        ends.append(model.params.tolist())
    assert ends[0] == pytest.approx(ends[1], abs=1e-15) and ends[2] != pytest.approx(ends[0], abs=0.1)
