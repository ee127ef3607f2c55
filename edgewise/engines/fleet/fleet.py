"""The engine whose devices are real: it asks them through the courier, and yields what lies in the journal.

A round is a function of the journal. One that was closed before the coordinator died is played again from the
spool, without a word to any device; the one that was open goes on with what had been taken.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch

from edgewise import broadcast, wire
from edgewise.codecs import Codec, Sending
from edgewise.device import Reply, Task, Terms
from edgewise.engines.fleet import scores
from edgewise.engines.fleet.courier import Courier
from edgewise.engines.fleet.host import Host
from edgewise.engines.fleet.journal import Journal, Opened
from edgewise.engines.fleet.messages import EVALUATE, TRAIN
from edgewise.engines.fleet.policy import Policy
from edgewise.engines.fleet.roster import Member, members
from edgewise.engines.fleet.screen import KEPT, Screen
from edgewise.engines.fleet.spool import Spool
from edgewise.engines.fleet.window import Frames, Taken, Window
from edgewise.evaluate import Evaluation
from edgewise.vector import Layout, State

CHECKED = 1.0  # seconds between two looks at whether it still makes sense to wait
PATIENCE = 30.0  # seconds between two words about devices that are waited for
log = logging.getLogger("edgewise.coordinator")


@dataclass(frozen=True)
class Run:
    """What a fleet's engine knows of its run. `text`: config.toml; `down`: the codec of the way down."""

    id: str
    text: str
    layout: Layout
    dtype: torch.dtype
    terms: Terms
    down: Codec
    batch: int
    shape: tuple[int, ...]
    classes: int
    rounds: int

    def plan(self, policy: Policy) -> dict[str, Any]:
        """What agents are told of it."""
        return {
            "run": self.id,
            "config": self.text,
            "shape": self.shape,
            "classes": self.classes,
            "layout": bytes.fromhex(self.layout.digest),
            "beat": policy.beat,
            "labels": policy.labels,
        }

    @property
    def longest(self) -> int:
        """Bytes of an update's frame at most."""
        return wire.length(self.terms.agreed.payload, self.terms.agreed.buffers)


class Kept:
    """Devices remember for themselves; here it is only noted how far the coordinator has come."""

    def __init__(self, run: Run, spool: Spool, courier: Courier, note: dict[str, Any] | None) -> None:
        self.run, self.spool, self.courier = run, spool, courier
        self.round = self.saved = note["round"] if note else 0
        spool.segment.resume(courier.journal.places(run.id, self.saved).result())
        self._sweep()  # the checkpoint may be the last thing that was written

    def commit(self, devices: Iterable[int]) -> None:
        self.round += 1
        self.courier.fault.reached("combined", self.round)

    def save(self) -> dict[str, Any]:
        self.courier.fault.reached("saving", self.round)
        self.saved = self.round
        return {"run": self.run.id, "round": self.round}

    def sweep(self) -> None:
        self._sweep()
        self.courier.fault.reached("swept", self.saved)

    def _sweep(self) -> None:
        self.spool.sweep(self.saved)
        if self.saved == self.run.rounds:
            self.spool.segment.clear()


