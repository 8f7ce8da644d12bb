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
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import asyncpg

from janus_kit.cancellation import cancel_wins
from janus_kit.errors import JanusError
from janus_kit.postgres_errors import AWAY, UNREACHABLE, translated, translating, unreachable
from janus_kit.postgres_pool import Pool, PooledConnection
from janus_kit.settings import PostgresSettings
from janus_kit.telemetry.logging import get_logger

Connection: TypeAlias = asyncpg.connection.Connection

APP_ROLE = "janus_app"
WORKER_ROLE = "janus_worker"

_log = get_logger(__name__)

# A lost listener is tried again after these seconds.
_LISTEN_BACKOFF_S = 0.5

# A table or type was altered: what the other connections remember of it is as old.
_OUTDATED = (asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError)


class Notification(NamedTuple):
    """One NOTIFY. Channel and payload are empty after every (re)connection."""

    channel: str
    payload: str


class Database:
    """A pool of connections. Made by ``database``."""

    def __init__(self, settings: PostgresSettings, application: str) -> None:
        self._settings = settings
        self._application = application
        self._pool = Pool(self._made, settings, application)
        # The connection of ``worker_statement``, which one call at a time has.
        self._line: Connection | None = None
        self._line_is_free = asyncio.Lock()

    def tenant(
        self, tenant: str, *, snapshot: bool = False, by_index: bool = False
    ) -> AbstractAsyncContextManager[Connection]:
        """A transaction that sees and writes one tenant's rows; commits at the end.

        With ``snapshot`` it writes nothing, and sees what its first statement saw.
        With ``by_index`` it reads tables in the order of an index where there is one to use.
        Raises Unavailable, or ResourceExhausted when no connection is free.
        """
        mode = " ISOLATION LEVEL REPEATABLE READ READ ONLY" if snapshot else ""
        plans = ("SET LOCAL enable_seqscan = off", "SET LOCAL enable_bitmapscan = off") if by_index else ()
        return _Transaction(self._pool, f"BEGIN{mode}", f"SET LOCAL janus.tenant = {literal(tenant)}", *plans)

    def worker(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction as ``janus_worker``, across tenants where policies let it."""
        return _Transaction(self._pool, "BEGIN", f"SET LOCAL ROLE {WORKER_ROLE}")

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
        if self._pool.is_busy:
            # Health must not queue behind load, and load must not look like an outage.
            await self._ping_aside()
            return
        with cancel_wins():
            connection = await self._pool.take()
            try:
                with translating(connection):
                    await connection.fetchval("SELECT 1")
            except BaseException:
                await self._pool.mend(connection)
                raise
            self._pool.give_back(connection)

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
        self._pool.require_open()
        try:
            return await asyncpg.connect(**self._connect_arguments(role))
        except UNREACHABLE as error:
            raise unreachable(error) from error

    async def _made(self) -> PooledConnection:
        """A connection for the pool."""
        async with asyncio.timeout(self._settings.connect_timeout_s):
            connection: PooledConnection = await asyncpg.connect(
                **self._connect_arguments(), connection_class=PooledConnection
            )
            return connection

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
                # What ``literal`` counts on; it is the default.
                "standard_conforming_strings": "on",
                "statement_timeout": str(round(settings.statement_timeout_s * 1000)),
                "idle_in_transaction_session_timeout": "60000",
                "timezone": "UTC",
            },
        }

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
        await self._pool.close()


class _Transaction:
    """One transaction, and its connection for as long as it is open.

    It begins with its first statement: what begins it goes ahead of that, and is no round trip. Statements are asked of
    this object: whoever keeps it is refused when it is over, as the connection may be another tenant's by then. Not the
    driver's own transaction, which takes two round trips more to begin and to say whose it is.
    """

    __slots__ = ("_ahead", "_cancels", "_connection", "_has_begun", "_pool")

    def __init__(self, pool: Pool, *begins_with: str) -> None:
        self._pool = pool
        # What goes ahead of the next statement.
        self._ahead = begins_with
        self._has_begun = False
        self._connection: PooledConnection | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._begun(), name)

    async def __aenter__(self) -> Connection:
        self._cancels = cancel_wins()
        with self._cancels:
            self._connection = await self._pool.take()
        return self

    async def execute(self, sql: str, *arguments: object, **options: Any) -> str:
        if self._ahead and not arguments:
            # Of the same kind as what goes ahead.
            sql = "; ".join((*self._ahead, sql))
            self._ahead = ()
        status: str = await self._begun().execute(sql, *arguments, **options)
        return status

    def ahead(self, statement: str) -> None:
        """Have a statement without parameters, which returns no rows, go ahead of the next one: it is no round trip."""
        self._ahead += (statement,)

    async def begin(self) -> None:
        """Have it begun: the driver makes cursors in a transaction that it knows of."""
        if not self._has_begun:
            await self.execute("")

    def _begun(self) -> PooledConnection:
        """The connection, for a statement that begins the transaction if none has."""
        connection = self._connection
        if connection is None:
            raise asyncpg.InterfaceError("the transaction is over")
        if self._ahead:
            connection.put_ahead(self._ahead)
            self._ahead = ()
        self._has_begun = True
        return connection

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        if not self._has_begun:
            # Nothing was asked.
            self._pool.give_back(connection)
            return
        try:
            ended = await connection.execute("COMMIT" if error is None else "ROLLBACK")
        except BaseException as failure:
            await self._broken_off(connection, failure)
            raise
        try:
            if error is not None:
                self._told(connection, error)
            elif ended != "COMMIT":
                raise RuntimeError("a statement of the transaction failed, and nothing was committed")
        finally:
            self._pool.give_back(connection)

    async def _broken_off(self, connection: PooledConnection, error: BaseException) -> None:
        """How far the server came is unknown."""
        try:
            self._told(connection, error)
        finally:
            await self._pool.mend(connection)

    def _told(self, connection: PooledConnection, error: BaseException) -> None:
        """Raise what the caller is told, where that is another error."""
        if isinstance(error, _OUTDATED):
            self._pool.expire()
        told = translated(error, connection) or error
        self._cancels.over(told)
        if told is not error:
            raise told from error


def literal(text: str) -> str:
    """A string constant of SQL, for statements that take no parameters."""
    if "\x00" in text:
        raise ValueError("Postgres has no strings with NUL")
    return "'" + text.replace("'", "''") + "'"


@asynccontextmanager
async def database(settings: PostgresSettings, *, application: str) -> AsyncIterator[Database]:
    """A Database, closed at the end. Does not fail when Postgres is away.

    ``application`` names the connections in pg_stat_activity and the pool in
    metrics.
    """
    opened = Database(settings, application)
    warming = asyncio.create_task(opened.warm_up(), name=f"{application}-pool-warm-up")
    try:
        yield opened
    finally:
        warming.cancel()
        await asyncio.gather(warming, return_exceptions=True)
        await opened.close()
