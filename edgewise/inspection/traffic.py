"""What a round would send, measured: a real update, encoded and framed, for the run's codecs and others."""

from __future__ import annotations

import torch

from edgewise import codecs, local, wire
from edgewise.assemble import Parts
from edgewise.broadcast import broadcast
from edgewise.codecs import Sending
from edgewise.network import NETWORKS, Network

OTHERS = ("none", "half", "int8", "int4", "topk:0.02:8", "powersgd:2:8", "lowrank:0.0099", "stc:0.01")
NETWORK = "lte"


class Traffic:
    """`up` and `down`: bytes that one device sends and is sent in a round, as the run is set. `by_codec`:
    what it would send with other codecs. `seconds`: of both ways, on the network called `NETWORK`.
    """

    def __init__(self, up: int, down: int, by_codec: dict[str, int]) -> None:
        self.up, self.down, self.by_codec = up, down, by_codec

    @property
    def seconds(self) -> float:
        return Network(NETWORKS[NETWORK]).round_seconds([0], self.up, self.down, 0)


def traffic(parts: Parts) -> Traffic:
    """From device 0's gradient at the initial weights. The model's state is left as it was."""
    model, config = parts.model, parts.config
    before, mode = model.read(), model.module.training
    try:
        model.grads.zero_()
        local.gradient(model, parts.work.feed.batch(0, parts.devices[0].indices, 0), parts.terms.objective)
        update = model.grads.clone()
    finally:
        model.write(before)
        model.module.train(mode)
    if not bool(torch.isfinite(update).all()):
        update.zero_()
    buffers = model.buffers.nbytes

    def length(codec: codecs.Codec) -> int:
        payload, _ = codec.encode(update, model.layout, {}, Sending())
        return wire.length(len(payload), buffers)

    own = codecs.text(config.codec)
    by_codec = {name: length(codecs.parse(name)) for name in dict.fromkeys([own, *OTHERS])}
    way = broadcast(config.codec_down, model.layout, config.seed)
    way.announce(1, before)
    return Traffic(by_codec[own], way.bytes_each(0), by_codec)
