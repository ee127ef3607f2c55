"""A model's answer: a tensor, or an object that holds it with other things."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def logits(output: Any) -> Any:
    """What a model returns, or its `.logits`, where `transformers` and torchvision's Inception have them."""
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)
