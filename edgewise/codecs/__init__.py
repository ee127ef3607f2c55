"""Codecs: update -> bytes -> update.

A codec is a frozen dataclass: its fields are its settings, and what it must remember from one round to the
next goes in and comes out as `memory`. `encode` returns the very bytes that travel, so `len(payload)` is the
traffic: nothing is estimated. To add one: a file here, a line in CODECS, and tests/codecs covers it.

In text a codec that loses something has error feedback around it, unless it is told otherwise:

    "topk:0.01"                  Feedback(TopK(0.01))
    "topk:0.01:nofeedback"       TopK(0.01)
    "int8:zstd"                  Feedback(Zstd(Int8()))      a lossless stage over the payload
"""

from __future__ import annotations

from dataclasses import replace

from edgewise import specs
from edgewise.codecs.base import Codec, Memory, NotFinite, Payload, PayloadError, Sending
from edgewise.codecs.dgc import DGC
from edgewise.codecs.feedback import Feedback
from edgewise.codecs.half import Half
from edgewise.codecs.integers import Int4, Int8
from edgewise.codecs.levels import Levels
from edgewise.codecs.lowrank import LowRank
from edgewise.codecs.powersgd import PowerSGD
from edgewise.codecs.qsgd import QSGD
from edgewise.codecs.randomk import RandomK
from edgewise.codecs.raw import Raw
from edgewise.codecs.sign import Sign
from edgewise.codecs.stc import STC
from edgewise.codecs.ternary import Ternary
from edgewise.codecs.topk import TopK
from edgewise.codecs.zstd import Zstd
from edgewise.errors import EdgewiseError

CODECS: dict[str, type[Codec]] = {
    "none": Raw,
    "half": Half,
    "int8": Int8,
    "int4": Int4,
    "qsgd": QSGD,
    "ternary": Ternary,
    "sign": Sign,
    "levels": Levels,
    "topk": TopK,
    "stc": STC,
    "randomk": RandomK,
    "dgc": DGC,
    "powersgd": PowerSGD,
    "lowrank": LowRank,
}
NO_FEEDBACK, STAGE = "nofeedback", "zstd"


def parse(text: str, what: str = "codec") -> Codec:
    """The codec that `text` stands for; EdgewiseError naming `what` and the legal forms."""
    name, *words = str(text).split(":")
    for word in (NO_FEEDBACK, STAGE):
        if words.count(word) > 1:
            raise EdgewiseError(f"{what}: {text!r} says {word!r} twice")
    kept = [word for word in words if word not in (NO_FEEDBACK, STAGE)]
    codec: Codec = specs.parse(CODECS, ":".join([name, *kept]), what)
    if NO_FEEDBACK in words and not _needs_feedback(codec):
        raise EdgewiseError(f"{what}: {text!r}: {name} has no feedback around it that could be left out")
    return around(codec, stage=STAGE in words, feedback=NO_FEEDBACK not in words)


def text(codec: Codec, feedback: bool = True) -> str:
    """The text form of a codec; `feedback`: whether there would be some, so that its absence is named."""
    own = inner(codec)
    words = [specs.text(CODECS, own, least=1)]  # topk:0.01, whatever the default
    words += [STAGE] * isinstance(without_feedback(codec), Zstd)
    words += [NO_FEEDBACK] * (feedback and _needs_feedback(own) and not isinstance(codec, Feedback))
    return ":".join(words)


def inner(codec: Codec) -> Codec:
    """The codec itself, without what is around it."""
    while isinstance(codec, Feedback | Zstd):
        codec = codec.codec
    return codec


def around(codec: Codec, *, stage: bool, feedback: bool) -> Codec:
    """The codec with a lossless stage over its payload, and with feedback where it needs any."""
    staged: Codec = Zstd(codec) if stage else codec
    return Feedback(staged) if feedback and _needs_feedback(codec) else staged


def without_feedback(codec: Codec) -> Codec:
    """The codec with no feedback around it."""
    return codec.codec if isinstance(codec, Feedback) else codec


def exchange(codec: Codec, own: Codec) -> Codec:
    """`own` with all that was around `codec`."""
    if isinstance(codec, Feedback | Zstd):
        return replace(codec, codec=exchange(codec.codec, own))
    return own


def _needs_feedback(codec: Codec) -> bool:
    return not (codec.lossless or isinstance(codec, DGC))  # DGC remembers by itself


__all__ = [
    "CODECS",
    "DGC",
    "QSGD",
    "STC",
    "Codec",
    "Feedback",
    "Half",
    "Int4",
    "Int8",
    "Levels",
    "LowRank",
    "Memory",
    "NotFinite",
    "Payload",
    "PayloadError",
    "PowerSGD",
    "RandomK",
    "Raw",
    "Sending",
    "Sign",
    "Ternary",
    "TopK",
    "Zstd",
    "around",
    "exchange",
    "inner",
    "parse",
    "text",
    "without_feedback",
]
