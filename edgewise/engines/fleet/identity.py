"""Who is who in a fleet, kept in folders: the coordinator's authority, and a device's identity.

    authority   ca.key, ca.pem          what all devices trust: lost or stolen, the whole fleet joins anew
                server.key, server.pem  the coordinator's own; made and renewed from the authority
    device      device.key              never leaves the device
                ca.pem, device.pem      what joining brought; with device.pem, the device has joined

Folders are open to their owner alone (0700), keys too (0600), and a key that is not is refused. Files appear
whole or not at all, in an order that lets a step which was interrupted be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from edgewise import files
from edgewise.engines.fleet import certificates
from edgewise.engines.fleet.certificates import CertificateError, Issuer
from edgewise.errors import EdgewiseError

CA_KEY, CA = "ca.key", "ca.pem"
SERVER_KEY, SERVER = "server.key", "server.pem"
DEVICE_KEY, DEVICE = "device.key", "device.pem"
RENEWED = certificates.YEAR  # before its end, the coordinator's certificate is replaced
ANEW = "found a new fleet, and let its devices join that"


@dataclass(frozen=True)
class Credentials:
    """What one end of a mutual TLS connection needs, each as PEM, as gRPC takes them."""

    key: bytes = field(repr=False)
    chain: bytes = field(repr=False)  # the certificate of the key
    ca: bytes = field(repr=False)  # the authority whose certificates it accepts


@dataclass(frozen=True)
class Authority:
    """The root of a fleet's trust, in its folder. Made by `create` or `load`."""

    folder: Path
    _issuer: Issuer = field(repr=False)

    @classmethod
    def create(cls, folder: Path) -> Authority:
        """A new authority; EdgewiseError if the folder holds one.

        Where only the key is left of one, that key is used: its certificates stay valid.
        """
        files.make_private(folder)
        with files.locked(folder):
            if _exists(folder / CA):
                raise EdgewiseError(f"{folder / CA}: there is an authority already; name a new folder")
            key = _kept_key(folder / CA_KEY)
            certificate = certificates.authority(key, certificates.utc_now())
            files.write(folder / CA, certificates.certificate_pem(certificate), files.PUBLIC)
        return cls(folder, Issuer(certificate, key))

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """EdgewiseError if it is not there, is not whole, is open to others or has run out."""
        ca = _certificate(folder / CA)
        key = _key(folder / CA_KEY)
        if ca.public_key() != key.public_key():
            raise CertificateError(f"{folder / CA}: not the certificate of {CA_KEY} beside it")
        certificates.check_issued(ca, ca, str(folder / CA))
        authority = cls(folder, Issuer(ca, key))
        authority._now()
        return authority

    def _now(self) -> datetime:
        """The time; EdgewiseError when the authority has run out, for nothing that it signs would be good."""
        now = certificates.utc_now()
        certificates.check_dates(self._issuer.certificate, now, str(self.folder / CA), ANEW)
        return now

    @property
    def ca(self) -> bytes:
        """The authority's certificate, as DER: what a token carries and devices pin."""
        return certificates.certificate_der(self._issuer.certificate)

    def serve_as(self) -> Credentials:
        """The coordinator's credentials.

        Made at first, and anew once they have less than a year left or do not belong to this authority. A
        coordinator that runs on asks again from time to time: what is still good is only read.
        """
        with files.locked(self.folder):
            now = self._now()
            kept = self._kept(now)
            if kept is not None:
                return kept
            key = certificates.new_key()
            made = certificates.for_coordinator(self._issuer, key.public_key(), now)
            fresh = self._credentials(certificates.key_pem(key), certificates.certificate_pem(made))
            # A crash between the two leaves a pair that does not match, which is made anew.
            files.write(self.folder / SERVER_KEY, fresh.key, files.PRIVATE)
            files.write(self.folder / SERVER, fresh.chain, files.PUBLIC)
            return fresh

    def _kept(self, now: datetime) -> Credentials | None:
        """The coordinator's credentials from the folder, if they are still good."""
        paths = self.folder / SERVER_KEY, self.folder / SERVER
        if not all(map(_exists, paths)):
            return None
        try:
            key, certificate = _key(paths[0]), _certificate(paths[1])
            certificates.check_coordinator(
                certificate, self._issuer.certificate, key.public_key(), str(paths[1])
            )
        except CertificateError:
            return None
        # In the authority's last year no certificate lasts longer than the authority.
        last = min(now + RENEWED, self._issuer.certificate.not_valid_after_utc)
        if not (certificate.not_valid_before_utc <= now and last <= certificate.not_valid_after_utc):
            return None
        return self._credentials(certificates.key_pem(key), certificates.certificate_pem(certificate))

    def _credentials(self, key: bytes, chain: bytes) -> Credentials:
        return Credentials(key, chain, certificates.certificate_pem(self._issuer.certificate))

    def sign(self, request: bytes, device: int, days: int | None = None) -> bytes:
        """A device's certificate (PEM) for the key in its request (PEM).

        It lasts as long as the authority does, or `days`; why, says `certificates.py`. Of the request nothing
        counts but the key. CertificateError if the request is no good, ValueError for what no device has.
        """
        key = certificates.requested_key(request)
        if days is not None and days < 1:
            raise ValueError(f"a certificate lasts at least a day, not {days}")
        lasting = None if days is None else timedelta(days=days)
        made = certificates.for_device(self._issuer, key, device, self._now(), lasting)
        return certificates.certificate_pem(made)


