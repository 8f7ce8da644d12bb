"""A receiver of webhooks: a real HTTP server that answers as the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Received:
    """One request."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """Answers with the ``answers`` in turn, then with 204."""

    url: str = ""
    answers: list[web.Response] = field(default_factory=list)
    seen: list[Received] = field(default_factory=list)
    # Unset: requests wait for it.
    open: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    most_waiting: int = 0
    _arrived: asyncio.Queue[Received] = field(default_factory=asyncio.Queue)

    async def next(self, seconds: float = 15) -> Received:
        """The next request that arrives."""
        async with asyncio.timeout(seconds):
            return await self._arrived.get()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        received = Received({key.lower(): value for key, value in request.headers.items()}, await request.read())
        self.seen.append(received)
        self._arrived.put_nowait(received)
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1
        return self.answers.pop(0) if self.answers else web.Response(status=204)


@asynccontextmanager
async def webhook_receiver(ssl: SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    receiver.open.set()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl)
        await site.start()
        port = runner.addresses[0][1]
        receiver.url = f"{'https' if ssl else 'http'}://127.0.0.1:{port}/hook"
        yield receiver
    finally:
        receiver.open.set()
        await runner.cleanup()
