"""What calls used whose process was killed: on record, once, as an estimate, and only when it is really gone."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import replace
from functools import partial

import asyncpg
import pytest
from tests.fakes.inference_processes import events_of
from tests.fakes.providers.inference_service import prompt, running
from tests.fakes.tcp_proxy import TcpProxy
from tests.fakes.usage_records import at_work, eventually, migrated, record, rows

from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_inference.adapters.postgres_usage import PostgresUsage
from janus_inference.events import Cost, Usage
from janus_inference.last_will import LastWill
from janus_inference.ports import UsageRecord
from janus_kit.postgres import Database, database

USED = "SELECT outcome, output_tokens, estimated, cost_micro_usd, labels FROM inference.usage WHERE generation_id = $1"
LEFT = "SELECT 1 FROM inference.last_will WHERE records @> jsonb_build_array($1::jsonb)"
WILLS = "SELECT owner FROM inference.last_will WHERE owner = $1"
_numbers = itertools.count()


@pytest.fixture
def owner() -> str:
    return f"inf_{next(_numbers)}"


def lost(**fields: object) -> UsageRecord:
    return replace(record(usage=Usage(10, output_tokens=7, estimated=True), **fields), outcome="owner_gone")  # type: ignore[arg-type]


async def test_a_will_is_carried_out_once_its_owner_was_not_heard_of_in_time(
    db: Database, postgres_url: str, owner: str
) -> None:
    store = PostgresUsage(db)
    priced, free = lost(cost=Cost(12, "v1"), labels={"team": "a"}), lost(tenant="globex")
    await store.leave(owner, [priced, free], 60)
    assert owner not in dict(await store.carry_out())
    assert not await rows(postgres_url, USED, priced.generation_id)
    await store.leave(owner, [priced, free], 0)
    both = await asyncio.gather(store.carry_out(), store.carry_out())
    assert [count for found in both for name, count in found if name == owner] == [2]
    (row,) = await rows(postgres_url, USED, priced.generation_id)
    assert tuple(row) == ("owner_gone", 7, True, 12, '{"team": "a"}')
    assert await rows(postgres_url, USED, free.generation_id)
    assert not await rows(postgres_url, WILLS, owner)


async def test_what_an_owner_recorded_itself_stays(db: Database, postgres_url: str, owner: str) -> None:
    store = PostgresUsage(db)
    true = record(usage=Usage(10, output_tokens=300))
    await store.leave(owner, [lost(generation_id=true.generation_id)], 0)
    await store.write([(true, None)])
    await store.carry_out()
    (row,) = await rows(postgres_url, USED, true.generation_id)
    assert (row["outcome"], row["output_tokens"], row["estimated"]) == ("ok", 300, False)


async def test_a_will_is_there_only_while_calls_are_under_way(db: Database, postgres_url: str, owner: str) -> None:
    underway = [lost()]
    will = LastWill(PostgresUsage(db), lambda: underway, owner, every_s=0.01)

    async def is_left() -> bool:
        return bool(await rows(postgres_url, WILLS, owner))

    async with at_work(will.run):
        await eventually(is_left)
        ended = underway.pop()

        async def is_withdrawn() -> bool:
            return not await is_left()

        await eventually(is_withdrawn)
        underway.append(ended)
        await eventually(is_left)
    await will.withdraw()
    assert not await is_left()
    assert not await rows(postgres_url, USED, ended.generation_id)


async def test_a_loss_of_postgres_makes_nobody_s_calls_look_lost(db: Database, postgres_url: str, owner: str) -> None:
    proxy = TcpProxy.to(postgres_url)
    settings = await migrated(proxy.through(postgres_url), connect_timeout_s=1, pool_min=0)
    underway = [lost()]
    async with database(settings, application="test") as away:
        living = LastWill(PostgresUsage(away), lambda: underway, owner, every_s=0.02, lease_s=0.4)
        other = LastWill(PostgresUsage(away), list, f"{owner}-other", every_s=0.02, lease_s=0.4)

        async def is_left() -> bool:
            return bool(await rows(postgres_url, WILLS, owner))

        async def has_run_out() -> bool:
            query = f"{WILLS} AND expires_at < clock_timestamp()"
            return bool(await rows(postgres_url, query, owner))

        async def is_renewed() -> bool:
            return not await has_run_out()

        async with at_work(other.run), at_work(living.run):
            await eventually(is_left)
            proxy.cut()
            await eventually(has_run_out)
            proxy.mend()
            await eventually(is_renewed)
            assert await is_left()
            assert not await rows(postgres_url, USED, underway[0].generation_id)
    proxy.close()


async def test_only_the_worker_may_look_into_wills(db: Database, owner: str) -> None:
    await PostgresUsage(db).leave(owner, [lost()], 60)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.tenant("acme") as connection:
            await connection.fetch("SELECT * FROM inference.last_will")


async def test_a_service_leaves_a_will_and_carries_out_those_of_others(
    db: Database, postgres_url: str, redis_url: str, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its calls killed for real: test_inference_last_will_chaos.py."""
    monkeypatch.setattr("janus_inference.app.LastWill", partial(LastWill, every_s=0.02, lease_s=0.4))
    gone = lost()
    await PostgresUsage(db).leave(owner, [gone], 0)
    async with running(postgres_url, redis_url) as service:
        asked = prompt(model="openai/fake;tokens=2000;pace=20")
        call = service.stub.StreamGenerate(pb.StreamGenerateRequest(prompt=asked))
        (started, *_) = await events_of(call, 3)
        generation = started.started.generation_id

        async def is_left() -> bool:
            return bool(await rows(postgres_url, LEFT, json.dumps({"generation_id": generation})))

        async def is_withdrawn() -> bool:
            return not await is_left()

        async def is_carried_out() -> bool:
            return bool(await rows(postgres_url, USED, gone.generation_id))

        await eventually(is_left)
        await eventually(is_carried_out)
        assert not await rows(postgres_url, USED, generation)
        call.cancel()
        await eventually(is_withdrawn)
    (row,) = await rows(postgres_url, USED, generation)
    assert row["outcome"] != "owner_gone"
