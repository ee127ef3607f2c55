"""Who holds what: examples of each class on each device, as a tensor, as CSV, as a table on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

SHOWN = 20
LETTERS = 6  # of a class name: ten classes then fit a terminal of 80 columns


def counts(parts: Sequence[Tensor], labels: Tensor, classes: int) -> Tensor:
    """How many examples of each class each device holds: int64 (devices, classes).

    `parts` are index tensors into `labels` (N,), one per device.
    """
    sizes = torch.tensor([len(part) for part in parts])
    owners = torch.repeat_interleave(torch.arange(len(parts)), sizes)
    cells = owners * classes + labels[torch.cat(list(parts))].cpu()
    return torch.bincount(cells, minlength=len(parts) * classes).view(len(parts), classes)


def csv_text(counts: Tensor, classes: Sequence[str]) -> str:
    """CSV with a header line: device, examples, then one column per class."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["device", "examples", *classes])
    for device, row in enumerate(counts.tolist()):
        lines.writerow([device, sum(row), *row])
    return out.getvalue()


def table(counts: Tensor, classes: Sequence[str]) -> Table:
    """The same for the terminal: at most 20 devices, then how many more there are."""
    shown = Table(box=None, padding=(0, 1))
    for column in ("device", "examples", *(name[:LETTERS] for name in classes)):
        shown.add_column(Text(column), justify="right", no_wrap=True)
    for device, row in enumerate(counts[:SHOWN].tolist()):
        shown.add_row(str(device), str(sum(row)), *(str(count) if count else "·" for count in row))
    if len(counts) > SHOWN:
        shown.add_row(f"… and {len(counts) - SHOWN} more", str(int(counts[SHOWN:].sum())))
    return shown
