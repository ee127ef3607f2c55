"""What a run leaves when it has come to its end: model.safetensors, and then summary.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from edgewise import records
from edgewise.assemble import Parts
from edgewise.diagnosis.forgetting import mean
from edgewise.evaluate import per_device
from edgewise.vector import State


def finish(parts: Parts, state: State, folder: Path) -> None:
    """Tensors by name, as PyTorch's state_dict would, and the run in numbers."""
    layout = parts.model.layout
    tensors: dict[str, Tensor] = {}
    for entries, flat in ((layout.params, state.params), (layout.buffers, state.buffers)):
        tensors |= {e.name: flat[e.start : e.stop].view(e.shape).cpu().clone() for e in entries}
    records.write(folder / records.MODEL, save(tensors, metadata={"layout": layout.digest}))
    rows = records.rows(folder)
    content = summarise(rows, parts) | {"model_digest": state.digest(layout)}
    records.write(folder / records.SUMMARY, json.dumps(content, indent=2) + "\n")


def summarise(rows: Sequence[dict[str, Any]], parts: Parts) -> dict[str, Any]:
    """The summary of a run from its rounds."""
    evaluated = [row for row in rows if "accuracy" in row]
    last, accuracies = evaluated[-1], [row["accuracy"] for row in evaluated]
    tail = accuracies[-10:]
    return {
        "accuracy": last["accuracy"],
        "best_accuracy": max(accuracies),
        "last10_accuracy": sum(tail) / len(tail),
        "per_class": last["per_class"],
        "per_device": _per_device(last, parts),
        **({"evaluated": last["evaluated"]} if "evaluated" in last else {}),
        **({"worst_device": last["worst_device"]} if "worst_device" in last else {}),
        "steps": last["step"],
        "rounds": last["round"],
        "examples_seen": last["examples_seen"],
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "bytes_down": sum(row["bytes_down"] for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
        **_diagnosis(rows, evaluated),
    }


def _per_device(last: dict[str, Any], parts: Parts) -> Any:
    """What devices see on their own mixes of classes; empty where that is for them to know."""
    if parts.model.layout.personal:  # nobody has the recall of all classes
        return {"mean": last["accuracy"], "worst": last["worst_device"]}
    shares = [] if parts.held is None else per_device(tuple(last["per_class"]), parts.held)
    devices = [share for share in shares if share is not None]
    return devices and {"mean": sum(devices) / len(devices), "worst": min(devices), "best": max(devices)}


def _diagnosis(rows: Sequence[dict[str, Any]], evaluated: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Drift in the mean of all rounds that have it, forgetting in that of the last ten evaluations."""
    drift = {name: mean([row.get(name) for row in rows]) for name in ("drift_cosine", "drift_diversity")}
    drift["forgetting"] = mean([row.get("forgetting") for row in evaluated[-10:]])
    return {name: value for name, value in drift.items() if value is not None}
