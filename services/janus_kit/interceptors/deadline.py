"""Deadlines: every call has one, its code can read it, and nothing runs beyond it."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from janus_kit.errors import DeadlineExceeded, JanusError
from janus_kit.interceptors.call import Call
from janus_kit.interceptors.context import deadline_scope

_Result = TypeVar("_Result")


class Deadline:
    """The caller's deadline or the server's maximum, whichever is sooner (seconds)."""

    def __init__(self, unary_s: float, stream_s: float) -> None:
        self._unary_s = unary_s
        self._stream_s = stream_s

    async def limited(self, call: Call, work: Awaitable[_Result]) -> _Result:
        """Cancel the work when the time is up, and say so in a typed error."""
        if call.method.is_infrastructure:
            # A health watch lives as long as its client.
            return await work
        seconds = self._stream_s if call.method.is_stream else self._unary_s
        asked = call.context.time_remaining()
        if asked is not None:
            seconds = min(seconds, asked)
        with deadline_scope(seconds):
            timer = asyncio.timeout(seconds)
            try:
                async with timer:
                    return await work
            except JanusError:
                raise
            except Exception as error:
                if not timer.expired():
                    raise
                # Also when the cancelled work made some other failure of it.
                raise DeadlineExceeded("call") from error
