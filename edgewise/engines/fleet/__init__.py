"""Real devices over a network: agents connect out to a coordinator, which pushes tasks and loses nothing.

    coordinator   courier.py -> one session.py an agent -> window.py (a round) -> spool.py, journal.py
    device        agent.py -> duty.py (a task) -> keep.py (what it remembers)
    between       messages.py over TLS whose certificates identity.py makes and enrol.py hands out

`fleet.py` is the engine: it gives a round's task to the courier and yields replies that lie in the journal.
Nothing here is imported unless a fleet is used.
"""

from __future__ import annotations

import os

# Before gRPC is imported: what it would write to stderr by itself, our own words say in one line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
