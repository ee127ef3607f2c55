"""The way down: devices that hold their own copy hold the reference, bit for bit, from nothing but frames."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise import specs, wire
from edgewise.algorithms import FedAvg, SyncSGD
from edgewise.broadcast import (
    Broadcast,
    Differences,
    FullState,
    broadcast,
    expected,
    frames,
    full,
    marks,
    receive,
)
from edgewise.codecs import CODECS, DGC, Codec, Raw, TopK, parse, text, without_feedback
from edgewise.cohorts import cohort
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.errors import EdgewiseError
from edgewise.models.norms import Batch
from edgewise.optimizers import SGD
from edgewise.records import Checkpoint
from edgewise.rounds import run
from edgewise.vector import Layout, State
from edgewise.wire import FrameError, Kind

NET = Layout.of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3), nn.Linear(24, 10)))
VALUES = {int: "2", float: "0.05"}
LOSSY = [  # a text of every codec that loses something and may go down
    ":".join([name, *(VALUES[specs.kind_of(slot)] for slot in fields(codec) if slot.default is MISSING)])  # type: ignore[arg-type]
    for name, codec in CODECS.items()
    if codec not in (Raw, DGC)
]
LOSSY += ["topk:0.05:zstd", "topk:1", "powersgd:1:16"]
LOSSLESS = ["none", "none:zstd"]
every_lossy = pytest.mark.parametrize("down", LOSSY)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])


def codec_of(down: str) -> Codec:
    return without_feedback(parse(down))


def start(seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    draws = torch.Generator().manual_seed(seed)
    params = torch.randn(NET.count, generator=draws).to(dtype)
    return State(params, torch.rand(NET.buffer_count, generator=draws).to(dtype))


def moved(state: State, number: int) -> State:
    """The server's state after another step, in the same memory, as algorithms have it."""
    draws = torch.Generator().manual_seed(100 + number)
    state.params.add_(torch.randn(NET.count, generator=draws), alpha=0.01)
    return State(state.params, torch.rand(NET.buffer_count, generator=draws).to(state.params.dtype))


@dataclass
class Receiver:
    """A device's end: what it holds, which nothing but frames has changed."""

    codec: Codec
    dtype: torch.dtype = torch.float32
    held: tuple[int, Tensor] | None = None
    buffers: bytes = b""
    received: int = 0

    def take(self, arrived: Iterable[bytes], expected: list[wire.Expected]) -> None:
        for data in arrived:
            frame = wire.unpack(data, *expected)
            self.held = (frame.round, receive(frame, self.held, self.codec, NET, self.dtype))
            self.buffers = frame.buffers
            self.received += len(data)


@dataclass
class Fleet:
    """A coordinator's end, and devices."""

    codec: Codec
    dtype: torch.dtype = torch.float32
    seed: int = 3
    size: int = 8
    way: Broadcast = field(init=False)
    devices: list[Receiver] = field(init=False)

    def __post_init__(self) -> None:
        self.way = broadcast(self.codec, NET, self.seed)
        self.devices = [Receiver(self.codec, self.dtype) for _ in range(self.size)]

    def expected(self, buffers: int) -> list[wire.Expected]:
        """What a device takes in one frame; only the last of a round has buffers."""
        return expected(self.codec, NET, self.dtype, buffers)

    def frames(self, number: int, state: State, device: int) -> list[bytes]:
        buffers = state.buffers.numpy().tobytes()
        task = wire.Frame(Kind.STATE, wire.layout_mark(NET.digest), b"", number, device, 0.5, 2, b"", buffers)
        return [b"".join(pieces) for pieces in frames(self.way, device, task, marks(self.codec))]

    def round(self, number: int, state: State, asked: Iterable[int]) -> State:
        """One round down; the state that the cohort must hold now."""
        reference = self.way.announce(number, state)
        for device in asked:
            *early, last = self.frames(number, state, device)
            receiver, before = self.devices[device], self.devices[device].received
            receiver.take(early, self.expected(0))
            receiver.take([last], self.expected(state.buffers.nbytes))
            assert receiver.received - before == self.way.bytes_each(device)
            assert receiver.held is not None and receiver.held[0] == number
            assert bits(receiver.held[1]) == bits(reference.params)
            assert receiver.buffers == bits(state.buffers) == bits(reference.buffers)
        self.way.deliver(asked)
        return reference


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def cohorts(rounds: int, size: int, seed: int = 1) -> list[list[int]]:
    """Random cohorts. The last device comes late, and some miss many rounds."""
    chance = random.Random(seed)
    drawn = [sorted(chance.sample(range(size - 1), chance.randint(1, 4))) for _ in range(rounds)]
    return [[*ids, size - 1] if number in (17, 18, 29) else ids for number, ids in enumerate(drawn)]


