"""Deadlines: every call has one, its code can read it, and nothing runs beyond it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from janus_kit.errors import DeadlineExceeded, JanusError
from janus_kit.interceptors.call import Call
from janus_kit.interceptors.context import deadline_scope


class Deadline:
    """The caller's deadline or the server's maximum, whichever is sooner (seconds)."""

    def __init__(self, unary_s: float, stream_s: float) -> None:
        self._unary_s = unary_s
        self._stream_s = stream_s

    @asynccontextmanager
    async def limiting(self, call: Call) -> AsyncIterator[None]:
        """Cancel the work within when the time is up, and say so in a typed error."""
        if call.method.is_infrastructure:
            # A health watch lives as long as its client.
            yield
            return
        seconds = self._stream_s if call.method.is_stream else self._unary_s
        asked = call.context.time_remaining()
        if asked is not None:
            seconds = min(seconds, asked)
        with deadline_scope(seconds):
            timer = asyncio.timeout(seconds)
            try:
                async with timer:
                    yield
            except JanusError:
                raise
            except Exception as error:
                if not timer.expired():
                    raise
                # Also when the cancelled work made some other failure of it.
                raise DeadlineExceeded("call") from error