class Fleet:
    """`note`: what `memories.save` returned for the checkpoint that the run goes on from."""

    def __init__(
        self, run: Run, journal: Journal, spool: Spool, policy: Policy, note: dict[str, Any] | None
    ) -> None:
        self.run, self.journal, self.spool, self.policy = run, journal, spool, policy
        norms = journal.norms(run.id, KEPT).result()
        screen = Screen(run.terms, run.layout, run.dtype, norms)
        self.courier = Courier(run.id, run.plan(policy), run.longest, journal, spool, screen)
        self.courier.revoked |= {one.id for one in members(journal).result() if one.revoked is not None}
        self.memories = Kept(run, spool, self.courier, note)
        self.host = Host()
        self._looked_up: tuple[int, Opened | None] = (0, None)  # a round, as the journal had it
        self._size = 0  # devices of its cohort, without those that are asked beside them
        self._reserve: Sequence[int] = ()  # whom it may ask, in order
        self.check: Callable[[], None] = lambda: None  # raises if what it needs has ended
        self.closing: Callable[[], None] = self.host.close

    @property
    def crowded(self) -> bool:
        return self.spool.crowded

    def choose(self, round: int, ranking: Sequence[int], size: int) -> Sequence[int]:
        """As the journal has it; else of the devices that are there, or all that the ranking names."""
        if not self._looked_up[0]:  # a close is not waited for where all is in, and may have died on its way
            self.journal.close_before(self.run.id, round)
        found, known = self.journal.round(self.run.id, round), members(self.journal)
        opened = found.result()
        self._looked_up, self._size, self._reserve = (round, opened), size, ranking
        if opened is not None and opened.asked:
            return opened.asked
        return self._wait(
            lambda there, known: self.policy.choose(_trusted(ranking, known), there, size),
            f"round {round}: {self.policy.needed(size)} of {size} devices are needed",
            known,
        )

    def ask(self, task: Task, cohort: list[int]) -> Iterator[Reply]:
        round, (looked_up, opened) = task.round, self._looked_up
        if looked_up != round:
            opened = self.journal.round(self.run.id, round).result()
        beside = self._beside()  # asked of the journal before what may fail: they would fail together
        opening: Future[None] | None = None
        if opened is None or not opened.asked:
            # Not waited for: the journal writes in the order in which it is asked.
            opening = self.journal.open_round(self.run.id, round, cohort)
            taken = {} if opened is None else opened.taken
            opened = Opened(tuple(cohort), False, {d: taken[d] for d in cohort if d in taken})
        self.courier.fault.reached("opened", round)
        if opened.closed or len(opened.taken) == len(opened.asked):
            yield from self._again(round, opened)
            return
        size = self._size or len(cohort)
        wanted = min(size, len(cohort))
        needed = min(self.policy.needed(size), wanted)
        window = Window(round, cohort, needed, wanted, self._training(task), beside)
        window.resume({device: Taken(digest) for device, digest in opened.taken.items()})
        self.host.soon(self.courier.begin, window, TRAIN, self._owed(task))
        for device in cohort:
            yield from self._replied(window, device)
        self._await(window, window.outcome)
        further = window.asked[len(cohort) :]
        cohort += further
        for device in further:
            yield from self._replied(window, device)
        if opening is not None and opening.exception() is not None:
            self.journal.open_round(self.run.id, round, cohort).result()  # its disk may have room again

    def _beside(self) -> Sequence[int]:
        """Whom a round may ask when too few are left of its cohort."""
        if self.policy.patient:
            return ()
        return _trusted(self._reserve, {member.id: member for member in members(self.journal).result()})

    def _replied(self, window: Window, device: int) -> Iterator[Reply]:
        taken = self._await(window, window.answers[device])
        if taken is not None:
            yield self._reply(window.round, device, taken)

    def _again(self, round: int, opened: Opened) -> Iterator[Reply]:
        """The replies of a round that had all it needs before the coordinator was started again."""
        if not opened.closed:  # all had come, and nobody was left to say so
            self.journal.close_round(self.run.id, round).result()
        for device in opened.asked:
            if device in opened.taken:
                yield self._reply(round, device, Taken(opened.taken[device]))

    def evaluate(self, task: Task) -> Evaluation | None:
        """On what devices hold out."""
        round = task.round
        found = self.journal.evaluation(self.run.id, round).result()
        if found is not None:
            return scores.read(found)
        able: list[int] = []

        def choose(there: set[int], known: dict[int, Member]) -> list[int] | None:
            able[:] = sorted(one.id for one in known.values() if one.trusted and one.tests)
            return _evaluators(able, there, self.policy.patient)

        what = f"round {round}: devices with test examples"
        asked = self._wait(choose, what, members(self.journal))
        if not asked:
            return None
        needed = self.policy.needed(len(asked))
        reserve = () if self.policy.patient else able
        window = Window(round, asked, needed, len(asked), self._evaluating(task), reserve)
        self.host.soon(self.courier.begin, window, EVALUATE, lambda held: 0)
        self._await(window, window.outcome)
        answers = [window.answers[device].result() for device in window.asked]
        told = [answer for answer in answers if answer is not None]
        result = scores.combine(told, self.run.classes, apart=self.run.layout.personal)
        self.journal.evaluated(self.run.id, round, scores.row(result)).result()
        self.courier.fault.reached("evaluated", round)
        self.courier.metrics.accuracy.set(result.accuracy)
        return result

    def labels(self) -> dict[int, Sequence[int]]:
        return {one.id: one.labels for one in members(self.journal).result() if one.labels}

    def close(self) -> None:
        """Send the agents home; for good if the run has come to its end."""
        finished = self.memories.saved == self.run.rounds
        try:
            self.host.call(self.courier.end(finished))
        finally:  # a signal may come while it waits
            self.closing()

    # ---- waiting ----

    def _wait(
        self,
        choose: Callable[[set[int], dict[int, Member]], list[int] | None],
        what: str,
        known: Future[list[Member]],
    ) -> list[int]:
        """Wait until enough devices are there, and say so now and then."""
        told = time.monotonic()
        while True:
            began = time.monotonic()
            there = self.courier.present()
            chosen = choose(there, {member.id: member for member in known.result()})
            if chosen is not None:
                return chosen
            self.check()
            if time.monotonic() - told > PATIENCE:
                told = time.monotonic()
                log.warning("waiting", extra={"words": f"{what}; here: {len(there)}"})
            time.sleep(max(0.02, 10 * (time.monotonic() - began)))  # a look at thousands takes its time
            known = members(self.journal)

    def _await(self, window: Window, answer: Future[Any]) -> Any:
        """An answer, and now and then a word about whom it is that the round waits for."""
        began = time.monotonic()
        while True:
            try:
                return answer.result(CHECKED)
            except TimeoutError:
                self.check()
                missing = sorted(window.missing())
                if not missing or time.monotonic() - began < PATIENCE:
                    continue
                began = time.monotonic()
                words = f"devices {missing[:20]}{' ...' if len(missing) > 20 else ''} have not answered"
                log.warning("waiting", extra={"round": window.round, "words": words})

    # ---- what travels ----

    def _owed(self, task: Task) -> Callable[[int], int]:
        """How many examples the update of a device that holds so many stands for."""
        steps, batch = self.run.terms.algorithm.local_steps, self.run.batch
        return lambda held: steps(task.steps, held, batch) * batch

    def _reply(self, round: int, device: int, taken: Taken) -> Reply:
        if taken.reply is not None:
            return taken.reply
        content = self.spool.view(round, device, taken.digest)
        return self.courier.screen.open(content, device, round, summed=True)  # before it was taken

    def _training(self, task: Task) -> Callable[[int, int], Frames]:
        """What a device is sent to train: made once for all that hold the same."""
        way, made = task.way, dict[int, Frames]()
        assert way is not None
        frame, marks = self._frame(task, task.state), broadcast.marks(self.run.down)
        beside = self._guide(task, frame)

        def load(device: int, held: int) -> Frames:
            way.believe(device, held)
            missed = way.missed(device)
            if missed not in made:
                made[missed] = [*broadcast.frames(way, device, frame, marks), *beside]
            return made[missed]

        return load

    def _guide(self, task: Task, frame: wire.Frame) -> Frames:
        """The frame of what the algorithm sends beside the state, if it does."""
        if task.guide is None:
            return []
        payload = broadcast.guide_payload(task.guide, self.run.down, self.run.layout)
        mark = broadcast.marks(self.run.down)[wire.Kind.STATE]
        guide = replace(frame, kind=wire.Kind.GUIDE, codec=mark, payload=payload, buffers=b"")
        return [wire.pieces(guide)]

    def _evaluating(self, task: Task) -> Callable[[int, int], Frames]:
        """The whole state, whatever a device holds: what it holds may be a rounded one."""
        full = broadcast.full(self.run.down)
        payload = full.encode(task.state.params, self.run.layout, {}, Sending())[0]
        mark = broadcast.marks(self.run.down)[wire.Kind.STATE]
        frames = [wire.pieces(replace(self._frame(task, task.state), payload=payload, codec=mark))]
        return lambda device, held: frames

    def _frame(self, task: Task, state: State) -> wire.Frame:
        return wire.Frame(
            kind=wire.Kind.STATE,
            layout=self.run.terms.agreed.layout,
            codec=bytes(8),
            round=task.round,
            device=wire.EVERYONE,
            value=task.factor,
            count=task.steps,
            payload=b"",
            buffers=state.buffers.detach().cpu().numpy().tobytes(),
        )


def _trusted(ranking: Sequence[int], known: dict[int, Member]) -> list[int]:
    """The ranking without devices that are not to be asked, and with those that joined beyond it."""
    further = sorted(device for device in known if device >= len(ranking))
    return [d for d in (*ranking, *further) if d not in known or known[d].trusted]


def _evaluators(able: list[int], there: set[int], patient: bool) -> list[int] | None:
    """The devices that evaluate: all that can, or if it may not take for ever, of these who are there.

    None while nobody is.
    """
    chosen = able if patient else [device for device in able if device in there]
    return chosen if chosen or (there and not able) else None
