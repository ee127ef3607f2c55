"""The sign of every value, and the mean size of every 1,024: one bit a value.

Error Feedback Fixes SignSGD and other Gradient Compression Schemes, Karimireddy et al. 2019,
https://arxiv.org/abs/1901.09847

    scale = mean |x|;  bit = 1 where x < 0, so that zero counts as positive

    payload = one scale a block, fp32 | one bit a value, the first one lowest

Without error feedback it is badly biased. With it, it is a contraction: of a block's ||x||_2^2 the error is
the share 1 - ||x||_1^2 / (n ||x||_2^2), which is 1 - 2 / pi for Gaussian values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.base import Floats, Memory, Payload, Sending
from edgewise.codecs.blocks import Blocks, Codes
from edgewise.vector import Layout

FORM = Blocks(1024, (1, -1))


@dataclass(frozen=True)
class Sign:
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        return FORM.encode(vector, signs), memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        return FORM.decode(payload, layout.count, dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return FORM.bound(layout.count)


def signs(rows: Floats, length: int) -> tuple[Floats, Codes]:
    return np.abs(rows).sum(axis=1) / np.float32(length), np.less(rows, 0).view(np.uint8)


__all__ = ["Sign"]
