"""The loop: everything that runs on the coordinator, in order.

broadcast the state -> the cohort answers -> its updates combined -> one server step -> evaluate -> write down
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from edgewise import randomness, records
from edgewise.assemble import Parts, assemble, local_steps
from edgewise.config import Config, read_toml
from edgewise.data import Dataset
from edgewise.device import DIVERGED, Reply, Task
from edgewise.engines import Engine, first
from edgewise.errors import EdgewiseError
from edgewise.evaluate import Evaluation, evaluate, per_device
from edgewise.memories import Note
from edgewise.progress import Progress
from edgewise.reconcile import reconcile
from edgewise.records import Checkpoint, Records
from edgewise.vector import State

CHECKPOINT_SECONDS = 15.0


@dataclass
class _Got:
    """What came back in a round, device by device; the updates themselves are in the mean."""

    devices: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    examples: int = 0

    def note(self, reply: Reply) -> None:
        self.devices += reply.devices
        self.losses += reply.losses
        self.bytes += [reply.bytes_each] * len(reply.devices)
        self.examples += reply.examples


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
    missing: list[int] | None = None  # devices that were asked and are not in the round's mean
    accuracy: float | None = None
    loss: float | None = None
    per_class: tuple[float | None, ...] | None = None
    worst_device: float | None = None  # the lowest accuracy of a device on its own held-out examples

    def row(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def run(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    dataset: Dataset | None = None,
    dealt: Sequence[Tensor] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Generator[Round]:
    """Run `config`, writing into the folder `out`, and yield every round.

    With `resume`, continue a run that was interrupted (its other settings must agree); a finished run
    yields nothing. Closing the iterator between rounds commits them. `dataset` replaces the one that the
    config names, `dealt` (the indices of each device's examples) its partition. EdgewiseError for
    whatever the user can put right.
    """

    def simulate(config: Config) -> Parts:
        return assemble(config, dataset, dealt)

    def reach(parts: Parts, note: Note | None) -> Engine:
        return parts.engine(note, Path(out))

    return drive(config, Path(out), simulate, reach, resume, checkpoint_seconds)


def drive(
    config: Config,
    folder: Path,
    prepare: Callable[[Config], Parts],
    reach: Callable[[Parts, Note | None], Engine],
    resume: bool,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Generator[Round]:
    """`run`, for any devices: `prepare` makes the parts of the config, `reach` the engine that asks devices.

    `reach` takes what the engine's memories saved in the checkpoint, or None at the start of a run.
    """
    if not checkpoint_seconds >= 0:
        raise EdgewiseError(f"checkpoint_seconds: {checkpoint_seconds} is not a time; legal: 0 or more")
    if resume and records.holds_run(folder):
        with closing(Records.reopen(folder)) as book:
            config = reconcile(folder / records.CONFIG, config)
            if records.summary(folder) is None:
                parts = _prepared_again(prepare, config, folder)
                progress, note = _restore(parts, folder / records.CHECKPOINT)
                book.cut(progress.round, parts.holdings)
                with closing(reach(parts, note)) as engine:
                    yield from _play(parts, engine, progress, book, checkpoint_seconds)
    else:
        records.check_free(folder)  # before the data is loaded
        parts = prepare(config)
        with (
            closing(Records.create(folder, parts.config.toml(), parts.holdings)) as book,
            closing(reach(parts, None)) as engine,
        ):
            yield from _play(parts, engine, Progress.start(parts), book, checkpoint_seconds)


def total_rounds(folder: Path) -> int:
    """How many rounds the run in `folder` has in all, from what it wrote down when it started."""
    config = Config.of(read_toml(folder / records.CONFIG))
    with (folder / records.PARTITION).open(newline="") as file:
        examples = sum(int(row["examples"]) for row in csv.DictReader(file))
    return math.ceil(local_steps(config, examples) / config.algorithm.sync_every)


def _prepared_again(prepare: Callable[[Config], Parts], config: Config, folder: Path) -> Parts:
    """The parts of a run that goes on: with a checkpoint, the weights it started from are not read."""
    if config.start is None or not (folder / records.CHECKPOINT).exists():
        return prepare(config)
    parts = prepare(replace(config, start=None))
    return replace(parts, config=replace(parts.config, start=config.start))


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
        if last or began >= due or engine.crowded:
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
    layout = parts.model.layout
    asked = list(engine.choose(number, ranking(config, number), config.cohort_size))
    state = progress.way.announce(number, progress.server.state)
    task = Task(number, steps, factor, state, progress.way)
    gathering, got = config.aggregate.start(task.state, folder), _Got()
    for reply in engine.ask(task, asked):
        _check_losses(number, reply.devices, reply.losses)
        update = config.codec.decode(reply.payload, layout, parts.model.params.dtype)
        gathering.add(_on(task.state, update, reply.buffers), weight=reply.examples)
        got.note(reply)
    down = [progress.way.bytes_each(device) for device in asked]
    progress.server = parts.terms.algorithm.step(progress.server, gathering.value(), factor, layout)
    progress.round = number
    progress.examples += got.examples
    progress.way.deliver(asked)
    engine.memories.commit(got.devices)
    parts.model.check()
    sgd = config.algorithm.sgd
    row = Round(
        round=number,
        step=done + steps,
        examples_seen=progress.examples,
        lr=sgd.lr * sgd.lr_scale * factor,
        train_loss=sum(got.losses) / len(got.losses),
        bytes_up=sum(got.bytes),
        bytes_down=sum(down),
        bytes_up_each=_each(got.bytes),
        bytes_down_each=_each(down),
        seconds=round(time.monotonic() - began, 4),
        missing=sorted(set(asked) - set(got.devices)) or None,
    )
    if not _due(config, number, parts.rounds):
        return row
    _check_state(progress)
    result = _evaluation(parts, progress, engine, task)
    progress.note = parts.schedule.observe(progress.note or {}, result.accuracy)
    return replace(row, **_measured(result))


def ranking(config: Config, round: int) -> Sequence[int]:
    """All devices in the order in which they are asked, which is addressed by the round.

    In their own order where all are asked.
    """
    if config.cohort_size == config.devices:
        return range(config.devices)
    generator = randomness.generator(config.seed, "cohort", 0, round)
    return torch.randperm(config.devices, generator=generator).tolist()


def cohort(config: Config, round: int) -> Sequence[int]:
    """The devices of a round, in order: all of them, or the first of its ranking."""
    return first(ranking(config, round), config.cohort_size)


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


def _evaluation(parts: Parts, progress: Progress, engine: Engine, task: Task) -> Evaluation:
    """On the coordinator's own test examples, or else on what the devices hold out."""
    if parts.dataset is not None and parts.feed is not None:
        parts.model.write(progress.server.state)
        classes, objective = len(parts.classes), parts.terms.objective
        return evaluate(parts.model, parts.dataset.test, parts.feed, classes, objective)
    result = engine.evaluate(replace(task, state=progress.server.state))
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
    shares = [] if parts.held is None else per_device(tuple(last["per_class"]), parts.held)
    devices = [share for share in shares if share is not None]
    return {
        "accuracy": last["accuracy"],
        "best_accuracy": max(accuracies),
        "last10_accuracy": sum(tail) / len(tail),
        "per_class": last["per_class"],
        "per_device": devices
        and {"mean": sum(devices) / len(devices), "worst": min(devices), "best": max(devices)},
        **({"worst_device": last["worst_device"]} if "worst_device" in last else {}),
        "steps": last["step"],
        "rounds": last["round"],
        "examples_seen": last["examples_seen"],
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "bytes_down": sum(row["bytes_down"] for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
    }


__all__ = ["Progress", "Round", "cohort", "drive", "ranking", "run", "total_rounds"]
