"""A coordinator put together: its home, its ports, its engine, and the order in which they begin and end."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Protocol

from edgewise.engines.fleet.descriptors import shares
from edgewise.engines.fleet.enrol import Enrolment
from edgewise.engines.fleet.faults import Fault
from edgewise.engines.fleet.fleet import Fleet, Run
from edgewise.engines.fleet.home import Home
from edgewise.engines.fleet.host import (
    JOIN_OPTIONS,
    OPTIONS,
    Ports,
    at_most,
    control_handlers,
    fleet_handlers,
    join_handlers,
    server_credentials,
)
from edgewise.engines.fleet.identity import Authority
from edgewise.engines.fleet.operator import Operator
from edgewise.engines.fleet.policy import Policy
from edgewise.engines.fleet.spool import Spool


class Watched(Protocol):
    """Processes that belong to a coordinator."""

    def check(self) -> None: ...
    def end(self) -> None: ...


class Coordinator:
    """The journal is open, and nobody else's, until the fleet is closed. `address`: of the agents' port."""

    def __init__(
        self,
        home: Home,
        authority: Authority,
        ports: Ports,
        metrics: str | None = None,
        fault: Fault | None = None,
    ) -> None:
        self.home, self.authority, self.ports, self.metrics, self.fault = (
            home,
            authority,
            ports,
            metrics,
            fault,
        )
        self._open = ExitStack()
        self.journal = self._open.enter_context(home.alone())
        self.address = self.join_address = ""
        self.engine: Fleet | None = None

    def fleet(self, run: Run, policy: Policy, note: dict[str, Any] | None) -> Fleet:
        """The engine of a run, with its ports open."""
        try:
            fleet = self.engine = Fleet(run, self.journal, Spool(self.home.spool(run.id)), policy, note)
            if self.fault is not None:
                fleet.courier.fault = self.fault
            self._open.callback(fleet.host.close)
            self._serve(fleet, run)
        except BaseException:
            self._open.close()
            raise
        fleet.host.watch(fleet.courier, policy.beat)
        fleet.closing = self._open.close
        return fleet

    def _serve(self, fleet: Fleet, run: Run) -> None:
        host, courier, insecure = fleet.host, fleet.courier, self.ports.insecure
        if self.metrics is not None:
            courier.metrics.serve(self.metrics)
        agents = fleet_handlers(courier, self.journal, insecure)
        mutual = None if insecure else server_credentials(self.authority, mutual=True)
        most, joins = shares()
        self.address = host.call(host.serve(self.ports.listen, mutual, agents, (*OPTIONS, at_most(most))))
        if not insecure:
            joining = join_handlers(Enrolment(self.authority, self.journal, courier.supersede))
            plain = server_credentials(self.authority, mutual=False)
            self.join_address = host.call(
                host.serve(
                    *(self.ports.join, plain, joining, (*JOIN_OPTIONS, at_most(joins))),
                    "the port for joining,",
                )
            )
        control = control_handlers(Operator(self.journal, courier, run.rounds).answer)
        self.home.check_socket()
        self.home.control.unlink(missing_ok=True)
        host.call(host.serve(f"unix:{self.home.control}", None, control, what="the control socket"))
        self.home.control.chmod(0o600)
        self._open.callback(lambda: self.home.control.unlink(missing_ok=True))

    def watch_over(self, processes: Watched) -> None:
        """These end with the fleet, and it ends with them."""
        assert self.engine is not None
        self.engine.check = processes.check
        self._open.callback(processes.end)
