"""A config survives the trip through its flat form and through config.toml; what is wrong is named."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.aggregators import (
    AGGREGATORS,
    Aggregator,
    Clip,
    ClipMedian,
    Krum,
    Median,
    MultiKrum,
    TrimmedMean,
    WeightedMean,
)
from edgewise.algorithms import (
    ALGORITHMS,
    SAM,
    FedACG,
    FedAvg,
    FedDyn,
    FedLMD,
    FedProx,
    Scaffold,
    SyncSGD,
    losses,
    momenta,
    reads_updates,
)
from edgewise.codecs import (
    CODECS,
    DGC,
    STC,
    Codec,
    Feedback,
    Half,
    Levels,
    PowerSGD,
    RandomK,
    Raw,
    TopK,
    Zstd,
    around,
    inner,
    parse,
    text,
    without_feedback,
)
from edgewise.config import VERSION, Config, read_toml
from edgewise.data.batches import Augment
from edgewise.data.partition import Dirichlet, Iid, Labels, Partition, Quantity
from edgewise.errors import EdgewiseError
from edgewise.models.norms import NORMS, Group, GroupWS, Norm
from edgewise.objectives import CrossEntropy, Objective, SquaredError
from edgewise.optimizers import SGD
from edgewise.recipes import RECIPES
from edgewise.schedules import SCHEDULES, Constant, Cosine, Plateau, Schedule, Step
from edgewise.settings import MOST_EMA, SETTINGS

# ---- there and back ----

counts = st.integers(1, 10**9)
amounts = st.floats(0, 1e9)
above_zero = st.floats(1e-6, 1e9)
words = st.text(st.characters(exclude_categories=["Cc", "Cs"]))
partitions: st.SearchStrategy[Partition] = st.one_of(
    st.just(Iid()),
    st.builds(Labels, counts, st.booleans()),
    st.builds(Dirichlet, above_zero),
    st.builds(Quantity, above_zero),
)
norms: st.SearchStrategy[Norm] = st.one_of(
    st.sampled_from([member() for member in NORMS.values()]),
    st.builds(Group, counts),
    st.builds(GroupWS, counts),
)
schedules: st.SearchStrategy[Schedule] = st.one_of(
    st.just(Constant()),
    st.just(Cosine()),
    st.builds(Plateau, st.floats(0.01, 0.99), st.integers(0, 99), st.floats(0, 1)),
    st.builds(Step, st.floats(0.01, 0.99), st.sampled_from(["0.5", "0.25,0.75", ".3,6e-1,0.80"])),
)
aggregators: st.SearchStrategy[Aggregator] = st.one_of(
    st.sampled_from([WeightedMean(), Median(), ClipMedian()]),
    st.builds(TrimmedMean, st.floats(0.01, 0.49)),
    st.builds(Krum, st.integers(0, 9)),
    st.builds(MultiKrum, st.integers(0, 9), st.integers(0, 9)),
    st.builds(Clip, above_zero),
)
optimizers = st.builds(
    SGD,
    above_zero,
    amounts,
    amounts,
    st.booleans(),
    above_zero,
    st.floats(0, 1),
    st.sampled_from(["all", "weights"]),
    st.sampled_from([0.0, 0.01]),
    above_zero,
)
drifts = st.one_of(
    st.just(Scaffold()), st.builds(FedProx, amounts), st.builds(FedDyn, above_zero), st.builds(FedACG)
)
added = st.tuples(st.builds(SAM, amounts), st.builds(FedLMD, amounts, above_zero), drifts)


def momentous(policy: str, *given: Any) -> FedAvg:
    """With the policy, where it makes sense beside the rest."""
    try:
        return FedAvg(*given, policy)
    except EdgewiseError:
        return FedAvg(*given)


algorithms: st.SearchStrategy[Any] = st.one_of(
    st.builds(SyncSGD, optimizers),
    st.builds(momentous, st.sampled_from(momenta.POLICIES), optimizers, counts, amounts, amounts),
    st.builds(FedAvg, optimizers, counts, parts=added),
    st.builds(FedAvg, optimizers, st.none() | counts, local_epochs=amounts),
)
shares = st.floats(1e-6, 1)
widths = st.sampled_from([8, 16, 32])
plain_codecs: st.SearchStrategy[Codec] = st.one_of(
    st.sampled_from([parse(name) for name in CODECS]).map(inner),
    st.builds(Half, st.booleans()),
    st.builds(Levels, st.sampled_from([1, 2, 4]), st.booleans()),
    st.builds(TopK, shares, widths),
    st.builds(STC, shares),
    st.builds(RandomK, shares),
    st.builds(DGC, shares, st.integers(0, 10**6), widths, st.floats(0, 0.999)),
    st.builds(PowerSGD, st.integers(1, 99), st.sampled_from([16, 32])),
)
codecs_up = st.builds(
    lambda codec, stage, feedback: around(codec, stage=stage, feedback=feedback),
    plain_codecs,
    st.booleans(),
    st.booleans(),
)
codecs_down = codecs_up.map(without_feedback).filter(lambda codec: not isinstance(inner(codec), DGC))
lengths = st.one_of(
    st.just({}), st.fixed_dictionaries({"epochs": amounts}), st.fixed_dictionaries({"steps": counts})
)


def config_of(
    length: dict[str, Any],
    codec: Codec,
    algorithm: Any,
    aggregate: Aggregator,
    objective: Objective,
    **rest: Any,
) -> Config:
    own, moved = inner(codec), algorithm.without_momentum()[1]
    nesterov = algorithm.sends_gradients and (algorithm.sgd.nesterov or algorithm.sgd.agc)
    clash = isinstance(own, DGC) and (nesterov or (own.momentum and moved and own.momentum != moved))
    clash = clash or (isinstance(own, DGC) and reads_updates(algorithm))
    mixes = not losses(algorithm) and rest["batch"] > 1
    rest["augment"] = rest["augment"] and replace(rest["augment"], mixup=mixes * rest["augment"].mixup)
    rest["objective"] = CrossEntropy() if losses(algorithm) else objective
    config = Config(codec=Raw() if clash else codec, algorithm=algorithm, **rest, **length)
    try:
        return replace(config, aggregate=aggregate)
    except EdgewiseError:  # the cohort is too small for it
        return config


objectives: st.SearchStrategy[Objective] = st.one_of(
    st.just(SquaredError(0.25)), st.builds(CrossEntropy, st.floats(0, 0.99))
)


configs = st.builds(
    config_of,
    lengths,
    codecs_up,
    algorithms,
    aggregators,
    objectives,
    codec_down=codecs_down,
    data=words,
    data_dir=st.none() | words,
    devices=st.just(40),
    partition=partitions,
    model=words,
    width=counts,
    norm=norms,
    batch=counts,
    schedule=schedules,
    warmup_epochs=amounts,
    warmup_lr=st.none() | amounts,
    augment=st.none()
    | st.builds(Augment, st.integers(0, 9), st.booleans(), st.integers(0, 9), st.floats(0, 9)),
    ema=st.floats(0, MOST_EMA),
    cohort=st.none() | st.floats(0.02, 0.99) | st.integers(1, 40).map(float),
    eval_every=st.none() | st.integers(0, 10**9),
    fused=st.sampled_from(["auto", "on", "off"]),
    kernels=st.sampled_from(["auto", "torch", "compiled"]),
    accelerator=st.sampled_from(["auto", "cpu", "cuda"]),
    precision=st.sampled_from(["fp32", "bf16", "fp64"]),
    threads=st.integers(1, 1024),
    seed=st.integers(-(2**62), 2**62),
)


@given(configs)
def test_a_config_comes_back_from_its_flat_form(config: Config) -> None:
    flat = config.flat()
    assert [name for name in flat if name != "set"] == [setting.name for setting in SETTINGS]
    assert Config.of(flat) == config
    assert Config.of(flat).flat() == flat


@given(configs)
def test_a_config_comes_back_from_its_file(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(config.toml().encode())
        read = read_toml(path)
    assert Config.of(read) == config
    assert Config.of(read).toml() == config.toml()


def test_the_file_says_its_version_first() -> None:
    assert Config().toml().splitlines()[0] == f"version = {VERSION}"


def test_what_is_left_out_is_the_default() -> None:
    assert Config.of({}) == Config()
    assert Config.of(dict.fromkeys(setting.name for setting in SETTINGS)) == Config()


# ---- codecs ----


@pytest.mark.parametrize(
    ("form", "codec", "down", "written"),
    [
        ("none", Raw(), Raw(), "none"),
        ("none:zstd", Zstd(Raw()), Zstd(Raw()), "none:zstd"),
        ("topk:0.02", Feedback(TopK(0.02)), TopK(0.02), "topk:0.02"),
        ("topk:0.02:nofeedback", TopK(0.02), TopK(0.02), "topk:0.02:nofeedback"),
        ("topk", Feedback(TopK(0.01)), TopK(0.01), "topk:0.01"),
        ("topk:zstd:0.02:8", Feedback(Zstd(TopK(0.02, 8))), Zstd(TopK(0.02, 8)), "topk:0.02:8:zstd"),
        ("sign:nofeedback:zstd", Zstd(inner(parse("sign"))), Zstd(inner(parse("sign"))), None),
        ("dgc:0.001:50", DGC(0.001, 50), None, "dgc:0.001:50"),
        ("dgc:0.001:50:zstd", Zstd(DGC(0.001, 50)), None, "dgc:0.001:50:zstd"),
    ],
)
def test_a_codec_by_its_text(form: str, codec: Codec, down: Codec | None, written: str | None) -> None:
    config = Config.of({"codec": form})
    assert config.codec == codec and config.codec_down == Raw()
    assert written is None or config.flat()["codec"] == written
    assert Config.of(config.flat()) == config
    if down:  # the way down has no feedback around it: the next difference is that
        config = Config.of({"codec_down": form})
        assert config.codec_down == down and config.codec == Raw()
        assert Config.of(config.flat()) == config


def test_set_reaches_into_codecs(tmp_path: Path) -> None:
    extras = {"codec.share": "0.02", "codec_down.bits": 16}
    config = Config.of({"codec": "topk:0.1:zstd", "codec_down": "topk:0.5", "set": extras})
    assert config.codec == Feedback(Zstd(TopK(0.02))) and config.codec_down == TopK(0.5, 16)
    assert "set" not in config.flat(), "it is in the codec's text"
    (tmp_path / "c.toml").write_text(config.toml())
    assert Config.of(read_toml(tmp_path / "c.toml")) == config
    with pytest.raises(EdgewiseError, match=r"^set: 'codec.share' is unknown; one of: .*norm.groups"):
        Config.of({"codec": "sign", "set": {"codec.share": 0.02}})
    with pytest.raises(EdgewiseError, match=r"^set: 'codec.x' is unknown; one of: .*codec.bits, codec.share"):
        Config.of({"codec": "topk", "set": {"codec.x": 1}})
    with pytest.raises(EdgewiseError, match=r"^set: codec.share cannot be 'x'; it is a number$"):
        Config.of({"codec": "topk", "set": {"codec.share": "x"}})
    with pytest.raises(EdgewiseError, match=r"share is 2; legal: above 0, up to 1"):
        Config.of({"codec": "topk", "set": {"codec.share": 2}})


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ({"codec_down": "dgc:0.01"}, "^codec_down: dgc is for devices' updates"),
        ({"codec_down": "dgc:0.01:zstd"}, "^codec_down: dgc is for devices' updates"),
        (
            {"codec": "dgc:0.01", "nesterov": True},
            "^codec: dgc moves plain momentum to the devices, not",
        ),
        (
            {"codec": "dgc:zstd", "nesterov": True},
            "^codec: dgc moves plain momentum to the devices, not",
        ),
        ({"codec": "dgc", "agc": 0.01}, "^codec: dgc sends what gradients came to over several steps"),
        ({"codec": "none:nofeedback"}, "^codec: 'none:nofeedback': none has no feedback around it"),
        ({"codec": "dgc:nofeedback"}, "^codec: 'dgc:nofeedback': dgc has no feedback around it"),
        ({"codec_down": "none:zstd:nofeedback"}, "^codec_down: .*: none has no feedback"),
        ({"codec": "topk:2"}, "^codec topk: share is 2; legal: above 0, up to 1$"),
        ({"codec": "topk:x"}, r"^codec: 'topk:x' does not fit the form topk\[:share\]\[:bits\]$"),
        ({"codec": "zstd"}, "^codec: 'zstd' is unknown; one of: none, half"),
        ({"codec_down": "topkk"}, "^codec_down: 'topkk' is unknown; one of: none, half"),
        ({"codec": "topk:0.1:zstd:zstd"}, "codec: 'topk:0.1:zstd:zstd' says 'zstd' twice"),
        ({"codec": "qsgd:3"}, "codec qsgd: bits is 3; legal: 2, 4, 8"),
    ],
)
def test_a_codec_that_cannot_be_is_named(flat: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgewiseError, match=says) as told:
        Config.of(flat)
    assert "\n" not in str(told.value)


def test_dgc_leaves_local_nesterov_alone() -> None:
    """What it moves is the server's momentum, and federated averaging has none here."""
    assert Config(codec=DGC(), algorithm=FedAvg(SGD(nesterov=True))).codec == DGC()
    assert Config(codec=DGC(momentum=0.5), algorithm=FedAvg()).codec == DGC(momentum=0.5)
    assert Config(codec=DGC(momentum=0.9)).codec == DGC(momentum=0.9)  # the same as is moved


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"codec_down": parse("topk:0.1")}, "^codec_down: takes no feedback around it"),
        ({"codec_down": DGC()}, "^codec_down: dgc is for devices' updates"),
        ({"codec": DGC(), "algorithm": SyncSGD(SGD(nesterov=True))}, "^codec: dgc moves plain momentum"),
        ({"codec": DGC(momentum=0.5)}, r"^codec: dgc takes over the server's momentum \(0.9\), .* \(0.5\)"),
        ({"codec": Zstd(Feedback(TopK()))}, "^codec: .* config.toml has no words for one of them"),
        ({"codec": Feedback(DGC())}, "^codec: .* config.toml has no words for one of them"),
        ({"codec_down": Zstd(Feedback(TopK()))}, "^codec: .* config.toml has no words for one of them"),
        ({"codec": "topk:0.1"}, "none of: none, half"),
        ({"codec_down": None}, "none of: none, half"),
    ],
)
def test_a_codec_made_in_python_is_checked_too(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgewiseError, match=says):
        Config(**wrong)


