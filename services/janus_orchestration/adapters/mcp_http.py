"""HTTP to an MCP server, with bounds, and with what never got there told apart."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2

from janus_orchestration.adapters.mcp_ended import Ended

NOT_TAKEN = -32_098
"""JSON-RPC error of a request that the server never had."""

_SESSION_HEADER = "mcp-session-id"
_CLOSE_S = 2.0
_MOST_CONNECTIONS = 1_000


def client(headers: Mapping[str, str], *, connect_s: float, most_bytes: int, ended: Ended) -> httpx2.AsyncClient:
    """``ended`` is set when the server is not there, or does not know our session any more."""
    limits = httpx2.Limits(max_connections=_MOST_CONNECTIONS)
    return httpx2.AsyncClient(
        headers=dict(headers),
        # Reads are bounded by who waits for them: a call by its time, the stream of news by nothing.
        timeout=httpx2.Timeout(connect_s, read=None),
        transport=_Watched(httpx2.AsyncHTTPTransport(limits=limits), most_bytes, ended),
    )


class _Watched(httpx2.AsyncBaseTransport):
    def __init__(self, inner: httpx2.AsyncBaseTransport, most_bytes: int, ended: Ended) -> None:
        self._inner = inner
        self._most_bytes = most_bytes
        self._ended = ended

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "DELETE":
            # Goodbye, which nobody has to hear.
            async with asyncio.timeout(_CLOSE_S):
                return await self._inner.handle_async_request(request)
        try:
            response = await self._inner.handle_async_request(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            self._ended.why = _why(error)
            self._ended.set()
            return _not_taken()
        except httpx2.TransportError as error:
            self._ended.why = f"the connection broke off ({type(error).__name__})"
            raise
        if request.method == "POST":
            # Some have nothing to say to a GET, and say so.
            self._ended.why = "" if response.is_success else f"it answered with HTTP {response.status_code}"
        if response.status_code == 404 and _SESSION_HEADER in request.headers:
            self._ended.why = "it does not know its session any more"
            self._ended.set()
            await response.aclose()
            return _not_taken()
        if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            # Of a stream it is the single events that are bounded.
            response.stream = _Bounded(response.stream, self._most_bytes)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


def _not_taken() -> httpx2.Response:
    error: dict[str, Any] = {"code": NOT_TAKEN, "message": "not reached"}
    return httpx2.Response(503, json={"jsonrpc": "2.0", "id": None, "error": error})


def _why(error: BaseException) -> str:
    """Why there is no connection, without the address."""
    found: BaseException | None = error
    while found is not None:
        match found:
            case httpx2.ConnectTimeout():
                return "no connection within the time for it"
            case ConnectionRefusedError():
                return "the connection is refused"
            case ssl.SSLError():
                return f"TLS fails ({found.reason})"
            case OSError(strerror=str(words)):
                return f"no connection: {words}"
            case BaseExceptionGroup():
                found = found.exceptions[0]
            case _:
                found = found.__cause__ or found.__context__
    return "no connection"


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: Any, most_bytes: int) -> None:
        self._inner = inner
        self._left = most_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._left -= len(chunk)
            if self._left < 0:
                raise httpx2.StreamError("the response is too large")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
