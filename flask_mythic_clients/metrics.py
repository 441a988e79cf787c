"""Metrics of the routes for Prometheus.

The only importer of prometheus_client, which the extra `metrics` installs.
"""

import time

from flask import Blueprint, Response, g
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from .views import Asked

_BEGAN = "_mythic_request_began"


class Metrics:
    """Counts requests, and measures how long they take; one object may serve several apps and kinds.

    `mythic_requests_total` is a counter by kind, action and status, `mythic_request_duration_seconds` a
    histogram by kind and action. An action is `soft`, `hard`, `restore`, `history`, `preview` or `status`;
    `delete` where the flag `hard` was none. They go into the registry that `prometheus_client` makes
    known, unless another is given.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._requests = Counter(
            "mythic_requests_total",
            "Requests that were answered, by what they asked for and the status.",
            ["kind", "action", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "mythic_request_duration_seconds",
            "How long it took to answer requests.",
            ["kind", "action"],
            registry=registry,
        )

    def watch(self, kind: str, blueprint: Blueprint) -> None:
        """Measure what is asked of the blueprint of a kind of client."""

        @blueprint.before_request
        def begin() -> None:
            setattr(g, _BEGAN, time.perf_counter())

        @blueprint.after_request
        def end(answer: Response) -> Response:
            action = Asked.by_request().action
            self._requests.labels(kind, action, answer.status_code).inc()
            began: float = g.pop(_BEGAN, time.perf_counter())
            self._seconds.labels(kind, action).observe(time.perf_counter() - began)
            return answer
