"""The runs of the reference's section on large batches, which figure 3, figure 4 and table 1 show parts of.

Synchronous SGD over ten devices. The reference does not say how data lay on them here; it is dealt as in its
section before, two classes each. No norm here looks at the batch, so the gradient is that of one large batch
whatever lies where (tests hold that to 1e-10).

`POST` is the reference's recipe, `OURS` the one that is held against it: flags of `edgewise run`, and nothing
else in here has to change for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgewise.config import Config
from edgewise.experiments.base import Plan

Flat = Mapping[str, Any]
DEVICES = 10
# Its rates say that 1k is 1,024: 0.8 is 8 times 0.1. A device takes a tenth, rounded: 13, 102 and 205.
BATCHES = {"128": 128, "1k": 1024, "2k": 2048, "4k": 4096, "8k": 8192}
SMALLEST = BATCHES["128"]
LENGTH, LINEAR, SLOW = 100, 6, 20  # epochs: of the reference's runs, of its two warm-ups

POST: Flat = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
OURS: Flat = {
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "schedule": "cosine",
}


@dataclass(frozen=True)
class Scale:
    """`examples` an epoch; batches are the reference's over `shrink`, its warm-ups the same share of the run.

    `patience`: evaluations without a gain before the rate drops, of about `evaluations` in a run. `growth`:
    our recipe's rate grows with the batch to this power; `tuned`: on what that, and its rate, was chosen.
    """

    flat: Flat
    examples: int
    evaluations: int
    patience: int
    shrink: float = 1.0
    ours: Flat = field(default_factory=dict)  # what the recipe can add where runs are this long
    growth: float = 0.5
    tuned: str = ""

    @property
    def epochs(self) -> float:
        return float(self.flat["epochs"])

    def batch(self, name: str) -> int:
        """Images a device takes a step, at a batch of this name."""
        return round(BATCHES[name] / self.shrink / DEVICES)

    def steps(self, name: str) -> int:
        """Steps in a run at a batch of this name."""
        return round(self.epochs * self.examples / (DEVICES * self.batch(name)))


# laptop: 26 runs of 3 x 50,000 images at 700 a second and core are 93 minutes of one core, 10 evaluations a
# run of 10,000 images each (4 s) another 17, figure 5 (4 runs of 240,000 images and 20 evaluations) 28: 138
# minutes of one core, 69 of two. What a step costs beside its images is little.
SCALES = {
    "demo": Scale(
        {"data": "digits", "width": 6, "augment": "crop:1", "epochs": 20},
        examples=1438,
        evaluations=10,
        patience=5,
        shrink=6.4,  # 20, 160 and 320 images a step of 1,438 in all
    ),
    "laptop": Scale(
        {"data": "cifar10", "width": 8, "epochs": 3},
        examples=50_000,
        evaluations=10,
        patience=5,
        growth=0.25,  # 2k has 73 steps: twice the rate is best there, not four times (LOG.md)
        tuned="at 128 and 2k, on training images that were held back",
    ),
    # The reference does not say how long it waits on a plateau: PyTorch's default, 10 epochs.
    "paper": Scale(
        {"data": "cifar10", "width": 64, "epochs": LENGTH, "precision": "bf16"},
        examples=50_000,
        evaluations=LENGTH,
        patience=10,
        ours={"augment": "crop,flip,cutout:16"},
    ),
}


def linear(scale: Scale, batch: int) -> Flat:
    """The rate grows with the batch, from 0.1 over the first epochs: 0.8 and 1.6 in the reference."""
    return _warmed(scale, POST["lr"] * batch / SMALLEST, POST["lr"], LINEAR, batch)


def slow(scale: Scale, batch: int) -> Flat:
    """The rate stays at 0.1 and comes up from 0.01 over a fifth of the run: the reference's for Fixup."""
    return _warmed(scale, POST["lr"], POST["lr"] / 10, SLOW, batch)


