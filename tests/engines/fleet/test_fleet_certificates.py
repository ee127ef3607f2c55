"""What is signed, and what is refused before that."""

import base64
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from edgewise.engines.fleet import certificates
from edgewise.engines.fleet.certificates import CertificateError, Issuer
from edgewise.engines.fleet.identity import Authority
from edgewise.errors import EdgewiseError
from edgewise.wire import EVERYONE

NOW = certificates.utc_now()
KEY = certificates.new_key()
REQUEST = certificates.request(KEY)
DER = x509.load_pem_x509_csr(REQUEST).public_bytes(serialization.Encoding.DER)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("fleet") / "authority")


def pem(der: bytes) -> bytes:
    return (
        b"-----BEGIN CERTIFICATE REQUEST-----\n"
        + base64.encodebytes(der)
        + b"-----END CERTIFICATE REQUEST-----\n"
    )


def asked_by(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM)


# ---- what is signed ----


def test_a_device_s_certificate(authority: Authority) -> None:
    signed = authority.sign(REQUEST, 12)
    made, ca = certificates.read_certificate(signed), certificates.read_certificate(authority.ca)
    assert made.subject == x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device-12")])
    assert made.issuer == ca.subject and made.public_key() == KEY.public_key()
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and not constraints.value.ca
    purposes = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert made.not_valid_after_utc == ca.not_valid_after_utc
    assert made.not_valid_before_utc >= ca.not_valid_before_utc
    assert certificates.device_of(signed) == 12
    with pytest.raises(x509.ExtensionNotFound):
        made.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_serial_numbers_are_random(authority: Authority) -> None:
    serials = {certificates.read_certificate(authority.sign(REQUEST, 1)).serial_number for _ in range(5)}
    assert len(serials) == 5 and min(serials).bit_length() > 100


def test_days_make_it_shorter(authority: Authority) -> None:
    made = certificates.read_certificate(authority.sign(REQUEST, 1, days=30))
    left = made.not_valid_after_utc - certificates.utc_now()
    assert timedelta(days=29) < left <= timedelta(days=30)
    with pytest.raises(ValueError, match="at least a day"):
        authority.sign(REQUEST, 1, days=0)


def test_what_a_request_asks_for_is_ignored(authority: Authority) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device-1")])
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=9), critical=True)
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName(certificates.COORDINATOR)]), critical=False
    )
    builder = builder.add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
        critical=True,
    )
    greedy = builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    got = certificates.read_certificate(authority.sign(greedy, 5))
    plain = certificates.read_certificate(authority.sign(REQUEST, 5))
    assert got.subject == plain.subject
    assert [(e.oid, e.critical, e.value) for e in got.extensions] == [
        (e.oid, e.critical, e.value) for e in plain.extensions
    ]


@pytest.mark.parametrize("device", [-1, EVERYONE, EVERYONE + 1])
def test_only_devices_are_signed(device: int, authority: Authority) -> None:
    with pytest.raises(ValueError, match="number is from 0 to"):
        authority.sign(REQUEST, device)


@pytest.mark.parametrize("device", [0, 1, 10, EVERYONE - 1])
def test_the_number_comes_back_from_both_forms(device: int, authority: Authority) -> None:
    signed = authority.sign(REQUEST, device)
    der = certificates.certificate_der(certificates.read_certificate(signed))
    assert certificates.device_of(signed) == certificates.device_of(der) == device
    assert certificates.fingerprint(signed) == certificates.fingerprint(der)
    assert (
        certificates.fingerprint(signed)
        == certificates.read_certificate(der).fingerprint(hashes.SHA256()).hex()
    )


# ---- what is refused ----


def wrong_signature() -> bytes:
    return pem(DER[:-1] + bytes([DER[-1] ^ 1]))


def another_s_key() -> bytes:
    """A request whose key was put in place of the one that signed it."""
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ours, theirs = (key.public_key().public_bytes(*form) for key in (KEY, certificates.new_key()))
    assert DER.count(ours) == 1
    return pem(DER.replace(ours, theirs))


