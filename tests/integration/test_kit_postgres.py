"""The Postgres factory against a real server: roles, tenants, limits, losses and recovery."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr

from janus_kit import migrations
from janus_kit.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from janus_kit.migrations import migrate
from janus_kit.postgres import Database, database
from janus_kit.settings import PostgresSettings

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS probe;
GRANT USAGE ON SCHEMA probe TO janus_app, janus_worker;
CREATE TABLE IF NOT EXISTS probe.note (tenant text NOT NULL, text text NOT NULL);
ALTER TABLE probe.note ENABLE ROW LEVEL SECURITY;
ALTER TABLE probe.note FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON probe.note TO janus_app;
DROP POLICY IF EXISTS tenant ON probe.note;
CREATE POLICY tenant ON probe.note TO janus_app
    USING (tenant = current_setting('janus.tenant')) WITH CHECK (tenant = current_setting('janus.tenant'));
CREATE TABLE IF NOT EXISTS probe.outbox (tenant text NOT NULL);
GRANT INSERT ON probe.outbox TO janus_app;
GRANT SELECT, DELETE ON probe.outbox TO janus_worker;
TRUNCATE probe.note, probe.outbox;
"""


async def prepare(url: str) -> None:
    await migrate(PostgresSettings(url=SecretStr(url)), [])
    owner = await asyncpg.connect(url)
    await owner.execute(SCHEMA)
    await owner.close()


@pytest.fixture
async def url(postgres_url: str) -> str:
    await prepare(postgres_url)
    return postgres_url


@pytest.fixture
async def db(url: str) -> AsyncIterator[Database]:
    async with database(PostgresSettings(url=SecretStr(url)), application="test") as opened:
        yield opened


async def test_a_forgotten_where_clause_shows_one_tenants_rows_only(db):
    for tenant in ("acme", "globex"):
        async with db.tenant(tenant) as connection:
            await connection.execute("INSERT INTO probe.note VALUES ($1, 'text')", tenant)
    async with db.tenant("acme") as connection:
        assert [row["tenant"] for row in await connection.fetch("SELECT * FROM probe.note")] == ["acme"]
        assert await connection.execute("UPDATE probe.note SET text = 'mine'") == "UPDATE 1"


async def test_a_row_of_another_tenant_cannot_be_written(db):
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.tenant("acme") as connection:
            await connection.execute("INSERT INTO probe.note VALUES ('globex', 'text')")


async def test_the_urls_superuser_is_never_at_work(db):
    async with db.tenant("acme") as connection:
        role = "SELECT current_user, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
        assert tuple(await connection.fetchrow(role)) == ("janus_app", False, False)
        await connection.execute("RESET ROLE")
        assert tuple(await connection.fetchrow(role)) == ("janus_app", False, False)


async def test_a_tenant_does_not_outlive_its_transaction(url):
    settings = PostgresSettings(url=SecretStr(url), pool_max=1)
    async with database(settings, application="single") as db:
        async with db.tenant("acme") as connection:
            pid = connection.get_server_pid()
        async with db.worker() as connection:
            assert connection.get_server_pid() == pid
            assert await connection.fetchval("SELECT current_setting('janus.tenant', true)") in (None, "")


async def test_a_worker_sees_what_is_granted_to_it_across_tenants_and_nothing_else(db):
    for tenant in ("acme", "globex"):
        async with db.tenant(tenant) as connection:
            await connection.execute("INSERT INTO probe.outbox VALUES ($1)", tenant)
    async with db.worker() as connection:
        assert await connection.fetchval("SELECT current_user") == "janus_worker"
        assert await connection.fetchval("SELECT count(*) FROM probe.outbox") == 2
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.worker() as connection:
            await connection.fetch("SELECT * FROM probe.note")
    async with db.tenant("acme") as connection:
        assert await connection.fetchval("SELECT current_user") == "janus_app"


async def test_a_single_statement_works_as_the_worker_and_is_committed(db):
    async with db.tenant("acme") as connection:
        await connection.execute("INSERT INTO probe.outbox VALUES ('acme'), ('globex')")
    removed = await db.worker_statement("DELETE FROM probe.outbox WHERE tenant = $1 RETURNING tenant", "acme")
    assert [row["tenant"] for row in removed] == ["acme"]
    async with db.worker() as connection:
        assert await connection.fetchval("SELECT string_agg(tenant, ',') FROM probe.outbox") == "globex"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await db.worker_statement("INSERT INTO probe.note VALUES ('acme', 'text')")


async def test_single_statements_find_a_server_that_closed_their_connection(url, db):
    await db.worker_statement("SELECT 1")
    owner = await asyncpg.connect(url)
    await owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test'")
    await owner.close()

    async with asyncio.timeout(5):
        for _ in range(100):
            with suppress(Unavailable):
                await db.worker_statement("SELECT 1")
                break
            await asyncio.sleep(0.04)
    await db.worker_statement("SELECT 1")


