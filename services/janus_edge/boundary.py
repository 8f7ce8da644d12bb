"""What every HTTP request passes: id, deadline, tenant, host check, metrics, log, last resort.

Plain ASGI, outside of FastAPI: streams go through it without being wrapped in
further tasks or queues.
"""

import math
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_edge import metrics
from janus_edge.openai_compat.errors import ErrorResponse, HttpError
from janus_edge.settings import EdgeSettings
from janus_kit.auth.identity import ALL_SCOPES, Identity, acting_as
from janus_kit.errors import Internal
from janus_kit.ids import ID_RULE, is_id, new_id
from janus_kit.interceptors.context import deadline_scope, request_scope
from janus_kit.telemetry import logging, names, tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.get_logger(__name__)

REQUEST_ID = "x-request-id"
TENANT = "janus-tenant"
TIMEOUT = "janus-timeout"
# In the ASGI scope: id of a bug that was already answered.
INCIDENT = "janus.incident"
# Status in logs and metrics of a request whose client left before the answer's head.
CLIENT_GONE = 499


class Boundary:
    """The outermost ASGI application of the edge."""

    def __init__(self, app: ASGIApp, settings: EdgeSettings) -> None:
        self._app = app
        self._timeout_s = settings.request_timeout_s
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        exchange = _Exchange(scope, send, given if is_id(given) else new_id("req"))
        with ExitStack() as stack:
            stack.enter_context(request_scope(exchange.request_id))
            stack.enter_context(logging.bound(request_id=exchange.request_id))
            stack.enter_context(exchange)
            try:
                self._enter(stack, scope, headers, exchange)
                await self._app(scope, receive, exchange.send)
            except HttpError as error:
                await ErrorResponse(error)(scope, receive, exchange.send)
            except ClientDisconnect:
                return
            except Exception as error:
                incident = scope.get(INCIDENT) or new_id("inc")
                log.error("request_failed", incident_id=incident, exc_info=error)
                if not exchange.status:
                    await ErrorResponse(Internal(incident))(scope, receive, exchange.send)

    def _enter(self, stack: ExitStack, scope: Scope, headers: Headers, exchange: "_Exchange") -> None:
        """Check what must hold for every request, and set what the calls below it carry on."""
        if "*" not in self._hosts and _name(headers.get("host", "")) not in self._hosts:
            raise HttpError(421, "this server does not answer for that Host", code="misdirected_request")
        seconds = self._timeout_s
        if TIMEOUT in headers:
            seconds = min(seconds, _seconds(headers[TIMEOUT]))
        stack.enter_context(deadline_scope(seconds))
        tenant = headers.get(TENANT)
        if tenant is not None:
            if not is_id(tenant):
                raise HttpError(400, f"{TENANT}: {ID_RULE}", code="invalid_value", param=TENANT)
            # Until callers are identified here, the mesh's development identity takes this as it is.
            stack.enter_context(acting_as(Identity(tenant, "edge", ALL_SCOPES)))
        method = _method(scope)
        span = stack.enter_context(tracing.server_span(method, headers, {names.HTTP_REQUEST_METHOD: method}))
        if span is not None:
            stack.callback(exchange.end_span, span)


class _Exchange:
    """One request and its answer, as metrics and the log see them."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self.request_id = request_id
        self.status = 0
        self._scope = scope
        self._send = send
        self._began = time.perf_counter()
        self._first_byte = math.nan
        self._whole = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._first_byte = time.perf_counter() - self._began
            MutableHeaders(scope=message)[REQUEST_ID] = self.request_id
        elif not message.get("more_body", False):
            self._whole = True
        await self._send(message)

    @property
    def _route(self) -> str:
        # The pattern, never the path: labels are bounded, and a path may hold anything.
        return str(getattr(self._scope.get("route"), "path", "unmatched"))

    def end_span(self, span: "Span") -> None:
        """Name the request's span after its route, which is known only now, and end it."""
        status = self.status or CLIENT_GONE
        span.update_name(f"{_method(self._scope)} {self._route}")
        span.set_attribute(names.HTTP_ROUTE, self._route)
        span.set_attribute(names.HTTP_RESPONSE_STATUS_CODE, status)
        if status >= 500:
            span.set_attribute(names.ERROR_TYPE, str(status))
        span.end()

    def __enter__(self) -> None:
        metrics.in_flight.inc()

    def __exit__(self, *exc_info: object) -> None:
        seconds = time.perf_counter() - self._began
        route, status = self._route, self.status or CLIENT_GONE
        metrics.in_flight.dec()
        metrics.requests_total.labels(_method(self._scope), route, status).inc()
        metrics.request_duration.labels(route).observe(seconds)
        if self.status:
            metrics.first_byte.labels(route).observe(self._first_byte)
        if not self._whole:
            metrics.disconnects_total.labels(route).inc()
        log.info(
            "request",
            method=_method(self._scope),
            route=route,
            status=status,
            whole=self._whole,
            seconds=round(seconds, 4),
        )


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in {"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"} else "OTHER"


def _name(host: str) -> str:
    """`Localhost:8080` -> `localhost`, `[::1]:8080` -> `[::1]`."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise HttpError(400, f"{TIMEOUT}: must be seconds above 0", code="invalid_value", param=TIMEOUT)
    return seconds
