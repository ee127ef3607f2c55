"""FedACG: devices start where the server's momentum will have taken the model.

Communication-Efficient Federated Learning with Accelerated Client Gradient, Kim et al. 2024,
https://arxiv.org/abs/2201.03172

    each device:  starts at w' = w + server_lr * beta * m and minimises f_d(v) + mu / 2 * |v - w'|^2;
                  u_d = v - w'
    server:       m <- beta * m + mean(u_d);  w <- w + server_lr * m

Devices are sent w' in place of w, so nothing more travels. What is evaluated and saved is w. At K = 1 with
mu = 0 it is Nesterov's accelerated gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgewise import local
from edgewise.algorithms.fedprox import pull
from edgewise.algorithms.places import DRIFT, SERVER, Closing, Outset, check_range

LEADING = "leading_momentum"


@dataclass(frozen=True)
class FedACG:
    beta: float = 0.85
    mu: float = 0.001
    places: ClassVar[tuple[str, ...]] = (DRIFT, SERVER)
    rests: ClassVar[bool] = False
    rate: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_range("fedacg: beta", self.beta, 0, 1)
        check_range("fedacg: mu", self.mu, 0)

    def correction(self, outset: Outset) -> local.Correction:
        return pull(outset, self.mu)

    def start(self, params: Tensor) -> dict[str, Tensor]:
        return {LEADING: params.new_zeros(params.shape)}

    def turn(self, mean: Tensor, closing: Closing) -> Tensor:
        return closing.vectors[LEADING].mul_(self.beta).add_(mean)

    def ahead(self, params: Tensor, vectors: Mapping[str, Tensor], rate: float) -> Tensor:
        return params.add(vectors[LEADING], alpha=rate * self.beta)
