"""A device's share of a round: its reply is a frame, and its codec's memory is the one that was committed."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgewise import cohorts, rounds, specs, wire
from edgewise.algorithms import FedAvg, SyncSGD
from edgewise.assemble import Parts, assemble
from edgewise.codecs import CODECS, DGC, Codec, Feedback, PowerSGD, Raw, TopK, parse
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.device import Memory, Reply, Task
from edgewise.engines import Engine
from edgewise.errors import EdgewiseError
from edgewise.models.norms import Batch
from edgewise.optimizers import SGD

DEVICES, SIZE = 4, 4
PLAIN = Config(
    devices=DEVICES,
    batch=SIZE,
    width=4,
    norm=Batch(),  # which has buffers
    algorithm=SyncSGD(SGD(0.01)),
    steps=3,
    eval_every=0,
    fused="off",
)
VALUES = {int: "2", float: "0.1"}
PLAINLY = [  # a text of every codec, with a value where it has no default
    ":".join([name, *(VALUES[specs.kind_of(slot)] for slot in fields(codec) if slot.default is MISSING)])  # type: ignore[arg-type]
    for name, codec in CODECS.items()
]
TEXTS = [*PLAINLY, "none:zstd", "topk:0.1:zstd", "topk:0.1:nofeedback", "powersgd:2:nofeedback"]


@pytest.fixture(scope="module")
def specks() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.arange(60) % 6
    return Dataset.of("specks", train=(images[:48], labels[:48]), test=(images[48:], labels[48:]))


def task_at(parts: Parts, number: int, factor: float = 1.0) -> Task:
    return Task(number, parts.config.algorithm.sync_every, factor, parts.model.read())


# ---- replies are frames ----


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every frame that devices send while the test lasts."""
    frames: list[bytes] = []
    pack = Reply.pack

    def packed(self: Reply, round: int, agreed: wire.Expected) -> bytes:
        frames.append(pack(self, round, agreed))
        return frames[-1]

    monkeypatch.setattr(Reply, "pack", packed)
    return frames


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("algorithm", [SyncSGD(SGD(0.01)), FedAvg(SGD(0.01), sync_every=2)], ids=["1", "2"])
def test_bytes_up_are_the_lengths_of_the_frames(
    specks: Dataset, tmp_path: Path, sent: list[bytes], algorithm: Any, text: str
) -> None:
    config = replace(PLAIN, codec=parse(text), algorithm=algorithm, cohort=3, steps=3)
    rows = list(rounds.run(config, tmp_path / "run", dataset=specks))
    assert len(sent) == 3 * len(rows)
    for number, row in enumerate(rows):
        lengths = [len(frame) for frame in sent[3 * number : 3 * number + 3]]
        assert row.bytes_up == sum(lengths)
        assert row.bytes_up_each == (lengths[0] if len(set(lengths)) == 1 else lengths)
        assert not parse(text).fixed or len(set(lengths)) == 1
    parts = assemble(config, specks)
    frames = [wire.unpack(frame, parts.work.agreed) for frame in sent]
    asked = [(row.round, device) for row in rows for device in cohorts.cohort(config, row.round)]
    assert [(frame.round, frame.device) for frame in frames] == asked
    steps = [min(algorithm.sync_every, 3 - done) for done in range(0, 3, algorithm.sync_every)]
    assert [frame.count for frame in frames] == [SIZE * k for k in steps for _ in range(3)]
    losses = [frame.value for frame in frames]
    means = [sum(losses[3 * n : 3 * n + 3]) / 3 for n in range(len(rows))]
    assert means == [row.train_loss for row in rows]


