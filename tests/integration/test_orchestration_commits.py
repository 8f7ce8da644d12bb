"""What a commit of a run's owner expects of the run and its thread, which it does not read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest
from tests.fakes.orchestration_service import Caller
from tests.fakes.patience import patient_postgres
from tests.fakes.peers.inference_peer import InferencePeer

from janus_api.orchestration.v1 import agent_pb2, run_pb2
from janus_kit.postgres import database
from janus_orchestration.adapters.postgres_journal import PostgresStore
from janus_orchestration.model import Run, RunState, Thread
from janus_orchestration.ports import Stale


@pytest.fixture
async def store(own_url: str) -> AsyncIterator[PostgresStore]:
    async with database(patient_postgres(own_url), application="commits") as opened:
        yield PostgresStore(opened)


async def working(ann: Caller, peer: InferencePeer, store: PostgresStore) -> tuple[Run, Thread]:
    """A run that waits for its model, and its thread, as they are stored."""
    thread_id = await ann.ready(memory=agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True))
    started = await ann.start(thread_id)
    await peer.call()
    async with store.tenant(ann.tenant) as records:
        run, thread = await records.run(started.id), await records.thread(thread_id)
    assert run is not None
    assert thread is not None
    return run, thread


async def test_what_is_as_its_owner_knows_it_is_written(ann: Caller, peer: InferencePeer, store: PostgresStore) -> None:
    run, thread = await working(ann, peer, store)
    for known in (thread, None):
        async with store.tenant(ann.tenant) as records:
            records.expect(run, known)
            await records.write_run(replace(run, finish_reason=2))
        async with store.tenant(ann.tenant) as records:
            assert await records.run(run.id) == replace(run, finish_reason=2)


@pytest.mark.parametrize(
    ("of_run", "of_thread"),
    [
        ({"epoch": 2}, {}),
        ({"revision": 1}, {}),
        ({"state": RunState.CANCELLING}, {}),
        ({"id": "run_of_nobody"}, {}),
        ({}, {"last_position": 2}),
        ({}, {"memory_position": 1}),
        ({}, {"id": "thr_of_nobody"}),
    ],
    ids=str,
)
async def test_of_what_is_otherwise_nothing_is_written(
    ann: Caller,
    peer: InferencePeer,
    store: PostgresStore,
    of_run: dict[str, object],
    of_thread: dict[str, object],
) -> None:
    run, thread = await working(ann, peer, store)
    with pytest.raises(Stale):
        async with store.tenant(ann.tenant) as records:
            records.expect(replace(run, **of_run), replace(thread, **of_thread))  # type: ignore[arg-type]
            await records.write_run(replace(run, finish_reason=2))
    async with store.tenant(ann.tenant) as records:
        assert await records.run(run.id) == run


async def test_another_tenants_run_is_none(ann: Caller, peer: InferencePeer, store: PostgresStore) -> None:
    run, thread = await working(ann, peer, store)
    with pytest.raises(Stale):
        async with store.tenant("another") as records:
            records.expect(run, thread)
            await records.write_run(replace(run, finish_reason=2))


async def test_what_was_reserved_meanwhile_stays_reserved(
    ann: Caller, peer: InferencePeer, store: PostgresStore, own_url: str
) -> None:
    run, _ = await working(ann, peer, store)
    async with store.tenant(ann.tenant) as records:
        assert await records.reserve(run.id, run.epoch, 50_000)
    async with store.tenant(ann.tenant) as records:
        records.expect(run, None)
        await records.write_run(run)
    connection = await asyncpg.connect(own_url)
    try:
        assert await connection.fetchval("SELECT reserved_sequence FROM orchestration.run") == 50_000
    finally:
        await connection.close()


async def test_a_cancel_that_came_before_a_commit_is_obeyed(
    ann: Caller, peer: InferencePeer, store: PostgresStore
) -> None:
    thread_id = await ann.ready(memory=agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True))
    started = await ann.start(thread_id)
    call = await peer.call()
    async with store.tenant(ann.tenant) as records:
        # As by another replica, whose word has not come here yet.
        await records.request_cancel(started.id, "enough", RunState.CANCELLING, rolls_back=False)
    call.answer("too late")
    events = await ann.watched(started.id)
    assert events[-1].run_cancelled.reason == "enough"
    assert (await ann.run(started.id)).state == run_pb2.RUN_STATE_CANCELLED
    assert await ann.history(thread_id) == [("user", "hello")]
