"""What a dataset is: images as bytes, integer labels, and the few facts needed to feed them to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.data.batches import Augment
from edgewise.errors import EdgewiseError

Array = Tensor | NDArray[Any]
PARTS = ("images", "labels")


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) uint8 and their labels (N,) int64.

    Where something else than the label is learned, `targets` (N,) or (N, T) floats; the labels are then what
    examples are dealt out and counted by.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise EdgewiseError(f"images must be uint8 of shape (N, C, H, W), not {_kind(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.dim() != 1:
            raise EdgewiseError(f"labels must be int64 of shape (N,), not {_kind(self.labels)}")
        if len(self.images) != len(self.labels):
            raise EdgewiseError(
                f"every image needs one label: {len(self.images)} images, {len(self.labels)} labels"
            )
        if self.images.numel() == 0:
            raise EdgewiseError(f"a split needs at least one image with pixels, not {_kind(self.images)}")

        self._check_targets()

    def _check_targets(self) -> None:
        targets = self.targets
        if targets is None:
            return
        if not targets.is_floating_point() or targets.dim() not in (1, 2) or len(targets) != len(self.labels):
            raise EdgewiseError(
                f"targets must be floats of shape ({len(self.labels)},) or ({len(self.labels)}, T), "
                f"not {_kind(targets)}"
            )
        if not bool(targets.isfinite().all()) or not targets.numel():
            raise EdgewiseError("targets must be finite numbers, one or more an example")

    @property
    def truth(self) -> Tensor:
        """What a model's answers are held to: the targets, or the labels where there are none."""
        return self.labels if self.targets is None else self.targets

    def pick(self, indices: Tensor) -> Split:
        """Some of the examples."""
        targets = None if self.targets is None else self.targets[indices]
        return Split(self.images[indices], self.labels[indices], targets)

    def to(self, accelerator: str) -> Split:
        """The same, in an accelerator's memory."""
        targets = None if self.targets is None else self.targets.to(accelerator)
        return Split(self.images.to(accelerator), self.labels.to(accelerator), targets)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of the same classes and image shape.

    `mean` and `std` are per channel, in units of pixel / 255. `augment` is the default augmentation of the
    training images, in the words of `Augment.parse`. EdgewiseError if any of this does not fit together.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str

    def __post_init__(self) -> None:
        Augment.parse(self.augment)
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            shapes = f"train {_kind(self.train.images)}, test {_kind(self.test.images)}"
            raise EdgewiseError(f"dataset {self.name!r}: the images differ in shape: {shapes}")
        if [*map(_target_shape, (self.train, self.test))] != [_target_shape(self.train)] * 2:
            raise EdgewiseError(f"dataset {self.name!r}: train and test differ in the shape of their targets")
        self._check_labels("train", self.train)
        self._check_labels("test", self.test)
        channels = self.shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            given = f"{len(self.mean)} means and {len(self.std)} deviations"
            raise EdgewiseError(
                f"dataset {self.name!r}: {given} for {channels} channels: give one per channel"
            )
        if not all(deviation > 0 for deviation in self.std):
            raise EdgewiseError(f"dataset {self.name!r}: every deviation must be above 0, not {self.std}")

    def _check_labels(self, which: str, split: Split) -> None:
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(self.classes):
            raise EdgewiseError(
                f"dataset {self.name!r}: {which} labels run from {low} to {high}; "
                f"legal for {len(self.classes)} classes: 0 to {len(self.classes) - 1}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @classmethod
    def of(  # noqa: PLR0913  (named facts of one thing, most of them optional)
        cls,
        name: str,
        *,
        train: tuple[Array, Array],
        test: tuple[Array, Array],
        targets: tuple[Array, Array] | None = None,
        classes: Sequence[str] | None = None,
        moments: tuple[Sequence[float], Sequence[float]] | None = None,
        augment: str = "none",
    ) -> Dataset:
        """A dataset from (images, labels) pairs of arrays or tensors.

        Images are uint8 (N, C, H, W), labels any integers (N,). `moments` is (mean, std) per channel in
        units of pixel / 255, by default those of the training images; `classes` are named by number by
        default. `targets`: what is learned in place of the labels, for the training and the test images,
        (N,) or (N, T).
        """
        aims = (None, None) if targets is None else targets
        splits = {
            which: _split(name, which, pair, aim)
            for which, pair, aim in zip(("train", "test"), (train, test), aims, strict=True)
        }
        if classes is None:
            top = max(int(split.labels.max()) for split in splits.values())
            classes = [str(label) for label in range(top + 1)]
        mean, std = _moments(splits["train"].images) if moments is None else moments
        return cls(name, splits["train"], splits["test"], tuple(classes), tuple(mean), tuple(std), augment)


def _target_shape(split: Split) -> tuple[int, ...] | None:
    return None if split.targets is None else tuple(split.targets.shape[1:])


def _split(name: str, which: str, pair: tuple[Array, Array], aim: Array | None) -> Split:
    where = f"dataset {name!r}, {which}"
    images, labels = (_tensor(part, f"{where}: {what}") for part, what in zip(pair, PARTS, strict=True))
    targets = None if aim is None else _tensor(aim, f"{where}: targets").float()
    # Labels of any integer width are harmless; floats or bools are more likely a mix-up of arguments.
    if not labels.is_floating_point() and labels.dtype != torch.bool:
        labels = labels.to(torch.int64)
    try:
        return Split(images.contiguous(), labels.contiguous(), targets)
    except EdgewiseError as error:
        raise EdgewiseError(f"{where}: {error}") from None


def _tensor(array: Array, what: str) -> Tensor:
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        array = array.copy()  # PyTorch has no read-only tensors
    try:
        return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError):
        kind = getattr(array, "dtype", type(array).__name__)
        raise EdgewiseError(f"{what} are {kind}, which is not numbers; give an array of numbers") from None


def _moments(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel, exact, from the 256 possible values: no float copy of all images."""
    values = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).numpy() / images[:, 0].numel()
        mean = float(share @ values)
        deviation = float(np.sqrt(share @ (values - mean) ** 2))
        means.append(mean)
        deviations.append(
            deviation if deviation > 1e-8 else 1.0
        )  # a constant channel carries nothing to scale
    return means, deviations


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
