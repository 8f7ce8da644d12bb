"""Connections of the pool against a real server: who gets them, in what state, how many, and until when."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from janus_kit import postgres_pool
from janus_kit.errors import InvalidArgument, Unavailable
from janus_kit.migrations import migrate
from janus_kit.postgres import Database, _Transaction, database
from janus_kit.postgres_pool import PooledConnection
from janus_kit.settings import PostgresSettings

NAME = "pooled"


@pytest.fixture
async def owner(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    await migrate(PostgresSettings(url=SecretStr(postgres_url)), [])
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(
        "CREATE SCHEMA pooled; GRANT USAGE ON SCHEMA pooled TO janus_app; CREATE TABLE pooled.note (text text);"
        "GRANT SELECT, INSERT ON pooled.note TO janus_app"
    )
    try:
        yield connection
    finally:
        await connection.execute("DROP SCHEMA pooled CASCADE")
        await connection.close()


@pytest.fixture
def pooled(postgres_url: str, owner: asyncpg.Connection) -> Callable[..., Any]:
    """A Database with settings of the test's own."""

    def opened(**settings: Any) -> Any:
        return database(PostgresSettings(url=SecretStr(postgres_url), pool_min=0, **settings), application=NAME)

    return opened


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await holds():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.005)


async def backends(owner: asyncpg.Connection, state: str = "%") -> int:
    """The server's view: connections of the pool in a state."""
    count: int = await owner.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state LIKE $2", NAME, state
    )
    return count


async def pid(db: Database) -> int:
    async with db.tenant("acme") as connection:
        number: int = connection.get_server_pid()
        return number


async def hold(db: Database, arrived: asyncio.Event, leave: asyncio.Event) -> None:
    async with db.tenant("acme") as connection:
        await connection.execute("INSERT INTO pooled.note VALUES ('held')")
        arrived.set()
        await leave.wait()
        await connection.execute("INSERT INTO pooled.note VALUES ('left')")


async def test_a_connection_is_used_again_and_the_last_first(pooled: Any) -> None:
    async with pooled() as db, db.tenant("acme") as outer:
        async with db.tenant("acme") as inner:
            of_both = {outer.get_server_pid(), inner.get_server_pid()}
            last = inner.get_server_pid()
        assert await pid(db) == last
        assert len(of_both) == 2


async def test_whoever_keeps_a_connection_beyond_its_transaction_is_refused(pooled: Any) -> None:
    async with pooled(pool_max=1) as db:
        async with db.tenant("acme") as kept:
            await kept.execute("SELECT 1")
        async with db.tenant("globex"):
            with pytest.raises(asyncpg.InterfaceError):
                await kept.fetch("SELECT * FROM pooled.note")


async def test_connections_that_died_while_they_were_idle_are_not_lent(pooled: Any, owner: Any) -> None:
    async with pooled() as db:
        async with db.tenant("acme") as first, db.tenant("acme"):
            lost = first.get_server_pid()
        await owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", NAME)

        async def gone() -> bool:
            return db._pool.idle == 0

        await eventually(gone)
        for _ in range(3):
            assert await pid(db) != lost
        assert await backends(owner) == db._pool.size == 1


