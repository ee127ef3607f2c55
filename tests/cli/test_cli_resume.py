"""`edgewise run --resume`: a run goes on as it was, or says in one line why it cannot."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command import edgewise

from edgewise import records

SETTINGS = ("--devices", 4, "--batch", 8, "--width", 4, "--steps", 6, "--eval-every", 3, "--lr", 0.05)
PARTS = ("--partition", "dirichlet:.50", "--schedule", "plateau", "--set", "schedule.patience=3")
SPELLED = (*PARTS, "--set", "sgd.scalar_share=0.20", "--augment", "flip,crop:4", "--cohort", "0.75")
RUN = ("run", *SETTINGS, *SPELLED)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model is done, and whose summary was not written."""
    folder = tmp_path_factory.mktemp("stopped")
    assert edgewise(*RUN, "--out", "run", folder=folder).status == 0
    (folder / "run" / records.SUMMARY).unlink()
    return folder / "run"


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path


CHANGES: dict[str, tuple[tuple[object, ...], str, str]] = {
    "lr": (("--lr", 0.2), "0.05", "0.2"),
    "seed": (("--seed", 1), "0", "1"),
    "steps": (("--steps", 9), "6", "9"),
    "epochs": (("--epochs", 3), "its default", "3.0"),
    "devices": (("--devices", 5), "4", "5"),
    "batch": (("--batch", 9), "8", "9"),
    "partition": (("--partition", "dirichlet:0.6"), "'dirichlet:0.5'", "'dirichlet:0.6'"),
    "model": (("--model", "fixup-resnet18"), "'resnet18'", "'fixup-resnet18'"),
    "norm": (("--norm", "batch"), "'group'", "'batch'"),
    "algorithm": (("--algorithm", "fedavg"), "'sync-sgd'", "'fedavg'"),
    "sync_every": (("--sync-every", 2), "1", "2"),
    "momentum": (("--momentum", 0), "0.9", "0.0"),
    "nesterov": (("--nesterov",), "False", "True"),
    "schedule": (("--set", "schedule.patience=4"), "'plateau:0.1:3'", "'plateau:0.1:4'"),
    "set sgd.scalar_share": (("--set", "sgd.scalar_share=0.1"), "0.2", "its default"),
    "warmup_epochs": (("--warmup-epochs", 1), "0.0", "1.0"),
    "augment": (("--augment", "flip"), "'crop,flip'", "'flip'"),
    "cohort": (("--cohort", 2), "0.75", "2.0"),
    "server_lr": (("--server-lr", 1), "its default", "1.0"),
    "eval_every": (("--eval-every", 1), "3", "1"),
    "fused": (("--fused", "off"), "'on'", "'off'"),
    "kernels": (("--kernels", "compiled"), "'torch'", "'compiled'"),
    "precision": (("--precision", "fp64"), "'fp32'", "'fp64'"),
    "threads": (("--threads", 2), "1", "2"),
}


@pytest.mark.parametrize(("name", "change"), CHANGES.items(), ids=CHANGES)
def test_a_changed_setting_is_refused(
    name: str, change: tuple[tuple[object, ...], str, str], folder: Path
) -> None:
    flags, was, now = change
    before = {path: path.read_bytes() for path in (folder / "run").iterdir()}
    error = edgewise("run", *flags, "--out", "run", "--resume", folder=folder).error
    assert error == f"{name}: the run in run has {was}, not {now}; resume it as it was, or give another --out"
    assert {path: path.read_bytes() for path in (folder / "run").iterdir()} == before


def test_a_change_in_a_config_file_is_refused(folder: Path) -> None:
    (folder / "c.toml").write_text("lr = 0.2\n")
    error = edgewise("run", "c.toml", "--out", "run", "--resume", folder=folder).error
    assert error == "lr: the run in run has 0.05, not 0.2; resume it as it was, or give another --out"


def test_a_setting_that_no_run_can_have_is_named(folder: Path) -> None:
    error = edgewise("run", "--set", "sgd.x=1", "--out", "run", "--resume", folder=folder).error
    assert error.startswith("set: 'sgd.x' is unknown; one of: ")


@pytest.mark.parametrize(
    "flags",
    [RUN[1:], (), ("--partition", "dirichlet:5e-1"), ("--augment", "crop,flip"), ("--fused", "auto")],
    ids=["the same command", "nothing", "another spelling", "another order", "left open"],
)
def test_the_same_settings_go_on(flags: tuple[object, ...], folder: Path) -> None:
    assert edgewise("run", *flags, "--out", "run", "--resume", folder=folder).status == 0
    assert records.summary(folder / "run") is not None


