"""X.509 for a fleet: its authority, certificates for coordinator and devices, requests that devices make.

All keys are ECDSA on P-256, all signatures with SHA-256; the profile is that of RFC 5280. What comes from
outside is bounded before it is parsed, and is refused with CertificateError, whatever the bytes.

    authority     CN "edgewise fleet <key>"      signs certificates, no authorities     10 years
    coordinator   CN, SAN "coordinator.edgewise" server only                            2 years, renewed
    device        CN "device-<number>"           client only                            as the authority

Why a device's certificate lasts as long as its authority: the coordinator knows every certificate by its
fingerprint and looks it up at every connection, so revoking takes effect at once and nothing is gained by
letting it run out. Much would be lost: a device that is switched off over the date would stay out until
someone visits it. `days` makes it shorter for those who want that; such a device then joins anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewise.errors import EdgewiseError
from edgewise.wire import EVERYONE

COORDINATOR = "coordinator.edgewise"  # the name in its certificate, wherever it is reached
LONGEST = 8 << 10  # bytes of a certificate, a request or a key, as PEM or DER
YEAR = timedelta(days=365)
SKEW = timedelta(days=1)  # how far a device's clock may be behind
AUTHORITY, SERVER = 10 * YEAR, 2 * YEAR  # validity
DEVICE = re.compile(r"device-(0|[1-9][0-9]{0,9})", re.ASCII)

Key = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
Certificate = x509.Certificate


class CertificateError(EdgewiseError, ValueError):
    """Bytes that are not the certificate, request or key that they should be."""


@dataclass(frozen=True)
class Issuer:
    """Who signs."""

    certificate: Certificate
    key: Key = field(repr=False)


@contextmanager
def _legible(what: str) -> Iterator[None]:
    """Everything that the parser raises, as one line that repeats nothing of the input."""
    try:
        yield
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.InvalidVersion) as error:
        raise CertificateError(f"{what}: not one that edgewise makes ({type(error).__name__})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if isinstance(error, CertificateError):
            raise
        raise CertificateError(f"{what}: damaged, or something else") from None


def _bounded(content: bytes, what: str) -> None:
    if len(content) > LONGEST:
        raise CertificateError(f"{what}: at most {LONGEST} bytes, not {len(content)}")


def _on_our_curve(key: object, what: str) -> None:
    if not isinstance(key, Key | PublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError(f"{what}: its key is not ECDSA on P-256")


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """PKCS 8, not encrypted: what protects it is the file's mode."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(content: bytes, what: str) -> Key:
    """A private key from PEM."""
    _bounded(content, what)
    with _legible(what):
        key = serialization.load_pem_private_key(content, None)
        _on_our_curve(key, what)
    assert isinstance(key, Key)
    return key


