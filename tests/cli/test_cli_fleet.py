"""What one who sets up a fleet can get wrong is one line that says what, where and what to do; status 2."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import Done, Running, edgewise, start, until

from edgewise.cli.progress import watch

TINY = ("--devices", 2, "--batch", 4, "--width", 4, "--steps", 4, "--eval-every", 0)
SHAPE = ("--shape", "1x8x8")
OFFLINE: dict[str, tuple[tuple[object, ...], list[str]]] = {
    "init twice": (("coordinator", "init", "home"), ["home/ca", "already", "new folder"]),
    "init, port in address": (
        ("coordinator", "init", "new", "--address", "10.0.0.5:7443"),
        ["--address", "'10.0.0.5:7443'", "host's name or IP address", "--port"],
    ),
    "init, folder of others": (("coordinator", "init", "open"), ["open", "mode 0755", "chmod 700"]),
    "init, deep": (("coordinator", "init", "d" * 100), ["control.sock", "107", "shorter path"]),
    "invite, wrong folder": (
        ("coordinator", "invite", "nowhere"),
        ["nowhere", "not a coordinator's folder", "edgewise coordinator init"],
    ),
    "status, wrong folder": (("coordinator", "status", "open"), ["open", "not a coordinator's folder"]),
    "run, wrong folder": (("coordinator", "run", "nowhere"), ["nowhere", "not a coordinator's folder"]),
    "stop, none runs": (("coordinator", "stop", "home"), ["home", "no coordinator runs"]),
    "no tokens": (("coordinator", "invite", "home", "--count", 0), ["--count 0", "1 to"]),
    "expired at once": (("coordinator", "invite", "home", "--hours", 0), ["--hours 0", "above 0"]),
    "hours nan": (("coordinator", "invite", "home", "--hours", "nan"), ["--hours nan", "above 0"]),
    "two for one device": (
        ("coordinator", "invite", "home", "--device", 1, "--count", 2),
        ["--device", "--count is 1"],
    ),
    "revoke a stranger": (("coordinator", "revoke", "home", 7), ["device 7", "has not joined"]),
    "clear a stranger": (("coordinator", "clear", "home", 7), ["device 7", "has not joined"]),
    "revoke a name": (("coordinator", "revoke", "home", "vm"), ["'vm'", "not a valid integer"]),
    "shape alone": (("coordinator", "run", "home", *SHAPE), ["--shape", "--classes", "both"]),
    "classes alone": (("coordinator", "run", "home", "--classes", 10), ["--shape", "--classes", "both"]),
    "shape of words": (
        ("coordinator", "run", "home", "--shape", "8,8", "--classes", 10),
        ["--shape", "'8,8'", "3x32x32"],
    ),
    "shape and data": (
        ("coordinator", "run", "home", *SHAPE, "--classes", 10, "--data", "digits"),
        ["--shape", "--data", "one of them"],
    ),
    "shape, no steps": (
        ("coordinator", "run", "home", *SHAPE, "--classes", 10, "--epochs", 1),
        ["steps", "does not know how long an epoch is", "--steps"],
    ),
    "quorum": (("coordinator", "run", "home", "--quorum", 0), ["--quorum", "0", "above 0 to 1"]),
    "quorum nan": (("coordinator", "run", "home", "--quorum", "nan"), ["--quorum", "nan"]),
    "spare": (("coordinator", "run", "home", "--spare", -1), ["--spare", "-1", "0 to 10"]),
    "listen": (("coordinator", "run", "home", "--listen", "7443"), ["--listen", "'7443'", "HOST:PORT"]),
    "insecure": (
        ("coordinator", "run", "home", "--insecure-loopback", "--listen", "0.0.0.0:0"),
        ["--insecure-loopback", "0.0.0.0", "127.0.0.1"],
    ),
    "log": (("coordinator", "run", "home", "--log", "nowhere/log"), ["--log nowhere/log", "No such file"]),
    "no such norm": (("coordinator", "run", "home", "--norm", "x"), ["norm", "'x'", "group"]),
    "no config": (("coordinator", "run", "home", "absent.toml"), ["absent.toml"]),
    "not a token": (("agent", "join", "new", "hello"), ["join token", "begins with edgewise1."]),
    "no token": (("agent", "join", "new", "-"), ["join token", "begins with edgewise1."]),
    "run before join": (("agent", "run", "new"), ["new", "has not joined", "token"]),
    "status before join": (("agent", "status", "new"), ["new", "has not joined", "token"]),
    "deal to nobody": (("agent", "run", "new", "--partition", "iid"), ["--partition", "--devices", "both"]),
    "insecure, nowhere": (
        ("agent", "run", "new", "--insecure-loopback", 0),
        ["--insecure-loopback", "--coordinator 127.0.0.1:PORT"],
    ),
    "load without tokens": (("agent", "--load", 2), ["--load", "--tokens FILE"]),
    "load, no such file": (("agent", "--load", 2, "--tokens", "absent"), ["--tokens absent", "No such file"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fleet that was founded (home), and one that is open to others and not empty."""
    folder = tmp_path_factory.mktemp("fleet")
    assert edgewise("coordinator", "init", "home", "--address", "127.0.0.1", folder=folder).status == 0
    (folder / "open").mkdir(mode=0o755)
    (folder / "open" / "something").touch()
    return folder


