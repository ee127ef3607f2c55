"""What devices remember: versions by device and place, in RAM up to a budget, in files beyond it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgewise import records
from edgewise.algorithms import FedAvg, SyncSGD
from edgewise.codecs import DGC, Feedback, PowerSGD, TopK
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.device import Memory
from edgewise.errors import EdgewiseError
from edgewise.files import MANY
from edgewise.memories import Memories, Note
from edgewise.optimizers import SGD
from edgewise.records import Checkpoint
from edgewise.rounds import run

SIZE = 100  # values of a residual, so 400 bytes
BYTES = 4 * SIZE


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small files, and no test that pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def memory(device: int, step: int, more: int = 0) -> Memory:
    """What device and step alone decide, as in a run; `more` for another run's."""
    draws = torch.Generator().manual_seed(1000 * device + step + 10**6 * more)
    return Memory(step, {"residual": torch.randn(SIZE, generator=draws)})


def image(found: Memory) -> tuple[int, dict[str, bytes]]:
    return found.step, {name: tensor.numpy().tobytes() for name, tensor in found.codec.items()}


def play(memories: Memories, step: int, devices: list[int]) -> None:
    """A round in which these devices go on to `step`."""
    for device in devices:
        memories.propose(device, memory(device, step))
    memories.commit(devices)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


# ---- a budget ----


@pytest.mark.parametrize("budget", [0, 1, BYTES, 3 * BYTES, 5 * BYTES, 10**9])
def test_what_lies_in_files_is_what_would_lie_in_ram(tmp_path: Path, budget: int) -> None:
    chance = random.Random(budget)
    filed, plain = Memories(folder=tmp_path / "m", budget=budget), Memories()
    for step in range(1, 30):
        devices = chance.sample(range(6), chance.randint(1, 6))
        taken = chance.sample(devices, chance.randint(0, len(devices)))
        for memories in (filed, plain):
            for device in devices:
                memories.propose(device, memory(device, step))
            memories.commit(taken)
        assert filed.size <= budget
        for device in range(6):
            assert image(filed[device]) == image(plain[device])
        assert filed.steps() == plain.steps()
        if chance.random() < 0.3:
            filed.save()
            filed.sweep()
    assert budget < 10**9 or plain.size == filed.size == len(plain.steps()) * BYTES
    assert plain.save()["filed"] == []


@pytest.mark.parametrize("budget", [0, 2 * BYTES])
def test_proposals_count_too(tmp_path: Path, budget: int) -> None:
    """A round over many devices holds no more in RAM than the budget, before its commit and after."""
    memories = Memories(folder=tmp_path / "m", budget=budget)
    for step in (1, 2):
        for device in range(20):
            memories.propose(device, memory(device, step))
            assert memories.size <= budget
            assert image(memories[device]) == image(memory(device, 1) if step == 2 else Memory(0))
        memories.commit(range(20))
        assert memories.size <= budget
    assert all(image(memories[device]) == image(memory(device, 2)) for device in range(20))


def test_size_is_what_is_kept(tmp_path: Path) -> None:
    memories = Memories(folder=tmp_path / "m", budget=3 * BYTES)
    for step in range(1, 10):
        play(memories, step, [step % 3, 3 + step % 2, 5])
        assert memories.size == sum(kept.nbytes for kept in memories.kept.values()) <= 3 * BYTES


def test_without_a_folder_there_is_no_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    memories = Memories(budget=1)
    for step in (1, 2, 3):
        play(memories, step, [0, 1, 2])
    assert memories.size == 3 * BYTES and image(memories[1]) == image(memory(1, 3))
    assert memories.save() == {"steps": {0: 3, 1: 3, 2: 3}, "filed": []}
    memories.sweep()
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_lie_in_files(tmp_path: Path) -> None:
    memories = Memories(folder=tmp_path / "m", budget=2 * BYTES)
    for device in (0, 1, 2, 0):
        play(memories, memories[device].step + 1, [device])
    assert set(memories.kept) == {(2, 1), (0, 2)}
    assert memories.filed == {(1, 1)}


