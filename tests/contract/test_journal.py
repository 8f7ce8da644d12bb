"""The journal's contract on real Postgres: fencing, one end, one effect, tenants apart."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import asyncpg
import pytest
from tests.fakes.patience import patient_postgres

from janus_kit.errors import AlreadyExists
from janus_kit.migrations import migrate
from janus_kit.postgres import Database, database
from janus_orchestration.adapters.postgres_journal import PostgresStore
from janus_orchestration.adapters.postgres_leases import PostgresLeases, PostgresOutbox
from janus_orchestration.model import (
    Agent,
    AgentSpec,
    Claim,
    Cursor,
    Message,
    Recorded,
    Role,
    Run,
    RunOptions,
    RunState,
    StoreDebt,
    Thread,
)
from janus_orchestration.replay import cursor_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Ground:
    """Stores over a migrated database, and a tenant of the test's own."""

    db: Database
    store: PostgresStore
    leases: PostgresLeases
    outbox: PostgresOutbox
    tenant: str
    url: str

    async def thread(self) -> Thread:
        thread = Thread(f"thr_{uuid.uuid4().hex}", "a", "", "", "", NOW, NOW)
        async with self.store.tenant(self.tenant) as records:
            await records.add_thread(thread)
        return thread

    async def run(self, thread: Thread, owner: str | None = "one", **fields: object) -> Run:
        values: dict[str, object] = {"state": RunState.RUNNING, "epoch": 1, "last_sequence": 0, **fields}
        run = Run(
            id=f"run_{uuid.uuid4().hex}",
            thread_id=thread.id,
            agent="a",
            agent_version=1,
            options=RunOptions(labels=(("team", "blue"),)),
            subject="",
            revision=0,
            reserved_sequence=10,
            created_at=NOW,
            **values,  # type: ignore[arg-type]
        )
        async with self.store.tenant(self.tenant) as records:
            current = await records.lock_thread(thread.id)
            assert current is not None
            await records.add_run(run, has_turn=not current.active_run, owner=owner, lease_s=30)
            if not current.active_run:
                await records.write_thread(replace(current, active_run=run.id))
        return run


@pytest.fixture
async def ground(postgres_url: str) -> AsyncIterator[Ground]:
    settings = patient_postgres(postgres_url)
    await migrate(settings, ["janus_orchestration"])
    async with database(settings, application="test") as db:
        yield Ground(
            db, PostgresStore(db), PostgresLeases(db), PostgresOutbox(db), f"t{uuid.uuid4().hex[:8]}", postgres_url
        )


def event(sequence: int, *, epoch: int = 1, terminal: bool = False) -> Recorded:
    return Recorded(Cursor(epoch, sequence), "x", b"%d" % sequence, durable=True, terminal=terminal)


def message(text: str, role: Role = Role.USER, message_id: str = "") -> Message:
    return Message(message_id or f"msg_{uuid.uuid4().hex}", role, text, text.encode())


async def test_a_run_comes_back_as_it_was_written(ground: Ground) -> None:
    run = await ground.run(await ground.thread())
    changed = replace(
        run,
        state=RunState.FAILED,
        revision=3,
        last_sequence=9,
        started_at=NOW,
        ended_at=NOW,
        error=b"e",
        finish_reason=2,
    )
    async with ground.store.tenant(ground.tenant) as records:
        await records.write_run(changed)
        assert await records.run(run.id) == changed


async def test_taking_a_run_fences_older_epochs(ground: Ground) -> None:
    run = await ground.run(await ground.thread())
    async with ground.store.tenant(ground.tenant) as records:
        taken = await records.take(run.id, 2, is_takeover=True)
        assert taken is not None
        assert (taken.epoch, taken.takeovers) == (2, 1)
        assert await records.take(run.id, 2, is_takeover=True) is None, "an epoch is taken once"
        assert await records.take(run.id, 1, is_takeover=True) is None
        assert not await records.reserve(run.id, 1, 99)
        assert not await records.mark_stream_broken(run.id, 1)
        assert await records.reserve(run.id, 2, 99)
        gone_on = await records.take(run.id, 3, is_takeover=False)
        assert gone_on is not None
        assert (gone_on.epoch, gone_on.takeovers) == (3, 1), "nobody died"
        await records.write_run(replace(gone_on, state=RunState.COMPLETED, ended_at=NOW))
        assert await records.take(run.id, 4, is_takeover=True) is None, "an ended run is nobody's"