def ours(scale: Scale, batch: int) -> Flat:
    """The rate grows with a power of the batch, and not that of Fixup's scalars."""
    scaled = {"lr_scale": (batch / SMALLEST) ** scale.growth, "warmup_epochs": scale.epochs * LINEAR / LENGTH}
    return {**OURS, **scale.ours, **scaled}


def _warmed(scale: Scale, peak: float, start: float, epochs: int, batch: int) -> Flat:
    flat = {**POST, "lr": peak, "schedule": f"plateau:0.1:{scale.patience}"}
    if batch == SMALLEST:
        return flat
    return {**flat, "warmup_lr": start, "warmup_epochs": scale.epochs * epochs / LENGTH}


@dataclass(frozen=True)
class Method:
    """A row of the table: a net, trained by a recipe at some batches."""

    label: str
    flat: Flat
    recipe: Callable[[Scale, int], Flat]
    batches: tuple[str, ...] = ("128", "1k", "2k")


FIXUP: Flat = {"model": "fixup-resnet18"}
METHODS = {
    "group": Method("group norm", {"norm": "group"}, linear),
    "layer": Method("layer norm", {"norm": "layer"}, linear),
    "instance": Method("instance norm", {"norm": "instance"}, linear),
    "group-slow": Method("group norm, Fixup's warm-up", {"norm": "group"}, slow, ("1k", "2k")),
    "fixup": Method("Fixup", FIXUP, slow),
    "fixup-linear": Method("Fixup, linear scaling", FIXUP, linear, ("1k", "2k")),
    "ours-group-ws": Method("group norm, standardised weights", {"norm": "group-ws"}, ours, tuple(BATCHES)),
    "ours-fixup": Method("Fixup", FIXUP, ours, tuple(BATCHES)),
}


def config(scale: Scale, method: Method, batch: str) -> Config:
    """One run."""
    flat = {
        **{"devices": DEVICES, "partition": "labels:2", "batch": scale.batch(batch)},
        **scale.flat,
        **method.flat,
        **method.recipe(scale, BATCHES[batch]),
        "eval_every": max(1, round(scale.steps(batch) / scale.evaluations)),
    }
    return Config.of(flat)


def runs(scale: str, methods: tuple[str, ...]) -> dict[str, Config]:
    """The runs of these methods by name, METHOD-BATCH."""
    return {
        run: config(SCALES[scale], METHODS[method], batch)
        for method in methods
        for batch in METHODS[method].batches
        for run in [f"{method}-{batch}"]
    }


def labels(methods: tuple[str, ...]) -> dict[str, str]:
    """The runs' labels by name."""
    return {f"{m}-{batch}": f"{METHODS[m].label}, {batch}" for m in methods for batch in METHODS[m].batches}


def notes(plan: Plan) -> str:
    """What a reader has to know of these runs besides."""
    scale = SCALES[plan.scale]
    names = dict.fromkeys(run.rsplit("-", 1)[1] for run in plan.runs)
    taken = [f"{DEVICES * scale.batch(n):,} for {n} ({scale.batch(n)} a device)" for n in names]
    *long, last = [f"{scale.steps(name):,}" for name in names]
    its_own = scale.epochs == LENGTH
    share = " its own" if its_own else f" the share of {scale.epochs:g} epochs that they are of its {LENGTH}"
    recipe = ", ".join(f"{name} {value}" for name, value in {**OURS, **scale.ours}.items())
    chosen = f"both chosen {scale.tuned}" if scale.tuned else "not tuned"
    about_ours = f" Ours: {recipe}; the rate times (batch / {SMALLEST})^{scale.growth:g}: {chosen}."
    return (
        f"Images a step, over {DEVICES} devices: {', '.join(taken)}. Every run has {scale.epochs:g} epochs, "
        f"which are {', '.join(long)} and {last} steps. The reference's warm-ups are{share}; its rate drops "
        f"to a tenth after more than {scale.patience} evaluations without a gain (it gives no number). It "
        "does not say how data lay on devices here: two classes each, which these nets do not notice."
    ) + (about_ours if any(run.startswith("ours-") for run in plan.runs) else "")
