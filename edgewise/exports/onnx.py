"""ONNX: for ONNX Runtime and what else reads it. int8 by static quantization (QDQ, a scale a channel)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise.conversion.residual import quiet
from edgewise.exports.base import Predict
from edgewise.exports.deployed import Deployed

# Stay in floats: ONNX Runtime gives each of their weights' channels a scale along an axis that is not there.
FLOAT = {"InstanceNormalization", "LayerNormalization", "GroupNormalization"}


class Onnx:
    suffix = ".onnx"
    dynamic = True
    needs = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"

    def build(
        self, model: Deployed, images: Tensor, batch: int | None, calibration: Tensor | None, folder: Path
    ) -> bytes:
        example = images[: batch or 2]
        shapes = ({0: torch.export.Dim("batch")},) if batch is None else None
        path = folder / "plain.onnx"
        with quiet():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=False)
            if calibration is not None:
                path = _quantized(path, calibration.split(batch or 32), folder)
        return path.read_bytes()

    def open(self, path: Path) -> Predict:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def predict(images: Tensor) -> Tensor:
            (answers,) = session.run(None, {"images": images.numpy()})
            return torch.from_numpy(answers)

        return predict


def _quantized(path: Path, batches: tuple[Tensor, ...], folder: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.registry import QDQRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[Any] = iter(b for b in batches if len(b) == len(batches[0]))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.rest, None)
            return None if batch is None else {"images": batch.numpy()}

    ready, made = folder / "ready.onnx", folder / "int8.onnx"
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(made),
        Reader(),
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=sorted(set(QDQRegistry) - FLOAT),
    )
    return made
