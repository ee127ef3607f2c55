"""`edgewise export`: a trained model as a file for devices."""

from __future__ import annotations

from pathlib import Path

import click

from edgewise.cli.stopping import stopped_with


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--format", "kind", default="onnx", metavar="onnx|executorch", help="[onnx]")
@click.option(
    "--batch", default="auto", metavar="N|dynamic", help="images at a time  [dynamic; executorch: 1]"
)
@click.option("--int8", is_flag=True, help="weights and activations in eight bits")
@click.option(
    "--max-drop", type=click.FloatRange(0, 1), default=0.02, help="accuracy that int8 may cost  [0.02]"
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="[RUN/model.onnx or model.pte]")
def export(run: Path, kind: str, batch: str, int8: bool, max_drop: float, out: Path | None) -> None:
    """Write the model of a finished RUN as a file that devices run.

    The file takes images as bytes (N, C, H, W) and gives logits. It is tried on test examples first; one
    that does not answer as the trained model is not written. Beside it: predict_onnx.py or
    predict_executorch.py, which runs it, and a JSON file with its facts.
    """
    from edgewise import exports  # here, because it imports PyTorch

    size = int(batch) if batch.isascii() and batch.isdigit() else batch
    with stopped_with("nothing was written"):
        click.echo(exports.export(run, kind, out=out, batch=size, int8=int8, max_drop=max_drop).text)
