"""Usage records for tests, and the schema that takes them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
from pydantic import SecretStr

from janus_inference.events import Cost, Usage
from janus_inference.ledger import Ledger
from janus_inference.model import Caller
from janus_inference.ports import UsageRecord, UsageStore
from janus_kit.migrations import migrate
from janus_kit.settings import PostgresSettings

_numbers = itertools.count(1)
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


async def migrated(url: str, **options: Any) -> PostgresSettings:
    """Settings of a database that has the schema of inference."""
    settings = PostgresSettings(url=SecretStr(url), **options)
    await migrate(settings, ["janus_inference"])
    return settings


def record(
    tenant: str = "acme",
    *,
    subject: str = "alice",
    generation_id: str = "",
    attempt: int = 1,
    provider: str = "openai",
    model: str = "gpt-4o",
    labels: Mapping[str, str] | None = None,
    at: datetime = NOON,
    usage: Usage | None = None,
    cost: Cost | None = None,
) -> UsageRecord:
    """A record of an attempt of its own, unless `generation_id` says whose it is."""
    return UsageRecord(
        caller=Caller(tenant, subject),
        generation_id=generation_id or f"gen_{next(_numbers)}",
        attempt=attempt,
        operation="chat",
        provider=provider,
        model=model,
        labels=labels or {},
        started_at=at,
        duration_s=0.25,
        outcome="ok",
        usage=usage or Usage(100, 20, 3, 50, 7),
        cost=cost,
    )


async def rows(url: str, query: str, *arguments: object) -> list[asyncpg.Record]:
    """What a superuser finds, whatever the tenant."""
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(query, *arguments))
    finally:
        await connection.close()


@asynccontextmanager
async def keeping(store: UsageStore, *, wait_s: float = 30.0, **options: Any) -> AsyncIterator[Ledger]:
    """A ledger at work."""
    ledger = Ledger(store, wait_s=wait_s, **options)
    async with at_work(ledger.run):
        yield ledger


@asynccontextmanager
async def at_work(run: Callable[[], Any]) -> AsyncIterator[None]:
    """A background task for the time of the block; what it raises is raised."""
    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Return when it holds; the test's own time-out is the limit."""
    while not (await answer if isinstance(answer := holds(), Awaitable) else answer):  # noqa: ASYNC110 - other tasks act
        await asyncio.sleep(0.01)
