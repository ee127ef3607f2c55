"""Devices with a good certificate that say what they must not: each is refused, and the round goes on."""

from __future__ import annotations

import asyncio
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fleet_hostile import Site
from fleet_peer import Peer, resident, until

from edgewise import wire
from edgewise.engines.fleet.digest import digest_of
from edgewise.engines.fleet.line import Line
from edgewise.engines.fleet.messages import CHUNK, LARGEST, PROTOCOL, up


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), devices=4)
    yield site
    site.close()


def sent_away(peer: Peer) -> str:
    """The reason that the farewell gives; then the stream ends."""
    farewell = peer.hear("farewell")
    assert farewell.kind == 3
    peer.hear("end")
    return str(farewell.reason)


def test_a_device_that_behaves_is_counted(site: Site) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        head, frames = peer.task()
        assert head.round == round.number
        frame = site.answer(2, frames)
        peer.update(frame, head.round, 100)
        assert peer.hear("verdict").taken
        peer.served()
    assert 2 in round.took


# ---- messages that are none, or come out of turn ----


OUT_OF_TURN = {
    "beat": {"beat": {"number": 1}},
    "ready": {"ready": {}},
    "update": {"update": {"round": 1, "digest": bytes(32), "length": 5}},
    "chunk": {"chunk": {"data": b"data"}},
    "scores": {"scores": {"round": 1}},
    "failure": {"failure": {"round": 1, "reason": "none"}},
}


@pytest.mark.parametrize("kind", OUT_OF_TURN)
def test_nothing_comes_before_hello(site: Site, kind: str) -> None:
    with site.open():
        peer = site.peer(2)
        peer.say(**OUT_OF_TURN[kind])
        reason = sent_away(peer)
        assert kind in reason or kind == "failure"
        site.noted("refused", reason, 2)


