"""What a migration of memory does with the rows that it finds."""

from __future__ import annotations

import asyncpg
from tests.fakes.patience import patient_postgres

from janus_kit.migrations import find, migrate


async def test_vectors_survive_their_move_into_partitions(empty_url: str) -> None:
    await migrate(patient_postgres(empty_url), [])
    migrations = find("janus_memory")
    [place] = [number for number, each in enumerate(migrations) if each.name == "vectors"]
    connection = await asyncpg.connect(empty_url)
    try:
        for each in migrations[:place]:
            await connection.execute(each.sql)
        await connection.execute(
            """INSERT INTO memory.vector (tenant, space_no, generation, view, unit, version, kind, subject, agent,
                   thread, recorded_at, expires_at, dimensions, embedding)
               SELECT tenant, 1, generation, view, unit, 2, 2, 'bob', '', 'talk', '2024-01-01', '2025-01-01', 2,
                      -- Unit 1 is equal in both views, unit 2 is not, unit 3 has one only.
                      CASE WHEN unit = 2 THEN ARRAY[unit, view] ELSE ARRAY[unit, 7] END::vector
               FROM unnest(ARRAY['ann', 'eve']) AS tenant, generate_series(1, 2) AS generation,
                    generate_series(1, 2) AS view, generate_series(1, 3) AS unit
               WHERE unit < 3 OR view = 2"""
        )
        for each in migrations[place:]:
            await connection.execute(each.sql)
        rows = await connection.fetch(
            """SELECT unit, view, embedding::text AS embedding, count(*) AS copies,
                      bool_and(version = 2 AND subject = 'bob' AND thread = 'talk' AND NOT graph
                               AND recorded_at = '2024-01-01' AND expires_at = '2025-01-01') AS whole
               FROM memory.vector GROUP BY 1, 2, 3 ORDER BY 1, 2"""
        )
        kept = [(row["unit"], row["view"], row["embedding"]) for row in rows]
        assert kept == [(1, 0, "[1,7]"), (2, 1, "[2,1]"), (2, 2, "[2,2]"), (3, 2, "[3,7]")]
        # Two tenants with two generations each.
        assert all(row["copies"] == 4 and row["whole"] for row in rows)
    finally:
        await connection.close()
