"""The contract of every algorithm, and one step of each checked by hand on a model of two weights.

An algorithm listed in ALGORITHMS needs a row in SETTINGS; whole runs against plain PyTorch are in
tests/test_exact.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from edgewise.algorithms import (
    ALGORITHMS,
    PARTS,
    SAM,
    Algorithm,
    Centralise,
    Clip,
    Combined,
    FedACG,
    FedAdam,
    FedAvg,
    FedCM,
    FedDyn,
    FedLC,
    FedLMD,
    FedNova,
    FedNTD,
    FedProx,
    FedRS,
    FedYogi,
    Own,
    Scaffold,
    SyncSGD,
    parse,
    text,
)
from edgewise.errors import EdgewiseError
from edgewise.local import Batch
from edgewise.optimizers import SGD
from edgewise.vector import FlatModel, Layout, Mean, State


def added(part: Any, sgd: SGD = SGD(0.05, 0.5)) -> FedAvg:  # noqa: B008
    return FedAvg(sgd, sync_every=3, parts=(part,))


SETTINGS: dict[str, list[Algorithm]] = {
    "sync-sgd": [SyncSGD(SGD(0.1)), SyncSGD(SGD(0.1, 0, 0)), SyncSGD(SGD(0.1, nesterov=True))],
    "fedavg": [
        FedAvg(SGD(0.1)),
        FedAvg(SGD(0.1, 0, 0), sync_every=1),
        FedAvg(SGD(0.1), sync_every=3, server_lr=0.5, server_momentum=0.5),
        FedAvg(SGD(0.1), sync_every=2, local_momentum="keep"),
        FedAvg(SGD(0.1), sync_every=2, server_momentum=0.5, local_momentum="average"),
        FedAvg(SGD(0.1), sync_every=2, parts=(FedLMD(), FedCM(0.5), FedNova(), Centralise(), Clip(), SAM())),
        FedAvg(SGD(0.1), sync_every=2, server_momentum=0.5, parts=(Scaffold(), FedNova(), FedLC())),
    ],
    "fedavgm": [FedAvg(SGD(0.1, 0), sync_every=2, server_momentum=0.9)],
    "fedprox": [added(FedProx(1.0))],
    "scaffold": [added(Scaffold()), added(Scaffold(), SGD(0.05, 0.9, nesterov=True))],
    "feddyn": [added(FedDyn(0.5))],
    "fednova": [added(FedNova())],
    "fedadam": [FedAvg(SGD(0.1), 2, server_lr=0.05, parts=(FedAdam(),))],
    "fedyogi": [FedAvg(SGD(0.1), 2, server_lr=0.05, parts=(FedYogi(),))],
    "fedcm": [added(FedCM(0.3))],
    "fedacg": [added(FedACG(0.6))],
    "fedlc": [added(FedLC())],
    "fedrs": [added(FedRS())],
    "fedntd": [added(FedNTD(0.5, 2.0))],
    "fedlmd": [added(FedLMD(0.5, 2.0))],
    "sam": [added(SAM())],
    "centralise": [added(Centralise())],
    "clip": [added(Clip(0.5))],
}
EVERY = [algorithm for algorithms in SETTINGS.values() for algorithm in algorithms]
every_algorithm = pytest.mark.parametrize("algorithm", EVERY, ids=repr)
DEVICES, CLASSES, SIZE = 3, 3, 12
COUNTS = torch.tensor([40, 30, 20])


def tiny() -> FlatModel:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, CLASSES))
    module = module.double()
    return FlatModel(module, Layout.of(module))


def batches(device: int, round: int, steps: int) -> list[Batch]:
    """A learnable task: the label is the brightest of three pixels."""
    generator = torch.Generator().manual_seed(100 * device + round)
    x = torch.randn(steps, SIZE, 1, 2, 2, dtype=torch.float64, generator=generator)
    return [(one, one.flatten(1)[:, :CLASSES].argmax(1)) for one in x]


def play(algorithm: Algorithm, model: FlatModel, rounds: int) -> list[float]:
    """Rounds by hand, without engines or codecs: the mean loss of each."""
    server, losses, memories = algorithm.start(model.read()), [], [{} for _ in range(DEVICES)]
    steps = algorithm.sync_every
    for number in range(rounds):
        offered, mean, total = algorithm.offer(server), Mean(server.state), 0.0
        for device in range(DEVICES):
            model.write(offered)
            own = Own(memories[device], COUNTS, algorithm.guide(server))
            learned = algorithm.learn(model, batches(device, number, steps), 1.0, own=own)
            update, loss, memories[device] = learned
            mean.add(State(update, model.buffers), 1)
            total += loss
        server = algorithm.step(server, Combined(mean.value(), 1.0, {steps: 1}), model.layout)
        losses.append(total / DEVICES)
    model.write(server.state)
    return losses


def test_every_algorithm_has_its_row() -> None:
    assert SETTINGS.keys() == ALGORITHMS.keys() == {"sync-sgd", "fedavg", "fedavgm", *PARTS}
    for name, ones in SETTINGS.items():
        parts = {type(part) for one in ones for part in getattr(one, "parts", ())}
        assert name not in PARTS or parts == {PARTS[name]}
        assert parse(name, SGD()) == ALGORITHMS[name]
        assert all(parse(text(one), one.sgd, **rest(one)) == one for one in ones)


def test_a_plus_within_a_number_joins_nothing() -> None:
    assert parse("fedlmd:1:1e+06+fedcm", SGD()) == FedAvg(SGD(), parts=(FedLMD(1.0, 1e6), FedCM()))


def rest(algorithm: Any) -> dict[str, Any]:
    """What the text form of an algorithm leaves to the settings beside it."""
    names = ("sync_every", "server_lr", "server_momentum", "local_momentum")
    return {name: getattr(algorithm, name) for name in names if hasattr(algorithm, name)}


@every_algorithm
def test_it_learns(algorithm: Algorithm) -> None:
    losses = play(algorithm, tiny(), 40)
    assert all(torch.tensor(losses).isfinite()) and losses[-1] < 0.6 * losses[0]


@every_algorithm
def test_a_round_is_a_function_of_what_goes_in(algorithm: Algorithm) -> None:
    models = tiny(), tiny()
    models[1].params.fill_(9)  # whatever an earlier device left behind
    models[1].grads.fill_(9)
    start = tiny().read()
    found = []
    for model in models:
        model.write(start)
        given = iter(batches(0, 0, algorithm.sync_every))
        update, loss, _ = algorithm.learn(model, given, 0.5, own=Own(counts=COUNTS))
        assert update.shape == (model.layout.count,) and update.dtype == torch.float64 and update.any()
        assert type(loss) is float
        found.append((update.clone(), loss))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
    models[0].check()


@every_algorithm
def test_the_server_takes_the_devices_mean_buffers_and_updates_in_place(algorithm: Algorithm) -> None:
    model = tiny()
    state = model.read()
    before = state.clone()
    server = algorithm.start(state)
    mean = State(torch.ones_like(state.params), torch.full_like(state.buffers, 0.25))
    after = algorithm.step(server, Combined(mean, 1.0, {algorithm.sync_every: 1.0}), model.layout)
    assert after.state.params is server.state.params and all(
        after.vectors[n] is v for n, v in server.vectors.items()
    )
    assert after.state.params.ne(before.params).all()
    assert torch.equal(after.state.buffers, torch.full_like(state.buffers, 0.25))  # no momentum, no rate


@every_algorithm
def test_a_factor_of_zero_moves_nothing(algorithm: Algorithm) -> None:
    model = tiny()
    before = model.read()
    server = algorithm.start(before.clone())
    model.write(server.state)
    update, _, _ = algorithm.learn(model, batches(0, 0, algorithm.sync_every), 0.0, own=Own(counts=COUNTS))
    mean = State(update.clone(), model.buffers)
    after = algorithm.step(server, Combined(mean, 0.0, {algorithm.sync_every: 1.0}), model.layout)
    assert torch.equal(after.state.params, before.params)


@every_algorithm
def test_the_server_s_momentum_can_be_taken_away(algorithm: Algorithm) -> None:
    """All else is as it was: a device learns the same, and one step from rest goes the same way."""
    without, momentum = algorithm.without_momentum()
    assert type(without) is type(algorithm) and without.without_momentum() == (without, 0.0)
    assert 0 <= momentum < 1 and without.sync_every == algorithm.sync_every
    model = tiny()
    start, updates = model.read(), []
    for one in (algorithm, without):
        model.write(start)
        updates.append(
            one.learn(model, batches(0, 0, one.sync_every), 0.5, own=Own(counts=COUNTS))[0].clone()
        )
    assert torch.equal(*updates)
    servers = [one.start(start.clone()) for one in (algorithm, without)]
    kept = [bool(server.vectors.get("momentum", torch.zeros(0)).numel()) for server in servers]
    assert kept == [momentum > 0, False]
    for one, server in zip((algorithm, without), servers, strict=True):
        one.step(
            server,
            Combined(State(updates[0].clone(), model.buffers), 0.5, {one.sync_every: 1.0}),
            model.layout,
        )
    apart = (servers[0].state.params - servers[1].state.params).abs().max()
    nesterov = algorithm.sends_gradients and algorithm.sgd.nesterov
    decayed = algorithm.sgd.weight_decay if algorithm.sends_gradients else 0
    assert apart > 1e-3 if nesterov else apart <= 10 * decayed


def test_weight_decay_pulls_as_hard_without_the_momentum() -> None:
    """Two hundred steps of nothing but decay: momentum made it ten times as strong in the long run."""
    algorithm, layout = SyncSGD(SGD(lr=0.1, momentum=0.9, weight_decay=5e-3)), line(0, 0).layout
    ends = []
    for one in (algorithm, algorithm.without_momentum()[0], SyncSGD(SGD(0.1, 0.0, 5e-3))):
        server = one.start(State(torch.ones(2), torch.zeros(0)))
        for _ in range(200):
            server = one.step(server, Combined(State(torch.zeros(2), torch.zeros(0))), layout)
        ends.append(float(server.state.params[0]))
    assert ends[0] == pytest.approx(ends[1], rel=0.06)
    assert ends[2] > 2 * ends[0]


def test_who_sends_gradients_leaves_the_rate_to_the_server() -> None:
    """So an update grows with the rate where the algorithm says that it sends none."""
    for algorithm in EVERY:
        model, sizes = tiny(), []
        start = model.read()
        for factor in (1.0, 0.5):
            model.write(start)
            update, _, _ = algorithm.learn(
                model, batches(0, 0, algorithm.sync_every), factor, own=Own(counts=COUNTS)
            )
            sizes.append(float(update.norm()))
        assert (sizes[0] == sizes[1]) == algorithm.sends_gradients, algorithm


# ---- by hand ----


def pixel(x: float) -> Batch:
    """A one-pixel image whose label is 0."""
    return torch.full((1, 1, 1, 1), x, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)


def line(*weights: float) -> FlatModel:
    """Logits x * (a, b) of a pixel x. With p = sigmoid(x * (a - b)) the gradient is x * (p - 1, 1 - p)."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False)).double()
    model = FlatModel(module, Layout.of(module))
    model.params.copy_(torch.tensor(weights))
    return model


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def state_of(*params: float) -> State:
    return State(torch.tensor(params, dtype=torch.float64), torch.zeros(0))


