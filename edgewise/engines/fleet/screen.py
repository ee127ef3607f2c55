"""Which updates are taken: whole, of this round and device, finite, and of a size that makes sense."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

import torch

from edgewise import wire
from edgewise.device import Reply, Terms
from edgewise.errors import EdgewiseError
from edgewise.vector import Layout
from edgewise.wire import Bytes

ABSURD = 100.0  # times the median of what was taken lately
KNOWN, KEPT = 10, 200  # norms before the median is trusted, and that it is taken over


class Screen:
    """`dtype`: of the model. `norms`: of updates taken before, the oldest first."""

    def __init__(self, terms: Terms, layout: Layout, dtype: torch.dtype, norms: Iterable[float] = ()) -> None:
        self.terms, self.layout, self.dtype = terms, layout, dtype
        self.nbytes = layout.count * dtype.itemsize  # of an update, decoded
        self.norms = deque(norms, maxlen=KEPT)

    def check(
        self, data: Bytes, device: int, round: int, examples: int, summed: bool = False
    ) -> tuple[Reply, float]:
        """The reply in these bytes and its update's norm; EdgewiseError with the reason to refuse it.

        `summed`: their checksum agrees.
        """
        reply = self.open(data, device, round, summed)
        if reply.examples != examples:
            raise EdgewiseError(f"an update of {reply.examples} examples, where {examples} were asked for")
        if not math.isfinite(reply.losses[0]):
            raise EdgewiseError(f"a loss of {reply.losses[0]}")
        norm = float(torch.linalg.vector_norm(reply.update(self.terms.codec, self.layout, self.dtype)))
        if not (math.isfinite(norm) and bool(torch.isfinite(reply.buffers).all())):
            raise EdgewiseError("an update with NaN or infinity")
        usual = statistics.median(self.norms) if len(self.norms) >= KNOWN else math.inf
        if usual and norm > ABSURD * usual:  # where nothing is usual, nothing is absurd
            raise EdgewiseError(f"an update of norm {norm:.3g}, where {usual:.3g} is usual")
        return reply, norm

    def open(self, data: Bytes, device: int, round: int, summed: bool = False) -> Reply:
        """The reply in a frame of this device and round; EdgewiseError for any other bytes."""
        header = wire.Header.parse(data)
        if (header.device, header.round) != (device, round):
            raise EdgewiseError(
                f"an update of device {header.device} and round {header.round} "
                f"from device {device} in round {round}"
            )
        return Reply.unpack(data, self.terms.agreed, self.dtype, summed)