@given(codecs_up)
def test_a_codec_comes_back_from_its_text(codec: Codec) -> None:
    assert parse(text(codec)) == codec


# ---- what has no flag of its own ----


def test_set_reaches_into_the_parts() -> None:
    extras = {"schedule.patience": "3", "sgd.scalar_share": "0.2", "algorithm.server_lr": 0.5}
    config = Config.of({"schedule": "plateau:0.5", "algorithm": "fedavg", "set": extras})
    assert config.schedule == Plateau(0.5, patience=3)
    assert config.algorithm == FedAvg(SGD(scalar_share=0.2), server_lr=0.5)


def test_set_is_kept_in_the_file(tmp_path: Path) -> None:
    config = Config(algorithm=SyncSGD(SGD(scalar_share=0.2)), schedule=Plateau(patience=3))
    (tmp_path / "c.toml").write_text(config.toml())
    assert '[set]\n"sgd.scalar_share" = 0.2\n' in config.toml()
    assert Config.of(read_toml(tmp_path / "c.toml")) == config


def test_a_default_needs_no_set() -> None:
    assert "set" not in Config(algorithm=SyncSGD(SGD(scalar_share=0.1))).flat()


def test_set_may_be_written_as_tables(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('norm = "group"\n[set]\nsgd.scalar_share = 0.2\nnorm.groups = 4\n')
    read = read_toml(tmp_path / "c.toml")
    assert read["set"] == {"sgd.scalar_share": 0.2, "norm.groups": 4}
    assert Config.of(read) == Config(norm=Group(4), algorithm=SyncSGD(SGD(scalar_share=0.2)))


@pytest.mark.parametrize("name", ["algorithm.x", "x", "", "sgd", "algorithm.sgd", "schedule.patience", "lr"])
def test_an_unknown_set_is_told_the_legal_ones(name: str) -> None:
    with pytest.raises(EdgewiseError) as told:
        Config.of({"set": {name: "3"}})
    message = str(told.value)
    assert message.startswith(f"set: {name!r} is unknown; one of: ")
    assert message.split("one of: ")[1].split(", ") == [
        *("algorithm.sync_every", "diagnose.share", "norm.groups", "objective.smoothing", "sgd.agc"),
        *(
            "sgd.agc_floor",
            "sgd.decay",
            "sgd.lr",
            "sgd.lr_scale",
            "sgd.momentum",
            "sgd.nesterov",
            "sgd.scalar_share",
            "sgd.weight_decay",
        ),
    ]


@pytest.mark.parametrize("value", ["x", "nan", "inf", math.nan, math.inf, True, [1], None])
def test_a_set_of_the_wrong_kind_is_refused(value: object) -> None:
    with pytest.raises(EdgewiseError, match=r"^set: sgd\.scalar_share cannot be .*; it is a number$"):
        Config.of({"set": {"sgd.scalar_share": value}})


@pytest.mark.parametrize("value", [1, 0, "1", "yes", None])
def test_a_switch_is_on_or_off(value: object) -> None:
    with pytest.raises(EdgewiseError, match=r"^set: sgd\.nesterov cannot be .*; it is true or false$"):
        Config.of({"set": {"sgd.nesterov": value}})


@pytest.mark.parametrize(
    ("name", "value"),
    [("sgd.lr", "-1"), ("sgd.momentum", -0.5), ("algorithm.sync_every", "0"), ("algorithm.server_lr", -1)],
)
def test_set_has_the_bounds_of_the_flag(name: str, value: object) -> None:
    with pytest.raises(EdgewiseError, match=f"^{name.split('.')[1]}: .* is out of range; legal: "):
        Config.of({"algorithm": "fedavg", "set": {name: value}})


@pytest.mark.parametrize("value", [3, "x", [1], True])
def test_set_is_a_table(value: object) -> None:
    with pytest.raises(EdgewiseError, match=r"^set: .* is not a table"):
        Config.of({"set": value})


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("name", "table", "shown"),
    [
        ("norm", NORMS, "group[:groups]"),
        ("partition", ["iid", "labels", "dirichlet", "quantity"], "labels:K[:overlap]"),
        ("codec", CODECS, "none"),
        ("schedule", SCHEDULES, "plateau[:drop][:patience][:threshold]"),
        ("aggregate", AGGREGATORS, "multi-krum:FAULTY[:chosen]"),
        ("algorithm", [*ALGORITHMS, *RECIPES], "fedavg"),
    ],
)
def test_an_unknown_name_is_told_the_legal_ones(name: str, table: Any, shown: str) -> None:
    for value in ("nonsense", "", "nonsense:1", ":"):
        with pytest.raises(EdgewiseError) as told:
            Config.of({name: value})
        start, _, legal = str(told.value).partition("; one of: ")
        assert start == f"{name}: {value!r} is unknown"
        assert [form.split(":")[0].split("[")[0] for form in legal.split(", ")] == list(table)
        assert shown in legal.split(", ")


