"""Table 1 of the reference: accuracy by net and batch, and ours beside it, up to batches of 8k."""

from __future__ import annotations

from edgewise.experiments import figure3, figure4, large_batch
from edgewise.experiments.base import Figure
from edgewise.experiments.large_batch import BATCHES, METHODS
from edgewise.experiments.matrix import Group, Matrix

POST = (*figure3.METHODS, *figure4.METHODS)
OURS = tuple(name for name in METHODS if name.startswith("ours-"))

FIGURE = Figure(
    title="Accuracy by net and batch: ResNet18, 10 devices",
    source="Table 1, section 'Large batch training',",
    statement=(
        "The table itself is a picture, so its numbers are not in the text that we have; the text says that "
        "group normalisation loses accuracy as the batch grows, and Fixup little."
    ),
    scales=tuple(large_batch.SCALES),
    runs=lambda scale: large_batch.runs(scale, (*POST, *OURS)),
    page=Matrix(
        groups=(
            Group("the reference's recipe", {name: METHODS[name].label for name in POST}, tuple(BATCHES)[:3]),
            Group("ours", {name: METHODS[name].label for name in OURS}, tuple(BATCHES)),
        ),
        labels=large_batch.labels((*POST, *OURS)),
        expected={**figure3.EXPECTED, **figure4.EXPECTED},
        notes=large_batch.notes,
    ),
    family="large-batch",
    diverging=True,
)
