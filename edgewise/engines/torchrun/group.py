"""What ranks say to each other, over torch.distributed: words from rank 0 and back, the state down, sums up.

Words are JSON. Each message begins with a block of a size that both ends know; what is longer follows it.
Vectors travel as they are: with NCCL where every rank has a GPU of its own, else through the CPU with gloo.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]

from edgewise.errors import EdgewiseError

Words = dict[str, Any]

WAIT = timedelta(hours=1)  # for a rank that says nothing, though its connection stands
MEETING = timedelta(minutes=10)  # for ranks that torchrun has started to find each other
BLOCK = 4096  # bytes
NUMBER = 8  # bytes of the length that a block begins with
NONE = torch.empty(0, dtype=torch.uint8)
LEAVE = "leave"
INTERFACE = "GLOO_SOCKET_IFNAME"


class Lost(EdgewiseError):
    """Another rank is gone, and with it the run of this one."""


class Group:
    """This process's place among the ranks. The process group of torch.distributed is up until `close`.

    `together`: ranks on this machine. `whole`: no exchange was broken off, so that words will be heard.
    """

    def __init__(self, together: int | None = None) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.together = together or self.size
        self.nccl = "nccl" in str(dist.get_backend_config())
        self.whole = True

    # ---- words ----

    def tell(self, words: Words) -> None:
        """From rank 0 to all others, which `hear`."""
        block, rest = _packed(json.dumps(words).encode())
        with self._exchange():
            dist.broadcast(block, 0)
            if len(rest):
                dist.broadcast(rest, 0)

    def hear(self) -> Words:
        block = torch.empty(BLOCK, dtype=torch.uint8)
        with self._exchange():
            dist.broadcast(block, 0)
            rest = torch.empty(_beyond(block), dtype=torch.uint8)
            if len(rest):
                dist.broadcast(rest, 0)
        return dict(json.loads(_unpacked(block, rest)))

    def report(self, words: Words) -> None:
        """From another rank to rank 0, which asks for `reports`."""
        self.send(json.dumps(words).encode())

    def reports(self) -> list[Words]:
        """Of ranks 1, 2 and so on."""
        return [json.loads(self.receive(rank)) for rank in range(1, self.size)]

    def send(self, content: bytes) -> None:
        """Bytes to rank 0."""
        with self._exchange():
            for part in _packed(content):
                if len(part):
                    dist.send(part, 0)

    def receive(self, rank: int) -> bytes:
        """The bytes that a rank sends."""
        block = torch.empty(BLOCK, dtype=torch.uint8)
        with self._exchange():
            dist.recv(block, rank)
            rest = torch.empty(_beyond(block), dtype=torch.uint8)
            if len(rest):
                dist.recv(rest, rank)
        return _unpacked(block, rest)

    # ---- vectors ----

    def share(self, *vectors: Tensor) -> None:
        """Give all ranks what rank 0 has in these vectors."""
        with self._exchange():
            for vector in vectors:
                if vector.numel():
                    there = self._travelling(vector)
                    dist.broadcast(there, 0)
                    if self.rank and there is not vector:
                        vector.copy_(there)

    def pool(self, vector: Tensor) -> Tensor:
        """The sum of all ranks' vectors, in place where that can be; the same order of adding every time."""
        with self._exchange():
            there = self._travelling(vector)
            dist.all_reduce(there)
        return there.to(vector.device)

    def _travelling(self, vector: Tensor) -> Tensor:
        return vector.contiguous() if self.nccl else vector.contiguous().cpu()

    # ---- the end ----

    @contextmanager
    def asking(self, **words: Any) -> Iterator[None]:
        """Words that others answer: what is broken off in here leaves them without a listener."""
        self.tell(words)
        self.whole = False
        yield
        self.whole = True

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # DistBackendError is one
            self.whole = False
            who = "another rank" if self.rank == 0 else "rank 0"
            first = str(error).strip().splitlines()[0][:200]
            raise Lost(f"{who} is gone ({first}); --resume goes on from what was committed") from None
        except BaseException:  # Ctrl-C
            self.whole = False
            raise

    def close(self) -> None:
        """Send the others home, if they listen; whoever does not finds the connection closed."""
        try:
            if self.rank == 0 and self.whole:
                self.tell({"do": LEAVE})
        except Lost:
            pass
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def listen(size: int) -> TCPStore:
    """Where ranks of this machine will meet: rank 0's end, on a free port of the loopback."""
    return TCPStore("127.0.0.1", 0, size, True, WAIT, wait_for_workers=False)


