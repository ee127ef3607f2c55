"""Authority and identity in their folders: modes, what is refused, what can be repeated."""

import os
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from fleet_folders import joined, mode

from edgewise.engines.fleet import certificates
from edgewise.engines.fleet.certificates import CertificateError, Issuer
from edgewise.engines.fleet.identity import Authority, Identity
from edgewise.errors import EdgewiseError

DAY = timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority")


def issuer(authority: Authority) -> Issuer:
    key = certificates.read_key((authority.folder / "ca.key").read_bytes(), "key")
    return Issuer(certificates.read_certificate(authority.ca), key)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "open":
        path.chmod(0o640)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            {"empty": b"", "cut": content[:-60], "garbage": b"\xff" * 99, "long": b"x" * 9000}[how]
        )


# ---- the authority ----


def test_an_authority_comes_back(authority: Authority) -> None:
    again = Authority.load(authority.folder)
    assert again.ca == authority.ca
    assert mode(authority.folder) == 0o700
    assert {path.name: mode(path) for path in authority.folder.iterdir()} == {
        "ca.key": 0o600,
        "ca.pem": 0o644,
        ".lock": 0o600,
    }


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        Authority.create(tmp_path / "a").serve_as()
    finally:
        os.umask(before)
    modes = {path.name: mode(path) for path in (tmp_path / "a").iterdir() if path.name != ".lock"}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "ca.pem": 0o644, "server.pem": 0o644}
    assert mode(tmp_path / "a") == 0o700


def test_the_authority_is_what_it_should_be(authority: Authority) -> None:
    ca = certificates.read_certificate(authority.ca)
    assert isinstance(ca.public_key(), ec.EllipticCurvePublicKey)
    assert timedelta(days=3640) < ca.not_valid_after_utc - certificates.utc_now() < timedelta(days=3653)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature


def test_an_authority_is_never_overwritten(authority: Authority) -> None:
    before = {path: path.read_bytes() for path in authority.folder.iterdir()}
    with pytest.raises(EdgewiseError, match="already"):
        Authority.create(authority.folder)
    assert {path: path.read_bytes() for path in authority.folder.iterdir()} == before


def test_a_creation_that_was_interrupted_goes_on_with_its_key(authority: Authority) -> None:
    request = Identity(authority.folder.parent / "device").request()
    signed = authority.sign(request, 3)
    (authority.folder / "ca.pem").unlink()
    again = Authority.create(authority.folder)
    certificates.check_issued(
        certificates.read_certificate(signed), certificates.read_certificate(again.ca), "certificate"
    )


def test_two_creations_at_once_leave_one_authority(tmp_path: Path) -> None:
    made: list[bytes] = []
    refused: list[EdgewiseError] = []

    def create() -> None:
        try:
            made.append(Authority.create(tmp_path / "a").ca)
        except EdgewiseError as error:
            refused.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(refused) == 7
    assert Authority.load(tmp_path / "a").ca == made[0]


def test_a_folder_that_is_open_to_others_is_refused_unless_empty(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "theirs").touch()
    with pytest.raises(EdgewiseError, match=r"open to others \(mode 0755\); chmod 700"):
        Authority.create(tmp_path)
    (tmp_path / "empty").mkdir(0o755)
    Authority.create(tmp_path / "empty")
    assert mode(tmp_path / "empty") == 0o700


@pytest.mark.parametrize("how", ["missing", "open", "folder", "empty", "cut", "garbage", "long"])
@pytest.mark.parametrize("file", ["ca.key", "ca.pem"])
def test_what_is_wrong_with_an_authority_is_one_line(file: str, how: str, authority: Authority) -> None:
    if (file, how) == ("ca.pem", "open"):
        return
    damage(authority.folder / file, how)
    with pytest.raises(EdgewiseError) as caught:
        Authority.load(authority.folder)
    assert str(caught.value).startswith(f"{authority.folder / file}: ")
    assert "\n" not in str(caught.value) and "PRIVATE" not in str(caught.value)


