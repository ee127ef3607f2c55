"""Every setting says what it takes, and refuses the rest in a line that names it."""

import math
from dataclasses import fields

import pytest

from edgewise.config import DERIVED, SGD_SETTINGS, Config
from edgewise.errors import EdgewiseError
from edgewise.settings import NAMES, SETTINGS, Setting

NUMBERS = [setting for setting in SETTINGS if setting.kind in (int, float)]
TEXTS = [setting for setting in SETTINGS if setting.kind is str]
WRONG = {
    int: [1.5, 1.0, "1", True, [1], {}],
    float: ["1.0", False, [1.0], 1j, b"1"],
    str: [1, 1.0, True, ["x"], b"x"],
    bool: [0, 1, "true", 1.0],
}


def named(setting: Setting) -> str:
    return setting.name


@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_a_default_is_legal(setting: Setting) -> None:
    assert setting.check(setting.default) == setting.default
    assert setting.check(None) is None


@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_another_type_is_refused(setting: Setting) -> None:
    for value in WRONG[setting.kind]:
        with pytest.raises(EdgewiseError, match=f"^{setting.name}: .* is not "):
            setting.check(value)


@pytest.mark.parametrize("setting", NUMBERS, ids=named)
def test_every_number_has_bounds(setting: Setting) -> None:
    assert setting.low is not None
    margin = max(1, setting.high * 1e-6)
    beyond = [setting.low - margin, setting.high + margin, -(10**400), 10**400]
    if setting.kind is float:
        beyond += [math.nan, math.inf, -math.inf, math.nextafter(setting.low, -1)]
    for value in beyond:
        with pytest.raises(EdgewiseError, match=f"^{setting.name}: .* out of range; legal: .* from .* to "):
            setting.check(setting.kind(value) if abs(value) < 1e300 else value)
    for value in (setting.low, setting.high):
        checked = setting.check(setting.kind(value))
        assert checked == value and type(checked) is setting.kind


@pytest.mark.parametrize("name", ["devices", "width", "sync_every", "batch", "steps", "threads"])
def test_nothing_can_be_done_with_none_of_these(name: str) -> None:
    with pytest.raises(EdgewiseError, match=f"^{name}: 0 is out of range; legal: a whole number from 1 "):
        NAMES[name].check(0)


def test_whole_numbers_pass_for_numbers() -> None:
    checked = NAMES["lr"].check(1)
    assert checked == 1 and type(checked) is float


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting.choices], ids=named)
def test_an_unknown_word_is_told_the_legal_ones(setting: Setting) -> None:
    with pytest.raises(EdgewiseError) as told:
        setting.check("nonsense")
    assert str(told.value) == f"{setting.name}: 'nonsense' is unknown; one of: {', '.join(setting.choices)}"
    assert [setting.check(choice) for choice in setting.choices] == list(setting.choices)


@pytest.mark.parametrize("setting", [text for text in TEXTS if not text.choices], ids=named)
def test_a_text_is_one_that_config_toml_can_hold(setting: Setting) -> None:
    for value in ["a\nb", "\x00", "\x7f", "\udcff", "a\ud800"]:
        with pytest.raises(EdgewiseError, match=f"^{setting.name}: .*control characters"):
            setting.check(value)
    for value in ["", "a b", 'quote " \\', "é\u3000\N{GRINNING FACE}"]:
        assert setting.check(value) == value


def test_names_and_flags_are_unique() -> None:
    assert len(NAMES) == len(SETTINGS) == len({setting.flag for setting in SETTINGS})
    assert NAMES["data_dir"].flag == "--data-dir"


def test_a_config_has_the_settings_and_nothing_else() -> None:
    own = {field.name for field in fields(Config)}
    assert own | set(SGD_SETTINGS) | set(DERIVED) == set(NAMES)
