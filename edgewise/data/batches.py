"""A device's order through its examples, and their augmentation: functions of seed, device, pass and step.

Nothing here has a state: a run that stops, resumes, or moves to another engine sees the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from edgewise import randomness
from edgewise.accelerator import sent
from edgewise.errors import EdgewiseError

PADDING = 4
LEGAL = (
    "none, or some of crop[:PIXELS], flip, cutout:SIZE, mixup:ALPHA joined by commas, such as "
    "crop,flip,cutout:16"
)


def positions(seed: int, device: int, count: int, start: int, take: int) -> Tensor:
    """Which of its `count` examples a device sees at stream positions start .. start+take-1: int64 (take,).

    The stream is one pass after another, each in its own random order; a batch may straddle passes or, where
    `take` exceeds `count`, hold several. EdgewiseError where the device has no examples.
    """
    if count < 1:
        raise EdgewiseError(f"device {device} holds no examples: every device needs at least one")
    pieces = [torch.empty(0, dtype=torch.int64)]
    position, end = start, start + take
    while position < end:
        lap, offset = divmod(position, count)
        pieces.append(_order(seed, device, count, lap)[offset : offset + end - position])
        position += len(pieces[-1])
    return torch.cat(pieces)  # a copy: the cached orders are never given away


@lru_cache(maxsize=256)
def _order(seed: int, device: int, count: int, lap: int) -> Tensor:
    return torch.randperm(count, generator=randomness.generator(seed, "order", device, lap))


@dataclass(frozen=True)
class Augment:
    """Random changes to training images, all off by default.

    `crop`: pixels of zero padding before a crop back to size. `flip`: mirror left to right half of the time.
    `cutout`: side of the square set to the mean (DeVries & Taylor 2017, "Improved Regularization of
    Convolutional Neural Networks with Cutout"). `mixup`: the alpha of Beta(alpha, alpha), from which the
    share is drawn in which each example of a device's batch is mixed with another of it, truth and all (Zhang
    et al. 2018, "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412).
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.mixup < float("inf"):
            raise EdgewiseError(f"augmentation mixup={self.mixup:g}: alpha is a number from 0")
        if self.crop < 0 or self.cutout < 0:
            raise EdgewiseError(f"augmentation crop={self.crop}, cutout={self.cutout}: sizes are 0 or more")

    @classmethod
    def parse(cls, text: str) -> Augment:
        """From "none", "crop,flip", "crop,flip,cutout:16" ("crop" pads 4 pixels); EdgewiseError otherwise."""
        if text == "none":
            return cls()
        sizes: dict[str, float] = {}
        for word in text.split(","):
            name, size = _size(word, text)
            if name in sizes:
                raise EdgewiseError(f"augmentation {text!r}: {name} stands twice; legal: {LEGAL}")
            sizes[name] = size
        mixup = sizes.pop("mixup", 0.0)
        return cls(int(sizes.get("crop", 0)), "flip" in sizes, int(sizes.get("cutout", 0)), mixup)

    @property
    def text(self) -> str:
        """The inverse of `parse`."""
        words = []
        if self.crop:
            words.append("crop" if self.crop == PADDING else f"crop:{self.crop}")
        if self.flip:
            words.append("flip")
        if self.cutout:
            words.append(f"cutout:{self.cutout}")
        if self.mixup:
            words.append(f"mixup:{self.mixup!r}")
        return ",".join(words) or "none"


def _size(word: str, text: str) -> tuple[str, float]:
    name, colon, size = word.partition(":")
    if word in ("crop", "flip"):
        return name, PADDING
    if name in ("crop", "cutout") and colon and size.isascii() and size.isdigit() and int(size) > 0:
        return name, int(size)
    if name == "mixup" and colon:
        try:
            alpha = float(size)
        except ValueError:
            alpha = 0.0
        if 0 < alpha < float("inf"):
            return name, alpha
    raise EdgewiseError(f"augmentation {text!r}: cannot read {word!r}; legal: {LEGAL}")


@dataclass(frozen=True, eq=False)
class Draws:
    """What chance decided for each of B images.

    `offsets` (B, 2) int64: where the crop starts in the padded image, row and column. `flips` (B,) bool.
    `centres` (B, 2) int64: row and column of the cut-out square. `partners` (B,) int64: the place in the
    batch of the image that it is mixed with; `shares` (B,) float64: how much of its own is left then, all of
    it without mixup.
    """

    offsets: Tensor
    flips: Tensor
    centres: Tensor
    partners: Tensor
    shares: Tensor

    @classmethod
    def cat(cls, draws: Sequence[Draws]) -> Draws:
        """The draws of several devices, for their concatenated images."""
        starts = list(accumulate((len(one.partners) for one in draws), initial=0))
        return cls(
            torch.cat([one.offsets for one in draws]),
            torch.cat([one.flips for one in draws]),
            torch.cat([one.centres for one in draws]),
            torch.cat([one.partners + start for one, start in zip(draws, starts, strict=False)]),
            torch.cat([one.shares for one in draws]),
        )

    def to(self, place: torch.device, augment: Augment) -> Draws:
        """The same where the images are, as far as this augmentation asks for it."""
        asked = {
            "offsets": augment.crop or augment.flip,
            "flips": augment.flip,
            "centres": augment.cutout,
            "partners": augment.mixup,
            "shares": augment.mixup,
        }
        return replace(self, **{name: sent(getattr(self, name), place) for name in asked if asked[name]})


def draw(augment: Augment, seed: int, device: int, step: int, size: int, shape: tuple[int, ...]) -> Draws:
    """The draws for `size` images of `shape` (C, H, W) at one step of a device: the same wherever made."""
    generator = randomness.generator(seed, "augment", device, step)
    # Everything is drawn, used or not: turning one augmentation on leaves the others as they were.
    offsets = torch.randint(0, 2 * augment.crop + 1, (size, 2), generator=generator)
    flips = torch.rand(size, generator=generator) < 0.5
    centres = torch.rand(size, 2, generator=generator, dtype=torch.float64)
    partners = torch.randperm(size, generator=generator)
    radius, angle = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    share = symmetric_beta(augment.mixup, radius, angle) if augment.mixup else 1.0
    shares = torch.full((size,), share, dtype=torch.float64)
    return Draws(offsets, flips, (centres * torch.tensor(shape[1:])).long(), partners, shares)


def symmetric_beta(alpha: float, radius: float, angle: float) -> float:
    """A number of Beta(alpha, alpha) from two uniform ones, 0 <= radius, angle < 1, whatever alpha is.

    With t of Student's distribution of n = 2 alpha degrees of freedom it is t / sqrt(n + t^2), on -1 .. 1. t
    is drawn in polar form: Bailey 1994, "Polar Generation of Random Variates with the t-Distribution",
    Mathematics of Computation 62.
    """
    way, cosine = radius ** (1 / alpha), math.cos(2 * math.pi * angle)
    return 0.5 if way == 1 else 0.5 + 0.5 * cosine / math.sqrt(way / (1 - way) + cosine**2)


def apply(images: Tensor, augment: Augment, draws: Draws) -> Tensor:
    """Crop and flip each image by its own draw: uint8 (B, C, H, W) to the same.

    Cut-out is left to `prepare`, since it fills with the mean.
    """
    if not (augment.crop or augment.flip):
        return images
    batch, channels, height, width = images.shape
    padded = F.pad(images, (augment.crop,) * 4)
    rows = torch.arange(height, device=images.device) + draws.offsets[:, :1]
    columns = torch.arange(width, device=images.device).expand(batch, width)
    if augment.flip:
        columns = torch.where(draws.flips[:, None], columns.flip(1), columns)
    columns = columns + draws.offsets[:, 1:]
    # One gather over flattened pixels: 4x faster than a loop over images, 8x than four-way indexing.
    source = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    index = source.view(batch, 1, -1).expand(batch, channels, -1)
    return padded.view(batch, channels, -1).gather(2, index).view(images.shape)


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """(pixel / 255 - mean) / std per channel: uint8 (B, C, H, W) to `dtype`; computed in at least float32."""
    exact = torch.promote_types(dtype, torch.float32)
    mean, std = (value.to(images.device, exact).view(1, -1, 1, 1) for value in (mean, std))
    return images.to(exact).div_(255).sub_(mean).div_(std).to(dtype)


def prepare(
    images: Tensor,
    augment: Augment | None,
    draws: Draws | None,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """What the model is fed: augmented by `draws`, normalised, cut out; plain normalised without them.

    uint8 (B, C, H, W) to `dtype`, on the images' own accelerator. The cut-out square is 0, which is the mean.
    """
    if augment is None or draws is None:
        return normalise(images, mean, std, dtype)
    ready = normalise(apply(images, augment, draws), mean, std, dtype)
    if augment.cutout:
        ready.masked_fill_(_square(ready, augment.cutout, draws.centres), 0)
    return ready


def mix(values: Tensor, draws: Draws) -> Tensor:
    """Each of `values` (B, ...) with its partner, in the shares drawn: images, or what is held to them."""
    own = draws.shares.to(values.dtype).view(-1, *[1] * (values.dim() - 1))
    return values * own + values[draws.partners] * (1 - own)


def _square(images: Tensor, side: int, centres: Tensor) -> Tensor:
    """True within each image's square, clipped at the edges: (B, 1, H, W)."""
    first = centres - side // 2
    rows, columns = (
        (axis >= first[:, which : which + 1]) & (axis < first[:, which : which + 1] + side)
        for which, axis in enumerate(torch.arange(n, device=images.device) for n in images.shape[2:])
    )
    return rows[:, None, :, None] & columns[:, None, None, :]
