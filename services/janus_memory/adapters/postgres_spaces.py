"""Spaces and stored answers in Postgres."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from janus_kit.postgres import Connection
from janus_memory.model import Backend, Space, SpaceDraft, Weights
from janus_memory.ports import StoredAnswer

SPACE_COLUMNS = (
    "name, number, incarnation, backend, model, dimensions, weights, description, version, created_at, generation,"
    " retention"
)


class SpaceStatements:
    """Spaces, and answers by request id, of one tenant's transaction."""

    _connection: Connection

    async def claim_request(
        self, method: str, request_id: str, body: bytes, subjects: Sequence[str] = ()
    ) -> StoredAnswer | None:
        # A twin that is at work holds the row: this waits until it ends, and then
        # finds its answer, or takes the id if it failed.
        taken = await self._connection.fetchval(
            """INSERT INTO memory.request AS r (method, id, body, subjects) VALUES ($1, $2, $3, $4)
               ON CONFLICT (tenant, method, id) DO UPDATE
               SET body = excluded.body, answer = '{}', subjects = excluded.subjects, created_at = now()
               WHERE r.created_at < now() - interval '24 hours' RETURNING true""",
            method, request_id, body, list(subjects),
        )  # fmt: skip
        if taken:
            return None
        row = await self._connection.fetchrow(
            "SELECT body, answer FROM memory.request WHERE method = $1 AND id = $2", method, request_id
        )
        return StoredAnswer(row["body"], json.loads(row["answer"]))

    async def answered_request(self, method: str, request_id: str) -> StoredAnswer | None:
        row = await self._connection.fetchrow(
            """SELECT body, answer FROM memory.request
               WHERE method = $1 AND id = $2 AND created_at >= now() - interval '24 hours'""",
            method, request_id,
        )  # fmt: skip
        return StoredAnswer(row["body"], json.loads(row["answer"])) if row else None

    async def answer_request(self, method: str, request_id: str, answer: Mapping[str, Any]) -> None:
        await self._connection.execute(
            "UPDATE memory.request SET answer = $3::jsonb WHERE method = $1 AND id = $2",
            method, request_id, json.dumps(answer),
        )  # fmt: skip

    async def space(self, name: str) -> Space | None:
        row = await self._connection.fetchrow(
            f"SELECT {SPACE_COLUMNS} FROM memory.space WHERE name = $1",  # noqa: S608 - constant columns
            name,
        )
        return space_of(row) if row else None

    async def space_numbered(self, number: int) -> Space | None:
        row = await self._connection.fetchrow(
            f"SELECT {SPACE_COLUMNS} FROM memory.space WHERE number = $1",  # noqa: S608 - constant columns
            number,
        )
        return space_of(row) if row else None

    async def lock_space(self, name: str) -> Space | None:
        row = await self._connection.fetchrow(
            f"SELECT {SPACE_COLUMNS} FROM memory.space WHERE name = $1 FOR UPDATE",  # noqa: S608 - constant columns
            name,
        )
        return space_of(row) if row else None

    async def add_space(self, draft: SpaceDraft) -> Space:
        assert draft.backend is not None
        row = await self._connection.fetchrow(
            f"""INSERT INTO memory.space AS s (name, backend, model, dimensions, weights, description, retention)
                VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7)
                ON CONFLICT (tenant, name) DO UPDATE SET name = excluded.name
                RETURNING {SPACE_COLUMNS}""",  # noqa: S608 - constant columns
            draft.name, int(draft.backend), draft.model, draft.dimensions, _weights_json(draft.weights),
            draft.description, draft.retention,
        )  # fmt: skip
        return space_of(row)

    async def change_space(self, draft: SpaceDraft) -> Space:
        row = await self._connection.fetchrow(
            f"""UPDATE memory.space SET weights = $2::jsonb, description = $3, retention = $4, version = version + 1
                WHERE name = $1 RETURNING {SPACE_COLUMNS}""",  # noqa: S608 - constant columns
            draft.name, _weights_json(draft.weights), draft.description, draft.retention,
        )  # fmt: skip
        return space_of(row)

    async def spaces(self, after: str, limit: int) -> list[Space]:
        rows = await self._connection.fetch(
            f"""SELECT {SPACE_COLUMNS} FROM memory.space WHERE name COLLATE "C" > $1
                ORDER BY name COLLATE "C" LIMIT $2""",  # noqa: S608 - constant columns
            after, limit,
        )  # fmt: skip
        return [space_of(row) for row in rows]

    async def backlog(self, space_no: int) -> int:
        waiting = await self._connection.fetchval(
            "SELECT count(DISTINCT unit) FROM memory.outbox WHERE space_no = $1", space_no
        )
        return int(waiting)


def _weights_json(weights: Weights) -> str:
    values = {name: getattr(weights, name) for name in Weights.__slots__}
    return json.dumps({name: value for name, value in values.items() if value is not None})


def space_of(row: Any) -> Space:
    """A row of SPACE_COLUMNS as a space."""
    return Space(
        name=row["name"],
        number=row["number"],
        incarnation=row["incarnation"].hex,
        backend=Backend(row["backend"]),
        model=row["model"],
        dimensions=row["dimensions"],
        weights=Weights(**json.loads(row["weights"])),
        description=row["description"],
        version=row["version"],
        created_at=row["created_at"],
        generation=row["generation"],
        retention=row["retention"],
    )