def test_sync_sgd_sends_the_gradient_itself() -> None:
    algorithm = SyncSGD(SGD(123.0, 0.9, 7.0))  # neither of these is in it: they are the server's
    update, loss, _ = algorithm.learn(line(0.75, 0), [pixel(2.0)], 0.5)
    gradient = 2 * (sigmoid(1.5) - 1)
    assert update.tolist() == pytest.approx([gradient, -gradient], abs=1e-15)
    assert loss == pytest.approx(-math.log(sigmoid(1.5)))


def test_sync_sgd_steps_on_the_server_by_hand() -> None:
    algorithm, layout = SyncSGD(SGD(lr=0.1, momentum=0.5, weight_decay=0.1)), line(0, 0).layout
    server = algorithm.start(state_of(1, 2))
    for mean, factor, params, momentum in (
        # m = g + 0.1 w = (2.1, -0.8);  w = (1 - 0.21, 2 + 0.08)
        ((2.0, -1.0), 1.0, (0.79, 2.08), (2.1, -0.8)),
        # m = 0.5 m + g + 0.1 w = (1.129, -0.192);  w -= 0.5 * 0.1 * m
        ((0.0, 0.0), 0.5, (0.73355, 2.0896), (1.129, -0.192)),
    ):
        server = algorithm.step(server, Combined(state_of(*mean), factor), layout)
        assert server.state.params.tolist() == pytest.approx(params, abs=1e-15)
        assert server.vectors["momentum"].tolist() == pytest.approx(momentum, abs=1e-15)


