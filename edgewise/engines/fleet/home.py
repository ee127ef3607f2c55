"""A coordinator's folder: its authority, its journal, its spool, and the socket by which it is spoken to.

contact.json      where devices find the coordinator
ca/               the authority's key and certificate, and the coordinator's own
journal.sqlite    devices, tokens, rounds, updates
spool/RUN/ROUND/  updates as they came
coordinator.log   what happened, as JSON lines
control.sock      where a running coordinator listens to `edgewise coordinator invite`, `status`, ...
run/              the run's records, unless --out names another folder
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from edgewise import files
from edgewise.engines.fleet.identity import CA, Authority
from edgewise.engines.fleet.journal import Journal
from edgewise.engines.fleet.token import check_address
from edgewise.errors import EdgewiseError

CONTACT = "contact.json"
LOG = "coordinator.log"
LONGEST_SOCKET = 107  # bytes of the path of a Unix socket on Linux
RUN_ID = "fleet.id"  # in a run's folder: by which agents and the journal know the run


class Home:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.journal_file = folder / "ca", folder / "journal.sqlite"
        self.control, self.run = folder / "control.sock", folder / "run"
        self.log = folder / LOG

    def found(self, contact: Contact) -> None:
        """Make the folder of a new fleet; EdgewiseError if it holds one. An interrupted one is completed."""
        self.check_socket()
        files.make_private(self.folder)
        if not (self.ca / CA).exists():
            contact.save(self.folder)
        Authority.create(self.ca)

    def check_socket(self) -> None:
        """EdgewiseError if the path of the socket is longer than the system takes."""
        length = len(os.fsencode(self.control))
        if length > LONGEST_SOCKET:
            raise EdgewiseError(
                f"{self.control}: {length} bytes, where the path of a socket has at most {LONGEST_SOCKET}; "
                "use a folder with a shorter path"
            )

    def check(self) -> None:
        """EdgewiseError unless `coordinator init` was here."""
        if not self.ca.is_dir():
            raise EdgewiseError(
                f"{self.folder}: not a coordinator's folder; edgewise coordinator init makes one"
            )

    def spool(self, run: str) -> Path:
        return self.folder / "spool" / run

    @contextmanager
    def alone(self) -> Iterator[Journal]:
        """The journal, with no other process writing to it; EdgewiseError while a coordinator runs."""
        self.check()
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise EdgewiseError(f"{self.folder}: another coordinator runs on this folder") from None
        try:
            journal = Journal(self.journal_file)
            try:
                yield journal
            finally:
                journal.close()
        finally:
            os.close(descriptor)


def run_id(folder: Path) -> str:
    """The id of the run in a folder, made when the run is new."""
    path = folder / RUN_ID
    if not path.exists():
        files.write(path, uuid4().hex + "\n")
    found = path.read_text().strip()
    if len(found) != 32 or not found.isalnum():
        raise EdgewiseError(f"{path}: not a run's id")
    return found


@dataclass(frozen=True)
class Contact:
    """How devices reach the coordinator: by any of these hosts, at one port; the next port is for joining."""

    hosts: tuple[str, ...]
    port: int

    @classmethod
    def of(cls, hosts: tuple[str, ...], port: int) -> Contact:
        """As an operator names the hosts; EdgewiseError for what is neither a name nor an IP address."""
        found = cls(tuple(_bracketed(host) for host in hosts), port)
        for host, address in zip(hosts, found.fleet, strict=True):
            try:
                check_address(address)
            except EdgewiseError:
                raise EdgewiseError(
                    f"--address: {host[:80]!r} is not a host's name or IP address (its port is --port)"
                ) from None
        return found

    @property
    def fleet(self) -> tuple[str, ...]:
        return tuple(f"{host}:{self.port}" for host in self.hosts)

    @property
    def join(self) -> str:
        return f"{self.hosts[0]}:{self.port + 1}"

    def save(self, folder: Path) -> None:
        files.write(folder / CONTACT, json.dumps({"hosts": list(self.hosts), "port": self.port}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Contact:
        """EdgewiseError if `coordinator init` was not here."""
        try:
            found = json.loads((folder / CONTACT).read_text())
            hosts, port = found["hosts"], int(found["port"])
            if not (isinstance(hosts, list) and hosts and all(isinstance(host, str) for host in hosts)):
                raise ValueError("no list of hosts")
            if not 0 < port < 65535:
                raise ValueError(f"port {port}")
            return cls(tuple(hosts), port)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EdgewiseError(
                f"{folder / CONTACT}: not readable ({error}); coordinator init makes it"
            ) from None


def _bracketed(host: str) -> str:
    """A host as it stands before `:port`."""
    try:
        return f"[{ipaddress.IPv6Address(host).compressed}]"
    except ValueError:
        return host
