"""Seconds from bytes: by hand, against windows counted one by one, and the fleet that a network describes."""

import re
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.errors import EdgewiseError
from edgewise.network import FIRST_WINDOW, NETWORKS, Direction, Link, Network, parse, transfer

FAST = settings(derandomize=True, deadline=None, max_examples=200)
PLAIN = Link(8, 16)  # a million bytes a second up, two down

# Worked out by hand. The first window is 14,600 bytes, then 29,200, 58,400, ...
BY_HAND: dict[str, tuple[Link, float, Direction, float]] = {
    "up": (PLAIN, 1_000_000, "up", 1.0),
    "down is another bandwidth": (PLAIN, 1_000_000, "down", 0.5),
    "nothing takes the latency": (Link(8, 8, 0.1), 0, "up", 0.1),
    "one window waits for nothing": (Link(8, 8, 0.1), 10_000, "up", 0.11),
    # Three windows; the second and third wait 0.2 s less the 0.0146 and 0.0292 s that sending took.
    "slow start": (Link(8, 8, 0.1), 100_000, "up", 0.1 + 0.1 + 0.1854 + 0.1708),
    # 200,000 bytes fill the link: of 14,600, 29,200, 58,400, 116,800, 233,600 the first four wait.
    "a full link waits no more": (Link(8, 8, 0.1), 10_000_000, "up", 0.1 + 10 + 4 * 0.2 - 15 * 0.0146),
    # 1460 / 0.1 * sqrt(1.5 / 0.01) = 178,813 bytes a second; 1,010,101 bytes with those sent again;
    # one wait of 0.1 s less the 0.08165 s of the first window.
    "loss": (Link(8, 8, 0.05, 0.01), 1_000_000, "up", 0.05 + 0.01835 + 5.64893),
    "loss that does not bind": (Link(0.08, 0.08, 0.05, 0.01), 99_000, "up", 0.05 + 10.0),
    "loss without latency": (Link(8, 8, 0.0, 0.5), 1_000_000, "up", 2.0),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_a_transfer_by_hand(case: str) -> None:
    link, size, direction, seconds = BY_HAND[case]
    assert link.seconds(size, direction) == pytest.approx(seconds, rel=1e-4)


def one_by_one(link: Link, size: float, mbits: float) -> float:
    """The same window by window: send one, and go on when its first byte is acknowledged."""
    bound = inf
    if link.latency and link.loss:
        bound = 1460 / (2 * link.latency) * 1.5**0.5 / link.loss**0.5
    rate = min(mbits * 1e6 / 8, bound)
    left, window, now = size / (1 - link.loss), float(FIRST_WINDOW), 0.0
    while left > window:
        left -= window
        now += max(window / rate, 2 * link.latency)
        window *= 2
    return now + left / rate + link.latency


rates = st.floats(0.01, 10_000)
sizes = st.integers(0, 10**9)
latencies = st.floats(0, 2)
losses = st.floats(0, 0.2)


@FAST
@given(rates, sizes, latencies, losses)
def test_a_transfer_is_its_windows_one_by_one(mbits: float, size: int, latency: float, loss: float) -> None:
    link = Link(mbits, 1, latency, loss)
    assert link.seconds(size, "up") == pytest.approx(one_by_one(link, size, mbits), rel=1e-9)


@FAST
@given(rates, rates, sizes, sizes, latencies, losses)
def test_more_bytes_take_longer_and_more_bandwidth_does_not(
    mbits: float, more: float, size: int, larger: int, latency: float, loss: float
) -> None:
    link = Link(1, 1, latency, loss)
    (slow, fast), (small, big) = sorted((mbits, more)), sorted((size, larger))
    tolerance = 1 + 1e-9
    assert transfer(link, small, slow) <= transfer(link, big, slow) * tolerance
    assert transfer(link, small, fast) <= transfer(link, small, slow) * tolerance
    assert transfer(link, small, slow) >= link.latency


# ---- text ----


@pytest.mark.parametrize("name", NETWORKS)
def test_every_name_is_a_link(name: str) -> None:
    link = parse(name)
    assert link is NETWORKS[name]
    assert parse(f"link:{link.up}:{link.down}:{link.latency}:{link.loss}") == link


def test_links_of_consumers_send_at_half_the_speed_they_receive_at() -> None:
    assert all(NETWORKS[name].up == NETWORKS[name].down / 2 for name in ("wifi", "lte", "3g"))


def test_a_link_in_text() -> None:
    assert parse("link:5:10") == Link(5, 10)
    assert parse("link:5:10:0.05:0.01") == Link(5, 10, 0.05, 0.01)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lan", r"--network: 'lan' is unknown; one of: ethernet, .*, link:UP:DOWN\[:latency\]\[:loss\]"),
        ("lte:2", "'lte:2' is unknown"),
        ("link", r"'link' lacks a value; its form is link:UP:DOWN"),
        ("link:5", "'link:5' lacks a value"),
        ("link:a:b", "does not fit the form link:UP:DOWN"),
        ("link:1:2:3:0:5", "does not fit"),
        ("link:nan:2", "does not fit"),
        ("link:0:2", "link: up cannot be 0; legal: 1e-06 to"),
        ("link:1:-2", "link: down cannot be -2"),
        ("link:1:2:-1", "link: latency cannot be -1; legal: 0 to"),
        ("link:1:2:0:1", "link: loss cannot be 1; legal: 0 to 0.99"),
    ],
)
def test_a_bad_link_is_one_line(text: str, says: str) -> None:
    with pytest.raises(EdgewiseError, match=says) as told:
        parse(text, "--network")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "change",
    [{"spread": -1}, {"spread": 6}, {"step": -1}, {"step_spread": float("nan")}, {"server": 0}],
)
def test_a_fleet_that_cannot_be(change: dict[str, float]) -> None:
    (name,) = change
    with pytest.raises(EdgewiseError, match=rf"network: {name} cannot be .*; legal: "):
        Network(PLAIN, **change)  # type: ignore[arg-type]


