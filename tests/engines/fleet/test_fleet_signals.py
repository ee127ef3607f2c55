"""A fleet that people handle: SIGTERM, Ctrl-C, programs that are stopped, devices that come and go."""

import signal
import time
from pathlib import Path

import command
import pytest
from fleet_processes import Scene, replayed, simulated

LOSSY = ("--codec", "topk:0.1", "--codec-down", "topk:0.1")
FEDAVG = ("--algorithm", "fedavg", "--sync-every", 2)


def advance(scene: Scene, rounds: int) -> None:
    """Let the run go on for so many rounds."""
    goal = scene.round() + rounds
    scene.tend(lambda: scene.round() >= goal)


def has(scene: Scene, device: int, after: int = 0) -> bool:
    """Whether an update of the device counts in a round after this one."""
    where = f"WHERE device = {device} AND round > {after}"
    return bool(scene.rows(f"SELECT count(*) FROM updates {where}")[0][0])


def caught(pid: int, number: signal.Signals) -> bool:
    """Whether a process has something to do with a signal."""
    (mask,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in line)
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def stop_early(scene: Scene, number: signal.Signals, seconds: float) -> None:
    """Who is stopped while it starts has no more to say of it than later."""
    scene.coordinator.start()
    early = scene.coordinator.process
    assert early is not None
    command.until(lambda: caught(early.pid, signal.SIGTERM))
    time.sleep(seconds)
    early.send(number)
    ended = early.wait()
    assert ended.status == 0, ended
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_who_is_asked_to_go_goes_in_good_order_and_loses_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2, (*FEDAVG, *LOSSY, "--steps", 400), ("--checkpoint-seconds", 1000))
    coordinator, (ours, other) = scene.coordinator, scene.agents
    scene.start()
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            advance(scene, 3)
            other.send(signal.SIGSTOP)  # so that the run does not come to its end, and cannot say farewell
            ended = coordinator.leave(number)
            assert ended.err.endswith("edgewise: stopped; nothing is lost, run again to continue\n")
            for patience in (0.0, 0.1, 0.2, 0.4):
                stop_early(scene, number, patience)
            coordinator.start()
            other.send(signal.SIGCONT)
            advance(scene, 3)
            other.send(signal.SIGSTOP)
            assert ours.leave(number).err.endswith("edgewise: stopped\n")
            ours.start()
            other.send(signal.SIGCONT)
        scene.tend()
    finally:
        scene.end()
    scene.check_journal(200)
    assert scene.digest == simulated(tmp_path, scene)
    assert len(scene.log("agent0", "farewell")) >= 3


@pytest.mark.slow
def test_with_a_quorum_rounds_go_on_without_a_device_that_comes_back(tmp_path: Path) -> None:
    settings = (*FEDAVG, *LOSSY, "--steps", 800)
    scene = Scene(tmp_path, 3, settings, ("--quorum", 0.5, "--checkpoint-seconds", 0.5))
    away = scene.agents[2]
    scene.start()
    try:
        scene.tend(lambda: all(has(scene, device) for device in range(3)))
        away.send(signal.SIGSTOP)
        advance(scene, 10)
        paused = scene.round()
        away.send(signal.SIGCONT)
        scene.tend(lambda: has(scene, 2, paused))  # a reply in time
        away.kill()
        advance(scene, 10)
        dead = scene.round()
        away.start()
        scene.tend(lambda: has(scene, 2, dead))
        scene.tend()
    finally:
        scene.end()
    scene.check_journal(400, everybody=False)
    assert scene.digest == replayed(scene)
    late = scene.rows("SELECT round FROM events WHERE kind = 'late' AND device = 2")
    assert late  # recorded, and dropped: the replay knows nothing of them
    assert not {(row[0], 2) for row in late} & set(scene.rows("SELECT round, device FROM updates"))
    assert scene.rows("SELECT sum(flags) FROM devices") == [(0,)]
    assert scene.rows("SELECT count(*) FROM events WHERE kind IN ('failed', 'refused')") == [(0,)]
    scene.check_memories(steps=2)


@pytest.mark.slow
def test_a_round_that_a_needed_device_leaves_goes_on_with_one_that_joins(tmp_path: Path) -> None:
    settings = (*FEDAVG, *LOSSY, "--steps", 400)
    scene = Scene(tmp_path, 3, settings, ("--quorum", 0.5, "--beat", 0.5), joined=2)
    away = scene.agents[1]
    scene.start()
    try:
        scene.tend(lambda: has(scene, 1))
        away.send(signal.SIGSTOP)
        scene.join(2)
        scene.tend(lambda: bool(scene.rows("SELECT * FROM events WHERE kind = 'asked'")))
        scene.coordinator.send(signal.SIGKILL)
        scene.tend(lambda: has(scene, 2))
        away.send(signal.SIGCONT)
        scene.tend()
    finally:
        scene.end()
    scene.check_journal(200, everybody=False)
    assert scene.digest == replayed(scene)


@pytest.mark.slow
def test_a_device_that_joins_in_mid_run_takes_part(tmp_path: Path) -> None:
    settings = (*FEDAVG, *LOSSY, "--steps", 400)
    scene = Scene(tmp_path, 3, settings, ("--quorum", 0.5, "--checkpoint-seconds", 0), joined=2)
    scene.start()
    try:
        advance(scene, 5)
        scene.join(2)
        scene.tend(lambda: has(scene, 2))
        scene.coordinator.send(signal.SIGKILL)
        scene.tend()
    finally:
        scene.end()
    scene.check_journal(200, everybody=False)
    assert scene.digest == replayed(scene)


@pytest.mark.slow
def test_where_everybody_is_needed_the_first_round_waits_for_the_last_to_join(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2, ("--steps", 5), joined=1)
    scene.start()
    try:
        scene.tend(lambda: scene.rows("SELECT count(*) FROM updates") == [(1,)])
        scene.join(1)
        scene.tend()
    finally:
        scene.end()
    scene.check_journal(5)
    assert scene.digest == simulated(tmp_path, scene)