@pytest.mark.parametrize("cancels", [1, 2])
@pytest.mark.parametrize("statement", ["BEGIN", "COMMIT", "ROLLBACK"])
async def test_a_cancel_within_a_transactions_own_statements_leaves_none_open(
    pooled: Any, owner: Any, monkeypatch: pytest.MonkeyPatch, statement: str, cancels: int
) -> None:
    plain = PooledConnection.execute
    loop = asyncio.get_running_loop()

    async def execute(connection: Any, sql: str, *arguments: Any, **options: Any) -> Any:
        if sql.startswith(statement) and (task := asyncio.current_task()) is call:
            # When the statement is on its way.
            loop.call_soon(task.cancel)
            if cancels == 2:
                loop.call_soon(lambda: loop.call_soon(task.cancel))
        return await plain(connection, sql, *arguments, **options)

    async def work() -> None:
        async with db.tenant("acme") as connection:
            await connection.execute("INSERT INTO pooled.note VALUES ('acme')")
            if statement == "ROLLBACK":
                raise InvalidArgument("text", "must be longer")

    async def nothing_is_open() -> bool:
        return await backends(owner, "idle in transaction%") == 0

    async with pooled(pool_max=1) as db:
        await pid(db)
        monkeypatch.setattr(PooledConnection, "execute", execute)
        for _ in range(20):
            call = asyncio.create_task(work())
            with pytest.raises(asyncio.CancelledError):
                await call
            await eventually(nothing_is_open)
            async with db.tenant("globex") as connection:
                # Whatever became of the call's transaction, this is another.
                assert await connection.fetchval("SELECT current_setting('janus.tenant')") == "globex"
                of_this = "SELECT count(*) FROM pooled.note WHERE xmin::text = txid_current()::text"
                assert await connection.fetchval(of_this) == 0
        if statement != "COMMIT":
            assert await owner.fetchval("SELECT count(*) FROM pooled.note") == 0


async def test_a_cancel_while_a_connection_is_made_or_waited_for_keeps_no_place(pooled: Any, owner: Any) -> None:
    async with pooled(pool_max=1) as db:
        for turns in range(30):
            calls = [asyncio.create_task(pid(db)) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await pid(db)
            db._pool.expire()
        await pid(db)
        assert db._pool.size == 1


async def test_there_are_never_more_connections_than_allowed(pooled: Any, owner: Any) -> None:
    most, one = 0, asyncio.Lock()

    async def work(db: Database, number: int) -> None:
        nonlocal most
        async with db.tenant("acme") as connection:
            async with one:
                most = max(most, await backends(owner), db._pool.size)
                if number % 7 == 0:
                    await owner.execute("SELECT pg_terminate_backend($1, 5000)", connection.get_server_pid())
            await connection.execute("INSERT INTO pooled.note VALUES ('acme')")
            if number % 5 == 0:
                raise InvalidArgument("text", "must be longer")

    async with pooled(pool_max=3, pool_wait_s=30) as db:
        calls = [asyncio.create_task(work(db, number)) for number in range(60)]
        for call in calls[::4]:
            await asyncio.sleep(0.001)
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        written = sum(result is None for result in results)
        assert await owner.fetchval("SELECT count(*) FROM pooled.note") == written > 20
        assert await pid(db)
    assert most == 3


async def test_a_process_that_stood_still_looks_for_a_connection_before_it_refuses(pooled: Any) -> None:
    async with pooled(pool_max=1, pool_wait_s=0.2) as db:
        async with db.tenant("acme") as connection:
            waiting = asyncio.create_task(pid(db))
            await asyncio.sleep(0)
            await connection.fetchval("SELECT 1")
            working = asyncio.create_task(connection.fetchval("SELECT 2"))
            await asyncio.sleep(0)
            time.sleep(0.3)  # noqa: ASYNC251 - the stall itself
            assert await working == 2
        assert await waiting


async def test_closing_lets_a_transaction_end_and_refuses_who_waits(pooled: Any, owner: Any) -> None:
    arrived, leave = asyncio.Event(), asyncio.Event()
    async with pooled(pool_max=1, pool_wait_s=30) as db:
        holding = asyncio.create_task(hold(db, arrived, leave))
        await arrived.wait()
        waiting = asyncio.create_task(pid(db))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.02, leave.set)
    await holding
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await pid(db)
    assert await owner.fetchval("SELECT count(*) FROM pooled.note") == 2
    assert db._pool.size == 0


async def test_closing_does_not_wait_for_ever(pooled: Any, owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_pool, "_CLOSE_S", 0.05)
    arrived, leave = asyncio.Event(), asyncio.Event()
    async with pooled() as db:
        holding = asyncio.create_task(hold(db, arrived, leave))
        await arrived.wait()
    assert db._pool.size == 0
    leave.set()
    with pytest.raises(Unavailable):
        await holding
    assert await owner.fetchval("SELECT count(*) FROM pooled.note") == 0


