"""Objectives by hand-computed numbers, and the examples that use them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from edgewise import BinaryCrossEntropy, Config, CrossEntropy, Dataset, SquaredError
from edgewise.assemble import assemble
from edgewise.errors import EdgewiseError
from edgewise.objectives import OBJECTIVES

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_scores_and_losses_by_hand() -> None:
    outputs = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    assert CrossEntropy().scores(outputs, torch.tensor([0, 0])).tolist() == [1, 0]
    regression = SquaredError(tolerance=0.5)
    y = torch.tensor([[1.5, -1.0], [0.5, 1.0]])
    assert regression.losses(outputs, y).tolist() == [0.125, 2.0]
    assert regression.scores(outputs, y).tolist() == [1, 0]
    several = BinaryCrossEntropy()
    assert several.scores(outputs, torch.tensor([[1.0, 1.0], [0.0, 1.0]])).tolist() == [0.5, 0.5]
    assert several.scores(-outputs.abs(), torch.zeros(2, 2)).tolist() == [1, 1]
    expected = -(torch.sigmoid(outputs[0, 0]).log() + torch.sigmoid(-outputs[0, 1]).log()) / 2
    assert torch.isclose(several.losses(outputs[:1], torch.tensor([[1.0, 0.0]]))[0], expected)


def test_label_smoothing_by_hand_and_in_training_only() -> None:
    smoothed, model = CrossEntropy(0.3), lambda x: x
    outputs, y = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64), torch.tensor([0])
    logs = outputs.log_softmax(1)
    by_hand = -(0.7 + 0.1) * logs[:, 0] - 0.1 * logs[:, 1] - 0.1 * logs[:, 2]
    assert torch.allclose(smoothed(model, outputs, y), by_hand, rtol=0, atol=1e-15)
    assert torch.equal(smoothed.losses(outputs, y), -logs[:, 0])
    assert torch.equal(CrossEntropy()(model, outputs, y), -logs[:, 0])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_that_makes_no_sense_is_refused(smoothing: float) -> None:
    with pytest.raises(
        EdgewiseError, match=r"^objective: cross-entropy:.*legal: a label smoothing from 0, below 1"
    ):
        CrossEntropy(smoothing)
    with pytest.raises(EdgewiseError, match=r"without label smoothing, not cross-entropy:0.1"):
        Config.of({"algorithm": "fedntd", "objective": "cross-entropy:0.1"})


def test_mixup_needs_a_loss_that_takes_shares_and_someone_to_mix_with() -> None:
    with pytest.raises(
        EdgewiseError, match=r"^augment: mixup gives an example shares of two classes, and fedlmd"
    ):
        Config.of({"algorithm": "fedlmd", "augment": "mixup:0.2"})
    with pytest.raises(EdgewiseError, match=r"^augment: mixup mixes the examples of a device's batch"):
        Config.of({"batch": 1, "augment": "mixup:0.2"})


def test_one_number_an_example_may_be_flat() -> None:
    assert SquaredError().losses(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 2.0])).tolist() == [1, 0]


def dataset(targets: torch.Tensor | None) -> Dataset:
    images, labels = torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6) % 2
    both = None if targets is None else (targets, targets)
    return Dataset.of("made", train=(images, labels), test=(images, labels), targets=both)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_says_how_many_outputs_it_needs(name: str) -> None:
    objective = OBJECTIVES[name]()
    made = dataset(None if name == "cross-entropy" else torch.ones(6, 3))
    parts = assemble(Config(devices=2, batch=2, width=2, objective=objective, steps=1), made)
    assert parts.model(torch.zeros(1, 1, 4, 4)).shape == (1, 2 if name == "cross-entropy" else 3)
    assert parts.devices[0].batches(parts.feed, 0, 1)


@pytest.mark.parametrize(
    ("objective", "targets", "says"),
    [
        (CrossEntropy(), torch.ones(6), "the data has targets"),
        (SquaredError(), None, "needs targets"),
        (BinaryCrossEntropy(), torch.full((6, 2), 0.5), "0 or 1"),
    ],
)
def test_data_that_does_not_suit(objective: object, targets: torch.Tensor | None, says: str) -> None:
    with pytest.raises(EdgewiseError, match=says):
        assemble(Config(devices=2, batch=2, objective=objective, steps=1), dataset(targets))  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", [torch.ones(5), torch.ones(6, 1, 1), torch.full((6,), float("nan"))])
def test_targets_that_cannot_be(targets: torch.Tensor) -> None:
    with pytest.raises(EdgewiseError, match="targets must be"):
        dataset(targets)
    with pytest.raises(EdgewiseError, match="legal: a tolerance above 0"):
        SquaredError(tolerance=float("nan"))


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "steps", "constant"), [("regression", 60, 0.31), ("multilabel", 40, 0.45)])
def test_the_examples_learn(name: str, steps: int, constant: float, tmp_path: Path) -> None:
    """More than the best answer that is the same for every picture."""
    assert example(name).main(str(tmp_path / "run"), steps=steps) > constant + 0.15
