"""Datasets from what people have, and one line for what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from command import edgewise
from PIL import Image

from edgewise import collect
from edgewise.data import load
from edgewise.data.collecting import folder
from edgewise.errors import EdgewiseError

PIXELS = np.arange(20 * 6 * 5, dtype=np.uint8).reshape(20, 6, 5)
LABELS = np.arange(20) % 2


class MapStyle:
    """As torch's datasets are: a length and items."""

    classes = ("cat", "dog")

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.labels[index]


def pictures() -> list[Image.Image]:
    return [Image.fromarray(image) for image in PIXELS]


SOURCES = {
    "arrays": (PIXELS[:, None], LABELS),
    "tensors": (torch.from_numpy(PIXELS[:, None]), torch.from_numpy(LABELS)),
    "bytes": MapStyle(PIXELS, LABELS.tolist()),
    "floats": MapStyle(torch.from_numpy(PIXELS[:, None]).float() / 255, LABELS),
    "pictures": MapStyle(pictures(), LABELS.tolist()),
    "dicts": [{"image": image, "label": int(label)} for image, label in zip(pictures(), LABELS, strict=True)],
    "hugging face": datasets.Dataset.from_dict(
        {"image": pictures(), "label": LABELS.tolist()},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        ),
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_the_same_set(name: str) -> None:
    made = collect(SOURCES[name])
    assert (len(made.train), len(made.test)) == (16, 4), "a fifth of each class is held back"
    assert torch.bincount(made.test.labels).tolist() == [2, 2]
    expected = collect(SOURCES["arrays"])
    assert torch.equal(made.train.images, expected.train.images)
    assert torch.equal(made.train.labels, expected.train.labels)
    if name in ("bytes", "hugging face"):
        assert made.classes == ("cat", "dog")


def test_train_and_test_may_be_given() -> None:
    one, other = SOURCES["arrays"], (PIXELS[:4, None], LABELS[:4])
    for source in ((one, other), {"train": one, "test": other}):
        assert [len(split) for split in (collect(source).train, collect(source).test)] == [20, 4]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"validation": 1}, "a mapping needs 'train', and has validation"),
        (7, "int has no length or no items"),
        ([], "no items"),
        (["x"], "item 0: str is neither"),
        ([{"image": PIXELS[0]}], r"no image .* or label .* in image"),
        ([(PIXELS[0], 0.5)], "the label 0.5 is not a whole number"),
        ([(PIXELS[0], True)], "the label True is not a whole number"),
        ([(PIXELS[0].astype(np.int32), 0)], "an image of int32; legal: uint8, or floats in 0..1"),
        ([(PIXELS[0].astype(np.float32), 0)], r"floats beyond 0..1"),
        ([(np.full((6, 5), np.nan), 0)], r"floats beyond 0..1"),
        ([(np.zeros((2, 1, 6, 5), np.uint8), 0)], r"an image of shape \(2, 1, 6, 5\)"),
        ([(PIXELS[0], 0), (PIXELS[1, :4], 0)], r"item 1: \(1, 4, 5\) where the first is \(1, 6, 5\)"),
        ([(PIXELS[0], 0), (PIXELS[1], 1)], "too few to hold some back"),
        ((PIXELS[:, None].astype(np.int16), LABELS), "images must be uint8"),
        ((PIXELS[:, None], LABELS[:3]), "20 images, 3 labels"),
        ((PIXELS[:, None], LABELS.astype(str)), "train: labels are <U21, which is not numbers"),
        ((PIXELS[:, None].astype(object), LABELS), "train: images are object, which is not numbers"),
        ((PIXELS[:, None], LABELS - 1), "train labels run from -1 to 0"),
    ],
)
def test_what_does_not_fit_is_one_line(source: Any, says: str) -> None:
    with pytest.raises(EdgewiseError, match=says) as caught:
        collect(source)
    assert "\n" not in str(caught.value)


def write(root: Path, count: int = 10, size: tuple[int, int] = (8, 8)) -> Path:
    for label, name in enumerate(("bolt", "nut")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", size, (number, 100 * label, 0)).save(root / name / f"{number}.png")
    return root


def test_folders_of_images(tmp_path: Path) -> None:
    made = load("folder", write(tmp_path / "all"))
    assert made.classes == ("bolt", "nut") and (len(made.train), len(made.test)) == (16, 4)
    assert set(made.train.images[made.train.labels == 1][:, 1, 0, 0].tolist()) == {100}
    write(tmp_path / "split" / "train"), write(tmp_path / "split" / "test", 3)
    assert len(folder(tmp_path / "split").test) == 6


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match="holds no folders of images"):
        folder(tmp_path)
    with pytest.raises(EdgewiseError, match="cannot be read"):
        folder(tmp_path / "missing")
    write(tmp_path / "odd", 2), Image.new("RGB", (9, 9)).save(tmp_path / "odd" / "nut" / "9.png")
    with pytest.raises(EdgewiseError, match="where the first is"):
        folder(tmp_path / "odd")
    assert load("folder:4", tmp_path / "odd").shape == (3, 4, 4)
    for side in ("0", "x", "99999"):
        with pytest.raises(EdgewiseError, match="the side of an image is 1 to 4096"):
            load(f"folder:{side}", tmp_path / "odd")
    (tmp_path / "odd" / "bolt" / "notes.txt").write_text("no picture")
    with pytest.raises(EdgewiseError, match=r"notes.txt: not a readable image"):
        folder(tmp_path / "odd", size=4)


OWN = """
import numpy as np
from torch import nn
from edgewise.data import digits

def data():
    whole = digits.load()
    return (whole.train.images, whole.train.labels), (whole.test.images, whole.test.labels)

def wrong_dtype():
    (x, y), test = data()
    return (x.double(), y), test

def unlabelled():
    (x, y), test = data()
    return (x, y.float()), test

def seven(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def right(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

class Other(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.net, self.last = right((1, 8, 8), 10), last

    def forward(self, x):
        return self.last(self.net(x))

def whole(shape, classes):
    return Other(lambda y: y.long())

def cut(shape, classes):
    return Other(lambda y: y.detach())
"""


def test_bad_input_of_a_run_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    for flags, says in {
        ("--data", "own:data", "--model", "own:seven"): "gives (2, 7) for 2 images; it must give (2, 10)",
        ("--data", "own:wrong_dtype", "--model", "own:right"): "images must be uint8",
        ("--data", "own:unlabelled", "--model", "own:right"): "labels",
        ("--data", "own:data", "--model", "own:whole"): "gives torch.int64; it must give floats",
        ("--data", "own:data", "--model", "own:cut"): "no gradient goes from its answers to its parameters",
        ("--data", "own:data", "--model", "own:missing"): "own:missing: cannot import it",
        ("--data", "own:none"): "none",
        ("--data", "own:data", "--model", "own:right", "--partition", "dirichlet:0.001"): "without examples",
    }.items():
        error = edgewise("run", *flags, "--steps", 1, "--out", "run", folder=tmp_path).error
        assert says in error, error
        assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []
