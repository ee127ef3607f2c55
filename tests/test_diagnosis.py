"""Drift, forgetting and the counterforce: closed-form answers, and what a run writes down of them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgewise import data, records
from edgewise.algorithms import FedAvg, FedNova, SyncSGD
from edgewise.assemble import assemble
from edgewise.codecs import parse
from edgewise.config import Config
from edgewise.data import Dataset, Split
from edgewise.data.partition import Labels
from edgewise.device import Memory, Task
from edgewise.diagnosis import Drift, Effort, Full, Light, Looks, Off, Probe, forgotten, highest
from edgewise.errors import EdgewiseError
from edgewise.models.norms import Batch
from edgewise.optimizers import SGD
from edgewise.rounds import Round, run

TINY = Config(devices=4, batch=8, width=4, steps=4, eval_every=1)
APART = replace(TINY, algorithm=FedAvg(SGD(0.05), sync_every=2), partition=Labels(3), norm=Batch())


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """With a twentieth of the test images."""
    whole = data.load("digits")
    return replace(whole, test=Split(whole.test.images[::4], whole.test.labels[::4]))


def played(config: Config, out: Path, dataset: Dataset) -> tuple[list[Round], dict[str, Any]]:
    found = list(run(config, out, dataset=dataset))
    return found, records.summary(out) or {}


# ---- drift ----


def drift(*updates: Tensor, weights: list[float] | None = None, adds: bool = True) -> Drift:
    found = Drift(updates[0], adds)
    for update, weight in zip(updates, weights or [1.0] * len(updates), strict=True):
        found.add(update, weight)
    return found


@pytest.mark.parametrize("count", [2, 5, 100])
def test_orthogonal_updates(count: int) -> None:
    found = drift(*(3 * torch.eye(count)))
    assert found.cosine == pytest.approx(0, abs=1e-6)
    assert found.diversity() == pytest.approx(math.sqrt(count), rel=1e-5)


def test_equal_updates_and_opposite_ones() -> None:
    update = torch.randn(1000)
    same = drift(*[update] * 7)
    assert (same.cosine, same.diversity()) == pytest.approx((1, 1), rel=1e-6)
    against = drift(update, -update)
    assert against.cosine == pytest.approx(-1, rel=1e-6) and against.diversity() is None


def test_a_known_angle_and_weights() -> None:
    """Lengths 5 and 10 with cosine 0.6, the second of them counting for three."""
    found = drift(torch.tensor([5.0, 0.0]), torch.tensor([6.0, 8.0]), weights=[1, 3])
    assert found.cosine == pytest.approx(0.6, rel=1e-6)
    assert found.diversity() == pytest.approx((5 + 3 * 10) / math.hypot(5 + 18, 24), rel=1e-5)


def test_the_two_sums_are_the_mean_over_pairs() -> None:
    updates = torch.randn(9, 300_000) + 0.3 * torch.randn(300_000)
    updates *= torch.logspace(-4, 4, 9)[:, None]  # lengths do not matter to angles
    wide = updates.double()
    pairs = [float(torch.cosine_similarity(wide[i], wide[j], 0)) for i, j in combinations(range(9), 2)]
    found = drift(*updates)
    assert found.cosine == pytest.approx(sum(pairs) / len(pairs), abs=2e-6)
    expected = float(wide.norm(dim=1).sum() / wide.sum(0).norm())
    assert found.diversity() == pytest.approx(expected, rel=1e-5)
    elsewhere = drift(*updates, adds=False)
    assert elsewhere.total is None
    assert elsewhere.diversity(updates.mean(0)) == pytest.approx(expected, rel=1e-5)


def test_what_has_no_direction_is_left_out() -> None:
    one, nothing = torch.ones(3), torch.zeros(3)
    assert drift(one, nothing).cosine is None and drift(one).diversity() is None
    assert drift(one, nothing, one).cosine == pytest.approx(1)
    endless = drift(one, torch.full((3,), math.inf))
    assert endless.cosine is None and endless.diversity() is None


# ---- forgetting ----


def test_forgetting_is_against_the_best_so_far() -> None:
    best: list[float | None] = []
    for recall in ([0.5, 0.9, None], [0.7, 0.2, None], [0.25, 0.4, 0.5]):
        best = highest(best, recall)
    assert best == [0.7, 0.9, 0.5]
    assert forgotten(best, [0.8, 0.4, None]) == pytest.approx([-0.1, 0.5, None])
    assert forgotten([None, 0.5], [0.5, 0.5]) == [None, 0.0]


# ---- the probe ----


def test_the_counterforce_is_the_gradient_that_is_missing() -> None:
    """Against autograd: what other devices' data would do to the logits of the classes at hand."""
    split = Split(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1, 1, 2, 3]))
    probe, present = Probe(split, 4), torch.tensor([True, True, False, False])
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(logits[4:], split.labels[4:]).backward()
    assert logits.grad is not None
    seen = probe.seen(logits.detach(), present)
    assert seen.counterforce == pytest.approx(float(logits.grad[:, :2].sum()))


def test_what_a_device_sees_by_hand() -> None:
    split = Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 2]))
    logits = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 0, 9], [2, 1, 0]], dtype=torch.float64)
    seen = Probe(split, 3).seen(logits, torch.tensor([True, True, False]))
    assert (seen.own, seen.absent) == (0.5, 0.5)
    high, low = math.log(2) - 9, math.log(math.e**2 + math.e)
    assert seen.margin == pytest.approx((high + low) / 2)
    assert seen.counterforce == pytest.approx((2 / (2 + math.e**9) + 1 - 1 / (1 + math.e**2 + math.e)) / 2)
    assert Probe(split, 3).recall(logits).tolist() == [1, 0, 0.5]


