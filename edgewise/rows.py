"""Many models in one matrix: the gradients of all of them from one call of the module.

`local.py` trains one model; this takes the same gradient for the rows of a matrix, each with a batch of its
own, by `torch.func.vmap`. An optimizer then steps on the matrix.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from edgewise.models.outputs import logits
from edgewise.objectives import Objective
from edgewise.vector import FlatModel

NARROW = 16  # outputs of a linear layer up to which `Narrow` is faster
FROZEN = "frozen"


class Rows:
    """As many models as there are rows: `params` and `grads` (G, P), laid out as those of `model`."""

    def __init__(self, model: FlatModel, count: int) -> None:
        self.module = model.module
        self.params = model.params.new_zeros(count, len(model.params))
        self.grads = torch.zeros_like(self.params)
        self._leaves, self._grads = dict[str, Tensor](), dict[str, Tensor]()
        for entry in model.layout.params:
            leaf, self._grads[entry.name] = (
                part[:, entry.start : entry.stop].unflatten(1, entry.shape)
                for part in (self.params, self.grads)
            )
            self._leaves[entry.name] = leaf.detach().requires_grad_(entry.kind != FROZEN)

    def gradient(self, x: Tensor, y: Tensor, objective: Objective) -> Tensor:
        """Put the gradient of each row's mean loss into `grads`, and return these losses (G,).

        x (G * N, C, H, W) and y (G * N, ...): a batch for each row, laid end to end.
        """
        count = len(self.params)
        if not self.module.training:
            self.module.train()

        def answers(params: dict[str, Tensor], images: Tensor) -> Tensor:
            return logits(functional_call(self.module, params, (images,)))

        with Narrow():
            outputs = vmap(answers)(self._leaves, x.unflatten(0, (count, -1)))
        losses = objective(lambda _: outputs.flatten(0, 1), x, y)  # each of one example
        found = losses.unflatten(0, (count, -1)).mean(1)
        trained = [name for name, leaf in self._leaves.items() if leaf.requires_grad]
        grads = torch.autograd.grad(found.sum(), [self._leaves[name] for name in trained], allow_unused=True)
        for name, grad in zip(trained, grads, strict=True):
            if grad is None:
                self._grads[name].zero_()
            else:
                self._grads[name].copy_(grad)
        return found.detach()


class Narrow(TorchFunctionMode):
    """Linear layers of few outputs the other way round, W x' in place of x W'.

    The gradient of W is then a product with long rows: five times as fast for ten outputs of 784 inputs.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and args[0].dim() == 2 and len(args[1]) <= NARROW:
            x, weight, *bias = args
            outputs = (weight @ x.t()).t()
            return outputs if not bias or bias[0] is None else outputs + bias[0]
        return func(*args, **(kwargs or {}))
