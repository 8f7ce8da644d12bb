"""Comparisons of the records with what is derived from them, in Postgres."""

from collections.abc import Sequence
from typing import Any

from janus_kit.postgres import Connection
from janus_memory.adapters.postgres_erasure import ErasureStatements
from janus_memory.adapters.sql import INDEXED_COLUMNS, TURN_COLUMNS, indexed_of, turn_of
from janus_memory.model import Space, Turn
from janus_memory.reconciliation import Entry, Expected

# One pass over a large space's units takes longer than a call may.
_LONG_S = 600

_EXPECTED = f"""SELECT {INDEXED_COLUMNS}, version, EXISTS (
        SELECT FROM memory.outbox o WHERE o.space_no = u.space_no AND o.unit = u.unit) AS waiting
    FROM memory.unit u
    WHERE u.space_no = $1 AND NOT EXISTS (
        SELECT FROM memory.tombstone d WHERE d.space_no = u.space_no AND d.unit = u.unit)"""  # noqa: S608 - constant columns

# What the statistics should be less what they are. A unit is counted unless it is
# retired, or its outbox row says that it is yet to be.
_COUNTED = """counted AS (
    SELECT u.kind, u.terms, u.bag FROM memory.unit u
    WHERE u.space_no = $1 AND NOT u.retired AND NOT EXISTS (
        SELECT FROM memory.outbox o WHERE o.space_no = $1 AND o.unit = u.unit AND NOT o.counted)
)"""
_WRONG_TERMS = f"""WITH {_COUNTED}, should AS (
    SELECT split_part(lexeme, ':', 2) AS term, count(*) AS units
    FROM counted, unnest(tsvector_to_array(terms)) AS lexeme GROUP BY 1
), has AS (
    SELECT term, units FROM memory.lexicon WHERE space_no = $1
), wrong AS (
    SELECT term, coalesce(should.units, 0) - coalesce(has.units, 0) AS units FROM should FULL JOIN has USING (term)
    WHERE should.units IS DISTINCT FROM has.units
)"""  # noqa: S608 - constants
_WRONG_TOTALS = f"""WITH {_COUNTED}, should AS (
    SELECT count(*) AS units,
           coalesce(sum(octet_length(bag) / 4 + CASE kind WHEN 1 THEN 3 ELSE 0 END), 0) AS tokens FROM counted
), has AS (
    SELECT coalesce(sum(units), 0) AS units, coalesce(sum(tokens), 0) AS tokens
    FROM memory.statistics WHERE space_no = $1
), wrong AS (
    SELECT should.units - has.units AS units, should.tokens - has.tokens AS tokens FROM should, has
    WHERE (should.units, should.tokens) IS DISTINCT FROM (has.units, has.tokens)
)"""  # noqa: S608 - constants