# ---- both ends hold the same ----


@every_lossy
@every_dtype
def test_devices_hold_the_reference_bit_for_bit(down: str, dtype: torch.dtype) -> None:
    fleet, state = Fleet(codec_of(down), dtype), start(dtype=dtype)
    exact, sent, missed = state.params.clone(), [], []
    for number, asked in enumerate(cohorts(30, fleet.size), 1):
        way = fleet.way
        assert isinstance(way, Differences)
        for device in asked:
            missed.append(number - way.held[device] if device in way.held else 0)
        reference = fleet.round(number, state, asked)
        sent.append(sum(wire.length(len(payload), 0) for payload in way.log))
        assert bits(state.params) == bits(exact), "the coordinator's own state is left exact"
        assert reference.params.data_ptr() != state.params.data_ptr()
        state = moved(state, number)
        exact = state.params.clone()
    assert 0 in missed and 1 in missed and max(missed) > 5, "newcomers, and who missed none or many"
    assert max(sent) <= wire.length(state.params.nbytes, 0)


@pytest.mark.parametrize("down", LOSSLESS)
@every_dtype
def test_without_loss_devices_hold_the_state(down: str, dtype: torch.dtype) -> None:
    fleet, state = Fleet(codec_of(down), dtype), start(dtype=dtype)
    assert isinstance(fleet.way, FullState)
    for number, asked in enumerate(cohorts(8, fleet.size), 1):
        reference = fleet.round(number, state, asked)
        assert reference is state
        if down == "none":
            assert fleet.way.bytes_each(0) == wire.LENGTH + state.params.nbytes + state.buffers.nbytes
        state = moved(state, number)
    assert fleet.way.save() == ({}, {})


def test_a_state_that_shrinks_is_sent_shorter() -> None:
    fleet, state = Fleet(codec_of("none:zstd")), start()
    state.params.fill_(0.5)
    fleet.round(1, state, [0, 1])
    assert fleet.way.bytes_each(0) < wire.LENGTH + state.params.nbytes / 10 + state.buffers.nbytes
    assert fleet.way.payloads(0)[0] is Kind.STATE


def test_an_infinite_state_travels_without_loss() -> None:
    """What becomes of it is for the coordinator to say."""
    for down in LOSSLESS:
        state = start()
        state.params[3] = torch.inf
        Fleet(codec_of(down)).round(1, state, [0, 1])


# ---- what a device is sent ----


def kinds(fleet: Fleet, device: int) -> tuple[Kind, int]:
    kind, payloads = fleet.way.payloads(device)
    return kind, len(payloads)


def test_a_device_is_sent_what_it_missed() -> None:
    fleet, state = Fleet(TopK(0.05)), start()
    for number, asked in enumerate([[0, 1], [0], [0], [0, 2]], 1):
        fleet.round(number, state, asked)
        state = moved(state, number)
    fleet.way.announce(5, state)
    assert kinds(fleet, 0) == kinds(fleet, 2) == (Kind.DIFFERENCE, 1)
    assert kinds(fleet, 1) == (Kind.DIFFERENCE, 4)
    assert kinds(fleet, 3) == (Kind.STATE, 1)
    length = TopK(0.05).bound(NET, torch.float32)
    assert fleet.way.bytes_each(0) == wire.LENGTH + length + state.buffers.nbytes
    assert fleet.way.bytes_each(1) == 4 * (wire.LENGTH + length) + state.buffers.nbytes
    assert fleet.way.bytes_each(3) == wire.LENGTH + state.params.nbytes + state.buffers.nbytes


def test_only_the_last_frame_carries_the_buffers_and_each_its_round() -> None:
    fleet, state = Fleet(TopK(0.05)), start()
    for number, asked in enumerate([[0, 1], [0], [0]], 1):
        fleet.round(number, state, asked)
        state = moved(state, number)
    fleet.way.announce(4, state)
    found = [wire.unpack(f, *fleet.expected(0)) for f in fleet.frames(4, state, 1)[:-1]]
    found.append(wire.unpack(fleet.frames(4, state, 1)[-1], *fleet.expected(state.buffers.nbytes)))
    assert [frame.round for frame in found] == [2, 3, 4]
    assert [len(frame.buffers) for frame in found] == [0, 0, state.buffers.nbytes]
    assert {(frame.kind, frame.device, frame.count, frame.value) for frame in found} == {
        (Kind.DIFFERENCE, 1, 2, 0.5)
    }


