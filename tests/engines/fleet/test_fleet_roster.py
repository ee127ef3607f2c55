"""Who belongs to a fleet: numbers, tokens that are good once, revoking, suspending."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.engines.fleet import roster
from edgewise.engines.fleet.journal import Journal
from edgewise.engines.fleet.roster import MOST, SUSPECT, Member, check_token, enrol, invite, member, members
from edgewise.errors import EdgewiseError

LATER, PATIENCE = 2e12, 60


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "journal.sqlite")
    yield found
    found.close()


def result(future: Future[Any]) -> Any:
    return future.result(PATIENCE)


def join(journal: Journal, device: int, token: str = "token", expires: float = LATER) -> Member:
    """Invite a device and let it join."""
    result(invite(journal, [f"{token} {device}"], expires, device))
    result(enrol(journal, f"{token} {device}", f"key {device}", f"name {device}", f"print {device}"))
    return only(journal, device)


def only(journal: Journal, device: int) -> Member:
    (found,) = [one for one in result(members(journal)) if one.id == device]
    return found


# ---- numbers ----


def test_invitations_take_the_lowest_free_numbers(journal: Journal) -> None:
    assert result(invite(journal, ["a", "b"], LATER)) == [0, 1]
    assert result(invite(journal, ["c"], LATER)) == [2]  # those that wait are not free
    for digest in "abc":
        result(enrol(journal, digest, "key", "", f"print {digest}"))
    result(roster.revoke(journal, 1))
    assert result(invite(journal, ["d"], LATER)) == [3]  # nor is that of a device that was revoked
    assert result(invite(journal, ["e"], time.time() - 1)) == [4]
    assert result(invite(journal, ["f"], LATER)) == [4]  # an invitation that has expired holds none
    assert result(invite(journal, ["g"], LATER, 9)) == [9]
    assert result(invite(journal, [*"hijklm"], LATER)) == [5, 6, 7, 8, 10, 11]


@pytest.mark.parametrize("device", [-1, MOST, 1 << 64])
def test_numbers_that_no_device_has(journal: Journal, device: int) -> None:
    with pytest.raises(EdgewiseError, match=f"legal: 0 to {MOST - 1}"):
        result(invite(journal, ["a"], LATER, device))


def test_a_fleet_has_an_end(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "MOST", 3)  # a million rows take their time
    assert result(invite(journal, ["a", "b"], LATER)) == [0, 1]
    with pytest.raises(EdgewiseError, match="at most 3 devices"):
        result(invite(journal, ["c", "d"], LATER))
    assert result(invite(journal, ["e"], LATER)) == [2]


def test_two_tokens_for_one_device(journal: Journal) -> None:
    assert result(invite(journal, ["a", "b"], LATER, 5)) == [5, 5]
    assert result(enrol(journal, "a", "key a", "", "print a")) == 5
    assert result(enrol(journal, "b", "key b", "", "print b")) == 5
    assert only(journal, 5).fingerprint == "print b"


# ---- tokens ----


def test_a_token_is_good_for_one_key(journal: Journal) -> None:
    result(invite(journal, ["token"], LATER))
    assert result(check_token(journal, "token", "key")) == 0
    assert result(enrol(journal, "token", "key", "first", "print 1")) == 0
    for ask in (
        lambda: check_token(journal, "token", "other key"),
        lambda: enrol(journal, "token", "other key", "thief", "print 2"),
    ):
        with pytest.raises(EdgewiseError, match="used already"):
            result(ask())
    assert only(journal, 0).fingerprint == "print 1"
    # The answer may have been lost: the same key gets another certificate in its place.
    assert result(check_token(journal, "token", "key")) == 0
    assert result(enrol(journal, "token", "key", "again", "print 3")) == 0
    assert (only(journal, 0).fingerprint, only(journal, 0).name) == ("print 3", "again")


@pytest.mark.parametrize("used", [False, True])
def test_an_expired_token(journal: Journal, used: bool) -> None:
    result(invite(journal, ["token"], LATER))
    if used:
        result(enrol(journal, "token", "key", "", "print"))
    result(journal.ask(lambda database: database.execute("UPDATE tokens SET expires = ?", (time.time(),))))
    with pytest.raises(EdgewiseError, match="expired"):
        result(check_token(journal, "token", "key"))
    with pytest.raises(EdgewiseError, match="expired"):
        result(enrol(journal, "token", "key", "", "print 2"))
    assert len(result(members(journal))) == used


def test_a_token_of_nobody(journal: Journal) -> None:
    with pytest.raises(EdgewiseError, match="not one of this fleet's"):
        result(check_token(journal, "token", "key"))


def test_a_device_joins_anew_under_its_number(journal: Journal) -> None:
    join(journal, 4)
    result(roster.present(journal, 4, 100, 10, [5, 5]))
    result(roster.revoke(journal, 4))
    result(invite(journal, ["new"], LATER, 4))
    assert result(enrol(journal, "new", "another key", "new", "new print")) == 4
    found = only(journal, 4)
    assert (found.fingerprint, found.revoked, found.examples, found.flags) == ("new print", None, None, 0)
    assert result(member(journal, 4, "new print")) == found
    with pytest.raises(EdgewiseError, match="another certificate by now"):
        result(member(journal, 4, "print 4"))


def test_a_revoked_device_does_not_come_back_by_the_token_it_joined_with(journal: Journal) -> None:
    join(journal, 4)
    result(roster.revoke(journal, 4))
    for ask in (
        lambda: check_token(journal, "token 4", "key 4"),
        lambda: enrol(journal, "token 4", "key 4", "back", "print again"),
    ):
        with pytest.raises(EdgewiseError, match="device 4 was revoked"):
            result(ask())
    assert only(journal, 4).revoked is not None


def test_a_suspended_device_does_not_clear_itself_by_joining_again(journal: Journal) -> None:
    join(journal, 4)
    for _ in range(SUSPECT):
        result(roster.flag(journal, 4))
    result(enrol(journal, "token 4", "key 4", "again", "print again"))
    assert only(journal, 4).flags == SUSPECT and not only(journal, 4).trusted
    assert only(journal, 4).fingerprint == "print again"


# ---- devices ----


def test_only_the_certificate_that_was_given_last_is_believed(journal: Journal) -> None:
    with pytest.raises(EdgewiseError, match="device 4 has not joined"):
        result(member(journal, 4, "print 4"))
    found = join(journal, 4)
    assert result(member(journal, 4, "print 4")) == found
    with pytest.raises(EdgewiseError, match="another certificate"):
        result(member(journal, 4, "print 5"))
    result(roster.revoke(journal, 4))
    with pytest.raises(EdgewiseError, match="was revoked"):
        result(member(journal, 4, "print 4"))


def test_without_certificates_whoever_comes_is_believed(journal: Journal) -> None:
    found = result(member(journal, 7, None))
    assert found.id == 7 and result(member(journal, 7, None)) == found
    result(roster.revoke(journal, 7))
    with pytest.raises(EdgewiseError, match="was revoked"):
        result(member(journal, 7, None))


def test_what_a_device_says_of_its_data(journal: Journal) -> None:
    join(journal, 4)
    assert (only(journal, 4).examples, only(journal, 4).labels, only(journal, 4).seen) == (None, None, None)
    result(roster.present(journal, 4, 100, 10, [60, 40]))
    found = only(journal, 4)
    assert (found.examples, found.tests, found.labels) == (100, 10, (60, 40)) and found.seen is not None
    result(roster.present(journal, 4, 100, 10, None))
    assert only(journal, 4).labels is None


def test_three_refused_updates_suspend_a_device_until_it_is_cleared(journal: Journal) -> None:
    join(journal, 4), join(journal, 5)
    trusted = [result(roster.flag(journal, 4)).trusted for _ in range(SUSPECT)]
    assert trusted == [True] * (SUSPECT - 1) + [False]
    assert only(journal, 5).flags == 0
    assert result(roster.clear(journal, 4)).trusted and only(journal, 4).flags == 0


def test_revoking_stands_and_keeps_its_time(journal: Journal) -> None:
    join(journal, 4)
    first = result(roster.revoke(journal, 4))
    assert result(roster.revoke(journal, 4)) == first and not first.trusted
    assert not result(roster.clear(journal, 4)).trusted


@pytest.mark.parametrize("change", [roster.revoke, roster.clear, roster.flag])
def test_nothing_can_be_done_to_a_device_that_is_not_there(journal: Journal, change: Any) -> None:
    with pytest.raises(EdgewiseError, match="device 3 has not joined this fleet"):
        result(change(journal, 3))


def test_a_member_as_a_row_of_json(journal: Journal) -> None:
    join(journal, 4)
    row = only(journal, 4).row()
    assert row["id"] == 4 and row["name"] == "name 4" and row["labels"] is None


@settings(max_examples=8)
@given(st.lists(st.tuples(st.sampled_from(["invite", "join", "revoke"]), st.integers(0, 5)), max_size=30))
def test_no_number_is_given_to_two_devices(
    tmp_path_factory: pytest.TempPathFactory, deeds: list[tuple[str, int]]
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.sqlite")
    waiting: dict[str, int] = {}
    joined: set[int] = set()
    for name, (deed, which) in enumerate(deeds):
        if deed == "invite":
            (number,) = result(invite(journal, [str(name)], LATER))
            assert number not in joined and number not in waiting.values()
            assert set(range(number)) <= joined | set(waiting.values())
            waiting[str(name)] = number
        elif deed == "join" and waiting:
            token = sorted(waiting)[which % len(waiting)]
            assert result(enrol(journal, token, f"key {token}", "", f"print {token}")) == waiting[token]
            joined.add(waiting.pop(token))
        elif deed == "revoke" and which in joined:
            result(roster.revoke(journal, which))
    assert {one.id for one in result(members(journal))} == joined
    journal.close()
