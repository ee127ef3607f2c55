"""The same objects for a run on real devices: the coordinator's half, and a device's.

Both are made from one config: the coordinator sends the text of its own to the devices. What a device adds is
its data; a model's code is imported only where the device's own configuration allows its name.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgewise import randomness
from edgewise.allocator import keep_freed_memory
from edgewise.assemble import (
    DTYPES,
    EPOCHS,
    EVALUATIONS,
    EXAMPLES,
    Parts,
    build_module,
    build_module_for,
    decide,
    make_model,
    make_terms,
    move,
    with_kernels,
)
from edgewise.config import VERSION, Config
from edgewise.data import Dataset
from edgewise.data.feed import Feed
from edgewise.data.holdings import counts
from edgewise.data.partition import Partition, alike, deal
from edgewise.device import Device
from edgewise.engines.choice import choose_fused
from edgewise.engines.fleet.duty import Outfit
from edgewise.errors import EdgewiseError
from edgewise.models import MODELS
from edgewise.models.groupnorm import available, compile_norms
from edgewise.models.norms import BatchSync
from edgewise.models.resnet import Shape
from edgewise.objectives import CrossEntropy
from edgewise.pacing import local_steps, make_schedule, paced

LARGEST_CONFIG = 1 << 16  # bytes


@dataclass(frozen=True)
class Share:
    """A device's part of data that is dealt as a simulation deals it: for trials with data at hand."""

    partition: Partition
    devices: int
    seed: int


def assemble_coordinator(config: Config, data: Dataset | tuple[Shape, int]) -> Parts:
    """A coordinator's parts; EdgewiseError for what cannot be run.

    `data`: a dataset, on whose test examples it evaluates, or only the shape of an image and the number of
    classes; then devices evaluate on what they hold out.
    """
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    dataset = data if isinstance(data, Dataset) else None
    if dataset is not None:
        shape, classes = dataset.shape, dataset.classes
        config = decide(config, dataset)
        if config.epochs is None and config.steps is None:
            config = replace(config, epochs=EPOCHS)
    else:
        shape, count = data  # type: ignore[misc]
        classes = tuple(str(number) for number in range(count))
        config = replace(config, accelerator="cpu" if config.accelerator == "auto" else config.accelerator)
        _check_lengths(config)
    examples = len(dataset.train) if dataset else 0
    config = paced(config, examples)
    steps = local_steps(config, examples)
    every = config.algorithm.sync_every
    if config.eval_every is None:
        config = replace(config, eval_every=max(1, math.ceil(steps / every) // EVALUATIONS))
    module = build_module(config, dataset) if dataset else _module(config, shape, len(classes))
    model = make_model(config, module)
    config = replace(config, engine="fleet")
    config = replace(config, fused=choose_fused(config, model))
    config = with_kernels(config, model, steps, shape)
    ours = (config, model, make_terms(config, model), make_schedule(config, steps, examples), steps)
    if dataset is None:
        return Parts(*ours, shape, classes)
    assert config.augment is not None
    moved = move(dataset, config.accelerator)
    feed = Feed.of(moved, config.batch, config.augment, DTYPES[config.precision], config.seed)
    return Parts(*ours, shape, classes, moved, feed)


def _check_lengths(config: Config) -> None:
    """EdgewiseError for what cannot be counted in steps, where there is no data to count."""
    if config.steps is None or config.warmup_epochs:
        raise EdgewiseError(
            "steps: a coordinator without data does not know how long an epoch is; "
            "give --steps, and no --warmup-epochs"
        )
    if not config.algorithm.sync_every:
        raise EdgewiseError(
            "local_epochs: a coordinator without data does not know how many steps they are; give "
            "--sync-every too: what a round counts for in --steps"
        )


def _module(config: Config, shape: Shape, classes: int) -> nn.Module:
    """The model, where there is no data to make it for."""
    if not isinstance(config.objective, CrossEntropy):
        raise EdgewiseError(
            "objective: a coordinator without data can train for cross-entropy only: it does not know the "
            "targets; give --data"
        )
    example = torch.rand(EXAMPLES, *shape, generator=randomness.generator(config.seed, "example", 0, 0))
    return build_module_for(config, shape, classes, example)


def equip(
    plan: Any, dataset: Dataset, number: int, share: Share | None, allowed: Collection[str], accelerator: str
) -> Outfit:
    """A device's outfit for a coordinator's plan; EdgewiseError if it does not fit, or is not allowed."""
    config = replace(_config(plan.config, allowed), accelerator=accelerator)
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    if isinstance(config.norm, BatchSync):
        raise EdgewiseError("norm: batch-sync needs all devices in lockstep; a fleet cannot give that")
    if (dataset.shape, len(dataset.classes)) != (tuple(plan.shape), plan.classes):
        raise EdgewiseError(
            f"data {dataset.name}: {len(dataset.classes)} classes of images {dataset.shape}, where the "
            f"coordinator trains on {plan.classes} classes of images {tuple(plan.shape)}"
        )
    config = decide(config, dataset)
    model = make_model(config, build_module(config, dataset))
    if model.layout.digest != plan.layout.hex():
        raise EdgewiseError(
            f"model {config.model}: built here it has another layout than the coordinator's; "
            "the model's code differs, or edgewise or PyTorch does"
        )
    if config.kernels == "compiled" and config.accelerator == "cpu" and available():
        # A device without Numba has PyTorch's: the same within rounding.
        compile_norms(model.module, model.autocast or model.params.dtype)
    indices, tests = _own(dataset, number, share)
    moved = move(dataset, config.accelerator)
    assert config.augment is not None
    feed = Feed.of(moved, config.batch, config.augment, DTYPES[config.precision], config.seed)
    work = make_terms(config, model).work(feed)
    held_out = moved.test.pick(tests) if len(tests) else None
    return Outfit(model, work, Device(number, indices), config.codec_down, held_out, len(dataset.classes))


def _config(text: str, allowed: Collection[str]) -> Config:
    """The coordinator's config, as far as this device goes along with it."""
    if len(text) > LARGEST_CONFIG:
        raise EdgewiseError(f"the coordinator's config has {len(text)} letters; at most {LARGEST_CONFIG}")
    try:
        flat = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise EdgewiseError(f"the coordinator's config is not readable ({error})") from None
    if flat.pop("version", None) != VERSION:
        raise EdgewiseError("the coordinator's config is of another version; install the same edgewise")
    model = flat.get("model", "resnet18")
    if model not in MODELS and model not in allowed:
        raise EdgewiseError(
            f"the coordinator asks for the model {model!r}, which this device does not allow "
            f"(--allow {model} would)"
        )
    # Its own data is what the device trains on; the state comes with the task, from no file of its own.
    flat |= {"data": "digits", "data_dir": None, "start": None}
    return Config.of({name: value for name, value in flat.items() if value is not None})


def _own(dataset: Dataset, number: int, share: Share | None) -> tuple[Tensor, Tensor]:
    """The indices of the examples that the device trains on, and of those that it holds out."""
    if share is None:
        return torch.arange(len(dataset.train)), torch.arange(len(dataset.test))
    if not 0 <= number < share.devices:
        raise EdgewiseError(f"devices: this is device {number}, which a deal to {share.devices} leaves out")
    classes = len(dataset.classes)
    parts = deal(share.partition, dataset.train, classes, share.devices, share.seed)
    held = counts(parts, dataset.train.labels, classes)
    return parts[number], alike(held, dataset.test.labels)[number]
