"""What simulated devices remember, and how it outlives the run's process.

A device's memory (its place in its data, what its codec still owes, what its algorithm keeps) is made when
the device is first asked and changes only when the coordinator has taken its reply. Residuals and control
variates are one vector a device, 45 MB each for ResNet18: beyond a budget the oldest lie in files and are
read back when their device is asked.

A version of a memory is its device and its place in the data, which every commit moves on, and its file is
named by both. So no file is written over while anything needs it: neither one that the last checkpoint
names, nor the committed version while the device proposes another. A checkpoint names the versions that it
stands on, so that its own rename commits all of them at once; what a process that died wrote since then is
removed when the run goes on, which comes to these versions again.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from edgewise.device import Memory
from edgewise.errors import EdgewiseError
from edgewise.files import settle
from edgewise.records import Checkpoint

Note = dict[str, Any]
Version = tuple[int, int]  # a device, and its place in its data in steps

BUDGET = 4 * 2**30  # bytes of devices' vectors kept in RAM
OURS = re.compile(r"(\d+)-\d+\.safetensors|\.(\d+)-\d+\.safetensors\.part")  # files, whole or being written


def part(note: Note | None, devices: Container[int]) -> Note | None:
    """What a note says of these devices."""
    if note is None:
        return None
    steps = {device: step for device, step in note["steps"].items() if int(device) in devices}
    return {"steps": steps, "filed": [device for device in note["filed"] if device in devices]}


def joined(notes: Iterable[Note]) -> Note:
    """One note for notes of different devices."""
    steps: dict[int, int] = {}
    filed: list[int] = []
    for note in notes:
        steps |= {int(device): step for device, step in note["steps"].items()}
        filed += note["filed"]
    return {"steps": dict(sorted(steps.items())), "filed": sorted(filed)}


class Memories:
    """The memories by device. `folder` is where those beyond `budget` bytes lie; None: all stay in RAM.

    `mine`: whose memories these are; None: all devices'. No two processes may have the same device's.
    """

    def __init__(
        self,
        note: Note | None = None,
        folder: Path | None = None,
        budget: int = BUDGET,
        mine: Container[int] | None = None,
    ) -> None:
        """`note`: what `save` returned; EdgewiseError if a file is gone that it stands for."""
        note = note or {"steps": {}, "filed": []}
        self.folder, self.budget, self.mine = folder, budget, mine
        self.places = {int(device): step for device, step in note["steps"].items()}  # of all ever asked
        self.pending: dict[int, int] = {}  # the places that devices propose
        self.kept: dict[Version, Memory] = {}  # committed and proposed, the oldest first
        self.size = 0  # bytes of the vectors in `kept`
        self.named = {(device, self.places[device]) for device in note["filed"]}  # by the last note
        self.filed = set(self.named)  # versions that lie in a file
        self.loose = set[Version]()  # of these, files that a loss of power could take
        for path in map(self._file, sorted(self.named)):
            if not path.exists():
                raise EdgewiseError(f"{path}: missing; the checkpoint needs it to go on")
        self.sweep()

    def __getitem__(self, device: int) -> Memory:
        version = (device, self.places.get(device, 0))
        if version in self.filed and version not in self.kept:
            return self._read(version)
        return self.kept.get(version, Memory(version[1]))

    def propose(self, device: int, memory: Memory) -> None:
        """Hold a device's next memory until the coordinator has taken its reply."""
        if memory.step <= self.places.get(device, 0):
            raise ValueError(f"device {device} proposes step {memory.step}, where it has been already")
        self._withdraw(device)
        self.pending[device] = memory.step
        if memory.tensors():
            self.kept[device, memory.step] = memory
            self.size += memory.nbytes
        while self.folder and self.size > self.budget:
            oldest = next(iter(self.kept))
            self._write(oldest)
            self._drop(oldest)

    def commit(self, devices: Iterable[int]) -> None:
        """The coordinator has taken these devices' replies; what others proposed is forgotten."""
        for device in devices:
            step = self.pending.pop(device)
            self._forget((device, self.places.get(device, 0)))
            self.places[device] = step
        for device in list(self.pending):
            self._withdraw(device)

    def steps(self) -> dict[int, int]:
        """Every asked device's place in its data, in steps."""
        return dict(sorted(self.places.items()))

    def save(self) -> Note:
        """Write every memory that has no file yet, and return what finds them again."""
        current = set(self.places.items())
        if self.folder:
            for version in current & self.kept.keys():
                self._write(version)
            settle(self.folder, [self._file(version) for version in sorted(self.loose & current)])
            self.loose.clear()
        self.named = current & self.filed
        return {"steps": self.steps(), "filed": sorted(device for device, _ in self.named)}

    def sweep(self) -> None:
        """Remove the files that no device needs any more, once the last note is in a checkpoint."""
        if self.folder and self.folder.is_dir():
            needed = {self._file(version) for version in self.filed | self.named}
            for path in self.folder.iterdir():
                found = OURS.fullmatch(path.name)
                if (
                    found
                    and path not in needed
                    and (self.mine is None or int(found[1] or found[2]) in self.mine)
                ):
                    path.unlink(missing_ok=True)

    def _withdraw(self, device: int) -> None:
        """Forget what the device proposed."""
        if device in self.pending:
            self._forget((device, self.pending.pop(device)))

    def _forget(self, version: Version) -> None:
        self._drop(version)
        self.filed.discard(version)

    def _drop(self, version: Version) -> None:
        if version in self.kept:
            self.size -= self.kept.pop(version).nbytes

    def _write(self, version: Version) -> None:
        """Write a version's file, unless it has one."""
        if version not in self.filed:
            path = self._file(version)
            try:
                path.parent.mkdir(exist_ok=True)
            except OSError as error:
                raise EdgewiseError(f"{path.parent}: cannot be written ({error.strerror})") from None
            Checkpoint(self.kept[version].tensors(), {"version": version}).save(path, lasting=False)
            self.filed.add(version)
            self.loose.add(version)

    def _read(self, version: Version) -> Memory:
        path = self._file(version)
        found = Checkpoint.load(path)
        if found.note != {"version": list(version)}:
            raise EdgewiseError(f"{path}: not this device's memory but that of {found.note}")
        return Memory.of(version[1], found.tensors)

    def _file(self, version: Version) -> Path:
        assert self.folder is not None
        device, step = version
        return self.folder / f"{device}-{step}.safetensors"
