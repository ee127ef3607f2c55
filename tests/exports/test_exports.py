"""Files for devices: parity with the trained model in both runtimes, and nothing half-written."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import edgewise
from PIL import Image
from torch import Tensor, nn

from edgewise import SGD, Config, Dataset, Group, SyncSGD, Trained, export, run
from edgewise.data import digits
from edgewise.errors import EdgewiseError
from edgewise.exports import FORMATS, PARITY, ROUNDING, _accept, _Result
from edgewise.exports.executorch import canonical
from edgewise.models.heads import HEADS
from edgewise.models.norms import NORMS, BatchRenorm

TINY = Config(devices=4, batch=8, width=4, steps=12, eval_every=0, norm=BatchRenorm())
SHELF = replace(TINY, model="examples.shelf:model", devices=2, batch=16, steps=30)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the how-to's small net, long enough for its norms and logits to have left their start."""
    out = tmp_path_factory.mktemp("trained") / "run"
    for _ in run(SHELF, out):
        pass
    return out


def test_onnx_is_the_model_and_stands_alone(trained: Path, tmp_path: Path) -> None:
    made = export(trained, "onnx", out=tmp_path / "m.onnx")
    assert made.difference <= PARITY and made.accuracy == made.trained and made.batch is None
    assert len(made.folded) == 10 and made.size == (tmp_path / "m.onnx").stat().st_size
    facts = json.loads((tmp_path / "m.onnx.json").read_text())
    assert facts["classes"] == [str(d) for d in range(10)] and facts["shape"] == [1, 8, 8]
    # The file, read by its runtime alone, on images that the export has not seen.
    read = Trained.read(trained)
    predict = FORMATS["onnx"]().open(tmp_path / "m.onnx")
    images = read.dataset.test.images[::3][:50].contiguous()
    mean, std = read.dataset.mean[0], read.dataset.std[0]
    with torch.no_grad():
        expected = read.module((images.float() / 255 - mean) / std)
    assert expected.abs().max() > 1, "parity says nothing of logits near zero"
    assert torch.allclose(predict(images), expected, atol=PARITY)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_predict_says_what_the_model_says(format: str, trained: Path, tmp_path: Path) -> None:
    file = export(trained, format, out=tmp_path / f"m{FORMATS[format].suffix}").path
    images = Trained.read(trained).dataset.test.images[:1].clone()
    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "picture.png")
    command = [sys.executable, f"predict_{format}.py", file.name, "picture.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5, done.stderr
    assert int(done.stdout[0]) == int(FORMATS[format]().open(file)(images)[0].argmax())


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_the_model(head: str, format: str, tmp_path: Path) -> None:
    for _ in run(replace(TINY, norm=Group(), head=HEADS[head](), steps=6), tmp_path):
        pass
    made = export(tmp_path, format)
    assert made.difference <= PARITY * max(1.0, made.largest) and made.accuracy == made.trained


@pytest.mark.slow
def test_int8_onnx_of_a_fixed_batch(trained: Path, tmp_path: Path) -> None:
    plain = export(trained, "onnx", out=tmp_path / "a.onnx", batch=2)
    small = export(trained, "onnx", out=tmp_path / "b.onnx", batch=2, int8=True, max_drop=0.05)
    assert plain.difference <= PARITY and small.difference > PARITY
    assert small.size < 0.7 * plain.size and small.accuracy > 0.5
    with pytest.raises(EdgewiseError, match=r"int8 costs too much.*nothing was written"):
        export(trained, "onnx", out=tmp_path / "c" / "c.onnx", int8=True, max_drop=-1.0)
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_executorch_is_the_model(trained: Path, tmp_path: Path) -> None:
    made = export(trained, "executorch", out=tmp_path / "m.pte")
    assert made.difference <= PARITY and made.accuracy == made.trained and made.batch == 1
    small = export(trained, "executorch", out=tmp_path / "small.pte", int8=True, max_drop=0.05)
    assert small.size < made.size and small.accuracy > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_every_norm_is_exported_exactly(name: str, tmp_path: Path) -> None:
    small = replace(SHELF, convert=name != "none", norm=NORMS[name](), steps=30)
    if name == "batch-frozen":  # which diverges at the others' rate once its statistics are fixed
        small = replace(small, algorithm=SyncSGD(SGD(lr=0.001)))
    for _ in run(small if name != "batch-sync" else replace(TINY, norm=NORMS[name]()), tmp_path / "run"):
        pass
    if name == "batch-local":
        with pytest.raises(EdgewiseError, match="every device has norms of its own"):
            export(tmp_path / "run", "onnx")
        return
    assert export(tmp_path / "run", "onnx").difference <= PARITY
    if name in ("batch", "group", "group-ws"):  # folded, decomposed, and both
        assert export(tmp_path / "run", "onnx", int8=True, max_drop=0.1).accuracy > 0.3


def test_strides_of_an_axis_of_one_are_those_of_the_shape() -> None:
    odd = torch.zeros(3, 8, 8, dtype=torch.uint8)[:, None].to(memory_format=torch.channels_last)
    assert canonical(odd[:1]).stride() == (64, 64, 8, 1)


class Odd(nn.Module):
    """Whose operator no ONNX has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.flatten(1))
        return torch.linalg.eigvals(out[:, :4].unflatten(1, (2, 2))).real.repeat(1, 5) + out


class Noisy(Odd):
    """Which answers otherwise each time it is asked, so that no file can answer as it does."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.flatten(1))
        return out + torch.rand_like(out)


def refused(folder: Path, *arguments: object) -> str:
    before = sorted(folder.rglob("*"))
    error = edgewise("export", *arguments, folder=folder).error
    assert sorted(folder.rglob("*")) == before, "nothing is half-written"
    return error


def test_bad_input_is_one_line(trained: Path, tmp_path: Path) -> None:
    assert "holds no run" in refused(tmp_path, tmp_path)
    assert "'torch' is unknown; one of: onnx, executorch" in refused(tmp_path, trained, "--format", "torch")
    assert "ends in .onnx" in refused(tmp_path, trained, "--out", "x.pt")
    assert "legal: 1 to 256, or dynamic" in refused(tmp_path, trained, "--batch", "many")
    assert "takes a fixed batch" in refused(tmp_path, trained, "--format", "executorch", "--batch", "dynamic")


def test_an_operator_without_words_is_one_line_and_no_file(tmp_path: Path) -> None:
    data = digits.load()
    with pytest.raises(EdgewiseError, match="cannot be written so") as caught:
        export(Trained(TINY, data, Odd().eval()), "onnx", out=tmp_path / "m.onnx")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_file_without_parity_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match=r"no parity: logits differ by .*nothing was written"):
        export(Trained(TINY, digits.load(), Noisy().eval()), "onnx", out=tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model_are_refused(trained: Path, tmp_path: Path) -> None:
    weights = trained / "model.safetensors"
    with pytest.raises(EdgewiseError, match="not this model's weights"):
        list(run(replace(SHELF, convert=True, norm=Group(), start=str(weights)), tmp_path / "a"))
    with pytest.raises(EdgewiseError, match="not readable weights"):
        list(run(replace(SHELF, start=str(trained / "config.toml")), tmp_path / "b"))


def test_a_run_starts_from_weights(trained: Path, tmp_path: Path) -> None:
    start = replace(SHELF, start=str(trained / "model.safetensors"), steps=1)
    (row,) = run(start, tmp_path / "run")
    (cold,) = run(replace(SHELF, steps=1), tmp_path / "cold")
    assert row.train_loss < cold.train_loss


class Large(nn.Module):
    """Whose answers are so large that float32 knows them no better than to a thousandth, in any order."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(64, 4096)
        self.last = nn.Linear(4096, 10)
        self.noise = noise
        with torch.no_grad():
            for layer in (self.linear, self.last):
                layer.weight.normal_(0, 10, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.linear(x.flatten(1)).relu())
        return out + self.noise * torch.rand_like(out)


def test_what_rounding_does_to_large_answers_is_held_to_float64(tmp_path: Path) -> None:
    made = export(Trained(TINY, digits.load(), Large().eval()), "onnx", out=tmp_path / "m.onnx")
    assert made.largest > 1e4 and made.difference > PARITY
    assert made.error is not None and made.own_error is not None
    assert made.error <= ROUNDING * made.own_error < 1e-5 * made.largest
    assert "from float64 by" in made.text and json.loads((tmp_path / "m.onnx.json").read_text())["error"]
    # A thousandth of the largest answer is not rounding, whatever the model itself does.
    noisy = Large(noise=1e-3 * made.largest).eval()
    with pytest.raises(EdgewiseError, match=r"no parity: .* \(from float64 by .*nothing was written"):
        export(Trained(TINY, digits.load(), noisy), "onnx", out=tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()


@pytest.mark.parametrize(
    ("difference", "largest", "error", "own", "fits"),
    [
        (1e-4, 0.1, None, None, True),
        (1.1e-4, 78.0, 8.4e-5, 3.1e-5, True),  # ResNet50 after a step at 0.1, as ExecuTorch runs it
        (4e-4, 78.0, 3e-4, 3.1e-5, True),
        (4e-4, 78.0, 4e-4, 3.1e-5, False),  # within 1e-4 of the largest, but no rounding does that
        (4e-4, 78.0, None, None, False),  # a model without a float64: nothing excuses it
        (4e-4, 0.5, 3.9e-4, 3e-4, False),
        (9e-3, 78.0, 9e-3, 9e-3, False),  # a model that errs so much itself does not round: it is random
        (float("nan"), 78.0, float("nan"), 1e-5, False),
    ],
)
def test_parity_in_numbers(
    difference: float, largest: float, error: float | None, own: float | None, fits: bool
) -> None:
    with nullcontext() if fits else pytest.raises(EdgewiseError, match="no parity"):
        _accept(_Result(20, difference, largest, 1.0, 1.0, error, own), False, 0.0)


KILLED = r"""
import os, signal, sys
import edgewise.cli

at = int(sys.argv.pop(1))
seen = 0

def watch(event, arguments):
    global seen
    if event == "os.rename" and "m.onnx" in os.fspath(arguments[1]) + os.fspath(arguments[0]):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
edgewise.cli.main()
"""


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_a_file_with_its_own_facts_or_none(
    trained: Path, tmp_path: Path
) -> None:
    names = ["m.onnx", "m.onnx.json", "predict_onnx.py"]
    flags = ("export", trained, "--out", "m.onnx", "--batch")
    good = tmp_path / "good"
    good.mkdir()
    for at in (1, 4, 6):  # three are written aside, and then three are put in place
        done = edgewise(at, *flags, 2, folder=good, program=KILLED)
        assert done.status == -signal.SIGKILL and not (good / "m.onnx").exists()
    assert edgewise(*flags, 2, folder=good).status == 0
    assert sorted(os.listdir(good)) == names, "what a kill left behind is gone"
    for at in (4, 6, 9):  # in between the three old ones go aside, the file first
        folder = shutil.copytree(good, tmp_path / str(at))
        done = edgewise(at, *flags, 3, folder=folder, program=KILLED)
        assert done.status == -signal.SIGKILL and (folder / "m.onnx").exists() == (at == 4)
        if at == 4:
            assert json.loads((folder / "m.onnx.json").read_text())["batch"] == 2
    assert edgewise(*flags, 3, folder=folder).status == 0
    assert json.loads((folder / "m.onnx.json").read_text())["batch"] == 3
    assert sorted(os.listdir(folder)) == names


def test_no_room_is_no_word_on_the_model(trained: Path, tmp_path: Path) -> None:
    done = edgewise("export", trained, "--out", "m.onnx", folder=tmp_path, limit=2000)
    assert "cannot be written (File too large)" in done.error and list(tmp_path.iterdir()) == []


def test_where_no_file_can_be_is_told_before_the_work(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    (tmp_path / "file").touch()
    assert "m.onnx: cannot be written (Is a directory)" in refused(tmp_path, trained, "--out", "m.onnx")
    assert "is no folder" in refused(tmp_path, trained, "--out", "file/m.onnx")


OTHERS = ["transformers:resnet", "transformers:mobilenet_v2", "timm:resnet10t"]  # the first is a ResNet50


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", OTHERS)
def test_models_of_other_packages_convert_train_a_step_and_ship(
    name: str, format: str, tmp_path: Path
) -> None:
    package = name.split(":")[0]
    try:
        importlib.import_module(package)
    except Exception as error:
        pytest.skip(f"{package} cannot be used here: {error}")
    noise = pixels()
    # A step at 0.1 on eight images throws the answers to 78, where float32 is no finer than 8e-6.
    step = replace(TINY, devices=2, batch=4, steps=1, algorithm=SyncSGD(SGD(lr=0.01)))
    config = replace(step, model=name, convert=True, norm=Group())
    (row,) = run(config, tmp_path / "run", dataset=noise)
    assert 1 < row.train_loss < 10
    made = export(tmp_path / "run", format, dataset=noise)
    assert made.difference <= 1e-4, f"by {made.difference:.2g}, where the largest is {made.largest:.2g}"
    assert made.largest > 0.1 and made.size > 5_000_000


def pixels() -> Dataset:
    """Forty images of noise, of ten classes."""
    images = torch.randint(
        0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels = torch.arange(40) % 10
    return Dataset.of("noise", train=(images[:20], labels[:20]), test=(images[20:], labels[20:]))