def test_the_run_s_own_config_goes_on(folder: Path) -> None:
    assert edgewise("run", "run/config.toml", "--out", "run", "--resume", folder=folder).status == 0


def bit(raw: bytes) -> bytes:
    return raw[:-1000] + bytes([raw[-1000] ^ 1]) + raw[-999:]


def number(raw: bytes) -> bytes:
    assert raw.count(rb"\"round\": 6") == 1
    return raw.replace(rb"\"round\": 6", rb"\"round\": 5")


SPOIL: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda raw: raw[:-1000], "not a readable checkpoint"),
    "empty": (lambda raw: b"", "not a readable checkpoint"),
    "a bit of a tensor": (bit, "the checkpoint is damaged"),
    "a number of its note": (number, "the checkpoint is damaged"),
    "another kind of file": (lambda raw: b"PK\x03\x04" * 99, "not a readable checkpoint"),
}


@pytest.mark.parametrize(("spoil", "says"), SPOIL.values(), ids=SPOIL)
def test_a_damaged_checkpoint_is_refused(spoil: Callable[[bytes], bytes], says: str, folder: Path) -> None:
    path = folder / "run" / records.CHECKPOINT
    spoilt = spoil(path.read_bytes())
    path.write_bytes(spoilt)
    error = edgewise("run", "--out", "run", "--resume", folder=folder).error
    assert error.startswith(f"run/{records.CHECKPOINT}: {says}")
    assert path.read_bytes() == spoilt


@pytest.mark.parametrize("flags", [("--width", 8), ("--norm", "layer"), ("--precision", "fp64")])
def test_a_checkpoint_of_another_run_is_refused(flags: tuple[object, ...], folder: Path) -> None:
    assert edgewise(*RUN, *flags, "--out", "other", folder=folder).status == 0
    shutil.copy(folder / "other" / records.CHECKPOINT, folder / "run")
    error = edgewise("run", "--out", "run", "--resume", folder=folder).error
    assert error.startswith(f"{flags[0].strip('-')}: run/{records.CHECKPOINT} has ")


def test_a_model_that_changed_is_noticed(tmp_path: Path) -> None:
    code = "import torch\ndef made(shape, classes):\n    return torch.nn.Sequential(torch.nn.Flatten(), {})\n"
    module = tmp_path / "made_model.py"
    module.write_text(code.format("torch.nn.Linear(64, classes)"))
    assert edgewise(*RUN, "--model", "made_model:made", "--out", "run", folder=tmp_path).status == 0
    (tmp_path / "run" / records.SUMMARY).unlink()
    module.write_text(code.format("torch.nn.Linear(64, 20), torch.nn.Linear(20, classes)"))
    error = edgewise("run", "--out", "run", "--resume", folder=tmp_path).error
    assert error == f"run/{records.CHECKPOINT}: the checkpoint belongs to another model"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (records.CONFIG, "version = 2", "a config of version 2; this edgewise reads version 1"),
        (records.CONFIG, "lr = ", "not a readable TOML file"),
        (records.CONFIG, "lr = -1", "lr: -1 is out of range"),
        (records.SUMMARY, "{", "not a readable summary"),
        (records.SUMMARY, "{}", "not the summary of a run; remove it, and --resume writes it again"),
        (records.PARTITION, "device,examples\n", "devices held other examples when the run began"),
        (records.ROUNDS, "", "not the 6 rounds that the checkpoint came after"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str, says: str, folder: Path) -> None:
    (folder / "run" / name).write_text(content)
    error = edgewise("run", "--out", "run", "--resume", folder=folder).error
    assert error.startswith(f"run/{name}: {says}")


def test_a_config_that_was_edited_is_noticed(folder: Path) -> None:
    path = folder / "run" / records.CONFIG
    path.write_text(path.read_text().replace("momentum = 0.9", "momentum = 0.8"))
    error = edgewise("run", "--out", "run", "--resume", folder=folder).error
    assert (
        error
        == f"momentum: run/{records.CHECKPOINT} has 0.9, not 0.8; resume it as it was, or give another --out"
    )


def test_a_folder_without_its_config(folder: Path) -> None:
    (folder / "run" / records.CONFIG).unlink()
    for flags in ((), ("--resume",)):
        error = edgewise(*RUN, "--out", "run", *flags, folder=folder).error
        assert error.startswith("run: holds checkpoint.safetensors of a run without config.toml")


def test_a_folder_that_is_not_there_begins(tmp_path: Path) -> None:
    assert edgewise(*RUN, "--out", "a/b", "--resume", folder=tmp_path).status == 0
    assert len(records.rows(tmp_path / "a" / "b")) == 6
