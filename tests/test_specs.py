"""Text forms: every listed thing goes to text and back, and what does not fit says what would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise import specs
from edgewise.aggregators import AGGREGATORS, Clip, MultiKrum, TrimmedMean
from edgewise.codecs import CODECS
from edgewise.data.partition import PARTITIONS, Dirichlet, Iid, Labels, Quantity
from edgewise.errors import EdgewiseError
from edgewise.models.norms import NORMS, Batch, Group, GroupWS
from edgewise.schedules import SCHEDULES, Plateau, Step

TABLES: dict[str, Mapping[str, Any]] = {
    "partition": PARTITIONS,
    "norm": NORMS,
    "codec": CODECS,
    "schedule": SCHEDULES,
    "aggregate": AGGREGATORS,
}
EVERY = [(what, name) for what, table in TABLES.items() for name in table]
finite = st.floats(min_value=1e-300, max_value=1e300)


@dataclass(frozen=True)
class Sample:
    share: float
    warm: bool = False
    count: int = 3
    word: str = "a"
    cold: bool = False


SAMPLES = {"sample": Sample}


@pytest.mark.parametrize(("what", "name"), EVERY)
def test_every_listed_value_has_a_text_that_gives_it_back(what: str, name: str) -> None:
    table = TABLES[what]
    needed = [slot for slot in fields(table[name]) if slot.default is MISSING]
    text = ":".join([name, *("2" for _ in needed)])
    value = specs.parse(table, text, what)
    assert type(value) is table[name]
    assert specs.text(table, value) == text
    assert specs.name_of(table, value) == name


@pytest.mark.parametrize(
    ("what", "text", "value"),
    [
        ("partition", "labels:2", Labels(2)),
        ("partition", "labels:3:overlap", Labels(3, overlap=True)),
        ("partition", "dirichlet:0.1", Dirichlet(0.1)),
        ("partition", "quantity:2.5", Quantity(2.5)),
        ("partition", "iid", Iid()),
        ("norm", "group", Group(32)),
        ("norm", "group:8", Group(8)),
        ("norm", "group-ws:4", GroupWS(4)),
        ("norm", "batch", Batch()),
        ("aggregate", "trimmed:0.2", TrimmedMean(0.2)),
        ("aggregate", "multi-krum:2", MultiKrum(2)),
        ("aggregate", "multi-krum:2:3", MultiKrum(2, 3)),
        ("aggregate", "clip:2.5", Clip(2.5)),
        ("schedule", "plateau:0.5", Plateau(drop=0.5)),
        ("schedule", "plateau:0.1:10:0.01", Plateau(threshold=0.01)),
        ("schedule", "step:0.1:0.5,0.75", Step(0.1, "0.5,0.75")),
    ],
)
def test_text_and_value(what: str, text: str, value: object) -> None:
    assert specs.parse(TABLES[what], text, what) == value
    assert specs.text(TABLES[what], value) == text


@given(alpha=finite)
def test_no_digit_of_a_number_is_lost(alpha: float) -> None:
    text = specs.text(PARTITIONS, Dirichlet(alpha))
    assert specs.parse(PARTITIONS, text, "partition") == Dirichlet(alpha)


@given(
    st.builds(
        Sample,
        share=finite,
        warm=st.booleans(),
        count=st.integers(),
        word=st.sampled_from(["a", "b", "c d"]),
        cold=st.booleans(),
    )
)
def test_any_mix_of_fields_comes_back(value: Sample) -> None:
    assert specs.parse(SAMPLES, specs.text(SAMPLES, value), "sample") == value


def test_numbers_are_written_short() -> None:
    assert specs.text(PARTITIONS, Dirichlet(2.0)) == "dirichlet:2"
    assert specs.text(PARTITIONS, Dirichlet(1e-5)) == "dirichlet:1e-05"
    assert specs.text(PARTITIONS, Dirichlet(0.1 + 0.2)) == "dirichlet:0.30000000000000004"


@pytest.mark.parametrize(
    ("what", "text", "says"),
    [
        (
            "norm",
            "bach",
            r"norm: 'bach' is unknown; one of: batch, batch-sync, batch-local, batch-renorm\[:r_max\]",
        ),
        ("partition", "", r"'' is unknown; one of: iid, labels:K\[:overlap\], dirichlet:ALPHA"),
        ("partition", "labels", r"'labels' lacks a value; its form is labels:K\[:overlap\]"),
        ("partition", "labels:two", r"does not fit the form labels:K\[:overlap\]"),
        ("partition", "labels:2.5", "does not fit"),
        ("partition", "labels:2:overlapping", "does not fit"),
        ("partition", "labels:2:overlap:overlap", "does not fit"),
        ("partition", "labels:", "does not fit"),
        ("partition", "iid:3", "does not fit the form iid"),
        ("norm", "group:+-4", "does not fit"),
        ("norm", "group:²", "does not fit"),
        ("norm", "group:0", "groups is 0"),
        ("partition", "dirichlet:nan", "does not fit"),
        ("partition", "dirichlet:-1", "above 0"),
    ],
)
def test_what_does_not_fit_says_what_would(what: str, text: str, says: str) -> None:
    with pytest.raises(EdgewiseError, match=says) as caught:
        specs.parse(TABLES[what], text, what)
    assert "\n" not in str(caught.value)


def test_a_stranger_has_no_text() -> None:
    with pytest.raises(EdgewiseError, match="none of: iid, labels"):
        specs.text(PARTITIONS, Group())


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("share", "0.5", 0.5),
        ("share", 2, 2.0),
        ("count", "-4", -4),
        ("count", 7, 7),
        ("warm", True, True),
        ("warm", "on", True),
        ("warm", "false", False),
        ("word", "x", "x"),
    ],
)
def test_words_become_the_fields_type(name: str, word: object, value: object) -> None:
    (slot,) = [slot for slot in fields(Sample) if slot.name == name]
    found = specs.convert(slot, word)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "word"),
    [("count", "2.0"), ("count", 2.0), ("count", True), ("count", ""), ("warm", "yes"), ("share", "x")],
)
def test_words_of_another_type_are_refused(name: str, word: object) -> None:
    (slot,) = [slot for slot in fields(Sample) if slot.name == name]
    with pytest.raises(ValueError):
        specs.convert(slot, word)


def test_a_switch_needs_no_field_before_it() -> None:
    @dataclass(frozen=True)
    class Top:
        share: float = 0.01
        nofeedback: bool = False

    assert specs.parse({"topk": Top}, "topk:nofeedback", "codec") == Top(nofeedback=True)
    assert specs.parse({"topk": Top}, "topk:0.5:nofeedback", "codec") == Top(0.5, True)
