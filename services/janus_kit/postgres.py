"""Postgres: pooled transactions of a tenant or of a worker, and LISTEN.

Every connection takes the role ``janus_app`` when it opens: no owner, no
superuser, no BYPASSRLS, so that row-level security holds whoever the URL's
user is. ``tenant`` opens a transaction that sees one tenant's rows; ``worker``
one as ``janus_worker``, for the few tables that work across tenants. All state
is a transaction's own (``SET LOCAL``, ``pg_advisory_xact_lock``), so that a
connection needs no cleaning between two of them, which would be a round trip.

Whatever keeps Postgres from answering becomes ``Unavailable("postgres")``;
what it says goes to the log. The pool connects on first use, and again when
Postgres is back, without a restart.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import asyncpg

from janus_kit.cancellation import cancel_wins
from janus_kit.errors import JanusError, ResourceExhausted, Unavailable
from janus_kit.postgres_errors import AWAY, UNREACHABLE, is_lost, translating, unreachable
from janus_kit.settings import PostgresSettings
from janus_kit.telemetry import metrics
from janus_kit.telemetry.logging import get_logger

Connection: TypeAlias = asyncpg.connection.Connection
ConnectionInit = Callable[[Connection], Awaitable[None]]

APP_ROLE = "janus_app"
WORKER_ROLE = "janus_worker"

_log = get_logger(__name__)

# A lost listener is tried again after these seconds.
_LISTEN_BACKOFF_S = 0.5


class _Stateless(asyncpg.Connection):  # type: ignore[misc] # the driver has no types
    """A transaction that was left open is rolled back when its connection is given back; there is nothing else."""

    def get_reset_query(self) -> str:
        return ""


class Notification(NamedTuple):
    """One NOTIFY. Channel and payload are empty after every (re)connection."""

    channel: str
    payload: str


class Database:
    """A pool of connections. Made by ``database``."""

    def __init__(self, settings: PostgresSettings, application: str, init: ConnectionInit | None) -> None:
        self._settings = settings
        self._application = application
        self._init = init
        self._pool: asyncpg.Pool | None = None
        # The pool's own queue cannot tell "all busy" from "cannot connect"; with
        # this in front of it, waiting means busy and nothing else.
        self._free = asyncio.Semaphore(settings.pool_max)
        # The connection of ``worker_statement``, which one call at a time has.
        self._line: Connection | None = None
        self._line_is_free = asyncio.Lock()

    @asynccontextmanager
    async def tenant(self, tenant: str, *, snapshot: bool = False, by_index: bool = False) -> AsyncIterator[Connection]:
        """A transaction that sees and writes one tenant's rows; commits at the end.

        With ``snapshot`` it writes nothing, and sees what its first statement saw.
        With ``by_index`` it reads tables in the order of an index where there is one to use.
        Raises Unavailable, or ResourceExhausted when no connection is free.
        """
        mode = " ISOLATION LEVEL REPEATABLE READ READ ONLY" if snapshot else ""
        plans = "; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off" if by_index else ""
        begin = f"BEGIN{mode}; SET LOCAL janus.tenant = {_literal(tenant)}{plans}"
        async with self._transaction(begin) as connection:
            yield connection

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Connection]:
        """A transaction as ``janus_worker``, across tenants where policies let it."""
        async with self._transaction(f"BEGIN; SET LOCAL ROLE {WORKER_ROLE}") as connection:
            yield connection

    async def worker_statement(self, sql: str, *arguments: object) -> list[Any]:
        """The rows of one statement as ``janus_worker``, committed by itself; one at a time.

        On a connection that has the role already: a round trip where ``worker``
        takes three, and a process that is stopped meanwhile keeps no row locked.
        Raises Unavailable.
        """
        async with self._line_is_free:
            line = self._line
            if line is None or line.is_closed():
                line = self._line = await self._connected(WORKER_ROLE)
            with translating(line):
                rows: list[Any] = await line.fetch(sql, *arguments)
                return rows

    async def ping(self) -> None:
        """Raise Unavailable unless Postgres answers a query; never waits for a free slot."""
        if self._free.locked():
            # Health must not queue behind load, and load must not look like an outage.
            await self._ping_aside()
            return
        async with self._connection() as connection:
            await connection.fetchval("SELECT 1")

    async def listen(self, *channels: str) -> AsyncIterator[Notification]:
        """Notifications, on a connection of their own that is re-made when lost.

        The first item, and one after each reconnection, is empty: look at the
        tables then, since notifications may have been missed. Runs until
        closed or cancelled.
        """
        inbox: asyncio.Queue[Notification | None] = asyncio.Queue()

        def receive(connection: Any, pid: int, channel: str, payload: object) -> None:
            inbox.put_nowait(Notification(channel, str(payload)))

        while True:
            try:
                connection = await asyncpg.connect(**self._connect_arguments())
            except (asyncpg.PostgresError, *AWAY) as error:
                _log.debug("postgres_listen_failed", error=type(error).__name__)
                await asyncio.sleep(_LISTEN_BACKOFF_S)
                continue
            try:
                connection.add_termination_listener(lambda _: inbox.put_nowait(None))
                try:
                    for channel in channels:
                        await connection.add_listener(channel, receive)
                except (asyncpg.PostgresError, *AWAY):
                    inbox.put_nowait(None)
                yield Notification("", "")
                while (notification := await inbox.get()) is not None:
                    yield notification
            finally:
                connection.terminate()
            await asyncio.sleep(_LISTEN_BACKOFF_S)

    @asynccontextmanager
    async def _transaction(self, begin: str) -> AsyncIterator[Connection]:
        # Not the driver's own: that would take a round trip more to say whose the transaction is.
        async with self._connection() as connection:
            try:
                await connection.execute(begin)
                yield connection
            except BaseException:
                await connection.execute("ROLLBACK")
                raise
            if await connection.execute("COMMIT") != "COMMIT":
                raise RuntimeError("a statement of the transaction failed, and nothing was committed")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        # Rolling back can fail, when the server goes at that moment.
        with cancel_wins():
            await self._wait_for_slot()
            try:
                connection = await self._acquire()
                try:
                    with translating(connection):
                        yield connection
                finally:
                    await self._release(connection)
            finally:
                self._free.release()

    async def _ping_aside(self) -> None:
        try:
            connection = await asyncpg.connect(**self._connect_arguments())
        except asyncpg.TooManyConnectionsError:
            return  # an answer too
        except UNREACHABLE as error:
            raise unreachable(error) from error
        connection.terminate()

    async def _connected(self, role: str) -> Connection:
        """A connection beside the pool."""
        if self._pool is None:
            raise Unavailable("postgres", "the database pool is closed")
        try:
            return await asyncpg.connect(**self._connect_arguments(role))
        except UNREACHABLE as error:
            raise unreachable(error) from error

    async def _wait_for_slot(self) -> None:
        if not self._free.locked():
            await self._free.acquire()
            metrics.db_pool_wait.labels(self._application).observe(0.0)
            return
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.pool_wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise ResourceExhausted(
                "OVERLOADED",
                "no database connection became free in time",
                {"part": "postgres"},
                retry_after=self._settings.pool_wait_s,
                quota=("postgres connections", f"{self._settings.pool_max} at the same time"),
            ) from None
        finally:
            metrics.db_pool_wait.labels(self._application).observe(time.monotonic() - began)

    async def _acquire(self) -> Connection:
        """A connection that was alive a moment ago; the slot is already ours."""
        if self._pool is None:
            raise Unavailable("postgres", "the database pool is closed")
        try:
            return await self._pool.acquire(timeout=self._settings.connect_timeout_s)
        except UNREACHABLE as error:
            raise unreachable(error) from error

    async def _release(self, connection: Connection) -> None:
        assert self._pool is not None
        try:
            await self._pool.release(connection, timeout=self._settings.connect_timeout_s)
        except (asyncpg.PostgresError, *AWAY):
            if not is_lost(connection):
                connection.terminate()

    def _connect_arguments(self, role: str = APP_ROLE) -> dict[str, Any]:
        settings = self._settings
        return {
            "dsn": settings.url.get_secret_value(),
            "timeout": settings.connect_timeout_s,
            # Ends a wait on a dead link; the server's own limit comes first otherwise.
            "command_timeout": settings.statement_timeout_s + 1,
            "server_settings": {
                "role": role,
                "application_name": self._application,
                # What ``_literal`` counts on; it is the default.
                "standard_conforming_strings": "on",
                "statement_timeout": str(round(settings.statement_timeout_s * 1000)),
                "idle_in_transaction_session_timeout": "60000",
                "timezone": "UTC",
            },
        }

    async def open(self) -> None:
        """Make the pool. Connects to nothing, so it cannot fail for Postgres's sake."""
        self._pool = await asyncpg.create_pool(
            **self._connect_arguments(),
            min_size=0,
            max_size=self._settings.pool_max,
            max_inactive_connection_lifetime=300,
            connection_class=_Stateless,
            init=self._init,
        )
        metrics.watch_db_pool(self._application, self._pool)

    async def warm_up(self) -> None:
        """Open ``pool_min`` connections ahead of need, or leave it to the first calls."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._settings.pool_min, self._settings.pool_max)):
                    group.create_task(self.ping())
        except* JanusError:
            pass

    async def close(self) -> None:
        """Close all connections, by force when they do not end in 2 s."""
        line, self._line = self._line, None
        if line is not None:
            line.terminate()
        pool, self._pool = self._pool, None
        if pool is None:
            return
        metrics.unwatch_db_pool(self._application, pool)
        try:
            async with asyncio.timeout(2):
                await pool.close()
        except (TimeoutError, asyncpg.PostgresError, *AWAY):
            pool.terminate()


def _literal(text: str) -> str:
    """A string constant of SQL, for statements that take no parameters."""
    if "\x00" in text:
        raise ValueError("Postgres has no strings with NUL")
    return "'" + text.replace("'", "''") + "'"


@asynccontextmanager
async def database(
    settings: PostgresSettings, *, application: str, init: ConnectionInit | None = None
) -> AsyncIterator[Database]:
    """A Database, closed at the end. Does not fail when Postgres is away.

    ``application`` names the connections in pg_stat_activity and the pool in
    metrics. ``init`` runs on every new connection, e.g. to register codecs.
    """
    opened = Database(settings, application, init)
    await opened.open()
    warming = asyncio.create_task(opened.warm_up(), name=f"{application}-pool-warm-up")
    try:
        yield opened
    finally:
        warming.cancel()
        await asyncio.gather(warming, return_exceptions=True)
        await opened.close()
