"""Calls of workers on real Postgres: fenced, taken once, resent only as seen, tenants apart."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from tests.fakes.patience import patient_postgres

from janus_kit.errors import ResourceExhausted
from janus_kit.migrations import migrate
from janus_kit.postgres import Database, database
from janus_orchestration.adapters.postgres_journal import PostgresStore
from janus_orchestration.adapters.postgres_offers import PostgresOffer
from janus_orchestration.adapters.postgres_tools import PostgresDispatches, PostgresWorkers
from janus_orchestration.dispatching import (
    Answer,
    CallId,
    CallKey,
    ClaimedCall,
    Dispatch,
    DispatchState,
    NewDispatch,
    News,
    NewsKind,
    OpenCall,
    Progress,
    Registration,
    Report,
    Standing,
)
from janus_orchestration.model import Agent, AgentSpec, AgentTool, Run, RunOptions, RunState, SideEffect, Thread, Tool

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEASE_S = 30.0
RETENTION_S = 86_400.0


def tool(name: str = "count", schema: str = "", side_effect: SideEffect = SideEffect.IDEMPOTENT) -> Tool:
    return Tool(name, "", schema, side_effect, timedelta(seconds=60))


@dataclass
class Ground:
    """Both sides over a migrated database, and a tenant of the test's own."""

    db: Database
    dispatches: PostgresDispatches
    workers: PostgresWorkers
    tenant: str

    async def run(self, epoch: int = 1, ended_at: datetime | None = None) -> str:
        """The id of a run with this epoch."""
        run_id = f"run_{uuid.uuid4().hex}"
        thread = Thread(f"thr_{uuid.uuid4().hex}", "a", "", "", "", NOW, NOW)
        run = Run(
            run_id, thread.id, "a", 1, RunState.RUNNING, RunOptions(), "", epoch, 0, 0, 10, NOW, ended_at=ended_at
        )
        async with PostgresStore(self.db).tenant(self.tenant) as records:
            await records.add_thread(thread)
            await records.add_run(run, has_turn=True, owner="one", lease_s=30)
            await records.write_run(run)
        return run_id

    async def put(self, run_id: str, step: int = 2, *, epoch: int = 1, timeout_s: float = 30) -> Dispatch | None:
        call = NewDispatch(CallKey(run_id, step), epoch, "count", '{"n": 1}', "thr", "ann", "", timeout_s)
        return await self.dispatches.dispatch(self.tenant, call)

    async def worker(self, worker_id: str = "bob", lease_s: float = LEASE_S) -> str:
        connection = f"wks_{uuid.uuid4().hex}"
        registered = Registration(worker_id, (tool(),), 8)
        assert not await self.workers.register(self.tenant, connection, registered, lease_s)
        return connection

    async def claim(self, connection: str, limit: int = 8, tenant: str = "") -> list[ClaimedCall]:
        def all_to_it(calls: Sequence[OpenCall]) -> dict[CallKey, str]:
            return {call.key: connection for call in calls}

        return await self.workers.claim(tenant or self.tenant, ["count"], limit, all_to_it)

    async def state(self, run_id: str, step: int = 2) -> Dispatch:
        key = CallKey(run_id, step)
        return (await self.dispatches.look(self.tenant, [key]))[key]


@pytest.fixture
async def ground(postgres_url: str) -> AsyncIterator[Ground]:
    settings = patient_postgres(postgres_url)
    await migrate(settings, ["janus_orchestration"])
    async with database(settings, application="test") as db:
        yield Ground(
            db, PostgresDispatches(db), PostgresWorkers(db, retention_s=RETENTION_S), f"t{uuid.uuid4().hex[:8]}"
        )


async def test_a_fenced_owner_puts_nothing_up(ground: Ground) -> None:
    run_id = await ground.run(epoch=3)
    assert await ground.put(run_id, epoch=2) is None
    assert await ground.put(await ground.run(ended_at=NOW)) is None
    assert await ground.put("run_of_nobody") is None
    put = await ground.put(run_id, epoch=3)
    assert put is not None
    assert (put.state, put.attempt, put.has_takers) == (DispatchState.OPEN, 1, False)


