"""Federated averaging.

Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al. 2017,
https://arxiv.org/abs/1602.05629; server momentum (FedAvgM) after Hsu et al. 2019,
https://arxiv.org/abs/1909.06335

    each round:
        each device:  w_d = w after K steps of SGD on its own data; send u_d = w_d - w
        server:       m <- server_momentum * m + mean(u_d);  w <- w + server_lr * m

The mean weighs a device by the examples it trained on this round. The device's momentum starts at zero
every round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from edgewise import local
from edgewise.algorithms.base import Server
from edgewise.local import Batch, Objective, cross_entropy
from edgewise.optimizers import SGD
from edgewise.vector import FlatModel, Layout, State


@dataclass(frozen=True)
class FedAvg:
    sgd: SGD = SGD()  # lives on the device
    sync_every: int = 10
    server_lr: float = 1.0
    server_momentum: float = 0.0
    sends_gradients: ClassVar[bool] = False

    def start(self, state: State) -> Server:
        params = state.params
        return Server(state, params.new_zeros(params.shape if self.server_momentum else 0))

    def without_momentum(self) -> tuple[FedAvg, float]:
        return replace(self, server_momentum=0.0), self.server_momentum

    def learn(
        self,
        model: FlatModel,
        batches: Iterable[Batch],
        factor: float,
        objective: Objective = cross_entropy,
    ) -> tuple[Tensor, float]:
        before = model.params.clone()
        loss = local.train(model, batches, self.sgd, factor, objective)
        return model.params - before, loss

    def step(self, server: Server, mean: State, factor: float, layout: Layout) -> Server:
        direction = mean.params
        if self.server_momentum:
            direction = server.momentum.mul_(self.server_momentum).add_(mean.params)
        server.state.params.add_(direction, alpha=self.server_lr)
        return Server(State(server.state.params, mean.buffers), server.momentum)
