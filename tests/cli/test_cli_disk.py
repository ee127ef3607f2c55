"""A full disk, for every kind of file: one line, nothing committed is lost, and the run goes on later."""

from pathlib import Path

import pytest
from command import Done, edgewise

from edgewise import records
from edgewise.config import Config
from edgewise.rounds import run

RUN = ("run", "--devices", 4, "--batch", 8, "--width", 4, "--steps", 12, "--eval-every", 6)
FULL = "cannot be written (No space left on device)"
TOO_LARGE = "cannot be written (File too large)"


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("alone")
    assert edgewise(*RUN, "--out", "run", folder=folder).status == 0
    return model_digest(folder / "run")


def model_digest(folder: Path) -> str:
    return str((records.summary(folder) or {})["model_digest"])


def last_line(done: Done) -> str:
    """What a failed run says at the end, after what it showed while all went well."""
    assert (done.status, done.out) == (2, ""), done
    assert "Traceback" not in done.err and done.err.endswith("\n")
    return done.err.splitlines()[-1]


@pytest.mark.parametrize(
    "name", [records.PARTITION, records.CONFIG, records.CHECKPOINT, records.MODEL, records.SUMMARY]
)
def test_a_file_that_finds_no_space(name: str, digest: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".{name}.part").symlink_to("/dev/full")  # under this name it is written first
    done = edgewise(*RUN, "--out", "run", folder=tmp_path)
    assert last_line(done) == f"edgewise: run/{name}: {FULL}"
    assert not (tmp_path / "run" / name).exists()
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    assert edgewise(*RUN, "--out", "run", "--resume", folder=tmp_path).status == 0
    assert model_digest(tmp_path / "run") == digest


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        (100, records.PARTITION),
        (350, records.CONFIG),
        (1000, records.ROUNDS),
        (5000, records.CHECKPOINT),
        (250_000, records.CHECKPOINT),
    ],
)
def test_a_limit_anywhere(limit: int, name: str, digest: str, tmp_path: Path) -> None:
    done = edgewise(*RUN, "--out", "run", folder=tmp_path, limit=limit)
    assert last_line(done) == f"edgewise: run/{name}: {TOO_LARGE}"
    assert all(path.stat().st_size <= limit for path in (tmp_path / "run").iterdir())
    assert edgewise(*RUN, "--out", "run", "--resume", folder=tmp_path).status == 0
    assert model_digest(tmp_path / "run") == digest
    assert [row["round"] for row in records.rows(tmp_path / "run")] == list(range(1, 13))


AFTER_A_COMMIT = [(500, 9, records.ROUNDS), (1200, 9, records.ROUNDS), (5000, 0, records.CHECKPOINT)]


@pytest.mark.parametrize(("limit", "seconds", "name"), AFTER_A_COMMIT)
def test_what_was_committed_survives(
    limit: int, seconds: int, name: str, digest: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for row in run(Config(devices=4, batch=8, width=4, steps=12, eval_every=6), out):
        if row.round == 4:
            break  # which commits it
    committed, kept = (out / records.CHECKPOINT).read_bytes(), records.rows(out)
    flags = ("--out", "run", "--resume", "--checkpoint-seconds", seconds)
    done = edgewise(*RUN, *flags, folder=tmp_path, limit=limit)
    assert last_line(done) == f"edgewise: run/{name}: {TOO_LARGE}"
    assert (out / records.CHECKPOINT).read_bytes() == committed
    assert records.rows(out)[:4] == kept
    assert edgewise(*RUN, *flags, folder=tmp_path).status == 0
    assert model_digest(out) == digest
    assert records.rows(out)[:4] == kept