def certificate_pem(certificate: Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def certificate_der(certificate: Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def read_certificate(content: bytes, what: str = "certificate") -> Certificate:
    """One certificate, as PEM or DER, with a key of our kind."""
    _bounded(content, what)
    with _legible(what):
        if content.lstrip().startswith(b"-----BEGIN"):
            (certificate,) = x509.load_pem_x509_certificates(content)
        else:
            certificate = x509.load_der_x509_certificate(content)
        _on_our_curve(certificate.public_key(), what)
    return certificate


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate (PEM or DER) in its DER form, as 64 hexadecimal digits."""
    return read_certificate(certificate).fingerprint(hashes.SHA256()).hex()


def device_of(certificate: bytes) -> int:
    """The number of the device that a certificate (PEM or DER) names. The handshake has checked the rest."""
    return _device(read_certificate(certificate), "certificate")


def _device(certificate: Certificate, what: str) -> int:
    with _legible(what):
        names = [(part.oid, part.value) for part in certificate.subject]
    found = DEVICE.fullmatch(str(names[0][1])) if [oid for oid, _ in names] == [NameOID.COMMON_NAME] else None
    number = int(found[1]) if found else EVERYONE
    if number >= EVERYONE:
        raise CertificateError(f"{what}: names no device")
    return number


# ---- made ----


def request(key: Key) -> bytes:
    """A certificate request (PEM) that proves possession of the key and asks for no name."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(request: bytes) -> PublicKey:
    """The public key of a request (PEM) that was signed with it; nothing else that it says is looked at."""
    what = "certificate request"
    _bounded(request, what)
    with _legible(what):
        asked = x509.load_pem_x509_csr(request)
        key = asked.public_key()
        _on_our_curve(key, what)
        signed = asked.is_signature_valid
    if not signed:
        raise CertificateError(f"{what}: not signed with its own key")
    assert isinstance(key, PublicKey)
    return key


def key_fingerprint(key: PublicKey) -> str:
    """SHA-256 of a public key in its DER form, as 64 hexadecimal digits."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    content = hashes.Hash(hashes.SHA256())
    content.update(key.public_bytes(serialization.Encoding.DER, form))
    return content.finalize().hex()


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _draft(subject: x509.Name, key: PublicKey, start: datetime, end: datetime) -> x509.CertificateBuilder:
    """Name, key and dates; a random serial number; the key's own identifier."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def authority(key: Key, now: datetime) -> Certificate:
    """The certificate of an authority. Its name follows from the key, so no two fleets share one."""
    subject = _named(f"edgewise fleet {key_fingerprint(key.public_key())[:16]}")
    draft = _draft(subject, key.public_key(), now - SKEW, now + AUTHORITY).issuer_name(subject)
    draft = draft.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return draft.add_extension(_usage(authority=True), critical=True).sign(key, hashes.SHA256())


def _leaf(issuer: Issuer, draft: x509.CertificateBuilder, purpose: x509.ObjectIdentifier) -> Certificate:
    """Sign what is no authority and serves one purpose."""
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    draft = draft.issuer_name(issuer.certificate.subject).add_extension(by, critical=False)
    draft = draft.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    draft = draft.add_extension(_usage(authority=False), critical=True)
    return draft.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False).sign(
        issuer.key, hashes.SHA256()
    )


def _within(issuer: Issuer, now: datetime, lasting: timedelta | None) -> tuple[datetime, datetime]:
    """First and last moment of a certificate: never outside its issuer's own."""
    start, end = issuer.certificate.not_valid_before_utc, issuer.certificate.not_valid_after_utc
    return max(start, now - SKEW), end if lasting is None else min(end, now + lasting)


def for_coordinator(issuer: Issuer, key: PublicKey, now: datetime) -> Certificate:
    draft = _draft(_named(COORDINATOR), key, *_within(issuer, now, SERVER))
    draft = draft.add_extension(x509.SubjectAlternativeName([x509.DNSName(COORDINATOR)]), critical=False)
    return _leaf(issuer, draft, ExtendedKeyUsageOID.SERVER_AUTH)


def for_device(
    issuer: Issuer, key: PublicKey, device: int, now: datetime, lasting: timedelta | None = None
) -> Certificate:
    """ValueError if there is no such device number."""
    if not 0 <= device < EVERYONE:
        raise ValueError(f"a device's number is from 0 to {EVERYONE - 1}, not {device}")
    draft = _draft(_named(f"device-{device}"), key, *_within(issuer, now, lasting))
    return _leaf(issuer, draft, ExtendedKeyUsageOID.CLIENT_AUTH)


# ---- checked ----


def check_issued(certificate: Certificate, by: Certificate, what: str) -> None:
    """CertificateError unless the one was signed by the other, an authority."""
    with _legible(what):
        constraints = by.extensions.get_extension_for_class(x509.BasicConstraints).value
    if not constraints.ca:
        raise CertificateError(f"{what}: its issuer is no authority")
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise CertificateError(f"{what}: not signed by this fleet's authority") from None


def check_dates(certificate: Certificate, now: datetime, what: str, remedy: str) -> None:
    """EdgewiseError if it is not valid now: `remedy` says what to do when it has run out."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        raise EdgewiseError(
            f"{what}: valid from {start:%Y-%m-%d %H:%M} UTC on, and this machine's clock says "
            f"{now:%Y-%m-%d %H:%M}; set the clock"
        )
    if now > end:
        raise EdgewiseError(f"{what}: ran out on {end:%Y-%m-%d} (today is {now:%Y-%m-%d}); {remedy}")


def check_device(certificate: Certificate, by: Certificate, key: PublicKey, what: str) -> int:
    """The number of the device that this certificate, issued by that authority to that key, is for."""
    if certificate.public_key() != key:
        raise CertificateError(f"{what}: made for another key than this device's")
    check_issued(certificate, by, what)
    if _purposes(certificate, what) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        raise CertificateError(f"{what}: not for a device")
    return _device(certificate, what)


def check_coordinator(certificate: Certificate, by: Certificate, key: PublicKey, what: str) -> None:
    """CertificateError unless this certificate lets the key's owner serve as the coordinator."""
    if certificate.public_key() != key:
        raise CertificateError(f"{what}: made for another key")
    check_issued(certificate, by, what)
    with _legible(what):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    serves = _purposes(certificate, what) == [ExtendedKeyUsageOID.SERVER_AUTH]
    if not serves or names.get_values_for_type(x509.DNSName) != [COORDINATOR]:
        raise CertificateError(f"{what}: not for the coordinator")


def _purposes(certificate: Certificate, what: str) -> list[x509.ObjectIdentifier]:
    with _legible(what):
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def utc_now() -> datetime:
    return datetime.now(UTC)
