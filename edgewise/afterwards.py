"""A finished run whose model is changed once more from what its devices can send: read, changed, written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from edgewise import records, wire
from edgewise.assemble import make_model
from edgewise.config import Config
from edgewise.data.batches import Augment
from edgewise.data.dataset import Dataset
from edgewise.data.feed import Feed
from edgewise.data.partition import deal
from edgewise.errors import EdgewiseError
from edgewise.evaluate import Evaluation, evaluate
from edgewise.trained import Trained
from edgewise.vector import FlatModel


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a run's model became.

    Accuracies are on test data, of the changed and the trained model, bytes those of all devices together.
    """

    path: Path
    devices: int
    examples: int
    accuracy: float
    trained: float
    bytes_up: int
    bytes_down: int

    def words(self, how: str) -> str:
        """A line for a terminal. `how`: what it was changed by."""
        return (
            f"{self.path}: accuracy {self.accuracy:.1%}, of the trained model {self.trained:.1%}; {how}, "
            f"{self.bytes_up:,} bytes up, {self.bytes_down:,} down"
        )


class Afterwards:
    """`parts`: the examples of each of the run's simulated devices; `place`: where the changed model goes."""

    def __init__(self, run: Path, place: Path, trained: Trained) -> None:
        """Change `trained.module` in place, then `write`. EdgewiseError if `place` holds something."""
        records.check_free(place)
        self.run, self.place, self.trained, self.data = run, place, trained, trained.dataset
        config = replace(trained.config, accelerator="cpu", precision="fp32")  # as it was read
        torch.set_num_threads(config.threads)
        self.model: FlatModel = make_model(config, trained.module)
        self.feed = Feed.of(self.data, 1, Augment(), torch.float32, config.seed)
        classes = len(self.data.classes)
        self.parts: Sequence[Tensor] = deal(
            config.partition, self.data.train, classes, config.devices, config.seed
        )
        self.before = self.evaluated()

    @classmethod
    def read(
        cls,
        run: str | Path,
        out: str | Path | None,
        dataset: Dataset | None,
        default: str,
        prepare: Callable[[Trained], Trained],
    ) -> Afterwards:
        """The run in a folder; `prepare` makes of it what is changed, and refuses what cannot be."""
        folder = Path(run)
        place = Path(out) if out is not None else folder / default
        return cls(folder, place, prepare(Trained.read(folder, dataset)))

    @property
    def config(self) -> Config:
        return self.trained.config

    def evaluated(self) -> Evaluation:
        """How good the model is now, on test data."""
        return evaluate(self.model, self.data.test, self.feed, len(self.data.classes), self.config.objective)

    def write(self, name: str, examples: int, up: int, down: int = 0, **more: Any) -> dict[str, Any]:
        """Write the model, with the run's config and its summary as changed; the summary last, as of a run.

        `examples`: of all devices, that it was changed by. `up`, `down`: bytes of all devices, beside the
        changed model, which each of them is sent. The fields of a `Change` come back; the summary has them,
        without the path, and `more` under `name`.
        """
        now, state, devices = self.evaluated(), self.model.state, len(self.parts)
        facts: dict[str, Any] = {
            **more,
            "devices": devices,
            "examples": examples,
            "accuracy": now.accuracy,
            "trained": self.before.accuracy,
            "bytes_up": up,
            "bytes_down": down + devices * wire.length(state.params.nbytes, state.buffers.nbytes),
        }
        was = records.summary(self.run) or {}
        changed: dict[str, Any] = {
            **{key: was[key] + facts[key] for key in ("bytes_up", "bytes_down") if key in was},
            "accuracy": now.accuracy,
            "per_class": now.per_class,
            name: facts,
            "model_digest": state.digest(self.model.layout),
        }
        try:
            self.place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgewiseError(f"{self.place}: cannot be written ({error.strerror})") from None
        tensors = {key: tensor.contiguous() for key, tensor in self.trained.module.state_dict().items()}
        tensors = {key: tensor.clone() for key, tensor in tensors.items() if tensor.is_floating_point()}
        records.write(self.place / records.CONFIG, self.config.toml())
        records.write(self.place / records.MODEL, save(tensors))
        records.write(self.place / records.SUMMARY, json.dumps(was | changed, indent=2) + "\n")
        return {"path": self.place, **facts}


def no_fleet(config: Config, what: str) -> None:
    """EdgewiseError where the devices were real ones."""
    if config.engine == "fleet":
        raise EdgewiseError(
            f"refit: real devices cannot be asked for {what} yet; it takes a run of simulated devices"
        )
