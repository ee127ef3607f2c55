"""How much memory a piece of code takes: Python's, numpy's and torch's."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Made(TorchDispatchMode):
    """Adds up the memory of the tensors that torch makes, which tracemalloc does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what tells the compiler to keep out imports it, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in given:
                    self.blocks[storage.data_ptr()] = storage.nbytes()
        return result


@contextmanager
def measured(taken: list[int]) -> Iterator[None]:
    """Appends the bytes that were taken: numpy's and Python's at their peak, and all that torch made."""
    tracemalloc.start()
    try:
        with Made() as made:
            yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        taken.append(peak + sum(made.blocks.values()))
