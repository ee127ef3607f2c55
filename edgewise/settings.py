"""Every setting of a run: its name, type, default and meaning. Nothing heavy is imported here.

The same names are the keys of config.toml and, with dashes, the flags of `edgewise run`; `config.py` turns
their values into the objects that do the work.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

from edgewise.errors import EdgewiseError


@dataclass(frozen=True)
class Setting:
    """One setting. `low` to `high` are its legal numbers, `choices` its legal words."""

    name: str
    kind: type
    default: Any
    meaning: str
    low: float | None = None
    high: float = 1e9
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> Any:
        """The value in this setting's type; EdgewiseError with the legal values otherwise."""
        if value is None:
            return None
        fits = isinstance(value, (int, float) if self.kind is float else self.kind)
        if not fits or (isinstance(value, bool) and self.kind is not bool):
            raise EdgewiseError(f"{self.name}: {value!r} is not {KINDS[self.kind]}")
        if self.choices and value not in self.choices:
            raise EdgewiseError(f"{self.name}: {value!r} is unknown; one of: {', '.join(self.choices)}")
        # `not <=` rather than `>`, so that NaN is refused too.
        if self.low is not None and not self.low <= value <= self.high:
            legal = f"{KINDS[self.kind]} from {self.low:g} to {self.high:g}"
            raise EdgewiseError(f"{self.name}: {value} is out of range; legal: {legal}")
        if self.kind is str and any(unicodedata.category(letter) in UNWRITABLE for letter in value):
            raise EdgewiseError(f"{self.name}: {value!r} holds what no text file can (control characters)")
        return self.kind(value)


KINDS = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}
UNWRITABLE = ("Cc", "Cs")  # Unicode's control characters, and halves of pairs: bytes that are not UTF-8

CODECS = (
    "none, half, int8, int4, qsgd:4, ternary, sign, levels:1, topk:0.01, stc:0.01, randomk:0.01, dgc:0.001, "
    "powersgd:4, lowrank:0.01; then :zstd, :nofeedback"
)
RULES = "mean, median, trimmed:0.1, krum:2, multi-krum:2, clip:1, clip-median or fedexp:4"

ADDED = (
    "fedavgm, fedprox:0.01, scaffold, feddyn:0.1, fednova, fedadam, fedyogi, fedcm:0.1, fedacg:0.85, "
    "fedlc:1, fedrs:0.5, fedntd:1, fedlmd:1, sam:0.05, centralise, clip:10"
)

NORMS = (
    "batch, batch-sync, batch-local, batch-renorm, batch-frozen[:0.5], group[:8], layer, instance, group-ws"
)

ZOO = "timm:, torchvision:, transformers:NAME"

