"""What Prometheus reads at ``/metrics``; README.md beside this file lists the names."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

# They would be a second series for each counter, with the time of its birth.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The server's counters, in a registry of their own: several servers may live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("app_requests", "Requests answered.", ("route", "status"), registry=self._registry)
        self.rejected = Counter(
            "app_rejected", "Requests refused before any text was generated.", ("reason",), registry=self._registry
        )
        self.seconds = Histogram(
            "app_request_seconds",
            "From a request's arrival to its last byte.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token = Histogram(
            "app_time_to_first_token_seconds",
            "From a request's arrival to the first token of an answer, waiting included.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.token_gap = Histogram(
            "app_inter_token_seconds",
            "Between tokens of an answer; the mean of those that came together.",
            buckets=_GAPS,
            registry=self._registry,
        )
        self.prompt_tokens = Counter("app_prompt_tokens", "Tokens of prompts.", ("model",), registry=self._registry)
        self.answer_tokens = Counter("app_answer_tokens", "Tokens generated.", ("model",), registry=self._registry)
        self.finished = Counter(
            "app_answers", "Answers by how they ended.", ("model", "reason"), registry=self._registry
        )

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is asked for whenever Prometheus reads."""
        Gauge(name, text, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self._registry)
