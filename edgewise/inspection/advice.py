"""What to change, why, and the command that does it. Every piece rests on a number that was measured here.

The thresholds and where they come from: BREAKS (data/skew.py) was chosen on made splits and judged on
others (results/foresight); that one gradient a step is exact whatever the split, for norms that do not look
at the batch, is a theorem (tests/test_exact.py); what codecs cost is in results/compression.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgewise import codecs, recipes
from edgewise.algorithms import FedAvg, SyncSGD, text
from edgewise.algorithms.momenta import RESET
from edgewise.config import Config
from edgewise.data.skew import BREAKS, DOUBTFUL
from edgewise.inspection.agreement import Agreement
from edgewise.inspection.traffic import NETWORK, Traffic
from edgewise.models import takes
from edgewise.models.norms import Group
from edgewise.settings import SETTINGS

DRIFTS = 1.5  # times the diversity of IID devices' updates: beyond it, much cancels
HEAVY, LIGHT = 4_000_000, 100_000  # bytes a device sends a round: worth a strong codec; not worth any
CODEC = "lowrank:0.0099"
RECIPE = "steady"  # for averaging where few devices share any class


@dataclass(frozen=True)
class Advice:
    """One piece: what (norm, algorithm, K, codec), the change in words, the reason, and the command to
    run.
    """

    what: str
    change: str
    reason: str
    command: str


@dataclass(frozen=True)
class Findings:
    """What the advice rests on. `norms`: names of norms whose statistics are a device's own; `broken`:
    how many of them differ between devices by more than chance; `foreign`: the model takes no norm from
    the run; `personal`: every device has norms of its own.
    """

    apart: float
    fails: bool
    norms: Sequence[str]
    broken: int
    foreign: bool
    agreement: Sequence[Agreement]
    traffic: Traffic
    personal: bool = False


def advise(config: Config, found: Findings) -> list[Advice]:
    """In the order in which to act; each command has the changes before it too."""
    made: list[Advice] = []
    for step in (_norm, _algorithm, _codec):
        change, reason, config = step(config, found)
        what = step.__name__.removeprefix("_")
        made.append(Advice(what, change, reason, command(config, [*(a.what for a in made), what])))
    return made


def command(config: Config, named: Sequence[str] = ()) -> str:
    """The command that runs this config; settings in `named` are in it even at their defaults."""
    flat = recipes.fold(config.flat())
    words = ["edgewise", "run"]
    defaults = {setting.name: setting.default for setting in SETTINGS}
    for name, value in flat.items():
        if name == "set":
            words += [word for key, v in value.items() for word in ("--set", f"{key}={v}")]
        elif value is not None and (name in named or _says(name, value, defaults[name], flat)):
            flag = "--" + name.replace("_", "-")
            words += [flag] if value is True else [flag, _number(value)]
    return shlex.join(words)


def _says(name: str, value: Any, default: Any, flat: dict[str, Any]) -> bool:
    """Whether this has to be in the command: not what is so by default, or by the algorithm itself."""
    return value != default and not _implied(name, value, flat)


def _implied(name: str, value: Any, flat: dict[str, Any]) -> bool:
    """Settings that the algorithm sets to these by itself."""
    if name == "sync_every":
        usual = 1 if flat["algorithm"] == "sync-sgd" else FedAvg().sync_every
        return bool(value == usual or flat["local_epochs"])
    return (name, value) in {("server_lr", 1.0), ("server_momentum", 0.0), ("local_momentum", RESET)}


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _norm(config: Config, found: Findings) -> tuple[str, str, Config]:
    share = f"{found.apart:.0%} of the pairs of classes meet on no device"
    if found.personal:
        told = "each device keeps its norms and is evaluated with them; no one model comes out of it"
        return "keep it", f"{share}; {told}", config
    if not found.norms:
        return "keep it", "no layer of the model takes its statistics from a device's batch", config
    if not found.fails and found.apart >= DOUBTFUL:
        told = "made splits as far apart lost 4 to 20 points; train a while with both, and compare"
        return "keep it for now, and try group norm beside it", f"{share}: {told}", config
    if not found.fails and not found.broken:
        return "keep it", f"only {share}, and no layer's statistics differ by more than chance", config
    if not found.fails:
        return (
            "keep it, and watch the worst device",
            f"{share}: too few for a loss of ten points on made splits; yet {found.broken} of "
            f"{len(found.norms)} norms see statistics that differ between devices by more than chance",
            config,
        )
    changed = replace(config, norm=Group(), convert=found.foreign)
    return (
        "group norm in place of batch norm",
        f"{share}, and {found.broken} of {len(found.norms)} norms see other statistics on each device than "
        "the average that evaluation uses; group norm looks at one example at a time",
        changed,
    )


def _algorithm(config: Config, found: Findings) -> tuple[str, str, Config]:
    if not found.agreement:
        return "keep it", "one device alone cannot disagree", config
    if found.apart >= BREAKS:
        return _against_forgetting(config)
    fits = [a for a in found.agreement if a.drift < DRIFTS]
    last, most = found.agreement[-1], max((a.steps for a in fits), default=1)
    told = f"after {last.steps} steps updates are {last.drift:.1f} times as diverse as those of IID devices"
    if config.algorithm.sends_gradients:
        if most >= last.steps and found.traffic.up > LIGHT:
            changed = replace(config, algorithm=FedAvg(config.algorithm.sgd, sync_every=most))
            return f"fedavg with K = {most}, for {most} times fewer bytes", told, changed
        return "sync-sgd as it is (K = 1)", f"{told}; one gradient a step has no drift at all", config
    if most >= config.algorithm.sync_every:
        return f"{text(config.algorithm)} as it is (K = {config.algorithm.sync_every})", told, config
    if most > 1:
        return (
            f"{text(config.algorithm)} with K = {most}",
            f"{told}; after {most} only {next(a.drift for a in fits if a.steps == most):.1f}",
            replace(config, algorithm=replace_every(config.algorithm, most)),
        )
    return "sync-sgd (K = 1)", f"{told}; one gradient a step has no drift at all", _synchronous(config)


def _against_forgetting(config: Config) -> tuple[str, str, Config]:
    """What to do where few devices share any class."""
    told = "local steps pull a device towards its own classes, and few devices share any"
    every = config.algorithm.sync_every
    if every == 1 or not takes("head", config.model):
        return "sync-sgd (K = 1)", f"{told}; one gradient a step has no drift", _synchronous(config)
    kept = {name: value for name, value in config.flat().items() if name not in recipes.RECIPES[RECIPE]}
    return (
        f"{RECIPE} with K = {every}",
        f"{told}; {RECIPE} forgets less than fedavg (docs/{RECIPE}.md), yet only K = 1 has no drift",
        Config.of({**kept, "algorithm": RECIPE}),
    )


def replace_every(algorithm: Any, steps: int) -> Any:
    """The same algorithm with another K, the same for all devices."""
    return replace(algorithm, sync_every=steps, local_epochs=0.0)


def _synchronous(config: Config) -> Config:
    if config.algorithm.sends_gradients:
        return config
    return replace(config, algorithm=SyncSGD(config.algorithm.sgd))


def _codec(config: Config, found: Findings) -> tuple[str, str, Config]:
    up, seconds = found.traffic.up, found.traffic.seconds
    down = found.traffic.down
    told = f"a device sends {up:,} bytes a round and is sent {down:,}: {seconds:.1f} s on {NETWORK}"
    if not config.codec.lossless:
        return f"{codecs.text(config.codec)} as it is", told, config
    if up < LIGHT:
        return "none", f"{told}; too little to save on", config
    name = CODEC if up >= HEAVY else "int8"
    small = found.traffic.by_codec[name]
    cost = "it cost 0.2 and 0.7 points in short runs (results/compression)"
    if name != CODEC:
        cost = "what its rounding loses comes back with the next update"
    return (
        f"{name}: {up / small:.0f} times fewer bytes",
        f"{told}; {name} sends {small:,}; {cost}",
        replace(config, codec=codecs.parse(name)),
    )


__all__ = ["Advice", "Findings", "advise", "command"]