def test_who_owes_nothing_has_no_file(tmp_path: Path) -> None:
    memories = Memories(folder=tmp_path / "m", budget=0)
    memories.propose(3, Memory(5))
    memories.commit([3])
    assert memories.save() == {"steps": {3: 5}, "filed": []}
    assert files(tmp_path / "m") == set()
    assert Memories(memories.save(), tmp_path / "m")[3] == Memory(5)


def test_a_memory_moves_on() -> None:
    memories = Memories({"steps": {"1": 4}, "filed": []})
    for step in (0, 3, 4):
        with pytest.raises(ValueError, match=f"device 1 proposes step {step}"):
            memories.propose(1, Memory(step))


def test_only_who_proposed_can_be_taken() -> None:
    memories = Memories()
    memories.propose(1, memory(1, 1))
    with pytest.raises(KeyError):
        memories.commit([2])


@pytest.mark.parametrize("budget", [0, 10**9])
def test_the_last_proposal_counts(tmp_path: Path, budget: int) -> None:
    memories = Memories(folder=tmp_path / "m", budget=budget)
    for proposed in (memory(1, 2, more=1), memory(1, 3), memory(1, 2)):
        memories.propose(1, proposed)
    assert memories.size == (BYTES if budget else 0)
    memories.commit([1])
    assert image(memories[1]) == image(memory(1, 2))
    assert memories.size == (BYTES if budget else 0)


# ---- save, and go on in another process ----


def again(note: Note, folder: Path, **options: Any) -> Memories:
    """What a new process makes of a checkpoint's note, which has been through JSON."""
    (folder.parent / "c").mkdir(exist_ok=True)
    Checkpoint({}, {"memories": note}).save(folder.parent / "c" / "note")
    return Memories(Checkpoint.load(folder.parent / "c" / "note").note["memories"], folder, **options)


@pytest.mark.parametrize("budget", [0, 2 * BYTES, 10**9])
def test_a_saved_memory_is_the_memory(tmp_path: Path, budget: int) -> None:
    memories = Memories(folder=tmp_path / "m", budget=budget)
    play(memories, 2, [0, 1, 2])
    play(memories, 4, [1, 3])
    found = again(memories.save(), tmp_path / "m", budget=budget)
    assert found.steps() == memories.steps() == {0: 2, 1: 4, 2: 2, 3: 4}
    for device in range(5):
        assert image(found[device]) == image(memories[device])
    assert found.save() == memories.save()
    play(found, 6, [0, 1])
    memories = Memories(found.save(), tmp_path / "m")
    assert memories.steps() == {0: 6, 1: 6, 2: 2, 3: 4}
    assert [image(found[device]) for device in range(5)] == [image(memories[device]) for device in range(5)]


TENSORS: dict[str, Tensor] = {
    "number": torch.tensor(7),
    "nothing": torch.zeros(0),
    "matrix": torch.randn(3, 5, dtype=torch.float64),
    "columns": torch.randn(4, 6).t(),
    "other": torch.arange(5, dtype=torch.uint8),
}


def test_any_tensor_comes_back(tmp_path: Path) -> None:
    memories = Memories(folder=tmp_path / "m", budget=0)
    memories.propose(0, Memory(1, TENSORS))
    memories.commit([0])
    found = memories[0].codec
    assert found.keys() == TENSORS.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, TENSORS[name]) and tensor.dtype == TENSORS[name].dtype
        assert tensor.data_ptr() % 64 == 0 or not tensor.numel(), "where PyTorch would have put it"


def test_a_memory_can_be_written_as_it_was_read(tmp_path: Path) -> None:
    memories = Memories(folder=tmp_path / "m", budget=0)
    play(memories, 1, [0])
    memories.propose(0, Memory(2, {**memories[0].codec, "more": torch.ones(3)}))
    memories.commit([0])
    assert memories[0].codec.keys() == {"residual", "more"}
    assert torch.equal(memories[0].codec["residual"], memory(0, 1).codec["residual"])