async def test_a_transaction_that_is_left_open_leaves_nothing_behind(url):
    settings = PostgresSettings(url=SecretStr(url), pool_max=1)
    async with database(settings, application="single") as db:
        with suppress(RuntimeError):
            async with db.tenant("acme") as connection:
                pid = connection.get_server_pid()
                await connection.execute("INSERT INTO probe.note VALUES ('acme', 'text')")
                await connection.execute("SELECT pg_advisory_xact_lock(7)")
                raise RuntimeError
        async with db.tenant("acme") as connection:
            assert connection.get_server_pid() == pid
            assert await connection.fetchval("SELECT count(*) FROM probe.note") == 0
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            assert await connection.fetchval(held) == 0


def test_no_statement_sets_what_would_outlive_its_transaction():
    """Connections are not cleaned between two callers, who may be of two tenants."""
    services = Path(migrations.__file__).parents[2]
    outliving = re.compile(
        r"\bSET\s+(SESSION|ROLE|janus\.|search_path)|\bset_config\([^)]*false|pg_(try_)?advisory_lock|"
        r"\b(DECLARE\s.*CURSOR\s+WITH\s+HOLD|CREATE\s+TEMP)",
    )
    found = [
        f"{path.name}: {match[0]}"
        for path in services.rglob("*.py")
        if path.parent.name != "migrations"  # which have connections of their own
        for match in outliving.finditer(path.read_text())
    ]
    assert found == []


async def test_reading_by_an_index_is_a_transactions_own_choice(url):
    settings = "SELECT current_setting('enable_seqscan'), current_setting('enable_bitmapscan')"
    async with database(PostgresSettings(url=SecretStr(url), pool_max=1), application="test") as db:
        found = []
        for by_index in (True, False):
            async with db.tenant("acme", by_index=by_index) as connection:
                found.append(tuple(await connection.fetchrow(settings)))
    assert found == [("off", "off"), ("on", "on")]


async def test_a_failure_rolls_everything_back(db):
    async def write_and_refuse():
        async with db.tenant("acme") as connection:
            await connection.execute("INSERT INTO probe.note VALUES ('acme', 'text')")
            raise InvalidArgument("text", "must be longer")

    with pytest.raises(InvalidArgument):
        await write_and_refuse()
    async with db.tenant("acme") as connection:
        assert await connection.fetchval("SELECT count(*) FROM probe.note") == 0


async def test_a_transaction_that_a_statement_broke_is_not_taken_for_committed(db):
    with pytest.raises(RuntimeError):
        async with db.tenant("acme") as connection:
            await connection.execute("INSERT INTO probe.note VALUES ('acme', 'text')")
            with suppress(asyncpg.NotNullViolationError):
                await connection.execute("INSERT INTO probe.note VALUES ('acme', NULL)")
    async with db.tenant("acme") as connection:
        assert await connection.fetchval("SELECT count(*) FROM probe.note") == 0


@pytest.mark.parametrize("tenant", ["o'brien", "'; SELECT pg_sleep(9); --", "\\' OR true --", "ünï", ""])
async def test_a_tenant_is_a_name_whatever_it_says(db, tenant):
    async with db.tenant(tenant) as connection:
        assert await connection.fetchval("SELECT current_setting('janus.tenant')") == tenant


async def test_a_wrong_statement_is_our_bug_and_not_an_outage(db):
    with pytest.raises(asyncpg.UndefinedTableError):
        async with db.tenant("acme") as connection:
            await connection.fetch("SELECT * FROM probe.nothing")
    with pytest.raises(asyncpg.DataError):
        async with db.tenant("acme") as connection:
            await connection.fetch("SELECT * FROM probe.note WHERE text = $1", 7)


async def test_when_all_connections_are_at_work_a_call_waits_briefly_and_is_then_told(url):
    settings = PostgresSettings(url=SecretStr(url), pool_max=1, pool_wait_s=0.05)
    async with database(settings, application="full") as db:
        async with db.tenant("acme"):
            with pytest.raises(ResourceExhausted) as raised:
                async with db.tenant("globex"):
                    pass
            # Health must not say "away" for it.
            await db.ping()
            assert pool_connections("in_use") >= 1
        async with db.tenant("globex"):
            pass
    assert raised.value.reason == "OVERLOADED"
    assert raised.value.retry_after is not None


async def test_a_statement_that_takes_too_long_is_ended(url):
    settings = PostgresSettings(url=SecretStr(url), statement_timeout_s=0.05)
    async with database(settings, application="slow") as db:
        with pytest.raises(DeadlineExceeded) as raised:
            async with db.tenant("acme") as connection:
                await connection.execute("SELECT pg_sleep(60)")
        assert raised.value.metadata == {"leg": "postgres"}
        await db.ping()


