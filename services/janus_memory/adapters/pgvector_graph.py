"""The graphs of pgvector: which spaces need one, and their rows' way into it."""

from janus_kit.postgres import Connection, Database
from janus_memory.adapters.pgvector_index import GRAPH_DIMENSIONS
from janus_memory.model import Backend

SCANNED = 20_000
"""Records of a space up to which a scan is as fast as a graph, and never wrong."""
_BATCH = 100
"""Rows of one statement: about a second of work at most dimensions."""


class PgvectorGraph:
    """Implements ports.Graphs. Spaces of up to ``scanned`` records stay without a graph."""

    def __init__(self, database: Database, scanned: int = SCANNED) -> None:
        self._database = database
        self._scanned = scanned

    async def outgrown(self) -> list[tuple[str, int]]:
        async with self._database.worker() as connection:
            rows = await connection.fetch(
                "SELECT tenant, space_no FROM memory.statistics WHERE units > $1 ORDER BY units", self._scanned
            )
        return [(row["tenant"], row["space_no"]) for row in rows]

    async def admit(self, tenant: str, space_no: int) -> int:
        async with self._database.tenant(tenant) as connection:
            alone = await connection.fetchval(
                "SELECT pg_try_advisory_xact_lock(hashtextextended('janus.memory.graph', $1))", space_no
            )
            generation = await self._generation(connection, tenant, space_no) if alone else 0
            if not generation:
                return 0
            status = await connection.execute(
                """UPDATE memory.vector v SET graph = true
                   FROM (SELECT view, unit FROM memory.vector
                         WHERE tenant = $1 AND space_no = $2 AND generation = $3 AND NOT graph
                         ORDER BY view, unit LIMIT $4) AS next
                   WHERE v.tenant = $1 AND v.space_no = $2 AND v.generation = $3
                     AND v.view = next.view AND v.unit = next.unit""",
                tenant, space_no, generation, _BATCH,
            )  # fmt: skip
        return int(status.split()[-1])

    async def _generation(self, connection: Connection, tenant: str, space_no: int) -> int:
        """The generation of a space that goes into the graph, which is decided here; 0: none does."""
        space = await connection.fetchrow(
            """SELECT generation, graphed FROM memory.space
               WHERE number = $1 AND backend = $2 AND dimensions = ANY($3::integer[])""",
            space_no, int(Backend.PGVECTOR), list(GRAPH_DIMENSIONS),
        )  # fmt: skip
        if space is None:
            return 0
        if space["graphed"] != space["generation"]:
            units = await connection.fetchval(
                """SELECT count(DISTINCT unit) FROM memory.vector
                   WHERE tenant = $1 AND space_no = $2 AND generation = $3""",
                tenant, space_no, space["generation"],
            )  # fmt: skip
            if units <= self._scanned:
                return 0
            await connection.execute("UPDATE memory.space SET graphed = generation WHERE number = $1", space_no)
        return int(space["generation"])
