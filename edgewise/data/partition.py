"""How the training examples are dealt to the devices: evenly, by label, or unevenly in label or in amount.

Every rule deals whole index arrays at once (an owner for each example, then one sort): 100,000 devices cost
no more than the examples and the devices themselves.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise import randomness
from edgewise.data.dataset import Split
from edgewise.errors import EdgewiseError, EdgewiseWarning

Indices = NDArray[np.int64]

REDRAWS = 100
# A draw with this many empty devices will not come out with none in the next hundred either.
HOPELESS = 50


class UnheldClasses(EdgewiseWarning):
    """Some classes are held by no device, so their examples take no part in training."""


class Partition(Protocol):
    """A rule that deals examples to devices."""

    def deal(self, labels: Indices, classes: int, devices: int, rng: np.random.Generator) -> list[Indices]:
        """For each device the indices into `labels` (N,) of the examples it holds; none is held twice."""
        ...


@dataclass(frozen=True)
class Iid:
    """Every device holds an even, random share of all examples."""

    def deal(self, labels: Indices, classes: int, devices: int, rng: np.random.Generator) -> list[Indices]:
        return _cut(rng.permutation(len(labels)), _even(len(labels), devices))


@dataclass(frozen=True)
class Labels:
    """Device d holds only the k classes k*d .. k*d+k-1 (modulo classes), or with `overlap` d .. d+k-1.

    The examples of a class are dealt evenly and at random among the devices that hold it. Warns with
    UnheldClasses where a class has no holder. EdgewiseError unless 1 <= k <= classes.
    The label skew of Hsieh et al. 2020, "The Non-IID Data Quagmire of Decentralized Machine Learning".
    """

    k: int
    overlap: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise EdgewiseError(f"partition labels:{self.k}: legal: 1 up to the number of classes")

    def deal(self, labels: Indices, classes: int, devices: int, rng: np.random.Generator) -> list[Indices]:
        if self.k > classes:
            raise EdgewiseError(f"partition labels:{self.k}: legal for this data: 1 to {classes}")
        stride = 1 if self.overlap else self.k
        held = (np.arange(devices)[:, None] * stride + np.arange(self.k)) % classes
        holders = _by_value(held.reshape(-1), classes)
        indices, owners = [], []
        for examples, slots in zip(_by_value(labels, classes), holders, strict=True):
            if len(slots):
                indices.append(rng.permutation(examples))
                owners.append(np.repeat(slots // self.k, _even(len(examples), len(slots))))
        self._warn_of_unheld(labels, holders)
        return _group(np.concatenate(indices), np.concatenate(owners), devices)

    def _warn_of_unheld(self, labels: Indices, holders: list[Indices]) -> None:
        unheld = [label for label, slots in enumerate(holders) if not len(slots)]
        if unheld:
            unused = int(np.isin(labels, unheld).sum())
            shown = ", ".join(map(str, unheld[:10])) + (", …" if len(unheld) > 10 else "")
            text = f"partition labels:{self.k}: no device holds class {shown}; {unused} examples go unused"
            warnings.warn(text, UnheldClasses, stacklevel=3)


@dataclass(frozen=True)
class Dirichlet:
    """Each class is spread over devices in proportions drawn from Dirichlet(alpha); small alpha is skewed.

    Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification"; per-class form of Yurochkin et al. 2019. Every example is used exactly once. Draws again
    while a device is empty, and gives up with an EdgewiseError.
    """

    alpha: float

    def __post_init__(self) -> None:
        _check_concentration("dirichlet", self.alpha)

    def deal(self, labels: Indices, classes: int, devices: int, rng: np.random.Generator) -> list[Indices]:
        examples = _by_value(labels, classes)
        totals = np.array([len(members) for members in examples])

        def draw() -> Indices:
            weights = rng.dirichlet(np.full(devices, self.alpha), size=classes)
            return np.stack([_share(int(n), row) for n, row in zip(totals, weights, strict=True)])

        sizes = _redraw(draw, f"dirichlet:{self.alpha:g}", "a larger alpha")
        owners = np.concatenate([np.repeat(np.arange(devices), row) for row in sizes])
        indices = np.concatenate([rng.permutation(members) for members in examples])
        return _group(indices, owners, devices)


@dataclass(frozen=True)
class Quantity:
    """Devices hold random examples, but different amounts: sizes are drawn from Dirichlet(s).

    The quantity skew of Li et al. 2022, "Federated Learning on Non-IID Data Silos" (NIID-Bench). Every
    example is used exactly once. Draws again while a device is empty, and gives up with an EdgewiseError.
    """

    s: float

    def __post_init__(self) -> None:
        _check_concentration("quantity", self.s)

    def deal(self, labels: Indices, classes: int, devices: int, rng: np.random.Generator) -> list[Indices]:
        def draw() -> Indices:
            return _share(len(labels), rng.dirichlet(np.full(devices, self.s)))[None]

        sizes = _redraw(draw, f"quantity:{self.s:g}", "a larger s")
        return _cut(rng.permutation(len(labels)), sizes[0])


PARTITIONS: dict[str, type] = {
    "iid": Iid,
    "labels": Labels,
    "dirichlet": Dirichlet,
    "quantity": Quantity,
}


def deal(partition: Partition, split: Split, classes: int, devices: int, seed: int) -> list[Tensor]:
    """For each device an int64 tensor of indices into `split`, the same for the same seed.

    EdgewiseError where a device would hold nothing.
    """
    if devices < 1:
        raise EdgewiseError(
            f"devices = {devices}: legal: 1 to {len(split)} (the number of training examples)"
        )
    if devices > len(split):
        raise EdgewiseError(
            f"{devices} devices cannot share {len(split)} examples: every device needs at least one"
        )
    rng = np.random.default_rng(randomness.key(seed, "partition"))
    labels = split.labels.cpu().numpy()
    parts = partition.deal(labels, classes, devices, rng)
    for device, part in enumerate(parts):
        if not len(part):
            raise EdgewiseError(
                f"partition {partition} leaves device {device} of {devices} without examples: use fewer"
            )
    return [torch.from_numpy(part) for part in parts]


def alike(held: Tensor, labels: Tensor) -> list[Tensor]:
    """For each device indices into other labels (N,), every class shared out as in `held` (D, classes).

    What devices hold out when data is dealt for a trial: a device is tested on the mix that it trains on. A
    class that nobody holds is nobody's.
    """
    indices, owners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for examples, weights in zip(
        _by_value(labels.cpu().numpy(), held.shape[1]), held.T.double().numpy(), strict=True
    ):
        if weights.sum() > 0:
            indices.append(examples)
            owners.append(np.repeat(np.arange(len(held)), _share(len(examples), weights)))
    parts = _group(np.concatenate(indices), np.concatenate(owners), len(held))
    return [torch.from_numpy(part) for part in parts]


def _check_concentration(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise EdgewiseError(f"partition {name}:{value:g}: legal: a finite number above 0, such as {name}:0.5")


class _Draw(Protocol):
    def __call__(self) -> Indices: ...


def _redraw(draw: _Draw, name: str, cure: str) -> Indices:
    """The first drawn table of sizes (rows, devices) that gives every device at least one example."""
    for _ in range(REDRAWS):
        sizes = draw()
        empty = np.flatnonzero(sizes.sum(axis=0) == 0)
        if not len(empty):
            return sizes
        if len(empty) > HOPELESS:
            break
    raise EdgewiseError(
        f"partition {name} leaves device {empty[0]} (and {len(empty) - 1} more of {sizes.shape[1]}) "
        f"without examples: use {cure} or fewer devices"
    )


def _share(total: int, weights: NDArray[np.float64]) -> Indices:
    """Whole sizes in these proportions that add up to `total`: the largest remainders are rounded up."""
    exact = weights / weights.sum() * total
    sizes: Indices = np.floor(exact).astype(np.int64)
    order = np.argsort(sizes - exact, kind="stable")
    sizes[order[: total - int(sizes.sum())]] += 1
    return sizes


def _even(total: int, shares: int) -> Indices:
    """Sizes that differ by at most one, the larger first."""
    return total // shares + (np.arange(shares) < total % shares).astype(np.int64)


def _by_value(values: Indices, count: int) -> list[Indices]:
    """For each value 0..count-1 the ascending positions where it stands."""
    return _group(np.arange(len(values)), values, count)


def _group(indices: Indices, owners: Indices, count: int) -> list[Indices]:
    """The indices of each owner 0..count-1, in the order given."""
    order = np.argsort(owners, kind="stable")
    return _cut(indices[order], np.bincount(owners, minlength=count))


def _cut(indices: Indices, sizes: Indices) -> list[Indices]:
    ends = np.cumsum(sizes).tolist()
    return [indices[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
