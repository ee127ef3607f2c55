"""The loop: everything that runs on the coordinator, in order.

broadcast the state -> the cohort answers -> its updates combined -> one server step -> evaluate -> write down
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from edgewise import randomness, records
from edgewise.algorithms.base import Server
from edgewise.assemble import Parts, assemble, local_steps
from edgewise.broadcast import Broadcast, broadcast
from edgewise.config import Config, read_toml
from edgewise.data import Dataset
from edgewise.data.holdings import csv_text
from edgewise.device import DIVERGED, Task
from edgewise.engines import Engine
from edgewise.errors import EdgewiseError
from edgewise.evaluate import Evaluation, evaluate, per_device
from edgewise.memories import Note
from edgewise.reconcile import agree, reconcile
from edgewise.records import Checkpoint, Records
from edgewise.vector import State

CHECKPOINT_SECONDS = 15.0
TENSORS = ("params", "buffers", "momentum")  # of a checkpoint
BROADCAST = "broadcast/"  # and the tensors of the way down


@dataclass(frozen=True)
class Round:
    """What is written down about one round; a line of rounds.jsonl without the fields that are None.

    `step` and `examples_seen` count from the start of the run, bytes and `seconds` (evaluation left out) are
    this round's. `bytes_up_each` and `bytes_down_each` are what the cohort's devices sent and were sent, in
    the cohort's order, or one number where it is the same for all.
    """

    round: int
    step: int
    examples_seen: int
    lr: float
    train_loss: float
    bytes_up: int
    bytes_down: int
    bytes_up_each: int | list[int]
    bytes_down_each: int | list[int]
    seconds: float
    accuracy: float | None = None
    loss: float | None = None
    per_class: tuple[float | None, ...] | None = None

    def row(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class Progress:
    """Where a run stands on the coordinator: all that a checkpoint holds beside the devices' memories."""

    server: Server
    way: Broadcast
    round: int = 0
    note: dict[str, Any] | None = None  # the schedule's

    @classmethod
    def start(cls, parts: Parts) -> Progress:
        config = parts.config
        server = parts.work.algorithm.start(parts.model.read())
        return cls(server, broadcast(config.codec_down, parts.model.layout, config.seed))

    def checkpoint(self, parts: Parts, engine: Engine) -> Checkpoint:
        state = self.server.state
        tensors = dict(zip(TENSORS, (state.params, state.buffers, self.server.momentum), strict=True))
        sent, way = self.way.save()
        tensors |= {f"{BROADCAST}{name}": tensor for name, tensor in sent.items()}
        note = {
            "round": self.round,
            "schedule": self.note or {},
            "memories": engine.memories.save(),
            "broadcast": way,
            "layout": parts.model.layout.digest,
            "settings": parts.config.flat(),
        }
        return Checkpoint(tensors, note)

    @classmethod
    def restore(cls, checkpoint: Checkpoint, parts: Parts, path: Path) -> tuple[Progress, Note]:
        """The progress, and what finds devices' memories; EdgewiseError for another run's checkpoint."""
        model, note = parts.model, checkpoint.note
        try:
            tensors = {name: tensor.to(model.params.device) for name, tensor in checkpoint.tensors.items()}
            params, buffers, momentum = (tensors[name] for name in TENSORS)
            round, schedule, layout = note["round"], note["schedule"], note["layout"]
            # config.toml may have been edited since.
            agree(str(path), Config.of(note["settings"]).flat(), parts.config.flat())
            memories, way = note["memories"], note["broadcast"]
        except KeyError as error:
            raise EdgewiseError(f"{path}: the checkpoint lacks {error}") from None
        if layout != model.layout.digest:
            raise EdgewiseError(f"{path}: the checkpoint belongs to another model")
        progress = cls.start(parts)
        sent = {n.removeprefix(BROADCAST): t for n, t in tensors.items() if n.startswith(BROADCAST)}
        progress.way.restore(sent, way)
        progress.server = Server(State(params, buffers), momentum)
        progress.round, progress.note = round, schedule
        return progress, memories


