"""Regression on five devices: how many bars a seven-segment display lights up for a written digit.

    edgewise run --data examples.regression:data --objective squared-error:0.5 --devices 5 --lr 0.01

`python examples/regression.py` does the same from Python.
"""

from __future__ import annotations

import torch

from edgewise import SGD, Config, Dataset, Labels, SquaredError, SyncSGD, run
from edgewise.data import digits

BARS = (6, 2, 5, 5, 4, 5, 6, 3, 7, 6)  # of the digits 0 to 9


def data() -> Dataset:
    """Digits whose target is a number of bars, less five, so that targets lie about zero."""
    whole = digits.load()
    table = torch.tensor(BARS, dtype=torch.float32) - 5
    return Dataset.of(
        "bars",
        train=(whole.train.images, whole.train.labels),
        test=(whole.test.images, whole.test.labels),
        targets=(table[whole.train.labels], table[whole.test.labels]),
        classes=whole.classes,
    )


def main(out: str = "runs/regression", steps: int = 150) -> float:
    """The share of test pictures whose answer is within half a bar at the end."""
    config = Config(
        devices=5,
        partition=Labels(2),
        width=4,
        batch=16,
        objective=SquaredError(tolerance=0.5),
        algorithm=SyncSGD(SGD(lr=0.01)),
        steps=steps,
        eval_every=0,
    )
    *_, last = run(config, out, dataset=data())
    assert last.accuracy is not None
    print(f"{last.accuracy:.0%} of the answers lie within half a bar; mean squared error {last.loss:.3f}")
    return last.accuracy


if __name__ == "__main__":
    main()
