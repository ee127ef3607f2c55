"""Conversion of any model's norms: what is exact stays exact, what is not is said, and every target
trains.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from edgewise.conversion import LEGAL, Conversion, convert, fold, recalibrate
from edgewise.conversion.folding import plain
from edgewise.conversion.layers import rebuilt
from edgewise.conversion.recalibration import Moments
from edgewise.conversion.residual import branches
from edgewise.errors import EdgewiseError
from edgewise.models import build
from edgewise.models.kinds import kinds
from edgewise.models.norms import NORMS, BatchRenorm2d, Group, WSConv2d
from edgewise.models.outputs import logits
from edgewise.vector import FlatModel, Layout

EXACT = ("batch", "batch-sync", "batch-local", "batch-renorm", "batch-frozen", "none")
every = pytest.mark.parametrize("name", LEGAL)


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after, eps=1e-3)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(after)
        self.short = nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.short(x))


def net(seed: int = 0) -> nn.Module:
    """A small residual net whose statistics and affine weights have left their start."""
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Block(8, 8), Block(8, 16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5), module.bias.normal_(0, 0.3)
        for _ in range(3):
            made.train()(images(16) * 2 + 1)
    return made


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


@every
def test_every_target_trains_a_step_and_leaves_the_original_alone(name: str) -> None:
    model, x = net(), images()
    before = copy.deepcopy(model.state_dict())
    made = convert(model, name, x)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    flat = FlatModel(made.model, Layout.of(made.model))
    flat.module.train()
    loss = nn.functional.cross_entropy(flat(x), torch.arange(8) % 5)
    loss.backward()
    assert torch.isfinite(flat.grads).all() and flat.grads.abs().max() > 0
    left = [m for m in made.model.modules() if type(m) is nn.BatchNorm2d]
    assert left == []


@every
def test_what_is_exact_answers_as_before(name: str) -> None:
    model, x = net(), images()
    made = convert(model, name, x)
    gap = (made.model.eval()(x) - model.eval()(x)).abs().max()
    assert made.exact == (name in EXACT)
    assert (gap < 1e-5) if made.exact else (gap > 1e-3)
    assert made.difference == pytest.approx(gap.item(), rel=1e-3, abs=1e-6)
    assert ("the same on paper" in made.text) and ("not the same on paper" in made.text) != made.exact


@pytest.mark.parametrize("name", [name for name in NORMS if name not in ("none", "batch-sync")])
def test_weights_eps_and_statistics_are_carried(name: str) -> None:
    model = net()
    made = convert(model, name, images())
    old, new = model.get_submodule("3.bn1"), made.model.get_submodule("3.bn1")
    assert torch.equal(new.weight, old.weight) and torch.equal(new.bias, old.bias)  # type: ignore[arg-type]
    assert new.eps == old.eps == 1e-3
    if name in EXACT:
        assert torch.equal(new.running_var, old.running_var)  # type: ignore[arg-type]
    assert {change.name for change in made.changes} >= {"1", "3.bn1", "3.bn2", "3.short.1"}


def test_group_ws_standardises_the_convolutions_that_feed_norms() -> None:
    made = convert(net(), "group-ws", images()).model
    assert isinstance(made.get_submodule("3.conv1"), WSConv2d)
    assert sum(isinstance(m, WSConv2d) for m in made.modules()) == 7


def test_fixup_starts_as_fixup_does() -> None:
    model, x = net(), images()
    found = branches(model, x)
    assert [branch.convs for branch in found] == [("3.conv1", "3.conv2"), ("4.conv1", "4.conv2")]
    assert [branch.shortcut for branch in found] == [("3.short.0",), ("4.short.0",)]
    made = convert(model, "fixup", x).model
    assert not made.eval()(x).any()  # the classifier is zero
    last, first = made.get_submodule("3.conv2"), made.get_submodule("3.conv1")
    assert not last.weight.any() and last.scale.item() == 1.0  # type: ignore[operator, arg-type]
    # Two branches of two convolutions: He's draw times 2 ** -0.5.
    assert float(first.weight.detach().std()) == pytest.approx((2 / (8 * 9) / 2) ** 0.5, rel=0.1)  # type: ignore[operator, union-attr, arg-type]
    kind = kinds(made)
    assert kind["3.conv2.scale"] == kind["3.conv1.before"] == "scalar" and kind["3.conv1.weight"] == "weight"


def test_folding_is_exact_and_takes_every_norm() -> None:
    model, x = net().double(), images().double()
    folded, names = fold(model, x)
    assert len(names) == 7 and not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert torch.allclose(folded(x), model.eval()(x), rtol=0, atol=1e-12)
    linear = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).double().eval()
    folded, names = fold(linear, torch.randn(3, 4).double())
    assert names == ["1"]


def test_what_cannot_be_folded_is_left() -> None:
    class Twice(nn.Module):
        """Whose convolution is read by another than its norm."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.bn.running_mean.fill_(0.7)  # type: ignore[union-attr]

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.bn(y).mean((2, 3)) + y.mean((2, 3))

    model = Twice().eval()
    folded, names = fold(model, images())
    assert names == [] and torch.equal(folded(images()), model(images()))


