"""Datasets: checks at construction, digits, holdings, and loading by name."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from edgewise import data
from edgewise.data import Dataset, Split, holdings
from edgewise.errors import EdgewiseError


def images(n: int, channels: int = 1) -> torch.Tensor:
    return torch.arange(n * channels * 4, dtype=torch.uint8).view(n, channels, 2, 2)


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("pixels", "marks", "message"),
    [
        (images(2).float(), labels(0, 1), "images must be uint8"),
        (images(2)[:, 0], labels(0, 1), r"\(N, C, H, W\), not uint8 of shape \(2, 2, 2\)"),
        (images(2), labels(0, 1).int(), "labels must be int64"),
        (images(2), labels(0, 1)[:, None], r"labels must be int64 of shape \(N,\)"),
        (images(2), labels(0, 1, 1), "2 images, 3 labels"),
        (images(0), labels().long(), "at least one image"),
    ],
)
def test_a_split_checks_itself(pixels: torch.Tensor, marks: torch.Tensor, message: str) -> None:
    with pytest.raises(EdgewiseError, match=message):
        Split(pixels, marks)


def test_a_dataset_checks_itself() -> None:
    train, test = Split(images(3), labels(0, 1, 2)), Split(images(2), labels(0, 2))
    good = Dataset("mine", train, test, ("a", "b", "c"), (0.5,), (0.2,), "none")
    assert good.shape == (1, 2, 2) and len(good.train) == 3
    with pytest.raises(EdgewiseError, match="train labels run from 0 to 2; legal for 2 classes: 0 to 1"):
        Dataset("mine", train, test, ("a", "b"), (0.5,), (0.2,), "none")
    with pytest.raises(EdgewiseError, match="test labels run from -1"):
        Dataset("mine", train, Split(images(1), labels(-1)), ("a", "b", "c"), (0.5,), (0.2,), "none")
    with pytest.raises(EdgewiseError, match="for 1 channels"):
        Dataset("mine", train, test, ("a", "b", "c"), (0.5, 0.5), (0.2,), "none")
    with pytest.raises(EdgewiseError, match="above 0"):
        Dataset("mine", train, test, ("a", "b", "c"), (0.5,), (0.0,), "none")
    with pytest.raises(EdgewiseError, match="differ in shape"):
        Dataset("mine", train, Split(images(1, 2), labels(0)), ("a", "b", "c"), (0.5,), (0.2,), "none")
    with pytest.raises(EdgewiseError, match="augmentation 'blur'"):
        Dataset("mine", train, test, ("a", "b", "c"), (0.5,), (0.2,), "blur")


def test_of_takes_arrays_and_measures_them() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 3, 4, 5), dtype=np.uint8)
    pixels.setflags(write=False)
    marks = np.arange(50, dtype=np.int32) % 4
    made = Dataset.of("mine", train=(pixels, marks), test=(pixels[:7], marks[:7]))
    assert made.classes == ("0", "1", "2", "3") and made.augment == "none"
    assert (
        torch.equal(made.train.images, torch.from_numpy(pixels.copy()))
        and made.train.labels.dtype == torch.int64
    )
    np.testing.assert_allclose(made.mean, (pixels / 255).mean(axis=(0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(made.std, (pixels / 255).std(axis=(0, 2, 3)), atol=1e-12)


def test_of_survives_a_constant_channel_and_names_the_split() -> None:
    blank = np.zeros((2, 1, 2, 2), np.uint8)
    assert Dataset.of("mine", train=(blank, [0, 1]), test=(blank, [0, 1])).std == (1.0,)  # type: ignore[arg-type]
    with pytest.raises(EdgewiseError, match="dataset 'mine', test: labels must be int64"):
        Dataset.of("mine", train=(blank, np.array([0, 1])), test=(blank, np.array([0.0, 1.0])))


def test_digits_are_split_alike_every_time() -> None:
    from sklearn.datasets import load_digits

    first, again = data.load("digits"), data.load("digits")
    assert first.shape == (1, 8, 8) and first.augment == "none" and first.classes == tuple("0123456789")
    assert torch.equal(first.test.images, again.test.images)
    assert first.train.images.max() == 255
    counts = torch.bincount(first.train.labels) + torch.bincount(first.test.labels)
    assert int(counts.sum()) == 1797
    assert (torch.bincount(first.test.labels) / counts - 0.2).abs().max() < 0.005
    both = torch.cat([first.train.images, first.test.images]).flatten(1)
    original = torch.from_numpy(np.round(load_digits().images * 255 / 16)).to(torch.uint8).flatten(1)
    assert sorted(both.tolist()) == sorted(original.tolist())
    with pytest.raises(EdgewiseError, match="leave out the data folder"):
        data.load("digits", Path("somewhere"))


def test_loading_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data_module.py").write_text(
        "import numpy as np\n"
        "from edgewise.data import Dataset\n"
        "def good(folder=None):\n"
        "    pair = np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1])\n"
        "    return Dataset.of(str(folder), train=pair, test=pair)\n"
        "def bad():\n    raise RuntimeError('two\\nlines')\n"
        "def wrong():\n    return 3\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    try:
        assert data.load("my_data_module:good").name == "None"
        assert data.load("my_data_module:good", Path("here")).name == "here"
        for name, message in {
            "my_data_module:bad": "failed with RuntimeError: two lines",
            "my_data_module:wrong": "must return edgewise.data.Dataset, not int|must return an .*, not int",
            "my_data_module:number": "is not a function",
            "my_data_module:missing": "cannot import it: AttributeError",
            "my_data_module_that_is_not:x": "cannot import it: ModuleNotFoundError",
            ":x": "cannot import it",
            "cifar11": "no data 'cifar11'",
        }.items():
            with pytest.raises(EdgewiseError, match=message) as error:
                data.load(name)
            assert "legal: digits, cifar10, folder, package.module:function" in str(error.value)
            assert "\n" not in str(error.value)
    finally:
        sys.modules.pop("my_data_module", None)


def test_holdings_count_who_holds_what() -> None:
    parts = [torch.tensor([0, 3]), torch.tensor([1, 2, 4])]
    table = holdings.counts(parts, labels(0, 1, 1, 2, 1), 4)
    assert table.tolist() == [[1, 0, 1, 0], [0, 3, 0, 0]]
    text = holdings.csv_text(table, ["a", "b,c", "d", "e"])
    assert text == 'device,examples,a,"b,c",d,e\n0,2,1,0,1,0\n1,3,0,3,0,0\n'


@pytest.mark.parametrize(("devices", "rows"), [(20, 20), (25, 21)])
def test_the_table_stops_at_twenty_devices(devices: int, rows: int) -> None:
    table = holdings.table(torch.arange(devices)[:, None].repeat(1, 2), ["[a]", "b"])
    assert table.row_count == rows
    out = io.StringIO()
    Console(file=out, width=100).print(table)
    assert ("… and 5 more" in out.getvalue()) == (devices == 25)
    assert "[a]" in out.getvalue() and " 38 " in out.getvalue()
