"""From a config to the objects of a simulated run, with what it left open decided once and written back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgewise import codecs, data, models, wire
from edgewise.allocator import keep_freed_memory
from edgewise.codecs import DGC
from edgewise.config import Config
from edgewise.conversion import convert
from edgewise.data import Dataset
from edgewise.data.batches import Augment
from edgewise.data.feed import Feed
from edgewise.data.holdings import counts, csv_text
from edgewise.data.partition import deal
from edgewise.data.skew import BREAKS, apart
from edgewise.device import Device, Terms, Work
from edgewise.diagnosis import Effort, Probe, Watching
from edgewise.engines import Batched, Engine, Fused, Inline, batched
from edgewise.engines.choice import choose_fused, choose_kernels
from edgewise.engines.fused import CACHED
from edgewise.errors import EdgewiseError, EdgewiseWarning
from edgewise.evaluate import Apart
from edgewise.memories import Memories, Note
from edgewise.models.groupnorm import GroupNorm, compile_norms
from edgewise.models.norms import BatchLocal, BatchSync, device_normed
from edgewise.models.resnet import Shape
from edgewise.objectives import CrossEntropy
from edgewise.pacing import local_steps, make_schedule, paced_alike
from edgewise.records import MEMORIES
from edgewise.schedules import Schedule
from edgewise.vector import FlatModel, Layout
from edgewise.weights import fill

if TYPE_CHECKING:
    from edgewise.engines.fleet.fleet import Run

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
EPOCHS = 10.0  # where neither epochs nor steps are given
EXAMPLES = 16  # on which a model is converted
EVALUATIONS = 20  # about as many as a run makes when eval_every is left open


class SkewedNorm(EdgewiseWarning):
    """Batch norm, whose statistics are a device's own, on devices with other labels each."""


