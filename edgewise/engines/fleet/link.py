"""The agent's end of a connection: how it is opened, kept alive, and what its end means."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from edgewise.engines.fleet.certificates import COORDINATOR
from edgewise.engines.fleet.ear import Ear
from edgewise.engines.fleet.identity import Credentials
from edgewise.engines.fleet.line import Line
from edgewise.engines.fleet.messages import LARGEST, SERVICE, WINDOW, Down, chunk_data, printable
from edgewise.errors import EdgewiseError

SOON = 20.0  # seconds for the coordinator's first word
SILENT = 3  # beats without a word from the coordinator after which a stream is given up
OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for every agent of a process
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),  # a proxy for the web is none for this
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 60_000),
    *WINDOW,
)


class Disconnected(Exception):
    """The stream ended, for a reason that may pass."""


class Offence(Disconnected):
    """The coordinator said what it must not: it is left alone for longer each time."""


@dataclass(frozen=True)
class Link:
    """How the coordinator is reached. `credentials` is None where there is no TLS (loopback only)."""

    addresses: tuple[str, ...]
    device: int
    credentials: Credentials | None

    def channel(self, address: str) -> Any:
        own, target = self.credentials, f"dns:///{address}"
        if own is None:
            return grpc.aio.insecure_channel(target, options=OPTIONS)
        credentials = grpc.ssl_channel_credentials(own.ca, own.key, own.chain)
        options = (*OPTIONS, ("grpc.ssl_target_name_override", COORDINATOR))
        return grpc.aio.secure_channel(target, credentials, options=options)


@asynccontextmanager
async def connect(link: Link, address: str) -> AsyncIterator[tuple[Any, Ear]]:
    """A stream to the coordinator, and what comes on it.

    Disconnected if it ends and may come back, EdgewiseError if it may not.
    """
    channel = link.channel(address)
    metadata = (("edgewise-device", str(link.device)),) if link.credentials is None else ()
    call = channel.stream_stream(f"/{SERVICE}/Work")(metadata=metadata)
    ear = Ear(call.read)
    try:
        yield call, ear
    except grpc.aio.AioRpcError as error:
        raise _reason(error.code(), error.details()) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Disconnected("nothing is heard of the coordinator") from None
    finally:
        await channel.close()
        await ear.end()


class Beats:
    """Says that the agent is there, and cuts a stream on which nothing comes back."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def heard(self) -> None:
        self._at = time.monotonic()

    async def run(self, line: Line, seconds: float, call: Any) -> None:
        number = 0
        while True:
            await asyncio.sleep(seconds)
            if time.monotonic() - self._at > SILENT * seconds:
                call.cancel()
                return
            number += 1
            line.say(beat={"number": number})


async def heard(ear: Ear, first: bool) -> tuple[str, Any] | None:
    """The kind of the next message and its body (of a chunk: its bytes), or None at the end of the stream.

    The first must come soon: there are no beats yet that would tell of a silent end.
    """
    try:
        data = await asyncio.wait_for(ear.next(), SOON if first else None)
    except TimeoutError:
        raise Disconnected("connected, but no plan has come") from None
    if data is grpc.aio.EOF:
        return None
    if (chunk := chunk_data(data)) is not None:
        return "chunk", chunk
    try:
        message = Down.FromString(data)
    except DecodeError:
        raise Offence("bytes that are no message") from None
    kind = message.WhichOneof("body") or ""  # of a later version
    body: Any = getattr(message, kind, None)
    return kind, body.data if kind == "chunk" else body


async def why(call: Any) -> Exception:
    """What the end of a stream means."""
    return _reason(await call.code(), await call.details())


def _reason(code: Any, details: str | None) -> Exception:
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return EdgewiseError(f"the coordinator does not know this device: {printable(details or '')}")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return EdgewiseError("what answers there is no coordinator of this edgewise; see --coordinator")
    return Disconnected(f"{code.name.lower() if code else 'ended'}: {details or 'no reason given'}"[:300])
