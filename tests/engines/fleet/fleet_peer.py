"""A peer that says to a coordinator's port whatever a test wants it to."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from fleet_in_process import PATIENCE

from edgewise.engines.fleet.certificates import COORDINATOR
from edgewise.engines.fleet.digest import digest_of
from edgewise.engines.fleet.identity import Credentials
from edgewise.engines.fleet.link import OPTIONS
from edgewise.engines.fleet.messages import PROTOCOL, SERVICE, Down, up


def until(true: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """What `true` returns once it is true; polled, because nobody tells."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.005)
    return found


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def reach(address: str) -> socket.socket:
    """A connection on which nothing has been said."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def shaken(address: str, credentials: Credentials, folder: Path | None) -> ssl.SSLSocket:
    """A connection whose TLS is done. `folder`: for the own certificate, if it is to be shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=credentials.ca.decode())
    context.set_alpn_protocols(["h2"])
    if folder is not None:
        (folder / "key").write_bytes(credentials.key)
        (folder / "chain").write_bytes(credentials.chain)
        context.load_cert_chain(folder / "chain", folder / "key")
    return context.wrap_socket(reach(address), server_hostname=COORDINATOR)


class Peer:
    """A stream to a coordinator's port. `say` and `raw` send, `hear` waits for a message of a kind."""

    examples = 8  # that it says it has

    def __init__(
        self,
        address: str,
        credentials: Credentials | None,
        method: str = f"/{SERVICE}/Work",
        roots: bytes | None = None,
        listens: bool = True,
        metadata: Any = None,
    ) -> None:
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.said: queue.Queue[bytes | None] = queue.Queue(100)
        self.seen: list[Any] = []
        options = (
            *OPTIONS,
            ("grpc.max_send_message_length", -1),
            ("grpc.ssl_target_name_override", COORDINATOR),
        )
        if not listens:  # gRPC would take in some megabytes for it
            options += (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
        own = (credentials.key, credentials.chain) if credentials else (None, None)
        ca = roots or (credentials.ca if credentials else None)
        self.channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, *own), options)
        call = self.channel.stream_stream(method, lambda data: data, Down.FromString)
        self.call = call(iter(self.said.get, None), metadata=metadata)
        if listens:
            threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            for message in self.call:
                self.heard.put(message)
            self.heard.put(None)
        except grpc.RpcError as error:
            self.heard.put(error)

    def raw(self, data: bytes) -> None:
        """These bytes as a message, unless the stream has ended."""
        end = time.monotonic() + PATIENCE
        while self.call.is_active():
            assert time.monotonic() < end, "the coordinator takes nothing more, and does not say so"
            with suppress(queue.Full):
                return self.said.put(data, timeout=0.05)

    def say(self, **body: Any) -> None:
        self.raw(up(**body).SerializeToString())

    def hear(self, kind: str, seconds: float = PATIENCE) -> Any:
        """The next message of this kind; `end`: how the stream ended, (code, details)."""
        while True:
            found = self.heard.get(timeout=seconds)
            if found is None or isinstance(found, grpc.RpcError):
                assert kind == "end", f"the stream ended ({found}) before a {kind}; heard: {self.seen}"
                return self.call.code(), self.call.details()
            name = found.WhichOneof("body")
            self.seen.append(name)
            if name == kind:
                return getattr(found, name)
            assert kind == "end" or name != "farewell", found.farewell.reason

    def hello(self, **other: Any) -> Any:
        """Say hello as an agent does; the plan."""
        self.say(hello={"protocol": PROTOCOL, "version": "test", **other})
        return self.hear("plan")

    def ready(self, plan: Any, **other: Any) -> None:
        self.say(ready={"layout": plan.layout, "examples": self.examples, "tests": 4, **other})

    def task(self) -> tuple[Any, list[bytes]]:
        """The next task, and its frames."""
        head = self.hear("task")
        content = head.data
        while len(content) < sum(head.lengths):
            content += self.hear("chunk").data
        frames, start = [], 0
        for length in head.lengths:
            frames.append(content[start : start + length])
            start += length
        return head, frames

    def update(self, frame: bytes, round: int, size: int | None = 1 << 20, **other: Any) -> None:
        """Send an update in chunks of `size` bytes; None: in one message, as agents send small ones."""
        for piece in self.pieces(frame, round, size, **other):
            self.say(**piece)

    def pieces(self, frame: bytes, round: int, size: int | None = 1 << 20, **other: Any) -> Iterator[Any]:
        """The messages of an update: its head, then chunks."""
        head = {
            "round": round,
            "digest": bytes.fromhex(digest_of([frame])),
            "length": len(frame),
            "seconds": 0.1,
        }
        if size is None:
            yield {"update": {**head, **other, "data": frame}}
            return
        yield {"update": {**head, **other}}
        for at in range(other.get("offset", 0), len(frame), size):
            yield {"chunk": {"data": frame[at : at + size]}}

    def served(self) -> None:
        """The coordinator listens and answers."""
        number = time.monotonic_ns()
        self.say(beat={"number": number})
        while self.hear("beat").number != number:
            pass

    def close(self) -> None:
        self.call.cancel()
        with suppress(queue.Full):
            self.said.put_nowait(None)
        self.channel.close()