REFUSED = {
    "rsa": (lambda: asked_by(rsa.generate_private_key(65537, 2048)), "not ECDSA on P-256"),
    "p-384": (lambda: asked_by(ec.generate_private_key(ec.SECP384R1())), "not ECDSA on P-256"),
    "secp256k1": (lambda: asked_by(ec.generate_private_key(ec.SECP256K1())), "not ECDSA on P-256"),
    "ed25519": (lambda: asked_by(ed25519.Ed25519PrivateKey.generate()), "not ECDSA on P-256"),
    "wrong signature": (wrong_signature, "not signed with its own key"),
    "another's key": (another_s_key, "not signed with its own key"),
    "huge": (lambda: REQUEST + b"\n" * certificates.LONGEST, "at most 8192 bytes"),
    "empty": (lambda: b"", "damaged"),
    "garbage": (lambda: b"\x00\xff" * 100, "damaged"),
    "der": (lambda: DER, "damaged"),
    "cut": (lambda: REQUEST[: len(REQUEST) // 2], "damaged"),
    "a key": (lambda: certificates.key_pem(KEY), "damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_request_is_refused_in_one_line(case: str, authority: Authority) -> None:
    make, says = REFUSED[case]
    with pytest.raises(CertificateError, match=says) as caught:
        authority.sign(make(), 1)
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, len(DER) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_request_with_other_bytes_is_refused_or_still_proves_its_key(
    changes: list[tuple[int, int]],
) -> None:
    content = bytearray(DER)
    for place, value in changes:
        content[place] = value
    try:
        key = certificates.requested_key(pem(bytes(content)))
    except CertificateError:
        return
    assert key == KEY.public_key() and bytes(content) == DER


@given(st.one_of(st.binary(max_size=500), st.binary(max_size=300).map(pem)))
def test_garbage_is_no_request_and_no_certificate(content: bytes) -> None:
    with pytest.raises(CertificateError):
        certificates.requested_key(content)
    with pytest.raises(CertificateError):
        certificates.read_certificate(content)
    with pytest.raises(CertificateError):
        certificates.read_key(content, "key")


@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    st.data(),
)
def test_a_certificate_with_other_bytes_is_refused(
    changes: list[tuple[float, int]], data: st.DataObject
) -> None:
    issuer = _issuer()
    der = certificates.certificate_der(certificates.for_device(issuer, KEY.public_key(), 3, NOW))
    content = bytearray(der)
    for place, value in changes:
        content[int(place * len(content))] = value
    if content == der:
        return
    with pytest.raises(EdgewiseError):
        certificates.check_device(
            certificates.read_certificate(bytes(content)), issuer.certificate, KEY.public_key(), "certificate"
        )


def _issuer(key: ec.EllipticCurvePrivateKey = KEY) -> Issuer:
    return Issuer(certificates.authority(key, NOW), key)


# ---- names ----


def named(*parts: tuple[x509.ObjectIdentifier, str]) -> bytes:
    issuer = _issuer()
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])
    draft = certificates._draft(subject, KEY.public_key(), NOW, NOW + certificates.YEAR)
    return certificates.certificate_pem(certificates._leaf(issuer, draft, ExtendedKeyUsageOID.CLIENT_AUTH))


CN = NameOID.COMMON_NAME


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [(CN, "device-")],
        [(CN, "device-01")],
        [(CN, "device--1")],
        [(CN, "device-+1")],
        [(CN, " device-1")],
        [(CN, "device-1\n")],
        [(CN, "device-1 ")],
        [(CN, "Device-1")],
        [(CN, "device-1_0")],
        [(CN, "device-\u0661")],
        [(CN, f"device-{EVERYONE}")],
        [(CN, "device-9999999999")],
        [(CN, "device-10000000000")],
        [(CN, "coordinator.edgewise")],
        [(CN, "device-1"), (CN, "device-2")],
        [(CN, "device-1"), (NameOID.ORGANIZATION_NAME, "x")],
        [(NameOID.ORGANIZATION_NAME, "device-1")],
    ],
)
def test_a_name_that_is_not_exactly_a_device_s_is_refused(
    parts: list[tuple[x509.ObjectIdentifier, str]],
) -> None:
    with pytest.raises(CertificateError, match="names no device"):
        certificates.device_of(named(*parts))


def test_the_names_above_fail_for_their_names_alone() -> None:
    assert certificates.device_of(named((CN, "device-1"))) == 1


def test_two_certificates_are_none(authority: Authority) -> None:
    signed = authority.sign(REQUEST, 1)
    with pytest.raises(CertificateError, match="damaged"):
        certificates.device_of(signed + signed)
