"""How a device gets its certificate: a token, good once, for a signature under its own key."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from edgewise.engines.fleet.certificates import fingerprint, key_fingerprint, requested_key
from edgewise.engines.fleet.identity import Authority
from edgewise.engines.fleet.journal import Journal
from edgewise.engines.fleet.messages import JoinReply, JoinRequest, printable
from edgewise.engines.fleet.roster import check_token, enrol
from edgewise.errors import EdgewiseError

LONGEST = 1 << 14  # bytes of a request
log = logging.getLogger("edgewise.coordinator")


class Enrolment:
    """`joined` is told of every device that has a certificate from now on, and of its fingerprint."""

    def __init__(self, authority: Authority, journal: Journal, joined: Callable[[int, str], None]) -> None:
        self.authority, self.journal, self.joined = authority, journal, joined

    async def join(self, data: bytes, peer: str) -> Any:
        """A certificate, or the reason why there is none."""
        try:
            request = _parsed(data)
            digest = hashlib.sha256(request.secret).hexdigest()
            key = key_fingerprint(requested_key(request.csr))
            device = await asyncio.wrap_future(check_token(self.journal, digest, key))
            certificate = self.authority.sign(request.csr, device)
            # The token is used up in the transaction that makes the certificate the device's.
            name = printable(request.name[:100])
            await asyncio.wrap_future(enrol(self.journal, digest, key, name, fingerprint(certificate)))
        except EdgewiseError as error:
            log.warning("join refused", extra={"words": str(error), "peer": peer})
            return JoinReply(refused=str(error))
        self.joined(device, fingerprint(certificate))
        log.info("joined", extra={"device": device, "peer": peer})
        return JoinReply(certificate=certificate, device=device)


def _parsed(data: bytes) -> Any:
    if len(data) > LONGEST:
        raise EdgewiseError(f"a request of {len(data)} bytes, where {LONGEST} are the most")
    try:
        return JoinRequest.FromString(data)
    except DecodeError:
        raise EdgewiseError("bytes that are no request") from None
