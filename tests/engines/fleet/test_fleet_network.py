"""Networks that are cut, lose, delay and reorder: each process in a network namespace of its own."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet_nets import Nets, Weather, missing
from fleet_processes import Scene, simulated

from edgewise.engines.fleet.messages import CHUNK

LOSSY = ("--codec", "topk:0.1", "--codec-down", "topk:0.1")
FEDAVG = ("--algorithm", "fedavg", "--sync-every", 2)
BEAT = 0.5


@pytest.fixture
def nets() -> Iterator[Callable[[int], Nets]]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    made: list[Nets] = []

    def make(devices: int) -> Nets:
        made.append(Nets(devices, seed=1))
        return made[-1]

    yield make
    for one in made:
        one.close()


def last_for(scene: Scene, seconds: float) -> None:
    end = time.monotonic() + seconds
    scene.tend(lambda: time.monotonic() > end)


@pytest.mark.slow
def test_a_cut_that_is_longer_than_the_beats_allow(nets: Callable[[int], Nets], tmp_path: Path) -> None:
    places = nets(2)
    scene = Scene(tmp_path, 2, (*FEDAVG, *LOSSY, "--steps", 400), ("--beat", BEAT), nets=places)
    scene.start()
    try:
        scene.tend(lambda: scene.round() >= 5)
        for device in (0, 1, 0):
            places.weather[device].cut = True
            gone = len(scene.log("coordinator", "silent"))
            scene.tend(lambda gone=gone: len(scene.log("coordinator", "silent")) > gone)
            left = len(scene.log(f"agent{device}", "disconnected"))
            scene.tend(lambda left=left, n=device: left or len(scene.log(f"agent{n}", "disconnected")) > left)
            stood = scene.round()
            last_for(scene, 2 * BEAT)
            assert scene.round() == stood  # everybody is needed
            places.weather[device].cut = False
            scene.tend(lambda stood=stood: scene.coordinator.done or scene.round() > stood)
        scene.tend()
    finally:
        scene.end()
    assert min(places.lost) > 0
    scene.check_journal(200)
    assert scene.digest == simulated(tmp_path, scene)


@pytest.mark.slow
def test_an_upload_that_is_cut_goes_on_where_it_was(nets: Callable[[int], Nets], tmp_path: Path) -> None:
    places, steps = nets(1), 3
    wide = ("--steps", steps, "--width", 14_000)  # an update of four chunks and a part of one
    scene = Scene(tmp_path, 1, wide, ("--beat", BEAT, "--checkpoint-seconds", 0), nets=places)
    places.weather[0] = Weather(delay=0.05)

    def here() -> int:
        return sum(file.stat().st_size for file in tmp_path.glob("home/spool/*/2/*.update"))

    scene.start()
    try:
        scene.tend(lambda: here() >= 2 * CHUNK)
        places.weather[0].cut = True
        scene.tend(lambda: scene.log("coordinator", "silent"))
        assert scene.rows("SELECT count(*) FROM updates WHERE round = 2") == [(0,)]
        there = here()
        places.weather[0].cut = False
        scene.tend()
    finally:
        scene.end()
    words = [(row["round"], row["words"].split()[1]) for row in scene.log("coordinator", "resumed")]
    assert words[:1] == [(2, str(there))], scene.report()
    assert there >= 2 * CHUNK
    scene.check_journal(steps)
    assert scene.digest == simulated(tmp_path, scene)


@pytest.mark.slow
def test_packets_are_lost_late_and_in_disorder(nets: Callable[[int], Nets], tmp_path: Path) -> None:
    places, rounds = nets(3), 12
    scene = Scene(tmp_path, 3, (*FEDAVG, *LOSSY, "--steps", 2 * rounds), ("--beat", 2), nets=places)
    places.weather[:] = [Weather(loss=0.1), Weather(delay=0.1, jitter=0.03), Weather(0.02, 0.01, 0.05)]
    scene.coordinator.faults = ["taken@4"]
    scene.agents[1].faults = ["sending@6"]
    scene.play()
    scene.check_faults()
    assert places.lost[0] and places.lost[2] and places.overtaken
    scene.check_journal(rounds)
    assert scene.digest == simulated(tmp_path, scene)
