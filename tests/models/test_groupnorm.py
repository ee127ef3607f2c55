"""The compiled group norm is PyTorch's, a sum and a ReLU: values, gradients, whole runs."""

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import edgewise
from edgewise import Config, EdgewiseError, models
from edgewise.models import build
from edgewise.models.groupnorm import GroupNorm, compile_norms, relu
from edgewise.models.norms import Group, Instance, Layer, Norm

pytest.importorskip("numba")

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 0.03}
THEN: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "norm": lambda norm, x, _: norm(x),
    "relu": lambda norm, x, _: relu(norm, x),
    "added": relu,
}


def tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int, mean: float = 0.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def both(then: str, shape: tuple[int, int, int, int], groups: int, dtype: torch.dtype, mean: float = 0.0):
    """Output and gradients of PyTorch's layers, in float64 on the same values, and of the compiled one."""
    inner = torch.float64 if dtype == torch.float64 else torch.float32
    plain = GroupNorm(groups, shape[1], dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(tensor((shape[1], 1, 1, 1), inner, 1).flatten())
        plain.bias.copy_(tensor((shape[1], 1, 1, 1), inner, 2).flatten())
    compiled = copy.deepcopy(plain).to(inner)
    assert compile_norms(compiled) == 1
    given = [tensor(shape, dtype, 3, mean), tensor(shape, dtype, 4), tensor(shape, dtype, 5)]
    results = []
    for norm, wide in ((plain, torch.float64), (compiled, dtype)):
        x, added, slope = (value.to(wide) for value in given)
        x.requires_grad_()
        added.requires_grad_()
        out = THEN[then](norm, x, added)
        wanted = [x, norm.weight, norm.bias, *([added] if then == "added" else [])]
        results.append((out, *torch.autograd.grad(out, wanted, slope)))
    return results


@pytest.mark.parametrize("then", THEN)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((3, 16, 8, 8), 4), ((2, 128, 4, 4), 32), ((2, 12, 5, 3), 3), ((1, 4, 1, 1), 1), ((2, 6, 7, 7), 6)],
)
def test_values_and_gradients_are_those_of_pytorch(
    then: str, dtype: torch.dtype, shape: tuple[int, int, int, int], groups: int
) -> None:
    plain, compiled = both(then, shape, groups, dtype)
    assert compiled[0].dtype == dtype
    if dtype == torch.bfloat16 and then != "norm":
        # What rounds to zero passes in one and not in the other; the next test is for those gradients.
        plain, compiled = plain[:1], compiled[:1]
    for one, other in zip(plain, compiled, strict=True):
        scale = one.abs().max().clamp_min(1e-30)
        assert ((one - other.double()).abs().max() / scale).item() < TOLERANCE[dtype]


@pytest.mark.parametrize("then", ["relu", "added"])
def test_in_bf16_gradients_are_those_of_the_output_that_it_made(then: str) -> None:
    """Of float32's arithmetic on the same bf16 values, with the ReLU open where the output is not zero."""
    shape, dtype = (2, 16, 8, 8), torch.bfloat16
    norm = GroupNorm(4, 16)
    compile_norms(norm)
    x, added, slope = (tensor(shape, dtype, seed).requires_grad_(seed < 5) for seed in (3, 4, 5))
    out = relu(norm, x, added if then == "added" else None)
    mine = torch.autograd.grad(out, (x, norm.weight, norm.bias), slope)
    wide = x.detach().float().requires_grad_()
    plain = F.group_norm(wide, 4, norm.weight, norm.bias, norm.eps)
    theirs = torch.autograd.grad(plain, (wide, norm.weight, norm.bias), slope.float() * (out > 0))
    for one, other in zip(theirs, mine, strict=True):
        assert torch.allclose(one, other.float(), rtol=0.01, atol=1e-2 * float(one.abs().max()))


@pytest.mark.parametrize("then", THEN)
def test_bf16_is_float32_rounded_as_pytorch_rounds_it(then: str) -> None:
    norm = GroupNorm(4, 16)
    compile_norms(norm)
    x, added = (tensor((2, 16, 8, 8), torch.bfloat16, seed) for seed in (1, 2))
    exact = THEN[then](norm, x.float(), added.float())
    assert torch.equal(THEN[then](norm, x, added), exact.to(torch.bfloat16))


