"""FedAdam and FedYogi: an adaptive optimizer on the server, for which the mean update is a gradient.

Adaptive Federated Optimization, Reddi et al. 2021, https://arxiv.org/abs/2003.00295, algorithm 2

    server:  m <- beta1 * m + (1 - beta1) * mean(u_d)
             v <- beta2 * v + (1 - beta2) * mean(u_d)^2                                      FedAdam
             v <- v - (1 - beta2) * mean(u_d)^2 * sign(v - mean(u_d)^2)                      FedYogi
             w <- w + server_lr * m / (sqrt(v) + tau)

with m = 0 and v = tau^2 at the start, and no correction for that, as in the paper. The step of a coordinate
is about server_lr, whatever the size of the updates: 0.01, where nothing else is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgewise.algorithms.places import SERVER, Closing, check_above, check_range

FIRST, SECOND = "first_moment", "second_moment"


@dataclass(frozen=True)
class FedAdam:
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    places: ClassVar[tuple[str, ...]] = (SERVER,)
    rests: ClassVar[bool] = False
    rate: ClassVar[float] = 0.01

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        check_range(f"{name}: beta1", self.beta1, 0, 1)
        check_range(f"{name}: beta2", self.beta2, 0, 1)
        check_above(f"{name}: tau", self.tau)

    def start(self, params: Tensor) -> dict[str, Tensor]:
        return {
            FIRST: params.new_zeros(params.shape),
            SECOND: params.new_full(params.shape, self.tau * self.tau),
        }

    def turn(self, mean: Tensor, closing: Closing) -> Tensor:
        first, second = (closing.vectors[name] for name in (FIRST, SECOND))
        first.lerp_(mean, 1 - self.beta1)
        self.follow(second, mean.square())
        return first / second.sqrt().add_(self.tau)

    def follow(self, second: Tensor, squared: Tensor) -> None:
        """The second moment, in place, after an update with these squares."""
        second.lerp_(squared, 1 - self.beta2)


@dataclass(frozen=True)
class FedYogi(FedAdam):
    def follow(self, second: Tensor, squared: Tensor) -> None:
        second.sub_((second - squared).sign_().mul_(squared), alpha=1 - self.beta2)
