"""Metrics and spans of inference: no prompt text unless it is switched on, and bounded labels."""

from janus_inference.telemetry.asked import asked
from janus_inference.telemetry.attempt import Attempt
from janus_inference.telemetry.content import Said
from janus_inference.telemetry.gauges import shown
from janus_inference.telemetry.metrics import (
    broken_off_total,
    cache_total,
    cost_microusd_total,
    fallbacks_total,
    hedges_total,
    limits_unchecked_total,
    limits_unsettled_total,
    resumes_total,
    retries_total,
    unknown_events_total,
    usage_dropped_total,
    usage_unwritten,
)
from janus_inference.telemetry.naming import PLAIN, Naming, Peer
from janus_inference.telemetry.served import Served, told

__all__ = [
    "PLAIN",
    "Attempt",
    "Naming",
    "Peer",
    "Said",
    "Served",
    "asked",
    "broken_off_total",
    "cache_total",
    "cost_microusd_total",
    "fallbacks_total",
    "hedges_total",
    "limits_unchecked_total",
    "limits_unsettled_total",
    "resumes_total",
    "retries_total",
    "shown",
    "told",
    "unknown_events_total",
    "usage_dropped_total",
    "usage_unwritten",
]
