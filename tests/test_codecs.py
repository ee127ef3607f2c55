"""The contract of every codec: what goes in comes out, and what is no payload is refused.

A codec listed in CODECS needs a row in SETTINGS; its own arithmetic is tested in a section of its own.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgewise.codecs import CODECS, Codec, Raw

SETTINGS: dict[str, list[Codec]] = {"none": [Raw()]}

EVERY = [codec for codecs in SETTINGS.values() for codec in codecs]
every_codec = pytest.mark.parametrize("codec", EVERY, ids=repr)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_size = pytest.mark.parametrize("size", [0, 1, 7, 1023, 1024, 4097])


def update(size: int, dtype: torch.dtype) -> Tensor:
    """Values from 1e-12 to 1e12 with signs, as an update may hold them."""
    generator = torch.Generator().manual_seed(size)
    values = torch.randn(size, dtype=torch.float64, generator=generator)
    return (values * 10 ** (values.roll(1) * 4).clamp(-12, 12)).to(dtype)


def bits(vector: Tensor) -> bytes:
    return vector.numpy().tobytes()


def test_every_codec_has_its_row() -> None:
    assert SETTINGS.keys() == CODECS.keys()
    assert all(type(codec) is CODECS[name] for name, codecs in SETTINGS.items() for codec in codecs)


@every_codec
@every_dtype
@every_size
def test_round_trip(codec: Codec, dtype: torch.dtype, size: int) -> None:
    vector = update(size, dtype)
    before = bits(vector)
    payload, _ = codec.encode(vector, codec.start())
    assert type(payload) is bytes and bits(vector) == before
    decoded = codec.decode(payload, size, dtype)
    assert decoded.shape == (size,) and decoded.dtype == dtype
    assert decoded.isfinite().all()
    if codec.lossless:
        assert bits(decoded) == before


@every_codec
def test_encoding_again_from_the_same_memory_gives_the_same(codec: Codec) -> None:
    memory = codec.start()
    for number in range(3):
        vector = update(100 + number, torch.float32)[:100]
        first, after = codec.encode(vector, memory)
        assert codec.encode(vector, memory)[0] == first
        memory = after


@every_codec
@every_dtype
def test_special_values_survive(codec: Codec, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    special = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, info.max, info.tiny, info.tiny / 2]
    vector = torch.tensor(special, dtype=dtype)
    decoded = codec.decode(codec.encode(vector, codec.start())[0], len(vector), dtype)
    if codec.lossless:
        assert bits(decoded) == bits(vector)


@every_codec
@every_dtype
@pytest.mark.parametrize("size", [0, 1, 100])
def test_what_cannot_be_a_payload_is_refused(codec: Codec, dtype: torch.dtype, size: int) -> None:
    payload, _ = codec.encode(update(size, dtype), codec.start())
    for wrong in (payload[:-1], payload + b"\0", payload * 2, b""):
        if wrong != payload:
            with pytest.raises(ValueError, match="payload"):
                codec.decode(wrong, size, dtype)
    with pytest.raises(ValueError, match="payload"):
        codec.decode(payload, size + 1000, dtype)


@every_codec
@every_dtype
def test_what_is_decoded_lies_in_aligned_memory_of_its_own(codec: Codec, dtype: torch.dtype) -> None:
    vector = update(1001, dtype)
    payload, _ = codec.encode(vector, codec.start())
    shifted = memoryview(b"\0" + payload)[1:]  # as bytes lie in a message that came over a network
    first, second = codec.decode(payload, 1001, dtype), codec.decode(shifted, 1001, dtype)
    assert bits(first) == bits(second)
    assert first.data_ptr() % 64 == second.data_ptr() % 64 == 0
    kept = bytes(payload)
    first.mul_(3).add_(1)
    assert payload == kept and bits(second) != bits(first)


@every_codec
def test_a_slice_of_a_longer_vector_is_encoded_as_itself(codec: Codec) -> None:
    vector = update(200, torch.float64)
    for part in (vector[3:50], vector[::2], vector[50:].detach().requires_grad_()):
        alone = part.detach().clone()
        assert codec.encode(part, codec.start())[0] == codec.encode(alone, codec.start())[0]


# ---- raw ----


def test_raw_is_little_endian_and_nothing_else() -> None:
    assert Raw().encode(torch.tensor([1.0, -2.0]), None)[0] == bytes.fromhex("0000803f000000c0")
    double = torch.tensor([1.0], dtype=torch.float64)
    assert Raw().encode(double, None)[0] == bytes.fromhex("000000000000f03f")
    assert Raw().decode(bytes.fromhex("0000803f000000c0"), 2, torch.float32).tolist() == [1, -2]
