"""To an accelerator's memory, without a wait."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, place: torch.device) -> Tensor:
    """A tensor in the memory of `place`; one of the CPU's gets there without a wait until it is idle.

    From pageable memory every copy waits, whatever is asked; PyTorch keeps pinned memory until it was read.
    """
    if place.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(place, non_blocking=True)
