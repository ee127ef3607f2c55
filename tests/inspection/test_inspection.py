"""What inspect measures against slow readings, what it foresees, and what its page and command show."""

from __future__ import annotations

import html.parser
import re
import shlex
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import edgewise

from edgewise import (
    SGD,
    Config,
    Dirichlet,
    FedAvg,
    Group,
    Iid,
    Inspection,
    Labels,
    Quantity,
    SyncSGD,
    inspect,
)
from edgewise.assemble import SkewedNorm, assemble
from edgewise.config import Config as Parsed
from edgewise.data.skew import BREAKS, apart, skew
from edgewise.experiments.forecast import area
from edgewise.inspection.advice import Findings, advise, command
from edgewise.inspection.table import verdict
from edgewise.models.norms import Batch, BatchLocal, BatchRenorm, BatchSync, NoNorm

TINY = Config(width=4, batch=8, norm=Batch(), partition=Labels(2), steps=2)


FEW = replace(TINY, devices=2, partition=Labels(5))


@pytest.fixture(scope="module")
def skewed() -> Inspection:
    return inspect(TINY)


@pytest.fixture(scope="module")
def even() -> Inspection:
    return inspect(replace(TINY, partition=Iid()))


def test_failure_is_foreseen_on_two_classes_a_device_and_not_on_iid(
    skewed: Inspection, even: Inspection
) -> None:
    assert skewed.fails and skewed.score == pytest.approx(8 / 9, abs=0.01)
    assert not even.fails and even.score < 0.15
    assert all(gap.breaks for gap in skewed.gaps) and not any(gap.breaks for gap in even.gaps)
    assert len(skewed.gaps) == 20


def test_a_score_near_the_threshold_says_what_such_splits_lost(skewed: Inspection) -> None:
    near = replace(skewed, skew=replace(skewed.skew, apart=0.8))
    assert not near.fails and "close to it; made splits from 0.75 on lost 4 to 20 points" in verdict(near)
    far = replace(skewed, skew=replace(skewed.skew, apart=0.7))
    assert "no failure of the norm expected" in verdict(far)
    found = Findings(
        apart=0.8,
        fails=False,
        norms=["norm"],
        broken=0,
        foreign=False,
        agreement=skewed.agreement,
        traffic=skewed.traffic,
    )
    assert "try group norm beside it" in advise(TINY, found)[0].change
    assert advise(TINY, replace(found, apart=0.7))[0].change == "keep it"


def test_a_norm_that_is_no_batch_s_is_foreseen_to_hold() -> None:
    for norm in (Group(), BatchSync(), BatchRenorm(), BatchLocal()):
        assert inspect(replace(FEW, norm=norm)).score == 0


@pytest.mark.parametrize(
    "partition", [Iid(), Labels(1), Labels(3, overlap=True), Dirichlet(0.3), Quantity(1)]
)
def test_the_share_of_pairs_apart_is_the_slow_reading(partition: object) -> None:
    held = assemble(replace(TINY, batch=4, norm=Group(), partition=partition)).held  # type: ignore[arg-type]
    total, kept = 0.0, 0.0
    sizes = held.sum(0).tolist()
    for a in range(10):
        for b in range(10):
            if a != b:
                one, other = held[:, a].double(), held[:, b].double()
                weight = sizes[a] * sizes[b]
                total += weight
                kept += weight * float(one @ other / (one.norm() * other.norm()))
    assert apart(held) == pytest.approx(1 - kept / total)


def test_divergence_is_none_for_one_mix_and_all_where_the_device_tells_the_label() -> None:
    same, own = torch.full((4, 3), 5), torch.eye(3, dtype=torch.int64) * 7
    assert skew(same).divergence == pytest.approx(0, abs=1e-12) and skew(own).divergence == pytest.approx(1)
    assert (skew(same).alone, skew(own).alone) == (0, 3)
    assert skew(torch.tensor([[1, 0], [3, 0]])).apart == 0  # one class: nothing to tell apart
    assert skew(torch.tensor([[1], [3]])).largest == 1.5


def test_nothing_of_the_run_is_changed_by_looking(skewed: Inspection) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkewedNorm)
        fresh = assemble(TINY)
    assert torch.equal(skewed.parts.model.params, fresh.model.params)
    assert torch.equal(skewed.parts.model.buffers, fresh.model.buffers)


def test_bytes_are_those_of_a_round(skewed: Inspection) -> None:
    parts = skewed.parts
    expected = 64 + parts.model.params.nbytes + parts.model.buffers.nbytes
    assert skewed.traffic.up == skewed.traffic.down == expected


def test_iid_devices_agree_as_iid_devices_do(even: Inspection) -> None:
    assert [a.steps for a in even.agreement] == [1, 3, 10]
    assert all(0.5 < a.drift < 2 for a in even.agreement)
    assert all(-1 <= a.cosine <= 1 and a.diversity >= 1 for a in even.agreement)


