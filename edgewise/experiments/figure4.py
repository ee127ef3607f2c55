"""Figure 4 of the reference: Fixup as the batch grows, by its careful warm-up and by linear scaling."""

from __future__ import annotations

from edgewise.experiments import large_batch
from edgewise.experiments.base import Figure
from edgewise.experiments.claims import Claim
from edgewise.experiments.page import Curves

METHODS = ("fixup", "fixup-linear")
EXPLODED = 0.15  # or no number at all; chance is 0.1
EXPECTED = {
    "fixup-128": Claim("the level"),
    "fixup-1k": Claim("little below 128", -0.02, 0.02, of="fixup-128"),
    "fixup-2k": Claim("little below 128", -0.02, 0.02, of="fixup-128"),
    "fixup-linear-1k": Claim("gradients explode", high=EXPLODED),
    "fixup-linear-2k": Claim("gradients explode", high=EXPLODED),
}

FIGURE = Figure(
    title="Large batches with Fixup: ResNet18, 10 devices",
    source="Figure 4 (figure 5 in the text), section 'Large batch training',",
    statement=(
        "Fixup loses little accuracy at 1k and 2k if the rate stays at 0.1 and is reached slowly; where it "
        "grows with the batch, gradients explode."
    ),
    scales=tuple(large_batch.SCALES),
    runs=lambda scale: large_batch.runs(scale, METHODS),
    page=Curves(labels=large_batch.labels(METHODS), expected=EXPECTED, epochs=True, notes=large_batch.notes),
    family="large-batch",
    diverging=True,
)
