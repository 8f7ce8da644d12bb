"""Following runs: cursors, many watchers, slow ones, other replicas, lost streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import redis.asyncio
from tests.fakes.orchestration_service import (
    Caller,
    Orchestration,
    all_events,
    check,
    kinds,
    running,
    text_of,
    until,
    until_kind,
)
from tests.fakes.peers.inference_peer import InferencePeer

from janus_api.orchestration.v1 import run_pb2
from janus_kit.errors import InvalidArgument, NotFound, OutOfRange
from janus_kit.rpc_errors import from_rpc


@pytest.fixture
async def service(own_url: str, redis_url: str, peer: InferencePeer) -> AsyncIterator[Orchestration]:
    async with running(own_url, redis_url, inference_target=peer.target, watcher_buffer=8) as serving:
        yield serving


@pytest.fixture
async def replica(own_url: str, redis_url: str, peer: InferencePeer) -> AsyncIterator[Orchestration]:
    """A second replica over the same stores."""
    async with running(own_url, redis_url, inference_target=peer.target) as serving:
        yield serving


async def flush(redis_url: str) -> None:
    client = redis.asyncio.Redis.from_url(redis_url)
    await client.flushdb()
    await client.aclose()


async def test_every_cursor_gives_exactly_the_rest(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("a", "b", "c")
    events = await all_events(ann.converse(await ann.ready()))
    for place, event in enumerate(events):
        rest = await ann.watched(event.run_id, event.cursor)
        assert rest == events[place + 1 :]
    assert await ann.watched(events[0].run_id) == events
    assert await ann.watched(events[0].run_id, run_pb2.Cursor()) == events


async def test_a_watcher_that_was_cut_misses_nothing(ann: Caller, peer: InferencePeer) -> None:
    stream = ann.converse(await ann.ready())
    call = await peer.call()
    call.start()
    call.text("one ", "two ")
    seen = await until(stream, 7)
    stream.cancel()
    call.text("three ")
    again = ann.watch(seen[-1].run_id, seen[-1].cursor)
    call.text("four")
    seen += await until(again, 1)
    again.cancel()
    call.finish()
    seen += await ann.watched(seen[-1].run_id, seen[-1].cursor)
    check(seen, after=0)
    assert text_of(seen) == "one two three four"


async def test_all_watchers_see_the_same(ann: Caller, replica: Orchestration, peer: InferencePeer) -> None:
    stream = ann.converse(await ann.ready())
    call = await peer.call()
    call.start()
    run_id = (await until(stream, 1))[0].run_id
    elsewhere = replica.caller(ann.tenant)
    watching = [asyncio.create_task(who.watched(run_id)) for who in [ann, elsewhere] * 10]
    rest = asyncio.create_task(all_events(stream))
    for word in range(50):
        call.text(f"{word} ")
        await asyncio.sleep(0)
    call.finish()
    expected = await ann.watched(run_id)
    check(expected, after=0)
    assert (await rest) == expected[1:]
    for events in await asyncio.gather(*watching):
        assert events == expected


async def test_another_replica_follows_live(ann: Caller, replica: Orchestration, peer: InferencePeer) -> None:
    stream = ann.converse(await ann.ready())
    call = await peer.call()
    call.start()
    run_id = (await until(stream, 1))[0].run_id
    there = replica.caller(ann.tenant).watch(run_id)
    seen = await until_kind(there, "model.started")
    for word in ("live ", "from ", "afar"):
        call.text(word)
        (event,) = await until(there, 1)
        assert event.model.event.text_delta.text == word
        seen.append(event)
    call.finish()
    seen += await all_events(there)
    check(seen, after=0)


async def test_a_slow_watcher_loses_nothing_and_slows_nobody(ann: Caller, peer: InferencePeer) -> None:
    stream = ann.converse(await ann.ready())
    call = await peer.call()
    call.start()
    run_id = (await until(stream, 1))[0].run_id
    slow = ann.watch(run_id)
    await until(slow, 1)
    filler = "x" * 4096
    for place in range(600):
        call.text(f"{place}:{filler}")
    call.finish()
    fast = await all_events(stream)
    assert sum(kind == "model.text_delta" for kind in kinds(fast)) == 600
    late = await all_events(slow)
    assert late == fast, "the slow one sees what the fast one saw"


async def test_a_cursor_that_never_was_is_refused(ann: Caller, replica: Orchestration, peer: InferencePeer) -> None:
    stream = ann.converse(await ann.ready())
    call = await peer.call()
    call.start()
    seen = await until_kind(stream, "model.started")
    run_id, last = seen[0].run_id, seen[-1].cursor.sequence
    for who in (ann, replica.caller(ann.tenant)):
        for cursor in ((1, last + 1), (1, 10_000), (2, last), (0, 1), (2, 0), (9, 1)):
            error = await refused(who, run_id, cursor)
            assert isinstance(error, OutOfRange), cursor
            assert error.reason == "CURSOR_OUT_OF_RANGE"
    assert isinstance(await refused(ann, run_id, (-1, 1)), InvalidArgument)
    call.finish()
    events = await all_events(stream)
    for who in (ann, replica.caller(ann.tenant)):
        assert await who.watched(run_id, run_pb2.Cursor(epoch=1)) == [*seen, *events]
    beyond = (1, events[-1].cursor.sequence + 1)
    assert isinstance(await refused(ann, run_id, beyond), OutOfRange)
    assert isinstance(await refused(ann, "run_of_nobody", (0, 0)), NotFound)
    assert isinstance(await refused(replica.caller(), run_id, (0, 0)), NotFound), "another tenant's run"


async def refused(who: Caller, run_id: str, cursor: tuple[int, int]) -> Exception:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await who.watched(run_id, run_pb2.Cursor(epoch=cursor[0], sequence=cursor[1]))
    return from_rpc(raised.value)


async def test_a_stream_that_expired_leaves_the_committed_messages(
    ann: Caller, replica: Orchestration, peer: InferencePeer, redis_url: str
) -> None:
    peer.always = ("gone ", "but ", "kept")
    whole = await all_events(ann.converse(await ann.ready()))
    await flush(redis_url)
    for who in (ann, replica.caller(ann.tenant)):
        events = await who.watched(whole[0].run_id)
        check(events)
        assert kinds(events) == [
            "run_queued",
            "run_started",
            "message_committed",
            "memory_recalled",
            "model.started",
            "replay_compacted",
            "model.finished",
            "message_committed",
            "run_completed",
        ]
        durable = [event for event in events if event.WhichOneof("event") != "replay_compacted"]
        assert all(event in whole for event in durable), "what is left is as it was"
        marker = events[5]
        assert marker.cursor == whole[7].cursor
        assert await who.watched(whole[0].run_id, marker.cursor) == whole[8:]
        # A client that had a part of what is gone goes on from there.
        assert kinds(await who.watched(whole[0].run_id, whole[5].cursor))[0] == "replay_compacted"


async def test_a_flush_in_mid_run_loses_no_event_of_live_watchers(
    ann: Caller, replica: Orchestration, peer: InferencePeer, redis_url: str
) -> None:
    stream = ann.converse(await ann.ready())
    call = await peer.call()
    call.start()
    call.text("before ")
    seen = await until_kind(stream, "model.text_delta")
    there = replica.caller(ann.tenant).watch(seen[0].run_id)
    far = await until_kind(there, "model.text_delta")
    await flush(redis_url)
    call.text("after")
    seen += await until_kind(stream, "model.text_delta")
    far += await until_kind(there, "model.text_delta")
    call.finish()
    seen += await all_events(stream)
    far += await all_events(there)
    check(seen, after=0)
    check(far, after=0)
    assert seen == far
    late = await ann.watched(seen[0].run_id)
    check(late)
    assert "replay_compacted" in kinds(late)
    assert [event for event in late if event.WhichOneof("event") != "replay_compacted"][-2:] == seen[-2:]
