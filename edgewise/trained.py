"""A finished run read back: its model with the weights it ended with, and what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from edgewise import data, records
from edgewise.assemble import build_module
from edgewise.config import Config, read_toml
from edgewise.data import Dataset
from edgewise.errors import EdgewiseError
from edgewise.vector import Layout
from edgewise.weights import fill


@dataclass(frozen=True)
class Trained:
    """`module` is in eval mode, in float32, and takes images as the run's feed normalises them."""

    config: Config
    dataset: Dataset
    module: nn.Module

    @classmethod
    def read(cls, folder: str | Path, dataset: Dataset | None = None) -> Trained:
        """The run in `folder`; `dataset` replaces the one that its config names.

        EdgewiseError for a folder without a finished run, or weights that do not fit the model.
        """
        folder = Path(folder)
        if not records.holds_run(folder):
            raise EdgewiseError(f"{folder}: holds no run; give the folder that `edgewise run --out` wrote")
        if not (folder / records.MODEL).exists():
            raise EdgewiseError(f"{folder}: its run has not ended yet; finish it with --resume")
        config = Config.of(read_toml(folder / records.CONFIG))
        data_dir = Path(config.data_dir) if config.data_dir else None
        dataset = dataset or data.load(config.data, data_dir)
        module = build_module(replace(config, start=None), dataset).float()
        if Layout.of(module).personal:
            raise EdgewiseError(
                f"{folder}: every device has norms of its own (batch-local), which stay there: what the "
                "coordinator holds is no model; train with another norm, such as group"
            )
        fill(module, folder / records.MODEL)
        return cls(config, dataset, module.eval())