def test_a_key_that_others_read_is_refused_until_it_is_closed(authority: Authority) -> None:
    key = authority.folder / "ca.key"
    for open_to in (0o604, 0o640, 0o660, 0o644):
        key.chmod(open_to)
        with pytest.raises(EdgewiseError, match=f"mode {open_to:04o}.; chmod 600"):
            Authority.load(authority.folder)
    key.chmod(0o400)
    Authority.load(authority.folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_key_is_one_line(authority: Authority) -> None:
    (authority.folder / "ca.key").chmod(0)
    with pytest.raises(EdgewiseError, match="cannot be read"):
        Authority.load(authority.folder)


def test_another_authority_s_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other")
    (authority.folder / "ca.pem").write_bytes((other.folder / "ca.pem").read_bytes())
    with pytest.raises(EdgewiseError, match=r"not the certificate of ca\.key"):
        Authority.load(authority.folder)


@pytest.mark.parametrize(("years", "says"), [(-11, "ran out on"), (+1, "set the clock")])
def test_an_authority_out_of_its_time_is_refused(years: int, says: str, authority: Authority) -> None:
    then = certificates.utc_now() + years * certificates.YEAR
    made = certificates.authority(issuer(authority).key, then)
    (authority.folder / "ca.pem").write_bytes(certificates.certificate_pem(made))
    with pytest.raises(EdgewiseError, match=says):
        Authority.load(authority.folder)


def test_no_secret_is_shown(authority: Authority, tmp_path: Path) -> None:
    credentials = joined(authority, tmp_path / "device", 1)
    shown = repr([authority, authority.serve_as(), credentials, issuer(authority), Identity(tmp_path)])
    assert "BEGIN" not in shown and "PrivateKey" not in shown


# ---- the coordinator's own ----


def test_the_coordinator_s_credentials_are_kept(authority: Authority) -> None:
    first = authority.serve_as()
    assert authority.serve_as() == first == Authority.load(authority.folder).serve_as()
    served = certificates.read_certificate(first.chain)
    certificates.check_coordinator(
        served,
        certificates.read_certificate(first.ca),
        certificates.read_key(first.key, "key").public_key(),
        "certificate",
    )
    with pytest.raises(CertificateError, match="no device"):
        certificates.device_of(first.chain)


@pytest.mark.parametrize(("left", "kept"), [(364 * DAY, False), (366 * DAY, True), (-DAY, False)])
def test_the_coordinator_s_certificate_is_renewed_in_time(
    left: timedelta, kept: bool, authority: Authority
) -> None:
    first = authority.serve_as()
    key = certificates.read_key(first.key, "key").public_key()
    since = certificates.utc_now() + left - certificates.SERVER
    old = certificates.for_coordinator(_long_ago(authority), key, since)
    (authority.folder / "server.pem").write_bytes(certificates.certificate_pem(old))
    (authority.folder / "ca.pem").write_bytes(certificates.certificate_pem(_long_ago(authority).certificate))
    again = Authority.load(authority.folder).serve_as()
    assert (again.key == first.key) is kept
    remains = certificates.read_certificate(again.chain).not_valid_after_utc - certificates.utc_now()
    assert remains > (365 * DAY if kept else 729 * DAY)


def _long_ago(authority: Authority) -> Issuer:
    """The authority as if it had been made five years ago."""
    key = issuer(authority).key
    return Issuer(certificates.authority(key, certificates.utc_now() - 5 * certificates.YEAR), key)


def test_nothing_outlives_the_authority(authority: Authority, tmp_path: Path) -> None:
    key = issuer(authority).key
    old = certificates.authority(key, certificates.utc_now() - certificates.AUTHORITY + 100 * DAY)
    (authority.folder / "ca.pem").write_bytes(certificates.certificate_pem(old))
    last = Authority.load(authority.folder)
    served = last.serve_as()
    assert last.serve_as() == served  # no new one at every call
    device = joined(last, tmp_path / "device", 1)
    for credentials in (served, device):
        made = certificates.read_certificate(credentials.chain)
        assert made.not_valid_after_utc == old.not_valid_after_utc


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "garbage", "other"])
@pytest.mark.parametrize("file", ["server.key", "server.pem"])
def test_a_server_s_files_that_do_not_fit_are_made_anew(
    file: str, how: str, authority: Authority, tmp_path: Path
) -> None:
    authority.serve_as()
    if how == "other":
        other = Authority.create(tmp_path / "other")
        other.serve_as()
        (authority.folder / file).write_bytes((other.folder / file).read_bytes())
    else:
        damage(authority.folder / file, how)
    fresh = authority.serve_as()
    assert authority.serve_as() == fresh
    key = certificates.read_key(fresh.key, "key").public_key()
    ca = certificates.read_certificate(authority.ca)
    certificates.check_coordinator(certificates.read_certificate(fresh.chain), ca, key, "certificate")


def test_a_server_s_key_that_others_read_is_refused(authority: Authority) -> None:
    authority.serve_as()
    (authority.folder / "server.key").chmod(0o644)
    with pytest.raises(EdgewiseError, match="chmod 600"):
        authority.serve_as()


# ---- a device ----


