"""What `edgewise coordinator run` puts together: the run's parts, and the devices that it is played on."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgewise.errors import EdgewiseError

if TYPE_CHECKING:
    from edgewise.assemble import Parts
    from edgewise.config import Config
    from edgewise.engines.fleet.fleet import Fleet
    from edgewise.engines.fleet.home import Home
    from edgewise.memories import Note

FEW = 5  # devices that are named
LONG = 2.0  # seconds that a round is open before those it waits for are named


class Stage:
    """`prepare` and `reach` are for `rounds.drive`. `own`: flags beside the run's settings.

    `rounds` and `there` tell whoever watches how far it will go, and who is there.
    """

    def __init__(self, home: Home, folder: Path, own: dict[str, Any]) -> None:
        from edgewise.engines.fleet.faults import COORDINATOR, Fault
        from edgewise.engines.fleet.home import Contact
        from edgewise.engines.fleet.host import Ports
        from edgewise.engines.fleet.policy import Policy

        self.home, self.folder, self.own = home, folder, own
        self.policy = Policy(own["quorum"], own["spare"], own["beat"], own["labels"])
        self.fault = Fault(own["fault"], COORDINATOR)
        self.ports = Ports.of(Contact.load(home.folder), own["listen"], own["insecure_loopback"])
        self.engine: Fleet | None = None
        if self.ports.insecure:
            words = "edgewise: INSECURE: no TLS, no identity; whoever reaches the port is a device"
            click.secho(words, err=True, bold=True)

    def prepare(self, config: Config) -> Parts:
        from edgewise import data
        from edgewise.deploy import assemble_coordinator

        if self.own["shape"] is None:
            folder = Path(config.data_dir) if config.data_dir else None
            return assemble_coordinator(config, data.load(config.data, folder))
        return assemble_coordinator(config, (read_shape(self.own["shape"]), self.own["classes"]))

    def reach(self, parts: Parts, note: Note | None) -> Fleet:
        from edgewise.engines.fleet.coordinate import Coordinator
        from edgewise.engines.fleet.identity import Authority

        authority = Authority.load(self.home.ca)
        coordinator = Coordinator(self.home, authority, self.ports, self.own["metrics"], self.fault)
        self.engine = coordinator.fleet(parts.fleet_run(self.folder), self.policy, note)
        joining = f", to join at {coordinator.join_address}" if coordinator.join_address else ""
        log = "" if str(self.own["log"]) == "-" else f"; log: {self.own['log']}"
        # Not echo: it writes past the bar, which is drawn by now and moves out of the way of these only.
        print(f"edgewise: agents connect at {coordinator.address}{joining}{log}", file=sys.stderr)
        print("edgewise: Ctrl-C stops it, and the same command continues", file=sys.stderr, flush=True)
        return self.engine

    def rounds(self) -> int:
        """How many there are in all; 0 while that is not known."""
        return self.engine.run.rounds if self.engine else 0

    def there(self) -> str:
        """Who is there, and who is waited for, in a few words. From any thread."""
        if self.engine is None:
            return "getting ready"
        courier = self.engine.courier
        ready = sum(session.ready for session in list(courier.sessions.values()))
        window = courier.window
        slow = window is not None and not window.closed and time.monotonic() - window.began > LONG
        missing = window.missing() if window is not None and slow else []
        words = f"{ready} devices here"
        if not missing:
            return words
        named = ", ".join(map(str, missing[:FEW])) + (" ..." if len(missing) > FEW else "")
        return f"{words}, waiting for {named}"


def read_shape(text: str) -> tuple[int, int, int]:
    """Channels, height and width of "3x32x32"."""
    words = text.split("x")
    if len(words) != 3 or not all(word.isdigit() and 0 < int(word) <= 1 << 14 for word in words):
        raise EdgewiseError(f"--shape: {text!r} is not CxHxW, such as 3x32x32")
    channels, height, width = map(int, words)
    return channels, height, width
