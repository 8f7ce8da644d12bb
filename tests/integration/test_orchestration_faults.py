"""Replicas as processes that die, pause and lose their stores; one terminal event and no gap, always."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid

import asyncpg
import grpc
import pytest
from tests.fakes.orchestration_service import (
    Caller,
    Process,
    all_events,
    check,
    eventually,
    kinds,
    processes,
    running,
    text_of,
    until,
    until_kind,
)
from tests.fakes.peers.inference_peer import InferencePeer
from tests.fakes.tcp_proxy import TcpProxy

from janus_api.orchestration.v1 import event_pb2, run_pb2
from janus_kit.errors import JanusError
from janus_kit.rpc_errors import from_rpc, from_status


async def test_a_run_that_kills_whoever_works_on_it_is_given_up_and_says_so(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    async with processes(2, own_url, redis_url, inference_target=peer.target, max_takeovers=1) as (first, second):
        name = tenant()
        thread = await first.caller(name).ready()
        run = await first.caller(name).start(thread)
        await peer.call()
        owner = await asyncpg.connect(own_url)
        await owner.execute("UPDATE orchestration.run SET takeovers = 1")
        await owner.close()
        first.kill()
        events = await second.caller(name).watched(run.id)
        error = from_status(events[-1].run_failed.status)
        assert (error.code, error.reason, dict(error.metadata)) == ("ABORTED", "RUN_GIVEN_UP", {"takeovers": "2"})
        assert not events[-1].run_failed.retryable
        # The one that fails it has taken it over, too.
        assert (await second.caller(name).run(run.id)).takeovers == 2


def tenant() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


async def test_a_process_that_stood_still_for_longer_than_its_leases_goes_on_with_its_runs(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    async with running(own_url, redis_url, inference_target=peer.target, lease_s=0.5) as service:
        ann = service.caller()
        stream = ann.converse(await ann.ready(), cancel=True)
        call = await peer.call()
        call.start()
        call.text("half an ")
        seen = await until_kind(stream, "model.text_delta")
        time.sleep(0.8)  # noqa: ASYNC251 - the stall itself
        owner = await asyncpg.connect(own_url)

        async def is_held() -> bool:
            return bool(await owner.fetchval("SELECT expires_at > clock_timestamp() FROM orchestration.run_lease"))

        await eventually(is_held)
        await owner.close()
        call.text("answer")
        call.finish()
        events = [*seen, *await all_events(stream)]
        assert (text_of(events), kinds(events)[-1]) == ("half an answer", "run_completed")
        assert len(peer.calls) == 1


async def test_a_run_whose_owner_is_killed_goes_on_elsewhere(replicas: list[Process], peer: InferencePeer) -> None:
    first, second = (replica.caller(name) for name in [tenant()] for replica in replicas)
    thread = await first.ready()
    stream = first.converse(thread)
    call = await peer.call()
    call.start()
    call.text("half an ")
    seen = await until_kind(stream, "model.text_delta")
    run_id = seen[0].run_id
    watching = asyncio.create_task(second.watched(run_id))
    replicas[0].kill()
    killed_at = asyncio.get_running_loop().time()
    again = await peer.call()
    assert asyncio.get_running_loop().time() - killed_at < 5
    assert again.prompt == call.prompt, "the same question, with the same memories"
    again.answer("whole ", "answer")
    rest = await second.watched(run_id, seen[-1].cursor)
    check([*seen, *rest], after=0)
    assert kinds(rest)[0] == "attempt_restarted"
    restarted = rest[0].attempt_restarted
    assert (restarted.step, restarted.attempt) == (2, 2)
    recalled = next(event for event in seen if event.HasField("memory_recalled"))
    assert restarted.discard_after == recalled.cursor
    assert text_of([*seen, *rest]) == "whole answer"
    assert (await watching) == [*seen, *rest]
    assert await second.history(thread) == [("user", "hello"), ("assistant", "whole answer")]
    run = await second.run(run_id)
    assert (run.state, run.takeovers) == (run_pb2.RUN_STATE_COMPLETED, 1)
    assert [step.attempts for step in run.steps] == [1, 2, 1]


async def test_a_replica_alone_goes_on_after_a_restart(own_url: str, redis_url: str, peer: InferencePeer) -> None:
    async with processes(1, own_url, redis_url, inference_target=peer.target) as (replica,):
        name = tenant()
        ann = replica.caller(name)
        thread = await ann.ready()
        stream = ann.converse(thread)
        call = await peer.call()
        call.start()
        call.text("cut")
        seen = await until_kind(stream, "model.text_delta")
        queued = await ann.start(thread, "and then?")
        replica.kill()
        await replica.start()
        ann = replica.caller(name)
        (await peer.call()).answer("first")
        rest = await ann.watched(seen[0].run_id, seen[-1].cursor)
        check([*seen, *rest], after=0)
        (await peer.call()).answer("second")
        check(await ann.watched(queued.id), after=0)
        assert await ann.history(thread) == [
            ("user", "hello"),
            ("assistant", "first"),
            ("user", "and then?"),
            ("assistant", "second"),
        ]


async def test_an_owner_that_slept_past_its_lease_writes_nothing_more(
    replicas: list[Process], peer: InferencePeer
) -> None:
    name = tenant()
    first, second = (replica.caller(name) for replica in replicas)
    thread = await first.ready()
    stream = first.converse(thread)
    call = await peer.call()
    call.start()
    call.text("old ")
    seen = await until_kind(stream, "model.text_delta")
    run_id = seen[0].run_id
    replicas[0].signal(signal.SIGSTOP)
    again = await peer.call()
    # What the model still tells the sleeper must reach nobody.
    call.text("words ", "of a ghost")
    call.finish()
    again.start()
    again.text("new ")
    there = second.watch(run_id, seen[-1].cursor)
    rest = await until_kind(there, "model.text_delta")
    replicas[0].signal(signal.SIGCONT)
    # It knows a cursor that is newer than what it believes to own.
    early = first.watch(run_id, rest[-1].cursor)
    again.text("words")
    assert text_of(await until(early, 1)) == "words"
    early.cancel()
    await asyncio.wait_for(call.closed.wait(), 10)
    again.finish()
    rest += await all_events(there)
    check([*seen, *rest], after=0)
    assert text_of([*seen, *rest]) == "new words"
    # The client of the old owner is moved over, without a word of the ghost.
    assert [*seen, *(await all_events(stream))] == [*seen, *rest]
    assert await first.watched(run_id) == await second.watched(run_id) == [*seen, *rest]
    assert await second.history(thread) == [("user", "hello"), ("assistant", "new words")]


async def test_a_run_bound_to_its_stream_is_not_continued_after_its_owner_died(
    replicas: list[Process], peer: InferencePeer
) -> None:
    name = tenant()
    first, second = (replica.caller(name) for replica in replicas)
    stream = first.converse(await first.ready(), cancel=True)
    call = await peer.call()
    call.start()
    seen = await until_kind(stream, "model.started")
    replicas[0].kill()
    rest = await second.watched(seen[0].run_id, seen[-1].cursor)
    assert kinds(rest) == ["run_cancelled"]
    assert len(peer.calls) == 1


async def test_a_cancel_reaches_the_owner_from_any_replica(replicas: list[Process], peer: InferencePeer) -> None:
    name = tenant()
    first, second = (replica.caller(name) for replica in replicas)
    stream = first.converse(await first.ready())
    call = await peer.call()
    call.start()
    seen = await until_kind(stream, "model.started")
    await second.cancel(seen[0].run_id, "from afar")
    await asyncio.wait_for(call.closed.wait(), 10)
    rest = await all_events(stream)
    assert (kinds(rest), rest[-1].run_cancelled.reason) == (["run_cancelled"], "from afar")


async def test_a_replica_that_stops_hands_its_runs_over(replicas: list[Process], peer: InferencePeer) -> None:
    name = tenant()
    first, second = (replica.caller(name) for replica in replicas)
    stream = first.converse(await first.ready())
    call = await peer.call()
    call.start()
    seen = await until_kind(stream, "model.started")
    watching = asyncio.create_task(second.watched(seen[0].run_id, seen[-1].cursor))
    stopping = asyncio.create_task(replicas[0].stop())
    (await peer.call()).answer("taken over")
    rest = await watching
    check([*seen, *rest], after=0)
    assert kinds(rest)[-1] == "run_completed"
    await stopping


async def test_a_run_goes_on_without_redis(own_url: str, redis_url: str, peer: InferencePeer) -> None:
    proxy = TcpProxy.to(redis_url)
    try:
        async with running(own_url, proxy.through(redis_url), inference_target=peer.target) as service:
            ann = service.caller()
            thread = await ann.ready()
            stream = ann.converse(thread)
            call = await peer.call()
            call.start()
            call.text("with ")
            seen = await until_kind(stream, "model.text_delta")
            proxy.cut()
            call.text("or without ")
            seen += await until_kind(stream, "model.text_delta")
            call.text("it")
            seen += await until_kind(stream, "model.text_delta")
            # A watcher that comes now gets what Postgres has, and then what is said.
            late = ann.watch(seen[0].run_id)
            early = await until_kind(late, "memory_recalled")
            call.finish()
            seen += await all_events(stream)
            early += await all_events(late)
            check(seen, after=0)
            check(early, after=0)
            # What the journal gets with the next commit is not lost on anybody, either.
            assert "model.started" in kinds(early)
            assert text_of(seen) == "with or without it"
            assert early[-1] == seen[-1]
            # A whole turn without it.
            peer.always = ("all ", "well")
            whole = await all_events(ann.converse(thread, "again"))
            check(whole, after=0)
            assert text_of(whole) == "all well"
            proxy.mend()
            peer.always = ("back",)

            async def is_kept() -> bool:
                events = await all_events(ann.converse(thread, "and now?"))
                return "replay_compacted" not in kinds(await ann.watched(events[0].run_id))

            await eventually(is_kept)
    finally:
        proxy.close()


async def test_a_stream_gets_what_it_missed(own_url: str, redis_url: str, peer: InferencePeer) -> None:
    proxy = TcpProxy.to(redis_url)
    try:
        async with running(own_url, proxy.through(redis_url), inference_target=peer.target) as service:
            ann = service.caller()
            stream = ann.converse(await ann.ready())
            call = await peer.call()
            call.start()
            seen = await until_kind(stream, "model.started")
            proxy.cut()
            call.text("one ", "two ")
            seen += await until(stream, 2)
            proxy.mend()

            async def is_whole() -> bool:
                call.text("more ")
                seen.extend(await until(stream, 1))
                watcher = ann.watch(seen[0].run_id)
                events = await until(watcher, 6)
                watcher.cancel()
                return kinds(events)[-1] == "model.text_delta"

            await eventually(is_whole)
            call.finish()
            seen += await all_events(stream)

            async def is_kept() -> bool:
                return await ann.watched(seen[0].run_id) == seen

            await eventually(is_kept)
    finally:
        proxy.close()


async def test_sequences_are_never_reused_when_redis_and_the_owner_die(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    proxy = TcpProxy.to(redis_url)
    try:
        settings = {"inference_target": peer.target}
        async with processes(1, own_url, proxy.through(redis_url), **settings) as (replica,):
            name = tenant()
            ann = replica.caller(name)
            stream = ann.converse(await ann.ready())
            call = await peer.call()
            call.start()
            seen = await until_kind(stream, "model.started")
            proxy.cut()
            call.text("only ", "one ", "process ", "knew")
            seen += await until(stream, 4)
            replica.kill()
            proxy.mend()
            await replica.start()
            ann = replica.caller(name)
            (await peer.call()).answer("anew")
            rest = await ann.watched(seen[0].run_id, seen[-1].cursor)
            check([*seen, *rest], after=0)
            assert kinds(rest)[:2] == ["replay_compacted", "attempt_restarted"]
            assert text_of([*seen, *rest]) == "anew"
            assert_no_contradiction([*seen, *rest], await ann.watched(seen[0].run_id))
    finally:
        proxy.close()


def assert_no_contradiction(*histories: list[event_pb2.RunEvent]) -> None:
    """Invariant I4: the same sequence never carries two contents."""
    known: dict[int, event_pb2.RunEvent] = {}
    for event in (event for history in histories for event in history):
        if event.WhichOneof("event") != "replay_compacted":
            assert known.setdefault(event.cursor.sequence, event) == event


async def test_a_run_waits_for_postgres_and_nothing_is_lost(own_url: str, redis_url: str, peer: InferencePeer) -> None:
    proxy = TcpProxy.to(own_url)
    try:
        async with running(own_url, redis_url, inference_target=peer.target):
            pass  # migrated
        async with processes(1, proxy.through(own_url), redis_url, inference_target=peer.target) as (replica,):
            ann = replica.caller(tenant())
            thread = await ann.ready()
            stream = ann.converse(thread)
            call = await peer.call()
            call.start()
            call.text("before ")
            seen = await until_kind(stream, "model.text_delta")
            proxy.cut()
            error = await refused(ann, thread)
            assert (error.code, error.reason, error.metadata["part"]) == (
                "UNAVAILABLE",
                "DEPENDENCY_UNAVAILABLE",
                "postgres",
            )
            assert error.retry_after is not None
            call.text("after")
            call.finish()
            seen += await until_kind(stream, "model.finished")
            proxy.mend()
            seen += await all_events(stream)
            check(seen, after=0)
            assert kinds(seen)[-1] == "run_completed"
            assert await ann.history(thread) == [("user", "hello"), ("assistant", "before after")]
    finally:
        proxy.close()


async def refused(ann: Caller, thread: str) -> JanusError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await all_events(ann.converse(thread, "now"))
    return from_rpc(raised.value)
