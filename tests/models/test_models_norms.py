"""Norms by their contract: every norm on every shape, and batch norm by device against the loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import EdgewiseError
from edgewise.models.norms import (
    NORMS,
    DeviceBatchNorm2d,
    Group,
    GroupWS,
    SyncedBatchNorm2d,
    WSConv2d,
    batch_coupled,
    set_devices,
)
from edgewise.models.resnet import ResNet18, Shape

SHAPES = [(3, 32, 32), (1, 8, 8), (3, 17, 13)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
every_norm = pytest.mark.parametrize("name", NORMS)
TOGETHER = {"batch", "batch-sync", "batch-local", "batch-renorm", "batch-frozen"}


def model(name: str, shape: Shape, width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return ResNet18(shape, 5, width, NORMS[name]()).double()


def images(count: int, shape: Shape) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@shapes
@every_norm
def test_gradient_is_finite_and_reaches_the_stem(name: str, shape: Shape) -> None:
    net = model(name, shape)
    logits = net(images(4, shape))
    assert logits.shape == (4, 5)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(gradients) == len(list(net.parameters()))
    assert all(g.isfinite().all() for g in gradients)
    stem = net.get_parameter("conv.weight").grad
    assert stem is not None and stem.abs().max() > 1e-6


@shapes
@every_norm
def test_eval_sees_one_sample_at_a_time(name: str, shape: Shape) -> None:
    net = model(name, shape)
    net(images(8, shape))  # moves the running statistics off their start
    net.eval()
    x = images(4, shape)
    assert torch.allclose(net(x), torch.cat([net(one) for one in x.chunk(4)]), rtol=0, atol=1e-12)


@shapes
@every_norm
def test_training_mixes_samples_only_with_batch_norms(name: str, shape: Shape) -> None:
    net = model(name, shape)
    x = images(6, shape)
    gap = (net(x)[:2] - net(x[:2])).abs().max()
    assert (gap > 1e-3) if name in TOGETHER else (gap < 1e-12)


@every_norm
@pytest.mark.parametrize("width", [1, 2, 4, 6, 10])
def test_narrow_widths_train(name: str, width: int) -> None:
    net = model(name, (1, 8, 8), width)
    net(images(3, (1, 8, 8))).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@every_norm
def test_normalised_layers_have_zero_mean_and_unit_variance(name: str) -> None:
    layer = NORMS[name]().layer(12).double()
    x = 3 * images(5, (12, 7, 7)) + 2
    y = layer(x)
    if name == "none":
        assert torch.equal(y, x)
        return
    if name == "batch-renorm":  # normalises to what the running statistics say
        return
    batches = dict.fromkeys(("batch", "batch-sync", "batch-local", "batch-frozen"), (0, 2, 3))
    over = {**batches, "layer": (1, 2, 3), "instance": (2, 3)}
    y = y if name in over else y.unflatten(1, (3, 4))  # twelve channels: three groups of four
    variance, mean = torch.var_mean(y, over.get(name, (2, 3, 4)), correction=0)
    assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-10)
    assert torch.allclose(variance, torch.ones_like(variance), atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "asked", "given"),
    [
        (1, 32, 1),
        (2, 32, 1),
        (3, 32, 1),
        (4, 32, 1),
        (6, 4, 1),
        (8, 32, 2),
        (10, 32, 2),
        (12, 2, 2),
        (20, 32, 5),
        (64, 32, 16),
        (128, 32, 32),
        (512, 32, 32),
        (64, 8, 8),
    ],
)
def test_groups_divide_and_keep_four_channels(channels: int, asked: int, given: int) -> None:
    for norm in (Group(asked), GroupWS(asked)):
        layer = norm.layer(channels)
        assert isinstance(layer, nn.GroupNorm)
        assert (layer.num_groups, layer.eps) == (given, 1e-5)


@pytest.mark.parametrize("norm", [Group, GroupWS])
def test_groups_below_one_are_refused(norm: type[Group]) -> None:
    with pytest.raises(EdgewiseError, match="groups is 0"):
        norm(0)


def test_weight_standardisation_keeps_variance_and_ignores_shift_and_scale() -> None:
    torch.manual_seed(0)
    conv = WSConv2d(16, 200, 3, bias=False).double()
    x = images(20, (16, 5, 5))
    y = conv(x)
    assert abs(y.var() - 1) < 0.1
    assert torch.allclose(conv(x + 7), y, atol=1e-10)  # each filter sums to zero
    with torch.no_grad():
        conv.weight.mul_(5).add_(3)
    assert torch.allclose(conv(x), y, atol=1e-3)
    assert NORMS["group-ws"]().conv is WSConv2d


def test_a_fan_in_of_one_is_not_standardised_away() -> None:
    conv = WSConv2d(1, 3, 1, bias=False)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(conv(x), nn.functional.conv2d(x, conv.weight))


def separately(start: nn.BatchNorm2d, x: Tensor, up: Tensor, devices: int) -> dict[str, Tensor]:
    """The reference: each device runs PyTorch's own BatchNorm2d from the same start."""
    x = x.clone().requires_grad_()
    outputs, layers = [], []
    for piece in x.chunk(devices):
        layer = nn.BatchNorm2d(start.num_features).to(x.dtype)
        layer.load_state_dict(start.state_dict(), strict=False)
        layers.append(layer)
        outputs.append(layer(piece))
    y = torch.cat(outputs)
    y.backward(up)
    assert x.grad is not None
    found = {"y": y, "x": x.grad}
    found["weight"] = torch.stack([p.weight.grad for p in layers if p.weight.grad is not None]).sum(0)
    found["bias"] = torch.stack([p.bias.grad for p in layers if p.bias.grad is not None]).sum(0)
    for name in ("running_mean", "running_var"):
        found[name] = torch.stack([p.get_buffer(name) for p in layers]).mean(0)
    return found


