"""`edgewise report`: what it prints and writes, and one line for what it cannot do."""

import re
from pathlib import Path

import click
import pytest
from command import edgewise
from written import learning, write_run

from edgewise.cli.report import NETWORKS, _network, report
from edgewise.network import NETWORKS as NAMED
from edgewise.network import Network, parse


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "out/figure/runs/group", learning(0.5, 0.8), norm="group")
    write_run(tmp_path / "out/figure/runs/batch", learning(0.2, 0.6), norm="batch")
    return tmp_path


def test_a_report_is_printed_and_written(folder: Path) -> None:
    done = edgewise("report", "out/figure", folder=folder)
    assert (done.status, done.err) == (0, "")
    assert "norm batch" in done.out and "To reach 60.0% for the first time" in done.out
    assert "wrote out/report/report.csv, out/report/report.md, out/report/report.png\n" in done.out
    assert {path.name for path in (folder / "out/report").iterdir()} == {
        "report.csv",
        "report.md",
        "report.png",
    }
    assert "Command: `edgewise report out/figure`" in (folder / "out/report/report.md").read_text()


def test_what_is_piped_is_whole_and_plain(folder: Path) -> None:
    write_run(folder / "runs" / ("a-long-name-" * 12), learning(0.5), lr=0.123, batch=77)
    done = edgewise("report", "runs", "out", "--network", "3g", folder=folder, COLUMNS="60")
    lines = done.out.splitlines()
    (line,) = [line for line in lines if "a-long-name-" in line and "77" in line]
    assert "a-long-name-" * 12 in line and "50.0%" in line
    assert "\x1b" not in done.out and all(line == line.rstrip() for line in lines)


def test_a_name_with_brackets_is_shown_as_it_is(folder: Path) -> None:
    write_run(folder / "[bold]red[x] 100% $a$", learning(0.5))
    done = edgewise("report", "[bold]red[x] 100% $a$", folder=folder)
    assert done.status == 0 and "[bold]red[x] 100% $a$" in done.out


def test_the_network_reaches_the_numbers(folder: Path) -> None:
    fleet = ("--network", "link:0.008:0.016", "--step-seconds", 2, "--server", 1000, "--spread", 0)
    done = edgewise("report", "out", *fleet, "--out", "here", folder=folder)
    assert done.status == 0, done
    # Two rounds, each: 3,000 bytes down in 1.5 s, five steps in 10 s, 1,000 bytes up in 1 s.
    assert re.search(r"group .* 25.0 s$", done.out, re.M) and "time on link:0.008:0.016" in done.out
    line = "Command: `edgewise report out --network link:0.008:0.016 --step-seconds 2"
    assert line in (folder / "here/report.md").read_text()


def test_every_flag_of_the_fleet_reaches_the_network() -> None:
    fleet = ["--spread", "0.5", "--step-seconds", "2", "--step-spread", "0.25", "--server", "100"]
    given = report.make_context("report", ["x", "--network", "3g", *fleet, "--network-seed", "7"]).params
    flags = {name: given[name] for name in ("spread", "step", "step_spread", "server", "seed")}
    described = Network(parse("3g"), spread=0.5, step=2, step_spread=0.25, server=100, seed=7)
    assert _network(given["network"], flags) == described
    assert _network(None, {}) is None


def test_a_target(folder: Path) -> None:
    assert "To reach 75.0% " in edgewise("report", "out", "--target", 0.75, folder=folder).out


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "nothing": ((), "Missing argument 'DIR...'"),
    "gone": (("gone",), "gone: no such folder"),
    "a file": (("file",), "file: no such folder"),
    "no runs": (
        ("empty",),
        r"empty: holds no run \(config.toml and rounds.jsonl\), nor do the folders in it",
    ),
    "damaged": (("damaged",), r"damaged/rounds.jsonl: line 1 is damaged"),
    "network": (("out", "--network", "lan"), "--network: 'lan' is unknown; one of: ethernet, .*link:UP:DOWN"),
    "link": (("out", "--network", "link:1"), "--network: 'link:1' lacks a value"),
    "spread": (("out", "--network", "lte", "--spread", -1), "network: spread cannot be -1; legal: 0 to 5"),
    "spread of what": (("out", "--spread", 1), "--spread: of which network.* --network"),
    "steps of what": (("out", "--step-seconds", 1), "--step-seconds: of which network"),
    "seed of what": (("out", "--network-seed", 1), "--network-seed: of which network"),
    "time on what": (("out", "--against", "seconds"), "--against seconds: on which network.* --network"),
    "against what": (("out", "--against", "nonsense"), "--against.*'steps', 'bytes', 'seconds'"),
    "target": (("out", "--target", 70), "--target.*0<=x<=1"),
    "out": (("out", "--out", "file/x"), "file/x: cannot be written"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, folder: Path) -> None:
    arguments, says = BAD[case]
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    (write_run(folder / "damaged", []) / "rounds.jsonl").write_text("{}\n")
    done = edgewise("report", *arguments, folder=folder)
    if case == "out":  # the tables come first: they are there, whatever becomes of the files
        assert (done.status, done.err.count("\n")) == (2, 1) and re.search(says, done.err), done
    else:
        assert re.search(says, done.error), done
    assert not (folder / "out/report").exists()


def test_the_help_names_every_network_and_every_form() -> None:
    named = NETWORKS.split(", or ")[0].split(", ")
    assert named == list(NAMED)
    form = re.search(r"link:\S+", NETWORKS)
    assert form is not None and form[0] == "link:UP:DOWN[:LATENCY[:LOSS]]"
    assert parse("link:1:2:3:0.4").loss == 0.4


def test_every_flag_is_in_the_docs() -> None:
    pages = [(Path(__file__).parents[2] / "docs" / name).read_text() for name in ("report.md", "network.md")]
    for option in report.params:
        if isinstance(option, click.Option):
            assert f"`{option.opts[0]} " in "".join(pages), option.opts
