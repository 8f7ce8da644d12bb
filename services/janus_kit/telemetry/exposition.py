"""/metrics, /livez and /readyz of a process, over plain HTTP.

A few lines of HTTP/1.1 instead of a web framework: a standalone service needs
three GETs for its scraper and its probes, and nothing else.
"""

import asyncio
from contextlib import suppress
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from janus_kit.health import HealthMonitor, State
from janus_kit.transport import ListenError

_MAX_REQUEST_BYTES = 8192
_REQUEST_TIMEOUT_S = 5.0
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


class MetricsListener:
    """The HTTP listener. One request a connection."""

    def __init__(self, monitor: HealthMonitor) -> None:
        self._monitor = monitor
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[Any]] = set()

    async def open(self, listen: str) -> str:
        """Listen on ``host:port``; returns the address with the port that was bound."""
        host, _, port = listen.rpartition(":")
        if not host or not port.isdecimal():
            raise ListenError(f"'{listen}' is not an address for metrics; write host:port")
        try:
            self._server = await asyncio.start_server(
                self._answer, host.strip("[]"), int(port), limit=_MAX_REQUEST_BYTES
            )
        except (OSError, OverflowError):
            raise ListenError(f"cannot listen on {listen} for metrics") from None
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Stop listening and let go of whoever is connected."""
        if self._server is None:
            return
        self._server.close()
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = await self._reply(head.split(b"\r\n", 1)[0])
                writer.write(
                    f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {kind}\r\n"
                    f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                )
                writer.write(body)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # nobody left to answer, or nothing that is HTTP
        finally:
            self._answering.discard(task)
            with suppress(OSError):
                writer.close()

    async def _reply(self, request_line: bytes) -> tuple[int, str, bytes]:
        plain = "text/plain; charset=utf-8"
        parts = request_line.split(b" ")
        if len(parts) != 3:
            return 400, plain, b"bad request\n"
        if parts[0] != b"GET":
            return 405, plain, b"only GET\n"
        match parts[1].partition(b"?")[0]:
            case b"/metrics":
                # Formatting thousands of series takes milliseconds that streams would wait for.
                return 200, CONTENT_TYPE_LATEST, await asyncio.to_thread(generate_latest, REGISTRY)
            case b"/livez":
                return 200, plain, b"ok\n"
            case b"/readyz":
                state = self._monitor.state()
                status = 503 if state is State.NOT_SERVING else 200
                return status, plain, f"{state.value}\n".encode()
        return 404, plain, b"not found\n"
