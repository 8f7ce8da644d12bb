"""Metrics and spans of memory. Labels are bounded: no tenant, id or text."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from janus_kit.telemetry import names, tracing
from janus_memory.model import Backlog

operation_duration = Histogram(
    "janus_memory_operation_duration_seconds",
    "Time of a memory operation, failures included.",
    ["operation"],
    buckets=(*names.SHORT_BUCKETS, 5, 10),
)
index_lag = Gauge("janus_memory_index_lag_seconds", "Age of the oldest write that is not indexed.")
index_backlog = Gauge("janus_memory_index_backlog", "Writes that are not indexed.")
index_dead = Gauge("janus_memory_index_dead_letters", "Writes that indexing gave up on.")
extract_dead = Gauge("janus_memory_extract_dead_letters", "Answers of models that extractions gave up on.")
resident_bytes = Gauge("janus_memory_resident_bytes", "Vectors of much searched spaces that are held in memory.")
recall_degraded = Counter("janus_memory_recall_degraded_total", "Recalls that a part was missing from.", ["reason"])


@contextmanager
def observed(operation: str, attributes: Mapping[str, str | int] | None = None) -> Iterator[None]:
    """Time an operation and put a span around it, named as the GenAI conventions do."""
    began = time.perf_counter()
    try:
        with tracing.span(operation, {names.GEN_AI_OPERATION_NAME: operation, **(attributes or {})}):
            yield
    finally:
        operation_duration.labels(operation).observe(time.perf_counter() - began)


def show(backlog: Backlog) -> None:
    """Set the gauges of the outbox and of dead letters."""
    index_lag.set(backlog.oldest_s)
    index_backlog.set(backlog.waiting)
    index_dead.set(backlog.dead)
    extract_dead.set(backlog.unusable)