def test_every_advice_is_a_command_that_parses_to_what_it_says(skewed: Inspection) -> None:
    for advice in skewed.advice:
        program, run, *flags = shlex.split(advice.command)
        assert (program, run) == ("edgewise", "run") and advice.reason
        assert f"--{advice.what}" in flags, "what is advised is in the command, even if it is the default"
        named = dict(zip(flags[::2], flags[1::2], strict=True))
        config = Parsed.of({k.removeprefix("--").replace("-", "_"): _typed(v) for k, v in named.items()})
        assert config.norm == Group() and config.partition == Labels(2)


def _typed(word: str) -> object:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            pass
    return word


@pytest.mark.parametrize(
    "config",
    [
        *(
            TINY,
            Config(),
            replace(TINY, algorithm=FedAvg(sync_every=5, server_momentum=0.5), partition=Iid()),
        ),
        *(replace(TINY, algorithm=FedAvg(local_epochs=0.5)), replace(TINY, algorithm=FedAvg(sync_every=1))),
    ],
)
def test_a_command_is_its_config(config: Config) -> None:
    words = shlex.split(command(config))[2:]
    named = dict(zip(words[::2], words[1::2], strict=True))
    assert Parsed.of({k.removeprefix("--").replace("-", "_"): _typed(v) for k, v in named.items()}) == config


def test_where_steps_are_by_what_devices_hold_the_advice_knows_their_mean() -> None:
    found = inspect(replace(FEW, norm=Group(), algorithm=FedAvg(SGD(0.02), local_epochs=0.02)))
    (advice,) = (one for one in found.advice if one.what == "algorithm")
    every = round(0.02 * len(found.parts.dataset.train) / (2 * 8))  # type: ignore[union-attr]
    assert every > 1 and advice.change == f"fedavg as it is (K = {every})"
    assert "--local-epochs 0.02" in advice.command and "--sync-every" not in advice.command


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [
            str(v) for k, v in attrs if k in ("src", "href", "xlink:href") and not str(v).startswith("#")
        ]
        if tag not in ("meta", "br", "use", "path", "image"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_the_page_needs_no_other_file(skewed: Inspection) -> None:
    text = skewed.html()
    page = Page()
    page.feed(text)
    assert [link for link in page.links if not link.startswith("data:")] == []
    assert page.open == [] and "<script" not in text and "@import" not in text
    assert text.count("<svg") == 4 and "Score 0.89" in text and skewed.advice[0].command in text


def test_updates_that_are_not_finite_are_told(even: Inspection) -> None:
    wild = replace(FEW, norm=NoNorm(), algorithm=SyncSGD(SGD(lr=1e9)))
    found = inspect(wild)
    assert any("updates are not finite" in note for note in found.notes) and "not finite" in found.text
    assert not any("not finite" in note for note in even.notes)
    assert "updates are not finite" in found.html()


def test_names_in_the_page_are_escaped() -> None:
    data = assemble(replace(FEW, norm=Group())).dataset
    named = replace(data, name="<b>&", classes=("<i>", *data.classes[1:]))
    text = inspect(replace(FEW, norm=Group()), named).html()
    assert "<b>" not in text.split("<svg")[0].replace("<body>", "") and "&lt;b&gt;&amp;" in text


def test_the_command_exits_0_whatever_it_finds(tmp_path: Path) -> None:
    flags = ("--width", 4, "--batch", 4, "--norm", "batch", "--devices", 2, "--partition", "labels:1")
    done = edgewise("inspect", *flags, "--out", "a/b.html", folder=tmp_path)
    assert done.status == 0 and "expect to lose more than ten points" in done.out
    assert (tmp_path / "a" / "b.html").stat().st_size > 10_000
    assert re.search(r"^wrote a/b.html$", done.out, re.M)
    assert "unknown" in edgewise("inspect", "--norm", "x", folder=tmp_path).error
    (tmp_path / "file").touch()  # told before the measuring, which takes a minute
    assert "is no folder" in edgewise("inspect", *flags, "--out", "file/b.html", folder=tmp_path).error


def test_run_warns_once_in_one_line(tmp_path: Path) -> None:
    flags = ("run", "--width", 4, "--batch", 8, "--steps", 2, "--partition", "labels:2")
    done = edgewise(*flags, "--norm", "batch", folder=tmp_path)
    notes = [line for line in done.err.splitlines() if "note: norm" in line]
    assert done.status == 0 and len(notes) == 1 and "20 batch norms meet skewed labels: 89%" in notes[0]
    assert "note" not in edgewise(*flags, "--norm", "group", folder=tmp_path).err


def test_no_warning_where_devices_look_alike() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assemble(replace(TINY, partition=Iid()))
    assert apart(assemble(replace(TINY, norm=Group())).held) >= BREAKS


def test_the_area_under_the_curve() -> None:
    assert area([3, 2, 1], [True, False, False]) == 1
    assert area([1, 2, 3], [True, False, False]) == 0
    assert area([1, 1], [True, False]) == 0.5