def found_by(layer: nn.BatchNorm2d, x: Tensor, up: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(up)
    gradients = {"x": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
    statistics = {"running_mean": layer.running_mean, "running_var": layer.running_var}
    return {"y": y} | {k: v for k, v in (gradients | statistics).items() if v is not None}


def started(layer: nn.BatchNorm2d) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(2)
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return layer.double()


@pytest.mark.parametrize("devices", [1, 2, 5])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_device_batch_norm_is_the_loop_over_devices(devices: int, order: torch.memory_format) -> None:
    layer = started(DeviceBatchNorm2d(3))
    shift = torch.arange(10, dtype=torch.float64).view(10, 1, 1, 1)  # devices differ
    x = (images(10, (3, 3, 2)) * (1 + shift) + shift).to(memory_format=order)
    up = images(10, (3, 3, 2)).flip(0).to(memory_format=order)
    expected = separately(copy.deepcopy(layer), x, up, devices)
    set_devices(nn.Sequential(layer), devices)
    found = found_by(layer, x, up)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-10, atol=1e-10), name
    assert found["y"].is_contiguous(memory_format=order)


def test_device_batch_norm_in_eval_uses_running_statistics() -> None:
    layer = started(DeviceBatchNorm2d(3)).eval()
    x = images(5, (3, 4, 4))
    plain = layer(x)
    set_devices(layer, 2)  # five images do not divide by two, which matters in training only
    before = copy.deepcopy(layer.state_dict())
    assert torch.equal(layer(x), plain)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_an_uneven_batch_is_refused_and_leaves_the_statistics() -> None:
    layer = DeviceBatchNorm2d(3)
    set_devices(layer, 4)
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"batch of {count} does not divide into 4"):
            layer(torch.randn(count, 3, 2, 2))
    assert layer.running_mean is not None and not layer.running_mean.any()


def test_one_value_a_channel_is_refused() -> None:
    layer = DeviceBatchNorm2d(3)
    set_devices(layer, 4)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.randn(4, 3, 1, 1))


def test_devices_start_at_one_and_stay_above_zero() -> None:
    assert DeviceBatchNorm2d(3).devices == 1
    with pytest.raises(ValueError, match="devices is 0"):
        set_devices(DeviceBatchNorm2d(3), 0)


@pytest.mark.parametrize("make", [DeviceBatchNorm2d, SyncedBatchNorm2d])
def test_on_one_batch_they_are_plain_batch_norm(make: type[nn.BatchNorm2d]) -> None:
    layer = started(make(3))
    plain = nn.BatchNorm2d(3).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    x, up = images(6, (3, 4, 4)), images(6, (3, 4, 4)).flip(0)
    set_devices(layer, 1)
    expected = found_by(plain, x, up)
    assert all(torch.equal(value, expected[name]) for name, value in found_by(layer, x, up).items())


def test_synced_batch_norm_ignores_devices() -> None:
    net = nn.Sequential(SyncedBatchNorm2d(3))
    x = torch.randn(6, 3, 4, 4)
    whole = net(x)
    set_devices(net, 2)
    assert torch.equal(net(x), whole)


@pytest.mark.parametrize("make", [DeviceBatchNorm2d, SyncedBatchNorm2d])
def test_the_batch_counter_never_travels(make: type[nn.BatchNorm2d]) -> None:
    layer = make(3)
    assert [name for name, _ in layer.named_buffers()] == ["running_mean", "running_var"]
    layer(torch.randn(4, 3, 2, 2))
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    assert "num_batches_tracked" not in state
    fresh = make(3)
    fresh.load_state_dict(state)  # a plain dict, as read from safetensors: strict, and no version
    assert all(torch.equal(state[name], value) for name, value in fresh.state_dict().items())
    fresh.reset_running_stats()
    assert fresh.running_mean is not None and fresh.running_var is not None
    assert not fresh.running_mean.any() and (fresh.running_var == 1).all()


def test_batch_coupled_names_what_bars_a_joint_batch() -> None:
    net = nn.Sequential(
        nn.BatchNorm2d(3), nn.Dropout(0.1), nn.Dropout2d(0.0), DeviceBatchNorm2d(3), SyncedBatchNorm2d(3)
    )
    net.add_module(
        "inner", nn.Sequential(nn.SyncBatchNorm(3), nn.GroupNorm(1, 3), nn.RReLU(), nn.AlphaDropout(0.2))
    )
    assert batch_coupled(net) == ["0", "1", "inner.0", "inner.2", "inner.3"]
    assert batch_coupled(nn.BatchNorm1d(3)) == [""]


@every_norm
def test_no_norm_of_ours_bars_a_joint_batch(name: str) -> None:
    found = batch_coupled(model(name, (1, 8, 8)))
    apart = ("batch-renorm", "batch-local")  # the correction has no fused form; each device has its own norms
    assert len(found) == (20 if name in apart else 0)
