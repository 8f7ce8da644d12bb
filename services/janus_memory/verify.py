"""Compare the stores and repair them: ``python -m janus_memory.verify [--tenant T [--space S]] [--no-repair]``.

Reads the same settings as the service and may run beside it. Prints a row a
space; the exit code is 1 when anything was wrong before the repair, or a store
could not be looked at, and 2 when it could not be done at all.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from janus_kit.configuration import SettingsError, load
from janus_kit.errors import JanusError
from janus_kit.postgres import database
from janus_kit.redis import redis as redis_client
from janus_kit.settings import PostgresSettings, RedisSettings, Settings
from janus_memory.adapters.chroma_index import ChromaIndex
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.adapters.redis_windows import RedisWindows
from janus_memory.model import Backend
from janus_memory.ports import VectorIndex
from janus_memory.reconcile import Reconcile
from janus_memory.reconciliation import Findings
from janus_memory.settings import MemorySettings

COLUMNS = (
    "tenant", "space", "backend", "units", "missing", "stale", "surplus", "terms", "windows", "dead", "away",
)  # fmt: skip
"""Of the table; each but the last is a field of Findings."""

_SECTIONS: dict[str, type[Settings]] = {
    "postgres": PostgresSettings,
    "redis": RedisSettings,
    "memory": MemorySettings,
}
_ELSEWHERE = ("server", "telemetry", "inference", "orchestration", "edge")


async def verify(
    settings: MemorySettings,
    *,
    postgres: PostgresSettings,
    redis: RedisSettings,
    tenant: str = "",
    space: str = "",
    repair: bool = True,
) -> AsyncIterator[Findings]:
    """What was wrong in each space, as it is found: in one, in all of a tenant, or in all.

    Raises NotFound for a space that is not there, and Unavailable("postgres").
    """
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(database(postgres, application="janus-memory-verify"))
        client = await stack.enter_async_context(redis_client(redis, application="janus-memory-verify"))
        windows = RedisWindows(client, length=settings.window_turns, ttl_s=settings.window_ttl_s)
        records = PostgresRecords(pool)
        indexes: dict[int, VectorIndex] = {Backend.PGVECTOR: PgvectorIndex(pool)}
        if settings.chroma_url:
            chroma = ChromaIndex(settings.chroma_url, records, timeout_s=settings.chroma_timeout_s)
            stack.push_async_callback(chroma.close)
            indexes[Backend.CHROMA] = chroma
        reconcile = Reconcile(records, windows, indexes)
        if space:
            yield await reconcile.run(tenant, space, repair=repair)
            return
        async for findings in (
            reconcile.tenant(tenant, repair=repair) if tenant else reconcile.everywhere(repair=repair)
        ):
            yield findings


def cells(findings: Findings) -> list[str]:
    """A row of the table."""
    return [*(str(getattr(findings, column)) for column in COLUMNS[:-1]), ",".join(findings.away) or "-"]


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m janus_memory.verify", description="Compare and repair the stores.")
    parser.add_argument("--tenant", default="", help="only this tenant's spaces")
    parser.add_argument("--space", default="", help="only this space of the tenant")
    parser.add_argument("--no-repair", action="store_true", help="only look")
    asked = parser.parse_args(arguments)
    if asked.space and not asked.tenant:
        parser.error("--space needs --tenant")
    try:
        return asyncio.run(_show(asked))
    except (SettingsError, JanusError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


async def _show(asked: argparse.Namespace) -> int:
    file, secrets = os.environ.get("JANUS_CONFIG"), os.environ.get("JANUS_SECRETS_DIR")
    loaded = load(
        _SECTIONS,
        file=Path(file) if file else None,
        environ=os.environ,
        secrets_dir=Path(secrets) if secrets else None,
        elsewhere=_ELSEWHERE,
    )
    rows = [list(COLUMNS)]
    code = 0
    async for findings in verify(
        loaded.section("memory", MemorySettings),
        postgres=loaded.section("postgres", PostgresSettings),
        redis=loaded.section("redis", RedisSettings),
        tenant=asked.tenant,
        space=asked.space,
        repair=not asked.no_repair,
    ):
        rows.append(cells(findings))
        if findings.wrong or findings.away:
            code = 1
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