def enter(rank: int, size: int, store: TCPStore) -> Group:
    """Join the ranks of this machine."""
    with _met(), _on_loopback():
        _take_gpu(rank)
        dist.init_process_group(_backend(size), store=store, rank=rank, world_size=size, timeout=WAIT)
    return Group()


def reach(port: int, size: int) -> TCPStore:
    """Another rank's end of where they meet."""
    with _met():
        return TCPStore("127.0.0.1", port, size, False, WAIT)


def enter_as_told() -> Group:
    """Join the ranks that torchrun started, on whatever machines."""
    together = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    with _met():
        _take_gpu(int(os.environ.get("LOCAL_RANK", "0")))
        store, rank, size = next(rendezvous("env://", timeout=WAIT))
        store = PrefixStore(agreed(store, rank, size), store)
        dist.init_process_group(_backend(together), store=store, rank=rank, world_size=size, timeout=WAIT)
    return Group(together)


def agreed(store: Any, rank: int, size: int) -> str:
    """A word that only ranks of this start know. RuntimeError if the others do not come.

    torchrun keeps its store when it starts ranks again, with the addresses of the dead, for whom a new
    one would wait for ever. So each greets with a word of its own, and what rank 0 answers to that is from
    now. It may welcome the dead as well; they do not come.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", own)
        store.wait([f"welcome/{own}"], MEETING)
        word: str = store.get(f"welcome/{own}").decode()
        store.set(f"{word}/{rank}", "")
        return word
    others, until = range(1, size), time.monotonic() + MEETING.total_seconds()
    while not all(store.check([f"{own}/{other}"]) for other in others):
        for other in others:
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", own)
        if time.monotonic() > until:
            raise RuntimeError(f"not all of {size} ranks came within {MEETING}")
        time.sleep(0.01)
    return own


@contextmanager
def _met() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise Lost(f"ranks did not meet ({str(error).strip().splitlines()[0][:200]})") from None


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Else gloo asks what address this machine's name has, which may be none."""
    before = os.environ.get(INTERFACE)
    os.environ[INTERFACE] = "lo" if sys.platform == "linux" else "lo0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[INTERFACE]
        else:
            os.environ[INTERFACE] = before


def _take_gpu(rank: int) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())


def _backend(together: int) -> str:
    """NCCL wants a GPU for every rank."""
    one_each = torch.cuda.is_available() and together <= torch.cuda.device_count()
    return "cpu:gloo,cuda:nccl" if one_each else "gloo"


def _packed(content: bytes) -> tuple[Tensor, Tensor]:
    """A block that holds the length and what it has room for, and the rest."""
    room = BLOCK - NUMBER
    block = len(content).to_bytes(NUMBER, "little") + content[:room].ljust(room, b"\0")
    return _bytes(block), _bytes(content[room:])


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else NONE


def _beyond(block: Tensor) -> int:
    """How many bytes follow a block."""
    return max(0, int.from_bytes(block[:NUMBER].numpy().tobytes(), "little") - (BLOCK - NUMBER))


def _unpacked(block: Tensor, rest: Tensor) -> bytes:
    content = block.numpy().tobytes()
    length = int.from_bytes(content[:NUMBER], "little")
    return content[NUMBER : NUMBER + length] + rest.numpy().tobytes()
