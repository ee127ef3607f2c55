"""The model as a device runs it: pixels in, logits out, nothing left to do outside."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgewise.conversion import fold
from edgewise.models.outputs import logits


class Deployed(nn.Module):
    """Images as bytes (N, C, H, W) to logits (N, outputs): with training's normalisation in it."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) to (N, outputs), in float32 unless made `in_float64`."""
        answers: Tensor = logits(self.module((images.to(self.mean.dtype) / 255 - self.mean) / self.std))
        return answers

    def in_float64(self) -> Deployed:
        """A copy in double precision, which differs from the real numbers' answers by next to nothing."""
        return copy.deepcopy(self).double()


def deploy(
    module: nn.Module, mean: Sequence[float], std: Sequence[float], images: Tensor
) -> tuple[Deployed, list[str]]:
    """The module for devices, its norms folded where that is exact on `images`; and what was folded."""
    plain = Deployed(module, mean, std).eval()
    folded, names = fold(plain, images)
    assert isinstance(folded, Deployed)
    for parameter in folded.parameters():
        parameter.requires_grad_(False)
    return folded.eval(), [name.removeprefix("module.") for name in names]