def test_fused_devices_send_what_devices_apart_send(
    specks: Dataset, tmp_path: Path, sent: list[bytes]
) -> None:
    apart = list(rounds.run(PLAIN, tmp_path / "apart", dataset=specks))
    frames = len(sent)
    fused = list(rounds.run(replace(PLAIN, fused="on"), tmp_path / "fused", dataset=specks))
    assert len(sent) == frames == DEVICES * len(apart)
    for one, two in zip(apart, fused, strict=True):
        assert one.bytes_up == two.bytes_up == DEVICES * len(sent[0])
        assert one.bytes_up_each == two.bytes_up_each == len(sent[0])
        assert one.bytes_down == two.bytes_down and one.bytes_down_each == two.bytes_down_each


@pytest.mark.parametrize("place", [0, 4, 8, 24, 32, 40, 52, 60, 64, -1])
def test_a_frame_damaged_on_the_way_is_refused(
    specks: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    pack = Reply.pack

    def damaged(self: Reply, round: int, agreed: wire.Expected) -> bytes:
        frame = bytearray(pack(self, round, agreed))
        frame[place] ^= 1 if self.devices == (2,) else 0
        return bytes(frame)

    monkeypatch.setattr(Reply, "pack", damaged)
    with pytest.raises(wire.FrameError):
        list(rounds.run(replace(PLAIN, codec=parse("topk:0.1")), tmp_path / "run", dataset=specks))


def test_a_reply_comes_out_of_its_frame_as_it_went_in() -> None:
    for dtype in (torch.float32, torch.float64):
        buffers = torch.randn(3, dtype=dtype)
        reply = Reply((7,), b"payload", buffers, 24, (0.1 + 0.2,))
        agreed = wire.Expected(wire.Kind.UPDATE, b"l" * 16, b"c" * 8, 7, buffers.nbytes, exact=True)
        frame = reply.pack(3, agreed)
        assert reply.bytes_each == len(frame) == wire.LENGTH + 7 + buffers.nbytes
        found = Reply.unpack(frame, agreed, dtype)
        assert replace(found, buffers=buffers) == reply
        assert torch.equal(found.buffers, buffers) and found.buffers.dtype == dtype


def test_a_reply_of_many_is_as_long_as_each_of_theirs() -> None:
    reply = Reply((1, 2, 3), b"12345", torch.zeros(4, dtype=torch.float64), 30, (0.0, 0.0, 0.0))
    assert reply.bytes_each == wire.LENGTH + 5 + 4 * 8


def test_only_the_agreed_codec_and_model_are_understood(specks: Dataset) -> None:
    parts = assemble(replace(PLAIN, codec=parse("topk:0.1")), specks)
    reply, _ = parts.devices[0].answer(task_at(parts, 1), parts.model, parts.work, Memory())
    frame = reply.pack(1, parts.work.agreed)
    for other in ({"codec": parse("topk:0.1:nofeedback")}, {"codec": parse("topk:0.2")}, {"width": 6}):
        stranger = assemble(replace(parts.config, **other), specks).work.agreed
        with pytest.raises(wire.FrameError, match=r"another (codec|model)"):
            Reply.unpack(frame, stranger, torch.float32)


# ---- what a codec remembers ----

REMEMBERING: dict[str, Codec] = {
    "topk": Feedback(TopK(0.05)),
    "dgc": DGC(0.05, warmup=2),
    "powersgd": Feedback(PowerSGD(1)),
    "powersgd alone": PowerSGD(1),
}
every_memory = pytest.mark.parametrize("codec", REMEMBERING.values(), ids=REMEMBERING)


def after_two_rounds(specks: Dataset, codec: Codec) -> tuple[Parts, Engine]:
    parts = assemble(replace(PLAIN, codec=codec, steps=20), specks)
    engine = parts.engine()
    for number in (1, 2):
        list(engine.ask(task_at(parts, number), range(DEVICES)))
        engine.memories.commit(range(DEVICES))
    return parts, engine


def payloads(engine: Engine, task: Task) -> list[bytes]:
    return [reply.payload for reply in engine.ask(task, range(DEVICES))]


def images(engine: Engine) -> dict[int, tuple[int, dict[str, bytes]]]:
    """The very bytes that each device remembers."""
    found = {}
    for device in range(DEVICES):
        memory = engine.memories[device]
        found[device] = (memory.step, {n: t.numpy().tobytes() for n, t in memory.codec.items()})
    return found


@every_memory
def test_asking_twice_without_a_commit_gives_the_same_bytes(specks: Dataset, codec: Codec) -> None:
    parts, engine = after_two_rounds(specks, codec)
    before, task = images(engine), task_at(parts, 3)
    assert all(step == 2 and memory for step, memory in before.values())
    first = payloads(engine, task)
    assert images(engine) == before, "a proposal changes nothing"
    assert payloads(engine, task) == first
    engine.memories.commit(range(DEVICES))
    assert all(images(engine)[device][1] != before[device][1] for device in range(DEVICES))
    third = payloads(engine, task)
    assert all(one != two for one, two in zip(first, third, strict=True))


@every_memory
def test_who_is_not_taken_owes_what_it_owed(specks: Dataset, codec: Codec) -> None:
    parts, engine = after_two_rounds(specks, codec)
    before, task = images(engine), task_at(parts, 3)
    first = payloads(engine, task)
    engine.memories.commit([1, 3])
    after = images(engine)
    assert {device for device in range(DEVICES) if after[device] == before[device]} == {0, 2}
    again = payloads(engine, task)
    assert [again[device] == first[device] for device in range(DEVICES)] == [True, False, True, False]


@every_memory
def test_devices_remember_apart(specks: Dataset, codec: Codec) -> None:
    """What one device owes is no matter of whether, and when, others are asked."""
    parts, together = after_two_rounds(specks, codec)
    alone = parts.engine()
    for number in (1, 2):
        list(alone.ask(task_at(parts, number), [2]))
        alone.memories.commit([2])
    assert images(alone)[2] == images(together)[2]
    assert images(alone)[0] == (0, {})


def test_an_answer_leaves_the_memory_it_was_given(specks: Dataset) -> None:
    for codec in REMEMBERING.values():
        parts, engine = after_two_rounds(specks, codec)
        memory = engine.memories[1]
        before = images(engine)[1]
        _, after = parts.devices[1].answer(task_at(parts, 3), parts.model, parts.work, memory)
        assert images(engine)[1] == before and after.step == 3
        assert after.nbytes == memory.nbytes == sum(len(image) for image in before[1].values())


# ---- rates ----

FACTORS = [0.1, 1.0, 0.85, 0.4, 0.05, 0.0, 0.3]  # a warm-up, a fall to nothing, and a restart
OWING: dict[str, Codec] = {
    "topk": Feedback(TopK(0.02)),
    "powersgd": Feedback(PowerSGD(1)),
    "dgc": DGC(0.02, momentum=0.0, warmup=3),
    "zstd": parse("topk:0.02:zstd"),
}


@pytest.mark.parametrize("codec", OWING.values(), ids=OWING)
def test_the_steps_add_up_whatever_the_rate(specks: Dataset, codec: Codec) -> None:
    """sum of rate * what is decoded + what is owed = sum of rate * gradient, on every device."""
    algorithm = SyncSGD(SGD(0.01, momentum=0))
    lossy = assemble(replace(PLAIN, codec=codec, algorithm=algorithm, steps=20, precision="fp64"), specks)
    exact = assemble(replace(lossy.config, codec=Raw()), specks)
    layout = lossy.model.layout
    engine, bare = lossy.engine(), exact.engine()
    applied = torch.zeros(DEVICES, layout.count, dtype=torch.float64)
    wanted = torch.zeros_like(applied)
    for number, factor in enumerate(FACTORS, 1):
        task = task_at(exact, number, factor)
        for one, two in zip(engine.ask(task, range(DEVICES)), bare.ask(task, range(DEVICES)), strict=True):
            ((device,), dtype) = one.devices, torch.float64
            applied[device] += factor * codec.decode(one.payload, layout, dtype)
            wanted[device] += factor * Raw().decode(two.payload, layout, dtype)
        for asked in (engine, bare):
            asked.memories.commit(range(DEVICES))
        exact.model.params.add_(wanted.mean(0), alpha=-0.01)  # the next round's gradients are others
    owed = torch.stack([engine.memories[device].codec["residual"] for device in range(DEVICES)]).double()
    assert owed.norm() > 0.1 * wanted.norm(), "much is owed"
    assert (applied + owed - wanted).norm() < 1e-6 * wanted.norm()


def test_dgc_owes_the_steps_that_the_server_s_momentum_would_have_taken(specks: Dataset) -> None:
    """Where nothing was sent yet: m <- 0.9 m + g, and rate * m a step, as SGD on the server has it."""
    algorithm = SyncSGD(SGD(0.01, momentum=0.9))
    lossy = assemble(
        replace(PLAIN, codec=DGC(0.02, warmup=0), algorithm=algorithm, steps=20, precision="fp64"), specks
    )
    assert lossy.work.algorithm.sgd.momentum == 0
    bare = assemble(replace(lossy.config, codec=Raw()), specks)
    layout, engines = lossy.model.layout, (lossy.engine(), bare.engine())
    momentum, steps = torch.zeros(2, layout.count, dtype=torch.float64)
    sent = torch.zeros(layout.count, dtype=torch.bool)
    for number, factor in enumerate(FACTORS, 1):
        task = task_at(bare, number, factor)
        (one,), (two,) = (list(engine.ask(task, [1])) for engine in engines)
        for engine in engines:
            engine.memories.commit([1])
        sent |= lossy.config.codec.decode(one.payload, layout, torch.float64) != 0
        momentum = 0.9 * momentum + Raw().decode(two.payload, layout, torch.float64)
        steps += factor * momentum
        bare.model.params.add_(momentum, alpha=-0.01)
    memory = engines[0].memories[1].codec
    assert 0 < sent.sum() < 0.2 * layout.count
    for name, whole in (("residual", steps), ("velocity", momentum)):
        assert torch.allclose(memory[name][~sent], whole[~sent], rtol=1e-9, atol=1e-12)
        assert not torch.allclose(memory[name][sent], whole[sent], rtol=1e-2)


def test_an_update_of_federated_averaging_is_owed_as_it_is(specks: Dataset) -> None:
    """It has the learning rate in it already, so the schedule does not scale what is left of it."""
    codec = Feedback(TopK(0.02))
    algorithm = FedAvg(SGD(0.01), sync_every=2)
    lossy = assemble(replace(PLAIN, codec=codec, algorithm=algorithm, steps=20), specks)
    bare = assemble(replace(lossy.config, codec=Raw()), specks)
    task = task_at(lossy, 1, factor=0.25)
    (one,), (two,) = (list(parts.engine().ask(task, [0])) for parts in (lossy, bare))
    _, memory = lossy.devices[0].answer(task, lossy.model, lossy.work, Memory())
    layout, dtype = lossy.model.layout, torch.float32
    sent, whole = (c.decode(r.payload, layout, dtype) for c, r in ((codec, one), (Raw(), two)))
    assert torch.equal(memory.codec["residual"], whole - sent) and sent.any()


# ---- where it stops ----


@pytest.mark.parametrize("text", [text for text in TEXTS if not parse(text).lossless])
def test_an_update_that_is_not_finite_names_round_and_device(specks: Dataset, text: str) -> None:
    parts = assemble(replace(PLAIN, codec=parse(text)), specks)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, torch.nan)

    last = list(parts.model.module.parameters())[-1]
    last.register_hook(spoil)  # a finite loss whose gradient is not
    with pytest.raises(EdgewiseError) as told:
        list(parts.engine().ask(task_at(parts, 5), [3]))
    line = str(told.value)
    assert line.startswith("round 5, device 3: the update is not finite; training diverged")
    assert "\n" not in line
