"""Before training: how skewed the devices are, what that breaks in this model, and what to change.

    found = edgewise.inspect(Config(partition=Labels(2), norm=Batch()))
    print(found.text)
    found.write("out/inspect.html")

Everything is measured on the initial weights, from the label counts and one pass over part of the data. A
score from there is a forecast, not a result: results/foresight has how often it was right.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from edgewise import records
from edgewise.assemble import Parts, SkewedNorm, assemble
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.data.skew import BREAKS, Skew, skew
from edgewise.errors import EdgewiseError
from edgewise.inspection.advice import Advice, Findings, advise
from edgewise.inspection.agreement import Agreement, agreement
from edgewise.inspection.statistics import LayerGap, layer_gaps
from edgewise.inspection.traffic import Traffic, traffic
from edgewise.models import takes
from edgewise.models.norms import device_normed

DEVICES = 16  # that are measured, spread evenly over all; label counts are of all


@dataclass(frozen=True)
class Inspection:
    """What was found. `asked`: the config; `data`: the data's name; `parts`: its run, assembled; `held`:
    examples by (device, class); `notes`: what its assembly warned of, a line each.
    """

    asked: Config
    data: str
    parts: Parts
    held: Tensor
    skew: Skew
    gaps: tuple[LayerGap, ...]
    agreement: tuple[Agreement, ...]
    traffic: Traffic
    notes: tuple[str, ...]
    advice: tuple[Advice, ...]

    @property
    def score(self) -> float:
        """The forecast of failure, 0..1: the share of class pairs that meet on no device, where the
        model's norms take their statistics from a device's batch; 0 where none does.
        """
        return self.skew.apart if device_normed(self.parts.model.module) else 0.0

    @property
    def fails(self) -> bool:
        """Whether a loss of more than ten points against IID data is expected."""
        return self.score >= BREAKS

    @property
    def text(self) -> str:
        """The tables for the terminal."""
        from edgewise.inspection.table import text

        return text(self)

    def html(self) -> str:
        """The page: one file that needs no other."""
        from edgewise.inspection.page import html

        return html(self)

    def write(self, path: str | Path) -> Path:
        """Write the page. EdgewiseError if that cannot be."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgewiseError(f"{path}: cannot be written ({error.strerror})") from None
        records.write(path, self.html())
        return path


def inspect(
    config: Config, dataset: Dataset | None = None, say: Callable[[str], None] | None = None
) -> Inspection:
    """Measure what `config` would train. `dataset` replaces what the config names; `say` hears of progress.

    EdgewiseError for what could not run at all; whatever else is found is in the answer.
    """
    say = say or (lambda _: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parts = assemble(replace(config, kernels="torch"), dataset)  # for a few batches
    notes = tuple(" ".join(str(w.message).split()) for w in caught if not issubclass(w.category, SkewedNorm))
    count = config.devices
    devices = sorted({index * count // min(count, DEVICES) for index in range(min(count, DEVICES))})
    say(f"statistics of {len(devices)} devices, layer by layer")
    gaps = layer_gaps(parts, devices)
    say("where their updates go")
    agreed = agreement(parts, devices)
    if not all(math.isfinite(a.cosine + a.diversity) for a in agreed):
        notes += ("updates are not finite: training would diverge; try a lower lr, or look at the model",)
    say("what a round sends")
    sent = traffic(parts)
    assert parts.dataset is not None and parts.held is not None  # it is simulated
    dealt = skew(parts.held)
    norms = device_normed(parts.model.module)
    found = Findings(
        apart=dealt.apart,
        fails=bool(norms) and dealt.apart >= BREAKS,
        norms=norms,
        broken=sum(gap.breaks for gap in gaps),
        foreign=not takes("norm", config.model),
        agreement=agreed,
        traffic=sent,
        personal=parts.model.layout.personal,
    )
    advice = tuple(advise(replace(config, algorithm=parts.config.algorithm), found))  # whose K is known
    name = parts.dataset.name
    return Inspection(config, name, parts, parts.held, dealt, tuple(gaps), tuple(agreed), sent, notes, advice)


__all__ = ["Inspection", "inspect"]