def test_fedavg_sends_how_far_it_went_by_hand() -> None:
    """Two steps with momentum and decay, at half of the peak rate."""
    a, b, m, n, losses = 0.75, 0.0, 0.0, 0.0, []
    for x in (2.0, -1.0):
        p = sigmoid(x * (a - b))
        losses.append(-math.log(p))
        m, n = 0.9 * m + x * (p - 1) + 0.01 * a, 0.9 * n + x * (1 - p) + 0.01 * b
        a, b = a - 0.5 * 0.2 * m, b - 0.5 * 0.2 * n
    algorithm = FedAvg(SGD(0.2, 0.9, 0.01), sync_every=2, server_lr=3, server_momentum=0.9)
    model = line(0.75, 0)
    update, loss, _ = algorithm.learn(model, [pixel(2.0), pixel(-1.0)], 0.5)
    assert update.tolist() == pytest.approx([a - 0.75, b], abs=1e-15)
    assert model.params.tolist() == pytest.approx([a, b], abs=1e-15)
    assert loss == pytest.approx(sum(losses) / 2)


def test_fedavg_steps_on_the_server_by_hand() -> None:
    algorithm, layout = FedAvg(SGD(0.1), server_lr=0.5, server_momentum=0.9), line(0, 0).layout
    server = algorithm.start(state_of(1, 2))
    for mean, params, momentum in (
        ((1.0, -2.0), (1.5, 1.0), (1.0, -2.0)),
        ((1.0, 0.0), (2.45, 0.1), (1.9, -1.8)),  # m = 0.9 m + u;  w += 0.5 m
    ):
        server = algorithm.step(
            server, Combined(state_of(*mean), 0.1), layout
        )  # the schedule is the devices' alone
        assert server.state.params.tolist() == pytest.approx(params, abs=1e-15)
        assert server.vectors["momentum"].tolist() == pytest.approx(momentum, abs=1e-15)


def test_what_needs_no_momentum_keeps_none() -> None:
    assert FedAvg().start(tiny().read()).vectors == {}
    assert SyncSGD(SGD(momentum=0)).start(tiny().read()).vectors["momentum"].shape == (0,)


def test_sync_sgd_synchronises_every_step() -> None:
    with pytest.raises(EdgewiseError, match=r"sync_every: .* 1 and not 2"):
        SyncSGD(sync_every=2)
    with pytest.raises(ValueError, match="too many values"):
        SyncSGD().learn(tiny(), batches(0, 0, 2), 1.0)
