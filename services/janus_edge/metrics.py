"""Prometheus metrics of the edge, and how a process shows what it has counted."""

import os

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from janus_kit.telemetry import names

requests_total = Counter(names.EDGE_REQUESTS, "HTTP requests that were answered.", ["method", "route", "status"])
request_duration = Histogram(
    names.EDGE_REQUEST_DURATION,
    "Time from a request's arrival to the last byte of its answer.",
    ["route"],
    buckets=names.CALL_BUCKETS,
)
first_byte = Histogram(
    names.EDGE_TIME_TO_FIRST_BYTE,
    "Time from a request's arrival to the head of its answer; for a stream, to its first token.",
    ["route"],
    buckets=names.CALL_BUCKETS,
)
in_flight = Gauge(names.EDGE_REQUESTS_IN_FLIGHT, "HTTP requests being answered.", multiprocess_mode="livesum")
disconnects_total = Counter(names.EDGE_CLIENT_DISCONNECTS, "Requests whose client left before the end.", ["route"])

# Set by the operator, or by `python -m janus_edge` when it starts several workers.
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def exposition(accept: str) -> tuple[bytes, str]:
    """All metrics of this process, or of all workers; body and content type."""
    registry: CollectorRegistry = REGISTRY
    if MULTIPROCESS_DIR in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
