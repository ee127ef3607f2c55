"""The loop: everything that runs on the coordinator, in order.

broadcast the state -> the cohort answers -> its updates combined -> one server step -> evaluate -> write down
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise import randomness, records
from edgewise.algorithms import Combined
from edgewise.assemble import Parts, assemble
from edgewise.broadcast import guide_bytes
from edgewise.config import Config, read_toml
from edgewise.data import Dataset
from edgewise.device import DIVERGED, Reply, Task
from edgewise.diagnosis import Probed, Watch
from edgewise.engines import Engine, first
from edgewise.errors import Diverged, EdgewiseError
from edgewise.judgement import measured
from edgewise.memories import Note
from edgewise.pacing import local_steps, paced
from edgewise.progress import Progress
from edgewise.reconcile import reconcile
from edgewise.records import Checkpoint, Records
from edgewise.summary import finish
from edgewise.vector import State

CHECKPOINT_SECONDS = 15.0


@dataclass
class _Got:
    """What came back in a round, device by device; the updates themselves are in the mean."""

    devices: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    examples: int = 0
    steps: dict[int, float] = field(default_factory=dict)  # examples of devices that took so many

    def note(self, reply: Reply, batch: int) -> None:
        steps = reply.examples // (batch * len(reply.devices))
        self.steps[steps] = self.steps.get(steps, 0.0) + reply.examples
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
    evaluated: str | None = None  # what accuracy is of, where it is not the state after the round
    accuracy: float | None = None
    loss: float | None = None
    per_class: tuple[float | None, ...] | None = None
    worst_device: float | None = None  # the lowest accuracy of a device on its own held-out examples
    # How far the devices' updates disagree, and what averaging them mends: docs/drift.md.
    drift_cosine: float | None = None
    drift_diversity: float | None = None
    forgetting: float | None = None
    forgetting_per_class: tuple[float | None, ...] | None = None
    probe: Probed | None = None

    def row(self) -> dict[str, Any]:
        row = {name: value for name, value in asdict(self).items() if value is not None}
        if "probe" in row:
            row["probe"] = {name: value for name, value in row["probe"].items() if value is not None}
        return row


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
    every = paced(config, examples).algorithm.sync_every
    return math.ceil(local_steps(config, examples) / every)


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
    """Play every round that is left, then finish; or write down that training diverged."""
    try:
        yield from _rounds(parts, engine, progress, book, checkpoint_seconds)
    except Diverged as error:
        book.diverged(str(error))
        raise
    finish(parts, progress.model, book.folder)


def _rounds(
    parts: Parts, engine: Engine, progress: Progress, book: Records, checkpoint_seconds: float
) -> Generator[Round]:
    """Play every round that is left. What was yielded is committed when the caller stops."""
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


def _round(parts: Parts, engine: Engine, progress: Progress, folder: Path | None = None) -> Round:
    """One round: changes `progress` and the engine's memories. `folder`: where updates may lie meanwhile."""
    config, number = parts.config, progress.round + 1
    began = time.monotonic()
    layout = parts.model.layout
    asked = list(engine.choose(number, ranking(config, number), config.cohort_size))
    task = progress.task(parts)
    due = _due(config, number, parts.rounds)
    watch = parts.watching.round(number, task.state, cohort(config, number) if due else ())
    got, mean = _gather(parts, engine.ask(task, asked), task, watch, folder)
    drift = watch.drifted(mean)
    beside = guide_bytes(task.guide, config.codec_down, layout)
    down = [progress.way.bytes_each(device) + beside for device in asked]
    share = min(1.0, len(got.devices) / config.devices)
    _step(parts, progress, Combined(mean, task.factor, got.steps, share))
    progress.round = number
    progress.average(config.ema)
    progress.examples += got.examples
    progress.way.deliver(asked)
    engine.memories.commit(got.devices)
    parts.model.check()
    sgd = config.algorithm.sgd
    row = Round(
        round=number,
        step=progress.done(parts),
        examples_seen=progress.examples,
        lr=sgd.lr * sgd.lr_scale * task.factor,
        train_loss=sum(got.losses) / len(got.losses),
        bytes_up=sum(got.bytes),
        bytes_down=sum(down),
        bytes_up_each=_each(got.bytes),
        bytes_down_each=_each(down),
        seconds=round(time.monotonic() - began - watch.seconds, 4),
        missing=sorted(set(asked) - set(got.devices)) or None,
        **drift,
    )
    return _evaluated(row, parts, progress, engine, task, watch) if due else row


def _gather(
    parts: Parts, replies: Iterable[Reply], task: Task, watch: Watch, folder: Path | None
) -> tuple[_Got, State]:
    """The round's replies, and what their updates come to."""
    config, got = parts.config, _Got()
    gathering = config.aggregate.start(task.state, folder)
    for reply in replies:
        _check_losses(task.round, reply.devices, reply.losses)
        update = config.codec.decode(reply.payload, parts.model.layout, parts.model.params.dtype)
        if not config.codec.lossless:  # what a codec makes of zeros may be something else
            for stretch in (parts.model.layout.frozen, parts.model.layout.local):
                update[stretch] = 0
        sent = _on(task.state, update, reply.buffers)
        gathering.add(sent, weight=reply.examples)
        watch.add(reply.devices, sent, reply.examples)
        got.note(reply, config.batch)
    watch.look_back()
    return got, gathering.value()


def _step(parts: Parts, progress: Progress, combined: Combined) -> None:
    """The server's step. What is the devices' own, or fixed, stays: no decay, no rounding of a mean."""
    layout = parts.model.layout
    local, fixed = progress.server.state.local(layout), progress.frozen(parts)
    buffers = progress.server.state.buffers
    progress.server = parts.terms.algorithm.step(progress.server, combined, layout)
    progress.server.state.settle(layout, local)
    if fixed:
        progress.server.state.buffers.copy_(buffers)


def _evaluated(
    row: Round, parts: Parts, progress: Progress, engine: Engine, task: Task, watch: Watch
) -> Round:
    """The round with how good the state is after it."""
    _check_state(progress)
    return replace(row, **measured(parts, progress, engine, task, watch))


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
            raise Diverged(f"round {round}, device {device}: the loss is {loss}; {DIVERGED}")


def _check_state(progress: Progress) -> None:
    states = [state for state in (progress.server.state, progress.ema) if state is not None]
    if not all(bool(torch.isfinite(t).all()) for state in states for t in (state.params, state.buffers)):
        raise Diverged(f"round {progress.round}: the model is no longer finite; {DIVERGED}")


def _due(config: Config, number: int, rounds: int) -> bool:
    return number == rounds or bool(config.eval_every and number % config.eval_every == 0)


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


__all__ = ["Progress", "Round", "cohort", "drive", "ranking", "run", "total_rounds"]
