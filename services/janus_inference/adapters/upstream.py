"""What the clients of all HTTP providers share: the SDK built late, its errors, its bytes.

The SDKs bring authentication, addresses and error classes. Their retries are
off, since one place decides about those, and their typed stream objects are
not used: the bytes go straight to the dialect's reader.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Generic, TypeVar

from janus_inference import telemetry
from janus_inference.dialects.json_text import NotJson, parse_object
from janus_inference.dialects.reader import Reader
from janus_inference.events import ProviderEvent
from janus_inference.ports import Stopwatch
from janus_inference.provider_errors import (
    ProviderFailure,
    Refused,
    broken,
    classify,
    is_flagged,
    retry_after_of,
    timed_out,
    unreachable,
)
from janus_kit import collector

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_CONNECTIONS = 10_000
"""More than one process serves streams; the limits of calls are elsewhere."""
_DRAIN_S = 0.1

_Client = TypeVar("_Client")

# Who wants to know when the request of this task leaves; read by the client's request hook.
_stopwatch: ContextVar[Stopwatch | None] = ContextVar("janus_inference_stopwatch", default=None)


class Lazy(Generic[_Client]):
    """An SDK's client, made at first use and in a thread: importing an SDK takes a second."""

    def __init__(self, make: Callable[[], _Client], close: Callable[[_Client], Awaitable[None]]) -> None:
        self._make = make
        self._close = close
        self._making: asyncio.Task[_Client] | None = None

    async def get(self) -> _Client:
        """The client. Made once for all that wait, also when one of them gives up."""
        making = self._making
        if making is None or (making.done() and (making.cancelled() or making.exception() is not None)):
            making = self._making = asyncio.create_task(self._made(), name="provider-client")
        return await asyncio.shield(making)

    async def _made(self) -> _Client:
        client = await asyncio.to_thread(self._make)
        collector.settle_more()
        return client

    async def close(self) -> None:
        """Close it, if it was ever made."""
        making, self._making = self._making, None
        if making is not None:
            (made,) = await asyncio.gather(making, return_exceptions=True)
            if not isinstance(made, BaseException):
                await self._close(made)


async def note_sent(request: Any) -> None:
    """Request hook of the HTTP clients: from here on the time is the provider's."""
    stopwatch = _stopwatch.get()
    if stopwatch is not None:
        stopwatch.sent()


@asynccontextmanager
async def posted(
    client: Any,
    path: str,
    body: Mapping[str, Any],
    *,
    timeout: Any,
    headers: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Any]:
    """A streamed answer to this body, through an SDK's ``post``: its address, credentials and errors.

    The method that an SDK has for each endpoint first looks through the body,
    field by field, for what to rewrite; ours is as it must be. ``options`` are
    further request options of the SDK.
    """
    import httpx2

    # A compressor holds tokens back until it has a block of them.
    said = {"Accept-Encoding": "identity", **(headers or {})}
    options |= {"timeout": timeout, "headers": said}
    response = await client.post(path, cast_to=httpx2.Response, body=body, options=options, stream=True)
    try:
        yield response
    finally:
        await response.aclose()


@asynccontextmanager
async def answering(
    call: Callable[[], Any],
    *,
    sdk: ModuleType,
    provider: str,
    model: str,
    connect_timeout: float,
    reader: Reader,
    stopwatch: Stopwatch,
) -> AsyncIterator[AsyncIterator[Sequence[ProviderEvent]]]:
    """Make the call and read its answer; leaving the block closes the connection.

    ``call`` makes what ``posted`` does: a context manager of the HTTP response.
    After a whole answer the rest of the body, an end-of-chunks mark as a rule,
    is read, so that the connection can be used again.
    """
    token = _stopwatch.set(stopwatch)
    try:
        opening = call()
        response = await _translated(opening.__aenter__(), sdk, provider, model, connect_timeout)
    finally:
        _stopwatch.reset(token)
    try:
        stopwatch.heard()
        chunks = _bytes(response)
        async with aclosing(chunks):
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            async with aclosing(_batches(chunks, kind, reader, stopwatch, provider)) as batches:
                yield batches
            if reader.whole:
                await _drain(chunks)
    finally:
        if reader.unknown:
            telemetry.unknown_events_total.labels(reader.dialect).inc(reader.unknown)
        await opening.__aexit__(None, None, None)


