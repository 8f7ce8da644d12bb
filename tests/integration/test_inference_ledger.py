"""Usage records: on record when that is said, once, for every tenant, also when Postgres dies meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

import asyncpg
import pytest
from prometheus_client import REGISTRY
from tests.conftest import StackThread
from tests.fakes.tcp_proxy import TcpProxy
from tests.fakes.usage_records import NOON, eventually, keeping, migrated, record, rows

from janus_inference.adapters.postgres_usage import PostgresUsage
from janus_inference.events import Cost, Usage
from janus_inference.ledger import Ledger
from janus_inference.ports import AnsweredRequest, UsageRecord
from janus_kit.errors import Internal, JanusError, ResourceExhausted, Unavailable
from janus_kit.postgres import Database, database

COUNT = "SELECT count(*) FROM inference.usage WHERE tenant = $1"


@pytest.fixture
def proxy(postgres_url: str) -> TcpProxy:
    return TcpProxy.to(postgres_url)


@pytest.fixture
async def through_proxy(postgres_url: str, proxy: TcpProxy) -> AsyncIterator[Database]:
    await migrated(postgres_url)
    # No connections ahead of need: one that is being made while the proxy is cut would survive it.
    settings = await migrated(proxy.through(postgres_url), connect_timeout_s=1, pool_min=0)
    async with database(settings, application="test") as opened:
        yield opened
    proxy.close()


async def count(url: str, tenant: str) -> int:
    return int((await rows(url, COUNT, tenant))[0][0])


def is_another(stack: StackThread, killed: int) -> bool:
    """Whether a new Postgres has taken the place of the killed one."""
    return stack.stack.process_ids["postgres"] not in (None, killed)


def unwritten() -> float:
    return REGISTRY.get_sample_value("janus_inference_usage_unwritten") or 0.0


def dropped() -> float:
    return REGISTRY.get_sample_value("janus_inference_usage_dropped_total") or 0.0


async def test_a_record_is_there_with_all_it_says_when_record_returns(db: Database, postgres_url: str):
    said = record("whole", labels={"team": "blue"}, usage=Usage(100, 20, 3, 50, 7, estimated=True), cost=Cost(42, "v1"))
    async with keeping(PostgresUsage(db)) as ledger:
        await ledger.record(said)
    (found,) = await rows(
        postgres_url, "SELECT *, labels ->> 'team' AS team FROM inference.usage WHERE tenant = 'whole'"
    )
    expected = {
        "generation_id": said.generation_id,
        "attempt": 1,
        "subject": "alice",
        "operation": "chat",
        "provider": "openai",
        "model": "gpt-4o",
        "team": "blue",
        "started_at": NOON,
        "duration_s": 0.25,
        "outcome": "ok",
        "input_uncached_tokens": 100,
        "cache_read_tokens": 20,
        "cache_write_tokens": 3,
        "output_tokens": 50,
        "reasoning_tokens": 7,
        "estimated": True,
        "cost_micro_usd": 42,
        "price_version": "v1",
    }
    assert {name: found[name] for name in expected} == expected


async def test_an_unknown_cost_is_stored_as_unknown_and_not_as_nothing(db: Database, postgres_url: str):
    async with keeping(PostgresUsage(db)) as ledger:
        await ledger.record(record("unknown"))
    (found,) = await rows(postgres_url, "SELECT cost_micro_usd FROM inference.usage WHERE tenant = 'unknown'")
    assert found["cost_micro_usd"] is None


async def test_calls_of_many_tenants_that_end_together_share_commits(db: Database, postgres_url: str):
    async with keeping(PostgresUsage(db)) as ledger:
        await asyncio.gather(*(ledger.record(record(f"together-{number % 10}")) for number in range(200)))
    query = "SELECT count(*), count(DISTINCT xmin::text) FROM inference.usage WHERE tenant LIKE 'together-%'"
    ((stored, commits),) = await rows(postgres_url, query)
    assert stored == 200
    assert commits <= 5


async def test_an_attempt_that_is_written_again_counts_once(db: Database, postgres_url: str):
    said = record("again")
    async with keeping(PostgresUsage(db)) as ledger:
        await ledger.record(said)
        await asyncio.gather(ledger.record(said), ledger.record(said))
        await ledger.record(record("again", generation_id=said.generation_id, attempt=2))
    assert await count(postgres_url, "again") == 2


async def test_a_commit_whose_outcome_is_unknown_is_made_again_and_counts_once(db: Database, postgres_url: str):
    class Unsure(PostgresUsage):
        """Commits, and then the answer gets lost on the way."""

        lost = 0

        async def write(self, batch: Sequence[tuple[UsageRecord, AnsweredRequest | None]]) -> None:
            await super().write(batch)
            if self.lost < 2:
                self.lost += 1
                raise Unavailable("postgres")

    async with keeping(Unsure(db)) as ledger:
        await asyncio.gather(*(ledger.record(record("unsure")) for _ in range(3)))
    assert await count(postgres_url, "unsure") == 3


async def test_what_a_cancelled_call_used_is_written_all_the_same(
    through_proxy: Database, proxy: TcpProxy, postgres_url: str
):
    proxy.cut()
    async with keeping(PostgresUsage(through_proxy)) as ledger:
        waiting = asyncio.create_task(ledger.record(record("cancelled")))
        await eventually(lambda: unwritten() == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        proxy.mend()
        await eventually(lambda: unwritten() == 0)
    assert await count(postgres_url, "cancelled") == 1


async def test_what_is_queued_when_the_service_stops_is_written_by_draining(db: Database, postgres_url: str):
    ledger = Ledger(PostgresUsage(db), wait_s=30)
    for _ in range(3):
        ledger.record_later(record("stopping"))
    await ledger.drain()
    assert await count(postgres_url, "stopping") == 3


async def test_calls_that_end_while_the_service_stops_are_written_without_its_background_task(
    through_proxy: Database, proxy: TcpProxy, postgres_url: str
):
    proxy.cut()
    async with keeping(PostgresUsage(through_proxy)) as ledger:
        before = asyncio.create_task(ledger.record(record("late")))
        await eventually(lambda: unwritten() == 1)
    after = asyncio.create_task(ledger.record(record("late")))
    proxy.mend()
    await asyncio.gather(before, after)
    assert await count(postgres_url, "late") == 2


async def test_a_record_that_no_database_takes_does_not_hold_up_the_others(db: Database, postgres_url: str):
    before = dropped()
    async with keeping(PostgresUsage(db)) as ledger:
        calls = [ledger.record(record("poison", labels={"team": "\x00"} if number == 3 else {})) for number in range(8)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome is not False] == [Internal]
    assert isinstance(outcomes[3], Internal)
    assert await count(postgres_url, "poison") == 7
    assert dropped() == before + 1


async def test_a_record_waits_for_postgres_and_is_written_when_it_is_back(
    through_proxy: Database, proxy: TcpProxy, postgres_url: str
):
    async with keeping(PostgresUsage(through_proxy), wait_s=0.2) as ledger:
        await ledger.record(record("outage"))
        proxy.cut()
        with pytest.raises(Unavailable) as raised:
            await ledger.record(record("outage"))
        assert raised.value.part == "postgres"
        assert raised.value.retry_after is not None
        ledger.record_later(record("outage"))
        assert unwritten() == 2
        proxy.mend()
        await eventually(lambda: unwritten() == 0)
    assert await count(postgres_url, "outage") == 3


async def test_a_database_without_the_schema_loses_nothing(postgres_url: str):
    settings = await migrated(postgres_url)
    admin = await asyncpg.connect(postgres_url)
    async with database(settings, application="test") as db, keeping(PostgresUsage(db), wait_s=0.2) as ledger:
        await admin.execute("ALTER SCHEMA inference RENAME TO elsewhere")
        with pytest.raises(Unavailable):
            await ledger.record(record("unready"))
        await admin.execute("ALTER SCHEMA elsewhere RENAME TO inference")
        await eventually(lambda: unwritten() == 0)
    await admin.close()
    assert await count(postgres_url, "unready") == 1


async def test_when_too_many_wait_calls_are_refused_and_their_records_kept(
    through_proxy: Database, proxy: TcpProxy, postgres_url: str
):
    proxy.cut()
    before = dropped()
    async with keeping(PostgresUsage(through_proxy), wait_s=0.2, most_queued=2) as ledger:
        for _ in range(2):
            ledger.record_later(record("full"))
        with pytest.raises(ResourceExhausted) as raised:
            await ledger.record(record("full"))
        assert raised.value.reason == "OVERLOADED"
        ledger.record_later(record("full"))
        assert dropped() == before
        ledger.record_later(record("full"))
        assert dropped() == before + 1
        proxy.mend()
        await eventually(lambda: unwritten() == 0)
    assert await count(postgres_url, "full") == 4


async def test_a_call_that_finds_room_again_goes_on(through_proxy: Database, proxy: TcpProxy, postgres_url: str):
    proxy.cut()
    async with keeping(PostgresUsage(through_proxy), most_queued=2) as ledger:
        calls = [asyncio.create_task(ledger.record(record("room"))) for _ in range(6)]
        await eventually(lambda: unwritten() == 2)
        proxy.mend()
        await asyncio.gather(*calls)
    assert await count(postgres_url, "room") == 6


async def test_the_worker_reads_no_usage_and_a_tenant_neither_writes_nor_sees_anothers(db: Database):
    await PostgresUsage(db).write([(record("mine"), None), (record("theirs"), None)])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.worker() as connection:
            await connection.fetch("SELECT * FROM inference.usage")
    async with db.tenant("mine") as connection:
        assert {row["tenant"] for row in await connection.fetch("SELECT tenant FROM inference.usage")} == {"mine"}
    for statement in ("DELETE FROM inference.usage", "UPDATE inference.usage SET cost_micro_usd = 0"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with db.tenant("mine") as connection:
                await connection.execute(statement)


async def test_cost_is_counted_by_provider_and_family(db: Database):
    labels = {"provider": "counted", "model": "gpt-4o"}
    async with keeping(PostgresUsage(db)) as ledger:
        await ledger.record(record("cost", provider="counted", model="gpt-4o-2024-08-06", cost=Cost(40, "v")))
        await ledger.record(record("cost", provider="counted", model="gpt-4o", cost=Cost(2, "v")))
        await ledger.record(record("cost", provider="counted", model="made-up", cost=None))
    assert REGISTRY.get_sample_value("janus_inference_cost_microusd_total", labels) == 42
    unknown = {"provider": "counted", "model": "made-up"}
    assert REGISTRY.get_sample_value("janus_inference_cost_microusd_total", unknown) is None


async def test_every_acknowledged_record_survives_kills_of_postgres_exactly_once(own_stack: StackThread):
    """Two kills under load; afterwards what was said to be written is there, once, and so is the rest."""
    settings = await migrated(own_stack.addresses.postgres_url, connect_timeout_s=1)
    made: set[str] = set()
    acknowledged: set[str] = set()
    stopping = asyncio.Event()

    async def calls(ledger: Ledger, caller: int) -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            said = record(f"tenant-{caller % 4}", generation_id=f"gen_{caller}_{number}")
            made.add(said.generation_id)
            try:
                await ledger.record(said)
            except JanusError:
                continue
            acknowledged.add(said.generation_id)
            await asyncio.sleep(0.002)

    async def more_acknowledged(records: int) -> None:
        aim = len(acknowledged) + records
        await eventually(lambda: len(acknowledged) >= aim)

    async with database(settings, application="test") as db, keeping(PostgresUsage(db), wait_s=0.5) as ledger:
        async with asyncio.TaskGroup() as group:
            for caller in range(16):
                group.create_task(calls(ledger, caller))
            for _ in range(2):
                await more_acknowledged(200)
                killed = own_stack.kill("postgres")
                await eventually(partial(is_another, own_stack, killed))
                await more_acknowledged(200)
            stopping.set()
        await eventually(lambda: unwritten() == 0)
    found = [
        row["generation_id"] for row in await rows(own_stack.addresses.postgres_url, "SELECT * FROM inference.usage")
    ]
    assert acknowledged <= set(found)
    assert set(found) == made
    assert len(found) == len(made)
