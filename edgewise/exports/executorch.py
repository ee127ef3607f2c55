"""ExecuTorch: PyTorch's own runtime for devices, with XNNPACK for the CPU. int8 by PT2E quantization.

Only for a fixed batch: where the batch may be up to 256, ExecuTorch 1.5.1 sets aside room for 15 and refuses
more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise.conversion.residual import quiet
from edgewise.exports.base import Predict
from edgewise.exports.deployed import Deployed


class ExecuTorch:
    suffix = ".pte"
    dynamic = False
    needs = ("executorch",)
    extra = "executorch"

    def build(
        self, model: Deployed, images: Tensor, batch: int | None, calibration: Tensor | None, folder: Path
    ) -> bytes:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            example = (canonical(images[:batch]),)
            module: Any = model
            if calibration is not None:
                module = _quantized(model, example, calibration.split(batch or 1))
            exported = torch.export.export(module, example)
            edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)

    def open(self, path: Path) -> Predict:
        with quiet():
            from executorch.runtime import Runtime, Verification

            program = Runtime.get().load_program(path, verification=Verification.Minimal)
            method = program.load_method("forward")
        kept = program, method  # the method points into the program

        def predict(images: Tensor) -> Tensor:
            (answers,) = kept[1].execute([canonical(images)])
            return torch.as_tensor(answers).clone()

        return predict


def canonical(images: Tensor) -> Tensor:
    """A copy whose strides are those of its shape.

    Of an axis of length 1 PyTorch lets the stride be anything; ExecuTorch reads the order of axes off it.
    """
    return torch.empty(images.shape, dtype=images.dtype).copy_(images)


def _quantized(model: Deployed, example: tuple[Tensor], batches: tuple[Tensor, ...]) -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    graph = torch.export.export(model, example).module()
    prepared = prepare_pt2e(graph, quantizer)
    for batch in batches:
        if len(batch) == len(batches[0]):
            prepared(canonical(batch))
    return convert_pt2e(prepared)
