"""A dataset from what people have: arrays, map-style datasets, Hugging Face's, a folder of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise import randomness
from edgewise.data.dataset import Array, Dataset
from edgewise.errors import EdgewiseError

HELD_BACK = 0.2  # of each class for testing, where there is only one set
IMAGES, LABELS = ("image", "img", "pixel_values"), ("label", "labels", "fine_label", "target")
Pair = tuple[Tensor, Tensor]


def collect(source: Any, *, name: str = "yours", size: int | None = None) -> Dataset:
    """A dataset from `source`, all of it read into memory as bytes.

    `source` is one set, of which a fifth of each class is then held back for testing, or a pair (train,
    test), or a mapping with "train" and "test" (as a DatasetDict of Hugging Face). A set is a pair of
    arrays (images, labels), or anything with a length whose items are (image, label) or dicts with an
    image and a label. An image is a PIL image, bytes (C, H, W) or (H, W) or (H, W, C), or floats in 0..1
    (C, H, W). `size`: the side that images are scaled to; without it they must be of one size already.
    EdgewiseError, naming the set and the item, for whatever does not fit.
    """
    if isinstance(source, Dataset):
        return source
    sets, classes = _sets(source, name)
    pairs = {which: _pair(part, f"dataset {name!r}, {which}", size) for which, part in sets.items()}
    if "test" not in pairs:
        pairs = _held_back(*pairs["train"])
    named = classes if classes else None
    return Dataset.of(name, train=pairs["train"], test=pairs["test"], classes=named)


def folder(path: Path, size: int | None = None) -> Dataset:
    """Images in folders named by class: path/CLASS/*, or path/train/CLASS/* and path/test/CLASS/*.

    EdgewiseError where there is none, a file is no image, or sizes differ and `size` is not given.
    """
    split = [which for which in ("train", "test") if (path / which).is_dir()]
    roots = {which: path / which for which in split} if len(split) == 2 else {"train": path}
    names = sorted({p.name for root in roots.values() for p in _folders(root)})
    if not names:
        raise EdgewiseError(
            f"{path}: holds no folders of images; legal: CLASS/*.png, or train and test of these"
        )
    sets = {
        which: _Files(
            [(f, names.index(p.name)) for p in _folders(root) for f in sorted(p.iterdir()) if f.is_file()]
        )
        for which, root in roots.items()
    }
    pairs = {which: _pair(files, f"{roots[which]}", size) for which, files in sets.items()}
    if "test" not in pairs:
        pairs = _held_back(*pairs["train"])
    return Dataset.of(path.name, train=pairs["train"], test=pairs["test"], classes=names)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise EdgewiseError(f"{root}: cannot be read ({error.strerror})") from None


class _Files:
    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image, UnidentifiedImageError

        path, label = self.files[index]
        try:
            return Image.open(path).convert("RGB"), label
        except (OSError, UnidentifiedImageError) as error:
            raise EdgewiseError(f"{path}: not a readable image ({error})") from None


def _sets(source: Any, name: str) -> tuple[dict[str, Any], list[str]]:
    if isinstance(source, Mapping):
        if "train" not in source:
            raise EdgewiseError(
                f"dataset {name!r}: a mapping needs 'train', and has {', '.join(map(str, source))}"
            )
        found = {which: source[which] for which in ("train", "test") if which in source}
    elif isinstance(source, tuple) and len(source) == 2 and not _is_array(source[0]):
        found = dict(zip(("train", "test"), source, strict=True))
    else:
        found = {"train": source}
    return found, _class_names(found["train"])


def _class_names(part: Any) -> list[str]:
    """Where the set says what its labels are called: `.classes`, or the features of Hugging Face."""
    names = getattr(part, "classes", None)
    for key, feature in (getattr(part, "features", None) or {}).items():
        if key in LABELS:
            names = getattr(feature, "names", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _pair(part: Any, where: str, size: int | None) -> tuple[Array, Array]:
    if isinstance(part, tuple) and len(part) == 2 and _is_array(part[0]):
        if len(part[0]) != len(part[1]):
            raise EdgewiseError(f"{where}: {len(part[0])} images, {len(part[1])} labels")
        return part
    if not (hasattr(part, "__len__") and hasattr(part, "__getitem__")):
        raise EdgewiseError(
            f"{where}: {type(part).__name__} has no length or no items; give a map-style dataset"
        )
    images, labels = [], []
    for index in range(len(part)):
        image, label = _item(part[index], f"{where}, item {index}")
        images.append(_bytes(image, f"{where}, item {index}", size))
        labels.append(label)
        if images[-1].shape != images[0].shape:
            raise EdgewiseError(
                f"{where}, item {index}: {images[-1].shape} where the first is {images[0].shape}; "
                "give size=, or --data folder:SIDE"
            )
    if not images:
        raise EdgewiseError(f"{where}: no items")
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _item(item: Any, where: str) -> tuple[Any, int]:
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGES if key in item), None)
        label = next((item[key] for key in LABELS if key in item), None)
        if image is None or label is None:
            keys = ", ".join(map(str, item))
            raise EdgewiseError(
                f"{where}: no image ({'|'.join(IMAGES)}) or label ({'|'.join(LABELS)}) in {keys}"
            )
    elif isinstance(item, tuple | list) and len(item) == 2:
        image, label = item
    else:
        raise EdgewiseError(f"{where}: {type(item).__name__} is neither (image, label) nor a dict of them")
    number = label.item() if isinstance(label, Tensor | np.generic) else label
    if isinstance(number, bool) or not isinstance(number, int):
        raise EdgewiseError(f"{where}: the label {label!r} is not a whole number")
    return image, number


def _bytes(image: Any, where: str, size: int | None) -> NDArray[np.uint8]:
    """uint8 (C, H, W)."""
    if hasattr(image, "convert"):  # PIL
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
        image = image if size is None else image.resize((size, size))
    array = image.numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[2] in (1, 3) and array.shape[0] not in (1, 3):
        array = array.transpose(2, 0, 1)
    if array.ndim != 3:
        raise EdgewiseError(
            f"{where}: an image of shape {array.shape}; legal: (C, H, W), (H, W) or (H, W, C)"
        )
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise EdgewiseError(f"{where}: floats beyond 0..1; give bytes, or take the normalisation out")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise EdgewiseError(f"{where}: an image of {array.dtype}; legal: uint8, or floats in 0..1")
    return _scaled(np.ascontiguousarray(array), size)


def _scaled(array: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    if size is None or array.shape[1:] == (size, size):
        return array
    scaled = torch.nn.functional.interpolate(
        torch.from_numpy(array).float()[None], size=(size, size), mode="bilinear", antialias=True
    )
    made: NDArray[np.uint8] = scaled[0].round().clamp(0, 255).to(torch.uint8).numpy()
    return made


def _held_back(images: Array, labels: Array) -> dict[str, tuple[Array, Array]]:
    """A fifth of each class for testing, the same at every call."""
    marks = np.asarray(labels)
    rng = np.random.default_rng(randomness.key(0, "held back"))
    mask = np.zeros(len(marks), dtype=np.bool_)
    for label in np.unique(marks):
        places = rng.permutation(np.flatnonzero(marks == label))
        mask[places[: round(HELD_BACK * len(places))]] = True
    if not mask.any() or mask.all():
        raise EdgewiseError(
            f"{len(marks)} examples are too few to hold some back for testing; give a test set too"
        )
    pick: Any = mask if isinstance(images, np.ndarray) else torch.from_numpy(mask)
    return {"train": (images[~pick], labels[~pick]), "test": (images[pick], labels[pick])}