async def test_a_call_is_put_up_once_and_its_time_counts_from_then(ground: Ground) -> None:
    run_id = await ground.run()
    await ground.put(run_id, timeout_s=30)
    (call,) = await ground.claim(await ground.worker())
    again = await ground.put(run_id, timeout_s=3_000)
    assert again is not None
    assert (again.state, again.worker_id, again.standing) == (DispatchState.CLAIMED, "bob", Standing.CONNECTED)
    assert again.left_s <= 30
    assert (str(call.call_id), call.arguments_json, call.subject) == (f"{run_id}:2:1", '{"n": 1}', "ann")


async def test_each_call_is_claimed_once_however_many_want_it(ground: Ground) -> None:
    run_id = await ground.run()
    for step in range(20):
        await ground.put(run_id, step)
    workers = [await ground.worker(f"w{place}") for place in range(4)]
    claimed = await asyncio.gather(*(ground.claim(each, 7) for each in workers))
    rest = await ground.claim(workers[0], 20)
    steps = [call.call_id.key.step for calls in [*claimed, rest] for call in calls]
    assert sorted(steps) == list(range(20))


async def test_what_is_not_assigned_stays_open(ground: Ground) -> None:
    run_id = await ground.run()
    await ground.put(run_id)
    assert await ground.workers.claim(ground.tenant, ["count"], 8, lambda calls: {}) == []
    assert len(await ground.claim(await ground.worker())) == 1


async def test_nobody_claims_what_was_withdrawn_or_is_late(ground: Ground) -> None:
    run_id = await ground.run()
    connection = await ground.worker()
    await ground.put(run_id)
    await ground.put(run_id, 3, timeout_s=0)
    assert await ground.dispatches.withdraw(ground.tenant, CallKey(run_id, 2))
    assert await ground.claim(connection) == []
    assert (await ground.state(run_id)).state is DispatchState.WITHDRAWN
    await ground.put(run_id, 4)
    await ground.claim(connection)
    assert not await ground.dispatches.withdraw(ground.tenant, CallKey(run_id, 4))


async def test_a_call_is_sent_again_only_if_nothing_happened_to_it(ground: Ground) -> None:
    run_id = await ground.run()
    key = CallKey(run_id, 2)
    await ground.put(run_id)
    (call,) = await ground.claim(await ground.worker())
    lost = await ground.state(run_id)
    # Its worker came back meanwhile.
    elsewhere = await ground.worker()
    await ground.workers.take_back(ground.tenant, elsewhere, "bob", [call.call_id])
    await ground.dispatches.resend(ground.tenant, key, lost)
    assert (await ground.state(run_id)).worker == elsewhere
    lost = await ground.state(run_id)
    await ground.dispatches.resend(ground.tenant, key, lost)
    await ground.dispatches.resend(ground.tenant, key, lost)
    after = await ground.state(run_id)
    assert (after.state, after.attempt, after.has_takers) == (DispatchState.OPEN, 2, True)


async def test_only_who_has_a_call_says_something_of_it(ground: Ground) -> None:
    run_id = await ground.run()
    await ground.put(run_id)
    connection, other = await ground.worker(), await ground.worker("eve")
    (call,) = await ground.claim(connection)
    later = CallId(call.call_id.key, 2)
    assert await ground.workers.take_back(ground.tenant, other, "eve", [call.call_id]) == []
    assert await ground.workers.take_back(ground.tenant, other, "bob", [later]) == []
    for who, call_id in ((other, call.call_id), (connection, later)):
        await ground.workers.write(ground.tenant, who, [Answer(call_id, b"x")], [Report(call_id, 0.1, "x")])
    state = await ground.state(run_id)
    assert (state.state, state.progress) == (DispatchState.CLAIMED, None)
    await ground.workers.write(ground.tenant, connection, [], [Report(call.call_id, None, "half")])
    assert (await ground.state(run_id)).progress == Progress(1, None, "half")
    await ground.workers.write(ground.tenant, connection, [Answer(call.call_id, b"y")], [])
    await ground.workers.write(ground.tenant, connection, [Answer(call.call_id, b"z")], [])
    state = await ground.state(run_id)
    assert (state.state, state.result) == (DispatchState.ANSWERED, b"y")


