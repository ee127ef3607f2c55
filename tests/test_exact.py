"""What must be exact, at float64 and on skewed labels, held to plain PyTorch.

The mean of ten devices' gradients is the gradient of their concatenated batch, unless a norm looks across
the batch; whole runs are the plain loops that their papers describe.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from edgewise import data, records, rounds
from edgewise.algorithms import FedAvg, SyncSGD
from edgewise.assemble import Parts, assemble
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.data.partition import Labels
from edgewise.device import Task
from edgewise.models import build
from edgewise.models.batchnorms import EPS, MOMENTUM
from edgewise.models.norms import NORMS, Batch, BatchSync
from edgewise.optimizers import SGD
from edgewise.schedules import Cosine
from edgewise.vector import FlatModel, Layout, Mean, State

DEVICES, STEPS = 10, 4
TOGETHER = {
    "batch",
    "batch-sync",
    "batch-local",
    "batch-renorm",
    "batch-frozen",
}  # norms that look across the batch
APART = [(*pair, "off") for pair in [("resnet18", n) for n in NORMS if n not in TOGETHER]]
APART.append(("fixup-resnet18", "none", "off"))
EXACT = [*APART, ("resnet18", "batch-sync", "on")]  # which exists fused only


@dataclass(frozen=True)
class PlainBatch:
    """PyTorch's own batch norm, on whatever batch it is given."""

    conv: ClassVar[type[nn.Conv2d]] = nn.Conv2d
    bias: ClassVar[bool] = False

    def layer(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, eps=EPS, momentum=MOMENTUM)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits")


def config(model: str = "resnet18", norm: str = "group", **settings: object) -> Config:
    plain = Config(
        partition=Labels(2),
        model=model,
        width=4,
        norm=NORMS[norm](),
        devices=DEVICES,
        steps=STEPS,
        precision="fp64",
        eval_every=0,
    )
    return replace(plain, **settings)


def plain_model(parts: Parts, state: State | None = None) -> nn.Module:
    """The run's model in plain PyTorch, with the state given or the run's own."""
    cfg = parts.config
    norm = PlainBatch() if isinstance(cfg.norm, Batch | BatchSync) else cfg.norm
    module = build(cfg.model, parts.dataset.shape, 10, cfg.width, norm, seed=5).double()
    if state is not None:
        parts.model.write(state)
    lacks, strange = module.load_state_dict(parts.model.module.state_dict(), strict=False)
    assert not strange and all(name.endswith("num_batches_tracked") for name in lacks)
    return module.train()


def somewhere(parts: Parts) -> State:
    """A state a little off the start, where Fixup's zeros no longer hide most of its gradient."""
    state = parts.model.read()
    noise = torch.randn(parts.model.layout.count, generator=torch.Generator().manual_seed(1)).double()
    state.params.add_(noise, alpha=0.05)
    return state


def joint(parts: Parts, step: int) -> tuple[Tensor, Tensor]:
    return parts.feed.joint([(device.id, device.indices, step) for device in parts.devices])


def mean_of_devices(parts: Parts, state: State) -> State:
    """What the coordinator makes of one round's replies."""
    mean = Mean(state)
    for reply in parts.engine().ask(Task(1, 1, 1.0, state), range(DEVICES)):
        update = reply.update(parts.config.codec, parts.model.layout, torch.float64)
        mean.add(State(update, reply.buffers), reply.examples)
    return mean.value()


def gradient_of_joint(parts: Parts, state: State) -> Tensor:
    module = plain_model(parts, state)
    x, y = joint(parts, 0)
    loss = F.cross_entropy(module(x), y)
    names = [entry.name for entry in parts.model.layout.params]
    gradients = torch.autograd.grad(loss, [module.get_parameter(name) for name in names])
    return torch.cat([gradient.flatten() for gradient in gradients])


# ---- one gradient ----


@pytest.mark.parametrize(("model", "norm", "fused"), EXACT)
def test_mean_of_gradients_is_the_gradient_of_the_concatenated_batch(
    digits: Dataset, model: str, norm: str, fused: str
) -> None:
    parts = assemble(config(model, norm, fused=fused), digits)
    state = somewhere(parts)
    found, expected = mean_of_devices(parts, state).params, gradient_of_joint(parts, state)
    assert (expected.abs() > 1e-8).double().mean() > 0.5  # most coordinates are put to the test
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_with_batch_norm_it_is_not(digits: Dataset) -> None:
    parts = assemble(config(norm="batch", fused="off"), digits)
    state = somewhere(parts)
    found, expected = mean_of_devices(parts, state).params, gradient_of_joint(parts, state)
    assert (found - expected).norm() / expected.norm() > 1e-3


@pytest.mark.parametrize("norm", NORMS)
def test_a_samples_output_depends_on_its_batch_only_with_batch_norms(norm: str) -> None:
    module = build("resnet18", (1, 8, 8), 10, 4, NORMS[norm](), seed=0).double().train()
    model = FlatModel(module, Layout.of(module))
    first, second = torch.randn(2, 6, 1, 8, 8, dtype=torch.float64)
    alone = model(first)[:1]
    others = [model(first[:2])[:1], model(torch.cat([first[:1], 100 * second]))[:1], model(first[:1])]
    gaps = [float((other - alone).detach().abs().max()) for other in others]
    assert min(gaps) > 1e-3 if norm in TOGETHER else max(gaps) < 1e-12


# ---- whole runs ----


def trained(config: Config, out: Path, dataset: Dataset) -> dict[str, Tensor]:
    """Run to the end; the tensors of model.safetensors."""
    for _ in rounds.run(config, out, dataset=dataset):
        pass
    return load_file(out / records.MODEL)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    expected = {name: t for name, t in expected.items() if not name.endswith("num_batches_tracked")}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float64
        assert torch.allclose(tensor, expected[name], rtol=0, atol=tolerance), name


