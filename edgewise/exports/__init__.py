"""A trained model as a file that a device runs, held to the model before it is written.

made = edgewise.export("runs/001", "onnx")
print(made.text)           # size, latency, and how far the answers lie from the trained model's
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise.data import Dataset
from edgewise.data.dataset import Split
from edgewise.errors import EdgewiseError
from edgewise.exports.base import LARGEST, Format, Predict, require
from edgewise.exports.deployed import Deployed, deploy
from edgewise.exports.executorch import ExecuTorch
from edgewise.exports.onnx import Onnx
from edgewise.files import check_writable, one_line, write, write_together
from edgewise.objectives import Objective
from edgewise.trained import Trained

FORMATS: dict[str, type[Any]] = {"onnx": Onnx, "executorch": ExecuTorch}
PARITY = 1e-4  # of a logit
# Where logits are so large that float32 itself does not keep to that: the file's error, held to the model in
# float64, as a multiple of the error of the model in float32. Runtimes add up in other orders, some one
# product at a time and some many side by side, which errs less (Higham 1993, doi 10.1137/0914050): that of
# ExecuTorch on a ResNet50 is 2.7 times PyTorch's (LOG.md).
ROUNDING = 10.0
DROP = 0.02  # of the score, that int8 may cost
SAMPLES, CALIBRATION = 512, 128
TIMED = 30


@dataclass(frozen=True)
class Export:
    """A file that was written. On `samples` test examples: `difference` of a logit, at most, `largest` logit,
    `accuracy` of the file and that of the model, `trained`. `error` of the file and `own_error` of the model
    in float32, each held to the model in float64: measured only in floats where the difference is above
    PARITY, else None. `latency`: seconds for one call with `batch` examples (1 if dynamic), the median of
    several on this machine's CPU; `folded`: norms that went into the weights before them.
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
    error: float | None = None
    own_error: float | None = None

    @property
    def text(self) -> str:
        """The report, in a few lines."""
        kind = f"{self.format}{', int8' if self.int8 else ''}, batch {self.batch or 'dynamic'}"
        return (
            f"{self.path}: {kind}, {self.size:,} bytes; {len(self.folded)} layers folded\n"
            f"on {self.samples} test examples: logits differ by at most {self.difference:.2g} "
            f"(largest: {self.largest:.2g}); "
            f"{self._rounding}accuracy {self.accuracy:.1%}, of the trained model {self.trained:.1%}\n"
            f"{1000 * self.latency:.2f} ms for {self.batch or 1} on this CPU (median of {TIMED})"
        )

    @property
    def _rounding(self) -> str:
        if self.error is None or self.own_error is None:
            return ""
        return f"from float64 by {self.error:.2g}, the trained model by {self.own_error:.2g}; "


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
    and nothing is written, if in float32 a logit differs by more than PARITY and the file is further from
    the model in float64 than ROUNDING times what float32 costs the model itself, if int8 costs more than
    `max_drop` of the score, if the format cannot express the model, or if a package is missing.
    """
    made = _format(format)
    require(made.needs, made.extra)
    path, size = _place(run, out, made), _size(batch, format, made)
    check_writable(path)
    trained = run if isinstance(run, Trained) else Trained.read(run, dataset)
    data = trained.dataset
    images = data.train.images[torch.arange(max(CALIBRATION, size or 0)) % len(data.train)]
    model, folded = deploy(trained.module, data.mean, data.std, images[:8])
    with one_line(Path("a temporary folder (TMPDIR)"), "made"):
        folder = tempfile.TemporaryDirectory()
    with folder as scratch:
        content = _built(made, model, images, size, images if int8 else None, Path(scratch))
        tried = Path(scratch) / f"tried{made.suffix}"
        write(tried, content)
        predict = _opened(made, tried)
        result = _compared(model, predict, data.test, size, trained.config.objective, int8)
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
        cause = _innermost(error)
        if isinstance(cause, OSError) and cause.strerror:  # no word on the model
            where = cause.filename or folder
            raise EdgewiseError(f"export: {where}: cannot be written ({cause.strerror})") from error
        raise EdgewiseError(f"export: this model cannot be written so: {_line(error)}") from error


def _opened(made: Format, path: Path) -> Predict:
    try:
        return made.open(path)
    except Exception as error:
        raise EdgewiseError(f"export: the runtime refuses the file: {_line(error)}") from error


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _line(error: BaseException) -> str:
    """The innermost cause, in one line: exporters wrap it in pages of advice."""
    error = _innermost(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@dataclass(frozen=True)
class _Result:
    samples: int
    difference: float
    largest: float
    accuracy: float
    trained: float
    error: float | None = None
    own_error: float | None = None


@torch.no_grad()
def _compared(
    model: Deployed, predict: Predict, test: Split, batch: int | None, objective: Objective, int8: bool
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
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    close = int8 or difference <= PARITY
    errors = (None, None) if close else _errors(model, images.split(size), found, expected)
    return _Result(count, difference, largest, scores[0], scores[1], *errors)


def _errors(
    model: Deployed, batches: Sequence[Tensor], found: Tensor, expected: Tensor
) -> tuple[float, float] | tuple[None, None]:
    """How far the file's answers and the model's own lie from the model's in float64, if it has those."""
    try:
        exact_model = model.in_float64()
        exact = torch.cat([exact_model(part) for part in batches])
    except Exception:  # a user's model may insist on float32, in any way
        return None, None
    return float((found - exact).abs().max()), float((expected - exact).abs().max())


def _accept(result: _Result, int8: bool, max_drop: float) -> None:
    if int8:
        if not result.trained - result.accuracy <= max_drop:
            raise EdgewiseError(
                f"export: int8 costs too much: accuracy {result.accuracy:.1%}, not {result.trained:.1%}, on "
                f"{result.samples} test examples; nothing was written (--max-drop {max_drop:g})"
            )
        return
    error, own = result.error, result.own_error
    if result.difference <= PARITY or (
        error is not None and own is not None and error <= _rounding(own, result.largest)
    ):
        return
    told = "" if error is None else f" (from float64 by {error:.2g}, the trained model by {own:.2g})"
    raise EdgewiseError(
        f"export: no parity: logits differ by {result.difference:.2g} on {result.samples} test examples"
        f"{told}, legal: {PARITY:g}; nothing was written"
    )


def _rounding(own: float, largest: float) -> float:
    """The error that rounding excuses where the model itself errs by `own`; never PARITY of a logit."""
    return max(PARITY, min(ROUNDING * own, PARITY * largest))


def _latency(predict: Predict, images: Tensor) -> float:
    """Seconds a call, the median."""
    times = []
    for _ in range(TIMED + 3):
        began = time.perf_counter()
        predict(images)
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


def _write(found: Export, content: bytes, data: Dataset) -> None:
    facts = asdict(found) | {"path": found.path.name, "shape": data.shape, "classes": data.classes}
    program = f"predict_{found.format}.py"
    beside = {
        f"{found.path.name}.json": json.dumps(facts, indent=2) + "\n",
        program: Path(__file__).with_name(program).read_text(encoding="utf-8"),
    }
    write_together(found.path, content, beside)


__all__ = ["FORMATS", "PARITY", "Deployed", "Export", "export"]