def test_a_nan_of_any_bits_is_one_in_bf16() -> None:
    """Rounded like a number, the one whose bits are all ones would become zero."""
    norm = GroupNorm(1, 4)
    compile_norms(norm)
    with torch.no_grad():
        norm.weight.copy_(torch.full((4,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32))
    assert norm(tensor((1, 4, 4, 4), torch.bfloat16, 1)).isnan().all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9),
    st.sampled_from(sorted(THEN)),
)  # fmt: skip
def test_any_shape(n: int, groups: int, share: int, high: int, broad: int, then: str) -> None:
    if share * high * broad == 1:
        return  # a group of one value: its variance is zero, and PyTorch refuses it in training
    plain, compiled = both(then, (n, groups * share, high, broad), groups, torch.float64)
    for one, other in zip(plain, compiled, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-8)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    plain, compiled = both("norm", (2, 16, 8, 8), 4, torch.float32, mean=1000.0)
    assert (plain[0] - compiled[0].double()).abs().max() < 2e-3  # float32 of 1000 has 6e-5 itself


@pytest.mark.parametrize("far", [30.0, 1000.0])
@pytest.mark.parametrize("place", [(0, 0), (0, 31), (17, 3)])
def test_a_place_far_from_the_mean_costs_few_digits(place: tuple[int, int], far: float) -> None:
    x = tensor((2, 16, 32, 32), torch.float32, 1)
    x[:, :, place[0], place[1]] = far
    norm = GroupNorm(4, 16)
    exact = F.group_norm(x.double(), 4)
    compile_norms(norm)
    assert (norm(x) - exact).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"\x80no pickle"], ids=["empty", "no pickle"])