@pytest.mark.parametrize(("arguments", "words"), OFFLINE.values(), ids=OFFLINE)
def test_a_mistake_is_one_line(place: Path, arguments: tuple[object, ...], words: list[str]) -> None:
    error = edgewise(*arguments, folder=place).error
    assert [word for word in words if word not in error] == [], error
    assert not (place / "new").exists(), "a mistake leaves no folder behind"


def token(folder: Path, *options: object) -> str:
    done = edgewise("coordinator", "invite", "home", *options, folder=folder)
    assert done.status == 0, done
    return done.out.strip()


def test_a_token_in_half_is_told_from_a_changed_one(place: Path) -> None:
    whole = token(place)
    half = edgewise("agent", "join", "new", whole[:200], folder=place).error
    assert f"cut short, 200 of {len(whole)} letters" in half
    letter = "A" if whole[100] != "A" else "B"
    changed = edgewise("agent", "join", "new", whole[:100] + letter + whole[101:], folder=place).error
    assert "changed on its way" in changed and whole[20:60] not in changed
    assert not (place / "new").exists()


def test_an_address_is_shown_as_devices_will_use_it(tmp_path: Path) -> None:
    options = ("--address", "fd00::5", "--address", "gate.example", "--port", 9000)
    done = edgewise("coordinator", "init", "home", *options, folder=tmp_path)
    assert "[fd00::5]:9000, gate.example:9000" in done.out and "[fd00::5]:9001" in done.out
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


# ---- with a coordinator that runs ----


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Running]]:
    """A coordinator that runs (on the folder home) and waits for two devices."""
    folder = tmp_path_factory.mktemp("running")
    port = free()
    done = edgewise("coordinator", "init", "home", "--address", "127.0.0.1", "--port", port, folder=folder)
    assert done.status == 0
    listen = ("--listen", f"127.0.0.1:{port}")
    running = start("coordinator", "run", "home", *TINY, *listen, folder=folder)
    until(lambda: (folder / "home" / "control.sock").exists() and "Ctrl-C" in running.err)
    yield folder, running
    running.send(signal.SIGTERM)
    done = running.wait()
    assert done.status == 0 and "nothing is lost" in done.err


