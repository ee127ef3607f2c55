"""Devices whose objectives are quadratics, f(w) = (w - b)'A(w - b) / 2: what is right is known exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.algorithms import Combined, FedAvg, Own, Server
from edgewise.codecs import Codec, Raw, Sending
from edgewise.local import Batch
from edgewise.vector import FlatModel, Layout, Mean, State


class Point(nn.Module):
    """A model that is nothing but its weights (n,)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))


def quadratic(model: Any, matrices: Tensor, minima: Tensor) -> Tensor:
    """An objective: a batch is matrices (N, n, n) and minima (N, n)."""
    apart = model.module.w - minima
    return torch.einsum("ni,nij,nj->n", apart, matrices, apart) / 2


@dataclass
class Field:
    """Devices with one quadratic each, and all that an algorithm keeps from round to round."""

    algorithm: FedAvg
    curvatures: Tensor  # (devices, n, n)
    minima: Tensor  # (devices, n)
    codec: Codec = Raw()
    server: Server = field(init=False)
    memories: list[Mapping[str, Tensor]] = field(init=False)
    owed: list[Mapping[str, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.model = FlatModel(Point(self.minima.shape[1]), Layout.of(Point(self.minima.shape[1])))
        self.begin(torch.zeros(self.minima.shape[1], dtype=torch.float64))
        self.memories, self.owed = ([{} for _ in self.minima] for _ in range(2))

    def begin(self, at: Tensor) -> None:
        self.server = self.algorithm.start(State(at.clone(), torch.zeros(0, dtype=torch.float64)))

    def batches(self, device: int, steps: int) -> list[Batch]:
        return [(self.curvatures[device][None], self.minima[device][None])] * steps

    def round(
        self,
        cohort: Sequence[int] | None = None,
        steps: Mapping[int, int] | None = None,
        weights: Mapping[int, float] | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        """One round of a cohort (all), with so many steps (`sync_every`) and weight (1) by device: new w."""
        cohort = range(len(self.minima)) if cohort is None else cohort
        algorithm, model, guide = self.algorithm, self.model, self.algorithm.guide(self.server)
        offered, mean = algorithm.offer(self.server), Mean(self.server.state)
        taken = dict[int, float]()
        for device in cohort:
            count = (steps or {}).get(device, algorithm.sync_every)
            weight = (weights or {}).get(device, 1.0)
            model.write(offered)
            own = Own(self.memories[device], None, guide)
            learned = algorithm.learn(model, self.batches(device, count), factor, quadratic, own)
            self.memories[device] = learned.memory
            payload, self.owed[device] = self.codec.encode(
                learned.update, model.layout, self.owed[device], Sending()
            )
            update = self.codec.decode(payload, model.layout, torch.float64)
            mean.add(State(update, model.buffers), weight)
            taken[count] = taken.get(count, 0.0) + weight
        combined = Combined(mean.value(), factor, taken, len(cohort) / len(self.minima))
        self.server = algorithm.step(self.server, combined, model.layout)
        return self.server.state.params.clone()

    @property
    def optimum(self) -> Tensor:
        """The minimum of the mean of all objectives."""
        return solve(self.curvatures, self.minima)


def solve(weights: Tensor, minima: Tensor) -> Tensor:
    """The w for which the sum of W_d (b_d - w) is zero."""
    return torch.linalg.solve(weights.sum(0), torch.einsum("dij,dj->i", weights, minima))


def hills(devices: int = 4, size: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Curvatures between 0.6 and 2 in different directions, and minima far apart."""
    draws = torch.Generator().manual_seed(seed)
    turns = torch.linalg.qr(torch.randn(devices, size, size, dtype=torch.float64, generator=draws))[0]
    stretch = 0.6 + 1.4 * torch.rand(devices, size, dtype=torch.float64, generator=draws)
    minima = 3 * torch.randn(devices, size, dtype=torch.float64, generator=draws)
    return turns @ torch.diag_embed(stretch) @ turns.mT, minima