async def test_a_cancelled_call_stops_its_statement_and_gives_the_connection_back(url):
    settings = PostgresSettings(url=SecretStr(url), pool_max=1)
    async with database(settings, application="cancelled") as db:
        started = asyncio.Event()

        async def work():
            async with db.tenant("acme") as connection:
                started.set()
                await connection.execute("SELECT pg_sleep(60)")

        call = asyncio.create_task(work())
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with db.worker() as connection:
            running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
            assert await connection.fetchval(running) == 0


async def test_a_cancelled_call_ends_as_cancelled_also_when_the_server_goes_meanwhile(db):
    started = asyncio.Event()

    async def call():
        async with db.tenant("acme") as connection:
            try:
                started.set()
                await connection.execute("SELECT pg_sleep(30)")
            finally:
                connection.terminate()

    task = asyncio.create_task(call())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_connection_that_is_dropped_in_a_transaction_is_unavailable_and_the_next_call_works(url, db):
    owner = await asyncpg.connect(url)
    try:

        async def lose():
            async with db.tenant("acme") as connection:
                await owner.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
                await connection.execute("INSERT INTO probe.note VALUES ('acme', 'lost')")

        with pytest.raises(Unavailable) as raised:
            await lose()
        async with db.tenant("acme") as connection:
            assert await connection.fetchval("SELECT count(*) FROM probe.note") == 0
    finally:
        await owner.close()
    assert raised.value.metadata == {"part": "postgres"}


async def test_a_lost_race_inside_the_database_may_be_tried_again(db):
    async with db.tenant("acme") as connection:
        await connection.execute("INSERT INTO probe.note VALUES ('acme', 'a'), ('acme', 'b')")
    ready = asyncio.Barrier(2)

    async def update(first, second):
        async with db.tenant("acme") as connection:
            await connection.execute("UPDATE probe.note SET text = text WHERE text = $1", first)
            await ready.wait()
            await connection.execute("UPDATE probe.note SET text = text WHERE text = $1", second)

    results = await asyncio.gather(update("a", "b"), update("b", "a"), return_exceptions=True)
    (lost,) = [result for result in results if result is not None]
    assert isinstance(lost, Unavailable)
    assert lost.retry_after is not None


@pytest.mark.parametrize(
    "url",
    ["postgresql://nobody@127.0.0.1:1/nothing", "postgresql://127.0.0.1:99999/x", "postgresql://x@/x?host=/nowhere"],
)
async def test_postgres_that_is_not_there_does_not_keep_a_service_from_starting(url):
    async with database(PostgresSettings(url=SecretStr(url)), application="away") as db:
        with pytest.raises(Unavailable) as raised:
            await db.ping()
    assert "127.0.0.1" not in raised.value.message


async def test_a_password_that_is_wrong_is_not_shown(url):
    address = url.rpartition("@")[2]
    settings = PostgresSettings(url=SecretStr(f"postgresql://wrong:hunter2@{address}"))
    async with database(settings, application="wrong") as db:
        with pytest.raises(Unavailable) as raised:
            await db.ping()
    assert "hunter2" not in str(raised.value) + repr(settings)


async def test_notifications_arrive_and_a_lost_listener_comes_back(url, db):
    owner = await asyncpg.connect(url)
    notes = db.listen("probe_channel")
    try:
        assert await anext(notes) == ("", "")
        await owner.execute("NOTIFY probe_channel, 'one'")
        assert await anext(notes) == ("probe_channel", "one")
        await owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%probe_channel%'"
        )
        assert await asyncio.wait_for(anext(notes), 10) == ("", "")
        await owner.execute("NOTIFY probe_channel, 'two'")
        assert await anext(notes) == ("probe_channel", "two")
    finally:
        await notes.aclose()
        await owner.close()


async def test_a_killed_server_is_unavailable_and_found_again_when_it_is_back(own_stack):
    url = own_stack.addresses.postgres_url
    await prepare(url)
    async with database(PostgresSettings(url=SecretStr(url)), application="killed") as db:
        async with db.tenant("acme") as connection:
            await connection.execute("INSERT INTO probe.note VALUES ('acme', 'kept')")

        async def lose():
            async with db.tenant("acme") as connection:
                own_stack.kill("postgres")
                while True:
                    await connection.execute("INSERT INTO probe.note VALUES ('acme', 'lost')")

        with pytest.raises(Unavailable) as raised:
            await lose()
        assert raised.value.retry_after is not None
        async with asyncio.timeout(30):
            count = None
            while count is None:
                with suppress(Unavailable):
                    async with db.tenant("acme") as connection:
                        count = await connection.fetchval("SELECT count(*) FROM probe.note")
                await asyncio.sleep(0.05)
        assert count == 1


def pool_connections(state: str) -> float:
    return REGISTRY.get_sample_value("janus_db_pool_connections", {"state": state}) or 0
