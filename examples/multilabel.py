"""Several labels an image on five devices: which properties a digit has (even, prime, a loop, ...).

    edgewise run --data examples.multilabel:data --objective binary-cross-entropy --devices 5

`python examples/multilabel.py` does the same from Python.
"""

from __future__ import annotations

import torch

from edgewise import Config, Dataset, Labels, run
from edgewise.data import digits
from edgewise.objectives import BinaryCrossEntropy

PROPERTIES = {
    "even": {0, 2, 4, 6, 8},
    "prime": {2, 3, 5, 7},
    "above four": {5, 6, 7, 8, 9},
    "loop": {0, 6, 8, 9},
}


def data() -> Dataset:
    """Digits whose targets are four yes-or-no properties. Devices are dealt them by digit."""
    whole = digits.load()
    table = torch.tensor([[float(d in members) for members in PROPERTIES.values()] for d in range(10)])
    return Dataset.of(
        "properties",
        train=(whole.train.images, whole.train.labels),
        test=(whole.test.images, whole.test.labels),
        targets=(table[whole.train.labels], table[whole.test.labels]),
        classes=whole.classes,
    )


def main(out: str = "runs/multilabel", steps: int = 100) -> float:
    """The mean Jaccard index over the test images at the end."""
    config = Config(
        devices=5,
        partition=Labels(2),
        width=4,
        batch=16,
        objective=BinaryCrossEntropy(),
        steps=steps,
        eval_every=0,
    )
    *_, last = run(config, out, dataset=data())
    assert last.accuracy is not None
    print(f"mean Jaccard index {last.accuracy:.2f}")
    return last.accuracy


if __name__ == "__main__":
    main()
