"""A provider SDK's client: made late, and asked by the request that it made first.

The SDKs bring authentication, addresses, headers and error classes. Their
retries are off, since one place decides about those, and their typed stream
objects are not used. What an SDK puts into the requests to one path is the same
for all of them but for the body, and putting it together takes longer than
everything else in a call: so it makes the first one, and those after it are
that request with another body.
"""

import asyncio
import importlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from janus_inference.dialects.json_text import compact
from janus_inference.ports import Stopwatch
from janus_kit import collector
from janus_kit.libraries import imported
from janus_kit.telemetry.logging import hush

if TYPE_CHECKING:
    import aiohttp
    import httpx2

MAX_CONNECTIONS = 10_000
"""More than one process serves streams; the limits of calls are elsewhere."""
# A compressor holds tokens back until it has a block of them.
_HEADERS = {"Accept-Encoding": "identity"}
_OF_BODY = frozenset({"content-encoding", "content-length", "transfer-encoding"})
_ERROR_BODY_BYTES = 64 * 1024
_ERROR_BODY_S = 1.0

_Client = TypeVar("_Client")

# Who wants to know how far the request of this task is.
stopwatch_of_call: ContextVar[Stopwatch | None] = ContextVar("janus_inference_stopwatch", default=None)


def http_client(sdk: ModuleType) -> "httpx2.AsyncClient":
    """What an SDK sends with: follows no redirects, and times out nothing by itself but connecting."""
    import httpx2

    made: httpx2.AsyncClient = sdk.DefaultAioHttpClient(
        timeout=None,
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        follow_redirects=False,
        event_hooks={"request": [_note_sent], "response": [_refuse]},
    )
    transport: Any
    # One for each proxy that the environment names, besides.
    for transport in (made._transport, *made._mounts.values()):
        if transport is not None:
            transport.client = partial(_session, transport)
    return made


def _session(transport: Any) -> "aiohttp.ClientSession":
    from janus_inference.adapters.http_session import session

    return session(transport.ssl_context, transport.limits)


class SdkClient(Generic[_Client]):
    """The client of one provider.

    ``make`` makes the SDK's client around an HTTP client, in a thread, since
    importing an SDK takes a second. ``headers`` and ``options`` of the SDK's
    requests are the same for every call.
    """

    def __init__(
        self,
        module: str,
        make: Callable[["httpx2.AsyncClient"], _Client],
        *,
        headers: Callable[[], Mapping[str, object]] = dict,
        **options: object,
    ) -> None:
        self._module = module
        self._make = make
        self._headers = headers
        self._options = options
        self._making: asyncio.Task[tuple[_Client, httpx2.AsyncClient]] | None = None
        self._first: dict[str, httpx2.Request] = {}

    @property
    def sdk(self) -> ModuleType:
        """The SDK's module; known to be imported once ``warm`` has returned."""
        return importlib.import_module(self._module)

    async def warm(self) -> None:
        """Make it now, and not within the first call."""
        await self._made()

    async def close(self) -> None:
        """Close it, if it was ever made."""
        making, self._making = self._making, None
        if making is not None:
            (made,) = await asyncio.gather(making, return_exceptions=True)
            if not isinstance(made, BaseException):
                await made[1].aclose()

    async def post(self, path: str, body: Mapping[str, object], connect_timeout: float) -> "httpx2.Response":
        """A streamed answer to this body, which whoever asked closes. Raises the SDK's errors."""
        client, http = await self._made()
        sdk: Any = self.sdk
        maker: Any = client
        timeout = sdk.Timeout(None, connect=connect_timeout, pool=connect_timeout)
        first, content = self._first.get(path), _encoded(body)
        try:
            if first is not None:
                return await self._posted_again(sdk, http, first, content, timeout)
            response = await self._posted_by_sdk(client, path, content, timeout)
        except (_Refused, sdk.APIConnectionError) as error:
            # One SDK takes whatever is raised while it sends for a lost connection.
            refused = error if isinstance(error, _Refused) else error.__cause__
            if not isinstance(refused, _Refused):
                raise
            # The SDK's own class for this status, as its ``post`` would raise it.
            raise maker._make_status_error_from_response(refused.response) from None
        self._first[path] = response.request
        # The transport says how long a body is.
        del response.request.headers["content-length"]
        return response

    async def _posted_by_sdk(self, client: Any, path: str, content: bytes, timeout: object) -> "httpx2.Response":
        import httpx2

        options = {**self._options, "timeout": timeout, "headers": {**_HEADERS, **self._headers()}}
        response: httpx2.Response = await client.post(
            path, cast_to=httpx2.Response, content=content, options=options, stream=True
        )
        return response

    async def _posted_again(
        self, sdk: Any, http: "httpx2.AsyncClient", first: "httpx2.Request", content: bytes, timeout: Any
    ) -> "httpx2.Response":
        """What the SDK's ``post`` does, without making the request anew."""
        import httpx2

        body, extensions = httpx2.ByteStream(content), {"timeout": timeout.as_dict()}
        request = httpx2.Request(first.method, first.url, headers=first.headers, stream=body, extensions=extensions)
        request.read()
        try:
            await _note_sent(request)
            # What the HTTP client does around this is to look for cookies, redirects and ways to authenticate.
            response = await http._transport_for_url(request.url).handle_async_request(request)
            await _refuse(response)
            return response
        except httpx2.TimeoutException as error:
            raise sdk.APITimeoutError(request=request) from error
        except lost_connection() as error:
            raise sdk.APIConnectionError(request=request) from error

    async def _made(self) -> "tuple[_Client, httpx2.AsyncClient]":
        """Made once for all that wait, also when one of them gives up."""
        making = self._making
        if making is None or (making.done() and (making.cancelled() or making.exception() is not None)):
            making = self._making = asyncio.create_task(self._make_it(), name="provider-client")
        return making.result() if making.done() else await asyncio.shield(making)

    async def _make_it(self) -> "tuple[_Client, httpx2.AsyncClient]":
        def make() -> "tuple[_Client, httpx2.AsyncClient]":
            http = http_client(imported(self._module))
            return self._make(http), http

        made = await asyncio.to_thread(make)
        hush()
        collector.settle_more()
        return made


def lost_connection() -> tuple[type[BaseException], ...]:
    """What a connection that cannot be made, or breaks, may raise."""
    import aiohttp
    import httpx2

    return (httpx2.HTTPError, httpx2.StreamError, aiohttp.ClientError, OSError)


def _encoded(body: Mapping[str, object]) -> bytes:
    try:
        return compact(body).encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair can only be said as an escape.
        return json.dumps(body).encode()


class _Refused(Exception):
    """An answer that is an error; ``response`` has as much of its body as came soon."""

    def __init__(self, response: "httpx2.Response") -> None:
        super().__init__(response.status_code)
        self.response = response


async def _refuse(response: "httpx2.Response") -> None:
    """Response hook: what an error means is in its status and headers, so its body is not waited for."""
    import httpx2

    if response.is_success:
        return
    body = bytearray()
    try:
        with suppress(TimeoutError, *lost_connection()):
            async with asyncio.timeout(_ERROR_BODY_S):
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) >= _ERROR_BODY_BYTES:
                        break
    finally:
        await response.aclose()
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _OF_BODY]
    whole = bytes(body[:_ERROR_BODY_BYTES])
    raise _Refused(httpx2.Response(response.status_code, headers=headers, content=whole, request=response.request))


async def _note_sent(request: object) -> None:
    """Request hook: from here on the time is the provider's."""
    stopwatch = stopwatch_of_call.get()
    if stopwatch is not None:
        stopwatch.sent()
