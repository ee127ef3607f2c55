"""A run as one frozen value whose parts are the objects that do the work; to and from config.toml.

    Config(partition=Labels(2), norm=Group(), algorithm=FedAvg(SGD(lr=0.05), sync_every=10), epochs=20)

`Config.of` builds one from flat settings (flags, TOML), `flat` gives them back: names appear only there.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgewise import algorithms, codecs, hire, recipes, specs
from edgewise.aggregators import AGGREGATORS, Aggregator, WeightedMean
from edgewise.algorithms import Algorithm, FedAvg, SyncSGD
from edgewise.codecs import Codec, Raw
from edgewise.data.batches import Augment
from edgewise.data.partition import PARTITIONS, Iid, Partition
from edgewise.diagnosis import DIAGNOSES, Diagnose, Light
from edgewise.errors import EdgewiseError
from edgewise.models.heads import HEADS, Head, Linear
from edgewise.models.norms import NORMS, Group, Norm
from edgewise.objectives import OBJECTIVES, CrossEntropy, Objective
from edgewise.optimizers import SGD
from edgewise.schedules import SCHEDULES, Constant, Schedule
from edgewise.settings import KINDS, NAMES, SETTINGS

VERSION = 1  # of config.toml; another version is refused
DERIVED = ("algorithm", "sync_every", "local_epochs", "server_lr", "server_momentum", "local_momentum")
TABLES: dict[str, Mapping[str, Any]] = {
    "partition": PARTITIONS,
    "norm": NORMS,
    "head": HEADS,
    "objective": OBJECTIVES,
    "schedule": SCHEDULES,
    "aggregate": AGGREGATORS,
    "diagnose": DIAGNOSES,
}
CODED = ("codec", "codec_down")  # parsed by codecs.parse, which puts feedback around them
SGD_SETTINGS = ("lr", "lr_scale", "momentum", "nesterov", "weight_decay", "decay", "agc")


@dataclass(frozen=True)
class Config:
    """One run. Fields that are None are chosen when the run starts and then written to config.toml."""

    data: str = "digits"
    data_dir: str | None = None
    devices: int = 10
    partition: Partition = Iid()
    model: str = "resnet18"
    width: int = 64
    norm: Norm = Group()
    head: Head = Linear()
    convert: bool = False
    start: str | None = None
    objective: Objective = CrossEntropy()
    algorithm: Algorithm = SyncSGD()
    batch: int = 32
    schedule: Schedule = Constant()
    warmup_epochs: float = 0.0
    warmup_lr: float | None = None
    epochs: float | None = None
    steps: int | None = None
    augment: Augment | None = None
    codec: Codec = Raw()
    codec_down: Codec = Raw()
    cohort: float | None = None
    ema: float = 0.0
    aggregate: Aggregator = WeightedMean()
    eval_every: int | None = None
    diagnose: Diagnose = Light()
    fused: str = "auto"
    engine: str = "inline"
    processes: str | None = None
    accelerator: str = "auto"
    kernels: str = "auto"
    precision: str = "fp32"
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _checked(self.flat())
        if self.epochs is not None and self.steps is not None:
            raise EdgewiseError("epochs, steps: give one of them, not both")
        sgd = self.algorithm.sgd
        if self.warmup_lr is not None and not sgd.lr * sgd.lr_scale > 0:
            raise EdgewiseError("warmup_lr: a warm-up needs a peak to end at; lr * lr_scale is 0")
        self.aggregate.check(self.cohort_size)
        self._check_processes()
        self._check_codecs()
        self._check_loss()

    def _check_processes(self) -> None:
        if self.processes is None:
            return
        hire.count(self.processes, self.cohort_size)
        if self.engine == "fleet":
            raise EdgewiseError("processes: a fleet's devices have one each; leave it out")
        object.__setattr__(self, "engine", "torchrun")

    def _check_codecs(self) -> None:
        if isinstance(codecs.inner(self.codec_down), codecs.DGC):
            raise EdgewiseError("codec_down: dgc is for devices' updates; it cannot stand for the state")
        if isinstance(self.codec_down, codecs.Feedback):
            raise EdgewiseError(
                "codec_down: takes no feedback around it; what is lost is in the next difference"
            )
        down = codecs.without_feedback(codecs.parse(codecs.text(self.codec_down, feedback=False)))
        if codecs.parse(codecs.text(self.codec)) != self.codec or down != self.codec_down:
            raise EdgewiseError(
                f"codec: {self.codec!r}, {self.codec_down!r}: config.toml has no words for one of them; "
                "put a stage inside the feedback, one of each, and none around what needs none"
            )
        own = codecs.inner(self.codec)
        if isinstance(own, codecs.DGC):
            self._check_dgc(own)

    def _check_loss(self) -> None:
        names = algorithms.losses(self.algorithm)
        if names and self.augment is not None and self.augment.mixup:
            raise EdgewiseError(
                f"augment: mixup gives an example shares of two classes, and {names[0]} is for one class "
                "each; take one of them"
            )
        if self.augment is not None and self.augment.mixup and self.batch < 2:
            raise EdgewiseError(
                "augment: mixup mixes the examples of a device's batch; batch must be 2 or more"
            )
        if names and self.objective != CrossEntropy():
            given = specs.text(OBJECTIVES, self.objective)
            raise EdgewiseError(
                f"algorithm: {names[0]} is for classification, with a loss of its own; it takes the "
                f"objective cross-entropy without label smoothing, not {given}"
            )

    def _check_dgc(self, dgc: codecs.DGC) -> None:
        if self.algorithm.sends_gradients and self.algorithm.sgd.nesterov:
            raise EdgewiseError(
                "codec: dgc moves plain momentum to the devices, not Nesterov's; leave nesterov off"
            )
        if self.algorithm.sends_gradients and self.algorithm.sgd.agc:
            raise EdgewiseError(
                "codec: dgc sends what gradients came to over several steps, which agc cannot hold to the "
                "bounds of one; take another codec, such as topk, or leave agc out"
            )
        _, moved = self.algorithm.without_momentum()
        if readers := algorithms.reads_updates(self.algorithm):
            raise EdgewiseError(
                f"codec: dgc sends no updates but their momentum, and {readers[0]} "
                "takes devices' gradients or momentum from updates; take another codec, such as topk"
            )
        if dgc.momentum and moved and dgc.momentum != moved:
            raise EdgewiseError(
                f"codec: dgc takes over the server's momentum ({moved:g}), "
                f"so its own cannot be another ({dgc.momentum:g}); leave it out"
            )

    @property
    def cohort_size(self) -> int:
        """Devices asked in a round."""
        if self.cohort is None:
            return self.devices
        size = round(self.cohort * self.devices) if self.cohort < 1 else int(self.cohort)
        if not 1 <= size <= self.devices or (self.cohort >= 1 and size != self.cohort):
            raise EdgewiseError(
                f"cohort: {self.cohort:g} of {self.devices} devices is not a cohort; "
                f"1 to {self.devices}, or a fraction below 1 that leaves at least one"
            )
        return size

    @classmethod
    def of(cls, flat: Mapping[str, Any]) -> Config:
        """A config from flat settings; those that are missing or None take a recipe's, or their defaults."""
        flat = recipes.expand(flat)
        extras = by_part(flat.get("set"))
        values = _checked(flat)
        parts: dict[str, Any] = {
            name: specs.parse(table, values[name], name) for name, table in TABLES.items()
        }
        sgd = _extend(SGD(**{name: values[name] for name in SGD_SETTINGS}), "sgd", extras)
        parts["algorithm"] = _algorithm(values, sgd, extras)
        for name in TABLES:
            parts[name] = _extend(parts[name], name, extras)
        parts |= {name: _codec(values[name], name, extras) for name in CODED}
        if extras:
            legal = [
                f"{p}.{f.name}"
                for p, part in {"sgd": sgd, **parts}.items()
                for f in _slots(codecs.inner(part))
            ]
            legal += [f"algorithm.{f.name}" for p in _added(parts["algorithm"]) for f in _slots(p)]
            raise EdgewiseError(f"set: {min(extras)!r} is unknown; one of: {', '.join(sorted(legal))}")
        augment = None if values["augment"] == "auto" else Augment.parse(values["augment"])
        names = {f.name for f in fields(cls)}
        plain = {name: value for name, value in values.items() if name in names}
        return cls(**{**plain, **parts, "augment": augment})

    def flat(self) -> dict[str, Any]:
        """Every setting by name, in the order of `settings.SETTINGS`, then `set` for what has no flag."""
        algorithm: Any = self.algorithm
        values: dict[str, Any] = {name: getattr(self, name) for name in NAMES if hasattr(self, name)}
        values |= {name: specs.text(table, getattr(self, name)) for name, table in TABLES.items()}
        values["codec"] = codecs.text(self.codec)
        values["codec_down"] = codecs.text(self.codec_down, feedback=False)
        values |= {name: getattr(algorithm.sgd, name) for name in SGD_SETTINGS}
        values["algorithm"] = algorithms.text(algorithm)
        values |= {name: getattr(algorithm, name, None) for name in DERIVED[1:]}
        values["local_epochs"] = values["local_epochs"] or None
        values["augment"] = "auto" if self.augment is None else self.augment.text
        extras = _extras(algorithm.sgd, "sgd", SGD_SETTINGS) | _extras(
            algorithm, "algorithm", ("sgd", "parts", *DERIVED)
        )
        return {s.name: values[s.name] for s in SETTINGS} | ({"set": extras} if extras else {})

    def toml(self) -> str:
        """config.toml: every setting, with what is not chosen yet left out."""
        lines = [f"version = {VERSION}"]
        flat = self.flat()
        extras = flat.pop("set", {})
        lines += [f"{name} = {_toml(value)}" for name, value in flat.items() if value is not None]
        if extras:
            lines += ["", "[set]"] + [f"{_toml(name)} = {_toml(value)}" for name, value in extras.items()]
        return "\n".join(lines) + "\n"