def test_what_is_kept_and_damaged_is_done_without(damage: bytes, tmp_path: Path) -> None:
    program = (
        "import torch; from edgewise.models.groupnorm import GroupNorm, compile_norms;"
        "norm = GroupNorm(2, 8); compile_norms(norm); x = torch.ones(1, 8, 2, 2);"
        "print(norm(x.contiguous(memory_format=torch.channels_last)).abs().max().item())"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "0.0\n"
        kept = list(tmp_path.rglob("*.nbi"))
        assert kept
        for file in kept:
            file.write_bytes(damage)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("added", [False, True])
def test_what_is_not_finite_is_not_hidden(dtype: torch.dtype, added: bool) -> None:
    norm = GroupNorm(2, 8, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    compile_norms(norm)
    x, more = tensor((2, 8, 4, 4), dtype, 1), tensor((2, 8, 4, 4), dtype, 2)
    x[0, 0, 0, 0] = float("nan")
    out = relu(norm, x, more if added else None)
    assert out[0, :4].isnan().all() and out[0, 4:].isfinite().all() and out[1].isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_nothing_is_left_to_compile_in_the_first_step(dtype: torch.dtype) -> None:
    norm = GroupNorm(2, 8, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    compile_norms(norm, dtype)
    kernels = models.kernels
    before = len(kernels.normalise.signatures), len(kernels.differentiate.signatures)
    x = tensor((2, 8, 4, 4), dtype, 1).requires_grad_()
    relu(norm, x, tensor((2, 8, 4, 4), dtype, 2)).sum().backward()
    assert (len(kernels.normalise.signatures), len(kernels.differentiate.signatures)) == before


def test_what_does_not_fit_is_pytorchs() -> None:
    norm = GroupNorm(2, 8)
    compile_norms(norm)
    last = tensor((2, 8, 4, 4), torch.float32, 1)
    cases = {
        "flat": last.flatten(2),
        "empty": last[:0],
        "other type": last.double(),
    }
    for name, x in cases.items():
        twin = nn.GroupNorm(2, 8)
        try:
            expected = twin(x)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=re.escape(str(error)[:20])):
                norm(x)
        else:
            assert torch.equal(norm(x), expected), name
    for added in (tensor((2, 8, 1, 1), torch.float32, 2), last.double()):
        assert torch.equal(relu(norm, last, added), F.relu(norm(last) + added))


def test_however_the_input_lies_it_is_compiled() -> None:
    norm = GroupNorm(2, 8)
    compile_norms(norm)
    x, added = tensor((2, 8, 4, 4), torch.float32, 1), tensor((2, 8, 4, 4), torch.float32, 2)
    wide = torch.zeros(2, 8, 4, 8)
    wide[..., ::2] = x
    for lying in (x.contiguous(), x.transpose(2, 3).contiguous().transpose(2, 3), wide[..., ::2]):
        assert torch.equal(norm(lying), norm(x))
        assert torch.equal(relu(norm, lying, added.contiguous()), relu(norm, x, added))
        one, other = (part.clone().requires_grad_() for part in (lying, x))
        for part in (one, other):
            relu(norm, part, added).square().sum().backward()
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


def test_hooks_see_the_norm_and_not_the_relu() -> None:
    norm, seen = GroupNorm(2, 8), []
    compile_norms(norm)
    norm.register_forward_hook(lambda _module, _args, out: seen.append(out))
    relu(norm, tensor((2, 8, 4, 4), torch.float32, 1))
    assert len(seen) == 1 and (seen[0] < 0).any()


@pytest.mark.parametrize("norm", [Group(4), Layer(), Instance()], ids=str)
def test_a_model_is_the_same_within_rounding(norm: Norm) -> None:
    model = build("resnet18", (3, 8, 8), 10, 4, norm, 0).double()
    twin = copy.deepcopy(model)
    assert compile_norms(twin) == 20 and str(twin) == str(model)
    x = tensor((4, 3, 8, 8), torch.float64, 7)
    for one in (model, twin):
        one(x).square().sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-10 * float(one.grad.abs().max()))


def finish(config: Config, out: Path) -> None:
    for _ in edgewise.run(config, out):
        pass


RUN = {"devices": 3, "steps": 4, "width": 4, "batch": 8, "eval_every": 0, "precision": "fp64"}


@pytest.mark.parametrize("algorithm", ["sync-sgd", "fedavg"])
def test_a_run_ends_in_the_same_model(algorithm: str, tmp_path: Path) -> None:
    ends = []
    for kernels in ("torch", "compiled"):
        config = Config.of({**RUN, "algorithm": algorithm, "kernels": kernels})
        finish(config, tmp_path / kernels)
        assert f'kernels = "{kernels}"' in (tmp_path / kernels / "config.toml").read_text()
        parts = load_file(tmp_path / kernels / "model.safetensors")
        ends.append(torch.cat([parts[name].flatten() for name in sorted(parts)]))
    assert not torch.equal(*ends)  # or it was the same code
    assert torch.allclose(*ends, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm": "batch"}, "no group norm"),
        ({"model": "fixup-resnet18"}, "no group norm"),
        ({"threads": 2}, "one thread"),
        ({"algorithm": "fedavg", "fused": "on"}, "mapped"),
    ],
)
def test_compiled_is_refused_where_it_cannot_be(
    settings: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(EdgewiseError, match=f"^kernels: cannot be compiled: .*{words}"):
        finish(Config.of({**RUN, **settings, "kernels": "compiled"}), tmp_path / "run")


def test_auto_compiles_long_runs_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edgewise.assemble import assemble

    sizes = {**RUN, "precision": "fp32"}
    assert assemble(Config.of(sizes)).config.kernels == "torch"
    long = {**sizes, "width": 64, "batch": 32, "steps": 4_000}
    parts = assemble(Config.of(long))
    assert parts.config.kernels == "compiled" and parts.model.module.norm.compiled
    assert assemble(Config.of({**long, "norm": "batch"})).config.kernels == "torch"
    assert assemble(Config.of({**long, "steps": 4})).config.kernels == "torch"  # as large passes, few of them
    small = {**long, "batch": 8, "steps": 16_000, "fused": "off"}  # as long, in small passes
    assert assemble(Config.of(small)).config.kernels == "torch"
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it could not be imported
    monkeypatch.delitem(sys.modules, "edgewise.models.kernels")
    monkeypatch.delattr(models, "kernels")
    assert assemble(Config.of(long)).config.kernels == "torch"
    with pytest.raises(EdgewiseError, match="pip install 'edgewise\\[compiled\\]'"):
        assemble(Config.of({**long, "kernels": "compiled"}))
