"""Your own model and data, as the how-to uses them: a ResNet full of batch norms, and two sets of pictures.

The model stands for one of yours that knows nothing of edgewise; the data for whatever you have.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgewise.data import digits

Arrays = tuple[Tensor, Tensor]


def data() -> tuple[Arrays, Arrays]:
    """(train, test), each a pair of arrays: images as bytes (N, C, H, W), and labels (N,)."""
    whole = digits.load()
    return (whole.train.images, whole.train.labels), (whole.test.images, whole.test.labels)


class Block(nn.Module):
    """A residual block as it stands in many a code base, batch norms and all."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) to (N, after, ...)."""
        out: Tensor = nn.functional.relu(self.body(x) + self.shortcut(x))
        return out


def model(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """For images of shape (C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(8, 8, 1),
        Block(8, 16, 2),
        Block(16, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