def torch_sgd(module: nn.Module, sgd: SGD) -> torch.optim.SGD:
    """PyTorch's SGD with Fixup's scalars, which are all but the weights, at a tenth."""
    fixup = any(name.endswith("bias2b") for name, _ in module.named_parameters())
    groups = [
        {"params": [p], "lr": sgd.lr * (0.1 if fixup and not name.endswith(".weight") else sgd.lr_scale)}
        for name, p in module.named_parameters()
    ]
    return torch.optim.SGD(groups, momentum=sgd.momentum, weight_decay=sgd.weight_decay)


@pytest.mark.parametrize(("model", "norm", "fused"), [*EXACT, ("resnet18", "group", "on")])
def test_sync_sgd_is_plain_sgd_on_the_concatenated_batch(
    digits: Dataset, tmp_path: Path, model: str, norm: str, fused: str
) -> None:
    """Weights and, with batch-sync, running statistics: after four rounds with momentum, decay and cosine."""
    sgd = SGD(0.05, momentum=0.9, weight_decay=0.01, lr_scale=2.0)
    cfg = config(model, norm, algorithm=SyncSGD(sgd), fused=fused, schedule=Cosine())
    parts = assemble(cfg, digits)
    module = plain_model(parts)
    optimizer = torch_sgd(module, sgd)
    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: Cosine().factor(step / STEPS, {}))
    for step in range(STEPS):
        x, y = joint(parts, step)
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
        cosine.step()
    assert_close(trained(cfg, tmp_path / "run", digits), module.state_dict(), 1e-10)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_fedavg_is_the_mean_of_models_trained_apart(digits: Dataset, tmp_path: Path, norm: str) -> None:
    """Local momentum starts anew every round; the last round is one step short; the server has momentum."""
    sgd = SGD(0.05, momentum=0.9, weight_decay=0.01)
    algorithm = FedAvg(sgd, sync_every=3, server_lr=0.9, server_momentum=0.5)
    cfg = config("resnet18", norm, algorithm=algorithm, devices=5, steps=8)
    parts = assemble(cfg, digits)
    module = plain_model(parts)
    momentum = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for steps in (range(0, 3), range(3, 6), range(6, 8)):
        local = []
        for device in parts.devices:
            own = copy.deepcopy(module)
            optimizer = torch_sgd(own, sgd)
            for step in steps:
                x, y = parts.feed.batch(device.id, device.indices, step)
                optimizer.zero_grad()
                F.cross_entropy(own(x), y).backward()
                optimizer.step()
            local.append(own.state_dict())
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                mean = torch.stack([state[name].double() for state in local]).mean(0)
                if name in momentum:
                    momentum[name] = 0.5 * momentum[name] + (mean - tensor)
                    mean = tensor + 0.9 * momentum[name]
                tensor.copy_(mean)
    assert_close(trained(cfg, tmp_path / "run", digits), module.state_dict(), 1e-10)


# ---- one local step ----

SAME = {
    "plain": (SyncSGD(SGD(0.1, 0, 0)), FedAvg(SGD(0.1, 0, 0), sync_every=1)),
    # Decay is part of the gradient, and the same on every device: its mean is the server's.
    "decay": (SyncSGD(SGD(0.1, 0, 0.05)), FedAvg(SGD(0.1, 0, 0.05), sync_every=1)),
    # With one step a round and a constant rate, momentum of updates is momentum of gradients. Local momentum
    # would be none at all: it starts at zero every round.
    "momentum": (
        SyncSGD(SGD(0.1, 0.9, 0.05)),
        FedAvg(SGD(0.1, 0, 0.05), sync_every=1, server_momentum=0.9),
    ),
    "lost momentum": (SyncSGD(SGD(0.1, 0, 0.05)), FedAvg(SGD(0.1, 0.9, 0.05), sync_every=1)),
    "scaled": (
        SyncSGD(SGD(0.1, 0, 0, lr_scale=1.5)),
        FedAvg(SGD(0.3, 0, 0, lr_scale=1.5), sync_every=1, server_lr=1 / 3),
    ),
}


@pytest.mark.parametrize(("sync", "fedavg"), SAME.values(), ids=SAME)
@pytest.mark.parametrize(("model", "norm"), [("resnet18", "group"), ("fixup-resnet18", "none")])
def test_fedavg_of_one_step_is_sync_sgd(
    digits: Dataset, tmp_path: Path, model: str, norm: str, sync: SyncSGD, fedavg: FedAvg
) -> None:
    settings = config(model, norm, fused="off", batch=8, cohort=6)
    ours = trained(replace(settings, algorithm=sync), tmp_path / "sync", digits)
    theirs = trained(replace(settings, algorithm=fedavg), tmp_path / "fedavg", digits)
    start = assemble(settings, digits).model.module.state_dict()
    assert_close(theirs, ours, 1e-12)
    assert max(float((ours[name] - start[name]).abs().max()) for name in ours) > 1e-3


def test_fedavg_of_one_step_is_sync_sgd_under_a_schedule_and_with_batch_norm(
    digits: Dataset, tmp_path: Path
) -> None:
    settings = config(norm="batch", fused="off", batch=8, schedule=Cosine())
    sync, fedavg = SAME["decay"]
    ours = trained(replace(settings, algorithm=sync), tmp_path / "sync", digits)
    theirs = trained(replace(settings, algorithm=fedavg), tmp_path / "fedavg", digits)
    assert_close(theirs, ours, 1e-12)