def test_a_device_joins(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    credentials = joined(authority, folder, 7)
    assert mode(folder) == 0o700
    modes = {path.name: mode(path) for path in folder.iterdir() if path.name != ".lock"}
    assert modes == {"device.key": 0o600, "device.pem": 0o644, "ca.pem": 0o644}
    assert certificates.device_of(credentials.chain) == 7
    assert credentials.key == (folder / "device.key").read_bytes()
    assert certificates.read_certificate(credentials.ca) == certificates.read_certificate(authority.ca)


def test_a_join_that_was_interrupted_can_be_repeated(authority: Authority, tmp_path: Path) -> None:
    identity = Identity(tmp_path / "device")
    first, second = identity.request(), identity.request()
    keys = [certificates.key_fingerprint(certificates.requested_key(text)) for text in (first, second)]
    assert keys[0] == keys[1]
    with pytest.raises(EdgewiseError, match="has not joined"):
        identity.load()
    authority.sign(first, 4)  # an answer that never arrived
    certificate = authority.sign(second, 4)
    assert identity.accept(certificate, authority.ca) == identity.accept(certificate, authority.ca) == 4
    (tmp_path / "device" / "device.pem").unlink()  # stopped before the last file
    assert identity.accept(certificate, authority.ca) == 4


def test_a_device_that_joined_is_not_joined_again(authority: Authority, tmp_path: Path) -> None:
    identity = Identity(tmp_path / "device")
    request = identity.request()
    identity.accept(authority.sign(request, 1), authority.ca)
    before = identity.load()
    with pytest.raises(EdgewiseError, match="joined already, as device 1; to join anew, remove"):
        identity.request()
    with pytest.raises(EdgewiseError, match="joined already"):
        identity.accept(authority.sign(request, 2), authority.ca)
    assert identity.load() == before


def test_a_device_accepts_only_what_is_its_own(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other")
    identity, neighbour = Identity(tmp_path / "device"), Identity(tmp_path / "neighbour")
    request = identity.request()
    served = issuer(authority)
    key = certificates.read_key((tmp_path / "device" / "device.key").read_bytes(), "key").public_key()
    past, now = certificates.utc_now() - 9 * DAY, certificates.utc_now()
    early = Issuer(certificates.authority(served.key, past), served.key)
    bad = {
        "another key": authority.sign(neighbour.request(), 1),
        "not signed by this fleet": other.sign(request, 1),
        "not for a device": certificates.certificate_pem(certificates.for_coordinator(served, key, now)),
        "ran out": certificates.certificate_pem(certificates.for_device(early, key, 1, past, DAY)),
        "set the clock": certificates.certificate_pem(certificates.for_device(served, key, 1, now + 9 * DAY)),
        "damaged": b"-----BEGIN CERTIFICATE-----\n",
        "at most": b"x" * 9000,
    }
    for says, certificate in bad.items():
        with pytest.raises(EdgewiseError, match=says):
            identity.accept(certificate, authority.ca)
    with pytest.raises(EdgewiseError, match="no authority"):  # a device is none, even over its own key
        identity.accept(authority.sign(request, 1), authority.sign(request, 1))
    assert not identity.joined


@pytest.mark.parametrize("how", ["missing", "open", "folder", "empty", "cut", "garbage", "long"])
@pytest.mark.parametrize("file", ["device.key", "device.pem", "ca.pem"])
def test_what_is_wrong_with_an_identity_is_one_line(
    file: str, how: str, authority: Authority, tmp_path: Path
) -> None:
    if how == "open" and file != "device.key":
        return
    joined(authority, tmp_path / "device", 1)
    damage(tmp_path / "device" / file, how)
    with pytest.raises(EdgewiseError) as caught:
        Identity(tmp_path / "device").load()
    assert str(tmp_path / "device") in str(caught.value)
    assert "\n" not in str(caught.value) and "PRIVATE" not in str(caught.value)


def test_a_certificate_that_ran_out_says_what_to_do(authority: Authority, tmp_path: Path) -> None:
    joined(authority, tmp_path / "device", 1)
    key = certificates.read_key((tmp_path / "device" / "device.key").read_bytes(), "key").public_key()
    long_ago = _long_ago(authority)
    old = certificates.for_device(long_ago, key, 1, certificates.utc_now() - 30 * DAY, 29 * DAY)
    (tmp_path / "device" / "device.pem").write_bytes(certificates.certificate_pem(old))
    with pytest.raises(EdgewiseError, match=r"ran out on .*remove .*device and use a new token"):
        Identity(tmp_path / "device").load()