@dataclass(frozen=True)
class Identity:
    """A device's own, in its folder."""

    folder: Path

    @property
    def joined(self) -> bool:
        return _exists(self.folder / DEVICE)

    def request(self) -> bytes:
        """A certificate request (PEM) for this device's key, which is made the first time.

        An interrupted join asks again, for the same key. EdgewiseError if the device has joined.
        """
        files.make_private(self.folder)
        with files.locked(self.folder):
            if self.joined:
                device, _ = self.load()
                joined = f"joined already, as device {device}"
                raise EdgewiseError(f"{self.folder}: {joined}; {_rejoin(self.folder)}")
            return certificates.request(_kept_key(self.folder / DEVICE_KEY))

    def accept(self, certificate: bytes, ca: bytes) -> int:
        """Keep what the coordinator signed: the device's number.

        certificate: PEM or DER. ca: the pinned authority, PEM or DER. EdgewiseError, and nothing is kept,
        unless the certificate is for this device's key, by that authority, and valid by this machine's clock.
        """
        with files.locked(self.folder):
            key = _key(self.folder / DEVICE_KEY)
            made, pinned = certificates.read_certificate(certificate), certificates.read_certificate(ca, "ca")
            device = certificates.check_device(made, pinned, key.public_key(), "certificate")
            certificates.check_dates(made, certificates.utc_now(), "certificate", _rejoin(self.folder))
            if self.joined and self.load()[1].chain != certificates.certificate_pem(made):
                raise EdgewiseError(f"{self.folder}: joined already; {_rejoin(self.folder)}")
            files.write(self.folder / CA, certificates.certificate_pem(pinned), files.PUBLIC)
            files.write(self.folder / DEVICE, certificates.certificate_pem(made), files.PUBLIC)  # commits
            return device

    def load(self) -> tuple[int, Credentials]:
        """The device's number and credentials; EdgewiseError if it has not joined, or they are no good."""
        if not self.joined:
            raise EdgewiseError(f"{self.folder}: this device has not joined a fleet; join with a token")
        key, made = _key(self.folder / DEVICE_KEY), _certificate(self.folder / DEVICE)
        ca, what = _certificate(self.folder / CA), str(self.folder / DEVICE)
        device = certificates.check_device(made, ca, key.public_key(), what)
        certificates.check_dates(made, certificates.utc_now(), what, _rejoin(self.folder))
        pems = (certificates.certificate_pem(part) for part in (made, ca))
        return device, Credentials(certificates.key_pem(key), *pems)


def _rejoin(folder: Path) -> str:
    return f"to join anew, remove {folder} and use a new token"


def _exists(path: Path) -> bool:
    with files.one_line(path, "read"):
        return path.exists()


def _key(path: Path) -> certificates.Key:
    return certificates.read_key(files.read(path, certificates.LONGEST, private=True), str(path))


def _certificate(path: Path) -> certificates.Certificate:
    return certificates.read_certificate(files.read(path, certificates.LONGEST), str(path))


def _kept_key(path: Path) -> certificates.Key:
    """The key of this file, which is made if it is not there."""
    if not _exists(path):
        files.write(path, certificates.key_pem(certificates.new_key()), files.PRIVATE)
    return _key(path)
