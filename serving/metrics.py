"""The metrics of a server, which it shows at /metrics in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from model_handlers.manifests.manifest import Manifest

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "the server needs more packages: run pip install 'millrace[serving]'"
    ) from error

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "millrace_requests",
            "Prediction requests by status, including requests refused while they were read",
            ["status"],
            registry=registry,
        )
        self.rows = Counter("millrace_rows", "Rows predicted", registry=registry)
        self.bad_rows = Counter(
            "millrace_bad_rows", "Rows refused, by reason", ["reason"], registry=registry
        )
        self.seconds = Histogram(
            "millrace_request_seconds",
            "Time from the end of a request's headers to its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.pass_seconds = Histogram(
            "millrace_pass_seconds", "Time of one forward pass", buckets=_SECONDS, registry=registry
        )
        self.pass_rows = Histogram(
            "millrace_pass_rows", "Rows in one forward pass", buckets=_ROWS, registry=registry
        )
        self.pass_requests = Histogram(
            "millrace_pass_requests",
            "Requests in one forward pass",
            buckets=_REQUESTS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "millrace_in_flight", "Requests that are being answered", registry=registry
        )
        self.waiting = Gauge(
            "millrace_waiting", "Requests that wait for a forward pass", registry=registry
        )
        self.model = Info("millrace_model", "The model that is served", registry=registry)

    def watch(self, in_flight: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Set the functions that return the values of the gauges.

        Args:
            in_flight: Returns the number of requests that are being answered.
            waiting: Returns the number of requests that wait for a forward pass.
        """
        self.in_flight.set_function(in_flight)
        self.waiting.set_function(waiting)

    def serve(self, manifest: Manifest) -> None:
        """Show this model as the one that is served."""
        self.model.info(
            {
                "name": manifest.name,
                "version": manifest.version,
                "sha256": manifest.sha256,
                "digest": manifest.digest,
            }
        )

    def passed(self, requests: int, rows: int, seconds: float) -> None:
        """Record one forward pass of the model.

        Args:
            requests: How many requests shared the pass.
            rows: How many rows they had together.
            seconds: How long the pass took.
        """
        self.pass_requests.observe(requests)
        self.pass_rows.observe(rows)
        self.pass_seconds.observe(seconds)