def test_a_stream_ends_while_its_first_word_is_being_written(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a slow machine: gRPC would begin the stream once more as it ends it, fail, and tell nobody."""

    async def flush(line: Line, _: float) -> None:
        while line._words:
            await asyncio.sleep(0)

    monkeypatch.setattr(Line, "flush", flush)
    with site.open():
        for _ in range(5):
            peer = site.peer(2)
            peer.say(beat={"number": 1})
            peer.hear("end")


@pytest.mark.parametrize("kind", [kind for kind in OUT_OF_TURN if kind not in ("beat", "ready")])
def test_nothing_but_ready_comes_after_hello(site: Site, kind: str) -> None:
    with site.open():
        peer = site.peer(2)
        peer.hello()
        peer.say(**OUT_OF_TURN[kind])
        reason = sent_away(peer)
        site.noted("refused", reason, 2)


@pytest.mark.parametrize("again", ["hello", "ready"])
def test_nobody_comes_in_twice(site: Site, again: str) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        peer.task()
        peer.say(hello={"protocol": PROTOCOL}) if again == "hello" else peer.ready(site.plan)
        assert sent_away(peer) == f"'{again}' came out of turn"
        site.noted("refused", f"'{again}' came out of turn", 2)


NONSENSE = {
    "no kind": b"",
    "an unknown field": b"\xfa\x3e\x04junk",
    "no message": b"\xff\xff\xff\xff",
    "another wire type": b"\x08\x01",
    "text that is no text": up(hello={"protocol": PROTOCOL, "version": "aa"})
    .SerializeToString()
    .replace(b"aa", b"\xc3\x28"),
}


@pytest.mark.parametrize("case", NONSENSE)
@pytest.mark.parametrize("late", [False, True])
def test_what_is_no_message_is_refused(site: Site, case: str, late: bool) -> None:
    with site.open(*[2] * late) as round:
        peer = round.peers[2] if late else site.peer(2)
        peer.raw(NONSENSE[case])
        site.noted("refused", sent_away(peer), 2)


def test_fields_that_are_unknown_are_let_go(site: Site) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        peer.raw(up(beat={"number": 9}).SerializeToString() + b"\xfa\x3e\x04junk")
        assert peer.hear("beat").number == 9


@pytest.mark.parametrize("protocol", [0, PROTOCOL + 1, 2**32 - 1])
def test_another_protocol_is_refused(site: Site, protocol: int) -> None:
    with site.open():
        peer = site.peer(2)
        peer.say(hello={"protocol": protocol, "version": "\x1b[31m9.9" * 1000})
        reason = sent_away(peer)
        assert f"protocol {protocol} " in reason and len(reason) < 400 and reason.isprintable()
        site.noted("refused", reason, 2)


NOT_READY: dict[str, tuple[dict[str, Any], str]] = {
    "another layout": ({"layout": bytes(32)}, "its model has another layout"),
    "no layout": ({"layout": b""}, "its model has another layout"),
    "more examples than there are": ({"examples": 2**64 - 1}, "makes no sense"),
    "more tests than there are": ({"tests": 2**63}, "makes no sense"),
    "a pending update without a digest": (
        {"pending_round": 1, "pending_digest": b"x" * 1000},
        "makes no sense",
    ),
}


@pytest.mark.parametrize("case", NOT_READY)
def test_who_is_not_ready_is_refused(site: Site, case: str) -> None:
    other, reason = NOT_READY[case]
    with site.open():
        peer = site.peer(2)
        peer.ready(peer.hello(), **other)
        assert reason in sent_away(peer)
        site.noted("refused", reason, 2)


def test_a_memory_that_the_journal_does_not_know_is_refused(site: Site) -> None:
    with site.open():
        peer = site.peer(2)
        peer.ready(peer.hello(run=site.courier.run, round=10**6))
        reason = sent_away(peer)
        assert "remembers round 1000000, which this coordinator's journal does not hold" in reason
        site.noted("refused", reason, 2)


# ---- updates ----


def test_an_update_of_another_round_is_late(site: Site) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        head, frames = peer.task()
        frame = site.answer(2, frames)
        for other in (head.round - 1, head.round + 1, 0, 2**32 - 1):
            peer.update(frame, other)
            verdict = peer.hear("verdict")
            assert (verdict.round, verdict.taken, verdict.reason, verdict.again) == (
                other,
                False,
                "late",
                False,
            )
        site.noted("late", "", 2)
        peer.update(frame, head.round)
        assert peer.hear("verdict").taken
    assert 2 in round.took


def test_who_is_not_asked_is_not_counted(site: Site) -> None:
    with site.open(2) as round:
        head, frames = round.peers[2].task()
        peer = site.peer(3)
        peer.ready(peer.hello())
        frame = site.answer(3, frames)
        peer.update(frame, head.round)
        assert peer.hear("verdict").reason == "late"
        site.noted("late", "the round is closed", 3)
    assert 3 not in round.took


def sealed(frame: bytes, at: int, form: str, value: Any) -> bytes:
    """A frame with another number in its header, and a checksum that fits."""
    changed = bytearray(frame)
    struct.pack_into(form, changed, at, value)
    body = changed[: wire.CHECKED] + changed[wire.LENGTH :]
    struct.pack_into("<I", changed, wire.CHECKED, zlib.crc32(body))
    return bytes(changed)


Change = Callable[[bytes], tuple[bytes, dict[str, Any]]]


def other(**head: Any) -> Change:
    return lambda frame: (frame, head)


def inside(at: int, form: str, value: Any) -> Change:
    return lambda frame: (sealed(frame, at, form, value), {})


REFUSED: dict[str, tuple[Change, str]] = {
    "another device's": (inside(36, "<I", 0), "an update of device 0 and round"),
    "everyone's": (inside(36, "<I", wire.EVERYONE), "an update's device is its sender"),
    "another round's": (inside(32, "<I", 7777), "and round 7777 from device 2"),
    "a state": (inside(5, "<B", 2), "a frame of kind STATE"),
    "another model's": (inside(8, "<B", 0xFF), "a frame of another model's layout"),
    "another codec's": (inside(24, "<Q", 0), "a frame of another codec"),
    "of more examples": (inside(48, "<I", 4_000_000_000), "an update of 4000000000 examples"),
    "with a loss that is none": (inside(40, "<d", math.nan), "a finite number, not nan"),
    "with NaN in it": (inside(64, "<f", math.nan), "an update with NaN or infinity"),
    "infinite": (inside(64, "<f", -math.inf), "an update with NaN or infinity"),
    "too large to have a norm": (inside(64, "<f", 3e38), "an update with NaN or infinity"),
    "that lies about its length": (inside(52, "<I", 2**32 - 1), "a frame with a payload of 4294967295 bytes"),
    "cut short": (lambda frame: (frame[:-1], {}), "a frame that is truncated"),
    "hardly there": (lambda frame: (frame[:9], {}), "a frame has at least 64 bytes"),
    "empty": (lambda frame: (b"", {}), "a frame has at least 64 bytes"),
    "with a flipped bit": (lambda frame: (frame[:80] + bytes([frame[80] ^ 1]) + frame[81:], {}), "checksum"),
    "with another digest": (other(digest=bytes(32)), "do not have the digest it announced"),
    "longer than announced": (other(length=100), "an update longer than the 100 bytes it announced"),
    "above the maximum": (other(length=1 << 40), "an update of 1099511627776 bytes, at most"),
    "as long as can be": (other(length=2**64 - 1), "an update of 18446744073709551615 bytes, at most"),
    "beyond what is there": (other(offset=50), "goes on at 50, of which 0 bytes are here"),
    "far beyond what is there": (
        other(offset=2**64 - 1),
        "goes on at 18446744073709551615, of which 0 bytes",
    ),
}


@pytest.mark.parametrize("size", [None, 1 << 20], ids=["whole", "chunks"])
@pytest.mark.parametrize("case", REFUSED)
def test_an_update_that_is_none_is_refused(site: Site, case: str, size: int | None) -> None:
    change, reason = REFUSED[case]
    with site.open(2) as round:
        peer = round.peers[2]
        head, frames = peer.task()
        frame, announced = change(site.answer(2, frames))
        peer.update(frame, head.round, size, **announced)
        verdict = peer.hear("verdict")
        assert not verdict.taken and not verdict.again and reason in verdict.reason
        site.noted("refused", reason, 2)
        peer.served()
        assert site.ask(what="clear", device=2)["device"]["flags"] == 0
    assert 2 not in round.took
    assert site.courier.spool.size == 0


@pytest.mark.parametrize(
    "head", [{"seconds": math.nan}, {"seconds": -1.0}, {"digest": b"short"}, {"digest": b""}]
)
def test_an_update_that_makes_no_sense_ends_the_stream(site: Site, head: dict[str, Any]) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        task, frames = peer.task()
        peer.update(site.answer(2, frames), task.round, **head)
        assert sent_away(peer) == "what it says of its update makes no sense"
        site.noted("refused", "what it says of its update makes no sense", 2)
    assert 2 not in round.took


@pytest.mark.parametrize("pending", [True, False], ids=["on its way", "made since"])
def test_an_update_on_its_way_is_of_what_its_device_held_then(site: Site, pending: bool) -> None:
    """A device with other data by now, where steps are by what each holds, owes no more for it."""
    with site.open(2) as round:
        peer = round.peers[2]
        head, frames = peer.task()
        frame = site.answer(2, frames)
        count, honest = wire.Header.parse(frame).count, peer.examples
        site.courier.owed = lambda held: count + (held == honest + 1)
        peer.close()
        peer = site.peer(2)
        told = {"pending_round": head.round, "pending_digest": bytes.fromhex(digest_of([frame]))}
        peer.ready(peer.hello(), examples=honest + 1, **(told if pending else {}))
        if pending:
            assert peer.hear("verdict").again
        else:
            peer.task()
        peer.update(frame, head.round)
        verdict = peer.hear("verdict")
        assert verdict.taken == pending and ("were asked for" in verdict.reason) != pending
        if not pending:
            site.noted("refused", verdict.reason, 2)
            site.ask(what="clear", device=2)
    assert (2 in round.took) == pending


# ---- more than there should be ----


def test_the_same_update_twice_counts_once(site: Site) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        head, frames = peer.task()
        frame = site.answer(2, frames)
        for _ in range(3):
            peer.update(frame, head.round, 500)
            assert peer.hear("verdict").taken
        assert list(site.took(round.number)) == [2]
    assert 2 in round.took


def test_another_update_for_a_round_that_counts_one_is_late(site: Site) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        head, frames = peer.task()
        frame = site.answer(2, frames)
        peer.update(frame, head.round)
        assert peer.hear("verdict").taken
        counts = site.took(round.number)
        peer.update(sealed(frame, 64, "<f", 0.5), head.round)
        assert (verdict := peer.hear("verdict")).reason == "late" and not verdict.taken
        site.noted("late", "another update of it counts", 2)
        assert site.took(round.number) == counts


def test_an_update_of_the_round_before_is_refused_when_it_is_played_again(site: Site) -> None:
    with site.open(2) as round:
        head, frames = round.peers[2].task()
        frame = site.answer(2, frames)
        round.peers[2].update(frame, head.round)
        assert round.peers[2].hear("verdict").taken
    with site.open(2) as round:
        peer = round.peers[2]
        head, _ = peer.task()
        peer.update(frame, head.round)
        assert f"round {head.round - 1} from device 2 in round {head.round}" in peer.hear("verdict").reason
        site.ask(what="clear", device=2)
    assert 2 not in round.took


def test_a_device_that_stops_in_the_middle_is_not_waited_for(site: Site) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        head, frames = peer.task()
        frame = site.answer(2, frames)
        peer.update(
            frame[: len(frame) // 2], head.round, digest=bytes.fromhex(digest_of([frame])), length=len(frame)
        )
        peer.served()
    assert 2 not in round.took


def test_a_device_has_room_for_one_update(site: Site) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        head, frames = peer.task()
        frame = site.answer(2, frames)
        for number in range(50):
            peer.update(frame[:-1], head.round, digest=number.to_bytes(32, "big"), length=len(frame))
        peer.served()
        assert site.courier.spool.size < len(frame)
        peer.update(frame, head.round)
        assert peer.hear("verdict").taken
    assert 2 in round.took


def test_chunks_of_no_update_end_the_stream(site: Site) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        peer.task()
        before = resident()
        for _ in range(200):
            peer.raw(CHUNKS)
        assert sent_away(peer) == "it sends chunks of no update"
        site.noted("refused", "it sends chunks of no update", 2)
        assert resident() - before < 64 << 20
    assert 2 not in round.took


CHUNKS = up(chunk={"data": bytes(CHUNK)}).SerializeToString()


@pytest.mark.parametrize("size", [LARGEST, 4 << 20])
def test_a_message_that_is_too_long_is_refused(site: Site, size: int) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        peer.raw(up(chunk={"data": bytes(size)}).SerializeToString())
        if size > LARGEST:  # gRPC refuses it, and tells the peer
            code, details = peer.hear("end")
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details
        else:
            reason = sent_away(peer)
            assert f"bytes, where {LARGEST} are the most" in reason
            site.noted("refused", reason, 2)


@pytest.mark.slow
@pytest.mark.parametrize("word", [{"hello": {"protocol": PROTOCOL}}, {"beat": {"number": 2**64 - 1}}])
def test_who_talks_and_does_not_listen_is_sent_away(site: Site, word: dict[str, Any]) -> None:
    with site.open():
        peer, before = site.peer(2, listens=False), resident()
        peer.say(hello={"protocol": PROTOCOL})
        known = len(site.lines("refused"))
        words = up(**word).SerializeToString()

        def sent_away() -> bool:
            for _ in range(1000):
                peer.raw(words)
            return len(site.lines("refused")) > known

        until(sent_away, "it talks faster than it listens")
        site.noted("refused", "it talks faster than it listens", 2)
        assert resident() - before < 64 << 20
        site.peer(3).hello()


def test_scores_that_nobody_asked_for_are_let_go(site: Site) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        head, frames = peer.task()
        peer.say(scores={"round": head.round, "right": 2**63, "seen": 1, "loss": -math.inf})
        peer.update(site.answer(2, frames), head.round)
        assert peer.hear("verdict").taken
    assert 2 in round.took


def test_what_a_device_says_of_its_failure_is_no_terminal_code(site: Site) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        head, _ = peer.task()
        peer.say(failure={"round": head.round, "reason": "\x1b]0;owned\x07\n\r" + "x" * 10**5})
        site.noted("failed", "]0;ownedxxx", 2)
        assert all(
            words.isprintable() and len(words) <= 500
            for row in site.lines("failed")
            if (words := row["words"])
        )
    assert 2 not in round.took


# ---- who it is ----


def test_of_two_streams_with_one_certificate_the_newer_wins(site: Site) -> None:
    with site.open(2) as round:
        old = round.peers[2]
        head, frames = old.task()
        frame = site.answer(2, frames)
        old.update(frame[:100], head.round, digest=bytes.fromhex(digest_of([frame])), length=len(frame))
        old.served()
        new = site.peer(2)
        new.ready(new.hello())
        old.hear("end")
        site.noted("replaced", "its earlier stream was still open", 2)
        head, again = new.task()
        assert again == frames
        new.update(frame, head.round)
        assert new.hear("verdict").taken
        assert list(site.took(round.number)) == [2]
    assert 2 in round.took


def test_of_many_streams_at_once_one_stays(site: Site) -> None:
    with site.open(2) as round:
        head, frames = round.peers[2].task()
        peers = [site.peer(2) for _ in range(8)]
        for peer in peers:
            peer.say(hello={"protocol": PROTOCOL})
        until(lambda: sum(peer.call.is_active() for peer in peers) == 1, "all but one are ended")
        (last,) = [peer for peer in peers if peer.call.is_active()]
        last.ready(site.plan)
        head, frames = last.task()
        last.update(site.answer(2, frames), head.round)
        assert last.hear("verdict").taken
    assert 2 in round.took


def test_a_device_is_suspended_after_three_updates_that_were_refused_until_it_is_cleared(site: Site) -> None:
    for flags in (1, 2, 3):
        with site.open(2) as round:
            head, frames = round.peers[2].task()
            round.peers[2].update(b"nonsense", head.round)
            assert not round.peers[2].hear("verdict").taken
        assert 2 not in round.took
        (device,) = [one for one in site.ask(what="status")["devices"] if one["id"] == 2]
        assert device["flags"] == flags
    assert device["state"] == "suspended"
    with site.open(2) as round:
        round.peers[2].served()
        assert 2 not in site.courier.window.asked
    assert site.ask(what="clear", device=2)["device"]["flags"] == 0
    with site.open(2) as round:
        head, frames = round.peers[2].task()
        round.peers[2].update(site.answer(2, frames), head.round)
        assert round.peers[2].hear("verdict").taken
    assert 2 in round.took


def test_a_device_that_is_revoked_in_the_middle_of_its_update_is_out_at_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    try:
        with site.open(2) as round:
            peer = round.peers[2]
            head, frames = peer.task()
            frame = site.answer(2, frames)
            peer.update(frame[:100], head.round, digest=bytes.fromhex(digest_of([frame])), length=len(frame))
            peer.served()
            site.ask(what="revoke", device=2)
            peer.say(chunk={"data": frame[100:]})
            assert sent_away(peer) == "this device was revoked"
            again = site.peer(2)
            again.say(hello={"protocol": PROTOCOL})
            code, details = again.hear("end")
            assert code is grpc.StatusCode.UNAUTHENTICATED and "device 2 was revoked" in details
            until(
                lambda: [row for row in site.lines("stranger") if "2 was revoked" in row["words"]],
                "it is logged",
            )
        assert 2 not in round.took and site.ask(what="status")["devices"][2]["state"] == "revoked"
    finally:
        site.close()
