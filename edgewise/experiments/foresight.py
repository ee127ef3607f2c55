"""What `edgewise inspect` foresees beside what training then shows: batch norm on made splits.

Every run trains ResNet18 with batch norm on the same data, dealt in another way; the accuracy that a
split costs is the IID run's less its own. `rehearsal` is the scale on which the score was chosen (other
splits, another seed than the others), so that no split of the ROC curve has had a say in it.
"""

from __future__ import annotations

from dataclasses import replace

from edgewise.config import Config
from edgewise.data.batches import Augment
from edgewise.data.partition import Dirichlet, Iid, Labels, Partition, Quantity
from edgewise.experiments.base import Figure
from edgewise.experiments.forecast import Forecast
from edgewise.models.norms import Batch
from edgewise.schedules import Cosine

SPLITS: dict[str, Partition] = {
    "iid": Iid(),
    **{f"labels-{k}": Labels(k) for k in (1, 2, 3, 4, 6, 8)},
    **{f"labels-{k}-overlap": Labels(k, overlap=True) for k in (2, 5)},
    **{f"dirichlet-{alpha:g}": Dirichlet(alpha) for alpha in (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 100)},
    **{f"quantity-{s:g}": Quantity(s) for s in (0.5, 2)},
}
OTHERS: dict[str, Partition] = {
    "iid": Iid(),
    **{f"labels-{k}": Labels(k) for k in (2, 5, 7)},
    **{f"dirichlet-{alpha:g}": Dirichlet(alpha) for alpha in (0.15, 0.4, 0.8, 3)},
    "quantity-1": Quantity(1),
}
DIGITS = Config(
    data="digits",
    norm=Batch(),
    width=6,
    batch=8,
    augment=Augment(crop=1),
    schedule=Cosine(),
    steps=500,
    eval_every=0,
)
SCALES: dict[str, tuple[Config, dict[str, Partition]]] = {
    "rehearsal": (replace(DIGITS, seed=7), OTHERS),
    "demo": (DIGITS, SPLITS),
    "laptop": (replace(DIGITS, data="cifar10", width=8, batch=16, augment=None, steps=300), SPLITS),
}


def runs(scale: str) -> dict[str, Config]:
    """The runs by the name of their split."""
    base, splits = SCALES[scale]
    return {name: replace(base, partition=split) for name, split in splits.items()}


FIGURE = Figure(
    title="What inspect foresees of batch norm, beside what training shows",
    source="Section 'Non-IID'",
    statement=(
        "Batch normalisation fails on devices that hold few classes each: the reference shows that for two "
        "classes a device, and no failure for IID data."
    ),
    scales=tuple(SCALES),
    runs=runs,
    page=Forecast(),
)
