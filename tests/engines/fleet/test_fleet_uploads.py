"""Uploads of several chunks: cut off by a death, they go on from where they were, or say what is wrong."""

from pathlib import Path

import pytest
from fleet_processes import Scene, simulated

from edgewise.engines.fleet.messages import CHUNK

STEPS = 3
WIDE = ("--steps", STEPS, "--width", 14_000)  # an update of four chunks and a part of one


def arrived(scene: Scene, round: int) -> set[tuple[int, int, int]]:
    """Device, round and bytes of updates that lie in the spool and do not count yet."""
    files = scene.folder.glob(f"home/spool/*/{round}/*.update")
    sizes = {int(file.name.partition("-")[0]): file.stat().st_size for file in files}
    count = {device for (device,) in scene.rows(f"SELECT device FROM updates WHERE round = {round}")}
    return {(device, round, size) for device, size in sizes.items() if size and device not in count}


def resumed(scene: Scene) -> set[tuple[int, int, int]]:
    """Device, round and offset of uploads that went on."""
    rows = scene.log("coordinator", "resumed")
    return {(row["device"], row["round"], int(row["words"].split()[1])) for row in rows}


@pytest.mark.slow
def test_an_upload_goes_on_where_it_was_when_the_coordinator_died(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2, WIDE, ("--checkpoint-seconds", 1000))
    scene.coordinator.faults = ["arriving@2"] * 4
    left: list[set[tuple[int, int, int]]] = []
    scene.coordinator.between = lambda: left.append(arrived(scene, 2))
    scene.play()
    scene.check_faults()
    scene.check_journal(STEPS)
    assert scene.digest == simulated(tmp_path, scene)
    # Every death left a chunk more than the one before, and the next life went on from there.
    assert len(left) == 4 and all(left)
    assert resumed(scene) == set().union(*left), scene.report()
    assert max(size for _, _, size in left[-1]) >= 2 * CHUNK


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["shorter", "zeros"])
def test_a_part_that_a_loss_of_power_damaged_is_sent_again(damage: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path, 1, WIDE, ("--checkpoint-seconds", 0))
    scene.coordinator.faults = ["arriving@2"] * 3
    sizes: list[int] = []

    def spoil() -> None:
        (file,) = tmp_path.glob("home/spool/*/2/*.update")
        sizes.append(file.stat().st_size)
        if len(sizes) == 3:
            length = CHUNK // 2 if damage == "shorter" else file.stat().st_size
            content = file.read_bytes()[:length] if damage == "shorter" else bytes(length)
            file.write_bytes(content)

    scene.coordinator.between = spoil
    scene.play()
    scene.check_faults()
    scene.check_journal(STEPS)
    assert sizes == [CHUNK, 2 * CHUNK, 3 * CHUNK]
    assert scene.digest == simulated(tmp_path, scene)
    assert scene.rows("SELECT flags FROM devices") == [(0,)]  # the device is not at fault
    deferred = scene.rows("SELECT words FROM events WHERE kind = 'deferred'")
    assert [("damaged" in words) for (words,) in deferred] == ([True] if damage == "zeros" else [])


def flip(file: Path, at: int) -> None:
    """Change one bit of a file, or change it back."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [WIDE, ("--steps", STEPS)], ids=["in a file", "among others"])
def test_an_update_that_counts_and_is_damaged_stops_the_run_with_one_line(
    settings: tuple[object, ...], tmp_path: Path
) -> None:
    scene = Scene(tmp_path, 2, settings, ("--checkpoint-seconds", 1000))
    scene.coordinator.faults = ["taken@2"]
    spoiled: list[tuple[Path, int]] = []

    def spoil() -> None:
        query = "SELECT device, digest, place, length FROM updates WHERE round = 2 LIMIT 1"
        ((device, digest, place, length),) = scene.rows(query)
        assert (place is None) == (settings is WIDE)
        name = f"2/{device}-{digest[:32]}.update" if place is None else "small.updates"
        (file,) = tmp_path.glob(f"home/spool/*/{name}")
        spoiled.append((file, (place or 0) + length - 1))
        flip(*spoiled[0])

    scene.coordinator.between = spoil
    scene.start()
    try:
        with pytest.raises(AssertionError, match="ended with 2") as caught:
            scene.tend()
        ((file, at),) = spoiled
        assert f"edgewise: {file.relative_to(tmp_path)}: damaged" in str(caught.value)
        assert "Traceback" not in str(caught.value)
        flip(file, at)  # an operator who has a copy of these bytes goes on
        scene.coordinator.start()
        scene.tend()
    finally:
        scene.end()
    scene.check_journal(STEPS)
    assert scene.digest == simulated(tmp_path, scene)
