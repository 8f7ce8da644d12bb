"""Units that end, in Postgres: out of the statistics, and out of every search.

BM25 counts what is current: a unit is in the statistics from when the indexer
counts it until it is superseded, expires or is removed. A unit is counted when
it is not `retired` and no outbox row of it waits to be counted. Locks are taken
in one order by everybody, the indexer too: units, outbox rows by id, terms by
name, totals.
"""

from collections.abc import Sequence

from janus_kit.postgres import Connection


class UnitStatements:
    """Units and their statistics, of one tenant's transaction."""

    _connection: Connection
    _last_outbox: int

    async def _tally(self, space_no: int, units: Sequence[int], sign: int) -> None:
        """Add units to the statistics (sign 1), or take them out (-1)."""
        if not units:
            return
        unused = await self._connection.fetch(
            """WITH changed AS (
                   INSERT INTO memory.lexicon AS l (space_no, term, units)
                   SELECT $1, split_part(lexeme, ':', 2), $3::bigint * count(*)
                   FROM memory.unit, unnest(tsvector_to_array(terms)) AS lexeme
                   WHERE space_no = $1 AND unit = ANY($2::bigint[])
                   GROUP BY 2 ORDER BY 2
                   ON CONFLICT (tenant, space_no, term) DO UPDATE SET units = l.units + excluded.units
                   RETURNING term, units
               )
               SELECT term FROM changed WHERE units <= 0""",
            space_no, list(units), sign,
        )  # fmt: skip
        # A turn's date is three terms, which are not in its bag.
        await self._connection.execute(
            """INSERT INTO memory.statistics AS s (space_no, units, tokens)
               SELECT $1, $3::bigint * count(*),
                      $3::bigint * coalesce(sum(octet_length(bag) / 4 + CASE kind WHEN 1 THEN 3 ELSE 0 END), 0)
               FROM memory.unit WHERE space_no = $1 AND unit = ANY($2::bigint[])
               ON CONFLICT (tenant, space_no) DO UPDATE
               SET units = s.units + excluded.units, tokens = s.tokens + excluded.tokens""",
            space_no, list(units), sign,
        )  # fmt: skip
        # A word that nobody says any more is not kept.
        if unused:
            await self._connection.execute(
                "DELETE FROM memory.lexicon WHERE space_no = $1 AND term = ANY($2::text[])",
                space_no, [row["term"] for row in unused],
            )  # fmt: skip

    async def _uncount(self, space_no: int, units: Sequence[int]) -> None:
        """Take units out of the statistics for good, also those that the indexer has not counted yet.

        The units must be held and not have been retired before.
        """
        if not units:
            return
        uncounted = await self._connection.fetch(
            """WITH held AS (
                   SELECT id FROM memory.outbox
                   WHERE space_no = $1 AND unit = ANY($2::bigint[]) AND NOT counted ORDER BY id FOR UPDATE
               )
               UPDATE memory.outbox o SET counted = true FROM held WHERE o.space_no = $1 AND o.id = held.id
               RETURNING o.unit""",
            space_no, list(units),
        )  # fmt: skip
        await self._tally(space_no, sorted({*units} - {row["unit"] for row in uncounted}), -1)

    async def _remove_units(self, space_no: int, units: Sequence[int]) -> None:
        """Take units out of every search; vector indexes learn it from the outbox."""
        rows = await self._connection.fetch(
            """SELECT unit, retired FROM memory.unit
               WHERE space_no = $1 AND unit = ANY($2::bigint[]) ORDER BY unit FOR UPDATE""",
            space_no, list(units),
        )  # fmt: skip
        await self._uncount(space_no, [row["unit"] for row in rows if not row["retired"]])
        await self._connection.execute(
            """WITH gone AS (
                   DELETE FROM memory.unit WHERE space_no = $1 AND unit = ANY($2::bigint[]) RETURNING unit
               )
               INSERT INTO memory.tombstone (space_no, unit) SELECT $1, unit FROM gone
               ON CONFLICT DO NOTHING""",
            space_no, list(units),
        )  # fmt: skip
        await self._enqueue_units(space_no, [row["unit"] for row in rows])

    async def _enqueue_units(self, space_no: int, units: Sequence[int]) -> None:
        """Let the indexer look at units again; their terms are not counted by that."""
        if units:
            self._last_outbox = await self._connection.fetchval(
                """WITH queued AS (
                       INSERT INTO memory.outbox (space_no, unit, counted)
                       SELECT $1, unit, true FROM unnest($2::bigint[]) AS unit ORDER BY unit RETURNING id
                   )
                   SELECT max(id) FROM queued""",
                space_no, list(units),
            )  # fmt: skip