async def test_a_run_has_one_terminal_event_and_every_sequence_once(ground: Ground) -> None:
    run = await ground.run(await ground.thread())
    async with ground.store.tenant(ground.tenant) as records:
        await records.add_events(run, [event(1), event(2), event(3, terminal=True)])
    for again in (event(2), event(4, terminal=True)):
        with pytest.raises(asyncpg.UniqueViolationError):
            async with ground.store.tenant(ground.tenant) as records:
                await records.add_events(run, [again])
    async with ground.store.tenant(ground.tenant) as records:
        assert [item.cursor.sequence for item in await records.events(run.id, 2, 9, 10)] == [2, 3]


async def test_an_epoch_that_said_nothing_has_no_sequences(ground: Ground) -> None:
    run = await ground.run(await ground.thread())
    async with ground.store.tenant(ground.tenant) as records:
        await records.set_epoch_start(run.id, 2, 33)
        await records.set_epoch_start(run.id, 3, 23)
        starts = await records.epoch_starts(run.id)
        several = await records.epoch_starts_of([run.id])
    assert starts == several[run.id] == [(1, 1), (2, 23), (3, 23)]
    assert [cursor_of(starts, sequence).epoch for sequence in (22, 23, 33, 39)] == [1, 3, 3, 3]


async def test_a_lease_that_ran_out_is_claimed_once(ground: Ground) -> None:
    run = await ground.run(await ground.thread())
    assert ground.tenant not in {claim.tenant for claim in await ground.leases.claim("two", 1000, 30)}
    assert await ground.leases.renew("one", [run.id], 0.0) == {run.id: False}
    claims = [
        claim
        for found in await asyncio.gather(*(ground.leases.claim(f"replica{i}", 1000, 30) for i in range(5)))
        for claim in found
        if claim.run_id == run.id
    ]
    assert claims == [Claim(ground.tenant, run.id, 2, is_takeover=True)]
    assert await ground.leases.renew("one", [run.id], 30) == {}, "the old owner has lost it"


async def test_an_owner_that_stood_still_keeps_what_it_works_on_unless_another_took_it(ground: Ground) -> None:
    run, left = [await ground.run(await ground.thread()) for _ in range(2)]
    await ground.leases.renew("one", [run.id, left.id], 0.0)
    claims = await ground.leases.claim("one", 1000, 30, [run.id])
    assert [claim.run_id for claim in claims if claim.tenant == ground.tenant] == [left.id]
    assert await ground.leases.renew("one", [run.id], 0.0) == {run.id: False}
    claims = await ground.leases.claim("two", 1000, 30, [run.id])
    assert Claim(ground.tenant, run.id, 2, is_takeover=True) in claims


async def test_the_turn_passes_to_the_run_that_waited_longest(ground: Ground) -> None:
    thread = await ground.thread()
    first = await ground.run(thread)
    waiting = [await ground.run(thread, None, state=RunState.QUEUED) for _ in range(3)]
    assert not await ground.leases.claim("two", 1000, 30)
    async with ground.store.tenant(ground.tenant) as records:
        assert await records.waiting_runs(thread.id, besides=first.id) == 3
        await records.end_turn(thread.id, first.id)
        await records.end_turn(thread.id, first.id)  # a second time changes nothing
        now = await records.thread(thread.id)
        assert now is not None
        assert now.active_run == waiting[0].id
    claims = await ground.leases.claim("two", 1000, 30)
    assert claims == [Claim(ground.tenant, waiting[0].id, 2, is_takeover=False)]


