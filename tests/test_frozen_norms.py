"""batch-frozen: batch norm, and from a share of the run on fixed statistics, on every engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgewise import records
from edgewise.algorithms import FedAvg, SyncSGD
from edgewise.assemble import assemble
from edgewise.config import Config
from edgewise.errors import EdgewiseError
from edgewise.models.batchnorms import FrozenBatchNorm2d
from edgewise.models.norms import Batch, BatchFrozen
from edgewise.optimizers import SGD
from edgewise.rounds import run

TINY = Config(
    norm=BatchFrozen(0.5),
    algorithm=SyncSGD(SGD(0.05)),
    devices=4,
    batch=8,
    width=4,
    steps=6,
    eval_every=0,
    precision="fp64",
    fused="off",
)


def ended(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    list(run(config, folder))
    return load_file(folder / records.MODEL)


def test_frozen_is_evaluation_with_a_gradient() -> None:
    layer = FrozenBatchNorm2d(3).double()
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64) * 2 + 1
    plain = nn.BatchNorm2d(3).double()
    assert torch.allclose(layer(x), plain(x), atol=1e-14)  # not frozen yet
    layer.frozen.fill_(1)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    found = layer(x)
    assert torch.equal(found, plain.eval()(x)) or torch.allclose(found, plain(x), atol=1e-14)
    assert torch.allclose(found[:2], layer(x[:2]), atol=1e-14), "no sample sees its batch"
    found.square().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().min() > 0
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_until_then_it_is_batch_norm_and_then_statistics_stay(tmp_path: Path) -> None:
    half = ended(replace(TINY, steps=3, norm=Batch()), tmp_path / "half")
    whole = ended(TINY, tmp_path / "frozen")
    statistics = [name for name in half if "running" in name]
    assert statistics and all(torch.equal(half[name], whole[name]) for name in statistics)
    assert any(not torch.equal(half[name], whole[name]) for name in half)
    last = ended(replace(TINY, norm=BatchFrozen(0.9)), tmp_path / "late")  # not before the end: 5.4 of 6
    plain = ended(replace(TINY, norm=Batch()), tmp_path / "plain")
    assert all(torch.equal(last[name], plain[name]) for name in plain)


@pytest.mark.parametrize("together", [1, 4])
def test_fused_is_the_loop_on_both_sides_of_the_switch(together: int, tmp_path: Path) -> None:
    config = replace(TINY, batch=64 // together)
    loop, fused = (ended(replace(config, fused=f), tmp_path / f) for f in ("off", "on"))
    assert all(torch.allclose(fused[name], loop[name], rtol=0, atol=1e-10) for name in loop)


def test_on_real_devices_it_comes_with_the_state(tmp_path: Path) -> None:
    config = replace(TINY, algorithm=FedAvg(SGD(0.05), sync_every=2), devices=2, precision="fp32", steps=6)
    inline = ended(config, tmp_path / "inline")
    fleet = ended(replace(config, engine="fleet"), tmp_path / "fleet")
    assert all(torch.equal(fleet[name], inline[name]) for name in inline)


def test_the_switches_have_a_stretch_of_their_own_and_nothing_else_does() -> None:
    layout = assemble(TINY).model.layout
    assert layout.switches.stop - layout.switches.start == 20
    names = [e.name for e in layout.buffers if e.kind == "switch"]
    assert len(names) == 20 and all(name.endswith(".frozen") for name in names)
    assert assemble(replace(TINY, norm=Batch())).model.layout.switches == slice(0, 0)


@pytest.mark.parametrize("after", [0.0, 1.0, -1.0, float("nan")])
def test_shares_that_make_no_sense_are_refused(after: float) -> None:
    with pytest.raises(
        EdgewiseError, match=r"^norm: batch-frozen:.*legal: a share of the run above 0, below 1"
    ):
        BatchFrozen(after)
