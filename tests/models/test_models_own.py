"""Models of the user's and of other packages: what will not work is said first, what is unusual is noted."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import EdgewiseError
from edgewise.models import UnusualModel, build
from edgewise.models.norms import Group

SHAPE = (1, 8, 8)


def flat(*layers: nn.Module, out: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, out))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.b(self.a(x.flatten(1))))
        return out


class Overlapping(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight = nn.Parameter(self.a.weight.detach().view(64, 64))


class Counting(nn.Module):
    """With an integer buffer, and a tensor of its own that changes as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int64))
        self.mean = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean + x.mean()
        out: Tensor = self.linear(x.flatten(1))
        return out


class Picking(nn.Module):
    """Which answers for the images that are bright only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        kept = x[x.flatten(1).mean(1) > 0.25] if bool(x.any()) else x
        out: Tensor = self.linear(kept.flatten(1)[: len(x) - (len(x) > 2)])
        return out


def frozen() -> nn.Module:
    made = flat(nn.Linear(64, 64))
    made[1].requires_grad_(False)
    return made


def complex_weight() -> nn.Module:
    made = flat()
    made.odd = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return made


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Callable[[Callable[[], nn.Module]], str]:
    """The name under which the command line would find a function."""

    def named(make: Callable[[], nn.Module]) -> str:
        module = ModuleType("own_models")
        module.model = lambda shape, classes: make()  # type: ignore[attr-defined]
        sys.modules["own_models"] = module
        request.addfinalizer(lambda: sys.modules.pop("own_models", None) and None)
        return "own_models:model"

    return named


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Overlapping, "share memory but are two parameters"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "has no size yet"),
        (complex_weight, "complex64; parameters are real"),
        (Picking, "shapes depend on the data"),
        (lambda: flat(out=7), r"gives \(2, 7\) for 2 images; it must give \(2, 10\)"),
        (lambda: flat(nn.Linear(3, 3)), "fails on images of shape"),
        (nn.Flatten, "nothing to train"),
    ],
)
def test_what_will_not_work_is_one_line(
    make: Callable[[], nn.Module], says: str, own: Callable[[Callable[[], nn.Module]], str]
) -> None:
    with pytest.raises(EdgewiseError, match=says) as caught:
        build(own(make), SHAPE, 10, 4, Group(), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Tied, ["b.weight is tied to another parameter"]),
        (frozen, ["1.weight and 1 more: frozen, 4,160 parameters"]),
        (Counting, ["seen: integer buffers", "mean: its own state"]),
        (flat, []),
    ],
)
def test_what_works_otherwise_is_a_note(
    make: Callable[[], nn.Module], says: list[str], own: Callable[[Callable[[], nn.Module]], str]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build(own(make), SHAPE, 10, 4, Group(), 0)
    notes = [str(w.message) for w in caught if w.category is UnusualModel]
    assert len(notes) == len(says) and all(a in b for a, b in zip(says, notes, strict=True)), notes


def test_a_package_that_is_missing_is_one_line() -> None:
    with pytest.raises(EdgewiseError, match=r"unknown; use resnet18, .*transformers:name"):
        build("resnet19", SHAPE, 10, 4, Group(), 0)
    for package in ("timm", "torchvision"):
        if importlib.util.find_spec(package) is None:
            with pytest.raises(EdgewiseError, match=f"{package} cannot be used here"):
                build(f"{package}:resnet18", SHAPE, 10, 4, Group(), 0)


@pytest.mark.slow
def test_a_folder_of_save_pretrained_is_a_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=1,
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type="basic",
        num_labels=10,
    )
    made = transformers.ResNetForImageClassification(config)
    made.save_pretrained(tmp_path / "saved")
    built = build(f"transformers:{tmp_path / 'saved'}", SHAPE, 10, 4, Group(), 0)
    x = torch.rand(2, *SHAPE)
    assert torch.equal(built.eval()(x).logits, made.eval()(x).logits)
    with pytest.raises(EdgewiseError, match="the call failed"):
        build("transformers:nothing-of-that-name", SHAPE, 10, 4, Group(), 0)
