"""A provider in the test's own process: it says what it is told to, when it is told to."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from janus_inference.events import FinishReason, ProviderEvent, Stopped
from janus_inference.ports import Ask
from janus_inference.provider_errors import ProviderFailure

Batches = AsyncIterator[Sequence[ProviderEvent]]
STOP = Stopped(FinishReason.STOP, "stop", "id1")


class Told:
    """A provider that yields what it is told and knows whether it was closed."""

    def __init__(self, tell: Callable[[Ask], Batches], opening: ProviderFailure | None = None) -> None:
        self._tell = tell
        self._opening = opening
        self.opened = asyncio.Event()
        self.closed = 0
        self.left = asyncio.Event()

    def dialect(self, ask: Ask) -> str:
        return "told"

    @asynccontextmanager
    async def stream(self, ask: Ask) -> AsyncIterator[Batches]:
        if self._opening is not None:
            raise self._opening
        try:
            self.opened.set()
            ask.stopwatch.sent()
            ask.stopwatch.connected()
            yield self._tell(ask)
        finally:
            self.closed += 1
            self.left.set()

    async def warm(self) -> None: ...

    async def close(self) -> None: ...


def telling(*batches: Sequence[ProviderEvent] | ProviderFailure) -> Told:
    async def tell(ask: Ask) -> Batches:
        for batch in batches:
            if isinstance(batch, ProviderFailure):
                raise batch
            ask.stopwatch.heard()
            yield batch

    return Told(tell)


def falling_silent(*batches: Sequence[ProviderEvent]) -> Told:
    async def tell(ask: Ask) -> Batches:
        for batch in batches:
            yield batch
        await asyncio.Event().wait()

    return Told(tell)
