"""Threads and runs as they are listed, forked and deleted; agents that are taken out."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
import redis.asyncio
from tests.fakes.memory_service import Memory
from tests.fakes.memory_service import running as running_memory
from tests.fakes.memory_service import said as turn_said
from tests.fakes.orchestration_service import (
    Caller,
    Orchestration,
    all_events,
    assert_pairs,
    eventually,
    kinds,
    processes,
    running,
    said,
    text_of,
    until_kind,
)
from tests.fakes.peers.inference_peer import InferencePeer
from tests.fakes.tcp_proxy import TcpProxy
from tests.integration.test_orchestration_threads import refused

from janus_api.memory.v1 import memory_service_pb2 as memory_pb
from janus_api.memory.v1 import scope_pb2
from janus_api.orchestration.v1 import agent_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from janus_kit.rpc_errors import from_rpc


async def pages(who: Caller, method: str, field: str, request: Any) -> list[Any]:
    """All pages of a list, put together; none is empty but the only one."""
    found: list[Any] = []
    while True:
        page = await who.call(method, request)
        found += getattr(page, field)
        assert len(getattr(page, field)) <= (request.page_size or 100)
        if not page.next_page_token:
            return found
        assert getattr(page, field)
        request.page_token = page.next_page_token


async def threads(who: Caller, **fields: Any) -> list[str]:
    return [thread.id for thread in await pages(who, "ListThreads", "threads", pb.ListThreadsRequest(**fields))]


async def runs(who: Caller, **fields: Any) -> list[str]:
    return [run.id for run in await pages(who, "ListRuns", "runs", pb.ListRunsRequest(**fields))]


async def test_threads_page_by_their_last_use(ann: Caller, service: Orchestration, peer: InferencePeer) -> None:
    peer.always = ("ok",)
    await ann.agent("helper")
    await ann.agent("other")
    for name in ("a", "b", "c", "d"):
        await ann.thread("helper" if name < "d" else "other", id=name, subject="sue" if name in "ad" else "tom")
    await service.caller().agent()
    await all_events(ann.converse("b"))
    assert await threads(ann, page_size=1) == ["b", "d", "c", "a"]
    assert await threads(ann, subject="sue") == ["d", "a"]
    assert await threads(ann, subject="tom", page_size=1) == ["b", "c"]
    assert await threads(ann, agent="helper") == ["b", "c", "a"]
    assert await threads(ann, agent="other", subject="tom") == []
    assert await threads(service.caller()) == []
    # One that is used between two pages is first from then on, and listed once.
    first = await ann.call("ListThreads", pb.ListThreadsRequest(page_size=2))
    await all_events(ann.converse("d"))
    rest = await ann.call("ListThreads", pb.ListThreadsRequest(page_size=2, page_token=first.next_page_token))
    assert [thread.id for thread in (*first.threads, *rest.threads)] == ["b", "d", "c", "a"]
    stolen = pb.ListThreadsRequest(subject="sue", page_token=first.next_page_token)
    assert (await refused(ann.call("ListThreads", stolen))).reason == "PAGE_TOKEN_INVALID"


async def test_a_forged_token_is_refused_and_breaks_nothing(ann: Caller) -> None:
    await ann.thread("")
    await ann.thread("")
    token = (await ann.call("ListThreads", pb.ListThreadsRequest(page_size=1))).next_page_token
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for place in ("", "now x", "2026-01-01 naive", 7, None):
        forged = base64.urlsafe_b64encode(raw[:9] + json.dumps(place).encode()).decode().rstrip("=")
        error = await refused(ann.call("ListThreads", pb.ListThreadsRequest(page_token=forged)))
        assert error.reason == "PAGE_TOKEN_INVALID"


async def test_large_threads_make_short_pages(ann: Caller) -> None:
    metadata = json.dumps({"x": "y" * 16_000})
    for number in range(210):
        await ann.thread("", id=f"t{number:03}", metadata_json=metadata)
    first = await ann.call("ListThreads", pb.ListThreadsRequest(page_size=1000))
    assert 0 < len(first.threads) < 210
    assert first.ByteSize() < 4 * 1024 * 1024
    assert len(await threads(ann, page_size=1000)) == 210


async def test_runs_are_listed_newest_first(ann: Caller, service: Orchestration, peer: InferencePeer) -> None:
    await ann.agent()
    one, two = await ann.thread(), await ann.thread()
    peer.always = ("ok",)
    done = [(await all_events(ann.converse(one, f"m{i}", labels={"n": str(i)})))[0].run_id for i in range(3)]
    peer.always = None
    going = await ann.start(two)
    waiting = await ann.start(two)
    everything = [waiting.id, going.id, *reversed(done)]
    assert await runs(ann) == everything
    assert await runs(ann, page_size=2) == everything
    assert await runs(ann, thread_id=one, page_size=2) == [*reversed(done)]
    assert await runs(ann, states=[run_pb2.RUN_STATE_RUNNING]) == [going.id]
    assert await runs(ann, states=[run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_QUEUED]) == [waiting.id, going.id]
    assert await runs(ann, states=[run_pb2.RUN_STATE_COMPLETED, run_pb2.RUN_STATE_QUEUED], thread_id=two) == [
        waiting.id
    ]
    assert await runs(ann, thread_id="nowhere") == []
    assert await runs(service.caller()) == []
    (newest,) = (await ann.call("ListRuns", pb.ListRunsRequest(thread_id=one, page_size=1))).runs
    whole = await ann.run(done[-1])
    assert newest.labels == {"n": "2"}
    whole.ClearField("steps")
    whole.ClearField("output")
    assert newest == whole


async def test_an_agent_that_is_out_answers_no_more_and_its_runs_go_on(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    async with processes(1, own_url, redis_url, inference_target=peer.target) as (replica,):
        ann = replica.caller("t1")
        await ann.agent(instructions="one")
        thread = await ann.ready(instructions="two")
        running_now = await ann.start(thread)
        (await peer.call()).start()
        queued = await ann.start(thread)
        await ann.call("DeleteAgent", pb.DeleteAgentRequest(name="helper", request_id="d"))
        await ann.call("DeleteAgent", pb.DeleteAgentRequest(name="helper", request_id="d"))
        error = await refused(ann.call("DeleteAgent", pb.DeleteAgentRequest(name="helper")))
        assert isinstance(error, NotFound)
        for version in (0, 2):
            assert isinstance(
                await refused(ann.call("GetAgent", pb.GetAgentRequest(name="helper", version=version))), NotFound
            )
        assert list((await ann.call("ListAgents", pb.ListAgentsRequest())).agents) == []
        assert isinstance(await refused(ann.start(thread)), NotFound)
        # Whoever takes the run over still knows its agent.
        replica.kill()
        await replica.start()
        ann = replica.caller("t1")
        for run in (running_now, queued):
            call = await peer.call()
            assert call.prompt.system == "two"
            call.answer("done")
            assert kinds(await ann.watched(run.id))[-1] == "run_completed"
        # Put again, it is another version than those that runs have kept.
        assert (await ann.agent(instructions="two")).version == 3


async def test_the_default_agent_is_plain_again_when_it_is_out(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("hi",)
    await ann.call("DeleteAgent", pb.DeleteAgentRequest(name="default"))
    await ann.agent("default", instructions="be formal")
    thread = await ann.thread("")
    await all_events(ann.converse(thread))
    await ann.call("DeleteAgent", pb.DeleteAgentRequest(name="default"))
    await all_events(ann.converse(thread))
    assert [call.prompt.system for call in peer.calls] == ["be formal", ""]
    assert (await ann.call("GetAgent", pb.GetAgentRequest(name="default"))).agent.version == 2


def tool_user(**fields: Any) -> dict[str, Any]:
    return {"tools": [agent_pb2.AgentTool(name="time.now")], **fields}


async def test_a_fork_goes_its_own_way(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    for text in ("one", "two", "three"):
        peer.always = (f"re: {text}",)
        await all_events(ann.converse(thread, text))
    messages = await ann.messages(thread)
    request = pb.ForkThreadRequest(thread_id=thread, at_message_id=messages[3].id, new_thread_id="f", request_id="r")
    forked = (await ann.call("ForkThread", request)).thread
    assert (await ann.call("ForkThread", request)).thread == forked
    assert (forked.id, forked.agent) == ("f", "helper")
    assert (forked.forked_from_thread_id, forked.forked_at_message_id) == (thread, messages[3].id)
    assert (await ann.call("GetThread", pb.GetThreadRequest(thread_id="f"))).thread == forked
    assert await ann.messages("f") == messages[:4]
    page = await ann.call("ListMessages", pb.ListMessagesRequest(thread_id="f"))
    assert {item.run_id for item in page.messages} == {""}, "no run put them there"
    peer.always = ("elsewhere",)
    await all_events(ann.converse("f", "and now?"))
    assert [text for _, text in await ann.history("f")] == ["one", "re: one", "two", "re: two", "and now?", "elsewhere"]
    assert [said(message) for message in peer.calls[-1].prompt.messages] == [
        "one",
        "re: one",
        "two",
        "re: two",
        "and now?",
    ]
    assert await ann.messages(thread) == messages
    run = page.messages[1]
    assert run.message.id == messages[1].id
    # All of it, under an id that the server gives, and what cannot be.
    whole = (await ann.call("ForkThread", pb.ForkThreadRequest(thread_id=thread))).thread
    assert await ann.messages(whole.id) == messages
    assert whole.forked_at_message_id == messages[-1].id
    taken = await refused(ann.call("ForkThread", pb.ForkThreadRequest(thread_id=thread, new_thread_id="f")))
    assert isinstance(taken, AlreadyExists)
    assert taken.reason == "RESOURCE_EXISTS"
    for thread_id, message_id in (("nowhere", ""), (thread, "no-such"), ("f", messages[4].id)):
        request = pb.ForkThreadRequest(thread_id=thread_id, at_message_id=message_id)
        assert isinstance(await refused(ann.call("ForkThread", request)), NotFound)
    empty = await ann.thread(id="empty")
    forked = (await ann.call("ForkThread", pb.ForkThreadRequest(thread_id=empty))).thread
    assert (forked.forked_from_thread_id, forked.forked_at_message_id) == ("empty", "")
    assert await ann.messages(forked.id) == []


async def test_what_a_run_said_is_its_own_also_when_it_was_forked(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("ok",)
    thread = await ann.ready()
    run_id = (await all_events(ann.converse(thread)))[0].run_id
    before = await ann.run(run_id)
    await ann.call("ForkThread", pb.ForkThreadRequest(thread_id=thread))
    assert await ann.run(run_id) == before


async def test_a_fork_parts_no_call_from_its_result(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(**tool_user())
    stream = ann.converse(thread, "what time is it?")
    (await peer.call()).tools(("c1", "time.now"))
    (await peer.call()).answer("late")
    await all_events(stream)
    asked, called, answered, _ = await ann.messages(thread)
    error = await refused(
        ann.call("ForkThread", pb.ForkThreadRequest(thread_id=thread, at_message_id=called.id, new_thread_id="f"))
    )
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == ["at_message_id"]
    for number, message in enumerate((asked, answered)):
        fork = f"f{number}"
        await ann.call(
            "ForkThread", pb.ForkThreadRequest(thread_id=thread, at_message_id=message.id, new_thread_id=fork)
        )
        assert_pairs(await ann.messages(fork))
        peer.always = ("on",)
        await all_events(ann.converse(fork, "go on"))
        assert_pairs(peer.calls[-1].prompt.messages)
        assert_pairs(await ann.messages(fork))


async def test_a_fork_while_a_run_goes_on_takes_what_is_committed(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(**tool_user())
    stream = ann.converse(thread, "what time is it?")
    call = await peer.call()
    call.start()
    call.text("let me ")
    await until_kind(stream, "model.text_delta")
    await ann.start(thread, "waits")
    fork = (await ann.call("ForkThread", pb.ForkThreadRequest(thread_id=thread))).thread
    assert await ann.history(fork.id) == [("user", "what time is it?")]
    assert fork.active_run_id == ""
    call.finish()
    await all_events(stream)


async def test_nobody_reaches_another_tenants_threads_and_agents(
    ann: Caller, service: Orchestration, peer: InferencePeer
) -> None:
    peer.always = ("mine",)
    thread = await ann.ready(memory=agent_pb2.MemoryPolicy(do_not_store=True))
    await all_events(ann.converse(thread))
    message = (await ann.messages(thread))[0].id
    stranger = service.caller()
    for there, absent in (
        (pb.ForkThreadRequest(thread_id=thread), pb.ForkThreadRequest(thread_id="absent")),
        (
            pb.ForkThreadRequest(thread_id=thread, at_message_id=message),
            pb.ForkThreadRequest(thread_id="absent", at_message_id=message),
        ),
        (
            pb.DeleteThreadRequest(thread_id=thread, erase_memory=True),
            pb.DeleteThreadRequest(thread_id="absent", erase_memory=True),
        ),
        (pb.DeleteThreadRequest(thread_id=thread), pb.DeleteThreadRequest(thread_id="absent")),
        (pb.DeleteAgentRequest(name="helper"), pb.DeleteAgentRequest(name="absent")),
    ):
        method = type(there).__name__.removesuffix("Request")
        found = [await refused(stranger.call(method, request)) for request in (there, absent)]
        assert all(isinstance(error, NotFound) for error in found)
        assert found[0].message.replace(thread, "absent").replace("helper", "absent") == found[1].message
    assert len(await ann.messages(thread)) == 2
    assert await runs(stranger, thread_id=thread) == []


async def test_a_run_that_went_with_its_thread_is_not_started_anew_by_its_request_id(
    ann: Caller, peer: InferencePeer
) -> None:
    peer.always = ("ok",)
    await ann.agent(memory=agent_pb2.MemoryPolicy(do_not_store=True))
    await ann.thread(id="t")
    started = await ann.start("t", request_id="r1")
    (talked,) = {event.run_id for event in await all_events(ann.converse("t", request_id="r1"))}
    await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id="t"))
    # Nor in a new thread of that name.
    for is_there in (False, True):
        if is_there:
            await ann.thread(id="t")
        for again, run_id in (
            (ann.start("t", request_id="r1"), started.id),
            (all_events(ann.converse("t", request_id="r1")), talked),
        ):
            error = await refused(again)
            assert isinstance(error, NotFound)
            assert (error.resource_type, error.resource_name) == ("run", run_id)
        assert (await refused(ann.start("t", "other", request_id="r1"))).reason == "REQUEST_ID_REUSED"
    assert await runs(ann) == []


async def test_a_deletion_and_a_new_run_do_not_both_succeed(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("ok",)
    await ann.agent(memory=agent_pb2.MemoryPolicy(do_not_store=True))
    for number in range(8):
        thread = await ann.thread(id=f"t{number}")
        started, deleted = await asyncio.gather(
            ann.start(thread),
            ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id=thread)),
            return_exceptions=True,
        )
        if isinstance(started, BaseException):
            assert isinstance(from_rpc(started), NotFound)  # type: ignore[arg-type]
            assert not isinstance(deleted, BaseException)
        elif isinstance(deleted, BaseException):
            assert from_rpc(deleted).reason == "STATE_CONFLICT"  # type: ignore[arg-type]
            assert kinds(await ann.watched(started.id))[-1] == "run_completed"
        else:
            # The run had ended before: both happened, one after the other.
            assert isinstance(await refused(ann.run(started.id)), NotFound)


async def left_of(own_url: str, thread: str, run_ids: list[str]) -> dict[str, int]:
    """Rows that name the thread or one of its runs, by table; of all tables there are."""
    connection = await asyncpg.connect(own_url)
    try:
        columns = await connection.fetch(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'orchestration' "
            "AND column_name IN ('thread_id', 'run_id') UNION ALL VALUES ('thread', 'id'), ('run', 'id')"
        )
        assert len(columns) > 8
        found = {}
        for table, column in columns:
            rows = await connection.fetchval(
                f"SELECT count(*) FROM orchestration.{table} WHERE {column} = ANY($1::text[])", [thread, *run_ids]
            )
            if rows:
                found[f"{table}.{column}"] = rows
        return found
    finally:
        await connection.close()


async def redis_keys(redis_url: str, run_ids: list[str]) -> list[str]:
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    try:
        return [key async for key in client.scan_iter(match="*") if any(run_id in key for run_id in run_ids)]
    finally:
        await client.aclose()


async def test_a_deleted_thread_leaves_nothing(own_url: str, redis_url: str, peer: InferencePeer) -> None:
    async with running(own_url, redis_url, inference_target=peer.target) as service:
        ann, bob = service.caller(), service.caller()
        for who in (ann, bob):
            await who.agent(memory=agent_pb2.MemoryPolicy(do_not_store=True, recall_limit=0), **tool_user())
            await who.thread(id="same")
        stream = ann.converse("same", "one")
        (await peer.call()).tools(("c1", "time.now"))
        (await peer.call()).answer("it is late")
        first = (await all_events(stream))[0].run_id
        peer.always = ("yours",)
        await all_events(ann.converse("same", "two"))
        await all_events(bob.converse("same", "other"))
        run_ids = await runs(ann)
        assert first in run_ids
        assert await redis_keys(redis_url, run_ids)
        await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id="same", request_id="d"))
        await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id="same", request_id="d"))
        assert await redis_keys(redis_url, run_ids) == []
        for call in (
            ann.call("GetThread", pb.GetThreadRequest(thread_id="same")),
            ann.call("ListMessages", pb.ListMessagesRequest(thread_id="same")),
            ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id="same")),
            ann.run(first),
            all_events(ann.watch(first)),
            ann.start("same"),
        ):
            assert isinstance(await refused(call), NotFound)
        assert await threads(ann) == await runs(ann) == []
        assert await bob.history("same") == [("user", "other"), ("assistant", "yours")]
        await bob.call("DeleteThread", pb.DeleteThreadRequest(thread_id="same"))
        assert await left_of(own_url, "same", run_ids) == {}
        # The name is free.
        await ann.thread(id="same")
        await all_events(ann.converse("same", "anew"))
        assert await ann.history("same") == [("user", "anew"), ("assistant", "yours")]


async def test_a_thread_is_not_deleted_while_a_run_goes_on(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(memory=agent_pb2.MemoryPolicy(do_not_store=True))
    run = await ann.start(thread)
    call = await peer.call()
    for erase in (False, True):
        request = pb.DeleteThreadRequest(thread_id=thread, erase_memory=erase, request_id="d")
        error = await refused(ann.call("DeleteThread", request))
        assert isinstance(error, FailedPrecondition)
        assert (error.reason, error.metadata["state"]) == ("STATE_CONFLICT", "RUNNING")
    assert await ann.history(thread) == [("user", "hello")]
    call.answer("done")
    await ann.watched(run.id)
    # A refused request has taken nothing, not even its id.
    await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id=thread, request_id="d"))


async def test_a_thread_is_deleted_without_redis(own_url: str, redis_url: str, peer: InferencePeer) -> None:
    proxy = TcpProxy.to(redis_url)
    try:
        async with running(own_url, proxy.through(redis_url), inference_target=peer.target) as service:
            ann = service.caller()
            peer.always = ("ok",)
            thread = await ann.ready(memory=agent_pb2.MemoryPolicy(do_not_store=True))
            run_id = (await all_events(ann.converse(thread)))[0].run_id
            proxy.cut()
            await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id=thread))
            assert isinstance(await refused(all_events(ann.watch(run_id))), NotFound)
    finally:
        proxy.close()


@pytest.fixture
async def memory(own_url: str, redis_url: str) -> AsyncIterator[Memory]:
    async with running_memory(own_url, redis_url) as serving:
        yield serving


async def remembered(memory: Memory, ann: Caller, thread: str, space: str = "") -> list[str]:
    request = memory_pb.GetWindowRequest(scope=scope_pb2.Scope(thread=thread, space=space), max_tokens=1_000_000)
    answer = await memory.caller(ann.tenant).call("GetWindow", request)
    return [said(turn.message) for turn in answer.turns]


async def test_memory_keeps_or_loses_the_turns_as_is_asked(
    own_url: str, redis_url: str, peer: InferencePeer, memory: Memory
) -> None:
    address = memory.host.address or ""
    async with running(own_url, redis_url, inference_target=peer.target, memory_target=address) as service:
        ann = service.caller()
        peer.always = ("ok",)
        await ann.agent()
        for thread in ("kept", "erased"):
            await ann.thread(id=thread)
            await all_events(ann.converse(thread, f"of {thread}"))
        # What somebody else put into memory beside the thread's messages is not the thread's.
        await memory.caller(ann.tenant).append("erased", turn_said("a note", id="note"))
        await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id="kept"))
        await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id="erased", erase_memory=True))
        assert await remembered(memory, ann, "kept") == ["of kept", "ok"]

        async def is_gone() -> bool:
            # At once, unless memory's Redis was too slow for the first try.
            return await remembered(memory, ann, "erased") == ["a note"]

        await eventually(is_gone)


async def test_a_deletion_waits_for_memory_to_get_its_turns_or_to_forget_them(
    own_url: str, redis_url: str, peer: InferencePeer, memory: Memory
) -> None:
    proxy = TcpProxy.to(f"tcp://{memory.host.address}")
    target = f"127.0.0.1:{proxy.port}"
    settings = {"inference_target": peer.target, "memory_target": target, "store_timeout_s": 0.5}
    try:
        async with running(own_url, redis_url, **settings) as service:
            ann = service.caller()
            peer.always = ("ok",)
            await ann.agent()
            for thread in ("kept", "erased"):
                await ann.thread(id=thread)
            await all_events(ann.converse("erased", "of erased"))
            proxy.cut()
            await all_events(ann.converse("kept", "of kept"))
            error = await refused(ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id="kept")))
            assert isinstance(error, Unavailable)
            assert error.retry_after is not None
            await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id="erased", erase_memory=True))
            assert await threads(ann) == ["kept"]
            proxy.mend()

            async def is_gone() -> bool:
                return await remembered(memory, ann, "erased") == []

            await eventually(is_gone, 20)

            async def is_out() -> bool:
                try:
                    await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id="kept"))
                except grpc.aio.AioRpcError:
                    return False
                return True

            await eventually(is_out, 20)
            assert await remembered(memory, ann, "kept") == ["of kept", "ok"]
    finally:
        proxy.close()


async def test_a_fork_is_not_remembered_twice(
    own_url: str, redis_url: str, peer: InferencePeer, memory: Memory
) -> None:
    address = memory.host.address or ""
    async with running(own_url, redis_url, inference_target=peer.target, memory_target=address) as service:
        ann = service.caller()
        peer.always = ("ok",)
        thread = await ann.ready()
        await all_events(ann.converse(thread, "once"))
        fork = (await ann.call("ForkThread", pb.ForkThreadRequest(thread_id=thread))).thread.id
        events = await all_events(ann.converse(fork, "then"))
        assert text_of(events) == "ok"
        assert await remembered(memory, ann, thread) == ["once", "ok"]
        assert await remembered(memory, ann, fork) == ["then", "ok"]
