"""Connections that stay open between transactions, never more than so many.

The one that came back last is lent first: those beyond what is needed grow old
and are closed. A connection that comes back from a transaction that ended is
there for the next at once; any other is rolled back first, or closed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import asyncpg

from janus_kit.errors import ResourceExhausted, Unavailable
from janus_kit.postgres_errors import AWAY, UNREACHABLE, unreachable
from janus_kit.settings import PostgresSettings
from janus_kit.telemetry import metrics
from janus_kit.waiting import within

# Nobody needed it for so long.
_IDLE_S = 300.0
# A backend remembers every table and statement that it saw; a new one begins small.
_MOST_TRANSACTIONS = 10_000
# Connections that do not end in time are cut off.
_CLOSE_S = 2.0


class PooledConnection(asyncpg.Connection):  # type: ignore[misc] # the driver has no types
    """With what the pool notes on it."""

    transactions = 0
    idle_since = 0.0
    """By the event loop's clock."""
    _prepared: frozenset[Callable[["PooledConnection"], Awaitable[None]]] = frozenset()

    async def once(self, prepare: Callable[["PooledConnection"], Awaitable[None]]) -> None:
        """Prepare the connection for what some statements need of it, e.g. a codec; the first time alone."""
        if prepare not in self._prepared:
            await prepare(self)
            self._prepared |= {prepare}

    def put_ahead(self, statements: Sequence[str]) -> None:
        """Send statements without parameters ahead of the one that the driver sends next, which must follow at once.

        They are answered together. The driver passes over the answers; when one fails, so does the driver's own, as
        the server leaves out all that comes before the driver's end of a request.
        """
        # Of one that is lost the driver says so itself.
        if not self._transport.is_closing():
            self._transport.write(b"".join(map(_asked, statements)))


def _asked(statement: str) -> bytes:
    """The messages that have an unnamed statement parsed, bound, and done."""
    text = statement.encode() + b"\0"
    return b"P" + (len(text) + 7).to_bytes(4, "big") + b"\0" + text + b"\0\0" + _BIND_AND_EXECUTE


# Both unnamed, without parameters, formats, or a limit of rows.
_BIND_AND_EXECUTE = b"B\0\0\0\x0c" + bytes(8) + b"E\0\0\0\x09" + bytes(5)


class Pool:
    """The connections of one process to one database. ``connect`` makes one; ``name`` is the metrics' label."""

    def __init__(
        self, connect: Callable[[], Awaitable[PooledConnection]], settings: PostgresSettings, name: str
    ) -> None:
        self._connect = connect
        self._settings = settings
        # One for each connection that is lent, made or mended: no more than these can be open.
        self._slots = asyncio.Semaphore(settings.pool_max)
        self._open: set[PooledConnection] = set()
        self._idle: list[PooledConnection] = []
        self._mending: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._waited = metrics.db_pool_wait.labels(name)
        self._is_closed = False
        metrics.watch_db_pool(self)

    @property
    def limit(self) -> int:
        return self._settings.pool_max

    @property
    def size(self) -> int:
        """Connections that are open, idle or not."""
        return sum(not connection.is_closed() for connection in list(self._open))

    @property
    def idle(self) -> int:
        return sum(not connection.is_closed() for connection in list(self._idle))

    @property
    def is_busy(self) -> bool:
        """Whether a call would have to wait."""
        return self._slots.locked() and not self._is_closed

    def require_open(self) -> None:
        """Raises Unavailable when the pool was closed."""
        if self._is_closed:
            raise Unavailable("postgres", "the database pool is closed")

    async def take(self) -> PooledConnection:
        """A connection that was alive a moment ago; ``give_back`` or ``mend`` ends its use.

        Raises Unavailable, or ResourceExhausted when none is free in time.
        """
        self.require_open()
        await self._slot()
        try:
            self.require_open()
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_closed():
                    return connection
                self._drop(connection)
            return await self._made()
        except BaseException:
            self._slots.release()
            raise

    def give_back(self, connection: PooledConnection) -> None:
        """Keep a connection for whoever comes next, unless it was lost. Nothing is open on it."""
        connection.transactions += 1
        if connection.is_closed() or connection.transactions >= _MOST_TRANSACTIONS:
            self._drop(connection)
        else:
            loop = asyncio.get_running_loop()
            connection.idle_since = loop.time()
            self._idle.append(connection)
            if self._sweeping is None:
                self._sweeping = loop.call_later(_IDLE_S, self._sweep)
        self._slots.release()

    async def mend(self, connection: PooledConnection) -> None:
        """Take back a connection in the midst of whatever it is; nobody gets it before it is rolled back.

        That goes on when the caller is cancelled.
        """
        if connection.is_closed():
            self.give_back(connection)
            return
        task = asyncio.create_task(self._mended(connection), name="postgres-pool-mend")
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)
        await asyncio.shield(task)

    def expire(self) -> None:
        """Replace every connection, those at work when they come back."""
        for connection in self._open:
            connection.transactions = _MOST_TRANSACTIONS
        while self._idle:
            self._drop(self._idle.pop())

    async def close(self) -> None:
        """Close all connections when they have come back, by force those that do not in 2 s."""
        if self._is_closed:
            return
        self._is_closed = True
        metrics.unwatch_db_pool(self)
        if self._sweeping is not None:
            self._sweeping.cancel()
        try:
            async with asyncio.timeout(_CLOSE_S):
                for _ in range(self.limit):
                    await self._slots.acquire()
                await asyncio.gather(*(connection.close() for connection in self._idle))
        except (TimeoutError, asyncpg.PostgresError, *AWAY):
            pass
        finally:
            for connection in list(self._open):
                self._drop(connection)

    async def _slot(self) -> None:
        if not self._slots.locked():
            await self._slots.acquire()
            self._waited.observe(0.0)
            return
        began = time.monotonic()
        try:
            async with within(self._settings.pool_wait_s):
                await self._slots.acquire()
        except TimeoutError:
            raise ResourceExhausted(
                "OVERLOADED",
                "no database connection became free in time",
                {"part": "postgres"},
                retry_after=self._settings.pool_wait_s,
                quota=("postgres connections", f"{self.limit} at the same time"),
            ) from None
        finally:
            self._waited.observe(time.monotonic() - began)

    async def _made(self) -> PooledConnection:
        """A new connection."""
        try:
            connection = await self._connect()
        except UNREACHABLE as error:
            raise unreachable(error) from error
        try:
            self.require_open()
        except Unavailable:
            connection.terminate()
            raise
        self._open.add(connection)
        return connection

    async def _mended(self, connection: PooledConnection) -> None:
        is_clean = False
        try:
            with suppress(asyncpg.PostgresError, *AWAY):
                # The driver waits for the end of a statement that it cancels.
                await connection.execute("ROLLBACK", timeout=self._settings.connect_timeout_s)
                is_clean = True
        finally:
            if not is_clean:
                connection.terminate()
            self.give_back(connection)

    def _sweep(self) -> None:
        """Close what is idle for too long."""
        loop = asyncio.get_running_loop()
        while self._idle and self._idle[0].idle_since + _IDLE_S <= loop.time():
            self._drop(self._idle.pop(0))
        self._sweeping = loop.call_at(self._idle[0].idle_since + _IDLE_S, self._sweep) if self._idle else None

    def _drop(self, connection: PooledConnection) -> None:
        self._open.discard(connection)
        connection.terminate()
