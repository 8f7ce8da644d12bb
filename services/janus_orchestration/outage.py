"""Waiting out an outage of the records: work that is durable does not fail for it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from janus_kit.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from janus_kit.telemetry.logging import get_logger

T = TypeVar("T")

_log = get_logger(__name__)

_RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)


async def waited_out(work: Callable[[], Awaitable[T]]) -> T:
    """The work's result, however long the records are away; it may be begun many times."""
    attempt = 0
    while True:
        try:
            return await work()
        except (Unavailable, ResourceExhausted, DeadlineExceeded) as error:
            if attempt == 0:
                _log.warning("records_away", reason=error.reason)
            await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
            attempt += 1
