"""Ranks beyond rank 0: they do what it says, with devices of their own, until it sends them home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgewise.config import Config
from edgewise.device import Task
from edgewise.engines.torchrun import lead
from edgewise.engines.torchrun.group import LEAVE, Group, Words
from edgewise.engines.torchrun.share import Share, attempted
from edgewise.errors import EdgewiseError
from edgewise.vector import State

if TYPE_CHECKING:
    from edgewise.assemble import Parts


def follow(group: Group, prepare: Callable[[Config], Parts]) -> None:
    """Take part in runs until rank 0 has no more; `Lost` if it is gone. `prepare` makes a run's parts."""
    share: Share | None = None
    rehearsed: dict[str, Parts] = {}  # by the config: a run may be played in earnest after its rehearsal
    while (words := group.hear())["do"] != LEAVE:
        if words["do"] == lead.PLAY:
            share = None  # the last run's goes first
            told, share = _begun(group, prepare, words, rehearsed)
            group.report(told)
            continue
        assert share is not None  # rank 0 asks for more only where all could begin
        if words["taken"]:
            share.taken()
        if words["swept"]:
            share.memories.sweep()
        ANSWERS[words["do"]](share, words)


def _begun(
    group: Group, prepare: Callable[[Config], Parts], words: Words, rehearsed: dict[str, Parts]
) -> tuple[Words, Share | None]:
    made: list[Share] = []

    def begin() -> Words:
        folder = None if words["folder"] is None else Path(words["folder"])
        config = Config.of(words["config"])
        try:
            parts = rehearsed.pop(config.toml(), None) or prepare(config)
            made.append(Share(group, parts, words["note"], folder))
        except EdgewiseError as error:
            raise EdgewiseError(f"rank {group.rank}: {error}") from None
        if folder is None:
            rehearsed[config.toml()] = parts
        return {"mark": made[0].mark}

    return attempted(group.rank, begin), made[0] if made else None


def _task(share: Share, words: Words) -> Task:
    """What rank 0 asks of devices, its vectors received."""
    model = share.parts.model
    state = State(torch.empty_like(model.params), torch.empty_like(model.buffers))
    guide = torch.empty_like(model.params) if words["guided"] else None
    share.group.share(state.params, state.buffers, *(() if guide is None else (guide,)))
    return Task(words["round"], words["steps"], words["factor"], state, guide=guide)


def _cohort(share: Share, words: Words) -> list[int]:
    asked: list[int] | None = words["cohort"]
    return list(range(share.parts.config.devices)) if asked is None else asked


def _rehearse(share: Share, words: Words) -> None:
    task = _task(share, words)
    told, vector = share.rehearsed(task)
    share.group.report(told)
    _task(share, words)
    share.group.pool(vector)


def _train(share: Share, words: Words) -> None:
    told, vector = share.train(_task(share, words), _cohort(share, words))
    share.group.report(told)
    share.group.pool(vector)


def _answer(share: Share, words: Words) -> None:
    told, frames = share.answers(_task(share, words), _cohort(share, words))
    share.group.report(told)
    if told.get("lengths"):
        share.group.send(b"".join(frames))


def _try(share: Share, words: Words) -> None:
    told, table = share.tried(_task(share, words))
    share.group.report(told)
    share.group.pool(table)


def _save(share: Share, words: Words) -> None:
    share.group.report(share.save())


def _end(share: Share, words: Words) -> None:
    """The next words are of another run, or to leave."""


ANSWERS = {
    lead.REHEARSE: _rehearse,
    lead.TRAIN: _train,
    lead.ANSWER: _answer,
    lead.TRY: _try,
    lead.SAVE: _save,
    lead.END: _end,
}