@pytest.mark.parametrize(
    "value",
    ["labels", "labels:", "labels:x", "labels:2.5", "labels:2:both", "labels:2:overlap:overlap", "iid:1"],
)
def test_a_form_that_does_not_fit_is_shown(value: str) -> None:
    says = rf"^partition: '{value}' .* form (is )?(iid|labels:K\[:overlap\])$"
    with pytest.raises(EdgewiseError, match=says):
        Config.of({"partition": value})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_no_part_takes_a_number_that_is_not_finite(value: str) -> None:
    for flat in ({"partition": f"dirichlet:{value}"}, {"schedule": f"plateau:{value}"}):
        with pytest.raises(EdgewiseError, match="does not fit the form"):
            Config.of(flat)


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ({"nonsense": 1}, r"^'nonsense' is unknown; one of: data, data_dir, .*, seed$"),
        ({"epochs": 1, "steps": 1}, "^epochs, steps: give one of them, not both$"),
        ({"cohort": 0}, "^cohort: 0 of 10 devices is not a cohort; 1 to 10, or a fraction below 1"),
        ({"cohort": 11}, "^cohort: 11 of 10 devices is not a cohort; 1 to 10, or a fraction below 1"),
        ({"cohort": 0.01}, "^cohort: 0.01 of 10 devices is not a cohort"),
        ({"cohort": 1.5}, "^cohort: 1.5 of 10 devices is not a cohort"),
        ({"sync_every": 10}, "^sync_every: sync-sgd synchronises every step, so 1 and not 10"),
        ({"server_lr": 1.0}, "^server_lr: sync-sgd has none; it belongs to fedavg and what is added to it$"),
        ({"server_lr": 1.0, "server_momentum": 1.0}, "^server_lr: "),
        (
            {"server_momentum": 0.0},
            "^server_momentum: sync-sgd has none; it belongs to fedavg and what is added to it$",
        ),
        ({"lr": 0, "warmup_lr": 0.1}, "^warmup_lr: "),
        ({"lr_scale": 0, "warmup_lr": 0.1}, "^warmup_lr: "),
        ({"augment": "nonsense"}, "cannot read 'nonsense'; legal: none, or some of crop"),
        ({"norm": "group:0"}, "^norm: groups is 0"),
        ({"batch": 0}, "^batch: 0 is out of range"),
    ],
)
def test_what_cannot_be_is_named(flat: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgewiseError, match=says):
        Config.of(flat)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"batch": 0}, "^batch: 0 is out of range"),
        ({"devices": 2.0}, "^devices: 2.0 is not a whole number"),
        ({"algorithm": SyncSGD(SGD(lr=math.nan))}, "^lr: nan is out of range"),
        ({"algorithm": SyncSGD(SGD(momentum=-1))}, "^momentum: -1 is out of range"),
        ({"algorithm": FedAvg(sync_every=0)}, "^sync_every: 0 is out of range"),
        ({"epochs": 1.0, "steps": 1}, "^epochs, steps: "),
        ({"cohort": 11.0}, "^cohort: 11 of 10"),
        ({"norm": "group"}, "'group' is none of: batch, "),
        ({"aggregate": "median"}, "'median' is none of: mean, median, "),
        ({"aggregate": Krum(5)}, "^aggregate: krum with 5 faulty devices takes 13 updates or more"),
        ({"precision": "fp16"}, "^precision: 'fp16' is unknown; one of: fp32, bf16, fp64$"),
    ],
)
def test_a_config_made_in_python_is_checked_too(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgewiseError, match=says):
        Config(**wrong)


