"""Writes of a transaction that are sent together: nothing of what they mean changes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from janus_kit.errors import AlreadyExists
from janus_kit.postgres_batch import Batch


class Counting:
    """A connection that remembers what was sent."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.sent: list[str] = []

    def __getattr__(self, name: str) -> object:
        async def run(sql: str, *arguments: object) -> object:
            self.sent.append(sql)
            return await getattr(self.connection, name)(sql, *arguments)

        return run


@pytest.fixture
async def connection(postgres_url: str) -> AsyncIterator[Counting]:
    opened = await asyncpg.connect(postgres_url)
    await opened.execute(
        "CREATE SCHEMA b; CREATE TABLE b.one (id int PRIMARY KEY, said text); CREATE TABLE b.two (id int)"
    )
    try:
        yield Counting(opened)
    finally:
        await opened.execute("DROP SCHEMA b CASCADE")
        await opened.close()


async def rows(connection: Counting, table: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await connection.connection.fetch(f"SELECT * FROM b.{table} ORDER BY id")]


async def test_writes_to_different_tables_are_one_statement(connection: Counting) -> None:
    batch = Batch(connection, "b")
    await batch.later("INSERT INTO b.one (id, said) VALUES ($1, $2)", 1, "first")
    await batch.later("INSERT INTO b.two (id) SELECT * FROM unnest($1::int[])", [2, 3])
    assert not connection.sent
    await batch.send()
    assert len(connection.sent) == 1
    assert await rows(connection, "one") == [(1, "first")]
    assert await rows(connection, "two") == [(2,), (3,)]


async def test_nothing_waits_after_it_was_sent(connection: Counting) -> None:
    batch = Batch(connection, "b")
    await batch.later("INSERT INTO b.two (id) VALUES ($1)", 1)
    await batch.send()
    await batch.send()
    assert await rows(connection, "two") == [(1,)]


async def test_a_statement_sees_every_write_before_it(connection: Counting) -> None:
    batch = Batch(connection, "b")
    await batch.later("INSERT INTO b.one (id, said) VALUES ($1, $2)", 1, "first")
    await batch.later("UPDATE b.one SET said = said || $1 WHERE id = $2", "!", 1)
    assert await batch.fetchval("SELECT said FROM b.one WHERE id = $1", 1) == "first!"


async def test_a_statement_about_another_table_takes_the_writes_along(connection: Counting) -> None:
    batch = Batch(connection, "b")
    await batch.later("INSERT INTO b.one (id, said) VALUES ($1, $2)", 1, "first")
    assert await batch.fetch("SELECT id FROM b.two WHERE id > $1", 0) == []
    assert len(connection.sent) == 1
    assert await rows(connection, "one") == [(1, "first")]


async def test_a_statement_with_its_own_with_takes_them_along_too(connection: Counting) -> None:
    batch = Batch(connection, "b")
    await batch.later("INSERT INTO b.one (id, said) VALUES ($1, $2)", 1, "first")
    told = await batch.fetchval(
        "WITH made AS (INSERT INTO b.two VALUES ($1) RETURNING id) SELECT id + $2 FROM made", 5, 1
    )
    assert told == 6
    await batch.later("INSERT INTO b.one (id, said) VALUES ($1, $2)", 2, "second")
    counted = await batch.fetchval(
        "WITH RECURSIVE up AS (SELECT $1::int AS n UNION ALL SELECT n + 1 FROM up WHERE n < $2) "
        "SELECT count(*) FROM up",
        1,
        4,
    )
    assert counted == 4
    assert len(connection.sent) == 2
    assert await rows(connection, "one") == [(1, "first"), (2, "second")]


async def test_the_status_is_of_the_statement_itself(connection: Counting) -> None:
    batch = Batch(connection, "b")
    await batch.later("INSERT INTO b.two (id) SELECT * FROM unnest($1::int[])", [1, 2, 3])
    assert await batch.execute("UPDATE b.one SET said = '' WHERE id = $1", 1) == "UPDATE 0"


async def test_rows_are_locked_after_what_was_written(connection: Counting) -> None:
    batch = Batch(connection, "b")
    await batch.later("INSERT INTO b.two (id) VALUES ($1)", 1)
    await batch.fetch("SELECT 1 FROM b.one WHERE id = $1 FOR UPDATE", 1)
    assert [sql.split()[0] for sql in connection.sent] == ["INSERT", "SELECT"]


async def test_what_locks_other_rows_than_are_written_goes_with_them(connection: Counting) -> None:
    await connection.connection.execute("INSERT INTO b.one (id, said) VALUES (1, 'mine'), (2, 'next')")
    batch = Batch(connection, "b")
    end = "WITH other AS (SELECT id FROM b.one WHERE id > $1 FOR UPDATE) INSERT INTO b.two SELECT id FROM other"
    await batch.later("UPDATE b.one SET said = $1 WHERE id = $2", "ended", 1)
    await batch.execute(end, 1, apart=("one",))
    assert len(connection.sent) == 1
    await batch.later("INSERT INTO b.two (id) VALUES ($1)", 3)
    await batch.execute(end, 1, apart=("one",))
    assert len(connection.sent) == 3, "only that table's rows are others"
    assert await rows(connection, "one") == [(1, "ended"), (2, "next")]
    assert await rows(connection, "two") == [(2,), (2,), (3,)]


async def test_a_write_that_is_refused_says_why_wherever_it_was_sent(connection: Counting) -> None:
    def taken() -> AlreadyExists:
        return AlreadyExists("RESOURCE_EXISTS", "the id is taken", "thing", "1")

    await connection.connection.execute("INSERT INTO b.one (id, said) VALUES (1, '')")
    batch = Batch(connection, "b")
    insert = "INSERT INTO b.one (id, said) VALUES ($1, $2)"
    await batch.later(insert, 1, "again", refusals={"one_pkey": taken})
    with pytest.raises(AlreadyExists):
        await batch.fetch("SELECT 1 FROM b.two")
    await batch.later(insert, 1, "again")
    with pytest.raises(asyncpg.UniqueViolationError):
        await batch.send()
