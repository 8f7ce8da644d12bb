"""The reconciler: what is derived is compared with the records, and repaired."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import asyncpg
import pytest
from tests.fakes.memory_service import Caller, Memory, eventually, running, texts
from tests.fakes.patience import patient_postgres

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2, space_pb2
from janus_kit.errors import NotFound
from janus_kit.postgres import database
from janus_kit.redis import RedisClient, key
from janus_kit.redis import redis as redis_client
from janus_kit.settings import RedisSettings
from janus_memory.adapters.chroma_index import ChromaIndex
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.adapters.redis_windows import RedisWindows
from janus_memory.model import Backend, Indexed, Kind, Space, VectorRow, View
from janus_memory.ports import VectorIndex
from janus_memory.reconcile import Reconcile
from janus_memory.reconciliation import Findings

PGVECTOR, CHROMA = space_pb2.VECTOR_BACKEND_PGVECTOR, space_pb2.VECTOR_BACKEND_CHROMA
EACH = pytest.mark.parametrize("bench", [PGVECTOR, CHROMA], indirect=True, ids=["pgvector", "chroma"])


@dataclass
class Bench:
    """The service, a tenant of it, and everything that can be spoilt."""

    memory: Memory
    desk: Caller
    owner: asyncpg.Connection
    redis: RedisClient
    records: PostgresRecords
    indexes: dict[int, VectorIndex]
    reconcile: Reconcile

    async def space(self) -> Space:
        async with self.records.transaction(self.desk.tenant) as tx:
            space = await tx.space("default")
        assert space is not None
        return space

    async def run(self, repair: bool = True) -> Findings:
        return await self.reconcile.run(self.desk.tenant, "default", repair=repair)

    async def execute(self, statement: str) -> None:
        """As the owner, for the tenant, which is $1."""
        await self.owner.execute(statement, self.desk.tenant)

    async def is_well(self) -> bool:
        await self.desk.indexed()
        return not (await self.run(repair=False)).wrong


@pytest.fixture
async def bench(
    request: pytest.FixtureRequest, postgres_url: str, redis_url: str, chroma_url: str
) -> AsyncIterator[Bench]:
    async with (
        running(postgres_url, redis_url, chroma_url=chroma_url) as memory,
        database(patient_postgres(postgres_url), application="test") as pool,
        redis_client(RedisSettings(url=redis_url)) as client,
    ):
        owner = await asyncpg.connect(postgres_url)
        chroma = ChromaIndex(chroma_url, PostgresRecords(pool), timeout_s=10)
        records = PostgresRecords(pool)
        indexes: dict[int, VectorIndex] = {Backend.PGVECTOR: PgvectorIndex(pool), Backend.CHROMA: chroma}
        reconcile = Reconcile(records, RedisWindows(client, length=400, ttl_s=60), indexes)
        desk = memory.caller()
        await desk.call(
            "PutSpace",
            pb.PutSpaceRequest(space=space_pb2.Space(name="default", backend=getattr(request, "param", PGVECTOR))),
        )
        await desk.append("talk", "the heron stands", "the pond is still")
        await desk.remember(
            record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text="herons eat fish"),
            record_pb2.Memory(
                kind=record_pb2.MEMORY_KIND_FACT, text="it expires", expires_at={"seconds": 4_000_000_000}
            ),
            record_pb2.Memory(
                kind=record_pb2.MEMORY_KIND_FACT, text="since long ago", valid_from={"seconds": -40_000_000_000}
            ),
        )
        await desk.indexed()
        try:
            yield Bench(memory, desk, owner, client, records, indexes, reconcile)
        finally:
            await chroma.close()
            await owner.close()


@EACH
async def test_stores_that_agree_are_left_alone(bench: Bench) -> None:
    findings = await bench.run()
    assert findings.wrong == 0
    assert (findings.units, findings.windows_seen, findings.away) == (5, 1, ())
    assert await bench.owner.fetchval("SELECT count(*) FROM memory.outbox WHERE tenant = $1", bench.desk.tenant) == 0


@EACH
async def test_what_the_index_lacks_is_indexed_again(bench: Bench) -> None:
    space = await bench.space()
    units = [
        row["unit"]
        for row in await bench.owner.fetch("SELECT unit FROM memory.unit WHERE tenant = $1", bench.desk.tenant)
    ]
    await bench.indexes[space.backend].delete(bench.desk.tenant, space, units[:2])
    assert (await bench.run(repair=False)).missing == 2
    assert (await bench.run()).missing == 2
    assert await bench.is_well()
    assert len((await bench.desk.recall("heron pond", exact=True, limit=50)).hits) == 5


@EACH
async def test_what_is_not_on_record_is_taken_out(bench: Bench) -> None:
    space = await bench.space()
    index = bench.indexes[space.backend]
    orphan = Indexed(10**9, Kind.FACT, "", "", "", datetime.now(UTC))
    timed = replace(orphan, unit=10**9 + 1, expires_at=datetime.now(UTC))
    vector = [1.0] * space.dimensions
    await index.upsert(bench.desk.tenant, space, [VectorRow(each, View.BEFORE, 1, vector) for each in (orphan, timed)])
    assert (await bench.run()).surplus == 2
    assert await bench.is_well()


@EACH
async def test_a_tombstones_entry_is_taken_out_and_not_put_back(bench: Bench) -> None:
    await bench.execute(
        """INSERT INTO memory.tombstone (tenant, space_no, unit)
           SELECT tenant, space_no, min(unit) FROM memory.unit WHERE tenant = $1 GROUP BY 1, 2"""
    )
    findings = await bench.run()
    assert (findings.surplus, findings.missing, findings.units) == (1, 0, 4)
    assert await bench.is_well()


@EACH
async def test_what_the_index_says_otherwise_is_made_anew(bench: Bench) -> None:
    space = await bench.space()
    index = bench.indexes[space.backend]
    async with bench.records.transaction(bench.desk.tenant) as tx:
        first, second, third, *_ = (each.entry for each in await tx.expected(space.number, 0, 10))
    vector = [1.0] * space.dimensions
    wrong = [
        VectorRow(replace(first.about, subject="somebody"), View.ALONE, first.version, vector),
        VectorRow(replace(second.about, expires_at=datetime.now(UTC)), View.ALONE, second.version, vector),
        VectorRow(third.about, View.BEFORE, third.version + 4, vector),
    ]
    await index.upsert(bench.desk.tenant, space, wrong)
    assert (await bench.run()).stale == 3
    assert await bench.is_well()


async def test_the_statistics_are_set_right_while_the_indexer_counts(bench: Bench) -> None:
    await bench.execute("UPDATE memory.lexicon SET units = units + 7 WHERE tenant = $1 AND term = 'heron'")
    await bench.execute("DELETE FROM memory.lexicon WHERE tenant = $1 AND term = 'pond'")
    await bench.owner.execute(
        "INSERT INTO memory.lexicon SELECT tenant, number, 'ghost', 3 FROM memory.space WHERE tenant = $1",
        bench.desk.tenant,
    )
    await bench.execute("UPDATE memory.statistics SET tokens = tokens - 5, units = units + 1 WHERE tenant = $1")
    assert (await bench.run(repair=False)).terms == 4
    await asyncio.gather(
        *(bench.desk.append("talk", f"heron and pond {i}") for i in range(20)),
        *(bench.run() for _ in range(3)),
    )
    await bench.desk.indexed()
    assert (await bench.run()).terms == 0
    rows = await bench.owner.fetch(
        "SELECT term, units FROM memory.lexicon WHERE tenant = $1 AND term IN ('heron', 'pond', 'ghost')",
        bench.desk.tenant,
    )
    assert {row["term"]: row["units"] for row in rows} == {"heron": 22, "pond": 21}
    assert await bench.is_well()


async def test_a_window_that_differs_from_the_record_is_dropped(bench: Bench) -> None:
    incarnation = await bench.owner.fetchval(
        "SELECT incarnation FROM memory.thread WHERE tenant = $1", bench.desk.tenant
    )
    name = key(bench.desk.tenant, "window", incarnation.hex)
    [entry, _] = await bench.redis.zrange(name, 0, -1)
    await bench.redis.zrem(name, entry)
    await bench.redis.zadd(name, {entry.replace(b"heron", b"horse"): 1})
    findings = await bench.run()
    assert (findings.windows_seen, findings.windows) == (1, 1)
    assert texts(await bench.desk.window("talk")) == ["the heron stands", "the pond is still"]
    assert await bench.is_well()


@EACH
async def test_nothing_is_wrong_while_the_service_writes(bench: Bench) -> None:
    stop = asyncio.Event()

    async def write(number: int) -> None:
        while not stop.is_set():
            await bench.desk.append(f"t{number}", "one", "two", scope={"subject": f"s{number}"})
            await bench.desk.remember(f"fact of {number}", scope={"subject": f"s{number}"})
            erase = pb.EraseRequest(scope=scope_pb2.Scope(subject=f"s{number}"))
            await bench.desk.call("Erase", erase)

    async with asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(write(number))
        found = [await bench.run() for _ in range(12)]
        stop.set()
    assert [findings for findings in found if findings.wrong] == []
    assert await bench.is_well()


async def test_dead_rows_and_stores_that_are_away_are_told(bench: Bench) -> None:
    space = await bench.space()
    await bench.owner.execute(
        """INSERT INTO memory.outbox (tenant, space_no, unit, counted, dead_at)
           SELECT tenant, space_no, min(unit), true, now() FROM memory.unit WHERE tenant = $1 GROUP BY 1, 2""",
        bench.desk.tenant,
    )
    blind = Reconcile(bench.records, RedisWindows(bench.redis, length=400, ttl_s=60), {})
    findings = await blind.run(bench.desk.tenant, "default")
    assert (findings.dead, findings.away) == (1, (space.backend.name.lower(),))
    with pytest.raises(NotFound):
        await blind.run(bench.desk.tenant, "nowhere")


async def test_each_space_has_its_turn_once_in_a_while(bench: Bench, postgres_url: str, redis_url: str) -> None:
    space = await bench.space()
    await bench.indexes[space.backend].delete(bench.desk.tenant, space, list(range(1, 10**4)))
    due = (bench.desk.tenant, "default")
    assert due not in await bench.records.due_spaces(3_600, 1_000)
    everywhere = [findings async for findings in bench.reconcile.everywhere(repair=False)]
    assert [findings.missing for findings in everywhere if (findings.tenant, findings.space) == due] == [5]
    await bench.execute("UPDATE memory.space SET reconciled_at = now() - interval '2 hours' WHERE tenant = $1")
    assert due in await bench.records.due_spaces(3_600, 1_000)
    # Of two replicas one takes it.
    tasks = [asyncio.create_task(bench.reconcile.run_for_ever(3_600)) for _ in range(2)]

    async def well() -> bool:
        return due not in await bench.records.due_spaces(3_600, 1_000) and await bench.is_well()

    try:
        await eventually(well)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_worker_sees_names_of_spaces_and_nothing_in_them(bench: Bench, postgres_url: str) -> None:
    async with database(patient_postgres(postgres_url), application="test") as pool:
        for column in ("description", "model", "incarnation", "weights"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with pool.worker() as connection:
                    await connection.fetch(f"SELECT {column} FROM memory.space")
        for table in ("erasing", "receipt_key", "tombstone"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with pool.worker() as connection:
                    await connection.fetch(f"SELECT * FROM memory.{table}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with pool.worker() as connection:
                await connection.fetch("SELECT subject FROM memory.erasure")


async def test_the_command_prints_a_row_a_space_and_says_whether_all_was_well(
    bench: Bench, postgres_url: str, redis_url: str, chroma_url: str
) -> None:
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("JANUS_")},
        "JANUS_POSTGRES_URL": postgres_url,
        "JANUS_REDIS_URL": redis_url,
        "JANUS_CHROMA_URL": chroma_url,
    }

    async def verify(*arguments: str) -> tuple[int, list[str], str]:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "janus_memory.verify", *arguments],
            env=environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines(), done.stderr

    space = await bench.space()
    await bench.indexes[space.backend].delete(bench.desk.tenant, space, list(range(1, 10**4)))
    tenant = bench.desk.tenant
    code, lines, _ = await verify("--tenant", tenant)
    assert code == 1
    assert lines[0].split()[:4] == ["tenant", "space", "backend", "units"]
    assert lines[1].split()[:5] == [tenant, "default", space.backend.name.lower(), "5", "5"]
    await bench.desk.indexed()
    code, lines, _ = await verify("--tenant", tenant, "--space", "default", "--no-repair")
    assert (code, lines[1].split()[3:]) == (0, ["5", "0", "0", "0", "0", "0", "0", "-"])
