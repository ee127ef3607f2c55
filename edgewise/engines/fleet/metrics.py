"""What a coordinator counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from edgewise.errors import EdgewiseError

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """One set of them for each coordinator, so that two in a process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        on = self.registry
        self.connected = Gauge(
            "edgewise_connected_devices", "Devices with a stream, ready for a task", registry=on
        )
        self.round = Gauge("edgewise_round", "The round that is open, or the last one", registry=on)
        self.rounds = Counter("edgewise_rounds", "Rounds closed by this process", registry=on)
        self.seconds = Histogram(
            "edgewise_round_seconds", "From a round's task to its close", buckets=SECONDS, registry=on
        )
        self.answers = Histogram(
            "edgewise_answer_seconds", "From a task to a device's answer", buckets=SECONDS, registry=on
        )
        self.updates = Counter("edgewise_updates", "Updates by what became of them", ["verdict"], registry=on)
        self.received = Counter(
            "edgewise_received_bytes", "Bytes of updates that came, resent ones too", registry=on
        )
        self.sent = Counter(
            "edgewise_sent_bytes", "Bytes of tasks that went out, resent ones too", registry=on
        )
        self.events = Counter("edgewise_events", "Events by kind, as in the log", ["kind"], registry=on)
        self.accuracy = Gauge("edgewise_accuracy", "Accuracy at the last evaluation", registry=on)

    def serve(self, address: str) -> None:
        """Answer GET /metrics at host:port; EdgewiseError if the port cannot be had."""
        host, _, port = address.rpartition(":")
        try:
            start_http_server(int(port), host or "127.0.0.1", self.registry)
        except (OSError, ValueError, OverflowError) as error:
            raise EdgewiseError(f"--metrics {address}: cannot listen there ({error})") from None
