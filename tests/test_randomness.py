"""Addressed randomness: the address decides, nothing that came before does."""

from __future__ import annotations

import torch

from edgewise import randomness
from edgewise.cohorts import cohort
from edgewise.config import Config


def test_keys_are_these_on_every_machine() -> None:
    """Python's own hash is salted and would differ in every process."""
    # int(hashlib.sha256(b"0/order/3/7").hexdigest()[:16], 16) >> 1
    assert randomness.key(0, "order", 3, 7) == 9048469173600927644
    assert randomness.key(1, "model") == 7106251203457848028


def test_every_part_of_an_address_counts() -> None:
    addresses = [
        (seed, purpose, device, index)
        for seed in (0, 1, 11)
        for purpose in ("order", "augment", "cohort", "model")
        for device in (0, 1, 11)
        for index in (0, 1, 11)
    ]
    keys = {randomness.key(*address) for address in addresses}
    assert len(keys) == len(addresses)
    assert all(0 <= key < 2**63 for key in keys)
    assert max(keys) > 2**62  # the whole range is used


def test_a_generator_is_fresh_and_leaves_the_global_one_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = torch.rand(4, generator=randomness.generator(3, "order", 1, 2))
    assert torch.equal(first, torch.rand(4, generator=randomness.generator(3, "order", 1, 2)))
    assert torch.equal(torch.rand(3), expected)
    direct = torch.Generator().manual_seed(randomness.key(3, "order", 1, 2))
    assert torch.equal(first, torch.rand(4, generator=direct))


# ---- cohorts ----


def test_a_full_cohort_is_every_device_in_order() -> None:
    for asked in (None, 10):
        assert list(cohort(Config(devices=10, cohort=asked), 3)) == list(range(10))


def test_a_sampled_cohort_is_addressed_by_round_and_seed() -> None:
    config = Config(devices=20, cohort=5)
    rounds = [list(cohort(config, number)) for number in range(1, 31)]
    for devices in rounds:
        assert len(set(devices)) == 5 and devices == sorted(devices)
        assert all(type(device) is int and 0 <= device < 20 for device in devices)
    assert len({tuple(devices) for devices in rounds}) > 25
    assert {device for devices in rounds for device in devices} == set(range(20))
    assert [list(cohort(config, number)) for number in (7, 3)] == [rounds[6], rounds[2]]
    others = [list(cohort(Config(devices=20, cohort=5, seed=1), number)) for number in range(1, 31)]
    assert sum(one == two for one, two in zip(rounds, others, strict=True)) < 3


def test_a_fraction_is_a_share_of_the_devices() -> None:
    config = Config(devices=20, cohort=0.25)
    assert list(cohort(config, 4)) == list(cohort(Config(devices=20, cohort=5), 4))
