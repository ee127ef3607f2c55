"""The codecs' benchmark has a line for every codec, and its numbers are what it says they are."""

from __future__ import annotations

import json
import math
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

from edgewise.codecs import CODECS, Sending, parse, without_feedback

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """By its path: a module of the standard library has its name."""
    sys.path.insert(0, str(BENCHMARKS))  # it imports its neighbour
    spec = spec_from_file_location("benchmark_codecs", BENCHMARKS / "codecs.py")
    assert spec and spec.loader
    module = sys.modules["benchmark_codecs"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_line_for_every_text_and_a_text_for_every_codec(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "costs.json"
    assert benchmark.main(["--size", "41000", "--rounds", "1", "--json", str(file)]) == 0
    about, *lines = capsys.readouterr().out.splitlines()
    assert "threads: 1; 41,000 values, 1 rounds" in about
    assert [line.partition(": ")[0] for line in lines] == list(benchmark.TEXTS)
    assert {text.split(":")[0] for text in benchmark.TEXTS} == CODECS.keys()
    content = json.loads(file.read_text())
    assert content["about"] == about and list(content["codecs"]) == list(benchmark.TEXTS)
    assert content["codecs"]["none"]["gaussian"] == 0 and content["codecs"]["none"]["bytes"] == 164_000
    assert content["codecs"]["int8"]["ratio"] == pytest.approx(164_000 / (41_000 + 81 * 4))


def test_a_codec_without_a_line_is_a_failure(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "TEXTS", tuple(text for text in benchmark.TEXTS if "sign" not in text))
    assert benchmark.main(["--size", "10"]) == 1
    assert capsys.readouterr().out == "no line for: sign; add one to TEXTS in codecs.py\n"


def test_the_error_is_relative_and_squared(benchmark: ModuleType) -> None:
    vector = torch.tensor([1.0, -1.0, 3.0, -3.0])  # sent as 2 each
    codec = without_feedback(parse("sign"))
    assert benchmark.error(codec, vector, benchmark.layout(4), Sending(fed=True)) == pytest.approx(4 / 20)


@pytest.mark.parametrize("size", [1, 36_863, 36_864, 2_400_001])
def test_the_layout_holds_the_vector(benchmark: ModuleType, size: int) -> None:
    entries = benchmark.layout(size).params
    assert sum(math.prod(entry.shape) for entry in entries) == size == benchmark.layout(size).count
    assert [entry.start for entry in entries[1:]] == [entry.stop for entry in entries[:-1]]


@pytest.mark.parametrize("option", ["--size", "--rounds"])
def test_zero_is_refused(benchmark: ModuleType, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        benchmark.main([option, "0"])
    assert stop.value.code == 2
    assert "at least 1" in capsys.readouterr().err