def test_the_probe_is_drawn_once_for_a_seed(digits: Dataset) -> None:
    probe = Probe.of(digits.test, 10, 3, seed=3)
    assert torch.equal(probe.split.labels, torch.arange(10).repeat_interleave(3))
    assert torch.equal(probe.split.images, Probe.of(digits.test, 10, 3, seed=3).split.images)
    assert not torch.equal(probe.split.images, Probe.of(digits.test, 10, 3, seed=4).split.images)
    few = torch.bincount(digits.test.labels).tolist()
    assert torch.bincount(Probe.of(digits.test, 10, 1000, 0).split.labels).tolist() == few


@pytest.mark.parametrize("trained", [0, 300, 5_000, 80_000, 10_000_000])
@pytest.mark.parametrize(("cohort", "classes"), [(10, 10), (2, 2), (1, 1000)])
def test_a_light_look_keeps_to_its_share(trained: int, cohort: int, classes: int) -> None:
    looks = Light(0.02).looks(Effort(trained, 1000, cohort, classes))
    passes = (looks.devices + 2) * looks.images * classes if looks.images else 0
    assert passes <= 0.02 * (3 * trained + 1000)
    assert looks.devices <= cohort and bool(looks.devices) == bool(looks.images)
    assert looks.devices == cohort or trained < 1_000_000 or classes == 1000


def test_how_closely_is_a_setting() -> None:
    effort = Effort(1000, 100, 6, 10)
    assert Off().looks(effort) == Looks(0, 0, drift=False)
    assert Full().looks(effort) == Looks(6, 100) and Full(5, 2).looks(effort) == Looks(2, 5)
    assert Config.of({"diagnose": "full:5:2"}).diagnose == Full(5, 2)
    for wrong in ("light:2", "light:-1", "full:0", "full:1:-1", "some"):
        with pytest.raises(EdgewiseError, match=r"^diagnose: "):
            Config.of({"diagnose": wrong})


# ---- in a run ----


def test_watching_changes_nothing(digits: Dataset, tmp_path: Path) -> None:
    digests = set()
    for diagnose in (Off(), Light(), Full(3)):
        rows, summary = played(replace(APART, diagnose=diagnose), tmp_path / str(diagnose), digits)
        digests.add(summary["model_digest"])
        assert ("drift_cosine" in summary) == ("drift_cosine" in rows[0].row()) == (diagnose != Off())
        assert (rows[1].probe is not None) == (diagnose == Full(3))
        assert rows[0].forgetting is None and rows[1].forgetting == summary["forgetting"]
    assert len(digests) == 1


def test_a_round_says_what_its_updates_and_local_models_were(digits: Dataset, tmp_path: Path) -> None:
    """By hand: every device's round played apart, its model run on the images of the probe."""
    config = replace(APART, steps=2, diagnose=Full(5), precision="fp64", cohort=3)
    ((row,), _) = played(config, tmp_path, digits)
    parts = assemble(config, digits)
    start = parts.model.read()
    assert row.probe is not None and len(row.probe.devices) == 3
    probe = Probe.of(digits.test, 10, 5, config.seed)
    images, labels = probe.split.images, probe.split.labels

    def probabilities() -> Tensor:
        parts.model.module.eval()
        with torch.no_grad():
            return torch.softmax(parts.model(parts.work.feed.plain(images)), 1)

    before, updates, found = probabilities(), Drift(start.params), []
    for device in row.probe.devices:
        parts.devices[device].answer(Task(1, 2, 1.0, start), parts.model, parts.work, Memory())
        updates.add(parts.model.params - start.params, 1.0)
        assert parts.held is not None
        own = parts.held[device] > 0
        absent = ~own[labels]
        for state in (before, probabilities()):
            right = (state.argmax(1) == labels).double()
            mass = float(state[absent][:, own].sum(1).mean())
            found.append((float(right[~absent].mean()), float(right[absent].mean()), mass))
    assert (row.drift_cosine, row.drift_diversity) == pytest.approx((updates.cosine, updates.diversity()))
    means = torch.tensor(found).view(3, 2, 3).mean(0)
    for place, values in enumerate((row.probe.own, row.probe.absent, row.probe.counterforce)):
        assert values is not None and values[:2] == pytest.approx(means[:, place].tolist(), abs=2e-6)


def test_where_there_is_nothing_to_tell_apart(digits: Dataset, tmp_path: Path) -> None:
    """Fused updates cannot be told apart, neither a gradient nor a share of an update leads to a local model,

    one device has no pair.
    """
    full = replace(TINY, steps=1, diagnose=Full(2), algorithm=SyncSGD(SGD(0.05)))
    loop = replace(full, codec=parse("topk:0.1"))
    alone = replace(APART, steps=2, cohort=1, diagnose=Full(2))
    nova = replace(APART, steps=2, diagnose=Full(2), algorithm=FedAvg(SGD(0.05), 2, parts=(FedNova(),)))
    kept = []
    for name, config in {"fused": full, "loop": loop, "alone": alone, "nova": nova}.items():
        ((row,), _) = played(config, tmp_path / name, digits)
        kept.append((row.drift_cosine is not None, row.probe is not None))
    assert kept == [(False, False), (True, False), (False, True), (True, False)]


def test_devices_with_every_class_lack_none(digits: Dataset, tmp_path: Path) -> None:
    config = replace(APART, partition=Labels(10), steps=2, diagnose=Full(2))
    ((row,), _) = played(config, tmp_path, digits)
    assert row.probe is not None and row.probe.own is None and len(row.probe.per_class) == 3
    assert "absent" not in row.row()["probe"]
