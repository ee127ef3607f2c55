"""Fuzz the decoders: whatever the bytes, `wire` and every codec answer, or refuse with their one error.

    python tests/fuzz/fuzz_decoders.py --inputs 1400000 --seed 0       nothing to install
    python tests/fuzz/fuzz_decoders.py --inputs 1 --seed 0 --first 42  one input of that run again
    python tests/fuzz/fuzz_decoders.py --atheris -atheris_runs=1000000 guided by coverage: pip install atheris

For every input: nothing but FrameError and PayloadError escapes; `unpack` and `read` agree; what is decoded
has the layout's shape, the dtype, and no memory behind it but its own; it takes less than a second of the
processor. For every --measure-th input, and for all of the largest layout, memory is measured: below `limit`.
The whole runs under a limit on the address space, so that no input can take more than HEADROOM unseen.
"""

from __future__ import annotations

import argparse
import atexit
import io
import re
import resource
import signal
import struct
import sys
import time
import zlib
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from types import FrameType

import torch
from fuzz_memory import measured

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["edgewise"]) if atheris else nullcontext():
    import fuzz_inputs as inputs

    from edgewise import wire
    from edgewise.codecs import PayloadError
    from edgewise.wire import Frame, FrameError, Header

SECONDS = 1.0  # of the processor, that an input may take
HANGS = 20  # seconds of the processor after which an input is given up
HEADROOM = 1 << 30  # address space beyond what is taken before the first input
SLACK = 1 << 18  # bytes that a decoder may take whatever the layout: tables, scratch
PAYLOAD, FRAME, SEALED = range(3)  # an input's bytes: a payload; a frame; one with a checksum that fits


class Finding(Exception):
    """A decoder broke its word."""


@dataclass(frozen=True)
class Input:
    """A case, what the bytes are, and the bytes."""

    case: inputs.Case
    form: int
    body: bytes

    @classmethod
    def draw(cls, rng: Random) -> Input:
        case = inputs.Case.draw(rng)
        form = rng.choices((PAYLOAD, FRAME, SEALED), (7, 1, 2))[0]
        return cls(case, form, inputs.payload(case, rng) if form == PAYLOAD else inputs.frame(case, rng))

    @classmethod
    def parse(cls, data: bytes) -> Input:
        """Any bytes are an input: two for the codec, one each for layout, dtype and form, then the body."""
        *numbers, form = struct.unpack("<HBBB", data[:5].ljust(5, b"\0"))
        sizes = len(inputs.codecs()), len(inputs.LAYOUTS), len(inputs.DTYPES)
        case = inputs.Case(*(number % size for number, size in zip(numbers, sizes, strict=True)))
        return cls(case, form % 3, data[5:])

    def pack(self) -> bytes:
        case = self.case
        return struct.pack("<HBBB", case.codec, case.layout, case.dtype, self.form) + self.body


@dataclass
class Tally:
    """What became of the inputs, for each codec's name."""

    taken: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    not_finite: Counter[str] = field(default_factory=Counter)
    frames: Counter[str] = field(default_factory=Counter)  # by what became of them
    slowest: tuple[float, str] = (0.0, "none")  # seconds, what
    most: tuple[float, str] = (0.0, "none")  # share of the limit, what
    measured: int = 0


def limit(case: inputs.Case) -> int:
    """Bytes that decoding may take: eight vectors, eight of the longest payloads, and SLACK.

    All of it known before the first byte comes. Eight, because positions are unpacked to eight bytes each.
    """
    codec, layout, dtype = case.parts()
    return 8 * layout.count * dtype.itemsize + 8 * codec.bound(layout, dtype) + SLACK


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise Finding(what)


def sealed(data: bytes) -> bytes:
    """The bytes of a frame with the checksum that fits them."""
    if len(data) < wire.LENGTH:
        return data
    checksum = zlib.crc32(data[wire.LENGTH :], zlib.crc32(data[: wire.CHECKED]))
    return data[: wire.CHECKED] + struct.pack("<I", checksum) + data[wire.LENGTH :]


