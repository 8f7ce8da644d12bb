"""What recall ranks, as it comes from Postgres: column by column what the rows hold."""

from datetime import UTC, datetime

import asyncpg
import numpy as np
from tests.fakes.memory_service import Memory

from janus_kit.postgres import Database
from janus_memory.adapters.postgres_records import PostgresTransaction
from janus_memory.model import HardFilter, Scope
from janus_memory.text import bag, lexeme

NOW = datetime(2024, 1, 1, tzinfo=UTC)
EVERYTHING = HardFilter(Scope("default"), (), NOW, None, NOW)
# The first and the last moment of the driver are infinite to Postgres; one before the day that it counts from.
TIMES = [
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1999, 12, 31, 23, 59, 59, 999_999, UTC),
    datetime.max.replace(tzinfo=UTC),
]
BAGS = [b"", bag(["heron"]), bag(["heron", "nest", "heron"])]


async def test_columns_are_what_the_rows_hold(memory: Memory, db: Database, owner: asyncpg.Connection) -> None:
    tenant, space_no = memory.caller().tenant, 2**40
    rows = [
        (1 + place, kind, thread, 2**40 * place, 7 * place, speaker, when, 0.1 * place, BAGS[place])
        for place, (kind, thread, speaker, when) in enumerate(
            zip((1, 3, 1), ("a", "", "\u00e9,\\{"), ("Ann", "", "\x01\u2603"), TIMES, strict=True)
        )
    ]
    units = [
        await owner.fetchval(
            """INSERT INTO memory.unit (tenant, space_no, kind, record_id, version, subject, agent, thread, position,
                   session, speaker, occurred_at, importance, terms, bag)
               VALUES ($1, $2, $3, 'r' || $4::text, 1, '', '', $5, $6, $7, $8, $9, $10, array_to_tsvector($11), $12)
               RETURNING unit""",
            tenant, space_no, kind, str(number), thread, position, session, speaker, when, importance,
            [lexeme(space_no, "heron")], terms,
        )
        for number, kind, thread, position, session, speaker, when, importance, terms in rows
    ]  # fmt: skip
    async with db.tenant(tenant) as connection:
        tx = PostgresTransaction(connection)
        matched = await tx.matching(space_no, {"heron": 1.0, "it's": 0.5}, EVERYTHING, 10)
        found = await tx.candidates(space_no, units, EVERYTHING)
        around = await tx.around(space_no, [("a", -3, 3)], EVERYTHING)
        assert len(await tx.candidates(space_no, [units[0] - 1], EVERYTHING)) == 0
        assert len(await tx.matching(space_no, {"nobody": 1.0}, EVERYTHING, 10)) == 0
    _, kinds, threads, positions, sessions, speakers, times, importance, bags = zip(*rows, strict=True)
    assert found.units.tolist() == units
    assert matched.units.tolist() == units[::-1]
    assert around.units.tolist() == units[:1]
    assert found.turns.tolist() == [kind == 1 for kind in kinds]
    assert (found.threads, found.speakers) == (list(threads), list(speakers))
    assert (found.positions.tolist(), found.numbers.tolist()) == (list(positions), list(sessions))
    assert found.occurred_at.tolist() == [when.replace(tzinfo=None) for when in times]
    assert found.importance.tolist() == list(importance)
    assert found.lengths.tolist() == [0, 1, 3]
    assert found.hashes.tobytes() == b"".join(bags)
    assert np.array_equal(matched.only(np.isin(matched.units, units[1:2])).hashes, found.hashes[:1])


async def test_words_are_words_to_postgres_whatever_is_in_them(
    memory: Memory, db: Database, owner: asyncpg.Connection
) -> None:
    tenant, space_no = memory.caller().tenant, 2**40 + 1
    words = [
        "it's",
        "'",
        "\\",
        "\\'",
        "' | 'x",
        "!a",
        "a & b",
        "x:*",
        "x:A",
        "<->",
        "(",
        "$1",
        "\u2603",
        "\u65e5\u672c",
    ]
    units = {
        word: await owner.fetchval(
            """INSERT INTO memory.unit (tenant, space_no, kind, record_id, version, subject, agent, thread, position,
                   session, speaker, occurred_at, importance, terms, bag)
               VALUES ($1, $2, 2, $3, 1, '', '', '', 0, 0, '', now(), 0.1, array_to_tsvector($4), '') RETURNING unit""",
            tenant, space_no, word, [lexeme(space_no, word)],
        )
        for word in words
    }  # fmt: skip
    notices: list[object] = []

    def note(_: object, message: object) -> None:
        notices.append(message)

    async with db.tenant(tenant) as connection:
        connection.add_log_listener(note)
        tx = PostgresTransaction(connection)
        for word, unit in units.items():
            found = await tx.matching(space_no, {word: 1.0}, EVERYTHING, 10)
            assert found.units.tolist() == [unit]
        # By their weights, which no word takes from another.
        weights = {word: float(place) for place, word in enumerate(words)}
        for count in range(1, len(words) + 1):
            some = dict(list(weights.items())[:count])
            found = await tx.matching(space_no, some, EVERYTHING, 64)
            assert found.units.tolist() == [units[word] for word in reversed(some)]
        many = {f"w{place}": 0.1 for place in range(63)} | {words[0]: 1.0}
        assert (await tx.matching(space_no, many, EVERYTHING, 64)).units.tolist() == [units[words[0]]]
        connection.remove_log_listener(note)
    assert notices == []