def run(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    dataset: Dataset | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Generator[Round]:
    """Run `config`, writing into the folder `out`, and yield every round.

    With `resume`, continue a run that was interrupted (its other settings must agree); a finished run yields
    nothing. Closing the iterator between rounds commits them. `dataset` replaces the one that the config
    names. EdgewiseError for whatever the user can put right.
    """
    folder = Path(out)
    if not checkpoint_seconds >= 0:
        raise EdgewiseError(f"checkpoint_seconds: {checkpoint_seconds} is not a time; legal: 0 or more")
    if resume and records.holds_run(folder):
        with closing(Records.reopen(folder)) as book:
            config = reconcile(folder / records.CONFIG, config)
            if records.summary(folder) is None:
                parts = assemble(config, dataset)
                progress, note = _restore(parts, folder / records.CHECKPOINT)
                book.cut(progress.round, csv_text(parts.held, parts.dataset.classes))
                engine = parts.engine(note, folder / records.MEMORIES)
                yield from _play(parts, engine, progress, book, checkpoint_seconds)
    else:
        records.check_free(folder)  # before the data is loaded
        parts = assemble(config, dataset)
        holdings = csv_text(parts.held, parts.dataset.classes)
        with closing(Records.create(folder, parts.config.toml(), holdings)) as book:
            engine = parts.engine(None, folder / records.MEMORIES)
            yield from _play(parts, engine, Progress.start(parts), book, checkpoint_seconds)


def total_rounds(folder: Path) -> int:
    """How many rounds the run in `folder` has in all, from what it wrote down when it started."""
    config = Config.of(read_toml(folder / records.CONFIG))
    with (folder / records.PARTITION).open(newline="") as file:
        examples = sum(int(row["examples"]) for row in csv.DictReader(file))
    return math.ceil(local_steps(config, examples) / config.algorithm.sync_every)


def _restore(parts: Parts, path: Path) -> tuple[Progress, Note | None]:
    """Where the last checkpoint left the run, and its memories; the beginning if there is none."""
    if path.exists():
        return Progress.restore(Checkpoint.load(path), parts, path)
    return Progress.start(parts), None


def _play(
    parts: Parts, engine: Engine, progress: Progress, book: Records, checkpoint_seconds: float
) -> Generator[Round]:
    """Play every round that is left, then finish. What was yielded is committed when the caller stops."""
    due = time.monotonic() + checkpoint_seconds
    while progress.round < parts.rounds:
        row = _round(parts, engine, progress, book.folder)
        book.round(row.row())
        last, began = progress.round == parts.rounds, time.monotonic()
        if last or began >= due:
            _commit(parts, engine, progress, book)
            now = time.monotonic()
            # Many devices' residuals take long to write: at most a tenth of the time goes into it.
            due = now + max(checkpoint_seconds, 9 * (now - began) if checkpoint_seconds else 0.0)
        try:
            yield row
        except GeneratorExit:
            _commit(parts, engine, progress, book)
            raise
    _finish(parts, progress, book.folder)


def _round(parts: Parts, engine: Engine, progress: Progress, folder: Path | None = None) -> Round:
    """One round: changes `progress` and the engine's memories. `folder`: where updates may lie meanwhile."""
    config, number = parts.config, progress.round + 1
    began = time.monotonic()
    every = config.algorithm.sync_every
    done = progress.round * every
    steps = min(every, parts.steps - done)
    factor = parts.schedule.factor(done / parts.steps, progress.note or {})
    asked, layout = cohort(config, number), parts.model.layout
    task = Task(number, steps, factor, progress.way.announce(number, progress.server.state))
    gathering, losses, up = config.aggregate.start(task.state, folder), list[float](), list[int]()
    for reply in engine.ask(task, asked):
        _check_losses(number, reply.devices, reply.losses)
        update = config.codec.decode(reply.payload, layout, parts.model.params.dtype)
        gathering.add(_on(task.state, update, reply.buffers), weight=reply.examples)
        losses += reply.losses
        up += [reply.bytes_each] * len(reply.devices)
    down = [progress.way.bytes_each(device) for device in asked]
    progress.server = parts.work.algorithm.step(progress.server, gathering.value(), factor, layout)
    progress.round = number
    progress.way.deliver(asked)
    engine.memories.commit(asked)
    parts.model.check()
    sgd = config.algorithm.sgd
    row = Round(
        round=number,
        step=done + steps,
        examples_seen=(done + steps) * config.batch * config.cohort_size,
        lr=sgd.lr * sgd.lr_scale * factor,
        train_loss=sum(losses) / len(losses),
        bytes_up=sum(up),
        bytes_down=sum(down),
        bytes_up_each=_each(up),
        bytes_down_each=_each(down),
        seconds=round(time.monotonic() - began, 4),
    )
    if not _due(config, number, parts.rounds):
        return row
    _check_state(progress)
    result = _evaluation(parts, progress)
    progress.note = parts.schedule.observe(progress.note or {}, result.accuracy)
    loss = result.loss if math.isfinite(result.loss) else None  # JSON knows no infinity
    return replace(row, accuracy=result.accuracy, loss=loss, per_class=result.per_class)


def cohort(config: Config, round: int) -> Sequence[int]:
    """The devices of a round, in order: all of them, or a random sample addressed by the round."""
    if config.cohort_size == config.devices:
        return range(config.devices)
    generator = randomness.generator(config.seed, "cohort", 0, round)
    return sorted(torch.randperm(config.devices, generator=generator)[: config.cohort_size].tolist())


def _check_losses(round: int, devices: Sequence[int], losses: Sequence[float]) -> None:
    for device, loss in zip(devices, losses, strict=True):
        if not math.isfinite(loss):
            raise EdgewiseError(f"round {round}, device {device}: the loss is {loss}; {DIVERGED}")


def _check_state(progress: Progress) -> None:
    state = progress.server.state
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (state.params, state.buffers)):
        raise EdgewiseError(f"round {progress.round}: the model is no longer finite; {DIVERGED}")


