"""A fleet's identities for the tests: an authority in a folder, devices that have joined it."""

from pathlib import Path

from edgewise.engines.fleet.identity import Authority, Credentials, Identity


def joined(authority: Authority, folder: Path, device: int) -> Credentials:
    """A device that went through the whole of joining."""
    identity = Identity(folder)
    assert identity.accept(authority.sign(identity.request(), device), authority.ca) == device
    number, credentials = identity.load()
    assert number == device
    return credentials


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
