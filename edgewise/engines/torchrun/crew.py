"""Where ranks come from (torchrun started them, or this process hires them), how they meet and part."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from edgewise import hire
from edgewise.config import Config
from edgewise.engines.torchrun.group import Group, Lost, enter, enter_as_told, listen, reach
from edgewise.engines.torchrun.lead import Ranks
from edgewise.errors import EdgewiseError
from edgewise.hire import Hired
from edgewise.models.norms import BatchSync

if TYPE_CHECKING:
    from edgewise.assemble import Parts

GOES_ON = "--resume goes on from what was committed"


class Crew:
    """The ranks of a run. `group`: None until they have met, and where this process is the only one."""

    def __init__(self, group: Group | None = None, hired: Hired | None = None) -> None:
        self.group, self.hired = group, hired

    @classmethod
    def of(cls, config: Config, hired: Hired | None = None) -> Crew:
        """Of torchrun, if it started this process; else to be hired, of whom some may wait already."""
        if hire.launched() is None:
            return cls(hired=hired)
        crew = cls.launched()
        assert crew.group is not None
        if config.processes not in (None, "auto", size := str(crew.group.size)):
            crew.close()
            raise EdgewiseError(f"processes: torchrun started {size}, not {config.processes}; leave it out")
        return crew

    @classmethod
    def launched(cls) -> Crew:
        """Of torchrun, which started this process."""
        return cls(enter_as_told())

    @property
    def rank(self) -> int:
        return 0 if self.group is None else self.group.rank

    def prepare(self, config: Config, simulate: Callable[[Config], Parts]) -> Parts:
        """The run's parts, on rank 0, with the number of ranks decided; those who are needed have met."""
        if self.group is not None:
            return simulate(replace(config, processes=str(self.group.size)))
        asked = config.processes or "auto"
        ranks = self._count(config, asked)
        if ranks == 1:
            self._dismiss()
            return simulate(replace(config, processes="1"))
        store = self._call(config, ranks)
        parts = simulate(replace(config, processes=str(ranks)))
        group = self._meet(store, ranks)
        if asked == "auto" and not _pays(group, parts):
            self._dismiss()
            return replace(parts, config=replace(parts.config, processes="1"))
        return parts

    def _count(self, config: Config, asked: str) -> int:
        most = config.cohort_size
        if config.accelerator != "cpu" and torch.cuda.is_available():
            most = min(most, torch.cuda.device_count())
        if asked == "auto" and isinstance(config.norm, BatchSync):
            return 1  # whose statistics are of all devices at once
        return hire.count(asked, most)

    def _call(self, config: Config, ranks: int) -> TCPStore:
        """Tell so many processes what they are for."""
        if self.hired is not None:
            self.hired.keep(ranks)
        if self.hired is None or self.hired.ranks < ranks:
            self.close()
            self.hired = Hired(ranks)
        store = listen(ranks)
        self.hired.tell({"size": ranks, "port": store.port, "settings": config.flat()})
        return store

    def _meet(self, store: TCPStore, ranks: int) -> Group:
        assert self.hired is not None
        expected = [_here(rank) for rank in range(1, ranks)]
        while not store.check(expected):
            if fallen := self.hired.fallen(look=0):
                raise EdgewiseError(f"{fallen} before the run began")
            time.sleep(0.005)
        self.group = enter(0, ranks, store)
        return self.group

    def _dismiss(self) -> None:
        self.close()
        self.group = self.hired = None

    def explained(self, error: Lost) -> EdgewiseError:
        """Who is gone, where this process can know."""
        fallen = self.hired.fallen() if self.hired is not None else ""
        return EdgewiseError(f"{fallen}; {GOES_ON}") if fallen else error

    def close(self) -> None:
        """Send the others home; those that do not listen are ended."""
        whole = self.group is not None and self.group.whole
        if self.group is not None:
            self.group.close()
        if self.hired is not None:
            self.hired.close(patient=whole)


def _pays(group: Group, parts: Parts) -> bool:
    with closing(Ranks(group, parts)) as ranks:
        return ranks.cost().pays(parts.rounds)


def join(rank: int, size: int, port: int) -> Crew:
    """The crew of one who was hired, as its rank."""
    store = reach(port, size)
    store.set(_here(rank), "")
    return Crew(enter(rank, size, store))


def _here(rank: int) -> str:
    return f"here/{rank}"
