"""Peers that take their time: handshakes without end, streams that say nothing, updates that trickle in."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from fleet_hostile import Site, Waiting
from fleet_peer import reach, shaken, until

from edgewise.engines.fleet.host import HANDSHAKE_SECONDS
from edgewise.engines.fleet.messages import PROTOCOL

BEAT = 0.5
MANY = 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), beat=BEAT)
    yield site
    site.close()


# ---- handshakes ----


def is_open(connection: socket.socket) -> bool:
    """Whether the other end has not closed it."""
    connection.settimeout(0)
    try:
        while connection.recv(1 << 16):
            pass
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        pass
    return False


@pytest.mark.slow
def test_handshakes_that_never_end_are_cut_off_and_hold_nobody_up(site: Site, tmp_path: Path) -> None:
    with ExitStack() as stack, site.open(2) as round:
        honest, held = round.peers[2], []
        for address in (site.address, site.join_address):
            silent, trickling = ([stack.enter_context(reach(address)) for _ in range(MANY)] for _ in "12")
            done = shaken(address, site.credentials(2), tmp_path if address == site.address else None)
            held += [*silent, *trickling, stack.enter_context(done)]
            threading.Thread(target=trickle, args=(trickling, HELLO), daemon=True).start()
        head, frames = honest.task()
        honest.update(site.answer(2, frames), head.round)
        assert honest.hear("verdict").taken
        assert all(map(is_open, held[:MANY]))  # they are still at it
        site.peer(2).hello()  # and one who is quick comes in beside them
        until(lambda: not any(map(is_open, held)), "they are cut off", HANDSHAKE_SECONDS + 30)
    assert 2 in round.took


# The first bytes of a TLS connection: a record of 512 bytes, of which each is awaited.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)


def trickle(connections: Sequence[socket.socket], data: bytes) -> None:
    with suppress(OSError):
        for byte in data:
            for connection in connections:
                connection.sendall(bytes([byte]))
            time.sleep(0.2)


# ---- streams ----


@pytest.mark.slow
@pytest.mark.parametrize("words", [0, 1, 2], ids=["nothing", "hello", "hello and ready"])
def test_a_stream_on_which_nothing_is_said_is_given_up(site: Site, words: int) -> None:
    with site.open() as round:
        peer, known = site.peer(2), len(site.lines("silent"))
        if words:
            plan = peer.hello()
        if words > 1:
            peer.ready(plan)
        peer.hear("end")
        assert len(site.lines("silent")) > known
        site.noted("silent", f"nothing heard for {3 * BEAT:g} s", 2)
        assert 2 not in site.courier.sessions
    assert 2 not in round.took


class Wire:
    """What lies between a peer and the coordinator; `slow`: a byte at a time from here on."""

    def __init__(self, address: str) -> None:
        self.slow, self._there = threading.Event(), address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with (
            suppress(OSError),
            self._listener,
            self._listener.accept()[0] as here,
            reach(self._there) as there,
        ):
            while True:
                ready, _, _ = select.select([here, there], [], [])
                for source in ready:
                    data = source.recv(1 if self.slow.is_set() and source is here else 1 << 16)
                    if not data:
                        return
                    (there if source is here else here).sendall(data)
                if self.slow.is_set():
                    time.sleep(0.05)


@pytest.mark.slow
def test_a_message_that_trickles_in_byte_by_byte_is_given_up(site: Site) -> None:
    with site.open() as round:
        wire = Wire(site.address)
        peer = site.stranger(site.credentials(2), address=wire.address)
        peer.ready(peer.hello())
        peer.served()
        wire.slow.set()
        peer.raw(bytes(1 << 16))
        peer.hear("end")
        site.noted("silent", "nothing heard", 2)
    assert 2 not in round.took


# ---- updates ----


def test_an_update_that_comes_byte_by_byte_counts_if_it_comes_in_time(site: Site) -> None:
    with site.open(2) as round:
        peer = round.peers[2]
        head, frames = peer.task()
        peer.update(site.answer(2, frames), head.round, size=1)
        assert peer.hear("verdict").taken
    assert 2 in round.took


def test_an_update_that_trickles_in_is_not_waited_for(site: Site) -> None:
    with site.open(2) as round:
        peer, window = round.peers[2], site.courier.window
        head, frames = peer.task()
        frame = site.answer(2, frames)
        whole = list(peer.pieces(frame, head.round, size=len(frame) // 2))
        peer.say(**whole[0]), peer.say(**whole[1])
        Waiting.gate.set()  # the others answer

        def closed() -> bool:
            peer.say(chunk={"data": b""})  # hardly alive
            return bool(window.closed)

        until(closed, "the round ends without it")
        for piece in whole[2:]:
            peer.say(**piece)
        verdict = peer.hear("verdict")
        assert not verdict.taken and verdict.reason == "late"
        site.noted("late", "the round is closed", 2)
    assert 2 not in round.took


def test_a_peer_that_is_not_asked_to_talk_gets_nowhere_by_talking_slowly(site: Site) -> None:
    """Bytes of no message, one at a time, are looked at as they are: a message each."""
    with site.open() as round:
        peer = site.peer(2)
        peer.say(hello={"protocol": PROTOCOL})
        for byte in b"\x12\x40":
            peer.raw(bytes([byte]))
        peer.hear("farewell")
        site.noted("refused", "bytes that are no message", 2)
    assert 2 not in round.took


def test_connections_that_come_and_go_leave_nothing(site: Site) -> None:
    with site.open():
        for _ in range(50):
            with closing(reach(site.address)) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        site.peer(2).hello()
