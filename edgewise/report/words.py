"""Bytes, times and networks in words: 45.6 MB, 3.4 h, lte (10 Mbit/s up, ...). 1 MB is 10**6 bytes."""

from __future__ import annotations

from edgewise.network import Network

SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
# Where a unit of time begins to be used; its length, both in seconds; its sign, and its name on an axis.
TIMES = (
    (48 * 3600, (86400, "days", "days")),
    (100 * 60, (3600, "h", "hours")),
    (100, (60, "min", "minutes")),
    (0, (1, "s", "seconds")),
)


def size(bytes: float) -> str:
    """An amount of bytes in three digits."""
    if bytes < 999.5:
        return f"{bytes:.0f} B"
    power = next((i for i in range(len(SIZES)) if bytes < 999.5 * 1000**i), len(SIZES) - 1)
    return f"{_short(bytes / 1000**power)} {SIZES[power]}"


def round_size(bytes: float) -> str:
    """The same, for a number that is round, as those of an axis are."""
    return size(bytes).replace(".00 ", " ").replace(".0 ", " ")


def duration(seconds: float) -> str:
    """A time in three digits."""
    length, sign, _ = unit_of_time(seconds)
    return f"{_short(seconds / length)} {sign}"


def unit_of_time(seconds: float) -> tuple[int, str, str]:
    """The unit that suits a time: its length in seconds, its sign, and its name."""
    return next(unit for begin, unit in TIMES if seconds >= begin)


def network(name: str, network: Network) -> str:
    """What was assumed about the fleet, in one line."""
    link = network.link
    words = [f"{link.up:g} Mbit/s up", f"{link.down:g} down", f"{1000 * link.latency:g} ms one way"]
    if link.loss:
        words.append(f"{100 * link.loss:g} % loss")
    if network.spread:
        words.append(f"spread {network.spread:g}")
    if network.step:
        words.append(f"{network.step:g} s a step")
    if network.step_spread:
        words.append(f"spread of steps {network.step_spread:g}")
    if network.server is not None:
        words.append(f"coordinator {network.server:g} Mbit/s")
    if network.spread or network.step_spread:
        words.append(f"seed {network.seed}")
    return f"{name} ({', '.join(words)})"


def _short(value: float) -> str:
    return f"{value:#.3g}".removesuffix(".") if value < 999.5 else f"{value:,.0f}"