def read_toml(path: Path) -> dict[str, Any]:
    """The flat settings of a config file; EdgewiseError if it cannot be read or is of another version."""
    try:
        flat = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EdgewiseError(f"{path}: no such config file") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not TOML
        raise EdgewiseError(f"{path}: not a readable TOML file ({error})") from None
    version = flat.pop("version", VERSION)
    if version != VERSION:
        raise EdgewiseError(f"{path}: a config of version {version!r}; this edgewise reads version {VERSION}")
    try:
        _checked(flat)
        return flat | ({"set": by_part(flat["set"])} if "set" in flat else {})
    except EdgewiseError as error:
        raise EdgewiseError(f"{path}: {error}") from None


def _toml(value: Any) -> str:
    """A text, number or boolean as TOML. As in JSON, but for characters beyond 16 bits."""
    return json.dumps(value, ensure_ascii=False)


def by_part(extras: Any) -> dict[str, Any]:
    """The settings of `set` by "part.key", be they written so or as tables of tables."""
    if not isinstance(extras, Mapping | None):
        raise EdgewiseError(f"set: {extras!r} is not a table of part.key = value")
    found: dict[str, Any] = {}
    for name, value in (extras or {}).items():
        nested = isinstance(value, Mapping)
        found |= {f"{name}.{key}": v for key, v in value.items()} if nested else {name: value}
    return found


