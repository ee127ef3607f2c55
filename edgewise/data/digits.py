"""Scikit-learn's bundled digits: 1,797 real 8x8 images, no download."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.data.dataset import Dataset

# The split belongs to the dataset, not to the run: seeds are then compared on the same test images.
SPLIT_SEED = 20_190_101
TEST_SHARE = 0.2


def load() -> Dataset:
    """The digits, 1x8x8, with 80 % of each class for training and 20 % for testing.

    UCI ML "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998), values 0..16 scaled to bytes.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    test = _test_mask(labels)
    return Dataset.of(
        "digits",
        train=(images[~test], labels[~test]),
        test=(images[test], labels[test]),
        classes=[str(digit) for digit in range(10)],
    )


def _test_mask(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    rng = np.random.default_rng(SPLIT_SEED)
    mask = np.zeros(len(labels), dtype=np.bool_)
    for digit in range(10):
        examples = rng.permutation(np.flatnonzero(labels == digit))
        mask[examples[: round(TEST_SHARE * len(examples))]] = True
    return mask
