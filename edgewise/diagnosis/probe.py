"""A few held-out images, the same all run long, and what a model makes of them.

The measure of what goes wrong in local training is the *counterforce*. On an image of a class that a device
lacks, the gradient of cross-entropy by the logits of the classes C that it has adds up to

    sum over c in C of dL/dz_c = P(C | image),

the probability that the model puts there. Other devices' data would push those logits down with just this
force; the device's own data never does, so it grows. `margin` says the same without an upper end: how far the
log-sum-exp of the logits of C lies above the logit of the image's own class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgewise import randomness
from edgewise.data.dataset import Split
from edgewise.data.feed import Feed
from edgewise.vector import FlatModel

BATCH = 256


@dataclass(frozen=True)
class Probe:
    """`split`: the images, sorted by class; `classes`: how many classes there are."""

    split: Split
    classes: int

    @classmethod
    def of(cls, split: Split, classes: int, each: int, seed: int) -> Probe:
        """Up to `each` images of every class, drawn once for a seed."""
        order = torch.randperm(len(split), generator=randomness.generator(seed, "probe"))
        labels = split.labels.cpu()[order]
        picked = [order[labels == label][:each] for label in range(classes)]
        return cls(split.pick(torch.cat(picked).to(split.labels.device)), classes)

    @torch.no_grad()
    def logits(self, model: FlatModel, feed: Feed) -> Tensor:
        """Of the state that `model` holds, in eval mode: (N, classes) in float64 on the CPU."""
        model.module.eval()
        parts = self.split.images.split(BATCH)
        return torch.cat([model(feed.plain(images)).double().cpu() for images in parts])

    def recall(self, logits: Tensor) -> Tensor:
        """Of each class, (classes,); NaN for one without an image."""
        labels = self.split.labels.cpu()
        right = (logits.argmax(1) == labels).double()
        seen = torch.bincount(labels, minlength=self.classes)
        return torch.bincount(labels, right, minlength=self.classes) / seen

    def seen(self, logits: Tensor, present: Tensor) -> Seen:
        """What logits (N, classes) are to a device that holds the classes `present` (classes,)."""
        labels = self.split.labels.cpu()
        right = (logits.argmax(1) == labels).double()
        lacking = ~present[labels]
        foreign, truth = logits[lacking], labels[lacking]
        own = foreign[:, present].logsumexp(1)
        return Seen(
            float(right[~lacking].mean()),
            float(right[lacking].mean()),
            float((own - foreign.logsumexp(1)).exp().mean()),
            float((own - foreign.gather(1, truth[:, None])[:, 0]).mean()),
        )


@dataclass(frozen=True)
class Seen:
    """By one model, for one device: recall of the classes it holds and of those it lacks; on images of the

    latter, the counterforce (0..1) and the margin (in logits). NaN where there is no such class.
    """

    own: float
    absent: float
    counterforce: float
    margin: float


@dataclass(frozen=True)
class Probed:
    """One look: means over the devices looked at, of the state before local training, after it, and of the

    state that the coordinator made of all updates, in this order. `per_class` is recall by class, of all
    three too. None where it is not known which classes devices hold, or none of them lacks one.
    """

    devices: tuple[int, ...]
    images: int
    per_class: tuple[tuple[float | None, ...], ...]
    own: tuple[float, ...] | None = None
    absent: tuple[float, ...] | None = None
    counterforce: tuple[float, ...] | None = None
    margin: tuple[float, ...] | None = None
