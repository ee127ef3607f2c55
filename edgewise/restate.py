"""Batch norm's statistics taken anew after training, from moments that devices can send.

    each device:  of every batch norm's inputs, by channel: their number, mean and squares about the mean
    coordinator:  the mean and variance of all of them together (Chan et al. 1979), written into the norm

Averaging devices' running statistics leaves out how far their means lie apart; these are exactly the
statistics of all the examples drawn, in one place, whatever the skew. Norms are taken one after another from
the input on, each behind norms that have theirs already: a pass over the examples, and an exchange, for each
(`conversion/recalibration.py` does the same for one machine, and says whose idea it is).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from edgewise import wire
from edgewise.afterwards import Afterwards, Change, no_fleet
from edgewise.conversion.recalibration import Moments, keeps, moments_at, put, reached
from edgewise.data.batches import positions
from edgewise.data.dataset import Dataset
from edgewise.errors import EdgewiseError
from edgewise.trained import Trained

EXAMPLES = 100  # of a device
BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Restated(Change):
    """A model whose batch norms have new statistics."""

    norms: int

    @property
    def text(self) -> str:
        return self.words(
            f"statistics of {self.norms} norms from {self.examples:,} examples of {self.devices} devices"
        )


def restate(
    run: str | Path,
    examples: int = EXAMPLES,
    *,
    out: str | Path | None = None,
    dataset: Dataset | None = None,
) -> Restated:
    """Take the statistics of a finished run's batch norms anew, from up to `examples` of each device.

    What is written into `out` (else `restated` in the run's folder) can be exported like a run. `dataset`
    replaces the one that the run's config names. EdgewiseError where the model keeps no statistics, where its
    devices were real ones, or where the folder holds something already.
    """
    if examples < 1:
        raise EdgewiseError(f"refit: statistics of {examples} examples; legal: 1 or more")
    at = Afterwards.read(run, out, dataset, "restated", _checked)
    module, images = at.trained.module, [at.data.train.images[some] for some in _drawn(at, examples)]
    names = reached(module, at.feed.plain(images[0][:1]))
    up = down = 0
    for name in names:
        sent = [moments_at(module, name, map(at.feed.plain, own.split(BATCH))) for own in images]
        up += sum(wire.length(len(moments.pack()), 0) for moments in sent)
        together = Moments()
        for moments in sent:
            together.join(Moments.unpack(moments.pack()))
        put(module.get_submodule(name), together)
        down += len(sent) * wire.length(2 * 4 * len(together.mean), 0)
    return Restated(**at.write("restated", sum(map(len, images)), up, down, norms=len(names)))


def _drawn(at: Afterwards, examples: int) -> list[Tensor]:
    """Up to so many examples of each device, the first of its order: what it holds lies class by class."""
    seed = at.config.seed
    return [
        part[positions(seed, device, len(part), 0, min(examples, len(part)))]
        for device, part in enumerate(at.parts)
    ]


def _checked(trained: Trained) -> Trained:
    """EdgewiseError unless there are statistics to take."""
    no_fleet(trained.config, "the moments of what reaches their norms")
    if not any(keeps(module) for module in trained.module.modules()):
        raise EdgewiseError(
            f"refit: the model {trained.config.model} has no batch norm that keeps statistics; "
            "there are none to take anew with this norm"
        )
    return trained


__all__ = ["EXAMPLES", "Restated", "restate"]