def received(data: bytes, case: inputs.Case) -> Frame | str:
    """The frame, or the reason why there is none; `unpack`, `read` and `Header` must not disagree."""
    wanted, stream = inputs.expected(case), io.BytesIO(data)
    frame: Frame | str
    try:
        frame = wire.unpack(data, wanted)
    except FrameError as error:
        frame = re.sub(r"\d+", "N", " ".join(str(error).split()[:5])).rstrip(",:")
    try:
        streamed = wire.read(stream, wanted)
    except FrameError:
        demand(isinstance(frame, str), "unpack takes what read refuses")
    else:
        ends = stream.tell() == len(data)
        demand(streamed == frame if ends else "followed" in str(frame), "read takes what unpack refuses")
    if isinstance(frame, Frame):
        demand(wire.pack(frame) == data, "a frame that is packed otherwise than it came")
        demand(Header.parse(data).payload == len(frame.payload), "a header that lies")
    return frame


def decoded(payload: bytes, case: inputs.Case, tally: Tally) -> None:
    """Decode a payload; whatever it is, it gives a vector as it should be, or PayloadError."""
    codec, layout, dtype = case.parts()
    kept = bytes(payload)
    try:
        vector = codec.decode(payload, layout, dtype)
    except PayloadError as error:
        demand("\n" not in str(error), "an error of several lines")
        tally.refused[case.name] += 1
        return
    demand(type(vector) is torch.Tensor and vector.device.type == "cpu", "no tensor on the CPU")
    demand(vector.shape == (layout.count,) and vector.dtype == dtype, f"a {vector.dtype} {vector.shape}")
    demand(vector.is_contiguous(), "a vector with gaps")
    demand(vector.untyped_storage().nbytes() == layout.count * dtype.itemsize, "memory beyond the vector")
    demand(payload == kept, "the payload was changed")
    tally.taken[case.name] += 1
    tally.not_finite[case.name] += not bool(torch.isfinite(vector).all())


def play(one: Input, tally: Tally) -> None:
    """Receive and decode one input; raises Finding, or whatever escaped."""
    case = one.case
    if one.form == PAYLOAD:
        wanted = inputs.expected(case)
        fits = len(one.body) == wanted.payload if wanted.exact else len(one.body) <= wanted.payload
        frame = received(wire.pack(case.frame(one.body)), case)
        demand(isinstance(frame, Frame) == fits, f"a payload of {len(one.body)} bytes: {frame}")
        decoded(one.body, case, tally)  # too long or not: a codec must not rely on the frame
    else:
        frame = received(sealed(one.body) if one.form == SEALED else one.body, case)
        if isinstance(frame, Frame):
            decoded(frame.payload, case, tally)
    tally.frames[frame if isinstance(frame, str) else "taken"] += 1


def what(one: Input) -> str:
    codec, layout, dtype = one.case.parts()
    form = ("payload", "frame", "sealed frame")[one.form]
    return f"{codec}, {layout.count} values of {dtype}, {form} of {len(one.body)} bytes"


def check(one: Input, tally: Tally, measure: bool) -> None:
    """Play one input within its time and, if it is to be measured, within its memory."""
    began = time.process_time()
    play(one, tally)
    seconds = time.process_time() - began
    if seconds > SECONDS:  # what is laid out on first use is no input's fault
        began = time.process_time()
        play(one, Tally())
        seconds = min(seconds, time.process_time() - began)
        demand(seconds <= SECONDS, f"{seconds:.1f} s for one input")
    tally.slowest = max(tally.slowest, (seconds, what(one)), key=lambda pair: pair[0])
    if measure or inputs.LAYOUTS[one.case.layout].count == inputs.WIDE:
        share, bytes_ = memory(one)
        tally.measured += 1
        tally.most = max(tally.most, (share, f"{bytes_:,} bytes: {what(one)}"), key=lambda pair: pair[0])


def memory(one: Input) -> tuple[float, int]:
    """The memory that decoding an input takes, as a share of its limit and in bytes."""
    codec, layout, dtype = one.case.parts()
    most = limit(one.case) if one.form == PAYLOAD else len(one.body) + SLACK
    taken = [most + 1]
    for _ in range(2):  # what is imported or laid out on first use is no input's fault
        if taken[-1] > most:
            with suppress(FrameError, PayloadError), measured(taken):
                if one.form == PAYLOAD:
                    codec.decode(one.body, layout, dtype)
                else:
                    wire.unpack(one.body, inputs.expected(one.case))
    demand(taken[-1] <= most, f"{taken[-1]:,} bytes of memory, where {most:,} are the limit")
    return taken[-1] / most, taken[-1]


