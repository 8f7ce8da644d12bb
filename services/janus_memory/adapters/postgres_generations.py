"""Generations of vectors, and what the one in building has yet to learn, in Postgres."""

from collections.abc import Mapping, Sequence
from typing import Any

from janus_kit.postgres import Connection
from janus_memory.generation import Extent, Generation, Phase, Target, Waiting
from janus_memory.model import Backend

_COLUMNS = (
    "generation, phase, backend, model, dimensions, operation_id, extract(epoch FROM now() - since)::float8 AS age_s"
)
# Held shared by who writes to the live generation and says that it did, and
# alone by who changes which one that is.
_LOCK = "hashtextextended('janus.memory.generation', $1)"


class GenerationStatements:
    """Implements generation.Rebuilding."""

    _connection: Connection

    async def begin_generation(self, space_no: int, target: Target, operation_id: str) -> Generation | None:
        row = await self._connection.fetchrow(
            f"""WITH next AS (
                    UPDATE memory.space SET last_generation = last_generation + 1
                    WHERE number = $1 AND NOT EXISTS (SELECT FROM memory.generation WHERE space_no = $1)
                    RETURNING last_generation
                )
                INSERT INTO memory.generation (space_no, generation, phase, backend, model, dimensions, operation_id)
                SELECT $1, last_generation, {int(Phase.BUILDING)}, $2, $3, $4, $5 FROM next
                ON CONFLICT DO NOTHING RETURNING {_COLUMNS}""",  # noqa: S608 - constants
            space_no, int(target.backend), target.model, target.dimensions, operation_id,
        )  # fmt: skip
        return _generation(row) if row else None

    async def generation(self, space_no: int) -> Generation | None:
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS} FROM memory.generation WHERE space_no = $1",  # noqa: S608 - constant columns
            space_no,
        )
        return _generation(row) if row else None

    async def extent(self, space_no: int) -> Extent:
        row = await self._connection.fetchrow(
            "SELECT coalesce(max(unit), 0) AS last, count(*) AS units FROM memory.unit WHERE space_no = $1", space_no
        )
        return Extent(row["last"], row["units"])

    async def queue_units(self, space_no: int, after: int, upto: int, limit: int) -> Extent:
        row = await self._connection.fetchrow(
            """WITH next AS (
                   INSERT INTO memory.rebuild (space_no, unit)
                   SELECT $1, unit FROM memory.unit WHERE space_no = $1 AND unit > $2 AND unit <= $3
                   ORDER BY unit LIMIT $4 RETURNING unit
               )
               SELECT coalesce(max(unit), 0) AS last, count(*) AS units FROM next""",
            space_no, after, upto, limit,
        )  # fmt: skip
        return Extent(row["last"], row["units"])

    async def queue_again(self, space_no: int, units: Sequence[int]) -> None:
        await self._connection.execute(
            "INSERT INTO memory.rebuild (space_no, unit) SELECT $1, unnest($2::bigint[])", space_no, list(units)
        )

    async def waiting_units(self, space_no: int, limit: int) -> list[Waiting]:
        rows = await self._connection.fetch(
            "SELECT id, unit FROM memory.rebuild WHERE space_no = $1 ORDER BY id LIMIT $2", space_no, limit
        )
        return [Waiting(row["id"], row["unit"]) for row in rows]

    async def queued(self, space_no: int, units: Sequence[int]) -> set[int]:
        rows = await self._connection.fetch(
            "SELECT DISTINCT unit FROM memory.rebuild WHERE space_no = $1 AND unit = ANY($2::bigint[])",
            space_no, list(units),
        )  # fmt: skip
        return {row["unit"] for row in rows}

    async def lease_waiting(self, space_no: int, ids: Sequence[int], lease_s: float) -> None:
        await self._connection.execute(
            """UPDATE memory.rebuild SET leased_until = now() + make_interval(secs => $3::double precision)
               WHERE space_no = $1 AND id = ANY($2::bigint[])""",
            space_no, list(ids), lease_s,
        )  # fmt: skip

    async def learnt(self, space_no: int, ids: Sequence[int]) -> None:
        await self._connection.execute(
            "DELETE FROM memory.rebuild WHERE space_no = $1 AND id = ANY($2::bigint[])", space_no, list(ids)
        )

    async def sample_units(self, space_no: int, count: int) -> list[int]:
        # Numbers by chance and the next unit after each, so that a large space is not sorted.
        rows = await self._connection.fetch(
            """WITH ends AS (
                   SELECT min(unit) AS first, max(unit) AS last FROM memory.unit WHERE space_no = $1
               )
               SELECT DISTINCT near.unit FROM ends, generate_series(1, $2::integer) AS n,
                   LATERAL (SELECT first + floor(random() * (last - first + 1) + 0 * n)::bigint AS place) AS chosen,
                   LATERAL (SELECT unit FROM memory.unit WHERE space_no = $1 AND unit >= place
                            ORDER BY unit LIMIT 1) AS near""",
            space_no, count,
        )  # fmt: skip
        return [row["unit"] for row in rows]

    async def live_generation(self, space_no: int) -> int | None:
        await self._connection.execute(f"SELECT pg_advisory_xact_lock_shared({_LOCK})", space_no)
        # A statement of its own: it has to see what was committed while the lock was waited for.
        number: int | None = await self._connection.fetchval(
            "SELECT generation FROM memory.space WHERE number = $1", space_no
        )
        return number

    async def indexing_before_switch(self, space_no: int) -> bool:
        # An indexer's lease is of 15 s; a switch is committed somewhat later than `since`.
        return bool(
            await self._connection.fetchval(
                f"""SELECT EXISTS (SELECT FROM memory.outbox o JOIN memory.generation g USING (tenant, space_no)
                                   WHERE o.space_no = $1 AND g.phase = {int(Phase.RETIRING)} AND o.lease IS NOT NULL
                                     AND o.leased_until BETWEEN now() AND g.since + interval '20 seconds')""",  # noqa: S608 - a constant
                space_no,
            )
        )

    async def hold_generations(self, space_no: int) -> None:
        await self._connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})", space_no)

    async def switch(self, space_no: int, refused: Mapping[int, str]) -> None:
        old = await self._connection.fetchrow(
            "SELECT generation, backend, model, dimensions FROM memory.space WHERE number = $1 FOR UPDATE", space_no
        )
        await self._connection.execute(
            f"""UPDATE memory.space s
                SET generation = g.generation, backend = g.backend, model = g.model, dimensions = g.dimensions,
                    version = s.version + 1
                FROM memory.generation g
                WHERE s.number = $1 AND g.space_no = $1 AND g.phase = {int(Phase.BUILDING)}""",  # noqa: S608 - a constant
            space_no,
        )
        # What the old generation could not take, the new one has or refuses for reasons of its own.
        await self._connection.execute(
            """DELETE FROM memory.outbox o USING memory.generation g
               WHERE o.space_no = $1 AND g.space_no = $1 AND o.dead_at < g.since AND o.counted""",
            space_no,
        )
        await self._connection.execute(
            """INSERT INTO memory.outbox (space_no, unit, counted, error, dead_at)
               SELECT $1, unit, true, left(error, 1000), now() FROM unnest($2::bigint[], $3::text[]) AS r (unit, error)
               WHERE unit IN (SELECT unit FROM memory.unit WHERE space_no = $1)""",
            space_no, list(refused), list(refused.values()),
        )  # fmt: skip
        await self._connection.execute(
            f"""UPDATE memory.generation
                SET generation = $2, backend = $3, model = $4, dimensions = $5, phase = {int(Phase.RETIRING)},
                    since = clock_timestamp()
                WHERE space_no = $1""",  # noqa: S608 - a constant
            space_no, old["generation"], old["backend"], old["model"], old["dimensions"],
        )  # fmt: skip

    async def drop_waiting(self, space_no: int, limit: int) -> int:
        status = await self._connection.execute(
            """DELETE FROM memory.rebuild WHERE space_no = $1 AND id = ANY(ARRAY(
                   SELECT id FROM memory.rebuild WHERE space_no = $1 ORDER BY id LIMIT $2))""",
            space_no, limit,
        )  # fmt: skip
        return int(status.split()[-1])

    async def end_generation(self, space_no: int, operation_id: str) -> None:
        await self._connection.execute(
            "DELETE FROM memory.generation WHERE space_no = $1 AND operation_id = $2", space_no, operation_id
        )


def _generation(row: Any) -> Generation:
    return Generation(
        number=row["generation"],
        phase=Phase(row["phase"]),
        backend=Backend(row["backend"]),
        model=row["model"],
        dimensions=row["dimensions"],
        operation_id=row["operation_id"],
        age_s=row["age_s"],
    )
