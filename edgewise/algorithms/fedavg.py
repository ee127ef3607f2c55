"""Federated averaging, and what its successors add to it.

Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al. 2017,
https://arxiv.org/abs/1602.05629; server momentum (FedAvgM) after Hsu et al. 2019,
https://arxiv.org/abs/1909.06335

    each round:
        each device:  w_d = w after K steps of SGD on its own data; send u_d = w_d - w
        server:       m <- server_momentum * m + mean(u_d);  w <- w + server_lr * m

The mean weighs a device by the examples it trained on this round. Devices take K steps each, or as many as
make `local_epochs` passes over what they hold, which is K on average. What becomes of a device's momentum
between two rounds is in `momenta.py`.

The parts are what other papers add (`places.py`): `FedAvg(parts=(FedLMD(), FedCM()))`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from torch import Tensor

from edgewise import local
from edgewise.algorithms import momenta
from edgewise.algorithms.base import NOTHING, Combined, Learned, Own, Server
from edgewise.algorithms.places import (
    DRIFT,
    GRADIENT,
    PLACES,
    SERVER,
    Closing,
    Corrects,
    Gradient,
    Guides,
    Leads,
    Loss,
    Outset,
    Part,
    Remembers,
    Sends,
    Turns,
)
from edgewise.errors import EdgewiseError
from edgewise.local import Batch, Objective, cross_entropy
from edgewise.optimizers import SGD
from edgewise.vector import FlatModel, Layout, State

MOMENTUM = "momentum"
EVERY = 10  # local steps a round, where nothing is said
UNKNOWN = cast(int, None)  # EVERY, or with local_epochs what these come to on average
CHOSEN = cast(float, None)  # a rate that is left to the part at the server's place; 1 where there is none


@dataclass(frozen=True)
class FedAvg:
    sgd: SGD = SGD()  # lives on the device
    sync_every: int = UNKNOWN
    server_lr: float = CHOSEN
    server_momentum: float = 0.0
    local_momentum: str = momenta.RESET  # between two rounds: one of momenta.POLICIES
    local_epochs: float = 0.0  # passes of each device over its own data, sync_every on average; 0: not so
    parts: tuple[Part, ...] = ()
    sends_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        ordered = sorted(self.parts, key=lambda part: PLACES.index(part.places[0]))
        object.__setattr__(self, "parts", tuple(ordered))
        if self.server_lr is None:
            rates = [getattr(part, "rate", 1.0) for part in self.parts if SERVER in part.places]
            object.__setattr__(self, "server_lr", rates[0] if rates else 1.0)
        if self.sync_every is None and not self.local_epochs:
            object.__setattr__(self, "sync_every", EVERY)
        _check_places(self.parts)
        _check_epochs(self)
        momenta.check(self.local_momentum, self.sgd, self.parts)
        for part in self.parts:
            _check_settings(self, part)

    @property
    def sends_differences(self) -> bool:
        return not any(isinstance(part, Sends) for part in self.parts)

    @property
    def guided(self) -> bool:
        averages = self.local_momentum == momenta.AVERAGE
        return averages or any(isinstance(part, Guides) for part in self.parts)

    def local_steps(self, asked: int, examples: int, batch: int) -> int:
        if not self.local_epochs:
            return asked
        share = asked / (self.sync_every or asked)  # of a round: the last may be shorter
        return max(1, round(self.local_epochs * examples / batch * share))

    def start(self, state: State) -> Server:
        vectors = momenta.start(self.local_momentum, state.params)
        if self.server_momentum:
            vectors[MOMENTUM] = state.params.new_zeros(state.params.shape)
        for part in self.parts:
            if isinstance(part, Turns):
                vectors |= part.start(state.params)
        return Server(state, vectors)

    def offer(self, server: Server) -> State:
        leading = [part for part in self.parts if isinstance(part, Leads)]
        if not leading:
            return server.state
        ahead = leading[0].ahead(server.state.params, server.vectors, self.server_lr)
        return State(ahead, server.state.buffers)

    def guide(self, server: Server) -> Tensor | None:
        mean = momenta.guide(self.local_momentum, server.vectors)
        return next((server.vectors[part.guide] for part in self.parts if isinstance(part, Guides)), mean)

    def without_momentum(self) -> tuple[FedAvg, float]:
        return replace(self, server_momentum=0.0), self.server_momentum

    def learn(
        self,
        model: FlatModel,
        batches: Iterable[Batch],
        factor: float,
        objective: Objective = cross_entropy,
        own: Own = NOTHING,
    ) -> Learned:
        outset = Outset(model, model.params.clone(), self.sgd, factor, own)
        momentum = momenta.begin(self.local_momentum, outset)
        plugs = self._plugs(outset, objective)
        losses = local.train(model, batches, self.sgd, factor, plugs, momentum)
        update = model.params - outset.start
        update[model.layout.local] = 0  # which is nobody's but the device's: no part is to read it
        memory = dict(momenta.remember(self.local_momentum, momentum))
        for part in self.parts:
            if isinstance(part, Remembers):
                memory |= part.remember(outset, update, len(losses))
        for part in self.parts:
            if isinstance(part, Sends):
                update = part.sent(outset, update, len(losses))
        return Learned(update, float(losses.mean()), memory)

    def _plugs(self, outset: Outset, objective: Objective) -> local.Plugs:
        gradient: local.Gradient = local.gradient
        for part in self.parts:
            if isinstance(part, Loss):
                objective = part.objective(outset)
            if isinstance(part, Gradient):
                gradient = part.gradient(gradient)
        corrections = [_correction(part, outset) for part in self.parts if isinstance(part, Corrects)]
        return local.Plugs(objective, gradient, tuple(corrections))

    def step(self, server: Server, combined: Combined, layout: Layout) -> Server:
        direction = combined.mean.params
        closing = Closing(server.vectors, self.sgd, combined, layout)
        momenta.close(self.local_momentum, direction, closing)
        for part in self.parts:
            if isinstance(part, Turns):
                direction = part.turn(direction, closing)
        if self.server_momentum:
            direction = server.vectors[MOMENTUM].mul_(self.server_momentum).add_(direction)
        server.state.params.add_(direction, alpha=self.server_lr)
        return Server(State(server.state.params, combined.mean.buffers), server.vectors)


def _correction(part: Corrects, outset: Outset) -> local.Correction:
    """A part's correction. One that holds devices together leaves alone what each has for itself."""
    correct, stretch = part.correction(outset), outset.model.layout.local
    if DRIFT not in part.places or stretch.start == stretch.stop:
        return correct

    def correct_the_rest(model: FlatModel) -> None:
        own = model.grads[stretch].clone()
        correct(model)
        model.grads[stretch].copy_(own)

    return correct_the_rest


