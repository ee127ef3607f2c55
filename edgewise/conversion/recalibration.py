"""The statistics of a model that keeps its batch norms, taken anew from data.

Averaging devices' running statistics leaves out how far their means lie apart; the variance of all data
is the mean of the variances *plus* the variance of the means. Passing all of the data gives that exactly,
for the weights as they are (as stochastic weight averaging does after averaging: Izmailov et al. 2018,
arXiv 1803.05407).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgewise.conversion.flow import trace
from edgewise.errors import EdgewiseError


class Moments:
    """Mean and variance by channel of what passes by, (C,) each, in float64: exact whatever the batches."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(0)

    def add(self, x: Tensor) -> None:
        """Take in (N, C, ...). Chan et al. 1979: the pairwise form, which loses no digits."""
        values = x.detach().double().transpose(0, 1).flatten(1)
        mean = values.mean(1)
        self._join(values.shape[1], mean, (values - mean[:, None]).square().sum(1))

    def join(self, other: Moments) -> None:
        """Take in what others have seen."""
        if other.count:
            self._join(other.count, other.mean, other.squares)

    def _join(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if not self.count:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        gap = mean - self.mean
        self.squares = self.squares + squares + gap.square() * (self.count * count / total)
        self.mean = self.mean + gap * (count / total)
        self.count = total

    def pack(self) -> bytes:
        """As they travel: count, means, squares, in float64."""
        count = torch.tensor([self.count], dtype=torch.float64)
        return torch.cat([count, self.mean, self.squares]).numpy().tobytes()

    @classmethod
    def unpack(cls, payload: bytes) -> Moments:
        """EdgewiseError unless the payload is moments of something."""
        found, channels = cls(), (len(payload) // 8 - 1) // 2
        if channels < 1 or len(payload) != 8 * (1 + 2 * channels):
            raise EdgewiseError(f"{len(payload)} bytes are no moments")
        values = torch.frombuffer(bytearray(payload), dtype=torch.float64)
        if not bool(values.isfinite().all()) or values[0] < 1 or bool((values[1 + channels :] < 0).any()):
            raise EdgewiseError("moments that are those of nothing")
        found.count = int(values[0])
        found.mean, found.squares = values[1:].split(channels)
        return found

    @property
    def variance(self) -> Tensor:
        """Of the population: divided by the count."""
        return self.squares / max(self.count, 1)


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy of `model` whose batch norms hold the statistics of all of `batches`, each (N, ...).

    Layer by layer from the input on, so that each norm's statistics are taken behind norms that have theirs:
    as many passes as there are norms in a row would be needed for that in evaluation mode, so each norm is
    measured in a pass of its own. EdgewiseError without batches, or where no norm keeps statistics.
    """
    made, examples = copy.deepcopy(model).eval(), list(batches)
    if not examples:
        raise EdgewiseError("recalibrate: no batches; the statistics come from data")
    names = reached(made, examples[0])
    if not names:
        raise EdgewiseError("recalibrate: the model has no batch norm that keeps running statistics")
    for name in names:
        put(made.get_submodule(name), moments_at(made, name, examples))
    return made.train(model.training)


def reached(model: nn.Module, example: Tensor) -> list[str]:
    """The batch norms that keep statistics, by name, in the order in which `example` (N, ...) gets there."""
    return [name for name in trace(model, example).inputs if keeps(model.get_submodule(name))]


@torch.no_grad()
def moments_at(model: nn.Module, name: str, batches: Iterable[Tensor]) -> Moments:
    """Of what reaches the norm of this name in eval mode."""
    found = Moments()
    for batch in batches:
        found.add(trace(model, batch).inputs[name])
    return found


def keeps(module: nn.Module) -> bool:
    """Whether it is a batch norm with running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def put(norm: nn.Module, moments: Moments) -> None:
    """Write the statistics into a norm."""
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(moments.mean)
    norm.running_var.copy_(moments.variance)
