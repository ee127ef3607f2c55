"""Recipes: a name that stands for several settings at once, wherever an algorithm's name can stand.

    --algorithm steady    the algorithm, norm, head and aggregation below, where none is given

Where they come from, and what each is good for: docs/steady.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewise import models

RECIPES: dict[str, dict[str, Any]] = {
    "steady": {
        "algorithm": "fedlmd",
        "norm": "group-ws",
        "head": "etf",
        "aggregate": "fedexp",
    },
}
PLUS = "+"


def expand(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings with a recipe's in place of its name; what is given beside it stands.

    A model of the user's takes the recipe's norm and head as far as its function takes any.
    """
    words = str(flat.get("algorithm") or "").split(PLUS)
    named = next((word for word in words if word in RECIPES), None)
    if named is None:
        return dict(flat)
    recipe = RECIPES[named]
    algorithm = PLUS.join(recipe["algorithm"] if word == named else word for word in words)
    given = {name: value for name, value in flat.items() if value is not None}
    model = given.get("model", "resnet18")
    fitting = {name: value for name, value in recipe.items() if _takes(name, model, given)}
    return {**fitting, **given, "algorithm": algorithm}


def fold(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings with the name of a recipe in place of all that it stands for, where they are its own."""
    for name, recipe in RECIPES.items():
        if all(flat.get(key) == value for key, value in recipe.items()):
            return {**flat, **dict.fromkeys(recipe), "algorithm": name}
    return dict(flat)


def _takes(name: str, model: str, given: Mapping[str, Any]) -> bool:
    if name == "norm" and given.get("convert"):
        return True
    return name not in ("norm", "head") or models.takes(name, model)