async def test_positions_have_no_gaps_and_ids_are_taken_once(ground: Ground) -> None:
    thread = await ground.thread()

    async def commit(text: str) -> None:
        async with ground.store.tenant(ground.tenant) as records:
            current = await records.lock_thread(thread.id)
            assert current is not None
            await records.commit_messages(current, [message(text)], run_id="", is_output=False)
            await records.write_thread(replace(current, last_position=current.last_position + 1))

    await asyncio.gather(*(commit(str(i)) for i in range(10)))
    async with ground.store.tenant(ground.tenant) as records:
        found = await records.messages(thread.id, after=0, limit=100)
    assert [item.position for item in found] == list(range(1, 11))
    again = [message("again", message_id=found[0].message.id)]
    with pytest.raises(AlreadyExists):
        async with ground.store.tenant(ground.tenant) as records:
            current = await records.lock_thread(thread.id)
            assert current is not None
            await records.commit_messages(current, again, run_id="", is_output=False)


async def test_what_waits_is_committed_in_its_order(ground: Ground) -> None:
    thread = await ground.thread()
    run = await ground.run(thread, None, state=RunState.QUEUED)
    asked = [message("one"), message("two"), message("three")]
    async with ground.store.tenant(ground.tenant) as records:
        await records.add_waiting_messages(run, asked, is_output=False)
        assert await records.messages(thread.id, after=0, limit=9) == []
        assert [item.text for item in await records.waiting_messages(run.id)] == ["one", "two", "three"]
        current = await records.lock_thread(thread.id)
        assert current is not None
        await records.commit_waiting_messages(run, current)
        committed = await records.messages_of(run.id)
    assert [(item.message.text, item.position) for item in committed] == [("one", 1), ("two", 2), ("three", 3)]


async def test_a_request_id_has_one_answer(ground: Ground) -> None:
    async with ground.store.tenant(ground.tenant) as records:
        assert await records.answered("Put", "r", b"hash", b"answer") is None
    async with ground.store.tenant(ground.tenant) as records:
        assert await records.answered("Put", "r", b"hash", b"other") == b"answer"
        assert await records.answered("Start", "r", b"hash", b"") is None, "methods are apart"
        with pytest.raises(AlreadyExists) as reused:
            await records.answered("Put", "r", b"changed", b"")
    assert reused.value.reason == "REQUEST_ID_REUSED"
    await execute(ground.url, "UPDATE orchestration.request SET created_at = now() - interval '25 hours'")
    async with ground.store.tenant(ground.tenant) as records:
        assert await records.answered("Put", "r", b"changed", b"new") is None, "an answer is kept for 24 h"
    await execute(ground.url, "UPDATE orchestration.request SET created_at = now() - interval '25 hours'")
    await ground.outbox.forget_old_requests()
    assert await execute(ground.url, "SELECT 1 FROM orchestration.request") == "SELECT 0"


async def test_an_effect_that_failed_leaves_the_request_id_free(ground: Ground) -> None:
    with suppress(ZeroDivisionError):
        async with ground.store.tenant(ground.tenant) as records:
            await records.answered("Put", "r", b"hash", b"answer")
            raise ZeroDivisionError
    async with ground.store.tenant(ground.tenant) as records:
        assert await records.answered("Put", "r", b"hash", b"answer") is None


async def test_debts_come_due_and_back_off(ground: Ground) -> None:
    debt = StoreDebt("thread", 1, 2, "run", "default", subject="ann")
    async with ground.store.tenant(ground.tenant) as records:
        await records.add_thread(Thread("thread", "a", "ann", "", "", NOW, NOW))
        await records.add_debt(debt, 0)
        await records.add_debt(StoreDebt("later", 1, 2, "run", "default"), 60)
    assert await ground.outbox.due(100, 30) == [(ground.tenant, "thread")]
    assert await ground.outbox.due(100, 30) == [], "somebody is at it"
    async with ground.store.tenant(ground.tenant) as records:
        assert await records.debts("thread") == [debt]
        await records.pay_debt(debt)
        assert await records.debts("thread") == []


