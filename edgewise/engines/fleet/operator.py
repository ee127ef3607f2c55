"""What an operator can ask of a coordinator, running or not: invite, revoke, clear, status, stop."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from edgewise.engines.fleet import roster
from edgewise.engines.fleet.courier import Courier
from edgewise.engines.fleet.home import Home
from edgewise.engines.fleet.journal import Database, Journal
from edgewise.engines.fleet.token import SECRET, digest
from edgewise.errors import EdgewiseError

ANSWER_SECONDS = 10
LATEST = 10  # events in a status
REQUESTS = ("invite", "revoke", "clear", "status", "stop")


def ask(home: Home, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of the coordinator that runs on this home, or else what its journal says."""
    home.check()
    if home.control.exists():
        try:
            return _call(home.control, request)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise EdgewiseError(
                    f"{home.control}: {error.code().name.lower()}: {error.details()}"
                ) from None
    if request["what"] == "stop":
        raise EdgewiseError(f"{home.folder}: no coordinator runs here")
    with home.alone() as journal:
        return asyncio.run(Operator(journal, None).answer(request))


def _call(socket: Path, request: dict[str, Any]) -> dict[str, Any]:
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        call: Callable[..., bytes] = channel.unary_unary("/edgewise.Control/Ask")
        answer = json.loads(call(json.dumps(request).encode(), timeout=ANSWER_SECONDS))
    if "error" in answer:
        raise EdgewiseError(answer["error"])
    return dict(answer)


class Operator:
    """`courier`: of a coordinator that runs."""

    def __init__(self, journal: Journal, courier: Courier | None, rounds: int | None = None) -> None:
        self.journal, self.courier, self.rounds = journal, courier, rounds

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """JSON for JSON; EdgewiseError for what cannot be done."""
        what = request.get("what")
        if what not in REQUESTS:
            raise EdgewiseError(f"{what!r} is unknown; one of: {', '.join(REQUESTS)}")
        found: dict[str, Any] = await getattr(self, f"_{what}")(request)
        return found

    async def _invite(self, request: dict[str, Any]) -> dict[str, Any]:
        count, hours = int(request["count"]), float(request["hours"])
        if not 1 <= count <= roster.MOST:
            raise EdgewiseError(f"--count {count}: legal: 1 to {roster.MOST}")
        if not 0 < hours <= 24 * 365:
            raise EdgewiseError(f"--hours {hours:g}: legal: above 0 to {24 * 365}")
        keys = [secrets.token_bytes(SECRET) for _ in range(count)]
        digests = [digest(key).hex() for key in keys]
        expires = time.time() + hours * 3600
        devices = await asyncio.wrap_future(
            roster.invite(self.journal, digests, expires, request.get("device"))
        )
        return {"secrets": [key.hex() for key in keys], "devices": devices}

    async def _revoke(self, request: dict[str, Any]) -> dict[str, Any]:
        device = int(request["device"])
        member = await asyncio.wrap_future(roster.revoke(self.journal, device))
        await asyncio.wrap_future(self.journal.event("revoked", "by the operator", device=device))
        if self.courier is not None:
            self.courier.expel(device, "this device was revoked")
        return {"device": member.row()}

    async def _clear(self, request: dict[str, Any]) -> dict[str, Any]:
        member = await asyncio.wrap_future(roster.clear(self.journal, int(request["device"])))
        return {"device": member.row()}

    async def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"stopping": True}

    async def _status(self, request: dict[str, Any]) -> dict[str, Any]:
        members = await asyncio.wrap_future(roster.members(self.journal))
        events = await asyncio.wrap_future(self.journal.ask(_events))
        courier = self.courier
        there = courier.present() if courier else set()
        devices = [{**member.row(), "state": _state(member, courier, there)} for member in members]
        found: dict[str, Any] = {"running": courier is not None, "devices": devices, "events": events}
        if courier is not None:
            window = courier.window
            found |= {
                "run": courier.run,
                "round": window.round if window else 0,
                "rounds": self.rounds,
                "connected": len(there),
                "missing": sorted(window.missing()) if window and not window.closed else [],
                "allowance": courier.referee.pace.allowance,
            }
        return found


def _state(member: roster.Member, courier: Courier | None, there: set[int]) -> str:
    if member.revoked is not None:
        return "revoked"
    if not member.trusted:
        return "suspended"
    return "ready" if courier is not None and member.id in there else "away"


def _events(database: Database) -> list[dict[str, Any]]:
    rows = database.execute(
        "SELECT at, round, device, kind, words FROM events ORDER BY rowid DESC LIMIT ?", (LATEST,)
    )
    names = ("at", "round", "device", "kind", "words")
    return [dict(zip(names, row, strict=True)) for row in rows][::-1]
