"""Join tokens: what an operator copies from the coordinator to a new device.

    text     = "edgewise1." + base64url, without padding, of content
    content  = length u16, of all content + secret (32 bytes) + count u8 + count addresses + join address
               + length u16 + authority's certificate (DER) + checksum (4 bytes)
    address  = length u8 + "host:port" in ASCII

Numbers are little-endian. The number in the prefix is the version. The length tells a paste that was cut
short from one that was changed; the checksum (of the SHA-256 of what precedes it) finds accidents only. A
token's worth is its secret. Of that the coordinator keeps the digest, until when it is good, and whether it
was used.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import ipaddress
import re
import secrets
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field

from edgewise.engines.fleet import certificates
from edgewise.errors import EdgewiseError

PREFIX = "edgewise1."
ANY_PREFIX = re.compile(r"edgewise([0-9]{1,4})\.", re.ASCII)
LETTERS = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)
LONGEST = 8 << 10  # letters of a text
SECRET, CHECKSUM = 32, 4  # bytes
MOST = 8  # addresses
AUTHORITY = 2 << 10  # bytes of a certificate
LENGTH = struct.Struct("<H")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,246}[A-Za-z0-9])?", re.ASCII)
PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
COPY = "copy all of it again, in one line"


def digest(secret: bytes) -> bytes:
    """What the coordinator keeps in place of a secret: its SHA-256, 32 bytes."""
    return hashlib.sha256(secret).digest()


def matches(secret: bytes, kept: bytes) -> bool:
    """Whether a digest is this secret's, in a time that does not tell how much of it is."""
    return hmac.compare_digest(digest(secret), kept)


def check_address(address: str) -> None:
    """EdgewiseError unless it is host:port, [IPv6]:port included."""
    host, _, port = address.rpartition(":")
    if not (PORT.fullmatch(port) and int(port) < 1 << 16 and _is_host(host)):
        raise EdgewiseError(f"{address[:80]!r}: an address is host:port or [IPv6]:port, port 1 to 65535")


def _is_host(host: str) -> bool:
    if not host.startswith("["):
        return HOST.fullmatch(host) is not None and ".." not in host
    try:
        inside = host[1:].removesuffix("]")
        return host.endswith("]") and "%" not in inside and bool(ipaddress.IPv6Address(inside).exploded)
    except ValueError:
        return False


@dataclass(frozen=True, eq=False)
class Token:
    """Where to join, with what right, and whom to trust. EdgewiseError if a part is not legal.

    addresses: host:port of the fleet's port, those to try in order. join: host:port of the join port.
    secret: 32 random bytes. ca: the authority's certificate as DER, which the device pins.
    """

    addresses: tuple[str, ...]
    join: str
    secret: bytes = field(repr=False)
    ca: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.addresses) <= MOST:
            raise EdgewiseError(f"a token has 1 to {MOST} addresses, not {len(self.addresses)}")
        for address in (*self.addresses, self.join):
            check_address(address)
        if len(self.secret) != SECRET:
            raise EdgewiseError(f"a token's secret has {SECRET} bytes, not {len(self.secret)}")
        what = "the authority in a token"
        if len(self.ca) > AUTHORITY:
            raise EdgewiseError(f"{what}: at most {AUTHORITY} bytes, not {len(self.ca)}")
        authority = certificates.read_certificate(self.ca, what)
        certificates.check_issued(authority, authority, what)
        if certificates.certificate_der(authority) != self.ca:
            raise EdgewiseError(f"{what}: not in its DER form")

    @classmethod
    def create(cls, addresses: tuple[str, ...], join: str, ca: bytes) -> Token:
        """A new secret, drawn from the system's generator."""
        return cls(addresses, join, secrets.token_bytes(SECRET), ca)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the secret, 32 bytes."""
        return digest(self.secret)

    @property
    def roots(self) -> bytes:
        """The authority as PEM, as gRPC takes it."""
        return certificates.certificate_pem(certificates.read_certificate(self.ca))

    def text(self) -> str:
        """One line of letters, digits, `-`, `_` and one dot. It holds the secret: never log it."""
        written = (address.encode("ascii") for address in (*self.addresses, self.join))
        addresses = b"".join(bytes([len(address)]) + address for address in written)
        count = bytes([len(self.addresses)])
        rest = self.secret + count + addresses + LENGTH.pack(len(self.ca)) + self.ca
        content = LENGTH.pack(LENGTH.size + len(rest) + CHECKSUM) + rest
        return PREFIX + urlsafe_b64encode(content + _checksum(content)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Token:
        """The token of a text; white space around it is let go. EdgewiseError, which repeats none of it."""
        text = text[: 2 * LONGEST].strip()
        content = io.BytesIO(_content(text))
        content.seek(LENGTH.size)
        secret, (count,) = _take(content, SECRET), _take(content, 1)
        if not 1 <= count <= MOST:
            raise EdgewiseError(f"join token: has 1 to {MOST} addresses, not {count}")
        *addresses, join = [_address(content) for _ in range(count + 1)]
        (length,) = LENGTH.unpack(_take(content, LENGTH.size))
        token = cls(tuple(addresses), join, secret, _take(content, length))
        if token.text() != text:
            raise EdgewiseError("join token: not in the one form that a token has; get a new one")
        return token


def _content(text: str) -> bytes:
    """What the letters stand for, without the checksum, which agrees."""
    letters = _letters(text)
    (length,) = LENGTH.unpack(urlsafe_b64decode(letters[:4])[: LENGTH.size])
    whole = (4 * length + 2) // 3
    if len(letters) < whole:
        seen, of = len(PREFIX) + len(letters), len(PREFIX) + whole
        raise EdgewiseError(f"join token: cut short, {seen} of {of} letters; {COPY}")
    if len(letters) > whole:
        raise EdgewiseError(f"join token: {len(letters) - whole} letters follow its end; {COPY}")
    content = urlsafe_b64decode(letters + "=" * (-len(letters) % 4))
    content, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
    if checksum != _checksum(content):
        raise EdgewiseError(f"join token: changed on its way (its checksum does not agree); {COPY}")
    return content


def _letters(text: str) -> str:
    """The base64 of a text that has the form of a token of our version: at least four letters."""
    version = ANY_PREFIX.match(text[:20])
    if version is None:
        raise EdgewiseError(f"join token: not one; a token begins with {PREFIX}")
    if version[0] != PREFIX:
        raise EdgewiseError(f"join token: of version {version[1]}; this edgewise reads {PREFIX}...")
    if len(text) > LONGEST:
        raise EdgewiseError(f"join token: longer than the {LONGEST} letters that one may have; {COPY}")
    letters = text[len(PREFIX) :]
    if not LETTERS.fullmatch(letters):
        raise EdgewiseError(f"join token: only letters, digits, - and _ follow {PREFIX}; {COPY}")
    if len(letters) < 4:
        raise EdgewiseError(f"join token: cut short, almost nothing follows {PREFIX}; {COPY}")
    return letters


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:CHECKSUM]


def _take(content: io.BytesIO, count: int) -> bytes:
    taken = content.read(count)
    if len(taken) < count:
        raise EdgewiseError("join token: its parts do not fill it; get a new one")
    return taken


def _address(content: io.BytesIO) -> str:
    (length,) = _take(content, 1)
    return _take(content, length).decode("ascii", "replace")