def _due(config: Config, number: int, rounds: int) -> bool:
    return number == rounds or bool(config.eval_every and number % config.eval_every == 0)


def _evaluation(parts: Parts, progress: Progress) -> Evaluation:
    parts.model.write(progress.server.state)
    return evaluate(parts.model, parts.dataset.test, parts.feed, len(parts.dataset.classes))


def _on(like: State, params: Tensor, buffers: Tensor) -> State:
    """A decoded state, where the model is."""
    return State(params.to(like.params.device), buffers.to(like.buffers.device))


def _each(lengths: list[int]) -> int | list[int]:
    """One number where all are the same, which is nearly always."""
    return lengths[0] if len(set(lengths)) == 1 else lengths


def _commit(parts: Parts, engine: Engine, progress: Progress, book: Records) -> None:
    _check_state(progress)
    book.checkpoint(progress.checkpoint(parts, engine))
    engine.memories.sweep()


def _finish(parts: Parts, progress: Progress, folder: Path) -> None:
    """model.safetensors (tensors by name, as PyTorch's state_dict would) and then summary.json."""
    layout, state = parts.model.layout, progress.server.state
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
    devices = [share for share in per_device(tuple(last["per_class"]), parts.held) if share is not None]
    return {
        "accuracy": last["accuracy"],
        "best_accuracy": max(accuracies),
        "last10_accuracy": sum(tail) / len(tail),
        "per_class": last["per_class"],
        "per_device": devices
        and {"mean": sum(devices) / len(devices), "worst": min(devices), "best": max(devices)},
        "steps": last["step"],
        "rounds": last["round"],
        "examples_seen": last["examples_seen"],
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "bytes_down": sum(row["bytes_down"] for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
    }


__all__ = ["Progress", "Round", "cohort", "run", "total_rounds"]
