"""The session of aiohttp that requests to providers go through.

It does what aiohttp's own does not: it tells when a request has got a
connection, and all that came before a connection was lost is read before the
loss is raised.
"""

import ssl
from typing import Any

import aiohttp
import httpx2

from janus_inference.adapters.sdk_client import stopwatch_of_call


def session(context: ssl.SSLContext, limits: httpx2.Limits) -> aiohttp.ClientSession:
    """Made in the loop that it is to be used in. ``limits`` name a most of connections."""
    assert limits.max_connections is not None
    connector = _Connector(limit=limits.max_connections, keepalive_timeout=limits.keepalive_expiry, ssl=context)
    return aiohttp.ClientSession(connector=connector, response_class=_Answer)


class _Connector(aiohttp.TCPConnector):
    async def connect(self, *arguments: Any, **named: Any) -> aiohttp.connector.Connection:
        connection = await super().connect(*arguments, **named)
        stopwatch = stopwatch_of_call.get()
        if stopwatch is not None:
            stopwatch.connected()
        return connection


class _Answer(aiohttp.ClientResponse):
    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        await super().start(connection)
        self.content = _Body(self.content)  # type: ignore[assignment] # all of it that anybody asks for
        return self


class _Body:
    """A body; its reader raises the loss of its connection at once, whatever it still holds."""

    __slots__ = ("_reader",)

    def __init__(self, reader: aiohttp.StreamReader) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def iter_chunked(self, n: int) -> "_Chunks":
        return _Chunks(self._reader, n)


class _Chunks:
    __slots__ = ("_most", "_reader")

    def __init__(self, reader: aiohttp.StreamReader, most: int) -> None:
        self._reader = reader
        self._most = most

    def __aiter__(self) -> "_Chunks":
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._reader.read(self._most)
        except (aiohttp.ClientError, OSError):
            chunk = self._held()
            if not chunk:
                raise
        if not chunk:
            raise StopAsyncIteration
        return chunk

    def _held(self) -> bytes:
        """What there is, without its end."""
        lost = self._reader.exception()
        if lost is None:
            return b""
        self._reader.set_exception(None)  # type: ignore[arg-type] # as good as none
        try:
            return self._reader.read_nowait()
        finally:
            self._reader.set_exception(lost)
