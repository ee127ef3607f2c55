"""What is freed stays, and goes back when those that it was for are gone."""

import mmap
import sys
from pathlib import Path

import pytest

from edgewise.allocator import CROWD, Rest, give_back


@pytest.mark.parametrize(
    ("counts", "due"),
    [
        ([0, 0, 0], []),
        ([CROWD - 1] * 3, []),
        ([CROWD] * 4, [1]),  # once, and not while they come
        ([10, CROWD, 2 * CROWD, 3 * CROWD, 3 * CROWD, 3 * CROWD], [4]),
        ([CROWD, CROWD, CROWD + 1, CROWD + 1], [1]),  # a straggler is none
        ([CROWD, CROWD, 0, 0, CROWD, CROWD], [1, 3, 5]),
    ],
)
def test_memory_is_given_back_once_a_crowd_has_come_to_rest(counts: list[int], due: list[int]) -> None:
    rest = Rest()
    assert [place for place, count in enumerate(counts) if rest.due(count)] == due


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_holes_are_given_back() -> None:
    """Between blocks that are still needed, where glibc keeps them by itself."""
    blocks = [b"x" * 100_000 for _ in range(400)]  # 40 MB
    del blocks[::2]
    before = resident()
    assert give_back()
    assert before - resident() > 10e6 and len(blocks) == 200


def resident() -> int:
    """Bytes of this process that are in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
