"""What every test shares: one thread, a seed, and settings under which equal runs give equal bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

if TYPE_CHECKING:
    from edgewise.engines.torchrun.group import Group

# The number of threads changes the last bits of a sum, and engines are compared bit by bit.
# Not torch.use_deterministic_algorithms: it chooses other CPU kernels, and the processes that some tests
# start would not share the choice. One thread is deterministic on the CPU as it is.
torch.set_num_threads(1)
torch.backends.cudnn.deterministic = True
torch.backends.cudnn.benchmark = False

# The same examples every time, and no time limit on one: a busy machine is no fault of the code.
hypothesis.settings.register_profile("edgewise", derandomize=True, deadline=None)
hypothesis.settings.load_profile("edgewise")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests that draw without a generator of their own draw the same numbers in any order of tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pair() -> Iterator[Group]:
    """Two ranks, of which this process is rank 0. Hiring takes seconds, so all tests share them."""
    from rank_runs import two_ranks

    with two_ranks() as group:
        yield group
