"""A run's numbers for TensorBoard, beside its records."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.errors import EdgewiseError

if TYPE_CHECKING:
    from edgewise.rounds import Round

FOLDER = "tensorboard"  # in the run's folder
NUMBERS = (
    *("train_loss", "lr", "accuracy", "loss", "bytes_up", "bytes_down", "seconds"),
    *("drift_cosine", "drift_diversity", "forgetting"),
)


def logged(play: Iterable[Round], folder: Path) -> Generator[Round]:
    """The same rounds, each written to folder/tensorboard by its step before it is handed on.

    EdgewiseError if TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise EdgewiseError("tensorboard is not installed: pip install 'edgewise[tensorboard]'")
    from torch.utils.tensorboard.writer import SummaryWriter

    with closing(SummaryWriter(str(folder / FOLDER))) as writer:
        for row in play:
            for name in NUMBERS:
                value = getattr(row, name)
                if value is not None:
                    writer.add_scalar(name, value, row.step)
            yield row
