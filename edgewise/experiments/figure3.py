"""Figure 3 of the reference: ResNet18 with group norm as the batch grows, and what its text adds."""

from __future__ import annotations

from edgewise.experiments import large_batch
from edgewise.experiments.base import Figure
from edgewise.experiments.claims import Claim
from edgewise.experiments.page import Curves

METHODS = ("group", "layer", "instance", "group-slow")
LABELS = large_batch.labels(METHODS)
LESS = -0.005  # of accuracy: what counts as a drop
EXPECTED = {
    "group-128": Claim("the level"),
    "group-1k": Claim("lower than at 128", high=LESS, of="group-128"),
    "group-2k": Claim("lower again", high=LESS, of="group-1k"),
    "layer-128": Claim("not shown"),
    "layer-1k": Claim("drops as group norm does", high=LESS, of="layer-128"),
    "layer-2k": Claim("drops as group norm does", high=LESS, of="layer-1k"),
    "instance-128": Claim("not shown"),
    "instance-1k": Claim("drops as group norm does", high=LESS, of="instance-128"),
    "instance-2k": Claim("drops as group norm does", high=LESS, of="instance-1k"),
    "group-slow-1k": Claim("no different from group norm's own warm-up", -0.02, 0.02, of="group-1k"),
    "group-slow-2k": Claim("no different from group norm's own warm-up", -0.02, 0.02, of="group-2k"),
}

FIGURE = Figure(
    title="Large batches with group norm: ResNet18, 10 devices",
    source="Figure 3 (figure 4 in the text), section 'Large batch training',",
    statement=(
        "With group normalisation the accuracy falls as the batch grows from 128 to 1k and 2k; layer and "
        "instance normalisation fall alike, and the slower warm-up that Fixup needs changes nothing."
    ),
    scales=tuple(large_batch.SCALES),
    runs=lambda scale: large_batch.runs(scale, METHODS),
    page=Curves(
        labels=LABELS,
        expected=EXPECTED,
        epochs=True,
        notes=large_batch.notes,
        panels=(  # the reference's own curves, then what its text adds
            tuple(name for name in LABELS if name.startswith("group")),
            tuple(name for name in LABELS if not name.startswith("group")),
        ),
    ),
    family="large-batch",
    diverging=True,
)