def show(tally: Tally, seconds: float) -> None:
    """What became of the inputs, a line for each codec."""
    print(f"{'codec':<16}{'refused':>10}{'decoded':>10}{'not finite':>12}")
    for name in sorted({*tally.taken, *tally.refused}):
        counts = (tally.refused[name], tally.taken[name], tally.not_finite[name])
        print(f"{name:<16}{counts[0]:>10,}{counts[1]:>10,}{counts[2]:>12,}")
    print(f"{'all':<16}{tally.refused.total():>10,}{tally.taken.total():>10,}{tally.not_finite.total():>12,}")
    print("\nframes")
    for reason, count in tally.frames.most_common():
        print(f"{count:>12,}  {reason}")
    count, malformed = tally.frames.total(), tally.frames.total() - tally.taken.total()
    print(f"\n{count:,} inputs in {seconds:,.0f} s, {malformed:,} of them malformed, no finding")
    print(f"slowest: {1000 * tally.slowest[0]:.1f} ms: {tally.slowest[1]}")
    share, most = tally.most
    print(f"memory: measured {tally.measured:,} times, at most {share:.0%} of the limit: {most}")
    print(f"the whole: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB at its largest")


def confine() -> None:
    """Let no input take more than HEADROOM, seen or unseen; where the system can."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + HEADROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def hung(signal_number: int, frame: FrameType | None) -> None:
    raise Finding(f"no answer in {HANGS} s")


def run(count: int, seed: int, first: int, measure: int) -> Tally:
    """`count` inputs of our own; every input has an address, (seed, index)."""
    tally = Tally()
    before = signal.signal(signal.SIGPROF, hung)
    for index in range(first, first + count):
        one = Input.draw(Random(seed << 40 | index))
        signal.setitimer(signal.ITIMER_PROF, HANGS)
        try:
            check(one, tally, measure=index % measure == 0)
        except Exception:
            print(
                f"--inputs 1 --seed {seed} --first {index}: {what(one)}",
                flush=True,
            )
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if (index + 1 - first) % 100_000 == 0:
            print(f"{index + 1 - first:,} inputs", file=sys.stderr, flush=True)
    signal.signal(signal.SIGPROF, before)
    return tally


def fuzz(arguments: list[str], measure: int) -> None:
    """Inputs that libFuzzer chooses by the code they reach, for as long as its arguments say."""
    tally, began = Tally(), time.perf_counter()

    def one_input(data: bytes) -> None:
        one = Input.parse(data)
        try:
            check(one, tally, measure=tally.frames.total() % measure == 0)
        except Exception:
            print(what(one), flush=True)
            raise

    def mutator(data: bytes, longest: int, seed: int) -> bytes:
        rng = Random(seed)
        if len(data) < 5 or rng.random() < 0.2:
            return Input.draw(rng).pack()[:longest]
        one = Input.parse(data)
        if rng.random() < 0.5:
            return replace(one, body=inputs.mutated(one.body, rng)).pack()[:longest]
        return one.pack()[:5] + atheris.Mutate(one.body, max(1, longest - 5))

    atexit.register(lambda: show(tally, time.perf_counter() - began))
    defaults = ["-max_len=50000", f"-timeout={HANGS}", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *defaults, *arguments], one_input, custom_mutator=mutator)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the decoders.", allow_abbrev=False)
    parser.add_argument("--inputs", type=int, default=10_000, help="how many (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--measure", type=int, default=100, help="measure memory at every so many-th input")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage; the rest is libFuzzer's")
    options, rest = parser.parse_known_args()
    if rest and not options.atheris:
        parser.error(f"unknown: {' '.join(rest)}")
    if options.atheris and not atheris:
        parser.error("--atheris needs the package of that name: pip install atheris")
    torch.set_num_threads(1)
    confine()
    if options.atheris:
        fuzz(rest, options.measure)
    else:
        began = time.perf_counter()
        show(run(options.inputs, options.seed, options.first, options.measure), time.perf_counter() - began)


if __name__ == "__main__":
    main()