class ReconciliationStatements(ErasureStatements):
    """Implements reconciliation.Reconciling."""

    _connection: Connection

    async def expected(self, space_no: int, after: int, limit: int) -> list[Expected]:
        rows = await self._connection.fetch(
            f"{_EXPECTED} AND u.unit > $2 ORDER BY u.unit LIMIT $3",
            space_no, after, limit,
        )  # fmt: skip
        return [_expected(row) for row in rows]

    async def expected_of(self, space_no: int, units: Sequence[int]) -> list[Expected]:
        rows = await self._connection.fetch(
            f"{_EXPECTED} AND u.unit = ANY($2::bigint[])",
            space_no, list(units),
        )  # fmt: skip
        return [_expected(row) for row in rows]

    async def unknown(self, space_no: int, units: Sequence[int]) -> list[int]:
        rows = await self._connection.fetch(
            """SELECT unit FROM unnest($2::bigint[]) AS unit
               WHERE NOT EXISTS (SELECT FROM memory.unit u WHERE u.space_no = $1 AND u.unit = unit.unit AND NOT EXISTS (
                         SELECT FROM memory.tombstone d WHERE d.space_no = $1 AND d.unit = unit.unit))
                 AND NOT EXISTS (SELECT FROM memory.outbox o WHERE o.space_no = $1 AND o.unit = unit.unit)
                 AND unit.unit::text NOT IN (SELECT ref FROM memory.erasing WHERE space_no = $1 AND kind = 1)""",
            space_no, list(units),
        )  # fmt: skip
        return [row["unit"] for row in rows]

    async def wrong_terms(self, space_no: int) -> int:
        await self._allow_long()
        wrong = 0
        for found in (_WRONG_TERMS, _WRONG_TOTALS):
            wrong += await self._connection.fetchval(
                f"{found} SELECT count(*) FROM wrong",  # noqa: S608 - constants
                space_no, timeout=_LONG_S,
            )  # fmt: skip
        return wrong

    async def correct_terms(self, space_no: int) -> None:
        # Differences are added, and not values set, so what the indexer adds meanwhile
        # stays; and by one at a time, so that no difference is added twice.
        await self._allow_long()
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('janus.memory.statistics', $1))", space_no
        )
        rows = await self._connection.fetch(
            f"""{_WRONG_TERMS} INSERT INTO memory.lexicon AS l (space_no, term, units)
                SELECT $1, term, units FROM wrong ORDER BY term
                ON CONFLICT (tenant, space_no, term) DO UPDATE SET units = l.units + excluded.units
                RETURNING term, units""",  # noqa: S608 - constants
            space_no, timeout=_LONG_S,
        )  # fmt: skip
        await self._connection.execute(
            "DELETE FROM memory.lexicon WHERE space_no = $1 AND term = ANY($2::text[]) AND units <= 0",
            space_no, [row["term"] for row in rows if row["units"] <= 0],
        )  # fmt: skip
        await self._connection.execute(
            f"""{_WRONG_TOTALS} INSERT INTO memory.statistics AS s (space_no, units, tokens)
                SELECT $1, units, tokens FROM wrong
                ON CONFLICT (tenant, space_no) DO UPDATE
                SET units = s.units + excluded.units, tokens = s.tokens + excluded.tokens""",  # noqa: S608 - constants
            space_no, timeout=_LONG_S,
        )  # fmt: skip

    async def dead_tasks(self, space_no: int) -> int:
        return int(
            await self._connection.fetchval(
                "SELECT count(*) FROM memory.outbox WHERE space_no = $1 AND dead_at IS NOT NULL", space_no
            )
        )

    async def some_threads(self, space_no: int, limit: int) -> list[tuple[str, str]]:
        rows = await self._connection.fetch(
            "SELECT id, incarnation FROM memory.thread WHERE space_no = $1 ORDER BY random() LIMIT $2", space_no, limit
        )
        return [(row["id"], row["incarnation"].hex) for row in rows]

    async def turns_at(self, space: Space, thread: str, positions: Sequence[int]) -> list[Turn]:
        rows = await self._connection.fetch(
            f"""SELECT {TURN_COLUMNS} FROM memory.turn t
                WHERE t.space_no = $1 AND t.thread = $2 AND t.position = ANY($3::bigint[]) ORDER BY t.position""",  # noqa: S608 - constant columns
            space.number, thread, list(positions),
        )  # fmt: skip
        return [turn_of(row, space.name) for row in rows]

    async def begin_reconciling(self, space_no: int, every_s: float) -> bool:
        status = await self._connection.execute(
            """UPDATE memory.space SET reconciled_at = now()
               WHERE number = $1 AND reconciled_at <= now() - make_interval(secs => $2::double precision)""",
            space_no, every_s,
        )  # fmt: skip
        return bool(status != "UPDATE 0")

    async def _allow_long(self) -> None:
        await self._connection.execute(f"SET LOCAL statement_timeout = '{_LONG_S}s'")


def _expected(row: Any) -> Expected:
    return Expected(Entry(indexed_of(row), row["version"]), row["waiting"])
