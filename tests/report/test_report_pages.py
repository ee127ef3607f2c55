"""Tables, numbers in words, and the three files of a report."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from written import learning, write_run

from edgewise.errors import EdgewiseError
from edgewise.network import Link, Network
from edgewise.report import page, words
from edgewise.report.curves import Panel
from edgewise.report.page import Report, write
from edgewise.report.runs import read
from edgewise.report.table import Table, shared_accuracy

NETWORK = Network(Link(0.008, 0.016))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs/good", learning(0.5, 0.8, 0.75), norm="group")
    write_run(tmp_path / "runs/poor", learning(0.2, 0.6127, bytes_up_each=None, bytes_up=40), norm="batch")
    return tmp_path


def table(report: Report, title: str) -> dict[str, dict[str, str]]:
    (found,) = [table for table in report.tables if table.title.startswith(title)]
    return {row[0]: dict(zip(found.columns, row, strict=True)) for row in found.rows}


@pytest.mark.parametrize(
    ("bytes", "text"),
    [
        (0, "0 B"),
        (999.4, "999 B"),
        (999.5, "1.00 kB"),
        (1234, "1.23 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (44_680_000, "44.7 MB"),
        (1.2e13, "12.0 TB"),
        (5e18, "5,000 PB"),
    ],
)
def test_sizes(bytes: float, text: str) -> None:
    assert words.size(bytes) == text
    assert words.round_size(2_000_000) == "2 MB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "0.0123 s"),
        (99, "99.0 s"),
        (100, "1.67 min"),
        (6000, "1.67 h"),
        (172_800, "2.00 days"),
        (1e9, "11,574 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_a_network_in_words() -> None:
    assert words.network("lte", Network(Link(10, 20, 0.035))) == "lte (10 Mbit/s up, 20 down, 35 ms one way)"
    all_of_it = Network(Link(1, 2, 0.1, 0.01), spread=0.5, step=0.2, step_spread=0.1, server=100, seed=7)
    assert words.network("x", all_of_it) == (
        "x (1 Mbit/s up, 2 down, 100 ms one way, 1 % loss, spread 0.5, 0.2 s a step, spread of steps 0.1, "
        "coordinator 100 Mbit/s, seed 7)"
    )


def test_the_tables(folder: Path) -> None:
    report = Report(read([folder], NETWORK), NETWORK, "slow")
    assert table(report, "Accuracy") == {
        "good": {
            **{"run": "good", "settings": "norm group", "accuracy": "75.0%", "best": "80.0%"},
            **{"last 10": "68.3%", "steps": "15", "rounds": "3 of 4"},
        },
        "poor": {
            **{"run": "poor", "settings": "norm batch", "accuracy": "61.3%", "best": "61.3%"},
            **{"last 10": "40.6%", "steps": "10", "rounds": "2 of 4"},
        },
    }
    assert table(report, "Bytes")["good"] == {
        **{"run": "good", "up": "12.0 kB", "down": "36.0 kB", "up a device": "3.00 kB"},
        **{"down a device": "9.00 kB", "time on slow": "7.50 s"},
    }
    reached = table(report, "To reach 61.2% ")
    assert (reached["good"]["steps"], reached["good"]["rounds"], reached["good"]["time on slow"]) == (
        "10",
        "2",
        "5.00 s",
    )
    assert reached["poor"]["up a device"] == "20 B"


def test_a_run_that_does_not_come_to_the_target(folder: Path) -> None:
    reached = table(Report(read([folder]), target=0.7), "To reach 70.0% ")
    assert list(reached["poor"].values()) == ["poor", "-", "-", "-", "-"]
    assert reached["good"]["steps"] == "10"


def test_what_all_runs_came_up_to(folder: Path) -> None:
    runs = read([folder])
    assert shared_accuracy(runs) == 0.612  # as it is written, so that every run did reach it
    write_run(folder / "runs/waiting", [])
    assert shared_accuracy(read([folder])) == 0.612
    assert shared_accuracy([]) is None


def test_the_last_ten_are_ten(tmp_path: Path) -> None:
    write_run(tmp_path / "a", learning(0.9, 0.9, *[0.5] * 5, *[0.6] * 5), steps=60)
    assert table(Report(read([tmp_path])), "Accuracy")["a"]["last 10"] == "55.0%"


def test_one_run_has_nothing_to_differ_in(folder: Path) -> None:
    report = Report(read([folder / "runs/good"]))
    assert "settings" not in table(report, "Accuracy")["good"]
    assert "time" not in "".join(table(report, "Bytes")["good"])
    assert report.notes[0].startswith("digits, ")


def test_the_files(folder: Path) -> None:
    report = Report(read([folder], NETWORK), NETWORK, "slow")
    out = folder / "new" / "report"
    written = write(report, out, "edgewise report runs")
    assert sorted(written) == sorted(out.iterdir())
    assert {path.name for path in written} == {"report.csv", "report.md", "report.png"}
    with (out / "report.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["run"], line["step"]) for line in lines] == [
        *(("good", step) for step in ("5", "10", "15")),
        *(("poor", step) for step in ("5", "10")),
    ]
    assert [float(line["network_seconds"]) for line in lines[:3]] == pytest.approx([2.5, 5.0, 7.5])
    assert [line["bytes_down"] for line in lines[:3]] == ["12000", "24000", "36000"]
    assert [line["bytes_up_a_device"] for line in lines[3:]] == ["10", "20"]
    assert [line["seconds"] for line in lines[:3]] == ["0.25", "0.5", "0.75"]
    text = (out / "report.md").read_text()
    assert "| good | norm group | 75.0% | 80.0% |" in text and "Command: `edgewise report runs`" in text
    assert "slow (0.008 Mbit/s up, 0.016 down, 0 ms one way); the slowest device sets the pace." in text
    assert "![test accuracy](report.png)" in text
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_replaces_the_last_one(folder: Path) -> None:
    write(Report(read([folder])), folder / "out", "one")
    before = (folder / "out/report.md").read_text()
    with (folder / "runs/poor/rounds.jsonl").open("a") as file:
        file.write(json.dumps(learning(None, None, 0.9)[2]) + "\n")
    write(Report(read([folder])), folder / "out", "one")
    assert (folder / "out/report.md").read_text() != before


def test_no_picture_before_the_first_evaluation(tmp_path: Path) -> None:
    write_run(tmp_path / "a", learning(None))
    report = Report(read([tmp_path]), target=0.5)
    assert {path.name for path in write(report, tmp_path / "out", "")} == {"report.csv", "report.md"}
    assert "report.png" not in (tmp_path / "out/report.md").read_text()
    assert table(report, "Accuracy")["a"]["accuracy"] == "-"


def test_a_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(EdgewiseError, match=r"file.*: cannot be written"):
        write(Report(read([folder])), folder / "file" / "out", "")


def panels(report: Report, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Panel], dict[str, Any]]:
    drawn: dict[str, Any] = {}

    def draw(panels: list[Panel], title: str, subtitle: str, **more: Any) -> bytes:
        drawn.update(panels=panels, title=title, subtitle=subtitle, **more)
        return b""

    monkeypatch.setattr(page, "draw_panels", draw)
    page.picture(report)
    return drawn.pop("panels"), drawn


def test_what_is_drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(read([folder], NETWORK), NETWORK, "slow")
    (steps, sent, time), told = panels(report, monkeypatch)
    assert told["chance"] == 0.1 and told["title"] == "Test accuracy of 2 runs"
    for panel in (steps, sent, time):
        assert [curve.label for curve in panel.curves] == ["good", "poor"]
        assert [list(curve.accuracies) for curve in panel.curves] == [[0.5, 0.8, 0.75], [0.2, 0.6127]]
    assert list(steps.curves[0].steps) == [5, 10, 15] and not steps.log
    assert list(sent.curves[0].steps) == [1000, 2000, 3000] and sent.log
    assert list(time.curves[0].steps) == pytest.approx([2.5, 5.0, 7.5]) and not time.log
    assert time.axis.startswith("seconds on slow\n(0.008 Mbit/s up")
    monkeypatch.undo()


def test_the_axis_of_time_suits_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "fast", learning(0.5, bytes_up_each=10, bytes_down_each=10))
    write_run(tmp_path / "slow", learning(0.5, bytes_up_each=7_200_000, bytes_down_each=0))
    (time,), _ = panels(Report(read([tmp_path], NETWORK), NETWORK, "x", against=["seconds"]), monkeypatch)
    assert time.log and time.axis.startswith("hours on x") and time.curves[1].steps[0] == pytest.approx(2.0)


@pytest.mark.parametrize(("against", "axis"), [("steps", "steps"), ("bytes", "sent"), ("seconds", "seconds")])
def test_one_panel(against: str, axis: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(read([folder], NETWORK), NETWORK, "slow", against=[against])
    (panel,), _ = panels(report, monkeypatch)
    assert panel.axis.startswith(axis)


def test_without_a_network_there_is_no_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, _ = panels(Report(read([folder])), monkeypatch)
    assert [panel.axis for panel in drawn] == ["steps of a device", "sent by the average device"]


def test_runs_with_other_classes_have_no_common_chance(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = read([folder])
    other = replace(runs[0], points=tuple(replace(point, classes=3) for point in runs[0].points))
    _, told = panels(Report([other, runs[1]]), monkeypatch)
    assert told["chance"] is None


def test_a_name_does_not_break_a_table() -> None:
    shown = Table("t", ("run", "x"), (("a|b\\c", "1"),)).markdown().splitlines()
    assert shown == ["| run | x |", "| --- | --: |", "| a\\|b\\\\c | 1 |"]
