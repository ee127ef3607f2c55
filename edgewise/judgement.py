"""What a round is judged by, where it is evaluated: accuracy, what was forgotten, what local training did."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from edgewise.assemble import Parts
from edgewise.device import Task
from edgewise.diagnosis import Probed, Watch, forgotten, highest
from edgewise.diagnosis.forgetting import mean
from edgewise.engines import Engine
from edgewise.errors import EdgewiseError
from edgewise.evaluate import Evaluation, evaluate
from edgewise.progress import Progress


def measured(parts: Parts, progress: Progress, engine: Engine, task: Task, watch: Watch) -> dict[str, Any]:
    """The fields of a round that say how good the state is after it; the schedule hears of it, too."""
    result = _evaluation(parts, progress, engine, task)
    progress.note = parts.schedule.observe(progress.note or {}, result.accuracy)
    probe = _probed(parts, progress, engine, watch)
    averaged = {} if progress.ema is None else {"evaluated": "ema"}
    return {**averaged, **_measured(result), **_remembered(progress, result), "probe": probe}


def _evaluation(parts: Parts, progress: Progress, engine: Engine, task: Task) -> Evaluation:
    """On the coordinator's own test examples, or else on what the devices hold out.

    By the devices too where each has a model of its own.
    """
    personal = parts.model.layout.personal
    if parts.dataset is not None and parts.feed is not None and not personal:
        parts.model.write(progress.model)
        classes, objective = len(parts.classes), parts.terms.objective
        return evaluate(parts.model, parts.dataset.test, parts.feed, classes, objective)
    result = engine.evaluate(replace(task, state=progress.model))
    if result is None and personal:
        raise EdgewiseError(
            f"round {task.round}: norm: batch-local is evaluated on devices, and none has test examples"
        )
    if result is None:
        raise EdgewiseError(f"round {task.round}: neither the coordinator nor a device has test examples")
    return result


def _measured(result: Evaluation) -> dict[str, Any]:
    """The fields of a round that was evaluated."""
    loss = result.loss if math.isfinite(result.loss) else None  # JSON knows no infinity
    return {
        "accuracy": result.accuracy,
        "loss": loss,
        "per_class": result.per_class,
        "worst_device": result.worst,
    }


def _remembered(progress: Progress, result: Evaluation) -> dict[str, Any]:
    """What the model has forgotten since it knew it best; nothing at the first evaluation."""
    each = forgotten(progress.best, result.per_class) if progress.best else []
    progress.best = highest(progress.best, result.per_class)
    lost = mean(each)
    return {} if lost is None else {"forgetting": lost, "forgetting_per_class": tuple(each)}


def _probed(parts: Parts, progress: Progress, engine: Engine, watch: Watch) -> Probed | None:
    """What local training and averaging did to a few held-out images."""
    held = parts.held
    labels = engine.labels() if held is None else {device: held[device].tolist() for device in watch.local}
    return watch.probed(progress.server.state, labels)
