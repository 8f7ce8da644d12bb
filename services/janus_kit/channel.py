"""Channels to other services, which carry on what the call at hand knows.

Every call made through one forwards the tenant of the current identity, the
request id, the trace and what is left of the deadline. Instead of client
interceptors, which wrap every stream in generators of their own, the channel
hands out multi-callables that add this and then get out of the way: the call
object is gRPC's own, so ``cancel``, ``read`` and iteration cost nothing extra.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any, cast

import grpc

from janus_kit.auth.identity import identity_or_none
from janus_kit.interceptors.context import current_request_id, remaining_seconds
from janus_kit.telemetry import metrics, tracing

TENANT_METADATA = "janus-tenant"
REQUEST_ID_METADATA = "x-request-id"

MiB = 1024 * 1024
_DEFAULT_OPTIONS: Mapping[str, int | str] = {
    "grpc.max_receive_message_length": 16 * MiB,
    "grpc.max_send_message_length": 16 * MiB,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    # A service that is back should be found at once, not after gRPC's two minutes.
    "grpc.initial_reconnect_backoff_ms": 100,
    # How long one attempt may take: a busy machine, or TLS to another continent, needs its time.
    "grpc.min_reconnect_backoff_ms": 2_000,
    "grpc.max_reconnect_backoff_ms": 1_000,
    # Calls inside the mesh never go through a proxy that the environment names.
    "grpc.enable_http_proxy": 0,
    "grpc.lb_policy_name": "round_robin",
}

_Metadata = tuple[tuple[str, str | bytes], ...]


def connect(
    target: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    options: Mapping[str, int | str] | None = None,
) -> grpc.aio.Channel:
    """A channel to ``unix:/path``, ``host:port`` or ``dns:///name:port``.

    Connects on first use and again after a loss. ``options`` are gRPC channel
    arguments that replace the defaults. Must be called on the event loop that
    uses it, and closed.
    """
    arguments = list({**_DEFAULT_OPTIONS, **(options or {})}.items())
    inner = (
        grpc.aio.insecure_channel(target, options=arguments)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, options=arguments)
    )
    return cast(grpc.aio.Channel, _Channel(inner))


class _Channel:
    """A ``grpc.aio.Channel`` by behaviour, for generated stubs."""

    def __init__(self, inner: grpc.aio.Channel) -> None:
        self._inner = inner

    async def __aenter__(self) -> "_Channel":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._inner.close()

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> "_Callable":
        return _Callable(method, self._inner.unary_unary(method, *args, **kwargs), True)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> "_Callable":
        return _Callable(method, self._inner.unary_stream(method, *args, **kwargs), True)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> "_Callable":
        return _Callable(method, self._inner.stream_unary(method, *args, **kwargs), False)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> "_Callable":
        return _Callable(method, self._inner.stream_stream(method, *args, **kwargs), False)


class _Callable:
    """One method. Calling it starts a call with everything forwarded."""

    def __init__(self, method: str, inner: Any, has_request: bool) -> None:
        self._method = method.lstrip("/")
        self._inner = inner
        self._has_request = has_request

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, str | bytes]] | None = None,
        request_iterator: Any = None,
        **kwargs: Any,
    ) -> Any:
        began = time.perf_counter()
        span = tracing.start_client_span(self._method)
        argument = request if request is not None or self._has_request else request_iterator
        call = self._inner(
            argument,
            timeout=_sooner(timeout, remaining_seconds()),
            metadata=_forwarded(metadata, span),
            **kwargs,
        )
        call.add_done_callback(lambda done: _record(self._method, done, began, span))
        return call


def _sooner(asked: float | None, remaining: float | None) -> float | None:
    if asked is None or remaining is None:
        return remaining if asked is None else asked
    return min(asked, remaining)


def _forwarded(given: Iterable[tuple[str, str | bytes]] | None, span: Any) -> _Metadata:
    metadata = tuple((key, value) for key, value in given) if given is not None else ()
    present = {key for key, _ in metadata}
    identity = identity_or_none()
    request_id = current_request_id()
    if identity is not None and TENANT_METADATA not in present:
        metadata += ((TENANT_METADATA, identity.tenant),)
    if request_id and REQUEST_ID_METADATA not in present:
        metadata += ((REQUEST_ID_METADATA, request_id),)
    return metadata + tuple(pair for pair in tracing.outgoing(span) if pair[0] not in present)


def _record(method: str, call: Any, began: float, span: Any) -> None:
    """Count a finished call."""

    async def finish() -> None:
        code: grpc.StatusCode = await call.code()
        metrics.called(method, code.name).observe(seconds)
        tracing.end_span(span, code.name)

    seconds = time.perf_counter() - began
    finishing = finish()
    try:
        # The status can only be awaited, but it is there: this runs to the end. A task would cost more than the rest.
        finishing.send(None)
    except StopIteration:
        return
    finishing.close()
    raise RuntimeError("a call that is done has no status")
