"""The interface of a format, and what every one of them shares."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from edgewise.errors import EdgewiseError
from edgewise.exports.deployed import Deployed

Predict = Callable[[Tensor], Tensor]  # uint8 (N, C, H, W) to float32 (N, outputs), on the CPU
LARGEST = 256  # images that a file takes at a time


class Format(Protocol):
    """`suffix` of the file; `dynamic`: it can take any number of images at a time; `needs`: packages by
    the name they are imported as; `extra`: what installs them.
    """

    suffix: str
    dynamic: bool
    needs: tuple[str, ...]
    extra: str

    def build(
        self, model: Deployed, images: Tensor, batch: int | None, calibration: Tensor | None, folder: Path
    ) -> bytes:
        """The file for `model`. `images` (N, C, H, W) are an example; `batch` is how many the file takes at a
        time, None for any number. With `calibration` images, weights and activations are int8. `folder` is
        there for what only exists as a file.
        """
        ...

    def open(self, path: Path) -> Predict:
        """The file in its runtime, on one thread where the runtime can be told."""
        ...


def require(needs: Sequence[str], extra: str) -> None:
    """EdgewiseError with what to install, if a package is missing."""
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        raise EdgewiseError(f"{missing[0]} is not installed: pip install 'edgewise[{extra}]'")
