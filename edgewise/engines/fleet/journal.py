"""The journal: all that a coordinator decided, in one SQLite file that survives any death of it.

One thread writes (WAL, `synchronous=FULL`: a commit is on the disk when it returns). What is asked of it
while a commit is under way goes into the next one together, so a round of many replies costs few waits for
the disk. Updates themselves lie beside it, in the spool; a row with an update's digest says that it counts.
Small ones are written by this thread too (`segment.py`), and a commit waits for them first.
"""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgewise.engines.fleet.disk import DiskError
from edgewise.engines.fleet.segment import Place, Segment
from edgewise.errors import EdgewiseError
from edgewise.wire import Bytes

T = TypeVar("T")
Database = sqlite3.Connection
Asked = tuple[Callable[[Database], Any], Future[Any]]

SCHEMA = """
CREATE TABLE IF NOT EXISTS devices (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, fingerprint TEXT NOT NULL UNIQUE, joined REAL NOT NULL,
  revoked REAL, flags INTEGER NOT NULL DEFAULT 0, examples INTEGER, tests INTEGER, labels TEXT, seen REAL);
CREATE TABLE IF NOT EXISTS tokens (
  digest TEXT PRIMARY KEY, device INTEGER NOT NULL, expires REAL NOT NULL, used REAL, key TEXT);
CREATE TABLE IF NOT EXISTS rounds (
  run TEXT NOT NULL, number INTEGER NOT NULL, asked TEXT NOT NULL, opened REAL NOT NULL, closed REAL,
  PRIMARY KEY (run, number));
CREATE TABLE IF NOT EXISTS updates (
  run TEXT NOT NULL, round INTEGER NOT NULL, device INTEGER NOT NULL, digest TEXT NOT NULL,
  length INTEGER NOT NULL, norm REAL NOT NULL, seconds REAL NOT NULL, at REAL NOT NULL, place INTEGER,
  PRIMARY KEY (run, round, device));
CREATE TABLE IF NOT EXISTS evaluations (
  run TEXT NOT NULL, round INTEGER NOT NULL, result TEXT NOT NULL, PRIMARY KEY (run, round));
CREATE TABLE IF NOT EXISTS events (
  at REAL NOT NULL, run TEXT, round INTEGER, device INTEGER, kind TEXT NOT NULL, words TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Opened:
    """A round as the journal has it. `taken`: digests of the updates that count, by device."""

    asked: tuple[int, ...]
    closed: bool
    taken: dict[int, str]


@dataclass(frozen=True)
class Entry:
    """An update that is to count. `seconds`: that the device took for it."""

    round: int
    device: int
    digest: str
    length: int
    norm: float
    seconds: float


class JournalError(EdgewiseError):
    """The journal cannot be written; the same may go through later."""


class Journal:
    def __init__(self, path: Path) -> None:
        """Open or make the journal; EdgewiseError if the file cannot be used."""
        self.path = path
        self.segment: Segment | None = None  # of the run whose small updates it takes
        self._asked: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._ended = False
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._write, args=(started,), name="journal", daemon=True)
        self._thread.start()
        started.result()

    def ask(self, action: Callable[[Database], T]) -> Future[T]:
        """Do `action` on the database; the future has its result once that is on the disk."""
        future: Future[T] = Future()
        self._asked.put((action, future))
        if self._ended:
            self._refuse()
        return future

    def close(self) -> None:
        """Finish what was asked, and close."""
        self._asked.put(None)
        self._thread.join()

    def _write(self, started: Future[None]) -> None:
        try:
            database = _open(self.path)
        except (sqlite3.Error, OSError) as error:
            started.set_exception(EdgewiseError(f"{self.path}: not a usable journal ({error})"))
            return
        started.set_result(None)
        running = True
        while running:
            group = [self._asked.get()]
            while not self._asked.empty():
                group.append(self._asked.get())
            running = None not in group
            self._commit(database, [one for one in group if one is not None])
        database.close()
        self._ended = True
        self._refuse()

    def _refuse(self) -> None:
        """Tell those who asked after the close."""
        with suppress(queue.Empty):
            while True:
                asked = self._asked.get_nowait()
                if asked is not None and asked[1].set_running_or_notify_cancel():
                    asked[1].set_exception(JournalError(f"{self.path}: closed"))

    def _commit(self, database: Database, group: list[Asked]) -> None:
        """One transaction for the group: either all of it is on the disk, or nobody is told that it is."""
        group = [one for one in group if one[1].set_running_or_notify_cancel()]
        try:
            try:
                done = self._transact(database, group, _do)
            except Exception:  # what one of them does wrong, it takes back alone
                done = self._transact(database, group, _try)
        except (sqlite3.Error, DiskError) as error:
            for _, future in group:
                if not future.done():
                    future.set_exception(JournalError(f"{self.path}: cannot be written ({error})"))
            return
        for future, result in done:
            future.set_result(result)

    def _transact(
        self, database: Database, group: list[Asked], each: Callable[..., Iterator[Any]]
    ) -> list[tuple[Future[Any], Any]]:
        try:
            database.execute("BEGIN IMMEDIATE")
            done = [(one[1], result) for one in group for result in each(database, *one)]
            if self.segment is not None:
                self.segment.sync()
            database.execute("COMMIT")
        except Exception:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")  # unless SQLite has done so
            self._settle(False)
            raise
        self._settle(True)
        return done

    def _settle(self, kept: bool) -> None:
        if self.segment is not None:
            self.segment.settle(kept)

    # ---- rounds ----

    def open_round(self, run: str, number: int, asked: Sequence[int]) -> Future[None]:
        """These devices are asked, in this order; said once more where it asks further ones."""
        row = (run, number, json.dumps(list(asked)), time.time())

        def action(database: Database) -> None:
            database.execute(
                "INSERT INTO rounds (run, number, asked, opened) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (run, number) DO UPDATE SET asked = excluded.asked",
                row,
            )

        return self.ask(action)

    def close_round(self, run: str, number: int) -> Future[None]:
        def action(database: Database) -> None:
            done = database.execute(
                "UPDATE rounds SET closed = ? WHERE run = ? AND number = ?", (time.time(), run, number)
            )
            if not done.rowcount:
                raise JournalError(f"round {number} was not opened, and cannot be closed")

        return self.ask(action)

    def close_before(self, run: str, number: int) -> Future[None]:
        """Close the rounds before this one: what is saved rests on them, whoever was left to say so."""

        def action(database: Database) -> None:
            where = (time.time(), run, number)
            query = "UPDATE rounds SET closed = ? WHERE run = ? AND number < ? AND closed IS NULL"
            database.execute(query, where)

        return self.ask(action)

    def round(self, run: str, number: int) -> Future[Opened | None]:
        """A round, or None if the journal knows nothing of it.

        `asked` is empty where it could not be opened, and updates were taken nevertheless.
        """

        def action(database: Database) -> Opened | None:
            where = (run, number)
            row = database.execute(
                "SELECT asked, closed FROM rounds WHERE run = ? AND number = ?", where
            ).fetchone()
            found = database.execute("SELECT device, digest FROM updates WHERE run = ? AND round = ?", where)
            taken = dict(found.fetchall())
            if row is None:
                return Opened((), False, taken) if taken else None
            return Opened(tuple(json.loads(row[0])), row[1] is not None, taken)

        return self.ask(action)

    def take(self, run: str, entry: Entry, content: Bytes | None = None) -> Future[None]:
        """An update counts from here on; EdgewiseError if another one of its round and device does.

        `content`: its bytes, which are to lie in the segment, if it has no file.
        """

        def action(database: Database) -> None:
            segment = self.segment
            assert segment is not None or content is None
            place = segment.free if segment is not None and content is not None else None
            row = (run, *astuple(entry), time.time(), place)
            done = database.execute(
                "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row
            )
            if done.rowcount:
                if segment is not None and content is not None:
                    segment.append(entry.round, entry.device, entry.digest, content)
            elif _taken(database, run, entry.round, entry.device) != entry.digest:
                raise EdgewiseError(f"another update of device {entry.device} counts in round {entry.round}")

        return self.ask(action)

    def places(self, run: str, after: int) -> Future[list[Place]]:
        """Where the updates of later rounds lie that are in the segment."""

        def action(database: Database) -> list[Place]:
            rows = database.execute(
                "SELECT round, device, digest, place, length FROM updates "
                "WHERE run = ? AND round > ? AND place IS NOT NULL",
                (run, after),
            )
            return [Place(*row) for row in rows]

        return self.ask(action)

    def taken(self, run: str, round: int, device: int) -> Future[str | None]:
        """The digest of the update of a device that counts in a round, if there is one."""

        return self.ask(lambda database: _taken(database, run, round, device))

    def norms(self, run: str, last: int) -> Future[list[float]]:
        """The norms of the updates that were taken last, the oldest first."""

        def action(database: Database) -> list[float]:
            rows = database.execute(
                "SELECT norm FROM updates WHERE run = ? ORDER BY at DESC LIMIT ?", (run, last)
            )
            return [row[0] for row in rows][::-1]

        return self.ask(action)

    def last_taken(self, run: str, device: int) -> Future[int]:
        """The last round in which an update of the device counts; 0 for none."""

        def action(database: Database) -> int:
            row = database.execute(
                "SELECT max(round) FROM updates WHERE run = ? AND device = ?", (run, device)
            ).fetchone()
            return row[0] or 0

        return self.ask(action)

    def evaluated(self, run: str, round: int, result: dict[str, Any]) -> Future[None]:
        row = (run, round, json.dumps(result))

        def action(database: Database) -> None:
            database.execute("INSERT INTO evaluations VALUES (?, ?, ?)", row)

        return self.ask(action)

    def evaluation(self, run: str, round: int) -> Future[dict[str, Any] | None]:
        def action(database: Database) -> dict[str, Any] | None:
            row = database.execute(
                "SELECT result FROM evaluations WHERE run = ? AND round = ?", (run, round)
            ).fetchone()
            return row and json.loads(row[0])

        return self.ask(action)

    def event(
        self,
        kind: str,
        words: str,
        run: str | None = None,
        round: int | None = None,
        device: int | None = None,
    ) -> Future[None]:
        """A decision that is neither a round nor an update: a refusal, a late reply, a revocation."""
        row = (time.time(), run, round, device, kind, words)

        def action(database: Database) -> None:
            database.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", row)

        return self.ask(action)


def _do(database: Database, action: Callable[[Database], Any], future: Future[Any]) -> Iterator[Any]:
    """The result of an action, as `_try` gives it where nothing fails; every statement less is a switch of
    threads less, while the event loop is busy."""
    yield action(database)


def _try(database: Database, action: Callable[[Database], Any], future: Future[Any]) -> Iterator[Any]:
    """The result of an action; nothing of one that fails, which takes only itself back."""
    database.execute("SAVEPOINT one")
    try:
        yield action(database)
    except Exception as error:  # a fault of ours ends neither this thread nor what others asked
        if not database.in_transaction:
            raise  # the disk refused, and SQLite has taken the whole group back
        database.execute("ROLLBACK TO one")
        future.set_exception(JournalError(str(error)) if isinstance(error, sqlite3.Error) else error)
    database.execute("RELEASE one")


def _taken(database: Database, run: str, round: int, device: int) -> str | None:
    row = database.execute(
        "SELECT digest FROM updates WHERE run = ? AND round = ? AND device = ?", (run, round, device)
    ).fetchone()
    return row and row[0]


def _open(path: Path) -> Database:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.executescript(SCHEMA)
    if "place" not in {row[1] for row in database.execute("PRAGMA table_info(updates)")}:
        database.execute("ALTER TABLE updates ADD COLUMN place INTEGER")  # a journal from before
    path.chmod(0o600)
    return database
