"""Which updates are taken, for every codec: a whole, finite one of this device and round."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from specimens import FORMS, LAYOUTS, vector
from torch import Tensor

from edgewise import wire
from edgewise.algorithms import SyncSGD
from edgewise.codecs import Sending, parse, text
from edgewise.device import Reply, Terms
from edgewise.engines.fleet.screen import ABSURD, KEPT, KNOWN, Screen
from edgewise.errors import EdgewiseError
from edgewise.objectives import CrossEntropy
from edgewise.vector import Layout

NET = LAYOUTS["net"]
DEVICE, ROUND, EXAMPLES = 5, 9, 32
every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])


def terms(form: str = "none", layout: Layout = NET, dtype: torch.dtype = torch.float32) -> Terms:
    codec = parse(form)
    agreed = wire.Expected(
        kind=wire.Kind.UPDATE,
        layout=wire.layout_mark(layout.digest),
        codec=wire.codec_mark(text(codec)),
        payload=codec.bound(layout, dtype),
        buffers=layout.buffer_count * dtype.itemsize,
        exact=codec.fixed,
    )
    return Terms(SyncSGD(), codec, agreed, CrossEntropy())


def screen(
    agreed: Terms | None = None, dtype: torch.dtype = torch.float32, norms: tuple[float, ...] = ()
) -> Screen:
    return Screen(agreed or terms(), NET, dtype, norms)


def reply(
    update: Tensor, agreed: Terms, buffers: Tensor | None = None, payload: bytes | None = None
) -> Reply:
    if payload is None:
        payload = agreed.codec.encode(update, NET, {}, Sending(key=1))[0]
    if buffers is None:
        buffers = torch.ones(NET.buffer_count, dtype=update.dtype)
    return Reply((DEVICE,), payload, buffers, EXAMPLES, (0.5,))


def packed(update: Tensor, agreed: Terms, **other: object) -> bytes:
    return reply(update, agreed, **other).pack(ROUND, agreed.agreed)  # type: ignore[arg-type]


def check(
    one: Screen, data: bytes, device: int = DEVICE, round: int = ROUND, examples: int = EXAMPLES
) -> float:
    return one.check(data, device, round, examples)[1]


@every_form
@every_dtype
def test_an_update_of_every_codec_is_taken_with_its_norm(form: str, dtype: torch.dtype) -> None:
    agreed = terms(form, dtype=dtype)
    update = vector("gaussian", NET.count, dtype)
    found, norm = screen(agreed, dtype).check(packed(update, agreed), DEVICE, ROUND, EXAMPLES)
    decoded = agreed.codec.decode(found.payload, NET, dtype)
    assert norm == pytest.approx(float(decoded.norm())) and norm > 0
    assert found.devices == (DEVICE,) and found.losses == (0.5,)


@every_form
def test_a_payload_of_every_codec_with_a_byte_changed_or_cut_is_refused_or_finite(form: str) -> None:
    """Whatever the payload, in a frame whose checksum agrees: a reason, or numbers."""
    agreed = terms(form)
    payload = agreed.codec.encode(vector("gaussian", NET.count), NET, {}, Sending(key=1))[0]
    for place in {0, 1, 2, 3, 4, 7, 8, len(payload) // 2, len(payload) - 1} & set(range(len(payload))):
        for changed in (
            payload[:place] + b"\xff" + payload[place + 1 :],
            payload[:place] + b"\x7f" + payload[place + 1 :],
            payload[:place],
        ):
            data = packed(vector("gaussian", NET.count), agreed, payload=changed)
            try:
                norm = check(screen(agreed), data)
            except EdgewiseError:
                continue
            assert math.isfinite(norm)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 77, NET.count - 1])
def test_parameters_that_are_not_finite(bad: float, place: int) -> None:
    update = vector("gaussian", NET.count)
    update[place] = bad
    payload = update.numpy().tobytes()
    with pytest.raises(EdgewiseError, match="NaN or infinity"):
        check(screen(), packed(update, terms(), payload=payload))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, NET.buffer_count - 1])
def test_buffers_that_are_not_finite(bad: float, place: int) -> None:
    buffers = torch.ones(NET.buffer_count)
    buffers[place] = bad
    with pytest.raises(EdgewiseError, match="NaN or infinity"):
        check(screen(), packed(vector("gaussian", NET.count), terms(), buffers=buffers))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({"device": DEVICE + 1}, "an update of device 5 and round 9 from device 6 in round 9"),
        ({"round": ROUND - 1}, "an update of device 5 and round 9 from device 5 in round 8"),
        ({"examples": EXAMPLES + 1}, "an update of 32 examples, where 33 were asked for"),
    ],
)
def test_of_another_device_or_round_or_as_many_examples(what: dict[str, int], reason: str) -> None:
    with pytest.raises(EdgewiseError, match=f"^{reason}$"):
        check(screen(), packed(vector("gaussian", NET.count), terms()), **what)


def test_a_frame_that_is_not_what_was_agreed_on() -> None:
    agreed = terms()
    whole = packed(vector("gaussian", NET.count), agreed)
    for data in (b"", whole[:-1], whole + b"x", whole[: wire.LENGTH], whole[:100] + b"x" + whole[101:]):
        with pytest.raises(EdgewiseError):
            check(screen(), data)
    other = terms("half")
    for frame in (
        packed(vector("gaussian", NET.count), other),
        reply(vector("gaussian", NET.count), agreed).pack(ROUND, replace(agreed.agreed, layout=bytes(16))),
        packed(vector("gaussian", NET.count), agreed, payload=bytes(4 * NET.count + 4)),
        packed(vector("gaussian", NET.count), agreed, payload=bytes(4 * NET.count - 4)),
        packed(vector("gaussian", NET.count), agreed, buffers=torch.ones(NET.buffer_count + 1)),
    ):
        with pytest.raises(EdgewiseError):
            check(screen(), frame)


@given(st.binary(max_size=200))
def test_any_bytes_at_all(data: bytes) -> None:
    with pytest.raises(EdgewiseError):
        check(screen(), data)


# ---- norms ----


def of_norm(norm: float) -> bytes:
    update = torch.zeros(NET.count)
    update[3] = norm
    return packed(update, terms())


def test_an_absurd_norm_is_refused_once_enough_are_known() -> None:
    one = screen(norms=(1.0,) * (KNOWN - 1))
    assert check(one, of_norm(1e6)) == pytest.approx(1e6)
    one.norms.append(1.0)
    assert check(one, of_norm(ABSURD * 0.999)) > 0
    with pytest.raises(EdgewiseError, match=r"an update of norm 1e\+06, where 1 is usual"):
        check(one, of_norm(1e6))
    assert check(one, of_norm(0.0)) == 0  # a device that has nothing to say


def test_a_few_absurd_ones_do_not_make_it_usual() -> None:
    one = screen(norms=(1.0,) * KNOWN + (1e9,) * (KNOWN - 1))
    with pytest.raises(EdgewiseError, match="is usual"):
        check(one, of_norm(1e6))


def test_where_most_say_nothing_any_word_is_taken() -> None:
    assert check(screen(norms=(0.0,) * KEPT), of_norm(1e-3)) > 0


def test_only_the_last_norms_count() -> None:
    one = screen(norms=(1.0,) * 50 + (1e6,) * KEPT)
    assert len(one.norms) == KEPT and check(one, of_norm(1e7)) > 0
