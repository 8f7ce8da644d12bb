"""Usage records in Postgres: many tenants' in one statement and one commit, and reports on one tenant's."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from janus_inference.adapters.postgres_requests import store_answers
from janus_inference.events import Cost, Usage
from janus_inference.ports import AnsweredRequest, UsageRecord
from janus_inference.usage_report import Group, UsageBucket, UsageSlice
from janus_kit.errors import Unavailable
from janus_kit.postgres import Connection, Database

_COLUMNS = {
    "tenant": "text",
    "generation_id": "text",
    "attempt": "integer",
    "subject": "text",
    "operation": "text",
    "provider": "text",
    "model": "text",
    "labels": "jsonb",
    "started_at": "timestamptz",
    "duration_s": "double precision",
    "outcome": "text",
    "input_uncached_tokens": "bigint",
    "cache_read_tokens": "bigint",
    "cache_write_tokens": "bigint",
    "output_tokens": "bigint",
    "reasoning_tokens": "bigint",
    "estimated": "boolean",
    "cost_micro_usd": "bigint",
    "price_version": "text",
}
_INSERT = f"INSERT INTO inference.usage ({', '.join(_COLUMNS)})"
# Times go as texts: the driver takes the first and the last that there are for infinities.
_SENT_AS = {"timestamptz": "text[]::timestamptz"}
_ARRAYS = ", ".join(f"${place}::{_SENT_AS.get(kind, kind)}[]" for place, kind in enumerate(_COLUMNS.values(), 1))
# `ON CONFLICT` without a target: the worker may add rows, and read none.
_WRITE = f"{_INSERT} SELECT * FROM unnest({_ARRAYS}) ON CONFLICT DO NOTHING"  # noqa: S608 - constants
_LEAVE = """
INSERT INTO inference.last_will (owner, records, expires_at)
VALUES ($1, $2::jsonb, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (owner) DO UPDATE SET records = excluded.records, expires_at = excluded.expires_at
"""
_CARRY_OUT = f"""
WITH gone AS (DELETE FROM inference.last_will WHERE expires_at < clock_timestamp() RETURNING owner, records),
recorded AS (
    {_INSERT} SELECT r.* FROM gone, jsonb_to_recordset(gone.records)
        AS r({", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())})
    ON CONFLICT DO NOTHING)
SELECT owner, jsonb_array_length(records) AS calls FROM gone
"""  # noqa: S608 - constants
# Groups are compared by their bytes, so that every page continues in the same order. `date_bin` counts days of 24 h.
# Times are texts here as well.
_SUMS = """
SELECT bucket, model, provider, label_value, subject, count(*) AS calls,
    sum(input_uncached_tokens)::bigint AS input_uncached_tokens,
    sum(cache_read_tokens)::bigint AS cache_read_tokens,
    sum(cache_write_tokens)::bigint AS cache_write_tokens,
    sum(output_tokens)::bigint AS output_tokens,
    sum(reasoning_tokens)::bigint AS reasoning_tokens,
    bool_or(estimated) AS estimated,
    coalesce(sum(cost_micro_usd), 0)::bigint AS cost_micro_usd,
    string_agg(DISTINCT price_version, ',' ORDER BY price_version) AS price_version,
    count(*) FILTER (WHERE cost_micro_usd IS NULL) AS unpriced_calls
FROM (
    SELECT CASE WHEN $3::interval IS NULL THEN $1::text::timestamptz
            ELSE date_bin($3, started_at, $1::text::timestamptz) END AS bucket,
        (CASE WHEN 'model' = ANY($4::text[]) THEN model ELSE '' END) COLLATE "C" AS model,
        (CASE WHEN 'provider' = ANY($4) THEN provider ELSE '' END) COLLATE "C" AS provider,
        (CASE WHEN 'label' = ANY($4) THEN coalesce(labels ->> $5, '') ELSE '' END) COLLATE "C" AS label_value,
        (CASE WHEN 'subject' = ANY($4) THEN subject ELSE '' END) COLLATE "C" AS subject,
        input_uncached_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, estimated,
        cost_micro_usd, price_version
    FROM inference.usage
    WHERE tenant = current_setting('janus.tenant') AND started_at >= coalesce($6, $1)::timestamptz
        AND started_at < $2::text::timestamptz
) AS u
WHERE $6::text IS NULL
    OR (bucket, model, provider, label_value, subject) > ($6::text::timestamptz, $7, $8, $9, $10)
GROUP BY bucket, model, provider, label_value, subject
ORDER BY bucket, model, provider, label_value, subject
LIMIT $11
"""


class PostgresUsage:
    """``UsageStore``, ``WillStore`` and ``UsageReader``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, batch: Sequence[tuple[UsageRecord, AnsweredRequest | None]]) -> None:
        columns = list(zip(*(_row(record) for record, _ in batch), strict=True))
        answers = [answered for _, answered in batch if answered is not None]
        try:
            if not answers:
                await self._database.worker_statement(_WRITE, *columns)
                return
            async with self._database.worker() as connection:
                await store_answers(connection, answers)
                await connection.execute(_WRITE, *columns)
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            raise ValueError(f"{type(error).__name__} {error.sqlstate}") from error
        except asyncpg.PostgresError as error:
            # A schema that is yet to be made, a right that is yet to be given.
            raise Unavailable("postgres", "postgres is not ready for usage records") from error

    async def leave(self, owner: str, records: Sequence[UsageRecord], lease_s: float) -> None:
        rows = [{**dict(zip(_COLUMNS, _row(each), strict=True)), "labels": dict(each.labels)} for each in records]
        will = json.dumps(rows)
        async with self._wills() as connection:
            await connection.execute(_LEAVE, owner, will, lease_s)

    async def withdraw(self, owner: str) -> None:
        async with self._wills() as connection:
            await connection.execute("DELETE FROM inference.last_will WHERE owner = $1", owner)

    async def carry_out(self) -> Sequence[tuple[str, int]]:
        async with self._wills() as connection:
            return [(row["owner"], row["calls"]) for row in await connection.fetch(_CARRY_OUT)]

    @asynccontextmanager
    async def _wills(self) -> AsyncIterator[Connection]:
        """Not the line of records, which calls wait for."""
        try:
            async with self._database.worker() as connection:
                yield connection
        except asyncpg.PostgresError as error:
            raise Unavailable("postgres", "postgres is not ready for last wills") from error

    async def sums(self, tenant: str, wanted: UsageSlice) -> list[UsageBucket]:
        last, group = wanted.after or (None, Group())
        async with self._database.tenant(tenant) as connection:
            rows = await connection.fetch(
                _SUMS,
                wanted.start.isoformat(),
                wanted.end.isoformat(),
                wanted.bucket,
                [dimension.value for dimension in wanted.group_by],
                wanted.label_key,
                None if last is None else last.isoformat(),
                group.model,
                group.provider,
                group.label_value,
                group.subject,
                wanted.limit,
            )
        return [_bucket(row, wanted) for row in rows]


def _bucket(row: Any, wanted: UsageSlice) -> UsageBucket:
    priced = not row["unpriced_calls"]
    start = row["bucket"]
    return UsageBucket(
        start=start,
        # Not `start + bucket` first: that may lie beyond the last day there is.
        end=wanted.end if wanted.bucket is None or wanted.end - start < wanted.bucket else start + wanted.bucket,
        group=Group(row["model"], row["provider"], row["label_value"], row["subject"]),
        calls=row["calls"],
        usage=Usage(
            input_uncached_tokens=row["input_uncached_tokens"],
            cache_read_tokens=row["cache_read_tokens"],
            cache_write_tokens=row["cache_write_tokens"],
            output_tokens=row["output_tokens"],
            reasoning_tokens=row["reasoning_tokens"],
            estimated=row["estimated"],
        ),
        cost=Cost(row["cost_micro_usd"], row["price_version"]) if priced else None,
        unpriced_calls=row["unpriced_calls"],
    )


def _row(record: UsageRecord) -> tuple[Any, ...]:
    """Its values, in the order of the columns."""
    usage, cost = record.usage, record.cost
    return (
        record.caller.tenant,
        record.generation_id,
        record.attempt,
        record.caller.subject,
        record.operation,
        record.provider,
        record.model,
        json.dumps(dict(record.labels)),
        record.started_at.isoformat(),
        max(0.0, record.duration_s),
        record.outcome,
        usage.input_uncached_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        usage.estimated,
        cost.micro_usd if cost is not None else None,
        cost.price_version if cost is not None else None,
    )
