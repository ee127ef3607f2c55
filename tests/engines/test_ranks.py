"""Ranks: a run spread over two processes ends where one process ends, and goes on from where it stopped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import rank_runs as ranks
import torch
from safetensors.torch import load_file
from torch.distributed import HashStore

from edgewise import records
from edgewise.algorithms import ALGORITHMS
from edgewise.config import Config
from edgewise.engines.torchrun.cost import Cost
from edgewise.engines.torchrun.group import Group, agreed
from edgewise.engines.torchrun.spread import spread
from edgewise.errors import Diverged, EdgewiseError
from edgewise.hire import count
from edgewise.models.norms import NORMS
from edgewise.records import Checkpoint
from edgewise.rounds import run

SAME = ("round", "step", "examples_seen", "bytes_down", "bytes_down_each", "missing")
SENT = ("bytes_up", "bytes_up_each")
CLOSE = ("train_loss", "loss", "accuracy", "drift_cosine", "drift_diversity", "worst_device")


def digest(folder: Path) -> str:
    summary = records.summary(folder)
    assert summary is not None
    return str(summary["model_digest"])


def assert_alike(found: Path, expected: Path, config: Config) -> None:
    """Models within 1e-10, and rounds of the same work."""
    same = SAME + SENT * config.codec.fixed  # else the last bits tell in the length
    model, other = (load_file(folder / records.MODEL) for folder in (found, expected))
    for name, tensor in other.items():
        assert torch.allclose(model[name], tensor, rtol=0, atol=1e-10), name
    for one, two in zip(records.rows(found), records.rows(expected), strict=True):
        assert one.keys() == two.keys()
        assert [one.get(name) for name in same] == [two.get(name) for name in same]
        for name in CLOSE:  # a diversity has six digits
            assert name not in two or one[name] == pytest.approx(two[name], rel=1e-5, abs=1e-9), name
        if "probe" in two:
            assert one["probe"]["devices"] == two["probe"]["devices"]
            assert one["probe"]["per_class"] == two["probe"]["per_class"]


def both(pair: Group, folder: Path, **settings: Any) -> None:
    config = ranks.config(**settings)
    list(run(config, folder / "inline"))
    list(ranks.play(pair, config, folder / "ranks"))
    assert_alike(folder / "ranks", folder / "inline", config)


# ---- every algorithm, norm, codec ----

LOSSY = [
    "topk:0.3",
    "int8",
    "powersgd:2",
    "sign",
    "randomk:0.5",
    "none:zstd",
    "half",
    "ternary",
    "lowrank:0.1",
]
NETS = [{"norm": norm, "model": "resnet18", "width": 4} for norm in NORMS if norm != "batch-sync"]
RUNS: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": name, "codec": codec} for name, codec in zip(ALGORITHMS, cycle(["none", *LOSSY]))},
    **{
        f"{net['norm']} {name}": {**net, "algorithm": name}
        for net, name in zip(NETS, cycle(["fedavg", "sync-sgd"]))
    },
    # Of one pixel in the end, on such images: what is rounded otherwise grows by 1e6 a round.
    "instance fedavg": {"norm": "instance", "model": "resnet18", "width": 4, "steps": 2},
    "loop": {"algorithm": "sync-sgd", "fused": "off", "codec": "dgc:0.3", "norm": "batch"},
    "looked at": {"diagnose": "full:3", "eval_every": 1, "norm": "batch", "cohort": 3},
    "cohorts of one": {"cohort": 1, "codec": "topk:0.3", "codec_down": "int8", "steps": 8},
    "uneven": {
        "local_epochs": 1,
        "sync_every": None,
        "batch": 2,
        "partition": "quantity:1",
        "algorithm": "fednova",
    },
    "side by side": {"model": f"{ranks.__name__}:linear", "fused": "on", "codec": "none"},
    "side by side, lossy": {"model": f"{ranks.__name__}:linear", "fused": "on", "codec": "topk:0.3"},
    "mixed": {"algorithm": "scaffold+fedrs", "server_momentum": 0.5, "cohort": 3, "steps": 8},
    "median": {"aggregate": "median", "codec": "topk:0.3", "diagnose": "full:3"},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_run_on_ranks_ends_where_one_process_ends(
    pair: Group, settings: dict[str, Any], tmp_path: Path
) -> None:
    both(pair, tmp_path, **settings)


# ---- again, and on from where it stopped ----

REMEMBERED = {
    "topk": {"codec": "topk:0.3"},
    "scaffold": {"algorithm": "scaffold", "cohort": 3},
    "local norms": {"norm": "batch-local", "model": "resnet18", "width": 4, "eval_every": 1},
    "fused": {"algorithm": "sync-sgd"},
    "side by side": {"model": f"{ranks.__name__}:linear", "fused": "on", "codec": "topk:0.3"},
    "median": {"aggregate": "median", "codec": "topk:0.3"},
}


@pytest.mark.parametrize("settings", REMEMBERED.values(), ids=REMEMBERED)
def test_a_run_on_ranks_is_repeated_and_resumed_bit_for_bit(
    pair: Group, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = ranks.config(**{"steps": 8, **settings})
    for name in ("one", "two"):
        list(ranks.play(pair, config, tmp_path / name))
    stopped = ranks.play(pair, config, tmp_path / "cut")
    for row in stopped:
        if row.round == 2:
            break
    stopped.close()
    kept = records.rows(tmp_path / "cut")
    owed = Checkpoint.load(tmp_path / "cut" / records.CHECKPOINT).note["memories"]
    left = list(ranks.play(pair, config, tmp_path / "cut", resume=True))
    assert left[0].round == len(kept) + 1 == 3
    assert digest(tmp_path / "one") == digest(tmp_path / "two") == digest(tmp_path / "cut")
    files = [{**row, "seconds": 0} for row in records.rows(tmp_path / "one")]
    assert [{**row, "seconds": 0} for row in records.rows(tmp_path / "cut")] == files
    written = {path.name.partition("-")[0] for path in (tmp_path / "cut").glob("memories/*")}
    assert set(map(str, owed["filed"])) <= written and len(written) == 4 * (settings != REMEMBERED["fused"])


def test_the_config_says_how_many_they_were(pair: Group, tmp_path: Path) -> None:
    list(ranks.play(pair, ranks.config(), tmp_path / "run"))
    written = (tmp_path / "run" / records.CONFIG).read_text()
    assert 'engine = "torchrun"\nprocesses = "2"\n' in written
    with pytest.raises(EdgewiseError, match=r"^engine: the run in .* has 'torchrun', not 'inline'"):
        list(run(ranks.config(steps=6), tmp_path / "run", resume=True))


# ---- what goes wrong ----


def test_a_run_of_two_ranks_goes_on_in_one_process(pair: Group, tmp_path: Path) -> None:
    config = ranks.config(steps=8, codec="topk:0.3", algorithm="scaffold")
    stopped = ranks.play(pair, config, tmp_path / "cut")
    for row in stopped:
        if row.round == 2:
            break
    stopped.close()
    assert len(list(run(replace(config, processes="1"), tmp_path / "cut", resume=True))) == 2
    list(run(config, tmp_path / "whole"))
    assert_alike(tmp_path / "cut", tmp_path / "whole", config)


def test_a_device_that_diverges_ends_the_run_in_its_words(pair: Group, tmp_path: Path) -> None:
    for codec in ("none", "topk:0.3"):
        for aggregate in ("mean", "median"):
            way = {"codec": codec, "aggregate": aggregate}
            bad = ranks.config(lr=1e9, lr_scale=1e9, weight_decay=1e9, sync_every=15, steps=30, **way)
            with pytest.raises(Diverged, match=r"^round \d, device [0-3]: .*diverged|^round \d: the model"):
                list(ranks.play(pair, bad, tmp_path / f"{codec[:4]}-{aggregate}"))
    both(pair, tmp_path)  # the ranks are as good as before


def test_a_rank_that_cannot_begin_says_why(
    pair: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "tiny_here", ranks.tiny, raising=False)  # which the other process lacks
    with pytest.raises(EdgewiseError, match=r"^rank 1: model rank_runs:tiny_here: cannot import it"):
        list(ranks.play(pair, ranks.config(model="rank_runs:tiny_here"), tmp_path / "run"))
    monkeypatch.setattr(ranks, "specks", ranks.others)
    with pytest.raises(EdgewiseError, match=r"^rank 1: has other data or another model than rank 0"):
        list(ranks.play(pair, ranks.config(), tmp_path / "other"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"processes": "0"}, "^processes: '0' is not a number of processes; legal: auto, or 1 to 1024$"),
        ({"processes": "two"}, "^processes: 'two' is not a number of processes"),
        ({"processes": "2", "engine": "fleet"}, "^processes: a fleet's devices have one each"),
    ],
)
def test_processes_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgewiseError, match=says):
        Config.of(settings)


def test_statistics_of_all_devices_take_one_process(pair: Group, tmp_path: Path) -> None:
    synced = ranks.config(algorithm="sync-sgd", norm="batch-sync", model="resnet18", width=4)
    with pytest.raises(EdgewiseError, match=r"^norm: batch-sync .* but its devices are in 2 processes$"):
        list(ranks.play(pair, synced, tmp_path / "run"))


def test_a_dataset_of_this_process_is_not_that_of_others(tmp_path: Path) -> None:
    with pytest.raises(
        EdgewiseError, match=r"^processes: other processes know of no dataset .* given in Python"
    ):
        run(ranks.config(processes="2"), tmp_path, dataset=ranks.specks())


def test_ranks_that_are_started_again_find_each_other_and_not_the_dead() -> None:
    """In a store that still holds the greetings of the start before."""
    store = HashStore()
    words = []
    for start in range(3):
        with ThreadPoolExecutor(3) as pool:
            found = [pool.submit(agreed, store, rank, 3) for rank in ((2, 0, 1) if start % 2 else (0, 1, 2))]
            assert len({one.result(30) for one in found}) == 1
            words.append(found[0].result())
    assert len(set(words)) == 3
    assert agreed(store, 0, 1)


# ---- who has what, and what it costs ----


def test_devices_are_spread_evenly() -> None:
    assert spread([5] * 7, 3) == [0, 1, 2, 0, 1, 2, 0]
    assert spread([1, 9, 5, 5], 2) == [0, 0, 1, 1]  # 9 + 1 and 5 + 5
    loads = torch.randint(1, 100, (200,), generator=torch.Generator().manual_seed(3)).tolist()
    for ranks_ in (1, 2, 3, 7):
        owners = spread(loads, ranks_)
        assert owners == spread(loads, ranks_)
        each = [
            sum(load for load, owner in zip(loads, owners, strict=True) if owner == r) for r in range(ranks_)
        ]
        assert sum(each) == sum(loads) and max(each) - min(each) <= min(loads) + 1
    assert spread([3, 2], 4) == [0, 1]


def test_as_many_processes_as_have_something_to_do() -> None:
    assert count("3", 2) == 3 and count("auto", 1) == 1 and 1 <= count("auto", 1000) <= 1024


def test_processes_pay_where_they_save_time_that_matters() -> None:
    busy = Cost(alone=1e-3, together=1.05e-3, exchange=2e-3, heaviest=1600, all=3200)
    assert busy.pays(100)
    assert not busy.pays(0)
    assert not Cost(1e-3, 1.9e-3, 2e-3, 1600, 3200).pays(100)  # they are in each other's way
    assert not Cost(1e-5, 1e-5, 2e-2, 160, 320).pays(1000)  # talking takes longer than working
    assert not Cost(1e-5, 1e-5, 1e-4, 1600, 3200).pays(10)  # all over in an instant