def _bytes(response: Any) -> Any:
    """The body as it comes. The response's own iterators cost as much a token as parsing it."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return response.aiter_bytes()
    return aiter(response.stream)


async def _batches(
    chunks: AsyncIterator[bytes], kind: str, reader: Reader, stopwatch: Stopwatch, provider: str
) -> AsyncGenerator[Sequence[ProviderEvent], None]:
    if kind == "text/html":
        raise broken(provider, "a web page came instead of an answer")
    body = bytearray() if kind == "application/json" else None
    try:
        async for chunk in chunks:
            stopwatch.heard()
            if body is not None:
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise broken(provider, "the answer is larger than 4 MiB")
                continue
            if events := reader.feed(chunk):
                yield events
            if reader.failure is not None:
                raise reader.failure
            if reader.whole:
                return
    except lost_connection() as error:
        raise connection_lost(provider, error) from None
    if events := reader.close() if body is None else reader.body(bytes(body)):
        yield events
    if reader.failure is not None:
        raise reader.failure


async def whole_answer(
    call: Callable[[], Any], *, sdk: ModuleType, provider: str, model: str, connect_timeout: float, most_bytes: int
) -> dict[str, Any]:
    """Make a call that is answered with one JSON object of at most so many bytes. Raises ProviderFailure."""
    opening = call()
    response = await _translated(opening.__aenter__(), sdk, provider, model, connect_timeout)
    data = bytearray()
    try:
        async for chunk in response.iter_bytes():
            data += chunk
            if len(data) > most_bytes:
                raise broken(provider, f"the answer is larger than {most_bytes // (1024 * 1024)} MiB")
        return parse_object(bytes(data))
    except lost_connection() as error:
        raise connection_lost(provider, error) from None
    except NotJson:
        raise broken(provider, "the answer is not of the expected form") from None
    finally:
        await opening.__aexit__(None, None, None)


def lost_connection() -> tuple[type[BaseException], ...]:
    """What a connection that breaks while a body is read may raise."""
    import aiohttp
    import httpx2

    return (httpx2.HTTPError, httpx2.StreamError, aiohttp.ClientError, OSError)


def connection_lost(provider: str, error: BaseException) -> ProviderFailure:
    """A connection that breaks is a broken answer."""
    failure = broken(provider, "the connection was lost")
    failure.detail = type(error).__name__
    return failure


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read to the end, briefly: a body that goes on for longer costs the connection, not the caller."""
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for _ in chunks:
                pass
    except Exception:  # noqa: BLE001 - the answer is whole; what comes after it is of no interest
        return


async def _translated(
    opening: Awaitable[Any], sdk: ModuleType, provider: str, model: str, connect_timeout: float
) -> Any:
    """The response, or the SDK's error in the caller's terms."""
    try:
        return await opening
    except sdk.APIStatusError as error:
        raise classify(provider, model, refused(error)) from None
    except sdk.APITimeoutError as error:
        # aiohttp's lost connections arrive under this name as well.
        if _caused_by(error, TimeoutError):
            raise timed_out(provider, "connect", connect_timeout) from None
        raise unreachable(provider, _innermost(error)) from None
    except sdk.APIConnectionError as error:
        raise unreachable(provider, _innermost(error)) from None
    except sdk.APIError as error:
        raise _senseless(provider, error) from None


def refused(error: Any) -> Refused:
    """What an SDK's status error says."""
    said: dict[str, Any] = error.body if isinstance(error.body, dict) else {}
    # OpenAI's SDK gives the inner object, Anthropic's the whole body.
    inner = said.get("error")
    if isinstance(inner, dict):
        said = inner
    headers = {key.lower(): value for key, value in error.response.headers.items()}
    should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", ""))
    return Refused(
        status=error.status_code,
        code="content_filter" if is_flagged(said) else _word(said.get("code")),
        type=_word(said.get("type")),
        param=_word(said.get("param")),
        message=_word(said.get("message")),
        retry_after=retry_after_of(headers),
        should_retry=should_retry,
    )


def sdk_failure(error: Exception, sdk: ModuleType, provider: str, model: str) -> ProviderFailure:
    """The same translation for calls that are not streams."""
    if isinstance(error, sdk.APIStatusError):
        return classify(provider, model, refused(error))
    if isinstance(error, sdk.APIConnectionError):
        return unreachable(provider, _innermost(error))
    return _senseless(provider, error)


def _senseless(provider: str, error: BaseException) -> ProviderFailure:
    """The SDK could make nothing of the answer."""
    failure = broken(provider, "the answer is not of the expected form")
    failure.detail = type(error).__name__
    return failure


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""


def _innermost(error: BaseException) -> str:
    """Class name of the root cause, for the log; its text may hold addresses or keys."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return type(error).__name__


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
