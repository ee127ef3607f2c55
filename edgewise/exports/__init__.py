"""A trained model as a file that a device runs, held to the model before it is written.

made = edgewise.export("runs/001", "onnx")
print(made.text)           # size, latency, and how far the answers lie from the trained model's
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise import records
from edgewise.data import Dataset
from edgewise.data.dataset import Split
from edgewise.errors import EdgewiseError
from edgewise.exports.base import LARGEST, Format, Predict, require
from edgewise.exports.deployed import Deployed, deploy
from edgewise.exports.executorch import ExecuTorch
from edgewise.exports.onnx import Onnx
from edgewise.objectives import Objective
from edgewise.trained import Trained

FORMATS: dict[str, type[Any]] = {"onnx": Onnx, "executorch": ExecuTorch}
PARITY = 1e-4  # of a logit, or of the largest where that is above 1: float32 adds up in another order
DROP = 0.02  # of the score, that int8 may cost
SAMPLES, CALIBRATION = 512, 128
TIMED = 30


@dataclass(frozen=True)
class Export:
    """A file that was written. On `samples` test examples: `difference` of a logit, at most, `largest` logit,
    `accuracy` of the file and that of the model, `trained`. `latency`: seconds for one call with `batch`
    examples (1 if dynamic), the median of several on this machine's CPU; `folded`: norms that went into the
    weights before them.
    """

    path: Path
    format: str
    int8: bool
    batch: int | None
    size: int
    latency: float
    samples: int
    difference: float
    largest: float
    accuracy: float
    trained: float
    folded: tuple[str, ...]

    @property
    def text(self) -> str:
        """The report, in a few lines."""
        kind = f"{self.format}{', int8' if self.int8 else ''}, batch {self.batch or 'dynamic'}"
        return (
            f"{self.path}: {kind}, {self.size:,} bytes; {len(self.folded)} layers folded\n"
            f"on {self.samples} test examples: logits differ by at most {self.difference:.2g} "
            f"(largest: {self.largest:.2g}); "
            f"accuracy {self.accuracy:.1%}, of the trained model {self.trained:.1%}\n"
            f"{1000 * self.latency:.2f} ms for {self.batch or 1} on this CPU (median of {TIMED})"
        )


def export(  # noqa: PLR0913  (options of one act, all by name)
    run: str | Path | Trained,
    format: str = "onnx",
    *,
    out: str | Path | None = None,
    batch: int | str = "auto",
    int8: bool = False,
    dataset: Dataset | None = None,
    max_drop: float = DROP,
) -> Export:
    """Write a run's model as a file for devices; beside it a program that runs it, and its facts as JSON.

    `run`: a run's folder, or one that was read. `out`: the file, else model.onnx or model.pte in the
    folder. `batch`: how many images the file takes at a time, or "dynamic" for any number; "auto" is
    dynamic where the format can, else 1. `int8`: weights and activations in eight bits, by training
    examples (post-training quantization). The file is first tried on real test examples. EdgewiseError,
    and nothing is written, if in float32 a logit differs by more than PARITY, if int8 costs more than
    `max_drop` of the score, if the format cannot express the model, or if a package is missing.
    """
    made = _format(format)
    require(made.needs, made.extra)
    path, size = _place(run, out, made), _size(batch, format, made)
    trained = run if isinstance(run, Trained) else Trained.read(run, dataset)
    data = trained.dataset
    images = data.train.images[torch.arange(max(CALIBRATION, size or 0)) % len(data.train)]
    model, folded = deploy(trained.module, data.mean, data.std, images[:8])
    with tempfile.TemporaryDirectory() as scratch:
        content = _built(made, model, images, size, images if int8 else None, Path(scratch))
        tried = Path(scratch) / f"tried{made.suffix}"
        tried.write_bytes(content)
        predict = _opened(made, tried)
        result = _compared(model, predict, data.test, size, trained.config.objective)
        _accept(result, int8, max_drop)
        latency = _latency(predict, images[: size or 1])
    facts = asdict(result) | {"folded": tuple(folded)}
    found = Export(path, format, int8, size, len(content), latency, **facts)
    _write(found, content, data)
    return found


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise EdgewiseError(f"--format: {name!r} is unknown; one of: {', '.join(FORMATS)}")
    made: Format = FORMATS[name]()
    return made


def _place(run: str | Path | Trained, out: str | Path | None, made: Format) -> Path:
    if out is None and isinstance(run, Trained):
        raise EdgewiseError("export: where to? give out=FILE")
    path = Path(out) if out is not None else Path(str(run)) / f"model{made.suffix}"
    if path.suffix != made.suffix:
        raise EdgewiseError(f"{path}: the file of this format ends in {made.suffix}")
    return path


def _size(batch: int | str, format: str, made: Format) -> int | None:
    """Images at a time; None for any number."""
    if batch == "auto":
        return None if made.dynamic else 1
    if batch == "dynamic":
        if not made.dynamic:
            raise EdgewiseError(f"--batch: {format} takes a fixed batch; give a whole number")
        return None
    if not isinstance(batch, int) or not 1 <= batch <= LARGEST:
        raise EdgewiseError(f"--batch: {batch!r}; legal: 1 to {LARGEST}, or dynamic")
    return batch


def _built(
    made: Format, model: Deployed, images: Tensor, batch: int | None, calibration: Tensor | None, folder: Path
) -> bytes:
    try:
        return made.build(model, images, batch, calibration, folder)
    except Exception as error:  # exporters raise many kinds of their own
        raise EdgewiseError(f"export: this model cannot be written so: {_line(error)}") from error


def _opened(made: Format, path: Path) -> Predict:
    try:
        return made.open(path)
    except Exception as error:
        raise EdgewiseError(f"export: the runtime refuses the file: {_line(error)}") from error


def _line(error: BaseException) -> str:
    """The innermost cause, in one line: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@dataclass(frozen=True)