def test_a_checkpoint_writes_what_changed(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    memories = Memories(folder=folder)
    play(memories, 1, [0, 1, 2])
    memories.save()
    (before, first) = (files(folder), (folder / "0-1.safetensors").stat().st_mtime_ns)
    assert before == {f"{device}-1.safetensors" for device in range(3)}
    play(memories, 2, [2])
    memories.save()
    assert files(folder) == before | {"2-2.safetensors"}
    assert (folder / "0-1.safetensors").stat().st_mtime_ns == first
    memories.sweep()
    assert files(folder) == {"0-1.safetensors", "1-1.safetensors", "2-2.safetensors"}


# ---- no order of spilling, saving, sweeping and dying loses what is needed ----


class Crash(Exception):
    pass


class Story:
    """A run's memories with a checkpoint, in a process that may die, told beside what must be true."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self.memories = Memories(folder=folder, budget=budget)
        self.note: Note | None = None  # of the checkpoint on the disk
        self.round = self.saved = 0
        self.places: dict[int, int] = {}
        self.then: dict[int, int] = {}  # places at the checkpoint

    def ask(self, devices: list[int], taken: list[int]) -> None:
        self.round += 1
        for device in devices:
            self.memories.propose(device, memory(device, self.round))
        self.memories.commit(taken)
        self.places |= dict.fromkeys(taken, self.round)

    def checkpoint(self, dies: str) -> None:
        note = self.memories.save()
        if dies == "before the rename":
            raise Crash
        self.note, self.saved, self.then = note, self.round, dict(self.places)
        if dies == "before the sweep":
            raise Crash
        self.memories.sweep()

    def resume(self) -> None:
        self.memories = Memories(self.note, self.folder, self.budget)
        self.round, self.places = self.saved, dict(self.then)

    def check(self) -> None:
        for device in range(5):
            step = self.places.get(device, 0)
            assert image(self.memories[device]) == image(memory(device, step) if step else Memory(0))
        if self.note:  # the checkpoint could be resumed from now
            copy = shutil.copytree(self.folder, self.folder.with_name("copy"), dirs_exist_ok=True)
            found = Memories(self.note, copy, self.budget)
            for device, step in self.then.items():
                assert image(found[device]) == image(memory(device, step))


@pytest.mark.parametrize("seed", range(12))
def test_any_story_ends_well(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    story = Story(tmp_path / "m", chance.choice([0, BYTES, 3 * BYTES, 10**9]))
    ends = {"before the rename": 0, "before the sweep": 0, "between rounds": 0, "": 0}
    for _ in range(60):
        devices = chance.sample(range(5), chance.randint(1, 5))
        story.ask(devices, [device for device in devices if chance.random() < 0.8])
        story.check()
        if chance.random() < 0.1:
            story.memories.sweep()  # at no particular time
            story.check()
        if chance.random() < 0.4:
            dies = chance.choice(list(ends))
            ends[dies] += 1
            try:
                if dies == "between rounds":
                    raise Crash
                story.checkpoint(dies)
            except Crash:
                story.resume()
            story.check()
    assert min(ends.values()) > 0
    story.checkpoint("")
    assert files(story.folder) == {f"{device}-{step}.safetensors" for device, step in story.places.items()}


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    """A resumed run comes to the same version; should it come to other bits, its own are what counts."""
    folder = tmp_path / "m"
    first = Memories(folder=folder, budget=0)
    play(first, 1, [0])
    note = first.save()
    first.propose(0, memory(0, 2, more=1))  # as another version of PyTorch might have it
    first.commit([0])
    first.propose(1, memory(1, 1))
    assert files(folder) == {"0-1.safetensors", "0-2.safetensors", "1-1.safetensors"}
    second = again(note, folder, budget=0)
    assert files(folder) == {"0-1.safetensors"}
    assert image(second[0]) == image(memory(0, 1)) and image(second[1]) == (0, {})
    play(second, 2, [0])
    assert image(second[0]) == image(memory(0, 2))
    third = again(second.save(), folder)
    assert image(third[0]) == image(memory(0, 2)) and files(folder) == {"0-2.safetensors"}


def test_a_file_that_lies_there_already_is_written_again(tmp_path: Path) -> None:
    memories = Memories(folder=tmp_path / "m", budget=0)
    play(memories, 1, [0])
    shutil.copy(tmp_path / "m" / "0-1.safetensors", tmp_path / "m" / "0-2.safetensors")
    play(memories, 2, [0])
    assert image(memories[0]) == image(memory(0, 2))


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    play(Memories(folder=folder, budget=0), 1, [0, 1, 2])
    anew = Memories(None, folder, budget=0)
    assert files(folder) == set()
    assert all(anew[device] == Memory() for device in range(3))
    play(anew, 1, [1])
    anew.save()
    anew.sweep()
    assert files(folder) == {"1-1.safetensors"}


def test_sweeping_leaves_what_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    memories = Memories(folder=folder)
    play(memories, 1, [0])
    memories.save()
    theirs = {"notes.txt", "model.safetensors", "1-x.safetensors", "10-20.safetensors.bak", ".DS_Store"}
    ours = {".3-4.safetensors.part", "3-4.safetensors", "0-2.safetensors"}
    for name in theirs | ours:
        (folder / name).touch()
    (folder / "7").mkdir()
    memories.sweep()
    assert files(folder) == theirs | {"0-1.safetensors", "7"}


# ---- files that are not what they should be ----


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[tuple[Note, Path]]:
    memories = Memories(folder=tmp_path / "m")
    play(memories, 1, [0, 1])
    play(memories, 2, [1, 2])
    yield memories.save(), tmp_path / "m"


def one_line(told: pytest.ExceptionInfo[EdgewiseError], path: Path) -> str:
    line = str(told.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    return line


def test_a_missing_file_is_noticed_at_once(saved: tuple[Note, Path]) -> None:
    note, folder = saved
    (folder / "1-2.safetensors").unlink()
    with pytest.raises(EdgewiseError) as told:
        Memories(note, folder)
    assert "missing; the checkpoint needs it" in one_line(told, folder / "1-2.safetensors")
    shutil.rmtree(folder)
    with pytest.raises(EdgewiseError) as told:
        Memories(note, folder)
    one_line(told, folder / "0-1.safetensors")


@pytest.mark.parametrize("place", [0, 5, 60, -300, -1])
def test_a_damaged_file_is_one_line(saved: tuple[Note, Path], place: int) -> None:
    note, folder = saved
    path = folder / "1-2.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    memories = Memories(note, folder)
    assert image(memories[0]) == image(memory(0, 1))
    with pytest.raises(EdgewiseError) as told:
        memories[1]
    one_line(told, path)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_short_file_is_one_line(saved: tuple[Note, Path], length: int) -> None:
    note, folder = saved
    path = folder / "1-2.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(EdgewiseError) as told:
        Memories(note, folder)[1]
    one_line(told, path)


@pytest.mark.parametrize("other", ["0-1", "2-2"])
def test_another_device_s_file_is_one_line(saved: tuple[Note, Path], other: str) -> None:
    note, folder = saved
    shutil.copy(folder / f"{other}.safetensors", folder / "1-2.safetensors")
    with pytest.raises(EdgewiseError) as told:
        Memories(note, folder)[1]
    assert "not this device's memory" in one_line(told, folder / "1-2.safetensors")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    memories = Memories(folder=tmp_path / "m", budget=0)
    with pytest.raises(EdgewiseError) as told:
        play(memories, 1, [0])
    assert "cannot be written" in one_line(told, tmp_path / "m")


# ---- whole runs ----

TINY = Config(devices=5, batch=2, width=4, steps=6, eval_every=0, fused="off")
RUNS = {
    "topk": replace(TINY, codec=Feedback(TopK(0.02))),
    "dgc": replace(TINY, codec=DGC(0.02, warmup=4), algorithm=SyncSGD(SGD(0.02))),
    "powersgd": replace(TINY, codec=Feedback(PowerSGD(1)), algorithm=FedAvg(SGD(0.02), 2), cohort=0.6),
}


@pytest.fixture(scope="module")
def specks() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.arange(60) % 6
    return Dataset.of("specks", train=(images[:48], labels[:48]), test=(images[48:], labels[48:]))


def played(config: Config, out: Path, specks: Dataset, **options: Any) -> tuple[list[Any], str]:
    for _ in run(config, out, dataset=specks, **options):
        pass
    summary = records.summary(out)
    assert summary is not None
    return [{**row, "seconds": 0} for row in records.rows(out)], summary["model_digest"]


@pytest.mark.parametrize("config", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("budget", [0, 100_000])  # none, and about one memory
def test_a_small_budget_changes_no_bit(
    specks: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Config, budget: int
) -> None:
    ram = played(config, tmp_path / "ram", specks)
    monkeypatch.setattr("edgewise.assemble.Memories", partial(Memories, budget=budget))
    assert played(config, tmp_path / "files", specks) == ram
    cut = run(config, tmp_path / "cut", dataset=specks)
    for _, _ in zip(range(2), cut, strict=False):
        pass
    cut.close()
    note = Checkpoint.load(tmp_path / "cut" / records.CHECKPOINT).note["memories"]
    named = {f"{device}-{note['steps'][str(device)]}.safetensors" for device in note["filed"]}
    assert named and files(tmp_path / "cut" / records.MEMORIES) == named
    assert played(config, tmp_path / "cut", specks, resume=True) == ram


@pytest.mark.parametrize("damage", ["gone", "bent"])
def test_a_run_whose_memory_is_lost_says_so(specks: Dataset, tmp_path: Path, damage: str) -> None:
    play = run(RUNS["topk"], tmp_path / "run", dataset=specks)
    next(play)
    play.close()
    path = tmp_path / "run" / records.MEMORIES / "3-1.safetensors"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    rows = (tmp_path / "run" / records.ROUNDS).read_bytes()
    for _ in range(2):  # and goes on saying so, with nothing lost
        with pytest.raises(EdgewiseError) as told:
            list(run(RUNS["topk"], tmp_path / "run", dataset=specks, resume=True))
        one_line(told, path)
        assert (tmp_path / "run" / records.ROUNDS).read_bytes() == rows
    path.write_bytes(content)
    alone = played(RUNS["topk"], tmp_path / "alone", specks)
    assert played(RUNS["topk"], tmp_path / "run", specks, resume=True) == alone


def test_who_loses_nothing_makes_no_folder(specks: Dataset, tmp_path: Path) -> None:
    played(TINY, tmp_path, specks)
    assert not (tmp_path / records.MEMORIES).exists()


# ---- what lasts ----


@pytest.mark.parametrize("count", [1, MANY, MANY + 1, 3 * MANY])
def test_every_file_that_a_note_names_lasts_before_it(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting, opened = set[str](), dict[int, str]()
    folder = tmp_path / "m"

    def opening(path: Any, *rest: Any, real: Any = os.open, **more: Any) -> int:
        descriptor: int = real(path, *rest, **more)
        opened[descriptor] = str(path)
        return descriptor

    def everything() -> None:
        lasting.update({str(folder)}, map(str, folder.iterdir()))

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "fsync", lambda descriptor: lasting.add(opened[descriptor]))
    monkeypatch.setattr(os, "sync", everything)
    memories = Memories(folder=folder, budget=2 * BYTES)  # the others are filed before they are saved
    for step in (1, 2):
        play(memories, step, list(range(count)))
    for device in memories.save()["filed"]:
        assert str(folder / f"{device}-2.safetensors") in lasting
    assert str(folder) in lasting
    play(memories, 3, [0])
    lasting.clear()
    memories.save()
    assert lasting == {str(folder), str(folder / "0-3.safetensors")}
