"""A recipe's name stands for its settings; what is given beside it stands; a command can be folded back."""

from pathlib import Path
from typing import Any

import pytest
from command import edgewise

from edgewise import recipes
from edgewise.config import Config, read_toml
from edgewise.errors import EdgewiseError
from edgewise.inspection.advice import command
from edgewise.recipes import RECIPES, expand, fold

NAMES = list(RECIPES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_its_settings_by_hand(name: str) -> None:
    assert Config.of({"algorithm": name}) == Config.of(RECIPES[name])
    assert Config.of({"algorithm": name}) != Config.of({"algorithm": "fedavg"})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "given", [{"norm": "layer"}, {"head": "linear"}, {"server_momentum": 0.25}, {"lr": 1.0}]
)
def test_what_is_given_beside_it_stands(name: str, given: dict[str, Any]) -> None:
    ((key, value),) = given.items()
    assert Config.of({"algorithm": name, **given}).flat()[key] == value
    assert expand({"algorithm": name, key: None}).get(key) == RECIPES[name].get(key)


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_added_to_a_recipe(name: str) -> None:
    config = Config.of({"algorithm": f"{name}+clip:5"})
    assert set(config.flat()["algorithm"].split("+")) == {*RECIPES[name]["algorithm"].split("+"), "clip:5"}


def test_two_recipes_or_a_part_it_has_already_are_refused() -> None:
    taken = RECIPES["steady"]["algorithm"].split("+")[0]
    for text in (f"steady+{taken}", "steady+steady"):
        with pytest.raises(EdgewiseError, match=r"twice|together"):
            Config.of({"algorithm": text})


@pytest.mark.parametrize("name", NAMES)
def test_models_take_as_much_of_it_as_they_can(name: str) -> None:
    fixup = expand({"algorithm": name, "model": "fixup-resnet18"})
    assert "norm" not in fixup and fixup["head"] == RECIPES[name]["head"]
    foreign = expand({"algorithm": name, "model": "examples.shelf:model"})
    assert "norm" not in foreign and "head" not in foreign
    assert expand({**foreign, "algorithm": name, "convert": True})["norm"] == RECIPES[name]["norm"]
    with pytest.raises(EdgewiseError, match="model nonesuch: unknown"):
        expand({"algorithm": name, "model": "nonesuch"})


@pytest.mark.parametrize("name", NAMES)
def test_a_command_says_the_name(name: str) -> None:
    config = Config.of({"algorithm": name, "sync_every": 50, "lr": 0.05})
    said = command(config)
    assert f"--algorithm {name}" in said and "--norm" not in said and "--head" not in said
    other = Config.of({"algorithm": name, "norm": "layer"})
    assert f"--algorithm {name}" not in command(other)
    assert Config.of(expand(fold(config.flat()))) == config
    assert fold(Config().flat()) == Config().flat()


def test_a_run_of_a_recipe_writes_down_what_it_is_and_resumes(tmp_path: Path) -> None:
    tiny = ("--partition", "labels:2", "--width", 4, "--batch", 4, "--steps", 20, "--algorithm", "steady")
    edgewise("run", *tiny, "--out", "a", folder=tmp_path)
    written = read_toml(tmp_path / "a" / "config.toml")
    assert {key: written[key] for key in RECIPES["steady"]} == RECIPES["steady"]
    again = edgewise("run", *tiny, "--out", "a", "--resume", folder=tmp_path)
    assert again.status == 0
    other = edgewise("run", *tiny[:-1], "fedavg", "--out", "a", "--resume", folder=tmp_path)
    assert other.status == 2 and "algorithm" in other.error


def test_the_names_are_told() -> None:
    with pytest.raises(EdgewiseError, match=f"one of: .*{NAMES[0]}"):
        Config.of({"algorithm": "fedavgg"})
    assert set(recipes.RECIPES).isdisjoint({"fedavg", "sync-sgd"})
