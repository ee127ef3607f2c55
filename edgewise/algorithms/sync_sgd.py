"""Synchronous large-batch SGD: every step, every device sends one gradient and the server takes one step.

    each round:
        each device:  g_d = gradient of its batch at w; send g_d
        server:       m <- momentum * m + mean(g_d) + weight_decay * w;  w <- w - lr * m

In exact arithmetic this is federated averaging with one local step. In float32 it is not: (w - g) - w loses
the low bits of g wherever g is much smaller than w. So the gradient is sent as it is.

Parameters that every device has for itself (norm batch-local) take the same step on the device, each with its
own gradient and a momentum that the device keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from edgewise import local
from edgewise.algorithms.base import NOTHING, Combined, Learned, Memory, Own, Server
from edgewise.errors import EdgewiseError
from edgewise.local import Batch, Objective, cross_entropy
from edgewise.optimizers import SGD
from edgewise.vector import FlatModel, Layout, State

MOMENTUM = "momentum"


@dataclass(frozen=True)
class SyncSGD:
    sgd: SGD = SGD()  # lives on the server, momentum and weight decay too
    sync_every: int = 1
    sends_gradients: ClassVar[bool] = True
    sends_differences: ClassVar[bool] = False
    guided: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.sync_every != 1:
            raise EdgewiseError(
                f"sync_every: sync-sgd synchronises every step, so 1 and not {self.sync_every} "
                "(fedavg takes any number)"
            )

    def local_steps(self, asked: int, examples: int, batch: int) -> int:
        return asked

    def start(self, state: State) -> Server:
        return Server(state, {MOMENTUM: self.sgd.start(state.params)})

    def offer(self, server: Server) -> State:
        return server.state

    def guide(self, server: Server) -> Tensor | None:
        return None

    def without_momentum(self) -> tuple[SyncSGD, float]:
        """Weight decay stays here and went through the momentum as well: so much more of it is needed."""
        sgd, momentum = self.sgd, self.sgd.momentum
        decay = sgd.weight_decay / (1 - momentum) if momentum < 1 else sgd.weight_decay
        return replace(self, sgd=replace(sgd, momentum=0.0, nesterov=False, weight_decay=decay)), momentum

    def learn(
        self,
        model: FlatModel,
        batches: Iterable[Batch],
        factor: float,
        objective: Objective = cross_entropy,
        own: Own = NOTHING,
    ) -> Learned:
        (batch,) = batches
        model.grads.zero_()
        losses = local.gradient(model, batch, objective)
        return Learned(model.grads, float(losses.mean()), self._own_step(model, factor, own.memory))

    def _own_step(self, model: FlatModel, factor: float, memory: Memory) -> Memory:
        """The step of the local parameters, with the gradient that `model` holds; what is kept of it."""
        layout = model.layout
        params = model.params[layout.local]
        if not len(params):
            return {}
        momentum = self.sgd.start(params)
        if len(momentum) and MOMENTUM in memory:
            momentum.copy_(memory[MOMENTUM])
        self.sgd.step(params, model.grads[layout.local], momentum, factor, layout.own)
        return {MOMENTUM: momentum} if len(momentum) else {}

    def step(self, server: Server, combined: Combined, layout: Layout) -> Server:
        params, momentum = server.state.params, server.vectors[MOMENTUM]
        self.sgd.step(params, combined.mean.params, momentum, combined.factor, layout)
        return Server(State(params, combined.mean.buffers), server.vectors)
