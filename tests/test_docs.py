"""Every command and every Python block of the pages runs; the generated reference is up to date."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command import edgewise
from PIL import Image

from edgewise.cli import edgewise as group

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HOW_TO = ROOT / "docs" / "from-batchnorm-to-device.md"
LONG = {"--epochs", "--steps", "--width", "--batch", "--eval-every", "--data-dir", "--checkpoint-seconds"}
TINY = ["--steps", "2", "--width", "4", "--batch", "4", "--eval-every", "0"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(page: Path, kinds: set[str]) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind in kinds]


def commands(page: Path) -> list[str]:
    """Every line of a code block that begins with the command, without its comment."""
    lines = "\n".join(blocks(page, {"", "sh"})).splitlines()
    found = [re.sub(r"\s+#.*", "", line).removeprefix(".venv/bin/") for line in lines]
    return [line for line in found if line.startswith("edgewise ") and not line.startswith("edgewise/")]


def small(words: list[str]) -> list[str]:
    """The same command at a size for tests: two steps of a narrow net, on digits for CIFAR-10."""
    if words[0] not in ("run", "inspect", "ongoing") or "--resume" in words:
        return words
    kept, skip = [], False
    for word in words:
        if not skip and word not in LONG:
            kept.append("digits" if word == "cifar10" else word)
        skip = not skip and word in LONG
    return kept + TINY


def test_commands_are_made_small_and_nothing_else() -> None:
    assert small(["run", "--epochs", "7", "--data", "cifar10", "--norm", "group"]) == [
        *("run", "--data", "digits", "--norm", "group"),
        *TINY,
    ]
    assert small(["report", "runs", "--steps", "9"]) == ["report", "runs", "--steps", "9"]


def parse(words: list[str]) -> None:
    """Hold a command's words to the command line as it is, without running it."""
    found: click.Command = group
    while isinstance(found, click.Group) and words[0] in found.commands:
        found, words = found.commands[words[0]], words[1:]
    found.make_context(found.name, words)


def test_every_command_of_the_pages_parses() -> None:
    lines = [(page.name, line) for page in PAGES for line in commands(page)]
    for name, line in lines:
        try:
            parse(shlex.split(line.rstrip(" &"))[1:])
        except (click.ClickException, SystemExit) as error:
            pytest.fail(f"{name}: {line}: {error}")
    assert len(lines) > 30


def elsewhere(line: str) -> bool:
    """Whether another test plays a command: fleets take several terminals, figures an hour
    (tests/test_docs_fleet.py, tests/test_experiments.py)."""
    return line.split()[1] in ("coordinator", "agent", "reproduce") or "--engine fleet" in line


def take_for_granted(words: list[str], folder: Path) -> None:
    """Runs that a command reads and its page does not make."""
    if words[0] not in ("report", "export"):
        return
    for name in words[1 : next((i for i, w in enumerate(words) if w.startswith("-")), None)]:
        if not (folder / name).exists():
            made = edgewise("run", *TINY, "--out", name if "/" in name else f"{name}/one", folder=folder)
            assert made.status == 0, made.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page) and page != HOW_TO], ids=lambda page: page.stem
)
def test_every_command_of_a_page_runs_at_a_small_size(page: Path, tmp_path: Path) -> None:
    """In the order of the page, in one folder: what a command reads, an earlier one has written."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for line in commands(page):
        if elsewhere(line):
            continue
        words = small(shlex.split(line)[1:])
        take_for_granted(words, tmp_path)
        done = edgewise(*words, folder=tmp_path)
        assert done.status == 0, (line, done.err[-800:])


def test_python_of_your_own_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for block in blocks(ROOT / "docs" / "your-own.md", {"python"}):
        done = edgewise(folder=tmp_path, program=f"import sys; sys.path.insert(0, '.')\n{block}")
        assert done.status == 0, done.err


@pytest.mark.slow
def test_the_how_to_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Every block as it stands, shell and Python, in order, in one folder."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    Image.new("L", (40, 40), 120).save(tmp_path / "picture.png")
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for kind, body in FENCE.findall(HOW_TO.read_text(encoding="utf-8")):
        program = [sys.executable, "-c", body] if kind == "python" else ["bash", "-e", "-c", body]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (body, done.stderr[-2000:])
    made = {path.name for path in (tmp_path / "runs" / "shelf").rglob("*") if path.is_file()}
    assert {"model.onnx", "model.pte", "predict_onnx.py", "predict_executorch.py", "model.pte.json"} <= made
    assert (tmp_path / "out" / "inspect.html").exists()


def test_links_of_the_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not link.startswith("http") and not (page.parent / link).exists():
                broken.append(f"{page.name}: {link}")
    assert broken == []


def test_the_reference_is_what_the_docstrings_say() -> None:
    with contextlib.chdir(ROOT):
        done = subprocess.run(
            [sys.executable, "docs/generate_api.py", "--check"], capture_output=True, text=True
        )
    assert done.returncode == 0, "docs/api.md is out of date: make reference"
