"""Weights from a model.safetensors file into a module."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgewise.errors import EdgewiseError


def fill(module: nn.Module, path: Path) -> None:
    """Write a model.safetensors into a module. EdgewiseError unless every tensor has its place there.

    What the file lacks of integer buffers (counters, which never travel) stays as it is.
    """
    tensors = read_tensors(path)
    own: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    lacking = [n for n, t in own.items() if n not in tensors and t.is_floating_point()]
    wrong = [n for n, t in tensors.items() if n not in own or own[n].shape != t.shape]
    if lacking or wrong:
        what = f"lacks {lacking[0]!r}" if lacking else f"has {wrong[0]!r}, for which the model has no place"
        raise EdgewiseError(f"{path}: not this model's weights: it {what}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; EdgewiseError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise EdgewiseError(f"{path}: not readable weights ({error})") from None
