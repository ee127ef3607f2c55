"""What a coordinator says of itself: JSON lines, counts for Prometheus; and points at which it may die."""

import json
import logging
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from edgewise.engines.fleet.faults import AGENT, COORDINATOR, Fault
from edgewise.engines.fleet.logs import LONGEST, log_to
from edgewise.engines.fleet.metrics import Metrics
from edgewise.errors import EdgewiseError

log = logging.getLogger("edgewise.coordinator")


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Edgewise's logger, as it was before when the test is over."""
    found = logging.getLogger("edgewise")
    before = (found.handlers[:], found.level, found.propagate, logging.raiseExceptions)
    yield found
    for handler in found.handlers:
        if handler not in before[0]:
            handler.close()
    found.handlers[:], found.level, found.propagate, logging.raiseExceptions = before


@pytest.fixture
def path(logger: logging.Logger, tmp_path: Path) -> Path:
    log_to(tmp_path / "log")
    return tmp_path / "log"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- the log ----


def test_a_line_is_one_json_object(path: Path) -> None:
    log.warning("late", extra={"device": 3, "round": 0, "words": "the round\nis closed", "peer": None})
    log.debug("not this")
    (line,) = lines(path)
    assert line.pop("at")[:2] == "20"  # type: ignore[index]
    assert line == {
        **{"level": "warning", "from": "edgewise.coordinator", "event": "late"},
        **{"device": 3, "round": 0, "words": "the round\nis closed"},
    }


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=3 * LONGEST))
def test_any_text_stays_within_one_bounded_line(path: Path, words: str) -> None:
    before = len(path.read_bytes().splitlines())
    log.warning("refused", extra={"words": words, "peer": words})
    *_, last = path.read_bytes().splitlines()
    assert len(path.read_bytes().splitlines()) == before + 1
    assert len(last) < 12 * 2 * LONGEST + 500  # a letter is twelve bytes at most
    found = json.loads(last)
    assert found["words"] == found["peer"] == words[:LONGEST]


def test_a_fault_of_ours_brings_its_traceback(path: Path) -> None:
    try:
        raise ZeroDivisionError("of ours")
    except ZeroDivisionError:
        log.exception("crashed")
    (line,) = lines(path)
    assert line["level"] == "error" and "ZeroDivisionError: of ours" in str(line["trace"])


def test_it_goes_on_at_the_end_of_the_file(path: Path) -> None:
    log.info("one")
    log_to(path)
    log.info("two")
    assert [line["event"] for line in lines(path)] == ["one", "two"]


def test_a_file_that_was_rotated_away_is_made_anew(path: Path) -> None:
    log.info("one")
    path.rename(path.with_name("log.1"))
    log.info("two")
    assert [line["event"] for line in lines(path)] == ["two"]


def test_to_stderr(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    log_to(None)
    log.info("here")
    assert json.loads(capsys.readouterr().err)["event"] == "here"


def test_a_log_that_cannot_be_written(logger: logging.Logger, tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match=r"--log .*: cannot be written"):
        log_to(tmp_path / "nowhere" / "log")


# ---- metrics ----


def test_metrics_of_two_coordinators_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.updates.labels("taken").inc()
    one.received.inc(100)
    one.round.set(7)
    one.seconds.observe(0.03)
    families = {family.name: family for family in text_string_to_metric_families(text(one))}
    values = {(s.name, *s.labels.values()): s.value for family in families.values() for s in family.samples}
    assert values["edgewise_updates_total", "taken"] == 1
    assert values["edgewise_received_bytes_total",] == 100 and values["edgewise_round",] == 7
    assert (
        values["edgewise_round_seconds_bucket", "0.05"] == 1
        and values["edgewise_round_seconds_bucket", "0.02"] == 0
    )
    assert all(name.startswith("edgewise_") and family.documentation for name, family in families.items())
    assert "edgewise_round 0.0" in text(other) and "taken" not in text(other)


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_they_are_served_over_http() -> None:
    metrics = Metrics()
    metrics.round.set(12)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EdgewiseError, match=rf"--metrics 127\.0\.0\.1:{port}: cannot listen there"):
            metrics.serve(f"127.0.0.1:{port}")
    metrics.serve(f"127.0.0.1:{port}")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        assert b"edgewise_round 12.0" in answer.read()


@pytest.mark.parametrize(
    "address", ["", "nothing", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:-1", "no host:9"]
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(EdgewiseError, match=r"^--metrics .*: cannot listen there"):
        Metrics().serve(address)


# ---- faults ----


@pytest.mark.parametrize("points", [COORDINATOR, AGENT], ids=["coordinator", "agent"])
def test_every_point_can_be_named(points: tuple[str, ...]) -> None:
    assert len({*points}) == len(points)
    for point in points:
        fault = Fault(f"{point}@3", points)
        assert fault.at == (point, 3)
        fault.reached(point, 2)  # nothing happens elsewhere
        fault.reached("elsewhere", 3)
    Fault(None, points).reached(points[0], 0)


@pytest.mark.parametrize(
    "given", ["", "taken", "taken@", "taken@x", "taken@-1", "taken@1.5", "taken@²", "nowhere@1", "@1"]
)
def test_a_point_that_there_is_not(given: str) -> None:
    with pytest.raises(EdgewiseError, match=r"is not POINT@ROUND; points: opened, pushed"):
        Fault(given, COORDINATOR)