async def test_what_nobody_needs_for_long_is_closed(pooled: Any, owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_pool, "_IDLE_S", 0.05)
    async with pooled() as db:
        async with db.tenant("acme"), db.tenant("acme"):
            assert db._pool.size == 2

        async def closed() -> bool:
            return db._pool.size == 0 == await backends(owner)

        await eventually(closed)
        assert await pid(db)


async def test_a_connection_is_replaced_after_many_transactions(pooled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_pool, "_MOST_TRANSACTIONS", 2)
    async with pooled(pool_max=1) as db:
        pids = [await pid(db) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_an_altered_table_is_found_out_once_for_all_connections(pooled: Any, owner: Any) -> None:
    async def read() -> None:
        async with db.tenant("acme") as connection:
            await connection.fetch("SELECT * FROM pooled.note")

    async with pooled() as db:
        async with db.tenant("acme") as first, db.tenant("acme") as second, db.tenant("acme") as third:
            for connection in (first, second, third):
                await connection.fetch("SELECT * FROM pooled.note")
        await owner.execute("ALTER TABLE pooled.note ADD COLUMN author text")
        with pytest.raises(asyncpg.FeatureNotSupportedError):
            await read()
        for _ in range(3):
            await read()
        await asyncio.gather(read(), read(), read())


async def test_a_refusal_within_gives_the_connection_back_as_it_was(pooled: Any) -> None:
    async with pooled(pool_max=1) as db:
        before = await pid(db)
        with suppress(InvalidArgument):
            async with db.tenant("acme"):
                raise InvalidArgument("text", "must be longer")
        assert await pid(db) == before


async def test_what_begins_a_transaction_goes_with_its_first_statement(pooled: Any) -> None:
    async with pooled(pool_max=1) as db:
        number = await pid(db)
        async with db.tenant("acme") as connection:
            text = "SELECT $1::text || current_setting('janus.tenant')"
            assert await connection.fetchval(text, "of ") == "of acme"
        async with db.tenant("globex") as connection:
            await connection.execute("INSERT INTO pooled.note VALUES (current_setting('janus.tenant'))")
            assert await connection.fetchval("SELECT text FROM pooled.note") == "globex"
        async with db.worker() as connection:
            assert [row[0] for row in await connection.fetch("SELECT current_user")] == ["janus_worker"]
        async with db.tenant("acme"):
            pass
        assert await pid(db) == number


@pytest.mark.parametrize("arguments", [("lost",), ()])
async def test_a_transaction_that_cannot_begin_does_nothing(
    pooled: Any, owner: Any, arguments: tuple[str, ...]
) -> None:
    sql = "INSERT INTO pooled.note VALUES ($1)" if arguments else "INSERT INTO pooled.note VALUES ('lost')"
    async with pooled(pool_max=1) as db:
        async with db.tenant("acme") as connection:
            await connection.execute(sql, *arguments)
        await owner.execute("DELETE FROM pooled.note")
        with pytest.raises(asyncpg.InvalidParameterValueError):
            async with _Transaction(db._pool, "BEGIN", "SET LOCAL ROLE nobody") as connection:
                await connection.execute(sql, *arguments)
        assert await owner.fetchval("SELECT count(*) FROM pooled.note") == 0
        async with db.tenant("acme") as connection:
            assert await connection.fetchval("SELECT current_user") == "janus_app"


async def test_a_first_statement_that_the_driver_refuses_leaves_none_open(pooled: Any, owner: Any) -> None:
    async with pooled(pool_max=1) as db:
        number = await pid(db)
        with pytest.raises(asyncpg.DataError):
            async with db.tenant("acme") as connection:
                await connection.fetch("SELECT $1::integer", "no number")
        assert await backends(owner, "idle in transaction%") == 0
        async with db.tenant("acme") as connection:
            assert await connection.fetchval("SELECT current_setting('janus.tenant')") == "acme"
        assert await pid(db) == number


async def test_a_cursor_may_be_a_transactions_first(pooled: Any) -> None:
    async with pooled() as db, db.tenant("acme") as connection:
        await connection.begin()
        await connection.begin()
        assert [row[0] async for row in connection.cursor("SELECT generate_series(1, $1)", 3)] == [1, 2, 3]
