"""The messages: each survives a trip, and docs/fleet.proto says the same as the table they are made from."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.engines.fleet.messages import (
    CHUNK,
    DESCRIPTOR,
    DOWN,
    FIELDS,
    LARGEST,
    UP,
    Down,
    JoinReply,
    JoinRequest,
    Up,
    carrying,
    chunk,
    chunk_data,
    down,
    up,
)

DOCS = Path(__file__).parents[3] / "docs"
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "double": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "bytes": st.binary(max_size=50),
    "string": st.text(max_size=50),
}
ENVELOPES = [("up", name) for name in UP] + [("down", name) for name in DOWN]


def bodies(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """All that a message may hold."""
    fields = dict(entry.split(":") for entry in FIELDS[name])
    return st.fixed_dictionaries(
        {},
        optional={
            field: st.lists(VALUES[kind[1:]], max_size=5) if kind.startswith("*") else VALUES[kind]
            for field, kind in fields.items()
        },
    )


@pytest.mark.parametrize(("way", "name"), ENVELOPES, ids=lambda word: word)
@settings(max_examples=25)
@given(st.data())
def test_every_message_survives_a_trip(way: str, name: str, data: st.DataObject) -> None:
    body, kind = data.draw(bodies(name)), name.lower()
    make, envelope = (up, Up) if way == "up" else (down, Down)
    found = envelope.FromString(make(**{kind: body}).SerializeToString())
    assert found.WhichOneof("body") == kind
    for field, value in body.items():
        got = getattr(getattr(found, kind), field)
        assert (list(got) if isinstance(value, list) else got) == value


@settings(max_examples=25)
@given(bodies("JoinRequest"), bodies("JoinReply"))
def test_joining_survives_a_trip(request: dict[str, Any], reply: dict[str, Any]) -> None:
    for kind, body in ((JoinRequest, request), (JoinReply, reply)):
        found = kind.FromString(kind(**body).SerializeToString())
        assert all(getattr(found, field) == value for field, value in body.items())


@pytest.mark.parametrize("envelope", [Up, Down])
@settings(max_examples=50)
@given(st.binary(max_size=100))
def test_any_bytes_are_a_message_or_an_error(envelope: Any, data: bytes) -> None:
    with suppress(DecodeError):
        envelope.FromString(data).WhichOneof("body")


def test_what_the_table_does_not_name_cannot_be_said() -> None:
    with pytest.raises(ValueError):
        up(farewell={"kind": 1})
    with pytest.raises(ValueError):
        down(beat={"nonsense": 1})
    with pytest.raises(ValueError):
        down(beat={"number": -1})


def test_a_chunk_fits_into_a_message() -> None:
    largest = [up(chunk={"data": bytes(CHUNK)}), down(chunk={"data": bytes(CHUNK)})]
    largest.append(up(update={"digest": bytes(32), "length": 2**64 - 1, "offset": 1, "data": bytes(CHUNK)}))
    largest.append(down(task={"round": 2**32 - 1, "lengths": [2**32 - 1] * 1000, "data": bytes(CHUNK)}))
    assert all(message.ByteSize() <= LARGEST for message in largest)


def described(file: descriptor_pb2.FileDescriptorProto) -> dict[str, list[tuple[Any, ...]]]:
    """The fields of every message, with all that decides about the bytes."""
    return {
        message.name: [
            (
                *(field.name, field.number, field.type, field.label, field.type_name),
                field.HasField("oneof_index") and message.oneof_decl[field.oneof_index].name,
            )
            for field in message.field
        ]
        for message in file.message_type
    }


def test_the_proto_file_says_the_same(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    target = tmp_path / "fleet.bin"
    words = ["protoc", f"-I{DOCS}", f"--descriptor_set_out={target}", str(DOCS / "fleet.proto")]
    assert protoc.main(words) == 0
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file
    ours = descriptor_pb2.FileDescriptorProto()
    DESCRIPTOR.CopyToProto(ours)
    assert (file.package, file.syntax) == (ours.package, ours.syntax)
    assert described(file) == described(ours)
    methods = {f"{one.name}/{each.name}": each for one in file.service for each in one.method}
    assert set(methods) == {"Fleet/Work", "Join/Join"}
    work, join = methods["Fleet/Work"], methods["Join/Join"]
    assert (work.input_type, work.output_type) == (".edgewise.Up", ".edgewise.Down")
    assert work.client_streaming and work.server_streaming
    assert (join.input_type, join.output_type) == (".edgewise.JoinRequest", ".edgewise.JoinReply")
    assert not join.client_streaming and not join.server_streaming


def test_the_generator_is_not_needed_to_run() -> None:
    """Generated code fits one major version of protobuf only: none is imported."""
    assert not [name for name in sys.modules if name.endswith(("_pb2_grpc", "fleet_pb2"))]


# ---- chunks, written and read without protobuf ----


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_a_chunk_is_what_protobuf_would_write(parts: list[bytes]) -> None:
    data = b"".join(parts)
    message = chunk([memoryview(part) for part in parts])
    assert message == up(chunk={"data": data}).SerializeToString()
    assert message == down(chunk={"data": data}).SerializeToString()
    assert (chunk_data(message) or b"") == data


@pytest.mark.parametrize("size", [1, 125, 126, 127, 128, 16380, 16383, 16384, CHUNK, CHUNK + 1])
def test_a_chunk_whose_length_takes_one_byte_or_more(size: int) -> None:
    message = chunk([bytes(size)])
    assert message == up(chunk={"data": bytes(size)}).SerializeToString()
    assert chunk_data(message) == bytes(size)


@settings(max_examples=300)
@given(st.binary(max_size=12), st.integers(0, 20))
def test_what_is_read_as_a_chunk_is_one(rest: bytes, size: int) -> None:
    for message in (b"\x22" + rest, bytes([0x22, size, 0x0A]) + rest, rest):
        if (found := chunk_data(message)) is not None:
            assert Up.FromString(message).chunk.data == found == Down.FromString(message).chunk.data


def test_other_messages_are_no_chunks() -> None:
    for one in (up(beat={"number": 1}), up(update={"data": b"abc"}), down(task={"data": b"abc"})):
        assert chunk_data(one.SerializeToString()) is None
    whole = chunk([b"abcdef"])
    assert all(chunk_data(whole[:end]) is None for end in range(len(whole)))
    assert chunk_data(whole + b"\x00") is None
    assert chunk_data(b"\x22" + b"\xff" * 9) is None


@given(st.lists(st.binary(max_size=200), max_size=3), st.integers(0, 2**32 - 1))
def test_a_message_that_carries_is_what_protobuf_would_write(parts: list[bytes], round: int) -> None:
    data = b"".join(parts)
    for make, kind, body in (
        (down, "task", {"round": round, "purpose": 1, "lengths": [3, 400]}),
        (up, "update", {"round": round, "digest": bytes(32), "length": 2**40, "seconds": 0.5}),
        (up, "update", {}),
    ):
        whole = make(**{kind: {**body, "data": data}}).SerializeToString()
        assert carrying(make(**{kind: body}), parts) == whole