# ---- files ----


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"lr = ", "not a readable TOML file"),
        (b"data = '\xff'", "not a readable TOML file"),
        (b"\x00", "not a readable TOML file"),
        (b"x = " + b"[" * 5000, "not a readable TOML file"),
        (b"seed = " + b"9" * 5000, "not a readable TOML file"),
        (b"lr = 1\nlr = 2", "not a readable TOML file"),
        (b"version = 2", "a config of version 2; this edgewise reads version 1$"),
        (b"version = '1'", "a config of version '1'; this edgewise reads version 1$"),
        (b"learning_rate = 1", r"'learning_rate' is unknown; one of: data, data_dir, .*, seed$"),
        (b"version = 2\nlearning_rate = 1", "a config of version 2"),
        (b"lr = nan", "lr: nan is out of range"),
        (b"steps = -5", "steps: -5 is out of range; legal: a whole number from 1 "),
        (b"devices = true", "devices: True is not a whole number"),
        (b"nesterov = 1", "nesterov: 1 is not true or false"),
        (b"norm = 3", "norm: 3 is not a text"),
        (b"fused = 'maybe'", "fused: 'maybe' is unknown; one of: auto, on, off"),
        (b"set = 3", "set: 3 is not a table"),
        (b"[lr]\nx = 1", "lr: {'x': 1} is not a number"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(EdgewiseError, match=says) as told:
        read_toml(path)
    assert str(told.value).startswith(f"{path}: ")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match=r"no such config file$"):
        read_toml(tmp_path / "c.toml")
    with pytest.raises(EdgewiseError, match="not a readable TOML file"):
        read_toml(tmp_path)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("")
    assert Config.of(read_toml(tmp_path / "c.toml")) == Config()
