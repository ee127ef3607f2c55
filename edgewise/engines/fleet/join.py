"""A device's folder: how it joins a fleet, and how it reaches the coordinator afterwards.

device.key, device.pem, ca.pem   who it is (identity.py)
agent.json                       where the coordinator is
memory/RUN/                      what it remembers (keep.py)
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from edgewise import files
from edgewise.engines.fleet.certificates import COORDINATOR
from edgewise.engines.fleet.identity import Identity
from edgewise.engines.fleet.keep import Keep
from edgewise.engines.fleet.link import Link
from edgewise.engines.fleet.messages import JoinReply, JoinRequest
from edgewise.engines.fleet.token import Token
from edgewise.errors import EdgewiseError

ADDRESSES = "agent.json"
SECONDS = 20


def join_fleet(home: Path, token: Token, name: str) -> int:
    """Join, and store what that brings; the device's number. A join that was interrupted can be repeated."""
    identity = Identity(home)
    csr = identity.request()
    files.write(home / ADDRESSES, json.dumps({"addresses": list(token.addresses)}) + "\n")
    request = JoinRequest(secret=token.secret, csr=csr, name=name[:100])
    credentials = grpc.ssl_channel_credentials(token.roots)
    options = (("grpc.ssl_target_name_override", COORDINATOR), ("grpc.enable_http_proxy", 0))
    with grpc.secure_channel(f"dns:///{token.join}", credentials, options=options) as channel:
        call: Any = channel.unary_unary(
            "/edgewise.Join/Join", lambda message: message.SerializeToString(), JoinReply.FromString
        )
        try:
            reply = call(request, timeout=SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            slow = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            why = f"no answer in {SECONDS} s" if slow else f"{error.code().name.lower()}, {error.details()}"
            raise EdgewiseError(
                f"cannot join at {token.join}: {why}; is the coordinator running, is this its address, does "
                "a firewall let the port through, and is it the coordinator that made the token?"
            ) from None
    if reply.refused:
        raise EdgewiseError(f"the coordinator refuses to let this device join: {reply.refused}")
    return identity.accept(reply.certificate, token.ca)


def link(home: Path, coordinator: str | None, insecure: int | None) -> Link:
    """How this device reaches its coordinator; `insecure`: as which device, without TLS, on loopback."""
    if insecure is not None:
        if coordinator is None or not coordinator.startswith(("127.0.0.1:", "localhost:", "[::1]:")):
            raise EdgewiseError(
                "--insecure-loopback: needs --coordinator 127.0.0.1:PORT; it is for loopback only"
            )
        return Link((coordinator,), insecure, None)
    device, credentials = Identity(home).load()
    if coordinator is not None:
        return Link((coordinator,), device, credentials)
    try:
        addresses = json.loads((home / ADDRESSES).read_text())["addresses"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgewiseError(
            f"{home / ADDRESSES}: not readable ({error}); give --coordinator HOST:PORT"
        ) from None
    return Link(tuple(addresses), device, credentials)


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """No other agent on this folder; EdgewiseError while there is one."""
    files.make_private(home)
    descriptor = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise EdgewiseError(f"{home}: another agent runs on this folder") from None
    finally:
        os.close(descriptor)


def standing(home: Path) -> dict[str, Any]:
    """What can be said of a device without asking anyone."""
    device, _ = Identity(home).load()
    runs = {}
    for folder in sorted((home / "memory").glob("*")):
        keep = Keep(folder)
        runs[folder.name] = {
            "round": keep.round,
            "step": keep.memory.step,
            "pending": keep.pending and keep.pending.round,
        }
    addresses = json.loads((home / ADDRESSES).read_text())["addresses"] if (home / ADDRESSES).exists() else []
    return {"device": device, "coordinator": ", ".join(addresses), "runs": runs}