async def test_what_a_worker_never_heard_of_is_open_again(ground: Ground) -> None:
    run_id = await ground.run()
    connection = await ground.worker()
    for step in (2, 3, 4):
        await ground.put(run_id, step)
    calls = {call.call_id.key.step: call.call_id for call in await ground.claim(connection)}
    await ground.workers.reopen(ground.tenant, [connection], [calls[2], calls[3]])
    assert (await ground.state(run_id, 4)).state is DispatchState.OPEN
    await ground.workers.leave(ground.tenant, connection, [calls[3]], is_awaited=False)
    assert (await ground.state(run_id, 3)).state is DispatchState.OPEN
    gone = await ground.state(run_id, 2)
    assert (gone.state, gone.standing, gone.attempt) == (DispatchState.CLAIMED, Standing.GONE, 1)
    assert not (await ground.state(run_id, 3)).has_takers


async def test_a_worker_that_was_told_to_connect_anew_is_not_gone(ground: Ground) -> None:
    run_id = await ground.run()
    connection = await ground.worker()
    await ground.put(run_id, 2)
    await ground.claim(connection)
    await ground.workers.leave(ground.tenant, connection, [], is_awaited=True)
    assert (await ground.state(run_id)).standing is Standing.CONNECTED
    await ground.put(run_id, 3)
    assert not (await ground.state(run_id, 3)).has_takers


async def test_a_lease_that_is_not_renewed_is_lost(ground: Ground) -> None:
    run_id = await ground.run()
    connection = await ground.worker(lease_s=0)
    await ground.put(run_id)
    (call,) = await ground.claim(connection)
    assert (await ground.state(run_id)).standing is Standing.LOST
    assert await ground.workers.renew([connection], LEASE_S) == {(connection, call.call_id)}
    assert (await ground.state(run_id)).standing is Standing.CONNECTED


async def test_a_result_that_is_journalled_takes_the_call_away(ground: Ground) -> None:
    run_id = await ground.run()
    await ground.put(run_id, 2)
    await ground.put(run_id, 3)
    connection = await ground.worker()
    heard: list[News] = []
    async with aclosing(ground.workers.news()) as news:  # type: ignore[type-var]
        assert (await anext(news)).kind is NewsKind.MISSED
        await ground.claim(connection)
        async with PostgresStore(ground.db).tenant(ground.tenant) as records:
            await records.drop_calls(run_id, [2])
        while not heard or heard[-1].kind is not NewsKind.DROPPED:
            heard.append(await anext(news))
    assert heard[-1].about == f"{run_id}:2:1"
    keys = [CallKey(run_id, 2), CallKey(run_id, 3)]
    assert set(await ground.dispatches.look(ground.tenant, keys)) == {CallKey(run_id, 3)}


async def test_a_tool_is_known_after_its_worker_is_gone_and_replaced_only_then(ground: Ground) -> None:
    connection = await ground.worker()
    other = Registration("eve", (tool("new"), tool(side_effect=SideEffect.READ_ONLY)), 1)
    assert list(await ground.workers.register(ground.tenant, "wks_x", other, LEASE_S)) == [1]
    assert [each.name for each in await ground.dispatches.tools(ground.tenant, ["count", "new"])] == ["count"]
    await ground.workers.leave(ground.tenant, connection, [], is_awaited=False)
    assert await ground.dispatches.tools(ground.tenant, ["count"]) == [tool()]
    assert not await ground.workers.register(ground.tenant, "wks_x", other, LEASE_S)
    assert (await ground.dispatches.tools(ground.tenant, ["count"]))[0].side_effect is SideEffect.READ_ONLY


async def test_a_tenant_has_so_many_tools_and_no_more(ground: Ground) -> None:
    for place in range(16):
        many = Registration("bob", tuple(tool(f"t{place}.{number}") for number in range(256)), 1)
        assert not await ground.workers.register(ground.tenant, f"wks_{ground.tenant}{place}", many, LEASE_S)
    with pytest.raises(ResourceExhausted):
        await ground.worker()


async def test_another_tenant_finds_nothing(ground: Ground) -> None:
    run_id = await ground.run()
    await ground.put(run_id, 2)
    await ground.put(run_id, 3)
    connection = await ground.worker()
    (call,) = await ground.claim(connection, 1)
    foreign = "other"
    assert await ground.dispatches.tools(foreign, ["count"]) == []
    assert await ground.dispatches.look(foreign, [CallKey(run_id, 2), CallKey(run_id, 3)]) == {}
    assert not await ground.dispatches.withdraw(foreign, CallKey(run_id, 3))
    assert await ground.claim(connection, tenant=foreign) == []
    assert await ground.workers.take_back(foreign, connection, "bob", [call.call_id]) == []
    await ground.workers.write(foreign, connection, [Answer(call.call_id, b"x")], [])
    assert (await ground.state(run_id, call.call_id.key.step)).state is DispatchState.CLAIMED


