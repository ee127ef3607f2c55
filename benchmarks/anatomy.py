"""Where the time of a run's rounds goes, file by file.

    python benchmarks/anatomy.py [config.toml] [--seconds 20] [--set sync_every=10 ...] [--lines 12]

Plays the run that a config describes (without one: ResNet18 of width 16 on digits, ten devices, fedavg), and
looks a thousand times a second at what the training thread is in. What PyTorch does counts for the line of
edgewise that asked for it. Left out are the start and the first rounds.

(Not named profile.py, which would hide Python's own module of that name from everything beside it.)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from simulate import machine

import edgewise as package
from edgewise import Config, run
from edgewise.config import read_toml

ROOT = Path(package.__file__).parent
EVERY = 1e-3  # seconds between two looks
WARM = 3  # rounds
PLAIN = {"algorithm": "fedavg", "sync_every": 10, "width": 16, "batch": 32, "eval_every": 0}
ENDLESS = 10**7  # steps


class Watcher(threading.Thread):
    """Looks at one thread until `stop`, and counts where in edgewise it is: (file, function)."""

    def __init__(self, watched: int) -> None:
        super().__init__(daemon=True)
        self.watched, self.found, self._ended = watched, Counter[tuple[str, str]](), threading.Event()

    def run(self) -> None:
        while not self._ended.wait(EVERY):
            self.found[place(sys._current_frames().get(self.watched))] += 1

    def stop(self) -> None:
        self._ended.set()
        self.join()


def place(frame: FrameType | None) -> tuple[str, str]:
    """The innermost function of edgewise that a frame is in."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT):
            return path.relative_to(ROOT).as_posix(), frame.f_code.co_qualname
        frame = frame.f_back
    return "elsewhere", ""


def table(found: Counter[tuple[str, str]], lines: int) -> list[str]:
    """Shares by file, the largest first, and under each its functions."""
    total = sum(found.values()) or 1
    files = Counter[str]()
    for (file, _), count in found.items():
        files[file] += count
    shown = []
    for file, count in files.most_common(lines):
        shown.append(f"{count / total:6.1%}  {file}")
        parts = Counter({name: n for (where, name), n in found.items() if where == file})
        shown += [
            f"          {n / total:6.1%}  {name}" for name, n in parts.most_common(3) if n / total > 0.005
        ]
    return shown


def value(word: str) -> tuple[str, Any]:
    """A setting from "name=value": as TOML has it, or else a word."""
    name, _, text = word.partition("=")
    try:
        return name, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return name, text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, help="a config.toml")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to look (20)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings in place of its")
    parser.add_argument("--lines", type=int, default=12, help="files that are shown (12)")
    given = parser.parse_args(arguments)
    flat = dict(read_toml(given.config)) if given.config else dict(PLAIN)
    flat |= dict(value(word) for word in given.set)
    flat["steps"], flat["epochs"] = ENDLESS, None
    print(f"{machine()}; {', '.join(f'{k}={v}' for k, v in flat.items() if k != 'steps')}")
    with tempfile.TemporaryDirectory() as folder:
        playing = run(Config.of(flat), folder, checkpoint_seconds=1e9)
        for _ in range(WARM):
            next(playing)
        watcher, until, rounds = Watcher(threading.get_ident()), time.monotonic() + given.seconds, 0
        began = time.monotonic()
        watcher.start()
        while time.monotonic() < until:
            next(playing)
            rounds += 1
        watcher.stop()
        print(f"{rounds} rounds of {1e3 * (time.monotonic() - began) / rounds:.1f} ms")
        playing.close()
    print("\n".join(table(watcher.found, given.lines)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
