"""Regression on five devices: how much ink is on a picture of a digit, learned with squared error.

    edgewise run --data examples.regression:data --objective squared-error:0.05 --devices 5 --lr 0.02

`python examples/regression.py` does the same from Python.
"""

from __future__ import annotations

import numpy as np

from edgewise import SGD, Config, Dataset, Labels, SquaredError, SyncSGD, run
from edgewise.data import digits


def data() -> Dataset:
    """Digits whose target is the mean brightness, 0..1; dealt to devices by brightness, in ten bands."""
    whole = digits.load()
    splits = []
    for split in (whole.train, whole.test):
        ink = split.images.float().mean((1, 2, 3)).numpy() / 255
        bands = np.digitize(ink, np.quantile(ink, np.linspace(0, 1, 11)[1:-1]))
        splits.append((split.images, bands, ink))
    return Dataset.of(
        "ink",
        train=splits[0][:2],
        test=splits[1][:2],
        targets=(splits[0][2], splits[1][2]),
        classes=[f"band {band}" for band in range(10)],
    )


def main(out: str = "runs/regression", steps: int = 100) -> float:
    """The share of test pictures whose answer is within 0.05 at the end."""
    config = Config(
        devices=5,
        partition=Labels(2),
        width=4,
        batch=16,
        objective=SquaredError(tolerance=0.05),
        algorithm=SyncSGD(SGD(lr=0.02)),
        steps=steps,
        eval_every=0,
    )
    *_, last = run(config, out, dataset=data())
    assert last.accuracy is not None
    print(f"{last.accuracy:.0%} of the answers lie within 0.05; mean squared error {last.loss:.5f}")
    return last.accuracy


if __name__ == "__main__":
    main()
