"""A coordinator's ports: for agents with certificates, for those that want one, for its operator."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from edgewise.engines.fleet.certificates import device_of, fingerprint
from edgewise.engines.fleet.courier import Courier
from edgewise.engines.fleet.enrol import LONGEST, Enrolment
from edgewise.engines.fleet.home import Contact
from edgewise.engines.fleet.identity import Authority, Credentials
from edgewise.engines.fleet.journal import Journal, JournalError
from edgewise.engines.fleet.messages import SERVICE, WINDOW, JoinReply
from edgewise.engines.fleet.roster import Member, member
from edgewise.errors import EdgewiseError

T = TypeVar("T")
JOIN = "edgewise.Join"
CONTROL = "edgewise.Control"
HANDSHAKE_SECONDS = 10
LOOK_SECONDS = 60  # after which the coordinator's certificate is looked up again
READ = 4 << 20  # bytes of a message that is still read, to say why it is refused; gRPC cuts off longer ones
OPTIONS = (
    ("grpc.max_receive_message_length", READ),
    ("grpc.max_concurrent_streams", 4),  # of a connection
    ("grpc.so_reuseport", 0),  # two coordinators on one port must not both believe that they have it
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    *WINDOW,
)
JOIN_OPTIONS = (
    *OPTIONS[1:],
    ("grpc.max_receive_message_length", 4 * LONGEST),
    ("grpc.max_connection_idle_ms", HANDSHAKE_SECONDS * 1000),  # who comes here comes for one answer
    ("grpc.max_connection_age_ms", 60_000),
)
log = logging.getLogger("edgewise.coordinator")


@dataclass(frozen=True)
class Ports:
    """`listen`, `join`: host:port, where port 0 takes a free one. `insecure`: no TLS, on loopback only."""

    listen: str = "0.0.0.0:7443"
    join: str = "0.0.0.0:7444"
    insecure: bool = False

    @classmethod
    def of(cls, contact: Contact, listen: str | None, insecure: bool) -> Ports:
        """As the fleet's contact says, or where the operator says; without TLS on loopback only."""
        port = contact.port
        listen = listen or (f"127.0.0.1:{port}" if insecure else f"0.0.0.0:{port}")
        host, _, number = listen.rpartition(":")
        if not host or not (number.isascii() and number.isdigit()) or int(number) > 65534:
            raise EdgewiseError(f"--listen: {listen!r} is not HOST:PORT, with a port up to 65534")
        if insecure and host not in ("127.0.0.1", "localhost", "[::1]"):
            raise EdgewiseError(
                f"--insecure-loopback: {host} is not loopback; legal: 127.0.0.1, localhost, [::1]"
            )
        join = 0 if number == "0" else int(number) + 1  # free ones, or the next
        return cls(listen, f"{host}:{join}", insecure)


class Host:
    """The event loop in its thread, and the servers on it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="fleet", daemon=True)
        self._thread.start()
        self._servers: list[Any] = []
        self.addresses: list[str] = []
        self._watch: Future[None] | None = None

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def soon(self, action: Callable[..., Any], *arguments: Any) -> None:
        self.loop.call_soon_threadsafe(action, *arguments)

    async def serve(
        self, address: str, credentials: Any, handlers: Any, options: Any = OPTIONS, what: str = "--listen"
    ) -> str:
        """Open a port; the address with the port it got. EdgewiseError if it cannot be had."""
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((handlers,))
        try:
            if credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, credentials)
        except RuntimeError:
            raise EdgewiseError(
                f"{what} {address}: cannot listen there (in use, or not an address)"
            ) from None
        await server.start()
        self._servers.append(server)
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    def watch(self, courier: Courier, beat: float) -> None:
        self._watch = asyncio.run_coroutine_threadsafe(courier.watch(beat), self.loop)

    def close(self, grace: float = 1.0) -> None:
        async def stop() -> None:
            await asyncio.gather(*(server.stop(grace) for server in self._servers))

        if self._watch is not None:
            self._watch.cancel()
        try:
            self.call(stop())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()


def at_most(connections: int) -> tuple[str, int]:
    """The option of a server that closes connections beyond so many."""
    return ("grpc.max_allowed_incoming_connections", connections)


def fleet_handlers(courier: Courier, journal: Journal, insecure: bool) -> Any:
    """The port of agents."""

    async def work(_: Any, context: Any) -> None:
        try:
            member = await asyncio.wrap_future(_who(journal, context, insecure))
        except JournalError as error:  # nothing is said against the device
            log.warning("deferred", extra={"words": str(error), "peer": context.peer()})
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the journal cannot be read")
            raise
        except EdgewiseError as error:
            log.warning("stranger", extra={"words": str(error), "peer": context.peer()})
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            raise
        log.info("connected", extra={"device": member.id, "peer": context.peer()})
        await courier.serve(member, context)

    return _handler(SERVICE, "Work", grpc.stream_stream_rpc_method_handler(work))


def _who(journal: Journal, context: Any, insecure: bool) -> Future[Member]:
    """The device of a certificate, which must be the one it was given last."""
    if insecure:
        metadata = dict(context.invocation_metadata())
        number = str(metadata.get("edgewise-device", ""))
        if not number.isdigit() or len(number) > 9:
            raise EdgewiseError("an agent that does not say which device it is")
        return member(journal, int(number), None)
    identity = context.auth_context()
    pem = identity.get("x509_pem_cert", [b""])[0]
    return member(journal, device_of(pem), fingerprint(pem))


def join_handlers(enrolment: Enrolment) -> Any:
    """The port at which a device gets its certificate: it has none to show yet."""

    async def join(request: bytes, context: Any) -> Any:
        return await enrolment.join(request, context.peer())

    return _handler(JOIN, "Join", grpc.unary_unary_rpc_method_handler(join, None, _bytes(JoinReply)))


def control_handlers(answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> Any:
    """The operator's socket: JSON in, JSON out; who may open the file may ask."""

    async def control(request: bytes, context: Any) -> bytes:
        try:
            return json.dumps(await answer(json.loads(request))).encode()
        except EdgewiseError as error:
            return json.dumps({"error": str(error)}).encode()

    return _handler(CONTROL, "Ask", grpc.unary_unary_rpc_method_handler(control))


def _handler(service: str, method: str, handler: Any) -> Any:
    return grpc.method_handlers_generic_handler(service, {method: handler})


def _bytes(message: Any) -> Callable[[Any], bytes]:
    return lambda one: one.SerializeToString()


def server_credentials(authority: Authority, mutual: bool) -> Any:
    """TLS with the coordinator's own certificate; `mutual`: only for peers that have one of ours too.

    The certificate is looked up anew from time to time: a coordinator may run for longer than it lasts. gRPC
    is given it only when it is another one. Whatever it is given takes the place of what connections that are
    just beginning use, and where many begin at once the process does not survive that.
    """
    known, at, lock = authority.serve_as(), time.monotonic(), threading.Lock()

    def made(own: Credentials) -> Any:
        root = own.ca if mutual else None
        return grpc.ssl_server_certificate_configuration([(own.key, own.chain)], root)

    def another() -> Any:
        nonlocal known, at
        with lock:
            if time.monotonic() - at < LOOK_SECONDS:
                return None
            own, before, at = authority.serve_as(), known, time.monotonic()
            known = own
        return None if own == before else made(own)

    return grpc.dynamic_ssl_server_credentials(made(known), another, mutual)