MOST_EMA = 0.999999  # at 1 the mean would stay with the first round

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "data",
        str,
        "digits",
        "digits, cifar10, folder[:SIDE] (of images, in data_dir), or package.module:function",
    ),
    Setting("data_dir", str, None, "folder of the data's files (else EDGEWISE_DATA, else a download)"),
    Setting("devices", int, 10, "number of devices", low=1),
    Setting("partition", str, "iid", "iid, labels:2, labels:2:overlap, dirichlet:0.1 or quantity:0.5"),
    Setting("model", str, "resnet18", f"resnet18, fixup-resnet18, package.module:function, or {ZOO}"),
    Setting("width", int, 64, "channels of the model's first stage", low=1),
    Setting("norm", str, "group", f"{NORMS} or none"),
    Setting("head", str, "linear", "the model's last layer: linear, feature-norm[:0.5] or etf[:1]"),
    Setting("convert", bool, False, "put the norm in place of the batch norms of a model that has its own"),
    Setting("start", str, None, "model.safetensors to start from, in place of random weights"),
    Setting(
        "objective",
        str,
        "cross-entropy",
        "cross-entropy[:SMOOTHING], squared-error[:TOLERANCE] or binary-cross-entropy",
    ),
    Setting(
        "algorithm",
        str,
        "sync-sgd",
        f"sync-sgd, fedavg, steady (a recipe), or what is added to fedavg, with +: {ADDED}",
    ),
    Setting("sync_every", int, None, "local steps a round, K (sync-sgd: 1; others: 10)", low=1),
    Setting(
        "local_epochs",
        float,
        None,
        "passes of each device over its data a round, in steps that differ",
        low=0,
    ),
    Setting("batch", int, 32, "examples a device takes per step", low=1),
    Setting("lr", float, 0.1, "peak learning rate", low=0),
    Setting("lr_scale", float, 1.0, "multiplies lr, but not the rate of Fixup's scalars", low=0),
    Setting("momentum", float, 0.9, "momentum: the server's for sync-sgd, else local", low=0),
    Setting("nesterov", bool, False, "Nesterov's momentum"),
    Setting("weight_decay", float, 5e-4, "weight decay", low=0),
    Setting(
        "decay",
        str,
        "all",
        "what weight decay is for: all, or weights (not biases, norms, Fixup's scalars)",
        choices=("all", "weights"),
    ),
    Setting(
        "agc",
        float,
        0.0,
        "adaptive gradient clipping: how long a unit's gradient may be, in lengths of its weights (0: any)",
        low=0,
    ),
    Setting(
        "local_momentum",
        str,
        None,
        "a device's momentum between two rounds: reset, keep or average (reset)",
        choices=("reset", "keep", "average"),
    ),
    Setting("schedule", str, "constant", "constant, plateau, cosine or step[:DROP:AT]"),
    Setting("warmup_epochs", float, 0.0, "epochs of linear warm-up", low=0),
    Setting("warmup_lr", float, None, "where the warm-up starts (else a tenth of lr * lr_scale)", low=0),
    Setting("epochs", float, None, "passes over each device's data (10 unless steps is given)", low=0),
    Setting("steps", int, None, "local steps of one device, in place of epochs", low=1),
    Setting("augment", str, "auto", "auto, none, crop, flip, cutout:16, mixup:0.2, or several with commas"),
    Setting("codec", str, "none", f"what devices send: {CODECS}"),
    Setting("codec_down", str, "none", "what they are sent: the difference to what they hold, as codec"),
    Setting("cohort", float, None, "devices asked a round: a number, or a fraction such as 0.1", low=0),
    Setting(
        "server_lr",
        float,
        None,
        "the server's learning rate (1; fedadam, fedyogi: 0.01)",
        low=0,
    ),
    Setting("server_momentum", float, None, "the server's momentum (0; fedavgm: 0.9)", low=0),
    Setting(
        "ema",
        float,
        0.0,
        "evaluate and save an exponential mean of the state over rounds, of this decay (0: the state)",
        low=0,
        high=MOST_EMA,
    ),
    Setting("aggregate", str, "mean", f"how the coordinator combines updates: {RULES}"),
    Setting(
        "eval_every", int, None, "rounds between evaluations; 0: at the end only (about 20 a run)", low=0
    ),
    Setting(
        "diagnose",
        str,
        "light",
        "how closely rounds are watched: off, light[:SHARE], full[:IMAGES[:DEVICES]]",
    ),
    Setting(
        "fused",
        str,
        "auto",
        "devices share a pass (sync-sgd: one gradient; fedavg: steps side by side): auto, on or off",
        choices=("auto", "on", "off"),
    ),
    Setting(
        "engine",
        str,
        "inline",
        "inline; torchrun: devices over several processes; fleet: real agents on loopback",
        choices=("inline", "torchrun", "fleet"),
    ),
    Setting("processes", str, None, "a number, or auto: processes that share the devices, one thread each"),
    Setting("accelerator", str, "auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda")),
    Setting(
        "kernels",
        str,
        "auto",
        "what normalises by groups on a CPU: torch, compiled (by Numba), or auto",
        choices=("auto", "torch", "compiled"),
    ),
    Setting("precision", str, "fp32", "fp32, bf16 or fp64", choices=("fp32", "bf16", "fp64")),
    Setting("threads", int, 1, "threads of this process", low=1, high=1024),
    Setting("seed", int, 0, "seed of every random draw", low=-(2**63), high=2**63 - 1),
)

NAMES = {setting.name: setting for setting in SETTINGS}