async def test_a_buried_debt_is_not_asked_for_again(ground: Ground) -> None:
    bad, good = (StoreDebt("thread", place, place, "run", "default") for place in (1, 2))
    async with ground.store.tenant(ground.tenant) as records:
        await records.add_thread(Thread("thread", "a", "", "", "", NOW, NOW))
        await records.add_debt(bad, 0)
        await records.add_debt(good, 60)
        await records.bury_debt(bad, "INVALID_ARGUMENT/FIELD_INVALID: \x00 is refused")
        assert await records.debts("thread") == [good]
    assert await ground.outbox.due(100, 30) == []
    dead = "SELECT 1 FROM orchestration.memory_outbox WHERE dead_at IS NOT NULL AND reason LIKE 'INVALID_ARGUMENT/%'"
    assert await execute(ground.url, f"{dead} AND tenant = '{ground.tenant}'") == "SELECT 1"


async def test_messages_end_before_they_are_too_large(ground: Ground) -> None:
    thread = await ground.thread()
    async with ground.store.tenant(ground.tenant) as records:
        current = await records.lock_thread(thread.id)
        assert current is not None
        sized = [message("x" * 10) for _ in range(6)]
        await records.commit_messages(current, sized, run_id="", is_output=False)

        async def places(most_bytes: int, descending: bool) -> list[int]:
            after = 9 if descending else 0
            found = await records.messages(
                thread.id, after=after, limit=5, descending=descending, most_bytes=most_bytes
            )
            return [item.position for item in found]

        assert await places(1, False) == [1, 2]
        assert await places(25, False) == [1, 2, 3]
        assert await places(25, True) == [6, 5, 4]
        assert await places(1000, False) == [1, 2, 3, 4, 5]


async def test_every_table_forces_row_level_security(ground: Ground) -> None:
    connection = await asyncpg.connect(ground.url)
    try:
        tables = await connection.fetch(
            "SELECT relname, relrowsecurity AND relforcerowsecurity AS forced FROM pg_class "
            "WHERE relnamespace = 'orchestration'::regnamespace AND relkind IN ('r', 'p')"
        )
    finally:
        await connection.close()
    assert len(tables) >= 11
    assert [row["relname"] for row in tables if not row["forced"]] == []


async def test_a_forgotten_condition_shows_no_foreign_row(ground: Ground) -> None:
    thread = await ground.thread()
    run = await ground.run(thread)
    async with ground.store.tenant(ground.tenant) as records:
        await records.add_agent(Agent(AgentSpec("a"), 1, NOW))
        current = await records.lock_thread(thread.id)
        assert current is not None
        await records.commit_messages(current, [message("secret")], run_id=run.id, is_output=False)
        await records.add_events(run, [event(1)])
        await records.add_debt(StoreDebt(thread.id, 1, 1, run.id, "default"), 0)
        await records.answered("Put", "r", b"hash", b"answer")
    tables = ("agent", "agent_version", "thread", "message", "run", "event", "run_lease", "memory_outbox", "request")
    async with ground.db.tenant("somebody-else") as connection:
        for table in tables:
            assert await connection.fetchval(f"SELECT count(*) FROM orchestration.{table}") == 0, table
            assert await connection.execute(f"DELETE FROM orchestration.{table}") == "DELETE 0"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with ground.db.tenant("somebody-else") as connection:
            await connection.execute(
                "INSERT INTO orchestration.agent (tenant, name, version) VALUES ($1, 'x', 1)", ground.tenant
            )


async def test_the_worker_role_sees_no_content(ground: Ground) -> None:
    for table in ("agent_version", "thread", "message", "run", "step", "event"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with ground.db.worker() as connection:
                await connection.fetch(f"SELECT * FROM orchestration.{table}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with ground.db.worker() as connection:
            await connection.fetch("SELECT response FROM orchestration.request")


async def execute(url: str, statement: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.execute(statement))
    finally:
        await connection.close()