@pytest.mark.parametrize("table", ["tool", "tool_worker", "tool_dispatch"])
async def test_a_forgotten_condition_shows_no_foreign_row(ground: Ground, table: str) -> None:
    await ground.put(await ground.run())
    await ground.worker()
    query = f"SELECT count(*) FROM orchestration.{table}"
    async with ground.db.tenant(ground.tenant) as connection:
        assert await connection.fetchval(query) > 0
    async with ground.db.tenant("other") as connection:
        assert await connection.fetchval(query) == 0


@pytest.mark.parametrize(
    "query",
    [
        "SELECT arguments FROM orchestration.tool_dispatch",
        "SELECT result FROM orchestration.tool_dispatch",
        "SELECT tools FROM orchestration.tool_worker",
        "SELECT schema FROM orchestration.tool",
        "UPDATE orchestration.tool_dispatch SET state = 'open'",
    ],
)
async def test_what_a_tenant_wrote_is_out_of_reach_across_tenants(ground: Ground, query: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with ground.db.worker() as connection:
            await connection.execute(query)


async def test_what_an_mcp_server_offered_is_known_by_its_settings(ground: Ground) -> None:
    name = uuid.uuid4().hex
    before, now = (PostgresOffer(ground.db, name, origin) for origin in ("before", "now"))
    tools = [tool(f"{name}.brew"), replace(tool(f"{name}.odd"), description="a\x00b \u2028", schema_json="")]
    assert await before.read() == []
    await before.write(tools)
    assert await before.read() == tools
    assert await now.read() == []
    await now.write(tools[:1])
    assert await now.read() == tools[:1]
    assert await before.read() == []
    assert await PostgresOffer(ground.db, "another", "now").read() == []


async def test_what_mcp_servers_offered_is_out_of_a_tenants_reach(ground: Ground) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with ground.db.tenant(ground.tenant) as connection:
            await connection.execute("SELECT * FROM orchestration.mcp_server")


async def test_workers_that_are_long_gone_are_forgotten(own_url: str) -> None:
    async with database(patient_postgres(own_url), application="test") as db:
        ground = Ground(db, PostgresDispatches(db), PostgresWorkers(db, retention_s=RETENTION_S), "t")
        await ground.worker(lease_s=-10_000)
        stays = await ground.worker()
        await ground.workers.renew([stays], LEASE_S)
        async with db.tenant("t") as connection:
            assert await connection.fetchval("SELECT array_agg(id) FROM orchestration.tool_worker") == [stays]


async def test_a_tool_that_is_long_gone_is_forgotten_unless_somebody_still_means_it(ground: Ground) -> None:
    async def register(*names: str, lease_s: float = LEASE_S) -> None:
        registered = Registration("bob", tuple(map(tool, names)), 8)
        assert not await ground.workers.register(ground.tenant, f"wks_{uuid.uuid4().hex}", registered, lease_s)

    async def known() -> set[str]:
        names = ["gone", "listed", "unlisted", "offered", "recent", "new"]
        return {each.name for each in await ground.dispatches.tools(ground.tenant, names)}

    await register("gone", "listed", "unlisted", "recent", lease_s=-1)
    await register("offered")
    async with PostgresStore(ground.db).tenant(ground.tenant) as records:
        for version, listed in enumerate((("listed", "unlisted"), ("listed",)), 1):
            spec = AgentSpec("helper", tools=tuple(map(AgentTool, listed)))
            await records.add_agent(Agent(spec, version, NOW))
    other = Ground(ground.db, ground.dispatches, ground.workers, f"t{uuid.uuid4().hex[:8]}")
    await other.worker()
    for each in (ground, other):
        async with ground.db.tenant(each.tenant) as connection:
            await connection.execute(
                "UPDATE orchestration.tool SET seen_at = seen_at - make_interval(secs => $1) WHERE name <> 'recent'",
                RETENTION_S + 60,
            )
    assert await known() == {"gone", "listed", "unlisted", "offered", "recent"}
    await register("new")
    assert await known() == {"listed", "offered", "recent", "new"}
    assert [each.name for each in await ground.dispatches.tools(other.tenant, ["count"])] == ["count"]
    await register("gone")
    assert "gone" in await known()
