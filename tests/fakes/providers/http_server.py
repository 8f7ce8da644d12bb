"""A small HTTP/1.1 server that sees what clients do to its sockets.

Answers are sequences of byte pieces, each written and flushed on its own, so
that a test decides where a stream is cut. The server notices at once when a
client closes its connection.
"""

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET
from typing import Any


class Cut(Exception):
    """Raised by an answer's pieces: reset the connection here."""


class HalfClose(Exception):
    """Raised by an answer's pieces: end the connection in order, without the body's own end."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """``pieces`` is the body; ``chunked`` False sends it until the connection closes."""

    pieces: AsyncIterator[bytes]
    status: int = 200
    content_type: str = "text/event-stream"
    headers: Mapping[str, str] = field(default_factory=dict)
    chunked: bool = True


Application = Callable[[Request], Reply]


@dataclass
class Exchange:
    """One request and what became of it; times are of ``time.perf_counter``."""

    request: Request
    sent_whole: bool = False
    sent_bytes: int = 0
    client_gone: asyncio.Event = field(default_factory=asyncio.Event)
    gone_at: float = 0.0


class WireServer:
    """Runs one application; ``exchanges`` are in order of arrival."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.open: set[asyncio.Task[None]] = set()
        self.url = ""
        self._arrived = asyncio.Condition()
        self._server: asyncio.Server

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self.handle, "127.0.0.1", 0, limit=16 * 1024 * 1024)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """End every connection and listen no more."""
        self._server.close()
        for task in list(self.open):
            task.cancel()
        await asyncio.gather(*self.open, return_exceptions=True)
        await self._server.wait_closed()

    async def exchange(self, number: int = 0) -> Exchange:
        """The request of that number, once it has arrived."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.exchanges) > number)
        return self.exchanges[number]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        self.connections += 1
        try:
            while (request := await _request(reader)) is not None:
                exchange = Exchange(request)
                async with self._arrived:
                    self.exchanges.append(exchange)
                    self._arrived.notify_all()
                if not await self._answer(exchange, reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open.discard(task)
            writer.close()

    async def _answer(self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send the answer; whether the connection can be used again."""
        reply = self.application(exchange.request)
        sending = asyncio.create_task(_send(exchange, reply, writer))
        watching = asyncio.create_task(_watch(reader))
        await asyncio.wait([sending, watching], return_when=asyncio.FIRST_COMPLETED)
        if not sending.done() or isinstance(sending.exception(), ConnectionError):
            exchange.gone_at = time.perf_counter()
            exchange.client_gone.set()
            sending.cancel()
            watching.cancel()
            await asyncio.gather(sending, watching, return_exceptions=True)
            return False
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        exchange.sent_whole = sending.exception() is None
        if isinstance(sending.exception(), Cut):
            # Linger 0 makes the close a reset, as of a process that died.
            sock = writer.get_extra_info("socket")
            sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        return exchange.sent_whole and reply.chunked


@asynccontextmanager
async def serving(application: Application) -> AsyncIterator[WireServer]:
    """A server on a free loopback port."""
    wire = WireServer(application)
    await wire.start()
    try:
        yield wire
    finally:
        await wire.stop()


async def _send(exchange: Exchange, reply: Reply, writer: asyncio.StreamWriter) -> None:
    head = [f"HTTP/1.1 {reply.status} Status", f"content-type: {reply.content_type}"]
    head += [f"{name}: {value}" for name, value in reply.headers.items()]
    head.append("transfer-encoding: chunked" if reply.chunked else "connection: close")
    writer.write("\r\n".join([*head, "", ""]).encode())
    async for piece in reply.pieces:
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if reply.chunked else piece)
        await writer.drain()
        exchange.sent_bytes += len(piece)
    if reply.chunked:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _watch(reader: asyncio.StreamReader) -> None:
    """Returns when the client closes. A pipelined request would be lost; the SDKs send none."""
    while not reader.at_eof():
        try:
            if not await reader.read(1):
                return
        except ConnectionError:
            return


async def _request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path.partition("?")[0], headers, body)
