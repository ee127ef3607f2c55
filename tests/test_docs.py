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

import pytest
from command import Done, edgewise
from PIL import Image

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
    assert sum(len(commands(page)) for page in PAGES) > 30


def play(line: str, folder: Path) -> Done:
    _, *words = shlex.split(line)
    if words[0] == "reproduce":  # an hour: that its runs are legal is another test's; here that it parses
        return edgewise("reproduce", "--help", folder=folder)
    return edgewise(*small(words), folder=folder)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_every_command_of_a_page_runs_at_a_small_size(page: Path, tmp_path: Path) -> None:
    """In the order of the page, in one folder: what a command reads, an earlier one has written."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for run in ("topk", "first", "fixup"):  # folders that pages take for granted
        if f"runs/{run}" in page.read_text() and f"--out runs/{run}" not in "\n".join(commands(page)):
            edgewise("run", *TINY, "--out", f"runs/{run}", folder=tmp_path)
    for line in commands(page):
        if (
            "executorch" in line
            or "my_" in line
            or "DIR" in line
            or ("shelf:data" in line and "examples" not in line)
        ):
            continue  # its own test, and forms rather than commands
        done = play(line, tmp_path)
        assert done.status == 0, (line, done.err[-800:])


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem == "your-own"], ids=lambda page: page.stem)
def test_python_of_the_pages_runs(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for block in blocks(page, {"python"}):
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
    assert {"model.onnx", "model.pte", "predict.py", "model.json"} <= made
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
