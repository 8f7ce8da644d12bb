"""Resuming over gRPC between two processes, one of which is cut, killed, paused or stopped."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.fakes.inference_processes import InferenceProcess, events_of, inference_processes
from tests.fakes.providers.http_server import WireServer
from tests.fakes.providers.inference_service import Refusal, prompt
from tests.fakes.tcp_proxy import TcpProxy
from tests.fakes.usage_records import eventually, rows

from janus_api.inference.v1 import event_pb2, request_pb2

Processes = tuple[list[InferenceProcess], WireServer]


@pytest.fixture
async def processes(postgres_url: str, redis_url: str) -> AsyncIterator[Processes]:
    async with inference_processes(2, postgres_url, redis_url) as started:
        yield started


def resumable(orders: str, **fields: Any) -> request_pb2.Prompt:
    return prompt(model=f"compatible/fake;{orders}", resumable=True, **fields)


def text_of(events: list[event_pb2.GenerationEvent]) -> str:
    return "".join(event.text_delta.text for event in events)


def check(events: list[event_pb2.GenerationEvent]) -> event_pb2.GenerationEvent:
    """Every sequence once and in order, one terminal event, the last; answers it."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert [kind for kind in kinds if kind in ("finished", "failed")] == [kinds[-1]]
    return events[-1]


def words(count: int) -> str:
    return " ".join(f"wörd{number}" for number in range(count))


async def test_a_client_that_is_cut_at_any_event_gets_the_same_whole_from_the_other_replica(processes):
    (first, second), _ = processes
    for cut in range(1, 9):
        call = first.generate(resumable("tokens=6;pace=15"))
        seen = await events_of(call, cut)
        call.cancel()
        generation = seen[0].started.generation_id
        whole = seen + await events_of(second.resume(generation, cut), None)
        assert check(whole).WhichOneof("event") == "finished"
        assert text_of(whole) == words(6)
        assert await events_of(first.resume(generation, 0)) == whole
        assert await events_of(second.resume(generation, 0)) == whole


