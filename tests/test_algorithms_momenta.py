"""What the server reads off the mean update is the mean of the devices' momentum: by hand and as recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from quadratics import Field, hills
from torch import Tensor, nn

from edgewise.algorithms import Combined, FedAvg, FedProx, Own
from edgewise.optimizers import SGD
from edgewise.vector import FlatModel, Layout, Mean, State

DOUBLE = torch.float64
COHORTS, STEPS, WEIGHTS = [(0, 1, 2, 3), (0, 2), (1, 2, 3)], [1, 3, 5, 7], [1.0, 2.0, 3.0, 4.0]
FACTORS = [1.0, 0.7, 0.4]
MEAN = "local_momentum"


def averaging(sgd: SGD, **settings: Any) -> FedAvg:
    return FedAvg(sgd, **{"sync_every": 2, "local_momentum": "average", **settings})


def test_by_hand() -> None:
    """f_0 = (w - 1)^2 / 2 and f_1 = (w + 1)^2 at lr 0.1, two steps a device."""
    minima = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    play = Field(averaging(SGD(0.1, 0.5, 0)), torch.tensor([[[1.0]], [[2.0]]], dtype=DOUBLE), minima)
    for state, momentum in (
        # From rest: m = -1, -1.4 and 2, 2.6; so 0.24 and -0.46 of the way.
        (-0.11, 0.55),
        # From 0.55: m = -0.835, -1.444 and 2.055, 2.3965; 0.2279 and -0.44515.
        (-0.218625, 0.543125),
    ):
        assert float(play.round()) == pytest.approx(state, abs=1e-15)
        assert float(play.server.vectors[MEAN]) == pytest.approx(momentum, abs=1e-15)


def averaged(lr: float, momentum: float, rate: float, beta: float) -> Iterator[tuple[Any, Any]]:
    """Every momentum that any device has is put on a list, and the list averaged: w and M by round."""
    curvatures, minima = (tensor.numpy() for tensor in hills())
    w, pushed, mean = np.zeros(3), np.zeros(3), np.zeros(3)
    for cohort, factor in zip(COHORTS, FACTORS, strict=True):
        seen, moves = [], []
        for d in cohort:
            v, m = w.copy(), mean.copy()
            for _ in range(STEPS[d]):
                m = momentum * m + curvatures[d] @ (v - minima[d])
                v = v - lr * factor * m
                seen.append((WEIGHTS[d], m))
            moves.append((WEIGHTS[d], v - w))
        pushed = beta * pushed + weighted(moves)
        w, mean = w + rate * pushed, weighted(seen)
        yield w, mean


def weighted(pairs: list[tuple[float, Any]]) -> Any:
    return sum(weight * vector for weight, vector in pairs) / sum(weight for weight, _ in pairs)


def test_three_rounds_of_some_of_the_devices_with_unequal_steps() -> None:
    play = Field(averaging(SGD(0.1, 0.5, 0), server_lr=0.7, server_momentum=0.6), *hills())
    loop = averaged(0.1, 0.5, 0.7, 0.6)
    for cohort, factor, (w, mean) in zip(COHORTS, FACTORS, loop, strict=True):
        steps, weights = (dict(enumerate(numbers)) for numbers in (STEPS, WEIGHTS))
        found = play.round(cohort, steps, weights, factor)
        np.testing.assert_allclose(found.numpy(), w, rtol=0, atol=1e-13)
        np.testing.assert_allclose(play.server.vectors[MEAN].numpy(), mean, rtol=0, atol=1e-13)


@dataclass(frozen=True)
class Recorded(SGD):
    """The optimizer as it is, with a copy of the momentum after every step."""

    seen: list[Tensor] = field(default_factory=list)

    def step(self, params: Tensor, grads: Tensor, momentum: Tensor, factor: float, layout: Layout) -> None:
        super().step(params, grads, momentum, factor, layout)
        self.seen.append(momentum.clone())


class Uneven(nn.Module):
    """A layer that is frozen, one that learns, and a scalar, which learns at a rate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.layer = nn.Linear(4, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.held.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(torch.tanh(self.held(x.flatten(1))))


def test_it_is_the_mean_of_what_devices_momentum_was() -> None:
    """Of a network, with decay, rates by stretch, a schedule, parts, unequal steps and weights."""
    torch.manual_seed(1)
    module = Uneven().double()
    model = FlatModel(module, Layout.of(module))
    sgd = Recorded(0.05, 0.9, 1e-2, lr_scale=3.0, scalar_share=0.3)
    assert len(sgd.rates(model.layout)) >= 3
    algorithm = averaging(sgd, parts=(FedProx(0.5),))
    server = algorithm.start(model.read())
    for cohort, factor in zip(COHORTS, FACTORS, strict=True):
        mean, seen, taken, offered = Mean(server.state), [], {}, algorithm.offer(server).clone()
        guide = algorithm.guide(server)
        assert guide is not None
        for device in cohort:
            model.write(offered)
            update, _, memory = algorithm.learn(model, data(device), factor, own=Own(guide=guide))
            assert not memory
            mean.add(State(update, model.buffers), WEIGHTS[device])
            taken[STEPS[device]] = WEIGHTS[device]
            seen += [(WEIGHTS[device], momentum) for momentum in sgd.seen]
            sgd.seen.clear()
        server = algorithm.step(server, Combined(mean.value(), factor, taken), model.layout)
        found, expected = server.vectors[MEAN], weighted(seen)
        still = torch.zeros_like(found, dtype=torch.bool)
        for stretch, rate in sgd.rates(model.layout):
            still[stretch] = not rate
        assert int(still.sum()) == 25 and not found[still].any()
        assert float(expected[~still].abs().min()) > 1e-6
        assert torch.allclose(found[~still], expected[~still], rtol=0, atol=1e-12)


def data(device: int) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(device)
    x = torch.randn(STEPS[device], 6, 1, 2, 2, dtype=DOUBLE, generator=draws)
    return [(one, one.flatten(1)[:, :3].argmax(1)) for one in x]


def test_with_one_step_it_is_sgd_with_momentum() -> None:
    curvatures, minima = hills()
    play = Field(averaging(SGD(0.1, 0.8, 0), sync_every=1), curvatures, minima)
    w, m = torch.zeros(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE)
    for _ in range(150):
        m = 0.8 * m + torch.einsum("dij,dj->i", curvatures, w - minima) / 4
        w = w - 0.1 * m
        found = play.round()
        assert torch.allclose(found, w, rtol=0, atol=1e-12)
    assert (found - play.optimum).norm() < 1e-3


def test_a_round_at_rate_zero_is_not_read() -> None:
    play = Field(averaging(SGD(0.1, 0.5, 0)), *hills())
    play.round()
    before = play.server.vectors[MEAN].clone()
    play.round(factor=0.0)
    assert before.any() and torch.equal(play.server.vectors[MEAN], before)