def free() -> int:
    """A port that is free, as is the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def test_two_coordinators_on_one_home(fleet: tuple[Path, Running]) -> None:
    folder, _ = fleet
    error = edgewise("coordinator", "run", "home", *TINY, "--out", "other", folder=folder).error
    assert "home" in error and "another coordinator runs" in error


def test_a_port_that_is_taken(fleet: tuple[Path, Running]) -> None:
    folder, _ = fleet
    shutil.copytree(folder / "home" / "ca", folder / "second" / "ca")
    shutil.copy(folder / "home" / "contact.json", folder / "second")
    port = json.loads((folder / "second" / "contact.json").read_text())["port"]
    listen = ("--listen", f"127.0.0.1:{port}")
    error = edgewise("coordinator", "run", "second", *TINY, *listen, folder=folder).error
    assert f"--listen 127.0.0.1:{port}" in error and "in use" in error


def test_a_metrics_port_that_is_taken(fleet: tuple[Path, Running]) -> None:
    folder, _ = fleet
    shutil.copytree(folder / "home" / "ca", folder / "third" / "ca")
    shutil.copy(folder / "home" / "contact.json", folder / "third")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        options = ("--listen", "127.0.0.1:0", "--metrics", address)
        error = edgewise("coordinator", "run", "third", *TINY, *options, folder=folder).error
    assert f"--metrics {address}" in error and "cannot listen" in error


def test_a_run_of_another_config(fleet: tuple[Path, Running]) -> None:
    folder, _ = fleet
    until(lambda: (folder / "home" / "run" / "config.toml").exists())
    error = edgewise("coordinator", "run", "home", *TINY, "--lr", 0.5, folder=folder).error
    assert "lr" in error and "home/run" in error and "--out" in error


def joined(folder: Path, home: str) -> Done:
    return edgewise("agent", "join", home, token(folder), folder=folder)


def test_joining_twice_and_with_a_token_that_was_used(fleet: tuple[Path, Running]) -> None:
    folder, _ = fleet
    once = token(folder)
    done = edgewise("agent", "join", "one", once, folder=folder)
    assert done.status == 0 and "edgewise agent run one" in done.out
    assert "joined already, as device" in edgewise("agent", "join", "one", once, folder=folder).error
    assert "used already; ask for another" in edgewise("agent", "join", "two", once, folder=folder).error


def test_a_folder_serves_one_agent(fleet: tuple[Path, Running]) -> None:
    folder, _ = fleet
    assert joined(folder, "busy").status == 0
    options = ("--partition", "iid", "--devices", 50)
    first = start("agent", "run", "busy", *options, folder=folder)
    until(lambda: '"ready"' in first.err)
    second = edgewise("agent", "run", "busy", *options, folder=folder)
    first.send(signal.SIGTERM)
    assert first.wait().status == 0
    assert "busy" in second.error and "another agent runs" in second.error


def test_an_agent_without_its_data(fleet: tuple[Path, Running]) -> None:
    folder, _ = fleet
    assert joined(folder, "dataless").status == 0
    options = ("--data", "cifar10", "--data-dir", "nowhere")
    assert "nowhere" in edgewise("agent", "run", "dataless", *options, folder=folder).error
    assert "shelf" in edgewise("agent", "run", "dataless", "--data", "shelf:data", folder=folder).error


OTHER_DATA = """
import numpy
from edgewise import Dataset

def data():
    some = numpy.zeros((40, 1, 8, 8), numpy.uint8), numpy.arange(40) % 2
    return Dataset.of("shelf", train=some, test=some, classes=["milk", "bread"], augment="none")
"""


def test_a_device_that_cannot_take_part_says_why_on_both_sides(fleet: tuple[Path, Running]) -> None:
    folder, _ = fleet
    (folder / "shelf.py").write_text(OTHER_DATA)
    assert joined(folder, "unfit").status == 0
    done = edgewise("agent", "run", "unfit", "--data", "shelf:data", folder=folder, PYTHONPATH=str(folder))
    last = done.err.splitlines()[-1]
    assert done.status == 2 and last.startswith("edgewise: data shelf: 2 classes"), done
    status = json.loads(edgewise("coordinator", "status", "home", "--json", folder=folder).out)
    words = [event["words"] for event in status["events"] if event["kind"] == "refused"]
    assert any("cannot take part: data shelf: 2 classes" in word for word in words), status


def test_no_round_waits_for_a_device_that_was_revoked(tmp_path: Path) -> None:
    port = free()
    init = ("coordinator", "init", "home", "--address", "127.0.0.1", "--port", port)
    assert edgewise(*init, folder=tmp_path).status == 0
    run = ("coordinator", "run", "home", *TINY, "--listen", f"127.0.0.1:{port}")
    first = start(*run, folder=tmp_path)
    until(lambda: "Ctrl-C" in first.err)
    assert joined(tmp_path, "zero").status == joined(tmp_path, "one").status == 0
    serve = ("--partition", "iid", "--devices", 2, "--once")
    agent = start("agent", "run", "zero", *serve, folder=tmp_path)
    until(lambda: taken(tmp_path) == 1)
    edgewise("coordinator", "stop", "home", folder=tmp_path)
    assert first.wait().status == 0
    # The round is open, with one update of two; the other device will never come.
    assert edgewise("coordinator", "revoke", "home", 1, folder=tmp_path).status == 0
    second = start(*run, folder=tmp_path)
    assert second.wait().status == 0
    assert agent.wait().status == 0
    rows = [json.loads(row) for row in (tmp_path / "home/run/rounds.jsonl").read_text().splitlines()]
    assert [row.get("missing") for row in rows] == [[1], None, None, None]


def taken(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "home" / "journal.sqlite")) as journal:
        return int(journal.execute("SELECT count(*) FROM updates").fetchone()[0])


def test_who_watches_sees_rounds_and_whom_they_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    row = SimpleNamespace(round=3, step=3, train_loss=1.5, accuracy=0.25)
    watch([row], lambda: 7, lambda: "2 devices here, waiting for 1", quiet=False)  # type: ignore[list-item]
    assert "round 3/7, 2 devices here, waiting for 1" in shown.getvalue()
    assert "loss 1.500  accuracy 25.0%" in shown.getvalue()
