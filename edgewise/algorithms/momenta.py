"""What becomes of a device's momentum between two rounds.

    reset     it starts from rest: what it had is of a model that the server has replaced since
    keep      it goes on from where the device had it when its last update was taken
    average   it starts at the mean that all devices' momentum had over the round before

The three are SlowMo's (https://arxiv.org/abs/1910.00643), where workers send their momentum to have it
averaged. Here nothing more goes up. A step is v <- v - lr * m, so the momentum of a device, added up over its
K_d steps, is -u_d / lr, and

    server:  M <- -mean(u_d) / (lr * mean(K_d))

is the mean of m over all steps of all devices, each step weighed as its device: of the whole round, not of
its last step. M = 0 at the start; it goes down beside the state. At K = 1 it is SGD with the momentum
M <- momentum * M + mean(g).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgewise.algorithms.base import Memory
from edgewise.algorithms.places import Closing, Guides, Outset, Part
from edgewise.errors import EdgewiseError
from edgewise.optimizers import SGD

RESET, KEEP, AVERAGE = POLICIES = ("reset", "keep", "average")
OWN = "momentum"  # in a device's memory
MEAN = "local_momentum"  # among the server's vectors


def begin(policy: str, outset: Outset) -> Tensor:
    """The momentum (P,) with which a device's round begins, in a tensor of its own."""
    momentum = outset.sgd.start(outset.start)
    if policy == KEEP:
        momentum.copy_(outset.remembered(OWN))
    elif policy == AVERAGE:
        momentum.copy_(outset.guide)
    return momentum


def remember(policy: str, momentum: Tensor) -> Memory:
    return {OWN: momentum} if policy == KEEP else {}


def start(policy: str, params: Tensor) -> dict[str, Tensor]:
    """The vectors that the server keeps for it, as they are before the first round."""
    return {MEAN: params.new_zeros(params.shape)} if policy == AVERAGE else {}


def guide(policy: str, vectors: Mapping[str, Tensor]) -> Tensor | None:
    return vectors[MEAN] if policy == AVERAGE else None


def close(policy: str, mean: Tensor, closing: Closing) -> None:
    """Read off the mean update (P,) what the devices' momentum was; at rate 0 nothing can be read."""
    if policy == AVERAGE and closing.combined.factor:
        closing.vectors[MEAN].copy_(closing.momentum(mean))


def check(policy: str, sgd: SGD, parts: tuple[Part, ...]) -> None:
    """EdgewiseError where there is no such policy, or it makes no sense beside the rest."""
    if policy not in POLICIES:
        raise EdgewiseError(f"local_momentum: {policy!r} is unknown; one of: {', '.join(POLICIES)}")
    if policy == RESET:
        return
    if not sgd.momentum:
        raise EdgewiseError(f"local_momentum: there is none to {policy}: momentum is 0; give one, or reset")
    if policy == AVERAGE and sgd.nesterov:
        raise EdgewiseError(
            "local_momentum: average reads plain momentum from the mean update, where Nesterov's cannot be "
            "told from the gradients; leave nesterov off, or keep or reset"
        )
    for part in parts:
        name = type(part).__name__.lower()
        if policy == AVERAGE and isinstance(part, Guides):
            raise EdgewiseError(
                f"local_momentum: average sends devices a vector beside the state, and so does {name}; "
                "there is room for one"
            )
        if part.rests:
            raise EdgewiseError(
                f"local_momentum: {name} divides an update by its steps, so local momentum has to start "
                "every round from rest; give reset"
            )
