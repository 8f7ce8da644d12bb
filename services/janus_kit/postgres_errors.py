"""What goes wrong between here and Postgres, as the errors that callers are told; its own words go to the log."""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from janus_kit.errors import DeadlineExceeded, JanusError, Unavailable
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

# What asyncpg and the server raise when the connection, not the statement, is at
# fault. Disk full, read-only after a failover and a lost race belong here too:
# the caller did nothing wrong and may try again.
AWAY: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.PostgresSystemError,
)

# A connection that cannot be made: also for a role or database that is yet to be made, and an address that is none.
UNREACHABLE: tuple[type[BaseException], ...] = (asyncpg.PostgresError, ValueError, OverflowError, *AWAY)


@contextmanager
def translating(connection: asyncpg.Connection) -> Iterator[None]:
    """Work on a connection. Raises Unavailable and DeadlineExceeded for what is Postgres's fault."""
    try:
        yield
    except Exception as error:
        told = translated(error, connection)
        if told is None:
            raise
        raise told from error


def unreachable(error: BaseException) -> Unavailable:
    """No connection could be made."""
    _log.warning("postgres_unreachable", error=_described(error))
    return Unavailable("postgres", "postgres is not available")


def translated(error: BaseException, connection: asyncpg.Connection) -> JanusError | None:
    """What the caller is told of Postgres's fault; None for any other failure.

    A mistake of ours in how we use the driver is another. The connection is closed when it can be of no more use.
    """
    if not isinstance(error, (asyncpg.QueryCanceledError, *AWAY)):
        return None
    if isinstance(error, asyncpg.InterfaceError) and not connection.is_closed():
        return None
    if isinstance(error, asyncpg.QueryCanceledError):
        return DeadlineExceeded("postgres", "a database statement took too long")
    if isinstance(error, TimeoutError | OSError) and not connection.is_closed():
        # No answer in time: what the connection is in the middle of is unknown.
        connection.terminate()
    if isinstance(error, asyncpg.TransactionRollbackError):
        return Unavailable("postgres", "the transaction lost a race inside the database", retry_after=0.05)
    _log.warning("postgres_lost", error=_described(error))
    return Unavailable("postgres", "postgres is not available")


def _described(error: BaseException) -> str:
    """For the log: the kind, and the server's words where there are any."""
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__} {state}" if state else f"{type(error).__name__}: {error}"