def _checked(flat: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(flat.keys() - NAMES.keys() - {"set"})
    if unknown:
        raise EdgewiseError(f"{unknown[0]!r} is unknown; one of: {', '.join(NAMES)}")
    values = {}
    for setting in SETTINGS:
        value = setting.check(flat.get(setting.name))
        values[setting.name] = setting.default if value is None else value
    return values


def _codec(text: str, name: str, extras: dict[str, Any]) -> Codec:
    codec = codecs.parse(text, name)
    if name == "codec_down":
        codec = codecs.without_feedback(codec)
    return codecs.exchange(codec, _extend(codecs.inner(codec), name, extras))


def _algorithm(values: Mapping[str, Any], sgd: SGD, extras: dict[str, Any]) -> Algorithm:
    """The algorithm that settings name, with the `algorithm.field` extras of its own and of its parts set."""
    given = {key: values[key] for key in DERIVED[1:] if values[key] is not None}
    algorithm = algorithms.parse(values["algorithm"], sgd, tuple(recipes.RECIPES), **given)
    owners = Counter(slot.name for part in _added(algorithm) for slot in _slots(part))
    for name, count in owners.items():
        if count > 1 and f"algorithm.{name}" in extras:
            raise EdgewiseError(
                f"set: algorithm.{name} is in {count} parts of {values['algorithm']}; "
                "write the numbers behind their names, as in fedrs:0.5+feddyn:0.1"
            )
    for part in _added(algorithm):
        algorithm = algorithms.with_part(algorithm, part, _extend(part, "algorithm", extras))
    return _extend(algorithm, "algorithm", extras)


def _added(algorithm: Algorithm) -> tuple[Any, ...]:
    """The parts of an algorithm, if it has any."""
    return algorithm.parts if isinstance(algorithm, FedAvg) else ()


def _extend(part: Any, prefix: str, extras: dict[str, Any]) -> Any:
    """The part with its `prefix.field` extras set; what was used is taken out of `extras`."""
    for slot in _slots(part):
        name = f"{prefix}.{slot.name}"
        if name not in extras:
            continue
        word = extras.pop(name)
        try:
            value = specs.convert(slot, word)
        except (TypeError, ValueError):
            kind = KINDS[specs.kind_of(slot)]
            raise EdgewiseError(f"set: {name} cannot be {word!r}; it is {kind}") from None
        if slot.name in NAMES:
            value = NAMES[slot.name].check(value)
        part = replace(part, **{slot.name: value})
    return part


def _slots(part: Any) -> list[Field[Any]]:
    """The fields of a part that `set` can reach: its numbers, words and switches."""
    return [slot for slot in fields(part) if specs.kind_of(slot) in KINDS]


def _extras(part: Any, prefix: str, covered: tuple[str, ...]) -> dict[str, Any]:
    return {
        f"{prefix}.{slot.name}": getattr(part, slot.name)
        for slot in fields(part)
        if slot.name not in covered and getattr(part, slot.name) != slot.default
    }


__all__ = ["VERSION", "Config", "FedAvg", "SyncSGD", "read_toml"]
