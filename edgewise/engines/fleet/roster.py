"""Who belongs to the fleet: devices, and the tokens with which they join. All of it lies in the journal."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from edgewise.engines.fleet.journal import Database, Journal
from edgewise.errors import EdgewiseError

SUSPECT = 3  # refused updates after which a device is no longer asked, until an operator clears it
MOST = 1 << 20  # devices of a fleet


@dataclass(frozen=True)
class Member:
    """A device that has joined. Times are seconds since 1970; counts are None until it was connected."""

    id: int
    name: str
    fingerprint: str
    joined: float
    revoked: float | None
    flags: int  # updates of it that were refused
    examples: int | None
    tests: int | None
    labels: tuple[int, ...] | None
    seen: float | None

    @property
    def trusted(self) -> bool:
        return self.revoked is None and self.flags < SUSPECT

    def row(self) -> dict[str, object]:
        return asdict(self)


COLUMNS = "id, name, fingerprint, joined, revoked, flags, examples, tests, labels, seen"


def members(journal: Journal) -> Future[list[Member]]:
    """All devices that have joined, by number."""

    def action(database: Database) -> list[Member]:
        return [_member(row) for row in database.execute(f"SELECT {COLUMNS} FROM devices ORDER BY id")]

    return journal.ask(action)


def member(journal: Journal, device: int, fingerprint: str | None) -> Future[Member]:
    """The device with this certificate; EdgewiseError if it has another by now, is unknown, or was revoked.

    `fingerprint` is None where there are no certificates: whoever comes is believed.
    """

    def action(database: Database) -> Member:
        if fingerprint is None:
            row = (device, "without certificate", f"none-{device}", time.time())
            columns = "id, name, fingerprint, joined"
            database.execute(f"INSERT OR IGNORE INTO devices ({columns}) VALUES (?, ?, ?, ?)", row)
        row = database.execute(f"SELECT {COLUMNS} FROM devices WHERE id = ?", (device,)).fetchone()
        if row is None:
            raise EdgewiseError(f"device {device} has not joined this fleet")
        found = _member(row)
        if found.revoked is not None:
            raise EdgewiseError(f"device {device} was revoked")
        if fingerprint is not None and not hmac.compare_digest(found.fingerprint, fingerprint):
            raise EdgewiseError(f"device {device} has another certificate by now")
        return found

    return journal.ask(action)


def _member(row: Sequence[Any]) -> Member:
    values = dict(zip(COLUMNS.split(", "), row, strict=True))
    values["labels"] = values["labels"] and tuple(json.loads(values["labels"]))
    return Member(**values)


def invite(
    journal: Journal, digests: Sequence[str], expires: float, device: int | None = None
) -> Future[list[int]]:
    """Store tokens by the digests of their secrets; the numbers of the devices that may join with them.

    `device`: the number to give, for a device that joins anew; else the lowest ones that are free.
    """

    def action(database: Database) -> list[int]:
        if device is not None:
            numbers = [device] * len(digests)
            if not 0 <= device < MOST:
                raise EdgewiseError(f"device: {device} is not a device's number; legal: 0 to {MOST - 1}")
        else:
            held = {row[0] for row in database.execute("SELECT id FROM devices")}
            waiting = database.execute(
                "SELECT device FROM tokens WHERE used IS NULL AND expires > ?", (time.time(),)
            )
            held |= {row[0] for row in waiting}
            free = (number for number in range(len(held) + len(digests)) if number not in held)
            numbers = [number for number, _ in zip(free, digests, strict=False)]
            if numbers and numbers[-1] >= MOST:
                raise EdgewiseError(f"a fleet has at most {MOST} devices")
        rows = [(digest, number, expires) for digest, number in zip(digests, numbers, strict=True)]
        database.executemany("INSERT INTO tokens (digest, device, expires) VALUES (?, ?, ?)", rows)
        return numbers

    return journal.ask(action)


def check_token(journal: Journal, digest: str, key: str) -> Future[int]:
    """The number that goes with a token; EdgewiseError if unknown, expired, or used for another key.

    For the same key it is good again: the answer to its first use may have been lost.
    """

    def action(database: Database) -> int:
        return _valid(database, digest, key)

    return journal.ask(action)


def enrol(journal: Journal, digest: str, key: str, name: str, fingerprint: str) -> Future[int]:
    """Use a token up: its device has a certificate of this fingerprint from now on, and no other."""

    def action(database: Database) -> int:
        device = _valid(database, digest, key)
        again = database.execute(
            "UPDATE devices SET name = ?, fingerprint = ? WHERE id = ? AND id IN "
            "(SELECT device FROM tokens WHERE digest = ? AND used IS NOT NULL)",
            (name, fingerprint, device, digest),
        )
        if not again.rowcount:
            _put(database, device, name, fingerprint)
        database.execute("UPDATE tokens SET used = ?, key = ? WHERE digest = ?", (time.time(), key, digest))
        return device

    return journal.ask(action)


def add(journal: Journal, device: int, name: str, fingerprint: str) -> Future[None]:
    """Take a device in without a token."""
    return journal.ask(lambda database: _put(database, device, name, fingerprint))


def _put(database: Database, device: int, name: str, fingerprint: str) -> None:
    database.execute("DELETE FROM devices WHERE id = ?", (device,))
    database.execute(
        "INSERT INTO devices (id, name, fingerprint, joined) VALUES (?, ?, ?, ?)",
        (device, name, fingerprint, time.time()),
    )


def _valid(database: Database, digest: str, key: str) -> int:
    # Looked up by the digest of a secret of 256 bits: how long that takes tells nobody anything.
    found = database.execute(
        "SELECT device, expires, used, key FROM tokens WHERE digest = ?", (digest,)
    ).fetchone()
    if found is None:
        raise EdgewiseError("the token is not one of this fleet's")
    device, expires, used, bearer = found
    if used is not None and bearer != key:
        raise EdgewiseError("the token was used already; ask for another")
    if expires <= time.time():
        raise EdgewiseError("the token has expired; ask for another")
    if used is not None and _revoked(database, device):
        raise EdgewiseError(f"device {device} was revoked; ask for another token")
    return int(device)


def _revoked(database: Database, device: int) -> bool:
    row = database.execute("SELECT revoked FROM devices WHERE id = ?", (device,)).fetchone()
    return row is not None and row[0] is not None


def present(
    journal: Journal, device: int, examples: int, tests: int, labels: Sequence[int] | None
) -> Future[None]:
    """What a device said of its data when it connected."""
    told = json.dumps(list(labels)) if labels else None

    def action(database: Database) -> None:
        database.execute(
            "UPDATE devices SET examples = ?, tests = ?, labels = ?, seen = ? WHERE id = ?",
            (examples, tests, told, time.time(), device),
        )

    return journal.ask(action)


def revoke(journal: Journal, device: int) -> Future[Member]:
    """Take a device out for good: its certificate is worth nothing from here on."""
    return _change(journal, device, "revoked = coalesce(revoked, ?)", time.time())


def clear(journal: Journal, device: int) -> Future[Member]:
    """Forget the refused updates of a device, so that it is asked again."""
    return _change(journal, device, "flags = ?", 0)


def flag(journal: Journal, device: int) -> Future[Member]:
    """One more refused update."""
    return _change(journal, device, "flags = flags + ?", 1)


def _change(journal: Journal, device: int, what: str, value: float) -> Future[Member]:
    def action(database: Database) -> Member:
        if not 0 <= device < 1 << 63:  # SQLite has no larger numbers
            raise EdgewiseError(f"device {device} has not joined this fleet")
        database.execute(f"UPDATE devices SET {what} WHERE id = ?", (value, device))
        row = database.execute(f"SELECT {COLUMNS} FROM devices WHERE id = ?", (device,)).fetchone()
        if row is None:
            raise EdgewiseError(f"device {device} has not joined this fleet")
        return _member(row)

    return journal.ask(action)