async def test_a_killed_owner_ends_the_same_for_everybody_within_seconds(processes, postgres_url):
    (first, second), _ = processes
    call = first.generate(resumable("tokens=400;pace=20"))
    seen = await events_of(call, 5)
    generation = seen[0].started.generation_id
    live = [asyncio.create_task(events_of(second.resume(generation, 0))) for _ in range(3)]
    seen += await events_of(call, 10)
    first.kill()
    async with asyncio.timeout(15):
        ends = await asyncio.gather(*live)
    assert all(end == ends[0] for end in ends)
    failed = check(ends[0]).failed
    assert (failed.retryable, failed.partial) == (True, True)
    status = Refusal.of_status(failed.status)
    assert (status.code, status.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    # It is on record, once, and the same as is told.
    query = "SELECT output_tokens, estimated FROM inference.usage WHERE generation_id = $1"
    (row,) = await rows(postgres_url, query, generation)
    assert tuple(row) == (failed.usage.output_tokens, True)
    assert row["output_tokens"] > 0
    # What the client of the dead one saw is what is kept.
    assert ends[0][: len(seen)] == seen
    assert await events_of(second.resume(generation, len(seen))) == ends[0][len(seen) :]
    await first.start()
    assert await events_of(first.resume(generation, 0)) == ends[0]


async def test_what_a_killed_owner_used_is_on_record_though_nobody_asks(processes, postgres_url):
    (first, _), _ = processes
    seen = await events_of(first.generate(resumable("tokens=400;pace=20")), 6)
    generation = seen[0].started.generation_id
    first.kill()
    query = "SELECT outcome, output_tokens FROM inference.usage WHERE generation_id = $1"

    async def is_on_record() -> bool:
        return bool(await rows(postgres_url, query, generation))

    async with asyncio.timeout(30):
        await eventually(is_on_record)
    (row,) = await rows(postgres_url, query, generation)
    assert row["outcome"] == "owner_gone"
    assert row["output_tokens"] > 0


async def test_a_paused_owner_is_fenced_and_its_readers_see_the_end_that_others_saw(processes):
    (first, second), wire = processes
    call = first.generate(resumable("tokens=2000;pace=20"))
    seen = await events_of(call, 5)
    generation = seen[0].started.generation_id
    first.signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(15):
            told = await events_of(second.resume(generation, 0))
    finally:
        first.signal(signal.SIGCONT)
    assert check(told).failed.retryable
    async with asyncio.timeout(10):
        assert seen + await events_of(call) == told
        await (await wire.exchange()).client_gone.wait()
    assert await events_of(first.resume(generation, 0)) == told


async def test_a_generation_that_nobody_reads_is_cancelled_at_the_provider(processes):
    (first, second), wire = processes
    call = first.generate(resumable("tokens=2000;pace=20", linger=Duration(nanos=500_000_000)))
    seen = await events_of(call, 3)
    call.cancel()
    async with asyncio.timeout(10):
        await (await wire.exchange()).client_gone.wait()
        whole = seen + await events_of(second.resume(seen[0].started.generation_id, 3))
    failed = check(whole).failed
    assert Refusal.of_status(failed.status).code is grpc.StatusCode.CANCELLED
    assert (failed.retryable, failed.partial) == (False, True)


async def test_without_linger_the_provider_is_cancelled_with_the_call(processes):
    (first, _), wire = processes
    call = first.generate(resumable("tokens=2000;pace=20", linger=Duration()))
    await events_of(call, 3)
    call.cancel()
    async with asyncio.timeout(20):
        await (await wire.exchange()).client_gone.wait()


async def test_a_stopped_process_ends_its_generations_with_an_event(processes):
    (first, second), wire = processes
    call = first.generate(resumable("tokens=2000;pace=20"))
    generation = (await events_of(call, 3))[0].started.generation_id
    remote = asyncio.create_task(events_of(second.resume(generation, 0)))
    first.signal(signal.SIGTERM)
    async with asyncio.timeout(15):
        failed = check(await remote).failed
        await (await wire.exchange()).client_gone.wait()
    assert Refusal.of_status(failed.status).reason == "DRAINING"
    assert failed.retryable


async def test_a_stopped_process_tells_every_reader_the_end_or_where_to_go_on(processes):
    (first, second), wire = processes
    owned = first.generate(resumable("tokens=2000;pace=20"))
    plain = first.generate(prompt(model="compatible/fake;tokens=2000;pace=20"))
    elsewhere = second.generate(resumable("tokens=2000;pace=20"))
    generation = (await events_of(elsewhere, 3))[0].started.generation_id
    followed = first.resume(generation, 0)
    heads = [await events_of(owned, 3), await events_of(plain, 3), await events_of(followed, 3)]
    first.signal(signal.SIGTERM)
    async with asyncio.timeout(15):
        for head, call in zip(heads[:2], (owned, plain), strict=True):
            failed = check(head + await events_of(call)).failed
            status = Refusal.of_status(failed.status)
            assert (status.reason, failed.retryable, failed.partial) == ("DRAINING", True, True)
            assert failed.usage.output_tokens > 0
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await events_of(followed)
    assert Refusal.of(raised.value).reason == "DRAINING"
    await (await wire.exchange(1)).client_gone.wait()
    elsewhere.cancel()


async def test_another_tenant_finds_what_one_finds_that_never_was(processes):
    (first, second), _ = processes
    generation = (await events_of(first.generate(resumable("tokens=2"))))[0].started.generation_id
    plain = (await events_of(first.generate(prompt(model="compatible/fake"))))[0].started.generation_id
    answers = set()
    for name, tenant in ((generation, "bob"), (plain, "development"), (f"gen_{uuid.uuid4().hex}", "development")):
        for process in (first, second):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await events_of(process.resume(name, 0, metadata=[("janus-tenant", tenant)]))
            found = Refusal.of(raised.value)
            answers.add((found.code, found.reason, (raised.value.details() or "").replace(name, "ID")))
    assert answers == {(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND", "generation 'ID' was not found")}


async def test_a_place_beyond_the_end_is_out_of_range_and_the_end_itself_is_empty(processes):
    (first, second), _ = processes
    whole = await events_of(first.generate(resumable("tokens=2")))
    generation = whole[0].started.generation_id
    for process in (first, second):
        assert await events_of(process.resume(generation, len(whole))) == []
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await events_of(process.resume(generation, len(whole) + 1))
        found = Refusal.of(raised.value)
        assert (found.code, found.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_OUT_OF_RANGE")
        assert found.metadata["last_sequence"] == str(len(whole))


async def test_without_redis_a_resumable_generation_is_refused_and_any_other_answers(postgres_url, redis_url):
    proxy = TcpProxy.to(redis_url)
    try:
        async with inference_processes(1, postgres_url, proxy.through(redis_url)) as ((only,), wire):
            proxy.cut()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await events_of(only.generate(resumable("tokens=2")))
            found = Refusal.of(raised.value)
            assert (found.code, found.metadata.get("part")) == (grpc.StatusCode.UNAVAILABLE, "redis")
            assert wire.exchanges == []
            whole = await events_of(only.generate(prompt(model="compatible/fake;tokens=2")))
            assert check(whole).WhichOneof("event") == "finished"
    finally:
        proxy.close()
