"""OpenTelemetry traces across services and streams; nothing is imported until configured.

Without a collector configured, the W3C ``traceparent`` of a caller is still
carried: it is on log lines and on the calls that follow, so that a trace which
passes through Janus is not cut.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from janus_kit.telemetry import names

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

AttributeValue = str | int | float | bool | Sequence[str]
Attributes = Mapping[str, AttributeValue]

# What came in with the call at hand, kept for the calls that follow from it.
_incoming: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("janus_trace", default=())


class TelemetryError(RuntimeError):
    """Telemetry that is asked for cannot be had; the text says what to install."""


# Probes come every few seconds and would bury everything else.
_PROBES = ("grpc.health.v1.Health/", "/grpc.health.v1.Health/")


# By OpenTelemetry's conventions for gRPC: what a server did wrong.
_SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class _Tracing:
    """The process's tracer once configured."""

    tracer: "Tracer | None" = None
    provider: Any = None


_state = _Tracing()


def configure(
    *,
    endpoint: str | None,
    service: str,
    version: str,
    ratio: float = 1.0,
    exporter: "SpanExporter | None" = None,
) -> None:
    """Start to record and export. With neither endpoint nor exporter nothing happens.

    Raises TelemetryError with what to install when the exporter is not there.
    """
    if endpoint is None and exporter is None:
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        resource=Resource.create({names.SERVICE_NAME: service, names.SERVICE_VERSION: version}),
        sampler=ParentBased(TraceIdRatioBased(ratio)),
    )
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        provider.add_span_processor(BatchSpanProcessor(_otlp_exporter(str(endpoint))))
    _state.provider = provider
    _state.tracer = provider.get_tracer("janus", version)


def shutdown() -> None:
    """Send what is left and stop. Blocks for as long as the exporter takes."""
    provider, _state.provider, _state.tracer = _state.provider, None, None
    if provider is not None:
        provider.shutdown()


def enabled() -> bool:
    """Whether spans are recorded in this process."""
    return _state.tracer is not None


def _otlp_exporter(endpoint: str) -> "SpanExporter":
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise TelemetryError(
            "telemetry.otlp_endpoint is set, but the exporter is not installed: install janus-mesh[telemetry]"
        ) from None
    return OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))


class server_span:  # noqa: N801 - is used as a function is
    """A SERVER span around a call, child of the caller's; None when tracing is off.

    Whoever asks for it ends it. ``attributes`` replace those of an RPC.
    """

    __slots__ = ("_attached", "_attributes", "_carried", "_method", "_token")

    def __init__(self, method: str, metadata: Mapping[str, str], attributes: Mapping[str, str] | None = None) -> None:
        self._method = method
        self._attributes = attributes
        self._carried = tuple([(key, metadata[key]) for key in (TRACEPARENT, TRACESTATE) if key in metadata])
        self._attached: Any = None

    def __enter__(self) -> "Span | None":
        self._token = _incoming.set(self._carried)
        if _state.tracer is None or self._method.startswith(_PROBES):
            return None
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(self._carried))
        span = _state.tracer.start_span(
            self._method,
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes=_attributes(self._method) if self._attributes is None else self._attributes,
        )
        self._attached = context.attach(trace.set_span_in_context(span, parent))
        return span

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._attached is not None:
            from opentelemetry import context

            context.detach(self._attached)
        _incoming.reset(self._token)


@contextmanager
def span(name: str, attributes: Mapping[str, str | int | float | bool] | None = None) -> Iterator["Span | None"]:
    """An INTERNAL span around a piece of work; None when tracing is off."""
    if _state.tracer is None:
        yield None
        return
    # The text of an exception may quote what people wrote: a span has its class alone.
    with _state.tracer.start_as_current_span(
        name, attributes=dict(attributes or {}), record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except Exception as error:
            current.set_attribute(names.ERROR_TYPE, type(error).__name__)
            mark_failed(current)
            raise


def start_client_span(method: str) -> "Span | None":
    """A CLIENT span for a call that begins now; ended by ``end_span``."""
    if _state.tracer is None or method.startswith(_PROBES):
        return None
    from opentelemetry import trace

    return _state.tracer.start_span(method, kind=trace.SpanKind.CLIENT, attributes=_attributes(method))


def start_span(name: str, attributes: Attributes) -> "Span | None":
    """A CLIENT span for a call to something that is not ours; whoever starts it ends it.

    It is not made the current one, so it may live across the turns of a stream.
    """
    if _state.tracer is None:
        return None
    from opentelemetry import trace

    return _state.tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=dict(attributes))


def current() -> "Span | None":
    """The span that the code at hand runs within; None when there is none."""
    if _state.tracer is None:
        return None
    from opentelemetry import trace

    found = trace.get_current_span()
    return found if found.get_span_context().is_valid else None


def mark_failed(span: "Span") -> None:
    """The work of the span did not succeed."""
    from opentelemetry import trace

    span.set_status(trace.StatusCode.ERROR)


def call_failed(reason: str) -> None:
    """What the call at hand was for failed, though its status will be OK: its span says so."""
    if _state.tracer is None:
        return
    from opentelemetry import trace

    span = trace.get_current_span()
    span.set_attribute(names.ERROR_TYPE, reason)
    mark_failed(span)


def end_server_span(span: "Span | None", code: str) -> None:
    """End the span of a call that was served. What is the caller's own fault is no error of the server's."""
    _end(span, code, code in _SERVER_ERRORS)


def end_span(span: "Span | None", code: str) -> None:
    """End the span of a call that was made. A caller's own cancel is no error."""
    _end(span, code, code not in ("OK", "CANCELLED"))


def _end(span: "Span | None", code: str, failed: bool) -> None:
    if span is None:
        return
    from opentelemetry import trace

    span.set_attribute(names.RPC_STATUS_CODE, code)
    if failed:
        span.set_attribute(names.ERROR_TYPE, code)
        span.set_status(trace.StatusCode.ERROR)
    span.end()


def outgoing(span: "Span | None") -> tuple[tuple[str, str], ...]:
    """Metadata that makes a call part of the trace."""
    if span is None:
        return _incoming.get()
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
    return tuple(carrier.items())


def trace_id(span: "Span | None", metadata: Mapping[str, str]) -> str:
    """The trace's id in hexadecimal, recorded here or not; empty when there is none."""
    if span is not None:
        return format(span.get_span_context().trace_id, "032x")
    match = _TRACEPARENT.fullmatch(metadata.get(TRACEPARENT, ""))
    return match[1] if match is not None else ""


def _attributes(method: str) -> dict[str, str]:
    return {names.RPC_SYSTEM_NAME: names.SYSTEM_GRPC, names.RPC_METHOD: method}
