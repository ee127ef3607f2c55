"""A round's updates as the rows of one matrix, which is walked through a few columns at a time.

The first rows stay in RAM, those beyond a budget lie in a file without a name: it is gone when the stack is,
even if the process is killed. Which rows lie where changes nothing in what is computed.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgewise.errors import EdgewiseError
from edgewise.vector import State

Matrix = NDArray[Any]  # float32 or float64, as the model's state

BUDGET = 2**30  # bytes of updates that are kept in RAM
BLOCK = 2**22  # bytes that are looked at together: they stay in a core's cache


class Stack:
    """Updates of one round. A row is a device's update and then its buffers: (P + B,) values."""

    def __init__(self, like: State, folder: Path | None = None, budget: int | None = None) -> None:
        """`folder`: where rows beyond `budget` (BUDGET) bytes may lie; None: all stay in RAM."""
        self.like, self.folder = like, folder
        self.budget = BUDGET if budget is None else budget
        self.params, self.buffers = like.params.numel(), like.buffers.numel()
        self.width = self.params + self.buffers
        self.count = 0
        self.kept: list[Matrix] = []  # the first rows; the others lie in the file, in order
        self.file: int | None = None
        self._finish: Callable[[], object] = lambda: None

    def add(self, state: State) -> None:
        """One more row, copied; EdgewiseError if it finds no room in the file."""
        row = torch.cat([state.params.detach().cpu(), state.buffers.detach().cpu()]).numpy()
        if len(row) != self.width:
            raise ValueError(f"a row of {len(row)} values among rows of {self.width}")
        in_ram = self.folder is None or (len(self.kept) + 1) * row.nbytes <= self.budget
        if in_ram and self.file is None:
            self.kept.append(row)
        else:
            self._write(row)
        self.count += 1

    def row(self, index: int) -> State:
        """One device's update, as it was added."""
        values = np.empty(self.width, self._dtype)
        self._read(index, 0, values)
        return self._state(torch.from_numpy(values))

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, Matrix]]:
        """The columns start .. stop - 1, some at a time: which, and their values (count, columns)."""
        if not self.count:
            raise RuntimeError("the rows of no updates")
        width = max(1, BLOCK // (self.count * self._dtype.itemsize))
        for first in range(start, stop, width):
            last = min(first + width, stop)
            block = np.empty((self.count, last - first), self._dtype)
            for index in range(self.count):
                self._read(index, first, block[index])
            yield slice(first, last), block

    def by_column(self, rule: Callable[[Matrix], Matrix], start: int = 0) -> State:
        """`rule` of all columns from `start` on, zero before. It gets a block with its columns as rows

        (columns, count), in memory of its own, and gives one value for each (columns,).
        """
        values = np.zeros(self.width, self._dtype)
        for columns, block in self.blocks(start, self.width):
            values[columns] = rule(np.ascontiguousarray(block.T))
        return self._state(torch.from_numpy(values))

    def close(self) -> None:
        """Forget all rows and free what they took."""
        self._finish()
        self.kept, self.file, self.count = [], None, 0

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(str(self.like.params.dtype).removeprefix("torch."))

    def _state(self, values: torch.Tensor) -> State:
        params, buffers = values.split([self.params, self.buffers])
        # The server keeps the buffers: in memory of their own, they do not keep the parameters' with them.
        return State(params.to(self.like.params.device), buffers.clone().to(self.like.buffers.device))

    def _write(self, row: Matrix) -> None:
        offset = (self.count - len(self.kept)) * row.nbytes
        try:
            self.file = self._open() if self.file is None else self.file
            data = row.data.cast("B")
            while data:
                written = os.pwrite(self.file, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise EdgewiseError(
                f"{self.folder}: the round's updates cannot be written ({error.strerror})"
            ) from None

    def _open(self) -> int:
        with tempfile.TemporaryFile(dir=self.folder) as file:
            descriptor = os.dup(file.fileno())
        self._finish = weakref.finalize(self, os.close, descriptor)
        return descriptor

    def _read(self, index: int, first: int, into: Matrix) -> None:
        """A row's values from column `first` on, as many as `into` holds."""
        if index < len(self.kept):
            into[:] = self.kept[index][first : first + len(into)]
            return
        assert self.file is not None
        size = into.itemsize
        offset = ((index - len(self.kept)) * self.width + first) * size
        data = into.data.cast("B")
        try:
            while data:
                found = os.preadv(self.file, [data], offset)
                if not found:
                    raise RuntimeError("a row ends before its last value")
                data, offset = data[found:], offset + found
        except OSError as error:
            raise EdgewiseError(
                f"{self.folder}: the round's updates cannot be read ({error.strerror})"
            ) from None
