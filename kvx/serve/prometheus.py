"""The metrics at /metrics, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The server's own registry: two servers in one process do not mix."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self.requests = Counter(
            "kvx_requests", "Requests by endpoint and status", ["endpoint", "status"], registry=r
        )
        self.disconnects = Counter(
            "kvx_disconnects", "Clients that went away before their answer ended", registry=r
        )
        self.prompt_tokens = Counter("kvx_prompt_tokens", "Prompt tokens taken in", registry=r)
        self.tokens = Counter("kvx_generated_tokens", "Tokens of ended answers", registry=r)
        self.queue_s = Histogram(
            "kvx_queue_seconds", "From arrival to prefill", buckets=SECONDS, registry=r
        )
        self.prefill_s = Histogram(
            "kvx_prefill_seconds", "Prompt to first token", buckets=SECONDS, registry=r
        )
        self.step_s = Histogram(
            "kvx_step_seconds", "One token for all rows", buckets=SECONDS, registry=r
        )
        self.rows = Histogram(
            "kvx_step_rows",
            "Rows decoded together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=r,
        )
        self.guard_actions = Counter(
            "kvx_guard_actions",
            "Decisions of controllers, of ended answers",
            ["action"],
            registry=r,
        )
        self.guard_dropped = Counter(
            "kvx_guard_dropped_tokens", "Tokens that controllers took back", registry=r
        )
        self.guard_pause_s = Histogram(
            "kvx_guard_pause_seconds",
            "All rows wait while one is rebuilt",
            buckets=SECONDS,
            registry=r,
        )

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read at every scrape."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        return generate_latest(self.registry)
