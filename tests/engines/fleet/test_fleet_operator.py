"""What an operator asks of a coordinator, be it running or not; and that its secrets are written nowhere."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_in_process import InProcess, config, specks

from edgewise.engines.fleet.enrol import Enrolment
from edgewise.engines.fleet.home import Home
from edgewise.engines.fleet.identity import Authority, Identity
from edgewise.engines.fleet.logs import log_to
from edgewise.engines.fleet.messages import JoinRequest
from edgewise.engines.fleet.operator import LATEST, ask
from edgewise.engines.fleet.roster import MOST, SUSPECT, add, flag
from edgewise.errors import EdgewiseError


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("home") / "ca")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "home")
    found.ca.mkdir(parents=True)
    with found.alone() as journal:
        for device in (0, 1):
            add(journal, device, f"name {device}", f"print {device}").result(60)
    return found


def invite(home: Home, **other: Any) -> dict[str, Any]:
    return ask(home, {"what": "invite", "count": 1, "hours": 1.0, "device": None, **other})


def test_invitations(home: Home) -> None:
    answer = invite(home, count=3)
    assert answer["devices"] == [2, 3, 4]
    assert len({*answer["secrets"]}) == 3 and all(len(bytes.fromhex(one)) == 32 for one in answer["secrets"])
    assert invite(home, device=1)["devices"] == [1]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({"count": 0}, f"--count 0: legal: 1 to {MOST}"),
        ({"count": MOST + 1}, f"legal: 1 to {MOST}"),
        ({"hours": 0.0}, "--hours 0: legal: above 0"),
        ({"hours": float("nan")}, "--hours nan: legal"),
        ({"hours": 24 * 366}, "--hours 8784: legal"),
        ({"device": -1}, "-1 is not a device's number"),
        ({"device": MOST}, "is not a device's number"),
    ],
)
def test_invitations_that_make_no_sense(home: Home, what: dict[str, Any], reason: str) -> None:
    with pytest.raises(EdgewiseError, match=reason):
        invite(home, **what)


def test_devices_and_what_becomes_of_them(home: Home) -> None:
    with home.alone() as journal:
        for _ in range(SUSPECT):
            flag(journal, 1).result(60)
    assert states(home) == {0: "away", 1: "suspended"}
    assert ask(home, {"what": "clear", "device": 1})["device"]["flags"] == 0
    assert ask(home, {"what": "revoke", "device": 0})["device"]["revoked"] is not None
    assert states(home) == {0: "revoked", 1: "away"}
    answer = ask(home, {"what": "status"})
    assert not answer["running"] and answer["events"][-1]["kind"] == "revoked"


def states(home: Home) -> dict[int, str]:
    return {one["id"]: one["state"] for one in ask(home, {"what": "status"})["devices"]}


@pytest.mark.parametrize("device", [5, -1, 1 << 70])
@pytest.mark.parametrize("what", ["revoke", "clear"])
def test_devices_that_there_are_not(home: Home, what: str, device: int) -> None:
    with pytest.raises(EdgewiseError, match=f"device {device} has not joined this fleet"):
        ask(home, {"what": what, "device": device})


def test_what_nobody_knows_and_what_nobody_is_there_for(home: Home) -> None:
    with pytest.raises(EdgewiseError, match="'dance' is unknown; one of: invite, revoke"):
        ask(home, {"what": "dance"})
    with pytest.raises(EdgewiseError, match="no coordinator runs here"):
        ask(home, {"what": "stop"})


def test_a_socket_that_was_left_behind(home: Home) -> None:
    home.control.touch()
    assert states(home) == {0: "away", 1: "away"}


def test_a_status_shows_the_latest_events_the_oldest_first(home: Home) -> None:
    with home.alone() as journal:
        for number in range(LATEST + 5):
            journal.event("kind", str(number)).result(60)
    events = ask(home, {"what": "status"})["events"]
    assert [one["words"] for one in events] == [str(number) for number in range(5, LATEST + 5)]


def test_of_a_coordinator_that_runs(tmp_path: Path, authority: Authority) -> None:
    fleet = InProcess(tmp_path, specks(), authority)
    fleet.gathered = True
    play = fleet.drive(config(steps=3))
    next(play)
    answer = ask(fleet.home, {"what": "status"})
    assert answer["running"] and (answer["round"], answer["rounds"], answer["connected"]) == (1, 3, 3)
    assert answer["missing"] == [] and answer["allowance"] > 0
    assert [(one["state"], one["examples"]) for one in answer["devices"]] == [("ready", 16)] * 3
    assert invite(fleet.home)["devices"] == [3]
    with pytest.raises(EdgewiseError, match="device 9 has not joined"):
        ask(fleet.home, {"what": "revoke", "device": 9})
    assert len(list(play)) == 2
    assert not fleet.home.control.exists() and states(fleet.home) == dict.fromkeys(range(3), "away")


# ---- secrets ----


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Path]:
    logger = logging.getLogger("edgewise")
    before = (logger.handlers[:], logger.level, logger.propagate, logging.raiseExceptions)
    log_to(tmp_path / "log")
    yield tmp_path / "log"
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.level, logger.propagate, logging.raiseExceptions = before


def test_no_secret_is_written_down(home: Home, authority: Authority, tmp_path: Path, logged: Path) -> None:
    secret = bytes.fromhex(invite(home)["secrets"][0])
    identity = Identity(tmp_path / "device")
    request = JoinRequest(secret=secret, csr=identity.request(), name="a device\n{}\x00")
    with home.alone() as journal:
        told: list[int] = []
        enrolment = Enrolment(authority, journal, lambda device, fingerprint: told.append(device))

        def join(request: Any) -> Any:
            return asyncio.run(enrolment.join(request.SerializeToString(), "peer"))

        assert join(request).certificate
        other = JoinRequest(secret=secret, csr=Identity(tmp_path / "other").request(), name="thief")
        assert "used already" in join(other).refused
        request.secret = bytes(32)
        assert "not one of this fleet's" in join(request).refused
        assert join(JoinRequest(secret=secret, csr=b"none")).refused
        assert told == [2]
        written = b"".join(path.read_bytes() for path in home.folder.glob("journal.sqlite*"))
    assert logged.read_text().count("\n") == 4
    written += logged.read_bytes() + b"".join(p.read_bytes() for p in home.folder.glob("journal.sqlite*"))
    key = (tmp_path / "device" / "device.key").read_bytes()
    for hidden in (secret, secret.hex().encode(), key.splitlines()[1], b"PRIVATE KEY"):
        assert hidden not in written
    assert states(home)[2] == "away"
