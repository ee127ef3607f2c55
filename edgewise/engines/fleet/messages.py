"""What agents and the coordinator say to each other: protobuf messages on one stream in each direction.

`docs/fleet.proto` holds the same for other languages, and a test holds the two together. The classes are made
here from a table rather than by a generated file, because generated code fits one major version of protobuf
only, and others of a user's packages choose that version.

    agent                         coordinator
    Hello                    ->                    who I am (beside my certificate), what I run
                             <-   Plan             the run, and all that its devices must know
    Ready                    ->                    same model; this is what I hold and what I have pending
                             <-   Verdict          on what was pending
                             <-   Task, Chunk...   train or evaluate; the first bytes are in the task
    Update, Chunk...         ->                    likewise, from where the coordinator has it already
                             <-   Verdict          taken or not: the agent's memory moves on, or back
    Scores                   ->                    of an evaluation
    Failure                  ->                    the task cannot be done
    Beat                     <>                    I am here
                             <-   Farewell         and whether to come back
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from edgewise.wire import Bytes

PACKAGE, SERVICE = "edgewise", "edgewise.Fleet"
PROTOCOL = 2  # agents and coordinators of other protocols refuse each other
CHUNK = 1 << 20  # bytes of a frame in one message at most
LARGEST = CHUNK + (1 << 16)  # bytes of any message
# Of gRPC, at either end: a whole chunk may be on its way. By itself it begins with 64 KiB and feels its way.
WINDOW = (("grpc.http2.lookahead_bytes", CHUNK), ("grpc.http2.bdp_probe", 0))

TRAIN, EVALUATE = 1, 2  # purposes of a task
STOPPING, FINISHED, REFUSED = 1, 2, 3  # kinds of a farewell

# By message: its fields, numbered in this order; a `*` repeats.
FIELDS: dict[str, tuple[str, ...]] = {
    "Hello": ("protocol:uint32", "version:string", "run:string", "round:uint32", "held:uint32"),
    "Plan": (
        *("run:string", "config:string", "shape:*uint32", "classes:uint32", "layout:bytes", "beat:double"),
        "labels:bool",
    ),
    "Ready": (
        *("layout:bytes", "examples:uint64", "tests:uint64", "labels:*uint64"),
        *("pending_round:uint32", "pending_digest:bytes", "in_hand:bool"),
    ),
    "Task": ("round:uint32", "purpose:uint32", "lengths:*uint32", "data:bytes"),
    "Update": (
        *("round:uint32", "digest:bytes", "length:uint64", "offset:uint64", "seconds:double", "data:bytes"),
    ),
    "Chunk": ("data:bytes",),
    "Verdict": ("round:uint32", "digest:bytes", "taken:bool", "reason:string", "offset:uint64", "again:bool"),
    "Scores": (
        *("round:uint32", "right:uint64", "seen:uint64", "loss:double"),
        *("right_each:*uint64", "seen_each:*uint64"),
    ),
    "Failure": ("round:uint32", "reason:string"),
    "Beat": ("number:uint64",),
    "Farewell": ("kind:uint32", "reason:string"),
    "JoinRequest": ("secret:bytes", "csr:bytes", "name:string"),
    "JoinReply": ("certificate:bytes", "device:uint32", "refused:string"),
}
UP = ("Hello", "Ready", "Update", "Chunk", "Scores", "Failure", "Beat")
DOWN = ("Plan", "Verdict", "Task", "Chunk", "Beat", "Farewell")

# A chunk is most of what travels, and is written and read here without protobuf's copies.
ENVELOPE = bytes([UP.index("Chunk") + 1 << 3 | 2])  # the tag of a chunk, in messages either way
DATA = bytes([1 << 3 | 2])  # the tag of its data

_KINDS = descriptor_pb2.FieldDescriptorProto


def _describe() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="edgewise/fleet.proto", package=PACKAGE, syntax="proto3")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate((entry.split(":") for entry in fields), start=1):
            label = _KINDS.LABEL_REPEATED if kind.startswith("*") else _KINDS.LABEL_OPTIONAL
            code = getattr(_KINDS, f"TYPE_{kind.lstrip('*').upper()}")
            message.field.add(name=field, number=number, type=code, label=label)
    for name, members in (("Up", UP), ("Down", DOWN)):
        envelope = file.message_type.add(name=name)
        envelope.oneof_decl.add(name="body")
        for number, member in enumerate(members, start=1):
            envelope.field.add(
                name=member.lower(),
                number=number,
                type=_KINDS.TYPE_MESSAGE,
                type_name=f".{PACKAGE}.{member}",
                label=_KINDS.LABEL_OPTIONAL,
                oneof_index=0,
            )
    return file


_POOL = descriptor_pool.DescriptorPool()
DESCRIPTOR: Any = _POOL.AddSerializedFile(_describe().SerializeToString())
_CLASS: dict[str, Any] = {
    name: message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
    for name in (*FIELDS, "Up", "Down")
}
Up, Down = _CLASS["Up"], _CLASS["Down"]
JoinRequest, JoinReply = _CLASS["JoinRequest"], _CLASS["JoinReply"]


def chunk(parts: Sequence[Bytes]) -> bytes:
    """The bytes of `up(chunk=...)`, and of `down(chunk=...)`, around these parts, in one copy."""
    return _around(ENVELOPE, b"", DATA, parts)


def carrying(message: Any, parts: Sequence[Bytes]) -> bytes:
    """The bytes of a message, made by `up` or `down`, with these parts as the `data` of its body."""
    kind = message.WhichOneof("body")
    body = getattr(message, kind)
    tags = (one.DESCRIPTOR.fields_by_name[name].number for one, name in ((message, kind), (body, "data")))
    outer, inner = (bytes([number << 3 | 2]) for number in tags)
    return _around(outer, body.SerializeToString(), inner, parts)


def _around(outer: bytes, head: bytes, inner: bytes, parts: Sequence[Bytes]) -> bytes:
    """A message in a message: its other fields, and the field that holds the parts."""
    size = sum(map(len, parts))
    head += inner + _number(size) if size else b""
    return b"".join((outer, _number(len(head) + size), head, *parts))


def chunk_data(message: bytes) -> memoryview | None:
    """What `chunk` put into a message, without a copy; None for whatever else a message may be."""
    if not message.startswith(ENVELOPE):
        return None
    inner, start = _read_number(message, 1)
    if start + inner != len(message) or not message.startswith(DATA, start):
        return None
    size, start = _read_number(message, start + 1)
    return memoryview(message)[start:] if start + size == len(message) else None


def printable(text: str) -> str:
    """What a peer says, for a terminal."""
    return "".join(letter for letter in text[:500] if letter.isprintable())


def _number(value: int) -> bytes:
    """A number in seven bits a byte, the low ones first, as protobuf writes it."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_number(data: bytes, start: int) -> tuple[int, int]:
    """A number of at most five bytes, and where the bytes after it begin; -1 where there is none."""
    value = 0
    for place, byte in enumerate(data[start : start + 5]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, start + place + 1
    return -1, start


def up(**body: Any) -> Any:
    """A message of an agent: `up(beat={"number": 3})`."""
    return Up(**body)


def down(**body: Any) -> Any:
    """A message of the coordinator: `down(beat={"number": 3})`."""
    return Down(**body)
