"""Telemetry of calls: ids on every log line, one span, one duration, one line at the end.

Nothing here runs per message: a stream of a thousand events costs as much as a
unary call.
"""

from collections.abc import Awaitable
from typing import TypeVar

import grpc

from janus_kit.ids import is_id, new_id
from janus_kit.interceptors import context as call_context
from janus_kit.interceptors.call import Call
from janus_kit.telemetry import logging, metrics, tracing

REQUEST_ID = "x-request-id"

_log = logging.get_logger(__name__)

_Result = TypeVar("_Result")

_OURS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.DATA_LOSS,
    }
)


async def observed(call: Call, work: Awaitable[_Result]) -> _Result:
    """Observe a call from its arrival to its status, which the guard notes on it."""
    call.read_metadata()
    asked = call.metadata.get(REQUEST_ID, "")
    call.request_id = asked if is_id(asked) else new_id("req")
    name = call.method.name
    in_flight = metrics.in_flight(name)
    with (
        call_context.request_scope(call.request_id),
        tracing.server_span(name, call.metadata) as span,
    ):
        trace_id = tracing.trace_id(span, call.metadata)
        # The ids stay bound until the call's task ends: every call has its own.
        logging.bind(request_id=call.request_id, **({"trace_id": trace_id} if trace_id else {}))
        # Callers quote it when they report a problem; refusals carry it too.
        call.context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        in_flight.inc()
        try:
            return await work
        finally:
            in_flight.dec()
            seconds = call.seconds
            metrics.served(name, call.status.name).observe(seconds)
            tracing.end_server_span(span, call.status.name)
            _report(call, seconds)


def _report(call: Call, seconds: float) -> None:
    """One line: quiet for what went well, louder for what an operator may have to mend.

    Our own bugs were reported with their incident already, and a caller that
    leaves is no error.
    """
    match call.status:
        case grpc.StatusCode.OK:
            log = _log.debug
        case _ if call.reason == "DRAINING":
            log = _log.debug  # as many as callers try; the stop itself is logged
        case status if status in _OURS:
            log = _log.warning
        case _:
            log = _log.debug if call.method.is_infrastructure else _log.info
    log(
        "rpc",
        rpc_method=call.method.name,
        rpc_status_code=call.status.name,
        reason=call.reason or None,
        seconds=round(seconds, 4),
    )
