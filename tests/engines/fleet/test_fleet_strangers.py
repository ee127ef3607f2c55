"""Who is let in: certificates that are none, tokens that are no good, devices that are out, other names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from fleet_folders import joined
from fleet_hostile import Site
from fleet_peer import shaken, until

from edgewise.engines.fleet import certificates
from edgewise.engines.fleet.certificates import COORDINATOR
from edgewise.engines.fleet.enrol import LONGEST
from edgewise.engines.fleet.identity import Authority, Credentials, Identity
from edgewise.engines.fleet.join import join_fleet
from edgewise.engines.fleet.messages import JoinReply, JoinRequest
from edgewise.engines.fleet.token import Token
from edgewise.errors import EdgewiseError


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.close()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of another fleet. All authorities have the same name."""
    return Authority.create(tmp_path_factory.mktemp("elsewhere") / "ca")


# ---- certificates ----


Forge = Callable[[Site, Authority, Path], Credentials | None]


def of_another_fleet(site: Site, elsewhere: Authority, folder: Path) -> Credentials:
    return replace(joined(elsewhere, folder / "device", 0), ca=site.authority.serve_as().ca)


def signed_by_a_device(site: Site, elsewhere: Authority, folder: Path) -> Credentials:
    own = site.credentials(2)
    issuer = certificates.Issuer(
        certificates.read_certificate(own.chain), certificates.read_key(own.key, "key")
    )
    key = certificates.new_key()
    made = certificates.for_device(issuer, key.public_key(), 0, certificates.utc_now())
    chain = certificates.certificate_pem(made) + own.chain
    return replace(own, key=certificates.key_pem(key), chain=chain)


def the_coordinators(site: Site, elsewhere: Authority, folder: Path) -> Credentials:
    return site.authority.serve_as()


def none(site: Site, elsewhere: Authority, folder: Path) -> None:
    return None


@pytest.mark.parametrize(
    "forge", [none, of_another_fleet, signed_by_a_device, the_coordinators], ids=lambda forge: forge.__name__
)
def test_who_has_no_certificate_of_the_fleet_does_not_get_to_say_anything(
    site: Site, elsewhere: Authority, forge: Forge, tmp_path: Path
) -> None:
    with site.open():
        known = len(site.lines("connected"))
        peer = site.stranger(forge(site, elsewhere, tmp_path), roots=site.authority.serve_as().ca)
        peer.raw(b"hello")
        code, _ = peer.hear("end")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert len(site.lines("connected")) == known
        site.peer(2).hello()  # who has one is heard


def test_a_device_does_not_follow_a_coordinator_of_another_fleet(site: Site, elsewhere: Authority) -> None:
    with site.open():
        peer = site.stranger(site.credentials(2), roots=elsewhere.serve_as().ca)
        assert peer.hear("end")[0] is grpc.StatusCode.UNAVAILABLE


def test_a_device_that_never_joined_is_a_stranger(site: Site, tmp_path: Path) -> None:
    with site.open():
        turned_away(site, joined(site.authority, tmp_path / "device", 9), "device 9 has not joined")


def test_a_certificate_that_was_replaced_is_a_strangers(site: Site, tmp_path: Path) -> None:
    with site.open():
        turned_away(site, joined(site.authority, tmp_path / "device", 2), "device 2 has another certificate")


def turned_away(site: Site, credentials: Credentials, reason: str) -> None:
    peer = site.stranger(credentials)
    peer.say(hello={"protocol": 1})
    code, details = peer.hear("end")
    assert code is grpc.StatusCode.UNAUTHENTICATED and reason in details
    until(lambda: any(reason in row["words"] for row in site.lines("stranger")), "it is logged")


def test_a_device_is_who_its_certificate_says_whatever_it_says_itself(site: Site) -> None:
    with site.open() as round:
        peer = site.peer(2, metadata=(("edgewise-device", "0"),))
        peer.ready(peer.hello())
        peer.served()
        assert set(site.courier.sessions) == {0, 1, 2}
        assert not site.courier.sessions[0].line.waiting  # device 0 is still itself
    assert 0 in round.took or 1 in round.took


def test_a_certificate_that_was_renewed_is_shown_from_the_next_connection_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown() -> bytes:
        with shaken(site.join_address, site.authority.serve_as(), None) as connection:
            found = connection.getpeercert(binary_form=True)
        assert found
        return found

    with site.open():
        before = shown()
        (site.authority.folder / "server.pem").unlink()
        monkeypatch.setattr("edgewise.engines.fleet.host.LOOK_SECONDS", 0)
        after = shown()
        assert after != before and after == shown()
        assert after == certificates.certificate_der(
            certificates.read_certificate(site.authority.serve_as().chain)
        )
        site.peer(2).hello()


# ---- tokens ----