def test_who_missed_too_much_is_sent_the_reference() -> None:
    """As soon as that is shorter; the log never grows beyond it."""
    fleet, state = Fleet(TopK(0.1)), start()
    way = fleet.way
    assert isinstance(way, Differences)
    one, whole = wire.length(TopK(0.1).bound(NET, torch.float32), 0), wire.length(state.params.nbytes, 0)
    room = whole // one
    assert 3 < room < 12
    fleet.round(1, state, range(8))
    for number in range(2, 15):
        state = moved(state, number)
        fleet.round(number, state, [0])
        missed = number - 1
        assert kinds(fleet, 7) == ((Kind.DIFFERENCE, missed) if missed <= room else (Kind.STATE, 1))
        assert way.bytes_each(7) - state.buffers.nbytes == min(missed * one, whole)
        assert len(way.log) == min(missed, room)
    fleet.round(15, moved(state, 15), [0, 7])


def test_a_codec_longer_than_the_state_sends_the_reference() -> None:
    """With indices, all values are longer than the values; so nobody is sent them."""
    fleet, state = Fleet(TopK(1.0)), start()
    assert TopK(1.0).bound(NET, torch.float32) > state.params.nbytes
    for number in range(1, 4):
        fleet.round(number, state, [0, 1])
        assert kinds(fleet, 0) == (Kind.STATE, 1)
        state = moved(state, number)


# ---- what is lost comes back ----

# Rounds, and the share of the way that may be left after them: how fast is each codec's own.
COMES = {"randomk": (200, 0.5), "sign": (200, 0.05), "levels": (200, 0.05), "ternary": (200, 0.01)}
COMES |= {"stc": (300, 1e-4), "lowrank": (200, 1e-6)}


@every_lossy
@every_dtype
def test_the_reference_comes_to_a_state_that_stays(down: str, dtype: torch.dtype) -> None:
    way = broadcast(codec_of(down), NET, 3)
    state = start(dtype=dtype)
    way.announce(1, state)
    there = State(start(5, dtype).params, state.buffers)  # far away
    rounds, share = COMES.get(down.split(":")[0], (120, 1e-6))
    for number in range(2, 2 + rounds):
        reference = way.announce(number, there)
    assert (reference.params - there.params).norm() < share * (state.params - there.params).norm()


@every_lossy
def test_the_reference_keeps_up_with_a_state_that_moves(down: str) -> None:
    """Errors do not add up: after many rounds the distance is that of a few."""
    way, state = broadcast(codec_of(down), NET, 3), start()
    away = []
    for number in range(1, 121):
        reference = way.announce(number, state)
        away.append(float((reference.params - state.params).norm()))
        state = moved(state, number)
    step = 0.01 * NET.count**0.5
    assert max(away[100:]) < 1.5 * max(away[60:80]) + 1e-6 and max(away) < 12 * step


def test_the_draws_are_addressed_by_seed_and_round() -> None:
    found = []
    for seed in (1, 1, 2):
        way, state = broadcast(codec_of("randomk:0.1"), NET, seed), start()
        assert isinstance(way, Differences)
        for number in (1, 2, 3):
            way.announce(number, state)
            state = moved(state, number)
        found.append(list(way.log))
    assert found[0] == found[1] != found[2]
    assert found[0][0] != found[0][1]


# ---- a coordinator that goes on in another process ----


def through_a_checkpoint(way: Broadcast, folder: Path, codec: Codec, seed: int) -> Broadcast:
    tensors, note = way.save()
    Checkpoint(tensors, {"broadcast": note}).save(folder / "c.safetensors")
    found = Checkpoint.load(folder / "c.safetensors")
    other = broadcast(codec, NET, seed)
    other.restore(found.tensors, found.note["broadcast"])
    assert other.save()[1] == note
    return other


