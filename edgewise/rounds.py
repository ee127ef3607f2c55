"""The loop: everything that runs on the coordinator, in order.

broadcast the state -> the cohort answers -> its updates combined -> one server step -> evaluate -> write down
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgewise import records
from edgewise.algorithms import Combined
from edgewise.assemble import Parts, assemble
from edgewise.broadcast import guide_bytes
from edgewise.cohorts import cohort, ranking
from edgewise.config import Config, read_toml
from edgewise.data import Dataset
from edgewise.device import DIVERGED, Task
from edgewise.diagnosis import Probed, Watch
from edgewise.engines import Engine
from edgewise.errors import Diverged, EdgewiseError
from edgewise.intake import Intake
from edgewise.judgement import measured
from edgewise.memories import Note
from edgewise.pacing import evaluated, local_steps, paced
from edgewise.progress import Progress
from edgewise.reconcile import reconcile
from edgewise.records import Checkpoint, Records
from edgewise.summary import finish

if TYPE_CHECKING:
    from edgewise.engines.torchrun.crew import Crew

CHECKPOINT_SECONDS = 15.0


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

    With the engine torchrun, rank 0 does all of this, and other ranks' devices answer it: there, nothing is
    yielded.
    """

    def simulate(config: Config) -> Parts:
        return assemble(config, dataset, dealt)

    def reach(parts: Parts, note: Note | None) -> Engine:
        return parts.engine(note, Path(out))

    if config.engine == "torchrun":
        from edgewise.engines.torchrun.crew import Crew  # torch.distributed is imported where it is used

        crew = Crew.of(config)
        if crew.group is None and dataset is not None:
            raise EdgewiseError(
                "processes: other processes know of no dataset that was given in Python; name it "
                "(data = package.module:function), or start the script with torchrun"
            )
        return over_ranks(crew, config, Path(out), simulate, resume, checkpoint_seconds)
    return drive(config, Path(out), simulate, reach, resume, checkpoint_seconds)


def over_ranks(
    crew: Crew,
    config: Config,
    folder: Path,
    simulate: Callable[[Config], Parts],
    resume: bool,
    checkpoint_seconds: float,
) -> Generator[Round]:
    """`run` on a crew that is known. `simulate` makes a run's parts, on every rank."""
    from edgewise.engines.torchrun.follow import follow
    from edgewise.engines.torchrun.group import Lost
    from edgewise.engines.torchrun.lead import Ranks

    def reach(parts: Parts, note: Note | None) -> Engine:
        return Ranks(crew.group, parts, note, folder) if crew.group else parts.engine(note, folder)

    with closing(crew):
        if crew.rank and crew.group:
            follow(crew.group, simulate)
            return
        try:
            yield from drive(
                config,
                folder,
                lambda config: crew.prepare(config, simulate),
                reach,
                resume,
                checkpoint_seconds,
            )
        except Lost as error:
            raise crew.explained(error) from None


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
    due = evaluated(config, number, parts.rounds)
    watch = parts.watching.round(number, task.state, cohort(config, number) if due else ())
    intake = Intake(config, layout, task, watch, folder)
    intake.take(engine.ask(task, asked))
    watch.look_back()
    got, mean = intake.tally, intake.gathering.value()
    drift = watch.drifted(mean)
    beside = guide_bytes(task.guide, config.codec_down, layout)
    down = [progress.way.bytes_each(device) + beside for device in asked]
    share = min(1.0, len(got.devices) / config.devices)
    _step(parts, progress, Combined(mean, task.factor, got.steps(config.batch), share))
    progress.round = number
    progress.average(config.ema)
    progress.examples += sum(got.examples)
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


def _check_state(progress: Progress) -> None:
    states = [state for state in (progress.server.state, progress.ema) if state is not None]
    if not all(bool(torch.isfinite(t).all()) for state in states for t in (state.params, state.buffers)):
        raise Diverged(f"round {progress.round}: the model is no longer finite; {DIVERGED}")


def _each(lengths: list[int]) -> int | list[int]:
    """One number where all are the same, which is nearly always."""
    return lengths[0] if len(set(lengths)) == 1 else lengths


def _commit(parts: Parts, engine: Engine, progress: Progress, book: Records) -> None:
    _check_state(progress)
    book.checkpoint(progress.checkpoint(parts, engine))
    engine.memories.sweep()


__all__ = ["Progress", "Round", "cohort", "drive", "ranking", "run", "total_rounds"]