def invite(site: Site, **other: Any) -> Token:
    answer = site.ask(what="invite", count=1, hours=1.0, **other)
    return Token((site.address,), site.join_address, bytes.fromhex(answer["secrets"][0]), site.authority.ca)


def refused(site: Site, token: Token, folder: Path, reason: str) -> None:
    with pytest.raises(EdgewiseError, match=f"refuses to let this device join: .*{reason}"):
        join_fleet(folder, token, "thief")
    assert not Identity(folder).joined
    until(lambda: any(reason in row["words"] for row in site.lines("join refused")), "it is logged")


def test_a_token_is_good_once(site: Site, tmp_path: Path) -> None:
    with site.open():
        token = invite(site)
        device = join_fleet(tmp_path / "device", token, "device")
        assert device == 3
        refused(site, token, tmp_path / "thief", "the token was used already")
        site.stranger(Identity(tmp_path / "device").load()[1]).hello()  # the thief has not thrown it out
        site.ask(what="revoke", device=device)


def test_a_token_that_has_expired(site: Site, tmp_path: Path) -> None:
    with site.open():
        answer = site.ask(what="invite", count=1, hours=1e-9)
        token = replace(invite(site), secret=bytes.fromhex(answer["secrets"][0]))
        refused(site, token, tmp_path / "thief", "the token has expired")


def test_a_token_that_was_guessed(site: Site, tmp_path: Path) -> None:
    with site.open():
        refused(site, replace(invite(site), secret=bytes(32)), tmp_path / "thief", "not one of this fleet's")


def test_a_token_of_a_device_that_was_revoked_since(site: Site, tmp_path: Path) -> None:
    with site.open():
        token = invite(site)
        device = join_fleet(tmp_path / "device", token, "device")
        site.ask(what="revoke", device=device)
        credentials = Identity(tmp_path / "device").load()[1]
        turned_away(site, credentials, f"device {device} was revoked")
        (tmp_path / "device" / "device.pem").unlink()
        refused(site, token, tmp_path / "device", f"device {device} was revoked")


def test_a_token_is_not_spent_on_a_coordinator_of_another_fleet(
    site: Site, elsewhere: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.engines.fleet.join.SECONDS", 1)
    with site.open():
        token = invite(site)
        with pytest.raises(EdgewiseError, match="is it the coordinator that made the token"):
            join_fleet(tmp_path / "device", replace(token, ca=elsewhere.ca), "device")
        (tmp_path / "device" / "agent.json").unlink()
        device = join_fleet(tmp_path / "device", token, "device")
        site.ask(what="revoke", device=device)


REQUESTS = {
    "no request": b"\xff\xff\xff",
    "nothing": b"",
    "a request for no key": JoinRequest(secret=bytes(32), csr=b"none").SerializeToString(),
    "a long request": JoinRequest(secret=bytes(32), csr=bytes(LONGEST)).SerializeToString(),
    "a name for a terminal": JoinRequest(name="\x1b]0;owned\x07" * 500).SerializeToString(),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_what_is_no_request_to_join_is_refused(site: Site, case: str) -> None:
    with site.open():
        known = len(site.lines("join refused"))
        reply = asked(site, REQUESTS[case])
        assert reply.refused and not reply.certificate and len(reply.refused) < 300
        until(lambda: len(site.lines("join refused")) == known + 1, "it is logged")


def test_a_request_that_is_far_too_long_is_not_read(site: Site) -> None:
    with site.open():
        with pytest.raises(grpc.RpcError) as caught:
            asked(site, bytes(8 * LONGEST))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def asked(site: Site, data: bytes) -> Any:
    """The answer of the join port to these bytes."""
    credentials = grpc.ssl_channel_credentials(site.authority.serve_as().ca)
    options = (("grpc.ssl_target_name_override", COORDINATOR), ("grpc.enable_http_proxy", 0))
    with grpc.secure_channel(site.join_address, credentials, options) as channel:
        return channel.unary_unary("/edgewise.Join/Join", None, JoinReply.FromString)(data, timeout=60)


@pytest.mark.parametrize("port", ["address", "join_address"])
@pytest.mark.parametrize("method", ["/edgewise.Control/Ask", "/edgewise.Join/Join", "/edgewise.Fleet/Other"])
def test_a_port_answers_to_its_own_methods_only(site: Site, port: str, method: str) -> None:
    """What an operator may ask is asked over the socket, by who may open it."""
    if (port, method) == ("join_address", "/edgewise.Join/Join"):
        return
    with site.open():
        own = site.credentials(2)
        credentials = grpc.ssl_channel_credentials(own.ca, own.key, own.chain)
        options = (("grpc.ssl_target_name_override", COORDINATOR), ("grpc.enable_http_proxy", 0))
        with grpc.secure_channel(getattr(site, port), credentials, options) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b'{"what": "stop"}', timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
