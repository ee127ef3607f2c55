"""Drift and forgetting in a report: the table, the picture, the columns of the CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from written import row, write_run

from edgewise.errors import EdgewiseError
from edgewise.report.drift import panels
from edgewise.report.page import Report, write
from edgewise.report.runs import read
from edgewise.report.watched import COLUMNS


def told(number: int, cosine: float, absent: list[float], **changes: Any) -> dict[str, Any]:
    probe = {"devices": [0], "images": 10, "own": [0.5, 1.0, 0.5], "absent": absent}
    probe |= {"counterforce": [0.25, 0.75, 0.125], "margin": [0.0, 3.5, -0.5]}
    drift = {"drift_cosine": cosine, "drift_diversity": 2.0, "forgetting": 0.125, "probe": probe}
    return row(number, 0.5, **{**drift, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs/skewed", [told(1, -0.25, [0.5, 0.0, 0.25]), told(2, 0.5, [0.25, 0.125, 0.5])])
    write_run(tmp_path / "runs/fused", [row(1, 0.5), row(2, 0.75)], sync_every=6)
    return tmp_path


def test_the_table_is_of_the_last_evaluations(folder: Path) -> None:
    table = Report(read([folder])).tables[-1]
    assert table.title.startswith("Drift and forgetting")
    assert dict(zip(table.columns, table.rows[1], strict=True)) == {
        **{"run": "skewed", "cosine": "0.12", "diversity": "2.00", "forgetting": "12.5"},
        **{"own classes": "50, 100, 50", "other classes": "38, 6, 38", "counterforce": "25, 75, 12"},
    }
    assert table.rows[0] == ("fused", *["-"] * 6)


def test_a_round_is_a_tooth(folder: Path) -> None:
    runs = read([folder])
    cosines, absent, force = panels(runs, ["fused", "skewed"])
    assert (cosines.low, absent.low) == (-0.25, 0.0)
    assert (cosines.curves[1].steps, cosines.curves[1].accuracies) == ([5, 10], [-0.25, 0.5])
    assert absent.curves[1].steps == [0, 5, 5, 5, 10, 10]
    assert absent.curves[1].accuracies == [0.5, 0.0, 0.25, 0.25, 0.125, 0.5]
    assert force.curves[1].accuracies[:3] == [0.25, 0.75, 0.125] and force.curves[0].steps == []


def test_files(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "drift.png" in {path.name for path in write(Report(read([folder])), out, "")}
    assert (out / "drift.png").read_bytes().startswith(b"\x89PNG")
    assert "![drift and forgetting](drift.png)" in (out / "report.md").read_text()
    with (out / "report.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["absent_local"] for line in lines] == ["", "", "0.0", "0.125"]
    assert lines[3]["drift_cosine"] == "0.5" and set(COLUMNS) <= set(lines[0])
    plain = Report(read([folder / "runs/fused"]))
    assert {path.name for path in write(plain, out, "")} == {"report.csv", "report.md", "report.png"}
    assert not (out / "drift.png").exists(), "an earlier report's picture is not this one's"


@pytest.mark.parametrize(
    "wrong",
    [{"drift_cosine": "far"}, {"probe": 3}, {"probe": {"own": [1.0]}}, {"probe": {"absent": [1, 2, "x"]}}],
)
def test_a_damaged_line_is_told(wrong: dict[str, Any], tmp_path: Path) -> None:
    write_run(tmp_path / "run", [told(1, 0.5, [0, 0, 0], **wrong)])
    with pytest.raises(EdgewiseError, match=r"rounds.jsonl: line 1 is damaged"):
        read([tmp_path])