def test_standardised_weights_become_plain_ones() -> None:
    conv = rebuilt(WSConv2d, nn.Conv2d(3, 4, 3, stride=2, padding=1))
    assert type(plain(conv)) is nn.Conv2d and torch.allclose(plain(conv)(images()), conv(images()), atol=1e-6)


def test_moments_do_not_depend_on_the_batches() -> None:
    x = images(30).double() * 3 + 5
    moments = Moments()
    for part in x.split(7):
        moments.add(part)
    assert torch.allclose(moments.mean, x.mean((0, 2, 3)), atol=1e-12)
    assert torch.allclose(moments.variance, x.var((0, 2, 3), correction=0), atol=1e-12)


def test_recalibration_gives_each_norm_the_statistics_of_what_it_sees() -> None:
    model, x = net().double(), images(32).double()
    made = recalibrate(model, x.split(8))
    assert made.training == model.training
    seen: dict[str, Tensor] = {}
    for name, module in made.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, a, name=name: seen.update({name: a[0]}))
    made.eval()(x)
    assert len(seen) == 7
    for name, taken in seen.items():
        norm = made.get_submodule(name)
        assert torch.allclose(norm.running_mean, taken.mean((0, 2, 3)), atol=1e-10), name  # type: ignore[arg-type]
        assert torch.allclose(norm.running_var, taken.var((0, 2, 3), correction=0), atol=1e-10), name  # type: ignore[arg-type]


def test_batch_renorm_within_its_bounds_trains_on_what_evaluation_computes() -> None:
    layer = BatchRenorm2d(3, r_max=100.0, d_max=100.0).double()
    x = images(16).double() * 2 + 1
    before = copy.deepcopy(layer).eval()
    assert torch.allclose(layer.train()(x), before(x), atol=1e-9)
    plain_batch = BatchRenorm2d(3, r_max=1.0, d_max=0.0).double()
    assert torch.allclose(plain_batch(x), nn.BatchNorm2d(3).double()(x), atol=1e-12)
    assert not torch.equal(layer.running_mean, before.running_mean)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "norm", "says"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1)), "group", "no batch norm that is used"),
        (net(), "grupp", "'grupp' is unknown; one of: batch, .*group.*, fixup"),
        (net(), "group:0", "groups is 0"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4)), "instance", "one value"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4)), "batch", "2-D input"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "fixup", "no residual branches"),
        (nn.Sequential(nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)), "group", "fails on an example of shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_one_line(model: nn.Module, norm: str, says: str) -> None:
    with pytest.raises(EdgewiseError, match=says) as caught:
        convert(model, norm, images())
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def fixed() -> Conversion:
    """A ResNet50 of `transformers`, in float64, as Fixup."""
    images50 = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    model = build("transformers:resnet", (3, 32, 32), 10, 8, Group(), 0).double()
    found = branches(model, images50)
    assert [len(branch.convs) for branch in found] == [3] * 16
    assert [bool(branch.shortcut) for branch in found].count(True) == 4
    return convert(model, "fixup", images50)


def colours() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.slow
def test_a_resnet50_as_fixup_starts_as_its_stem_and_shortcuts(fixed: Conversion) -> None:
    net, x = copy.deepcopy(fixed.model).eval(), colours()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert len(fixed.changes) >= 53 + 48 and not fixed.exact
    with torch.no_grad():
        expected = net.get_submodule("resnet.embedder")(x)
        for stage in net.get_submodule("resnet.encoder.stages"):  # type: ignore[attr-defined]
            for layer in stage.layers:
                expected = torch.relu(layer.shortcut(expected))
        answer = net.get_submodule("resnet")(x).last_hidden_state
        assert torch.allclose(answer, expected, rtol=0, atol=1e-12) and expected.abs().max() > 0.01
        assert not net(x).logits.any(), "the classifier is zero"


@pytest.mark.slow
def test_a_resnet50_as_fixup_trains(fixed: Conversion) -> None:
    flat = FlatModel(copy.deepcopy(fixed.model).train(), Layout.of(fixed.model))
    x, y, losses, moved = colours(), torch.arange(4), [], []
    for _ in range(3):
        flat.grads.zero_()
        loss = nn.functional.cross_entropy(logits(flat(x)), y)
        loss.backward()
        losses.append(loss.item())
        moved.append(int((flat.grads != 0).sum()))
        assert torch.isfinite(flat.grads).all()
        with torch.no_grad():
            flat.params.add_(flat.grads, alpha=-0.01)
    assert losses[0] == pytest.approx(math.log(10)) and losses[2] < losses[1] < losses[0]
    # First only the classifier can move; then the last convolutions of the branches; then every convolution.
    assert moved[0] <= 10 * 2049 < moved[1] < moved[2]
    still = [n for n, p in flat.module.named_parameters() if p.dim() == 4 and not p.grad.any()]  # type: ignore[union-attr]
    assert still == []