def _check_places(parts: tuple[Part, ...]) -> None:
    """EdgewiseError where two parts stand at a place that has room for one."""
    for place in PLACES:
        names = [type(part).__name__.lower() for part in parts if place in part.places]
        if len(names) > 1 and (place != GRADIENT or len(set(names)) < len(names)):
            what = f"{names[0]} twice" if len(set(names)) == 1 else f"{names[0]} and {names[1]} together"
            raise EdgewiseError(f"algorithm: {what} make no sense: both are for its {place}; give one")


def _check_epochs(algorithm: FedAvg) -> None:
    """EdgewiseError where a part needs to know the steps behind the mean update and these differ."""
    normalised = not algorithm.sends_differences
    reading = [part for part in algorithm.parts if part.rests and isinstance(part, Turns)]
    if algorithm.local_epochs and reading and not normalised:
        name = type(reading[0]).__name__.lower()
        raise EdgewiseError(
            f"local_epochs: {name} takes gradients from the mean update, for which all devices take as many "
            "steps; add fednova, or give sync_every"
        )


def _check_settings(algorithm: FedAvg, part: Part) -> None:
    """EdgewiseError where a part makes no sense with the algorithm's own settings."""
    name = type(part).__name__.lower()
    if SERVER in part.places and algorithm.server_momentum:
        raise EdgewiseError(f"server_momentum: {name} has its own way to go on the server; leave it out")
    if SERVER in part.places and not getattr(part, "rate", 0) and algorithm.server_lr != 1:
        raise EdgewiseError(f"server_lr: {name} is defined for 1 only, and not {algorithm.server_lr:g}")
