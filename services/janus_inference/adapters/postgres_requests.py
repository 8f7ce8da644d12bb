"""Claims of idempotent requests in Postgres, by the database's clock."""

from collections.abc import Sequence

from janus_inference.ports import AnsweredRequest, Claim, Request
from janus_kit.errors import Aborted
from janus_kit.postgres import Connection, Database

# Another owner's claim is taken when its lease has run out and the body is the
# same; whatever is older than 24 h is as if it had never been.
_CLAIM = """
INSERT INTO inference.request AS r (tenant, method, request_id, body, generation_id, lease_until)
VALUES ($1, $2, $3, $4, $5, clock_timestamp() + make_interval(secs => $6))
ON CONFLICT (tenant, method, request_id) DO UPDATE SET
    body = excluded.body, generation_id = excluded.generation_id, lease_until = excluded.lease_until,
    answer = NULL, created_at = clock_timestamp()
WHERE r.created_at < now() - interval '24 hours'
    OR (r.lease_until < clock_timestamp() AND r.body = excluded.body)
RETURNING true
"""
_FIND = (
    "SELECT body, generation_id, answer FROM inference.request WHERE tenant = $1 AND method = $2 AND request_id = $3"
)
_MATCH = """
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS c(tenant, method, request_id, generation_id)
WHERE r.tenant = c.tenant AND r.method = c.method AND r.request_id = c.request_id
    AND r.generation_id = c.generation_id AND r.lease_until IS NOT NULL
"""
_RENEW = f"""
UPDATE inference.request r SET lease_until = clock_timestamp() + make_interval(secs => $5)
{_MATCH} RETURNING r.tenant, r.method, r.request_id, r.generation_id
"""  # noqa: S608 - constants of this file
_RELEASE = f"DELETE FROM inference.request r {_MATCH.replace('FROM', 'USING', 1)}"  # noqa: S608 - likewise
_FORGET = """
DELETE FROM inference.request WHERE (tenant, method, request_id) IN (
    SELECT tenant, method, request_id FROM inference.request
    WHERE created_at < now() - interval '24 hours' LIMIT $1)
"""
_ANSWER = """
UPDATE inference.request r SET answer = a.answer, lease_until = NULL
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[])
    AS a(tenant, method, request_id, generation_id, answer)
WHERE r.tenant = a.tenant AND r.method = a.method AND r.request_id = a.request_id
    AND r.generation_id = a.generation_id AND r.lease_until IS NOT NULL
"""
_FORGET_AT_ONCE = 1000
_TRIES = 5


async def store_answers(connection: Connection, answers: Sequence[AnsweredRequest]) -> None:
    """Store answers of claims that are still held, within the caller's transaction."""
    requests = [answered.request for answered in answers]
    await connection.execute(
        _ANSWER,
        [request.caller.tenant for request in requests],
        [request.method for request in requests],
        [request.id for request in requests],
        [answered.generation_id for answered in answers],
        [answered.answer for answered in answers],
    )


class PostgresRequests:
    """``RequestStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, request: Request, generation_id: str, lease_s: float) -> Claim:
        key = (request.caller.tenant, request.method, request.id)
        async with self._database.tenant(request.caller.tenant) as connection:
            for _ in range(_TRIES):
                if await connection.fetchval(_CLAIM, *key, request.body, generation_id, lease_s):
                    return Claim(True, generation_id, request.body)
                found = await connection.fetchrow(_FIND, *key)
                # None: freed between the two statements.
                if found is not None:
                    return Claim(False, found["generation_id"], found["body"], found["answer"])
        text = "the request was given up again and again while it was being claimed"
        raise Aborted("REQUEST_IN_PROGRESS", text, retry_after=0.1)

    async def renew(self, claims: Sequence[tuple[Request, str]], lease_s: float) -> set[tuple[Request, str]]:
        async with self._database.worker() as connection:
            rows = await connection.fetch(_RENEW, *_columns(claims), lease_s)
        held = {tuple(row) for row in rows}
        return {
            (request, generation_id)
            for request, generation_id in claims
            if (request.caller.tenant, request.method, request.id, generation_id) in held
        }

    async def release(self, claims: Sequence[tuple[Request, str]]) -> None:
        async with self._database.worker() as connection:
            await connection.execute(_RELEASE, *_columns(claims))

    async def answer(self, answered: AnsweredRequest) -> None:
        async with self._database.worker() as connection:
            await store_answers(connection, [answered])

    async def forget_old(self) -> bool:
        async with self._database.worker() as connection:
            tag = await connection.execute(_FORGET, _FORGET_AT_ONCE)
        return int(tag.rpartition(" ")[2]) == _FORGET_AT_ONCE


def _columns(claims: Sequence[tuple[Request, str]]) -> tuple[list[str], ...]:
    return (
        [request.caller.tenant for request, _ in claims],
        [request.method for request, _ in claims],
        [request.id for request, _ in claims],
        [generation_id for _, generation_id in claims],
    )