class _Result:
    samples: int
    difference: float
    largest: float
    accuracy: float
    trained: float


@torch.no_grad()
def _compared(
    model: Deployed, predict: Predict, test: Split, batch: int | None, objective: Objective
) -> _Result:
    """The file beside the model on test examples, spread evenly over all."""
    size = batch or 64
    count = max(size, min(SAMPLES, len(test)) // size * size)
    picked = torch.arange(count) * len(test) // count
    images, truth = test.images[picked], test.truth[picked]
    expected = torch.cat([model(part) for part in images.split(size)])
    try:
        found = torch.cat([predict(part) for part in images.split(size)])
        found = torch.cat([predict(images[:1]), found[1:]]) if batch is None else found
    except Exception as error:
        raise EdgewiseError(f"export: the file fails on test examples: {_line(error)}") from error
    if found.shape != expected.shape:
        raise EdgewiseError(f"export: the file gives {tuple(found.shape)}, the model {tuple(expected.shape)}")
    scores = [float(objective.scores(answers, truth).mean()) for answers in (found, expected)]
    difference = float((found - expected).abs().max())
    return _Result(count, difference, float(expected.abs().max()), scores[0], scores[1])


def _accept(result: _Result, int8: bool, max_drop: float) -> None:
    if int8:
        if not result.trained - result.accuracy <= max_drop:
            raise EdgewiseError(
                f"export: int8 costs too much: accuracy {result.accuracy:.1%}, not {result.trained:.1%}, on "
                f"{result.samples} test examples; nothing was written (--max-drop {max_drop:g})"
            )
        return
    if not result.difference <= PARITY * max(1.0, result.largest):
        raise EdgewiseError(
            f"export: no parity: logits differ by {result.difference:.2g} on {result.samples} test examples, "
            f"legal: {PARITY:g}; nothing was written"
        )


def _latency(predict: Predict, images: Tensor) -> float:
    """Seconds a call, the median."""
    times = []
    for _ in range(TIMED + 3):
        began = time.perf_counter()
        predict(images)
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


def _write(found: Export, content: bytes, data: Dataset) -> None:
    try:
        found.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgewiseError(f"{found.path}: cannot be written ({error.strerror})") from None
    facts = asdict(found) | {"path": found.path.name, "shape": data.shape, "classes": data.classes}
    name = f"predict_{found.format}.py"
    script = Path(__file__).with_name(name).read_text(encoding="utf-8")
    files: dict[Path, str | bytes] = {
        found.path: content,
        found.path.with_name(f"{found.path.name}.json"): json.dumps(facts, indent=2) + "\n",
        found.path.with_name(name): script,
    }
    new = [path for path in files if not path.exists()]
    try:
        for path, text in files.items():
            records.write(path, text)
    except EdgewiseError:
        for path in new:  # a file without its facts is of no use
            path.unlink(missing_ok=True)
        raise


__all__ = ["FORMATS", "PARITY", "Deployed", "Export", "export"]