@pytest.mark.parametrize("down", [*LOSSY, *LOSSLESS])
@pytest.mark.parametrize("after", [0, 1, 2, 11])
def test_a_restored_way_goes_on_the_same(tmp_path: Path, down: str, after: int) -> None:
    codec = codec_of(down)
    ends = []
    for cut in (False, True):
        fleet, state, lengths = Fleet(codec), start(), []
        for number, asked in enumerate(cohorts(20, fleet.size, seed=after), 1):
            if cut and number == after + 1:
                fleet.way = through_a_checkpoint(fleet.way, tmp_path, codec, fleet.seed)
            reference = fleet.round(number, state, asked)
            lengths.append([fleet.way.bytes_each(device) for device in range(fleet.size)])
            state = moved(state, number)
        way = fleet.way
        log = way.log if isinstance(way, Differences) else None
        held = way.held if isinstance(way, Differences) else None
        ends.append((bits(reference.params), lengths, log, held))
    assert ends[0] == ends[1]


def test_a_saved_note_is_json() -> None:
    fleet, state = Fleet(TopK(0.05)), start()
    fleet.round(1, state, [0, 3])
    _, note = fleet.way.save()
    assert json.loads(json.dumps(note))["held"] == {"0": 1, "3": 1}


# ---- what is not to be applied ----


def test_a_difference_to_what_is_not_held_is_refused() -> None:
    fleet, state = Fleet(TopK(0.05)), start()
    fleet.round(1, state, [0, 1])
    state = moved(state, 1)
    fleet.round(2, state, [0])
    state = moved(state, 2)
    fleet.way.announce(3, state)
    (arrived,) = fleet.frames(3, state, 0)
    frame = wire.unpack(arrived, *fleet.expected(state.buffers.nbytes))
    assert frame.kind is Kind.DIFFERENCE
    ours = fleet.devices[0].held
    assert ours is not None
    for held in (None, (1, ours[1]), (3, ours[1]), (0, ours[1])):
        with pytest.raises(FrameError, match="a difference to round 2, which this device does not hold"):
            receive(frame, held, fleet.codec, NET, torch.float32)
    before = bits(ours[1])
    found = receive(frame, ours, fleet.codec, NET, torch.float32)
    assert bits(ours[1]) == before and bits(found) != before, "what was held is left as it was"


def test_a_device_without_a_copy_takes_no_difference_for_a_state() -> None:
    fleet, state = Fleet(TopK(0.05)), start()
    for number in (1, 2):
        fleet.round(number, state, [0])
        state = moved(state, number)
    fleet.way.announce(3, state)
    (arrived,) = fleet.frames(3, state, 0)
    only_states = fleet.expected(state.buffers.nbytes)[:1]
    with pytest.raises(FrameError, match="DIFFERENCE, where STATE was expected"):
        wire.unpack(arrived, *only_states)


@every_lossy
def test_a_state_that_is_not_finite_names_its_round(down: str) -> None:
    way, state = broadcast(codec_of(down), NET, 3), start()
    for number in (1, 2):
        way.announce(number, state)
        state = moved(state, number)
    state.params[5] = torch.nan
    with pytest.raises(EdgewiseError, match=r"^round 2: the model is no longer finite; training diverged"):
        way.announce(3, state)


# ---- whole runs ----


@pytest.fixture(scope="module")
def specks() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.arange(60) % 6
    return Dataset.of("specks", train=(images[:48], labels[:48]), test=(images[48:], labels[48:]))


PLAIN = Config(devices=6, batch=2, width=4, steps=8, eval_every=0, norm=Batch(), algorithm=SyncSGD(SGD(0.02)))


