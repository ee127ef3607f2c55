"""A report from runs: report.csv (every evaluation), report.png, drift.png (curves), report.md (tables)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewise import records
from edgewise.errors import EdgewiseError
from edgewise.network import Network
from edgewise.report import drift, words
from edgewise.report.compare import labels, shared
from edgewise.report.curves import Curve, Panel, draw_panels
from edgewise.report.runs import Point, Run
from edgewise.report.table import Table, shared_accuracy, tables
from edgewise.report.watched import COLUMNS as WATCHED

AXES = ("steps", "bytes", "seconds")
FAR_APART = 10.0  # where one run takes this many times as long as another, the axis of time is logarithmic
COLUMNS = (
    *("run", "round", "step", "examples_seen", "accuracy", "loss", "train_loss", "bytes_up", "bytes_down"),
    *("bytes_up_a_device", "bytes_down_a_device", "seconds", "network_seconds"),
    *WATCHED,
)


@dataclass(frozen=True)
class Report:
    """What is reported: runs that were read with `network`, called `network_name`; None for no network.

    `target`: the accuracy to reach (None: one that all runs came up to). `against`: the axes of the picture.
    """

    runs: Sequence[Run]
    network: Network | None = None
    network_name: str = "network"
    target: float | None = None
    against: Sequence[str] = ()

    @property
    def tables(self) -> list[Table]:
        target = shared_accuracy(self.runs) if self.target is None else self.target
        found = tables(self.runs, target, self.network_name if self.network else None)
        further = drift.table(self.runs)
        return found if further is None else [*found, further]

    @property
    def notes(self) -> list[str]:
        """What one must know to read the tables."""
        told = shared([run.config for run in self.runs])
        notes = [f"In common: {told}."] if told and len(self.runs) > 1 else [f"{told}."] if told else []
        if self.network:
            notes.append(f"Network: {self.fleet}; the slowest device sets the pace.")
        return notes

    @property
    def fleet(self) -> str:
        return words.network(self.network_name, self.network) if self.network else ""

    @property
    def axes(self) -> Sequence[str]:
        return self.against or [axis for axis in AXES if axis != "seconds" or self.network]


def write(report: Report, out: Path, command: str) -> list[Path]:
    """Write the report's files into a folder, made if need be; returns those written.

    No picture is drawn before a run has been evaluated. EdgewiseError if the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgewiseError(f"{out}: cannot be written ({error.strerror})") from None
    contents: dict[str, str | bytes] = {"report.csv": _csv(report.runs), "report.md": _page(report, command)}
    if any(run.points for run in report.runs):
        contents["report.png"] = picture(report)
    further = drift_picture(report)
    if further is not None:
        contents["drift.png"] = further
    else:
        (out / "drift.png").unlink(missing_ok=True)  # of an earlier report
    for name, content in contents.items():
        records.write(out / name, content)
    return [out / name for name in contents]


def picture(report: Report) -> bytes:
    """The curves of the runs that have been evaluated, as a PNG."""
    runs = [run for run in report.runs if run.points]
    names = labels([run.name for run in runs], [run.config for run in runs])
    fleet = report.fleet.replace(" (", "\n(", 1)
    panels = [_panel(axis, runs, names, fleet) for axis in report.axes]
    classes = {run.points[-1].classes for run in runs}
    only = classes.pop() if len(classes) == 1 else None
    title = "Test accuracy" + (f" of {len(runs)} runs" if len(runs) > 1 else f" of {runs[0].name}")
    return draw_panels(panels, title, shared([run.config for run in runs]), chance=1 / only if only else None)


def drift_picture(report: Report) -> bytes | None:
    """How far devices drift apart and what averaging mends, as a PNG; None where no run tells of it."""
    runs = [run for run in report.runs if run.points]
    names = labels([run.name for run in runs], [run.config for run in runs])
    panels = drift.panels(runs, names)
    title = "Drift and forgetting" + ("" if len(runs) > 1 else f" of {runs[0].name}" if runs else "")
    told = shared([run.config for run in runs]) if runs else ""
    return draw_panels(panels, title, told, chance=None) if panels else None


def _panel(axis: str, runs: Sequence[Run], names: Sequence[str], fleet: str) -> Panel:
    if axis == "steps":
        return Panel("steps of a device", _curves(runs, names, lambda run, point: point.step))
    if axis == "bytes":
        curves = _curves(runs, names, lambda run, point: point.bytes_up / run.config.devices)
        return Panel("sent by the average device", curves, log=True, words=words.round_size)
    ends = [run.points[-1].network_seconds or 0.0 for run in runs]
    length, _, unit = words.unit_of_time(max(ends))
    curves = _curves(runs, names, lambda run, point: (point.network_seconds or 0.0) / length)
    log = max(ends) > FAR_APART * min(ends)
    return Panel(f"{unit} on {fleet}", curves, log=log, words=lambda value: f"{value:,.4g}")


def _curves(runs: Sequence[Run], names: Sequence[str], place: Callable[[Run, Point], float]) -> list[Curve]:
    return [
        Curve(name, [place(run, point) for point in run.points], [point.reached for point in run.points])
        for name, run in zip(names, runs, strict=True)
    ]


def _csv(runs: Sequence[Run]) -> str:
    out = io.StringIO()
    lines = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    lines.writeheader()
    for run in runs:
        devices = run.config.devices
        for point in run.points:
            each = {
                "bytes_up_a_device": f"{point.bytes_up / devices:.15g}",
                "bytes_down_a_device": f"{point.bytes_down / devices:.15g}",
                "seconds": round(point.seconds, 4),
            }
            lines.writerow({"run": run.name, **vars(point), **each, **point.watched.flat()})
    return out.getvalue()


def _page(report: Report, command: str) -> str:
    lines = ["# Report", ""]
    for note in report.notes:
        lines += [note, ""]
    for table in report.tables:
        lines += [f"## {table.title}", "", table.markdown(), ""]
    if any(run.points for run in report.runs):
        lines += ["![test accuracy](report.png)", ""]
    if drift.table(report.runs) is not None:
        lines += ["![drift and forgetting](drift.png)", ""]
    return "\n".join([*lines, f"Command: `{command}`", ""])