@dataclass(frozen=True)
class Parts:
    """A run, assembled. `steps`: local steps of one device; `held`: examples by (device, class).

    A coordinator of real devices may have no data of its own, and deals none.
    """

    config: Config
    model: FlatModel
    terms: Terms
    schedule: Schedule
    steps: int
    shape: Shape
    classes: tuple[str, ...]
    dataset: Dataset | None = None
    feed: Feed | None = None
    held: Tensor | None = None
    devices: Sequence[Device] = ()

    @property
    def rounds(self) -> int:
        return math.ceil(self.steps / self.config.algorithm.sync_every)

    @property
    def work(self) -> Work:
        assert self.feed is not None
        return self.terms.work(self.feed)

    @cached_property
    def watching(self) -> Watching:
        """What watches the rounds. Only a difference leads back to a local model."""
        config, test = self.config, None if self.dataset is None else self.dataset.test
        every = config.eval_every or self.rounds
        effort = Effort(
            trained=config.batch * config.algorithm.sync_every * config.cohort_size * every,
            tested=len(test or ()),
            cohort=config.cohort_size,
            classes=len(self.classes),
        )
        looks = config.diagnose.looks(effort)
        local = looks.devices and isinstance(config.objective, CrossEntropy)
        # With norms of its own on each device, no state that the coordinator has is a model.
        blind = self.model.layout.personal or not config.algorithm.sends_differences
        if test is None or not local or blind:
            return Watching(looks, config.seed, self.model, averaged=config.aggregate.linear)
        probe = Probe.of(test, len(self.classes), looks.images, config.seed)
        averaged = config.aggregate.linear
        return Watching(looks, config.seed, self.model, probe, self.feed, averaged)

    @property
    def holdings(self) -> str:
        """Who holds what, as CSV: no lines where that is for the devices to know."""
        held = torch.zeros(0, len(self.classes), dtype=torch.int64) if self.held is None else self.held
        return csv_text(held, self.classes)

    def fleet_run(self, folder: Path) -> Run:
        """What a fleet's engine knows of the run in a folder."""
        from edgewise.engines.fleet.fleet import Run
        from edgewise.engines.fleet.home import run_id

        return Run(
            id=run_id(folder),
            text=self.config.toml(),
            layout=self.model.layout,
            dtype=self.model.params.dtype,
            terms=self.terms,
            down=self.config.codec_down,
            batch=self.config.batch,
            shape=self.shape,
            classes=len(self.classes),
            rounds=self.rounds,
        )

    @property
    def _trials(self) -> Callable[[], Apart] | None:
        dataset, held = self.dataset, self.held
        if dataset is None or held is None or not self.model.layout.personal:
            return None
        return lambda: Apart(dataset.test, held)

    def engine(self, note: Note | None = None, folder: Path | None = None) -> Engine:
        """The engine, with what devices remember (nothing at the start); `folder`: the run's."""
        if self.config.engine == "fleet":
            from edgewise.engines.fleet.loopback import loopback  # gRPC is imported where it is used

            assert folder is not None
            return loopback(self.fleet_run(folder), self.config, folder, note)
        return self.simulated(Memories(note, folder and folder / MEMORIES))

    @property
    def together(self) -> int:
        """How many devices' steps side by side would be taken at once."""
        batch = self.config.batch * math.prod(self.shape) * self.model.params.itemsize
        return batched.together(self.model, batch, self.config.cohort_size)

    def simulated(self, memories: Memories) -> Inline | Fused | Batched:
        """The engine of devices in this process; `memories`: of those that it will be asked for."""
        on_cpu = self.model.params.device.type == "cpu"
        if self.config.fused == "off":
            # On a CPU by way of the bytes that devices would send: the loop that everything is held to.
            work = replace(self.work, near=not on_cpu and self.terms.plain)
            return Inline(self.devices, self.model, work, memories, self._trials)
        if not self.config.algorithm.sends_gradients:
            work = replace(self.work, near=self.terms.plain)
            return Batched(self.devices, self.model, work, memories, together=self.together)
        apart = on_cpu and not isinstance(self.config.norm, BatchSync)
        together = max(1, CACHED // self.config.batch) if apart else 0
        return Fused(self.devices, self.model, self.work, memories, together=together)


def assemble(config: Config, dataset: Dataset | None = None, dealt: Sequence[Tensor] | None = None) -> Parts:
    """Load, deal, build; EdgewiseError for what cannot be run. `dataset` replaces what the config names.

    `dealt`: the indices of each device's examples, in place of the config's partition.
    """
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    folder = Path(config.data_dir) if config.data_dir else None
    dataset = dataset or data.load(config.data, folder)
    config = decide(config, dataset)
    if dealt is None:
        indices = deal(config.partition, dataset.train, len(dataset.classes), config.devices, config.seed)
    elif config.engine == "fleet":
        raise EdgewiseError(
            "engine: a fleet's devices hold what they hold; examples are dealt to inline ones"
        )
    else:
        indices = list(dealt)
    held = counts(indices, dataset.train.labels, len(dataset.classes))
    _report_wrapping(held.sum(1), config.batch)
    if config.epochs is None and config.steps is None:
        config = replace(config, epochs=EPOCHS)
    config = paced_alike(config, int(held.sum()))
    steps = local_steps(config, int(held.sum()))
    if config.eval_every is None:
        every = max(1, math.ceil(steps / config.algorithm.sync_every) // EVALUATIONS)
        config = replace(config, eval_every=every)
    model = make_model(config, build_module(config, dataset))
    _report_skewed_norm(model, held)
    accelerated = move(dataset, config.accelerator)
    assert config.augment is not None
    feed = Feed.of(accelerated, config.batch, config.augment, DTYPES[config.precision], config.seed)
    devices = [Device(id, part) for id, part in enumerate(indices)]
    terms, schedule = make_terms(config, model), make_schedule(config, steps, int(held.sum()))
    ours = (config, model, terms, schedule, steps, dataset.shape, dataset.classes)
    return _settled(Parts(*ours, accelerated, feed, held, devices))


def _settled(parts: Parts) -> Parts:
    """The parts, with it decided whether their devices share a pass, and with which kernels."""

    def unmapped() -> str:
        return batched.unmapped(parts.devices, parts.model, parts.work)

    fused = choose_fused(parts.config, parts.model, parts.together, unmapped)
    config = replace(parts.config, fused=fused)
    return replace(parts, config=with_kernels(config, parts.model, parts.steps, parts.shape))


def with_kernels(config: Config, model: FlatModel, steps: int, shape: Shape) -> Config:
    """The config with its kernels chosen; the model has them from now on."""
    first = next((part for part in model.module.modules() if isinstance(part, GroupNorm)), None)
    image = math.prod(shape[1:]) * first.num_channels if first else 0
    step = config.batch * config.cohort_size
    joint = min(step, max(config.batch, CACHED)) if config.fused == "on" else config.batch
    config = replace(config, kernels=choose_kernels(config, model, steps * step * image, joint * image))
    if config.kernels == "compiled":
        compile_norms(model.module, model.autocast or model.params.dtype)
    return config


def decide(config: Config, dataset: Dataset) -> Config:
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    elif accelerator == "cuda" and not torch.cuda.is_available():
        raise EdgewiseError("accelerator: cuda is not available here; use cpu")
    augment = config.augment or Augment.parse(dataset.augment)
    return replace(config, accelerator=accelerator, augment=augment)


def make_model(config: Config, module: nn.Module) -> FlatModel:
    module = module.to(config.accelerator, DTYPES[config.precision])
    fingerprint = f"{config.model} {module!r}"  # with strides, groups and eps, which shapes do not show
    autocast = torch.bfloat16 if config.precision == "bf16" else None
    return FlatModel(module, Layout.of(module, fingerprint), autocast)


def build_module(config: Config, dataset: Dataset) -> nn.Module:
    """The model that a config names, for this data, on the CPU: converted and filled, if it says so."""
    feed = Feed.of(dataset, 1, Augment(), torch.float32, 0)
    example = feed.plain(dataset.train.images[:EXAMPLES])
    return build_module_for(config, dataset.shape, config.objective.outputs(dataset), example)


def build_module_for(config: Config, shape: Shape, outputs: int, example: Tensor) -> nn.Module:
    """The same where data is elsewhere. `example`: images (N, *shape) on which it is converted."""
    module = models.build(config.model, shape, outputs, config.width, config.norm, config.seed, config.head)
    if config.convert:
        module = convert(module, config.norm, example).model
    if config.start:
        fill(module, Path(config.start))
    return module


def make_terms(config: Config, model: FlatModel) -> Terms:
    algorithm, codec = config.algorithm, config.codec
    own = codecs.inner(codec)
    _check_personal(config, model.layout)
    if isinstance(own, DGC):  # whose point is that devices keep the server's momentum
        algorithm, momentum = algorithm.without_momentum()
        codec = codecs.exchange(codec, replace(own, momentum=momentum or own.momentum))
    agreed = wire.Expected(
        kind=wire.Kind.UPDATE,
        layout=wire.layout_mark(model.layout.digest),
        codec=wire.codec_mark(codecs.text(config.codec)),
        payload=codec.bound(model.layout, model.params.dtype),
        buffers=model.buffers.nbytes,
        exact=codec.fixed,
    )
    return Terms(algorithm, codec, agreed, config.objective)


def _check_personal(config: Config, layout: Layout) -> None:
    """EdgewiseError where the model lacks what should stay on devices, or momentum would not be there."""
    if isinstance(config.norm, BatchLocal) and not layout.personal:
        raise EdgewiseError(
            f"norm: batch-local is a batch norm, of which the model {config.model} has none; "
            "take one that is made with the norm, such as resnet18, or --convert"
        )
    if layout.personal and config.ema:
        raise EdgewiseError(
            "ema: every device has norms of its own (batch-local), which fit the state that it trains and "
            "not a mean over rounds; leave it out, or take another norm"
        )
    if layout.personal and config.algorithm.sends_gradients and isinstance(codecs.inner(config.codec), DGC):
        raise EdgewiseError(
            "codec: dgc takes the momentum of sync-sgd into what is sent, which batch-local's norms are no "
            "part of; take another codec, such as topk, or fedavg"
        )


def move(dataset: Dataset, accelerator: str) -> Dataset:
    return replace(dataset, train=dataset.train.to(accelerator), test=dataset.test.to(accelerator))


def _report_wrapping(sizes: Tensor, batch: int) -> None:
    short = (sizes < batch).nonzero().flatten()
    if len(short):
        first = int(short[0])
        others = f" and {len(short) - 1} more" if len(short) > 1 else ""
        warnings.warn(
            f"batch: {batch} is more than device {first} holds ({int(sizes[first])} examples){others}; "
            "its batches wrap around and show examples more than once",
            EdgewiseWarning,
            stacklevel=3,
        )


def _report_skewed_norm(model: FlatModel, held: Tensor) -> None:
    share = apart(held)
    if share >= BREAKS and (names := device_normed(model.module)):
        warnings.warn(
            f"norm: {len(names)} batch norms meet skewed labels: {share:.0%} of class pairs share no "
            "device; expect to lose more than ten points, and see `edgewise inspect` with the same flags",
            SkewedNorm,
            stacklevel=3,
        )
