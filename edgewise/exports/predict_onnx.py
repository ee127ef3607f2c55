"""What is on a picture? `python predict_onnx.py model.onnx picture.png`.

Needs onnxruntime, numpy and pillow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def main(model: str, picture: str) -> None:
    """Print the answers for one picture, the likeliest first."""
    facts = json.loads(Path(f"{model}.json").read_text(encoding="utf-8"))
    channels, height, width = facts["shape"]
    image = Image.open(picture).convert("L" if channels == 1 else "RGB").resize((width, height))
    pixels = np.asarray(image, np.uint8).reshape(1, height, width, channels).transpose(0, 3, 1, 2)
    # A file of a fixed batch takes as many pictures at a time: here the same one.
    batch = np.ascontiguousarray(np.repeat(pixels, facts["batch"] or 1, axis=0))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"images": batch})
    named = answers.shape[1] == len(facts["classes"])
    for place in np.argsort(-answers[0])[:5]:
        print(f"{facts['classes'][place] if named else place}: {answers[0][place]:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
