"""Redis with timeouts. What Redis holds may be lost or rebuilt: callers degrade.

Errors are redis-py's own (``redis.RedisError``, which covers timeouts and lost
connections); every caller decides what it does without Redis. The client
connects on first use and again after a loss, without a restart.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as TooLate

from janus_kit.cancellation import cancel_wins
from janus_kit.errors import Unavailable
from janus_kit.redis_line import LineClient
from janus_kit.settings import RedisSettings
from janus_kit.waiting import within

RedisClient = Redis


class _Cancellable(AbstractConnection):
    """A connection that a cancel always gets through to.

    redis-py sends within ``asyncio.wait_for``, which on Python 3.11 returns as
    if nothing had been when the cancel comes as the sending ends: whoever was
    to be stopped would go on. So it is left without a limit, and has ours.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        limit, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(limit):
                await super().send_packed_command(command, check_health)
        except TimeoutError:
            raise TooLate("Timeout writing to socket") from None
        finally:
            self.socket_timeout = limit


@asynccontextmanager
async def redis(settings: RedisSettings, *, application: str = "janus") -> AsyncIterator[RedisClient]:
    """A client of its own pool; closed at the end. Never fails when Redis is away.

    Values are bytes. Commands share one connection, as ``redis_line`` has it; those that block on the server
    (XREAD BLOCK, BLPOP) have others, and must ask for less than ``settings.socket_timeout_s``.
    """
    pool = BlockingConnectionPool.from_url(
        settings.url.get_secret_value(),
        max_connections=settings.pool_max,
        timeout=settings.pool_wait_s,
        socket_connect_timeout=settings.connect_timeout_s,
        socket_timeout=settings.socket_timeout_s,
        socket_keepalive=True,
        health_check_interval=15,
        client_name=application,
        # One quick retry covers a pooled connection that died while idle; more
        # would only delay the fallback that every caller has.
        retry=Retry(ExponentialBackoff(cap=0.05, base=0.01), 1),
    )
    pool.connection_class = type("Connection", (_Cancellable, pool.connection_class), {})
    client = LineClient(pool)
    try:
        yield client
    finally:
        await client.aclose()
        await pool.aclose()


class answering:  # noqa: N801 - is used as a function is
    """Redis answers within so many seconds, or it is away: a stalled one is no better than a dead one.

    ``away`` makes the error that says so from the name of the one that was met.
    """

    __slots__ = ("_away", "_cancels", "_limit", "_timeout_s")

    def __init__(self, timeout_s: float, away: Callable[[str], Exception]) -> None:
        self._timeout_s = timeout_s
        self._away = away

    async def __aenter__(self) -> None:
        self._limit = within(self._timeout_s)
        await self._limit.__aenter__()
        # Giving a connection back can fail.
        self._cancels = cancel_wins()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            try:
                self._cancels.over(error)
            except asyncio.CancelledError as cancelled:
                await self._limit.__aexit__(type(cancelled), cancelled, traceback)
                raise
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError as late:
            raise self._away("TimeoutError") from late
        if isinstance(error, (RedisError, TimeoutError, OSError)):
            raise self._away(type(error).__name__) from error


def key(tenant: str, *parts: str) -> str:
    """A tenant's key. The braces keep all keys of a tenant on one cluster shard."""
    return f"janus:{{{tenant}}}:{':'.join(parts)}"


async def ping(client: RedisClient) -> None:
    """Raise Unavailable("redis") unless Redis answers; for a mount's parts."""
    try:
        await client.ping()
    except Exception as error:
        raise Unavailable("redis", "redis does not answer") from error
