"""Kill -9 at every named point of coordinator and agent, in the first, a middle and the last round.

The points are enumerated, and whoever is armed must die of it: one that is never reached fails the test.
"""

from itertools import product
from pathlib import Path

import pytest
from fleet_processes import Scene, simulated

from edgewise.engines.fleet.faults import AGENT, COORDINATOR
from edgewise.records import rows

ROUNDS = 7
WHERE = (1, 4, ROUNDS)  # the rounds in which somebody dies
# Once one of these has killed the coordinator, all updates of the round may be in the journal, and the others
# are not reached any more: a run for each. So it is with the agent's and the end of the last round.
LAST, AGENTS_LAST = ("taken", "told", "closed"), ("sent", "heard", "moved")
BOTH_WAYS = ("--codec", "topk:0.1", "--codec-down", "topk:0.1")
MIXED = ("--algorithm", "scaffold+fedlmd", "--server-momentum", 0.5)
SETTINGS = {
    "sync-sgd": ("--algorithm", "sync-sgd", "--steps", ROUNDS),
    "sync-sgd-lossy": ("--algorithm", "sync-sgd", "--steps", ROUNDS, *BOTH_WAYS),
    # Whose devices remember a control variate, are sent one, and keep to themselves which classes they have.
    "scaffold-lossy": (*MIXED, "--sync-every", 2, "--steps", 2 * ROUNDS, "--codec", "int4"),
}
SCORES = ("scored", "evaluated")  # of the coordinator, where devices evaluate
ALWAYS, SELDOM = ("--checkpoint-seconds", 0), ("--checkpoint-seconds", 1000)


def points(last: str, often: bool, scores: bool = False) -> list[str]:
    """All points of the coordinator, of `LAST` only one, in every place.

    Checkpoints come in the last round only, unless they come often.
    """
    return [
        f"{point}@{round}"
        for round in WHERE
        for point in COORDINATOR
        if point == last or point not in LAST
        if often or round == ROUNDS or point not in ("saving", "swept")
        if scores or point not in SCORES
    ]


def agents_points(last: str) -> list[str]:
    """All points of the agent in every place, of `AGENTS_LAST` only one in the last round."""
    return [
        f"{point}@{round}"
        for round in WHERE
        for point in AGENT
        if point == last or round < ROUNDS or point not in AGENTS_LAST
    ]


def run(scene: Scene, folder: Path) -> None:
    scene.play()
    scene.check_faults()
    scene.check_journal(ROUNDS)
    assert scene.digest == simulated(folder, scene)


def test_two_deaths_lose_nothing(tmp_path: Path) -> None:
    """A taste of the long ones below."""
    scene = Scene(tmp_path, 2, (*SETTINGS["sync-sgd-lossy"], "--steps", 3), ALWAYS)
    scene.coordinator.faults, scene.agents[0].faults = ["taken@2"], ["heard@2"]
    scene.play()
    scene.check_faults()
    scene.check_journal(3)
    assert scene.digest == simulated(tmp_path, scene)


@pytest.mark.slow
def test_deaths_where_devices_take_unequal_steps_lose_nothing(tmp_path: Path) -> None:
    """Their momentum is averaged, so what is sent beside the state has to be the same again, too."""
    passes = ("--algorithm", "fedprox", "--local-momentum", "average", "--local-epochs", 0.03, "--lr", 0.05)
    settings = (*passes, "--codec", "topk:0.3", "--steps", 4 * ROUNDS, "--partition", "quantity:1")
    scene = Scene(tmp_path, 3, settings, SELDOM)
    scene.coordinator.faults = ["opened@2", "taken@3", "closed@4", "combined@5"]
    scene.agents[0].faults, scene.agents[1].faults = ["heard@2", "moved@4"], ["sent@3"]
    scene.play()
    scene.check_faults()
    assert len(set(scene.rows("SELECT examples FROM devices"))) == 3
    assert scene.digest == simulated(tmp_path, scene)


@pytest.mark.slow
def test_a_fault_that_is_not_reached_is_noticed(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 1, (*SETTINGS["sync-sgd"], "--steps", 1))
    scene.agents[0].faults = ["asked@2"]  # there is no such round
    scene.play()
    with pytest.raises(AssertionError, match=r"still armed with \['asked@2'\]"):
        scene.check_faults()


@pytest.mark.slow
@pytest.mark.parametrize("often", [True, False], ids=["often", "seldom"])
@pytest.mark.parametrize(("last", "setting"), list(zip(LAST, SETTINGS, strict=True)))
def test_the_coordinator_dies_at_every_point(last: str, setting: str, often: bool, tmp_path: Path) -> None:
    scene = Scene(tmp_path, 3, SETTINGS[setting], ALWAYS if often else SELDOM)
    scene.coordinator.faults = points(last, often)
    run(scene, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("often", [True, False], ids=["often", "seldom"])
def test_evaluations_by_devices_outlive_the_coordinator(often: bool, tmp_path: Path) -> None:
    plateau = ("--schedule", "plateau:0.5:0:0.02", "--eval-every", 1, "--lr", 0.3)
    policy = ("--shape", "1x8x8", "--classes", 10, *(ALWAYS if often else SELDOM))
    scenes = []
    for name in ("undisturbed", "disturbed"):
        (folder := tmp_path / name).mkdir()
        scenes.append(Scene(folder, 3, (*SETTINGS["sync-sgd-lossy"], *plateau), policy))
    scenes[1].coordinator.faults = points("closed", often, scores=True)
    for scene in scenes:
        scene.play()
        scene.check_journal(ROUNDS)
    scenes[1].check_faults()
    names = ("lr", "train_loss", "accuracy", "loss", "per_class", "worst_device")
    names = (*names, "drift_cosine", "drift_diversity", "forgetting")
    ours, others = ([[row.get(name) for name in names] for row in rows(one.home.run)] for one in scenes)
    assert ours == others
    assert len({row[0] for row in ours}) > 1  # the schedule heard them
    assert scenes[0].digest == scenes[1].digest


@pytest.mark.slow
@pytest.mark.parametrize(("last", "setting"), list(zip(AGENTS_LAST, SETTINGS, strict=True)))
def test_an_agent_dies_at_every_point(last: str, setting: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2, SETTINGS[setting], ALWAYS)
    scene.agents[1].faults = agents_points(last)
    run(scene, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_coordinator_and_an_agent_die_in_the_same_round(setting: str, tmp_path: Path) -> None:
    pairs = list(product((point for point in COORDINATOR if point not in SCORES), AGENT))
    rounds = len(pairs) + 1  # in the last one nobody dies: nobody would be left to be killed
    local = 2 if setting == "scaffold-lossy" else 1
    scene = Scene(tmp_path, 2, (*SETTINGS[setting], "--steps", rounds * local), ALWAYS)
    scene.coordinator.faults = [f"{one}@{round}" for round, (one, _) in enumerate(pairs, 1)]
    scene.agents[0].faults = [f"{other}@{round}" for round, (_, other) in enumerate(pairs, 1)]
    scene.play()
    scene.check_faults()
    scene.check_journal(rounds)
    assert scene.digest == simulated(tmp_path, scene)
