"""Where a run stands on the coordinator, and how that gets into a checkpoint and out again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewise.algorithms.base import Server
from edgewise.assemble import Parts
from edgewise.broadcast import Broadcast, broadcast
from edgewise.config import Config
from edgewise.device import Task
from edgewise.engines import Engine
from edgewise.errors import EdgewiseError
from edgewise.memories import Note
from edgewise.models.norms import BatchFrozen
from edgewise.reconcile import agree
from edgewise.records import Checkpoint
from edgewise.vector import State

TENSORS = ("params", "buffers")  # of a checkpoint
EMA = "ema/"  # and the same tensors of the mean over rounds
SERVER = "server/"  # and the algorithm's vectors
BROADCAST = "broadcast/"  # and the tensors of the way down


@dataclass
class Progress:
    """Where a run stands on the coordinator: all that a checkpoint holds beside the devices' memories."""

    server: Server
    way: Broadcast
    round: int = 0
    examples: int = 0  # seen by all devices together
    note: dict[str, Any] | None = None  # the schedule's
    best: list[float | None] = field(default_factory=list)  # recall of each class so far
    ema: State | None = None  # the mean of the states after rounds so far, where the run takes one

    @classmethod
    def start(cls, parts: Parts) -> Progress:
        config = parts.config
        server = parts.terms.algorithm.start(parts.model.read())
        return cls(server, broadcast(config.codec_down, parts.model.layout, config.seed))

    @property
    def model(self) -> State:
        """What is evaluated and saved: the mean over rounds where there is one, else the state itself."""
        return self.server.state if self.ema is None else self.ema

    def average(self, decay: float) -> None:
        """Take the state after round `self.round` into the mean over rounds, if `decay` is above 0.

        Polyak & Juditsky 1992, with exponential weights: the state of round i of r has decay^(r - i). The
        weights are made to add up to 1 as in Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980,
        section 3), so the initial state is not in it. Buffers are averaged alike.
        """
        if not decay:
            return
        state = self.server.state
        if self.ema is None:
            self.ema = state.clone()
            return
        share = (1 - decay) / (1 - decay**self.round)
        self.ema.params.lerp_(state.params, share)
        self.ema.buffers.lerp_(state.buffers, share)

    def done(self, parts: Parts) -> int:
        """Steps that each device has taken, or been asked for, up to here."""
        return min(self.round * parts.config.algorithm.sync_every, parts.steps)

    def frozen(self, parts: Parts) -> bool:
        """Whether the statistics of batch norms are fixed in the next round."""
        norm = parts.config.norm
        return isinstance(norm, BatchFrozen) and self.done(parts) >= norm.after * parts.steps

    def task(self, parts: Parts) -> Task:
        """What the devices of the next round are asked; the way down begins it."""
        algorithm, done, number = parts.terms.algorithm, self.done(parts), self.round + 1
        steps = min(algorithm.sync_every, parts.steps - done)
        self.server.state.buffers[parts.model.layout.switches] = float(self.frozen(parts))
        factor = parts.schedule.factor(done / parts.steps, self.note or {})
        state = self.way.announce(number, algorithm.offer(self.server))
        return Task(number, steps, factor, state, self.way, algorithm.guide(self.server))

    def checkpoint(self, parts: Parts, engine: Engine) -> Checkpoint:
        state = self.server.state
        tensors = dict(zip(TENSORS, (state.params, state.buffers), strict=True))
        tensors |= {f"{SERVER}{name}": vector for name, vector in self.server.vectors.items()}
        if self.ema is not None:
            mean = (self.ema.params, self.ema.buffers)
            tensors |= {f"{EMA}{name}": tensor for name, tensor in zip(TENSORS, mean, strict=True)}
        sent, way = self.way.save()
        tensors |= {f"{BROADCAST}{name}": tensor for name, tensor in sent.items()}
        note = {
            "round": self.round,
            "examples": self.examples,
            "schedule": self.note or {},
            "best": self.best,
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
            params, buffers = (tensors[name] for name in TENSORS)
            server = parts.terms.algorithm.start(State(params, buffers))
            vectors = {name: tensors[f"{SERVER}{name}"] for name in server.vectors}
            ema = State(*(tensors[f"{EMA}{name}"] for name in TENSORS)) if parts.config.ema else None
            round, schedule, layout = note["round"], note["schedule"], note["layout"]
            examples = note["examples"]
            # config.toml may have been edited since.
            agree(str(path), Config.of(note["settings"]).flat(), parts.config.flat())
            memories, way, best = note["memories"], note["broadcast"], note["best"]
        except KeyError as error:
            raise EdgewiseError(f"{path}: the checkpoint lacks {error}") from None
        if layout != model.layout.digest:
            raise EdgewiseError(f"{path}: the checkpoint belongs to another model")
        progress = cls.start(parts)
        sent = {n.removeprefix(BROADCAST): t for n, t in tensors.items() if n.startswith(BROADCAST)}
        progress.way.restore(sent, way)
        progress.server = Server(server.state, vectors)
        progress.round, progress.examples, progress.note = round, examples, schedule
        progress.best, progress.ema = best, ema
        return progress, memories