# ---- fleets ----


def test_a_round_receives_computes_and_sends() -> None:
    network = Network(PLAIN, step=0.25)
    # 2 MB at 2 MB/s, 4 steps, 0.5 MB at 1 MB/s.
    assert network.round_seconds(range(3), 500_000, 2_000_000, 4) == pytest.approx(1 + 1 + 0.5)


def test_the_slowest_device_sets_the_pace() -> None:
    network = Network(PLAIN)
    up, down = [1_000_000, 2_000_000, 500_000], [0, 2_000_000, 8_000_000]
    assert network.device_seconds([4, 5, 6], up, down, 1).tolist() == pytest.approx([1.0, 3.0, 4.5])
    assert network.round_seconds([4, 5, 6], up, down, 1) == pytest.approx(4.5)


def test_nobody_asked_takes_no_time() -> None:
    assert Network(PLAIN, spread=1).round_seconds([], 1, 1, 1) == 0


def test_a_device_is_the_same_in_every_cohort() -> None:
    network = Network(PLAIN, spread=0.7, step=0.1, step_spread=0.3, seed=5)
    everyone = network.device_seconds(range(20), 1e6, 1e6, 3)
    some = network.device_seconds([17, 3], 1e6, 1e6, 3)
    assert some.tolist() == everyone[[17, 3]].tolist()
    assert len(set(everyone.tolist())) == 20


def test_another_seed_is_another_fleet() -> None:
    first, second = (Network(PLAIN, spread=0.7, seed=seed) for seed in (0, 1))
    assert first.device_seconds([0], 1, 1, 1) != second.device_seconds([0], 1, 1, 1)


def test_a_device_far_down_the_list_costs_no_more_than_the_first() -> None:
    assert Network(PLAIN, spread=0.5).round_seconds([10**15], 1, 1, 1) > 0


def test_the_spread_is_that_of_a_log_normal_factor() -> None:
    devices = range(4000)
    seconds = Network(PLAIN, spread=0.5).device_seconds(devices, 1e6, 0, 0)
    logs = -np.log(seconds)  # one second at the median
    assert abs(np.median(logs)) < 5 * 1.2533 * 0.5 / 4000**0.5  # five standard errors of a median
    assert logs.std() == pytest.approx(0.5, rel=5 / (2 * 4000) ** 0.5)
    steps = Network(PLAIN, step=1, step_spread=0.25).device_seconds(devices, 0, 0, 1)
    assert np.log(steps).std() == pytest.approx(0.25, rel=5 / (2 * 4000) ** 0.5)
    both = Network(PLAIN, spread=0.5, step=1, step_spread=0.25)
    speeds = np.log(both.device_seconds(devices, 0, 0, 1))
    assert abs(np.corrcoef(logs, speeds)[0, 1]) < 5 / 4000**0.5  # a slow link is no slow processor


def test_a_slow_link_is_slow_both_ways() -> None:
    network = Network(PLAIN, spread=1.0)
    up = network.device_seconds(range(8), 1e6, 0, 0)
    down = network.device_seconds(range(8), 0, 2e6, 0)
    assert up.tolist() == pytest.approx(down.tolist())


@pytest.mark.parametrize(
    ("server", "seconds"),
    [(None, 1.0), (80.0, 1.0), (40.0, 2.0), (8.0, 10.0)],  # 10 devices share it: 8, 4 and 0.8 Mbit/s each
)
def test_the_cohort_shares_the_coordinator(server: float | None, seconds: float) -> None:
    assert Network(PLAIN, server=server).round_seconds(range(10), 1e6, 0, 1) == pytest.approx(seconds)


def test_devices_slower_than_their_share_do_not_notice_it() -> None:
    alone = Network(PLAIN, spread=1.0)
    shared = Network(PLAIN, spread=1.0, server=8 * 6)
    before, after = (network.device_seconds(range(6), 1e6, 0, 1) for network in (alone, shared))
    assert after.tolist() == pytest.approx(np.maximum(before, 1.0).tolist())
    assert before.min() < 1.0 < before.max()


def test_the_docs_say_what_the_names_stand_for() -> None:
    page = (Path(__file__).parent.parent / "docs" / "network.md").read_text()
    for name, link in NETWORKS.items():
        assert re.search(
            rf"\| `{name}` \| {link.up:g} \| {link.down:g} \| {1000 * link.latency:g} \|", page
        ), name
