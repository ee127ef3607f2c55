"""Each algorithm where the right answer is known: on quadratics in float64, by closed forms and by hand.

Three kinds of truth: a step or two with all numbers written out; three rounds beside plain NumPy loops that
follow the papers' own pseudo-code; and the points that an algorithm comes to rest at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from quadratics import Field, hills, solve
from torch import Tensor

from edgewise.algorithms import (
    FedACG,
    FedAdam,
    FedAvg,
    FedCM,
    FedDyn,
    FedNova,
    FedProx,
    FedYogi,
    Scaffold,
)
from edgewise.codecs import Feedback, TopK
from edgewise.optimizers import SGD

STILL = 1e-12
ALONE = SGD(0.1, momentum=0, weight_decay=0)
PUSHED = SGD(0.1, momentum=0.5, weight_decay=0)


def one_line() -> tuple[Tensor, Tensor]:
    """f_0 = (w - 1)^2 / 2 and f_1 = (w + 1)^2: gradients w - 1 and 2 (w + 1)."""
    double = torch.float64
    return torch.tensor([[[1.0]], [[2.0]]], dtype=double), torch.tensor([[1.0], [-1.0]], dtype=double)


def made(part: Any, sgd: SGD = ALONE, **settings: Any) -> FedAvg:
    return FedAvg(sgd, **{"sync_every": 2, **settings}, parts=() if part is None else (part,))


# ---- by hand: lr 0.1, two steps a device, from w = 0 ----


@pytest.mark.parametrize(
    ("algorithm", "states", "vectors"),
    [
        # Device 0 goes 0, 0.1, 0.19; device 1 goes 0, -0.2, -0.36.
        (made(None), [-0.085], {}),
        # m = -0.085; then device 0 sends 0.19 * 1.085, device 1 -0.36 * 0.915: m = -0.0425 - 0.061625.
        (made(None, server_momentum=0.5), [-0.085, -0.189125], {"momentum": -0.104125}),
        # Device 0: g = -1; -0.9 + 0.1, so 0.18. Device 1: g = 2; 1.6 - 0.2, so -0.34.
        (made(FedProx(1.0)), [-0.08], {}),
        # c_0 = -0.95, c_1 = 1.8, c = 0.425. Then g_0 = -1.085 + 1.375; -1.114 + 1.375: u_0 = -0.0551, and
        # g_1 = 1.83 - 1.375; 1.739 - 1.375: u_1 = -0.0819.  c = 0.0685 / 0.2.
        (made(Scaffold()), [-0.085, -0.1535], {"control": 0.3425}),
        # As FedProx, then g_0 = -0.18, g_1 = 0.34, h = 0.08, w = -0.08 - 0.08. Then u_0 = 0.1764,
        # u_1 = -0.2278: h = 0.08 + 0.0257, w = -0.16 - 0.0257 - 0.1057.
        (made(FedDyn(1.0)), [-0.16, -0.2914], {"mean_gradient": 0.1057}),
        # u_0 = 0.0975, u_1 = -0.19, D = 0.04625 / 0.2; then u_0 = 0.0794625, u_1 = -0.20318125.
        (made(FedCM(0.5)), [-0.04625, -0.108109375], {"direction": 0.309296875}),
        # As FedProx; then from -0.08 - 0.04: u_0 = 0.2016, u_1 = -0.2992: m = -0.04 - 0.0488.
        (made(FedACG(0.5, 1.0)), [-0.08, -0.1688], {"leading_momentum": -0.0888}),
        # m = -0.0425, v = 0.75 * 0.25 + 0.25 * 0.085^2.
        (
            made(FedAdam(0.5, 0.75, 0.5), server_lr=0.1),
            [-0.00425 / (math.sqrt(0.18930625) + 0.5)],
            {"first_moment": -0.0425, "second_moment": 0.18930625},
        ),
        # v = 0.25 - 0.25 * 0.085^2.
        (
            made(FedYogi(0.5, 0.75, 0.5), server_lr=0.1),
            [-0.00425 / (math.sqrt(0.24819375) + 0.5)],
            {"first_moment": -0.0425, "second_moment": 0.24819375},
        ),
    ],
    ids=["fedavg", "fedavgm", "fedprox", "scaffold", "feddyn", "fedcm", "fedacg", "fedadam", "fedyogi"],
)
def test_by_hand(algorithm: FedAvg, states: list[float], vectors: dict[str, float]) -> None:
    play = Field(algorithm, *one_line())
    assert [float(play.round()) for _ in states] == pytest.approx(states, abs=1e-15)
    found = {name: float(vector) for name, vector in play.server.vectors.items()}
    assert found == pytest.approx(vectors, abs=1e-15)


def test_fednova_by_hand() -> None:
    """Two steps on one device, one on the other: 0.19 and -0.2, or 0.095 and -0.2 a step, of 1.5 steps."""
    for part, state in ((FedNova(), 1.5 * (0.095 - 0.2) / 2), (None, -0.005)):
        assert float(Field(made(part), *one_line()).round(steps={1: 1})) == pytest.approx(state, abs=1e-15)


def test_the_reach_of_steps_by_hand() -> None:
    assert SGD(momentum=0).reach(3) == 3
    assert SGD(momentum=0.5).reach(3) == 1 + 1.5 + 1.75
    assert SGD(momentum=0.5, nesterov=True).reach(3) == (1 + 0.5) + (1 + 0.75) + (1 + 0.875)
    assert SGD(momentum=0.5).reach(0) == 0


# ---- three rounds beside NumPy ----

A, B = (tensor.numpy() for tensor in hills())
COHORTS = [(0, 1, 2, 3), (0, 2), (1, 2, 3)]
LR, K, EVERYONE = 0.1, 3, 4
Grad = Callable[[int, Any], Any]


def slope(device: int, v: Any) -> Any:
    return A[device] @ (v - B[device])


def descend(device: int, w: Any, correct: Callable[[Any, Any], Any], momentum: float, steps: int = K) -> Any:
    """Where a device ends: K steps of heavy-ball SGD from w."""
    v, m = w.copy(), np.zeros(3)
    for _ in range(steps):
        m = momentum * m + correct(slope(device, v), v)
        v = v - LR * m
    return v


def plain(g: Any, v: Any) -> Any:
    return g


def averaging(momentum: float, beta: float, rate: float) -> Iterator[Any]:
    w, m = np.zeros(3), np.zeros(3)
    for cohort in COHORTS:
        m = beta * m + np.mean([descend(d, w, plain, momentum) - w for d in cohort], axis=0)
        w = w + rate * m
        yield w


def proximal(momentum: float, mu: float) -> Iterator[Any]:
    w = np.zeros(3)
    for cohort in COHORTS:
        ends = [descend(d, w, lambda g, v, w=w: g + mu * (v - w), momentum) for d in cohort]
        w = np.mean(ends, axis=0)
        yield w


def controlled(momentum: float) -> Iterator[Any]:
    """Algorithm 1 of the paper with option II: the changes of the controls are averaged themselves."""
    w, c, own = np.zeros(3), np.zeros(3), [np.zeros(3) for _ in range(EVERYONE)]
    coefficients = sum(momentum**late for first in range(K) for late in range(K - first))
    for cohort in COHORTS:
        moves, changes = [], []
        for d in cohort:
            end = descend(d, w, lambda g, v, d=d, c=c: g - own[d] + c, momentum)
            new = own[d] - c + (w - end) / (LR * coefficients)
            moves.append(end - w)
            changes.append(new - own[d])
            own[d] = new
        w = w + np.mean(moves, axis=0)
        c = c + len(cohort) / EVERYONE * np.mean(changes, axis=0)
        yield w


def dynamic(momentum: float, alpha: float) -> Iterator[Any]:
    """Algorithm 1 of the paper: the sum over the cohort is divided by the number of all devices."""
    w, h, own = np.zeros(3), np.zeros(3), [np.zeros(3) for _ in range(EVERYONE)]
    for cohort in COHORTS:
        ends = []
        for d in cohort:
            end = descend(d, w, lambda g, v, d=d, w=w: g - own[d] + alpha * (v - w), momentum)
            own[d] = own[d] - alpha * (end - w)
            ends.append(end)
        h = h - alpha * sum(end - w for end in ends) / EVERYONE
        w = np.mean(ends, axis=0) - h / alpha
        yield w


def normalised(momentum: float) -> Iterator[Any]:
    """Unequal weights and steps: see `steps_of` and `weight_of`."""
    w = np.zeros(3)
    for cohort in COHORTS:
        total = sum(weight_of(d) for d in cohort)
        direction, pace = np.zeros(3), 0.0
        for d in cohort:
            steps, share = steps_of(d), weight_of(d) / total
            a = sum(momentum**late for first in range(steps) for late in range(steps - first))
            direction = direction + share * (w - descend(d, w, plain, momentum, steps)) / (LR * a)
            pace += share * a
        w = w - LR * pace * direction
        yield w


def steps_of(device: int) -> int:
    return 1 + 2 * device


def weight_of(device: int) -> float:
    return 1.0 + device


def along(momentum: float, alpha: float) -> Iterator[Any]:
    w, direction = np.zeros(3), np.zeros(3)
    coefficients = sum(momentum**late for first in range(K) for late in range(K - first))
    for cohort in COHORTS:
        ends = [
            descend(d, w, lambda g, v, D=direction: alpha * g + (1 - alpha) * D, momentum) for d in cohort
        ]
        step = np.mean(ends, axis=0) - w
        w, direction = w + step, -step / (LR * coefficients)
        yield w


def accelerated(momentum: float, beta: float, mu: float, rate: float) -> Iterator[Any]:
    w, m = np.zeros(3), np.zeros(3)
    for cohort in COHORTS:
        ahead = w + rate * beta * m
        ends = [descend(d, ahead, lambda g, v, a=ahead: g + mu * (v - a), momentum) for d in cohort]
        m = beta * m + np.mean(ends, axis=0) - ahead
        w = w + rate * m
        yield w


def adaptive(yogi: bool, rate: float, beta1: float, beta2: float, tau: float) -> Iterator[Any]:
    w, m, v = np.zeros(3), np.zeros(3), np.full(3, tau**2)
    for cohort in COHORTS:
        step = np.mean([descend(d, w, plain, 0.0) - w for d in cohort], axis=0)
        m = beta1 * m + (1 - beta1) * step
        if yogi:
            v = v - (1 - beta2) * step**2 * np.sign(v - step**2)
        else:
            v = beta2 * v + (1 - beta2) * step**2
        w = w + rate * m / (np.sqrt(v) + tau)
        yield w


@pytest.mark.parametrize(
    ("algorithm", "loop"),
    [
        (FedAvg(PUSHED, K, 0.7, 0.6), averaging(0.5, 0.6, 0.7)),
        (FedAvg(PUSHED, K, parts=(FedProx(0.8),)), proximal(0.5, 0.8)),
        (FedAvg(ALONE, K, parts=(Scaffold(),)), controlled(0.0)),
        (FedAvg(PUSHED, K, parts=(Scaffold(),)), controlled(0.5)),
        (FedAvg(PUSHED, K, parts=(FedDyn(0.4),)), dynamic(0.5, 0.4)),
        (FedAvg(ALONE, K, parts=(FedNova(),)), normalised(0.0)),
        (FedAvg(PUSHED, K, parts=(FedNova(),)), normalised(0.5)),
        (FedAvg(PUSHED, K, parts=(FedCM(0.3),)), along(0.5, 0.3)),
        (FedAvg(PUSHED, K, 0.5, parts=(FedACG(0.8, 0.2),)), accelerated(0.5, 0.8, 0.2, 0.5)),
        (FedAvg(ALONE, K, 0.3, parts=(FedAdam(0.8, 0.9, 0.2),)), adaptive(False, 0.3, 0.8, 0.9, 0.2)),
        (FedAvg(ALONE, K, 0.3, parts=(FedYogi(0.8, 0.9, 0.2),)), adaptive(True, 0.3, 0.8, 0.9, 0.2)),
    ],
    ids=lambda one: one.parts[0].__class__.__name__ if getattr(one, "parts", ()) else "",
)
def test_three_rounds_of_some_of_the_devices(algorithm: FedAvg, loop: Iterator[Any]) -> None:
    play, nova = Field(algorithm, *hills()), algorithm.parts == (FedNova(),)
    steps = {d: steps_of(d) for d in range(EVERYONE)} if nova else None
    weights = {d: weight_of(d) for d in range(EVERYONE)} if nova else None
    for cohort, expected in zip(COHORTS, loop, strict=True):
        found = play.round(cohort, steps, weights).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


# ---- where it comes to rest ----


def powers(matrices: Tensor, steps: Sequence[int]) -> Tensor:
    return torch.stack([torch.linalg.matrix_power(m, k) for m, k in zip(matrices, steps, strict=True)])


def stays(play: Field, point: Tensor, apart: float = STILL, **options: Any) -> bool:
    play.begin(point)
    return bool((play.round(**options) - point).abs().max() < apart)


def test_fedavg_rests_beside_the_optimum() -> None:
    """A device goes w -> b + M (w - b) with M = (1 - lr A)^K, so at rest the sum of (1 - M)(b - w) is 0."""
    curvatures, minima = hills()
    play, unit = Field(FedAvg(SGD(0.3, 0, 0), 5), curvatures, minima), torch.eye(3, dtype=torch.float64)
    rest = solve(unit - powers(unit - 0.3 * curvatures, [5] * 4), minima)
    assert stays(play, rest) and (rest - play.optimum).norm() > 0.1
    assert not stays(play, play.optimum)
    play.begin(torch.zeros(3, dtype=torch.float64))
    for _ in range(60):
        found = play.round()
    assert torch.allclose(found, rest, rtol=0, atol=1e-9)
    one = Field(FedAvg(SGD(0.3, 0, 0), 1), curvatures, minima)
    assert stays(one, one.optimum)  # at K = 1 there is no drift


def test_fedprox_rests_where_its_pull_allows() -> None:
    """With z = v - w a step is z <- N z - lr A (w - b), N = 1 - lr (A + mu): 1 - N^K of the way is gone."""
    curvatures, minima = hills()
    lr, mu, unit = 0.3, 0.7, torch.eye(3, dtype=torch.float64)
    held = curvatures + mu * unit
    way = (unit - powers(unit - lr * held, [5] * 4)) @ torch.linalg.inv(held) @ curvatures
    rest = solve(way, minima)
    play = Field(FedAvg(SGD(lr, 0, 0), 5, parts=(FedProx(mu),)), curvatures, minima)
    plain = solve(unit - powers(unit - lr * curvatures, [5] * 4), minima)
    assert stays(play, rest)
    assert (rest - play.optimum).norm() < 0.95 * (plain - play.optimum).norm()  # nearer, yet not there


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_fednova_minimises_the_right_objective_under_unequal_steps(momentum: float) -> None:
    """At small rates: FedAvg that in which devices count as often as they step, FedNova the one asked for."""
    curvatures, minima = hills()
    steps, shares = [1, 3, 10, 2], torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    options = {"steps": dict(enumerate(steps)), "weights": dict(enumerate(shares.tolist()))}
    sgd, unit = SGD(1e-4, momentum, 0), torch.eye(3, dtype=torch.float64)
    reach = torch.tensor([sgd.reach(k) for k in steps], dtype=torch.float64)
    # K heavy-ball steps are a power of one matrix over (way, momentum).
    ways = []
    for curvature, count in zip(curvatures, steps, strict=True):
        both = torch.cat(
            [
                torch.cat([unit - sgd.lr * curvature, -sgd.lr * momentum * unit], 1),
                torch.cat([curvature, momentum * unit], 1),
            ]
        )
        ways.append(unit - torch.linalg.matrix_power(both, count)[:3, :3])
    ways_of = torch.stack(ways)
    wanted = solve(shares[:, None, None] * curvatures, minima)
    wrong = solve((shares * reach)[:, None, None] * curvatures, minima)
    for part, weights, near in (((FedNova(),), shares / reach, wanted), ((), shares, wrong)):
        rest = solve(weights[:, None, None] * ways_of, minima)
        assert stays(Field(FedAvg(sgd, parts=part), curvatures, minima), rest, **options)
        assert (rest - near).norm() < 0.01 < 0.3 < (wanted - wrong).norm()


SOME = [(0, 1), (2, 3), (1, 2), (0, 3)]  # cohorts in turn


@pytest.mark.parametrize(
    ("part", "sgd", "rounds", "cohorts"),
    [
        (Scaffold(), SGD(0.3, 0, 0), 30, None),
        (Scaffold(), SGD(0.15, 0.5, 0), 40, None),
        (Scaffold(), SGD(0.15, 0.5, 0, nesterov=True), 40, None),
        (Scaffold(), SGD(0.2, 0, 0), 120, SOME),
        (FedDyn(1.0), SGD(0.3, 0, 0), 60, None),
        (FedDyn(1.0), SGD(0.15, 0.5, 0), 60, None),
        (FedDyn(1.0), SGD(0.2, 0, 0), 160, SOME),
    ],
)
def test_scaffold_and_feddyn_reach_the_optimum(
    part: Any, sgd: SGD, rounds: int, cohorts: list[tuple[int, ...]] | None
) -> None:
    """To within a hundredth of a thousandth, where FedAvg comes to rest a hundredth away, or more."""
    play = Field(FedAvg(sgd, 4, parts=(part,)), *hills())
    for number in range(rounds):
        play.round(cohorts and cohorts[number % len(cohorts)])
    assert (play.server.state.params - play.optimum).norm() < 1e-5
    assert not stays(Field(FedAvg(sgd, 4), *hills()), play.optimum, apart=0.01)


def test_fedcm_with_one_step_is_sgd_with_momentum() -> None:
    curvatures, minima = hills()
    play = Field(FedAvg(SGD(0.3, 0, 0), 1, parts=(FedCM(0.2),)), curvatures, minima)
    w, m, mean = np.zeros(3), np.zeros(3), lambda w: np.mean([slope(d, w) for d in range(4)], axis=0)
    for _ in range(60):
        m = 0.2 * mean(w) + 0.8 * m
        w = w - 0.3 * m
        found = play.round()
        assert np.abs(found.numpy() - w).max() < 1e-12
    assert (found - play.optimum).norm() < 1e-3


def test_fedacg_with_one_step_is_nesterov_s_accelerated_gradient() -> None:
    curvatures, minima = hills()
    play = Field(FedAvg(SGD(0.3, 0, 0), 1, parts=(FedACG(0.6, 0.0),)), curvatures, minima)
    w, m = np.zeros(3), np.zeros(3)
    for _ in range(60):
        m = 0.6 * m - 0.3 * np.mean([slope(d, w + 0.6 * m) for d in range(4)], axis=0)
        w = w + m
        found = play.round()
        assert np.abs(found.numpy() - w).max() < 1e-12
    assert (found - play.optimum).norm() < 1e-3


# ---- what the server keeps is what it stands for ----


@pytest.mark.parametrize(
    ("part", "kept", "own"),
    [(Scaffold(), "control", "control"), (FedDyn(0.4), "mean_gradient", "gradient")],
)
@pytest.mark.parametrize("sgd", [ALONE, PUSHED])
def test_the_server_s_vector_is_the_mean_of_all_devices_own(part: Any, kept: str, own: str, sgd: SGD) -> None:
    """Derived from the mean update alone, with cohorts, and at a rate that changes."""
    play = Field(FedAvg(sgd, 3, server_lr=1.0, parts=(part,)), *hills())
    for number in range(12):
        play.round(SOME[number % 4], factor=1.0 - 0.05 * number)
        zero = torch.zeros(3, dtype=torch.float64)
        mean = torch.stack([one.get(own, zero) for one in play.memories]).mean(0)
        assert torch.allclose(play.server.vectors[kept], mean, rtol=0, atol=1e-13)


def test_scaffold_is_ahead_by_what_devices_owe_where_a_codec_loses() -> None:
    play = Field(FedAvg(ALONE, 3, parts=(Scaffold(),)), *hills(), codec=Feedback(TopK(0.34)))
    for _ in range(9):
        play.round()
        mean = torch.stack([one["control"] for one in play.memories]).mean(0)
        owed = torch.stack([one["residual"] for one in play.owed]).mean(0)
        assert owed.norm() > 1e-3
        assert torch.allclose(play.server.vectors["control"] - mean, owed / (0.1 * 3), rtol=0, atol=1e-12)


def test_a_round_at_rate_zero_teaches_nothing() -> None:
    for part in (Scaffold(), FedCM(0.3), FedDyn(0.4)):
        play = Field(FedAvg(PUSHED, 3, parts=(part,)), *hills())
        play.round()
        before = {name: vector.clone() for name, vector in play.server.vectors.items()}
        own = [dict(one) for one in play.memories]
        play.round(factor=0.0)
        assert all(torch.equal(play.server.vectors[name], vector) for name, vector in before.items())
        for one, other in zip(own, play.memories, strict=True):
            assert all(torch.equal(other[name], vector) for name, vector in one.items())