def test_bytes_down_are_the_lengths_of_the_frames(
    specks: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every device of every round packs and counts its frames, beside what the run writes down."""
    counted: list[list[int]] = []

    def deliver(self: Differences, devices: Iterable[int]) -> None:
        lengths, reference = [], self.reference
        assert reference is not None
        for device in devices:
            task = wire.Frame(
                Kind.STATE, bytes(16), b"", self.round, device, 1.0, 1, b"", bits(reference.buffers)
            )
            marked = dict.fromkeys(Kind, bytes(8))
            lengths.append(sum(len(b"".join(pieces)) for pieces in frames(self, device, task, marked)))
        counted.append(lengths)
        plain(self, devices)

    plain = Differences.deliver
    monkeypatch.setattr(Differences, "deliver", deliver)
    config = replace(PLAIN, codec_down=codec_of("topk:0.1"), cohort=3)
    rows = list(run(config, tmp_path / "run", dataset=specks))
    assert [row.bytes_down for row in rows] == [sum(lengths) for lengths in counted]
    for row, lengths in zip(rows, counted, strict=True):
        assert row.bytes_down_each == (lengths[0] if len(set(lengths)) == 1 else lengths)
    assert any(isinstance(row.bytes_down_each, list) for row in rows), "newcomers among others"
    full = list(run(replace(config, codec_down=Raw()), tmp_path / "full", dataset=specks))
    assert len({row.bytes_down for row in full}) == 1 and rows[0].bytes_down == full[0].bytes_down
    assert rows[-1].bytes_down < full[-1].bytes_down


@pytest.mark.parametrize("algorithm", [SyncSGD(SGD(0.02)), FedAvg(SGD(0.02), sync_every=2)], ids=["1", "2"])
def test_a_codec_that_sends_all_changes_next_to_nothing(
    specks: Dataset, tmp_path: Path, algorithm: Any
) -> None:
    """Whole differences in float32 are the state, but for the rounding of a subtraction and an addition."""
    config = replace(PLAIN, algorithm=algorithm, precision="fp64", cohort=4)
    plain = list(run(config, tmp_path / "plain", dataset=specks))
    down = list(run(replace(config, codec_down=TopK(1.0)), tmp_path / "down", dataset=specks))
    for one, two in zip(plain, down, strict=True):
        assert two.train_loss == pytest.approx(one.train_loss, rel=1e-5)
    coarse = list(run(replace(config, codec_down=TopK(0.05)), tmp_path / "coarse", dataset=specks))
    assert coarse[-1].train_loss != pytest.approx(plain[-1].train_loss, rel=1e-5)
    assert [cohort(config, row.round) for row in coarse] == [cohort(config, row.round) for row in plain]


def test_a_model_that_diverges_on_the_way_down_is_one_line(specks: Dataset, tmp_path: Path) -> None:
    config = replace(PLAIN, algorithm=SyncSGD(SGD(lr=1e9)), codec_down=codec_of("topk:0.1"), steps=20)
    with pytest.raises(EdgewiseError, match=r"^round \d+(, device \d)?: .*; training diverged") as told:
        list(run(config, tmp_path / "run", dataset=specks))
    assert "\n" not in str(told.value)


# ---- what both ends know beforehand ----


@pytest.mark.parametrize("down", LOSSLESS + LOSSY)
@every_dtype
def test_what_is_expected_and_how_it_is_marked(down: str, dtype: torch.dtype) -> None:
    codec = codec_of(down)
    whole, difference = expected(codec, NET, dtype, 12)
    assert (whole.kind, difference.kind) == (Kind.STATE, Kind.DIFFERENCE)
    assert full(codec) == (codec if codec.lossless else Raw())
    for one, coded in ((whole, full(codec)), (difference, codec)):
        assert (one.payload, one.exact, one.buffers) == (coded.bound(NET, dtype), coded.fixed, 12)
        assert one.codec == marks(codec)[one.kind] == wire.codec_mark(text(coded, feedback=False))
        assert one.layout == wire.layout_mark(NET.digest)
    assert (marks(codec)[Kind.STATE] == marks(codec)[Kind.DIFFERENCE]) == codec.lossless


def test_who_missed_the_same_is_sent_the_same() -> None:
    """So a coordinator packs the frames once for all of them, and believes what a device says it holds."""
    fleet, state = Fleet(codec_of("int8")), start()
    for number in range(1, 6):
        state = moved(state, number)
        fleet.way.announce(number, state)
        fleet.way.deliver([0, 1] if number < 4 else [0])
    assert [fleet.way.missed(device) for device in range(3)] == [0, 2, 0]  # all; two; nobody knows it
    fleet.way.believe(2, 3)
    assert fleet.way.missed(2) == 2
    bodies = [fleet.way.payloads(device) for device in (1, 2)]
    assert bodies[0] == bodies[1] and bodies[0][0] is Kind.DIFFERENCE
    for claim in (0, 5, 6, 1 << 31):  # nothing, this very round, rounds to come
        fleet.way.believe(2, claim)
        assert fleet.way.missed(2) == 0 and fleet.way.payloads(2)[0] is Kind.STATE
    whole = broadcast(Raw(), NET, 0)
    whole.announce(1, state)
    whole.believe(0, 1)
    assert whole.missed(0) == 0
