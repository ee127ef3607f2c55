"""What a device remembers survives a death between any two steps, and moves on only when it may."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.device import Memory
from edgewise.engines.fleet.keep import CURRENT, PENDING, Keep, Pending
from edgewise.errors import EdgewiseError

DIGEST = bytes(range(32))


def memory(step: int) -> Memory:
    tensors = {"residual": torch.arange(5.0) * step, "turned": torch.arange(6.0).view(2, 3).T * step}
    return Memory(step, {**tensors, "double": torch.tensor([1.0 + step], dtype=torch.float64)})


def same(one: Memory, two: Memory) -> bool:
    names = one.codec.keys() == two.codec.keys()
    return one.step == two.step and names and all(torch.equal(one.codec[n], two.codec[n]) for n in one.codec)


def standing(keep: Keep) -> tuple[int, int, int | None]:
    """The round and step of what is committed, and the round of what is pending."""
    assert same(keep.memory, memory(keep.memory.step) if keep.memory.step else Memory())
    if keep.pending is not None:
        assert keep.pending.digest == DIGEST and same(keep.pending.memory, memory(keep.pending.memory.step))
    return keep.round, keep.memory.step, keep.pending and keep.pending.round


def test_a_device_that_is_new(tmp_path: Path) -> None:
    assert standing(Keep(tmp_path / "deep" / "folder")) == (0, 0, None)


def test_a_memory_is_the_same_from_the_disk(tmp_path: Path) -> None:
    keep = Keep(tmp_path)
    keep.propose(3, DIGEST, memory(6))
    assert standing(keep) == standing(Keep(tmp_path)) == (0, 0, 3)
    keep.commit()
    assert standing(keep) == standing(Keep(tmp_path)) == (3, 6, None)


def test_a_memory_without_tensors(tmp_path: Path) -> None:
    keep = Keep(tmp_path)
    keep.propose(1, DIGEST, Memory(2))
    keep.commit()
    assert Keep(tmp_path).memory == Memory(2) and Keep(tmp_path).round == 1


def test_what_does_not_count_is_forgotten(tmp_path: Path) -> None:
    keep = Keep(tmp_path)
    keep.propose(3, DIGEST, memory(6))
    keep.commit()
    keep.propose(4, DIGEST, memory(8))
    keep.forget()
    keep.forget()
    assert standing(keep) == standing(Keep(tmp_path)) == (3, 6, None)


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["propose", "commit", "forget", "die"]), max_size=12))
def test_any_order_of_steps_and_deaths(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    folder = tmp_path_factory.mktemp("keep")
    keep, committed, pending, round = Keep(folder), 0, None, 0
    for step in steps:
        if step == "propose":
            round += 1
            pending = round
            keep.propose(round, DIGEST, memory(2 * round))
        elif step == "commit" and pending is not None:
            keep.commit()
            committed, pending = pending, None
        elif step == "forget":
            keep.forget()
            pending = None
        elif step == "die":
            keep = Keep(folder)
        assert standing(keep) == (committed, 2 * committed, pending)
    assert standing(Keep(folder)) == (committed, 2 * committed, pending)


def images(folder: Path, work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folder before every call by which the work changes something on the disk, and at its end."""
    found: list[Path] = []

    def look() -> None:
        target = folder.parent / f"image-{len(found)}"
        shutil.copytree(folder, target)
        found.append(target)

    for owner, name in ((os, "open"), (os, "fsync"), (Path, "replace"), (Path, "unlink")):
        real = getattr(owner, name)

        def seen(*arguments: object, real: Callable[..., object] = real, **named: object) -> object:
            look() if not busy else None
            busy.append(1)
            try:
                return real(*arguments, **named)
            finally:
                busy.pop()

        monkeypatch.setattr(owner, name, seen)
    busy: list[int] = []
    work()
    busy.append(1)
    monkeypatch.undo()
    look()
    return found


@pytest.mark.parametrize("deed", ["propose", "commit", "forget", "propose again"])
def test_a_death_between_any_two_steps(tmp_path: Path, deed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image of the disk is that before the deed or that after it, and goes on from there."""
    folder = tmp_path / "keep"
    keep = Keep(folder)
    keep.propose(1, DIGEST, memory(2))
    keep.commit()
    if deed != "propose":
        keep.propose(2, DIGEST, memory(4))
    before = standing(keep)
    work: dict[str, Callable[[], None]] = {
        "propose": lambda: keep.propose(2, DIGEST, memory(4)),
        "propose again": lambda: keep.propose(3, DIGEST, memory(6)),
        "commit": keep.commit,
        "forget": keep.forget,
    }
    found = images(folder, work[deed], monkeypatch)
    after = standing(keep)
    stands = [standing(Keep(image)) for image in found]
    assert len(found) >= 2 and before != after
    assert stands == sorted(stands, key=[before, after].index) and stands[-1] == after
    for image in found:
        again = Keep(image)
        again.propose(3, DIGEST, memory(6))
        again.commit()
        assert standing(Keep(image)) == (3, 6, None)


@pytest.mark.parametrize("name", [CURRENT, PENDING])
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "nonsense"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, name: str, damage: str) -> None:
    keep = Keep(tmp_path)
    keep.propose(1, DIGEST, memory(2))
    keep.commit()
    keep.propose(2, DIGEST, memory(4))
    path = tmp_path / name
    content = path.read_bytes()
    damaged = {
        "bit": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        "cut": content[:-1],
        "empty": b"",
        "nonsense": b"x" * 100,
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(EdgewiseError, match=name):
        Keep(tmp_path)


def test_what_is_pending(tmp_path: Path) -> None:
    keep = Keep(tmp_path)
    keep.propose(2, DIGEST, made := memory(4))
    assert keep.pending == Pending(2, DIGEST, made)
