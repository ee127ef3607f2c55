"""The networks: sizes, initialisation, Fixup's facts, kinds of parameters, building by name."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from edgewise import randomness
from edgewise.errors import EdgewiseError
from edgewise.models import MODELS, build
from edgewise.models.fixup import FixupBlock, FixupResNet18
from edgewise.models.kinds import kind, kinds
from edgewise.models.norms import NORMS, Batch, Group, NoNorm
from edgewise.models.resnet import ResNet18, Shape, block_plan

CIFAR = (3, 32, 32)


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", NORMS)
def test_parameter_count(name: str) -> None:
    net = ResNet18(CIFAR, 10, norm=NORMS[name]())
    channels = 64 * (5 + 2 * 5 + 4 * 5 + 8 * 5)  # of all the norm layers: weight and bias each
    assert size(net) == 11_173_962 - (channels if name == "none" else 0)


def test_fixup_parameter_count() -> None:
    norms = 2 * 64 * (5 + 2 * 5 + 4 * 5 + 8 * 5)
    assert size(FixupResNet18(CIFAR, 10)) == 11_173_962 - norms + 8 * 5 + 2


@pytest.mark.parametrize(
    ("shape", "strides", "side"),
    [
        (CIFAR, [2, 2, 2], (4, 4)),
        ((1, 8, 8), [2, 2, 1], (2, 2)),
        ((3, 17, 13), [2, 2, 2], (3, 2)),
        ((1, 2, 9), [1] * 3, (2, 9)),
    ],
)
@pytest.mark.parametrize("make", MODELS.values())
def test_maps_halve_only_down_to_two(
    make: type[nn.Module], shape: Shape, strides: list[int], side: tuple[int, int]
) -> None:
    assert [stride for _, _, stride in block_plan(shape, 2)] == [
        1,
        1,
        strides[0],
        1,
        strides[1],
        1,
        strides[2],
        1,
    ]
    net = make(shape, 3, 2)
    seen: list[torch.Size] = []
    net.get_submodule("blocks").register_forward_hook(lambda _module, _given, out: seen.append(out.shape))
    assert net(torch.randn(2, *shape)).shape == (2, 3)
    assert seen == [torch.Size((2, 16, *side))]


def test_resnet_convolutions_start_he_normal_fan_out() -> None:
    torch.manual_seed(0)
    net = ResNet18(CIFAR, 10, width=32)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 20 and all(conv.bias is None for conv in convs)
    for conv in convs:
        expected = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.12)


def test_without_a_norm_convolutions_have_a_zero_bias() -> None:
    biases = [m.bias for m in ResNet18(CIFAR, 10, 4, NoNorm()).modules() if isinstance(m, nn.Conv2d)]
    assert len(biases) == 20 and all(bias is not None and not bias.any() for bias in biases)


def test_channels_are_those_of_resnet18() -> None:
    assert [after for _, after, _ in block_plan(CIFAR, 64)] == [64, 64, 128, 128, 256, 256, 512, 512]


# ---- Fixup ----


def fixup_blocks(net: nn.Module) -> list[FixupBlock]:
    return [m for m in net.modules() if isinstance(m, FixupBlock)]


def test_fixup_starts_at_zero_logits() -> None:
    net = FixupResNet18(CIFAR, 10, 4)
    assert not net(torch.randn(3, *CIFAR)).any()
    assert not net.classifier.weight.any() and not net.classifier.bias.any()


def test_fixup_branches_start_at_zero() -> None:
    blocks = fixup_blocks(FixupResNet18(CIFAR, 10, 4))
    assert len(blocks) == 8
    assert [block.shortcut is None for block in blocks] == [True, True, False, True, False, True, False, True]
    for block in blocks:
        x = torch.rand(2, block.conv1.in_channels, 6, 6)
        expected = x if block.shortcut is None else torch.relu(block.shortcut(x))
        assert torch.equal(block(x), expected)


def test_fixup_draws_scale_with_depth() -> None:
    torch.manual_seed(0)
    for block in fixup_blocks(FixupResNet18(CIFAR, 10, 32)):
        out = block.conv1.out_channels
        assert block.conv1.weight.std().item() == pytest.approx((2 / (9 * out)) ** 0.5 * 8**-0.5, rel=0.05)
        if block.shortcut is not None:
            assert block.shortcut.weight.std().item() == pytest.approx((2 / out) ** 0.5, rel=0.1)


def test_fixup_scalars_sit_where_the_paper_puts_them() -> None:
    block = FixupBlock(2, 3, 2, depth=8)
    values = {"bias1a": 0.3, "bias1b": -0.2, "bias2a": 0.7, "scale": 1.5, "bias2b": 0.1}
    with torch.no_grad():
        block.conv2.weight.normal_()
        for name, value in values.items():
            block.get_parameter(name).fill_(value)
    x = torch.randn(2, 2, 6, 6)
    assert block.shortcut is not None
    branch = block.conv2(torch.relu(block.conv1(x + 0.3) - 0.2) + 0.7) * 1.5 + 0.1
    assert torch.allclose(block(x), torch.relu(branch + block.shortcut(x + 0.3)), atol=1e-6)
    same = FixupBlock(2, 2, 1, depth=8)
    with torch.no_grad():
        same.bias1a.fill_(0.3)
    assert torch.equal(same(x), torch.relu(x))  # the plain identity gets no bias


def test_fixup_network_biases() -> None:
    net = FixupResNet18((1, 8, 8), 2, 2)
    with torch.no_grad():
        net.conv.weight.zero_()
        net.bias1.fill_(0.5)
        net.bias2.fill_(0.25)
        net.blocks = nn.Sequential()  # leaves the stem's two channels
        net.classifier = nn.Linear(2, 2, bias=False)
        net.classifier.weight.fill_(1)
    assert torch.equal(net(torch.randn(1, 1, 8, 8)), torch.full((1, 2), 2 * (0.5 + 0.25)))


def test_fixup_learns() -> None:
    torch.manual_seed(0)
    net = FixupResNet18((1, 8, 8), 3, 4)
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(3.0).log().item()) and losses[-1] < 0.5


# ---- kinds ----


@pytest.mark.parametrize("name", NORMS)
def test_kinds_of_resnet(name: str) -> None:
    net = ResNet18(CIFAR, 10, 4, NORMS[name]())
    found = kinds(net)
    assert list(found) == [parameter for parameter, _ in net.named_parameters()]
    without = name == "none"
    kind = "local" if name == "batch-local" else "norm"
    norm = {} if without else {kind: 40}
    assert Counter(found.values()) == {"weight": 21, "bias": 21 if without else 1} | norm
    assert found["classifier.bias"] == "bias" and found["conv.weight"] == "weight"
    assert without or found["norm.weight"] == found["norm.bias"] == kind


def test_kinds_of_fixup() -> None:
    found = kinds(FixupResNet18(CIFAR, 10, 4))
    assert Counter(found.values()) == {"weight": 1 + 16 + 3 + 1, "scalar": 2 + 8 * 5 + 1}
    assert {name for name, k in found.items() if k == "weight"} == {n for n in found if n.endswith(".weight")}
    assert found["classifier.bias"] == "scalar"


class Told(nn.Sequential):
    def parameter_kind(self, name: str) -> str | None:
        return {"0.bias": "scalar", "1.bias": "nonsense"}.get(name)


def test_kinds_of_other_layers_and_overrides() -> None:
    for layer in (nn.LayerNorm(3), nn.BatchNorm1d(3), nn.InstanceNorm2d(3, affine=True), nn.GroupNorm(1, 3)):
        assert set(kinds(layer).values()) == {"norm"}
    assert kinds(nn.LSTM(2, 2))["bias_ih_l0"] == "bias"
    net = Told(nn.Linear(2, 2), nn.Linear(2, 2))
    assert (kind(net, "0.bias"), kind(net, "0.weight")) == ("scalar", "weight")
    with pytest.raises(EdgewiseError, match=r"nonsense.*weight, bias, norm, scalar"):
        kind(net, "1.bias")
    with pytest.raises(AttributeError):
        kind(net, "2.bias")


# ---- build ----


@pytest.mark.parametrize("name", MODELS)
def test_initial_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(name, (1, 8, 8), 3, 4, Batch(), 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (build(name, (1, 8, 8), 3, 4, Batch(), seed) for seed in (7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    stem = "conv.weight"
    assert not torch.equal(first.get_parameter(stem), other.get_parameter(stem))
    torch.manual_seed(randomness.key(7, "model"))
    direct = MODELS[name](shape=(1, 8, 8), classes=3, width=4)
    assert torch.equal(first.get_parameter(stem), direct.get_parameter(stem))


def test_build_passes_width_and_norm() -> None:
    net = build("resnet18", CIFAR, 7, 12, Group(3), 0)
    assert net.get_parameter("classifier.weight").shape == (7, 96)
    layer = net.get_submodule("norm")
    assert isinstance(layer, nn.GroupNorm) and layer.num_groups == 3


SOURCE = """
from torch import nn
def pooled(channels, classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
def small(shape, classes): return pooled(shape[0], classes)
def wide(shape, classes, width, norm):
    return nn.Sequential(nn.Conv2d(shape[0], width, 1), norm.layer(width), *pooled(width, classes))
def few(shape, classes): return pooled(shape[0], classes - 1)
def strange(shape, classes): return nn.Linear(7, classes)
def wrong(shape, classes): return "no"
def odd(size): return nn.Identity()
def broken(shape, classes): raise RuntimeError("two\\nlines")
number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory, which only build puts on the path."""
    (tmp_path / "own_model_of_test.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "own_model_of_test", raising=False)
    return "own_model_of_test"


def test_build_calls_your_function(own: str) -> None:
    small = build(f"{own}:small", CIFAR, 5, 9, Group(), 0)
    assert small.get_parameter("2.weight").shape == (5, 3)
    assert torch.equal(
        small.get_parameter("2.weight"),
        build(f"{own}:small", CIFAR, 5, 9, Group(), 0).get_parameter("2.weight"),
    )
    wide = build(f"{own}:wide", CIFAR, 4, 9, Group(2), 0)
    assert wide.get_parameter("0.weight").shape == (9, 3, 1, 1)
    assert isinstance(wide.get_submodule("1"), nn.GroupNorm)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("wrong", "returned str"),
        ("odd", "TypeError"),
        ("few", r"gives \(2, 4\) for 2 images; it must give \(2, 5\)"),
        ("strange", "fails on images of shape"),
        ("broken", "RuntimeError: two lines"),
        ("number", "not a function"),
        ("absent", "absent"),
    ],
)
def test_your_function_fails_in_one_line(own: str, function: str, says: str) -> None:
    with pytest.raises(EdgewiseError, match=says) as caught:
        build(f"{own}:{function}", CIFAR, 5, 9, Group(), 0)
    assert "\n" not in str(caught.value) and function in str(caught.value)


@pytest.mark.parametrize("name", ["resnet", "", "no.such.module:net", ":net", "own:"])
def test_unknown_models_name_the_legal_ones(name: str) -> None:
    with pytest.raises(EdgewiseError, match=r"resnet18, fixup-resnet18, package\.module:function, or timm"):
        build(name, CIFAR, 10, 8, Group(), 0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("shape", "classes", "width", "says"),
    [
        (CIFAR, 10, 0, "width is 0"),
        (CIFAR, 0, 4, "0 classes"),
        ((0, 8, 8), 2, 4, "channel"),
        ((1, 1, 8), 2, 4, "2x2"),
    ],
)
def test_sizes_that_make_no_model(name: str, shape: Shape, classes: int, width: int, says: str) -> None:
    with pytest.raises(EdgewiseError, match=says):
        build(name, shape, classes, width, Group(), 0)
