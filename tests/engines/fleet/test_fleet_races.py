"""Orders of events that a fleet of processes comes to by chance only, made to happen here."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgewise import broadcast, data, wire
from edgewise.config import Config
from edgewise.data.partition import Iid
from edgewise.deploy import Share, assemble_coordinator, equip
from edgewise.device import Memory
from edgewise.engines.fleet import referee
from edgewise.engines.fleet.courier import Courier
from edgewise.engines.fleet.digest import digest_of
from edgewise.engines.fleet.duty import Training
from edgewise.engines.fleet.fleet import Fleet, Kept, Run
from edgewise.engines.fleet.journal import Entry, Journal, JournalError, Opened
from edgewise.engines.fleet.line import Line
from edgewise.engines.fleet.messages import TRAIN, down
from edgewise.engines.fleet.policy import Policy
from edgewise.engines.fleet.screen import Screen
from edgewise.engines.fleet.session import Session
from edgewise.engines.fleet.spool import Arrival, DiskError, Spool
from edgewise.engines.fleet.window import Window
from edgewise.errors import EdgewiseError

CONFIG = Config.of(
    {
        **{"data": "digits", "devices": 2, "width": 2, "steps": 3, "batch": 4, "accelerator": "cpu"},
        **{"codec_down": "topk:0.1", "partition": "iid"},
    }
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


@pytest.fixture(scope="module")
def parts() -> Any:
    return assemble_coordinator(CONFIG, data.load("digits"))


@pytest.fixture
def run(parts: Any, tmp_path: Path) -> Run:
    return parts.fleet_run(tmp_path)


@pytest.fixture
def courier(run: Run, journal: Journal, tmp_path: Path) -> Courier:
    screen = Screen(run.terms, run.layout, run.dtype)
    return Courier(run.id, run.plan(Policy()), run.longest, journal, Spool(tmp_path / "spool"), screen)


def arrival(courier: Courier, device: int) -> Arrival:
    digest = digest_of([b"update of %d" % device])
    return Arrival(courier.spool, 1, device, digest, 10)


def session(courier: Courier, device: int) -> Session:
    return Session(courier, SimpleNamespace(id=device), SimpleNamespace(write=None))  # type: ignore[arg-type]


def test_a_round_with_enough_answers_takes_no_more_from_that_moment_on(courier: Courier) -> None:
    async def play() -> None:
        window = Window(1, (0, 1), 1, 1, lambda device, held: ({}, []))
        courier.journal.open_round(courier.run, 1, (0, 1))
        courier.begin(window, TRAIN, lambda held: 4)
        assert await courier.take(session(courier, 0), arrival(courier, 0), (None, 1.0))
        assert not courier.training(1, 1)  # before the loop had a chance to close it
        assert not await courier.take(session(courier, 1), arrival(courier, 1), (None, 1.0))
        await asyncio.wrap_future(window.outcome)

    asyncio.run(play())
    digest = arrival(courier, 0).digest
    assert courier.journal.round(courier.run, 1).result() == Opened((0, 1), True, {0: digest})


def come(courier: Courier, *devices: int) -> None:
    for device in devices:
        courier.sessions[device] = session(courier, device)
        courier.sessions[device].ready = True
        courier.arrived(courier.sessions[device], coming=False)


@pytest.mark.parametrize("waiting", [True, False], ids=["is there already", "comes later"])
def test_a_round_that_lost_a_device_it_needs_asks_another_one(courier: Courier, waiting: bool) -> None:
    courier.referee.pace.note(0.01)

    async def play() -> Window:
        come(courier, *range(3 if waiting else 2))
        window = Window(1, (0, 1), 2, 2, lambda device, held: ({}, []), reserve=range(3))
        courier.journal.open_round(courier.run, 1, (0, 1))
        courier.begin(window, TRAIN, lambda held: 4)
        assert await courier.take(courier.sessions[0], arrival(courier, 0), (None, 1.0))
        await asyncio.sleep(0.1)
        assert window.asked == (0, 1)  # nobody is gone
        courier._gone(courier.sessions[1])
        if not waiting:
            await asyncio.sleep(0.1)
            come(courier, 2)
        while not courier.training(1, 2):
            await asyncio.sleep(0.01)
        assert (window.asked, window.doubt) == ((0, 1, 2), set())
        assert await courier.take(courier.sessions[2], arrival(courier, 2), (None, 1.0))
        await asyncio.wrap_future(window.outcome)
        return window

    window = asyncio.run(play())
    assert (window.taken, window.answers[1].result()) == ([0, 2], None)
    taken = {device: arrival(courier, device).digest for device in (0, 2)}
    assert courier.journal.round(courier.run, 1).result() == Opened((0, 1, 2), True, taken)


def test_a_round_whose_device_failed_asks_another_one_at_once(courier: Courier) -> None:
    async def play() -> Window:
        come(courier, 0, 1)
        window = Window(1, (0,), 1, 1, lambda device, held: ({}, []), reserve=range(2))
        courier.begin(window, TRAIN, lambda held: 4)
        courier.failed(courier.sessions[0], 1, "no memory")
        while not courier.training(1, 1):
            await asyncio.sleep(0.01)
        assert await courier.take(courier.sessions[1], arrival(courier, 1), (None, 1.0))
        await asyncio.wrap_future(window.outcome)
        return window

    assert asyncio.run(play()).taken == [1]


def short_round(courier: Courier) -> Window:
    """A round of three that needs all of them, open, with five devices there."""
    come(courier, *range(5))
    window = Window(1, (0, 1, 2), 3, 3, lambda device, held: [], reserve=range(5))
    courier.journal.open_round(courier.run, 1, (0, 1, 2))
    courier.begin(window, TRAIN, lambda held: 4)
    return window


def test_devices_that_fail_together_are_replaced_once_each(courier: Courier) -> None:
    async def play() -> Window:
        window = short_round(courier)
        for device in (0, 1):  # the second before the journal has heard of the first one's substitute
            courier.failed(courier.sessions[device], 1, "no memory")
        for device in (2, 3, 4):
            while not courier.training(1, device):
                await asyncio.sleep(0.001)
            assert await courier.take(courier.sessions[device], arrival(courier, device), (None, 1.0))
        await asyncio.wrap_future(window.outcome)
        return window

    window = asyncio.run(play())
    assert window.asked == (0, 1, 2, 3, 4) and window.taken == [2, 3, 4]
    opened = courier.journal.round(courier.run, 1).result()
    assert opened is not None and opened.asked == window.asked


def test_a_look_that_comes_while_an_update_is_journaled_comes_again(courier: Courier) -> None:
    courier.referee.pace.note(0.01)

    async def play() -> None:
        window = short_round(courier)
        window.doubt.add(2)
        courier._gone(courier.sessions[1])
        await asyncio.sleep(0.2)
        assert window.asked == (0, 1, 2)
        window.doubt.discard(2)
        while not courier.training(1, 3):
            await asyncio.sleep(0.001)

    asyncio.run(play())


def test_a_journal_that_refuses_further_devices_is_asked_again(
    courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(referee, "RETRY", 0.05)

    async def play() -> None:
        window = short_round(courier)
        open_round = courier.journal.open_round

        def refuse(run: str, number: int, asked: Any) -> Any:
            monkeypatch.setattr(courier.journal, "open_round", open_round)
            refused: Future[None] = Future()
            refused.set_exception(JournalError("full"))
            return refused

        monkeypatch.setattr(courier.journal, "open_round", refuse)
        courier.failed(courier.sessions[0], 1, "no memory")
        while window.doubt:
            await asyncio.sleep(0.001)
        for device in (1, 2):  # nobody is left, and the round is not given up
            courier.failed(courier.sessions[device], 1, "no memory")
        while not courier.training(1, 3):
            assert not window.closed
            await asyncio.sleep(0.001)

    asyncio.run(play())


def test_a_device_that_is_revoked_while_it_is_called_in_is_not_waited_for(courier: Courier) -> None:
    async def play() -> Window:
        window = short_round(courier)
        courier.failed(courier.sessions[0], 1, "no memory")
        courier.expel(3, "revoked")  # chosen, and not asked yet
        for device in (1, 2, 4):
            while not courier.training(1, device):
                await asyncio.sleep(0.001)
            assert await courier.take(courier.sessions[device], arrival(courier, device), (None, 1.0))
        await asyncio.wrap_future(window.outcome)
        return window

    window = asyncio.run(play())
    assert window.taken == [1, 2, 4] and "revoked" in window.failed[3]


def test_a_round_of_exactly_its_cohort_asks_nobody_else(courier: Courier) -> None:
    courier.referee.pace.note(0.01)

    async def play() -> None:
        come(courier, 0, 1, 2)
        window = Window(1, (0, 1), 2, 2, lambda device, held: ({}, []))
        courier.begin(window, TRAIN, lambda held: 4)
        courier._gone(courier.sessions[1])
        await asyncio.sleep(0.2)
        assert window.asked == (0, 1) and not window.closed

    asyncio.run(play())


def test_an_update_that_was_on_its_way_when_its_round_closed_is_late_and_written_down(
    courier: Courier,
) -> None:
    digests = {device: arrival(courier, device).digest for device in (0, 1)}

    async def play() -> None:
        window = Window(1, (0, 1), 1, 1, lambda device, held: ([],))
        courier.journal.open_round(courier.run, 1, (0, 1))
        courier.begin(window, TRAIN, lambda held: 4)
        assert await courier.take(session(courier, 0), arrival(courier, 0), (None, 1.0))
        await asyncio.wrap_future(window.outcome)
        assert not await session(courier, 0)._settle(1, digests[0])  # counts, and is told so
        assert not await session(courier, 1)._settle(1, digests[1])

    asyncio.run(play())
    found = courier.journal.ask(lambda db: db.execute("SELECT kind, round, device FROM events").fetchall())
    assert [row for row in found.result() if row[0] == "late"] == [("late", 1, 1)]


def test_an_update_that_comes_twice_at_once_counts_once(courier: Courier) -> None:
    async def play() -> Window:
        window = Window(1, (0, 1), 2, 2, lambda device, held: ({}, []))
        courier.begin(window, TRAIN, lambda held: 4)
        twice = [courier.take(session(courier, 0), arrival(courier, 0), (None, 1.0)) for _ in range(2)]
        assert await asyncio.gather(*twice) == [True, True]
        # And once it was taken.
        assert await courier.take(session(courier, 0), arrival(courier, 0), (None, 1.0))
        return window

    window = asyncio.run(play())
    assert window.taken == [0]
    assert not window.closed


def test_a_farewell_does_not_wait_for_an_agent_that_does_not_read() -> None:
    async def play() -> None:
        line = Line(down, lambda message: asyncio.sleep(1000))
        line.start()
        line.say(beat={"number": 1})
        line.say(farewell={"kind": 1, "reason": "the coordinator stops"})
        await asyncio.wait_for(line.flush(0.05), 10)
        line.end()

    asyncio.run(play())


def test_a_round_whose_updates_had_all_come_is_closed_by_the_next_coordinator(
    run: Run, journal: Journal, tmp_path: Path
) -> None:
    journal.open_round(run.id, 1, [0]).result()
    journal.take(run.id, Entry(1, 0, "00", 1, 1.0, 1.0)).result()
    fleet = Fleet(run, journal, Spool(tmp_path / "spool"), Policy(), None)
    try:
        with pytest.raises(EdgewiseError, match="the journal needs it"):  # no bytes were ever spooled here
            list(fleet.ask(SimpleNamespace(round=1), [0]))  # type: ignore[arg-type]
        opened = journal.round(run.id, 1).result()
        assert opened is not None and opened.closed
    finally:
        fleet.host.close()


def test_what_the_last_checkpoint_stands_on_is_swept_by_the_next_coordinator(
    run: Run, courier: Courier, tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "spool")
    for round in (2, 3):
        path = spool.file(round, 0, "00")
        path.parent.mkdir(parents=True)
        path.write_bytes(b"update")
    kept = Kept(run, spool, courier, {"run": run.id, "round": 2})
    assert not spool.file(2, 0, "00").exists()
    assert spool.file(3, 0, "00").exists()
    assert (kept.round, kept.saved) == (2, 2)


# ---- the spool ----


def written(spool: Spool, content: bytes, offset: int, digest: str, length: int) -> Arrival:
    one = Arrival(spool, 1, 0, digest, length, offset)
    one.write(content)
    return one


def test_a_part_that_did_not_outlive_a_loss_of_power_is_asked_for_again(tmp_path: Path) -> None:
    spool, content = Spool(tmp_path), b"0123456789"
    digest = digest_of([content])
    written(spool, content[:5], 0, digest, 10).close()
    spool.file(1, 0, digest).write_bytes(bytes(5))  # the length was on the disk, the bytes were not
    with pytest.raises(DiskError, match="what was here of it is damaged"):
        written(spool, content[5:], 5, digest, 10).finish()
    assert spool.arrived(1, 0, digest) == 0
    written(spool, content, 0, digest, 10).finish()
    assert spool.view(1, 0, digest) == content


def test_an_update_sent_whole_with_another_digest_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match="do not have the digest") as caught:
        written(Spool(tmp_path), b"0123456789", 0, "00" * 32, 10).finish()
    assert not isinstance(caught.value, DiskError)


# ---- a device that holds more than the coordinator has heard of ----


def test_a_device_skips_differences_that_it_holds_already(parts: Any, run: Run) -> None:
    digits = data.load("digits")
    plan = down(plan=run.plan(Policy())).plan

    def duty() -> Training:
        return Training(equip(plan, digits, 0, Share(Iid(), 2, CONFIG.seed), (), "cpu"))

    def sent(held: int) -> list[bytes]:
        way.believe(0, held)
        found = broadcast.frames(way, 0, replace(frame, round=way.round), broadcast.marks(run.down))
        return [b"".join(pieces) for pieces in found]

    way: Any = broadcast.broadcast(run.down, run.layout, CONFIG.seed)
    frame = wire.Frame(
        kind=wire.Kind.STATE,
        layout=run.terms.agreed.layout,
        codec=bytes(8),
        round=1,
        device=wire.EVERYONE,
        value=1.0,
        count=1,
        payload=b"",
        buffers=parts.model.read().buffers.numpy().tobytes(),
    )
    ours, others = duty(), duty()
    state = parts.model.read().clone()
    for round in (1, 2, 3):
        way.announce(round, state)
        if round < 3:
            for one in (ours, others):
                one.train(sent(one.held), Memory())
        state.params.add_(torch.linspace(-1, 1, len(state.params)) / round)
    assert len(sent(1)) == 2 and len(sent(2)) == 1
    assert ours.train(sent(1), Memory(2))[0] == others.train(sent(2), Memory(2))[0]
    with pytest.raises(wire.FrameError, match="earlier state than that of round 3"):
        ours.train(sent(1)[:1], Memory(2))
