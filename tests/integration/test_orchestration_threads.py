"""One run at a time per thread, and writes that are repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest
from tests.fakes.orchestration_service import (
    Caller,
    Orchestration,
    all_events,
    asking,
    check,
    kinds,
    running,
    text_of,
    until,
)
from tests.fakes.peers.inference_peer import InferencePeer
from tests.fakes.peers.memory_peer import memory_peer

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2, run_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    JanusError,
    NotFound,
    ResourceExhausted,
)
from janus_kit.rpc_errors import from_rpc


@pytest.fixture
async def service(own_url: str, redis_url: str, peer: InferencePeer) -> AsyncIterator[Orchestration]:
    async with running(own_url, redis_url, inference_target=peer.target, max_queued_per_thread=3) as serving:
        yield serving


async def refused(call: Awaitable[Any]) -> JanusError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc(raised.value)


async def test_a_second_message_waits_for_the_first(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    first = ann.converse(thread, "one")
    call = await peer.call()
    second = ann.converse(thread, "two")
    (queued,) = await until(second, 1)
    assert (queued.run_queued.thread_id, queued.run_queued.ahead) == (thread, 1)
    third = await ann.start(thread, "three")
    assert third.state == run_pb2.RUN_STATE_QUEUED
    # What waits is durable but not part of the conversation yet.
    assert await ann.history(thread) == [("user", "one")]
    assert (await ann.call("GetThread", pb.GetThreadRequest(thread_id=thread))).thread.active_run_id == (
        await until(first, 1)
    )[0].run_id
    call.answer("1")
    check(await all_events(first))
    (await peer.call()).answer("2")
    rest = await all_events(second)
    check([queued, *rest], after=0)
    assert text_of(rest) == "2"
    (await peer.call()).answer("3")
    check(await ann.watched(third.id), after=0)
    assert [text for _, text in await ann.history(thread)] == ["one", "1", "two", "2", "three", "3"]
    said = [message.parts[0].text for message in peer.calls[2].prompt.messages]
    assert said == ["one", "1", "two", "2", "three"]
    assert (await ann.call("GetThread", pb.GetThreadRequest(thread_id=thread))).thread.active_run_id == ""


async def test_an_agent_may_refuse_a_second_message(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(double_texting=agent_pb2.DOUBLE_TEXTING_REJECT)
    first = ann.converse(thread)
    call = await peer.call()
    error = await refused(ann.start(thread))
    assert isinstance(error, FailedPrecondition)
    assert (error.reason, error.metadata["state"]) == ("STATE_CONFLICT", "RUNNING")
    call.answer("done")
    await all_events(first)
    peer.always = ("again",)
    assert text_of(await all_events(ann.converse(thread))) == "again"


async def test_too_many_waiting_runs_are_refused(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    await ann.start(thread)
    await peer.call()
    for _ in range(3):
        await ann.start(thread)
    error = await refused(ann.start(thread))
    assert isinstance(error, ResourceExhausted)
    assert error.reason == "OVERLOADED"
    assert error.retry_after is not None


async def test_a_waiting_run_is_cancelled_without_having_run(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    first = ann.converse(thread, "one")
    call = await peer.call()
    waiting, following = await ann.start(thread, "never mind"), await ann.start(thread, "last")
    watching = asyncio.create_task(ann.watched(waiting.id))
    cancelled = await ann.cancel(waiting.id, "changed my mind")
    assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
    events = await watching
    assert kinds(events) == ["run_queued", "run_cancelled"]
    assert await ann.watched(waiting.id, events[0].cursor) == events[1:]
    call.answer("1")
    await all_events(first)
    (await peer.call()).answer("3")
    await ann.watched(following.id)
    assert [text for _, text in await ann.history(thread)] == ["one", "1", "last", "3"]


async def test_a_failed_run_lets_the_next_one_go(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    await ann.start(thread, "one")
    call = await peer.call()
    second = await ann.start(thread, "two")
    call.refuse(InvalidArgument("prompt", "is no good"))
    (await peer.call()).answer("fine")
    assert kinds(await ann.watched(second.id))[-1] == "run_completed"


async def test_many_turns_at_once_keep_every_thread_in_order(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("ok",)
    await ann.agent()
    threads = [await ann.thread() for _ in range(4)]
    runs = await asyncio.gather(*(all_events(ann.converse(thread, f"m{i}")) for thread in threads for i in range(4)))
    for events in runs:
        check(events, after=0)
        assert kinds(events)[-1] == "run_completed"
    for thread in threads:
        history = await ann.history(thread)
        assert [role for role, _ in history] == ["user", "assistant"] * 4
        assert {text for role, text in history if role == "user"} == {f"m{i}" for i in range(4)}


async def test_a_repeated_request_follows_the_same_run(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("once",)
    thread = await ann.ready()
    first = await all_events(ann.converse(thread, request_id="r1"))
    again = await all_events(ann.converse(thread, request_id="r1"))
    assert again == first
    assert len(peer.calls) == 1
    error = await refused(all_events(ann.converse(thread, "another body", request_id="r1")))
    assert isinstance(error, AlreadyExists)
    assert error.reason == "REQUEST_ID_REUSED"
    started = await ann.start(thread, request_id="r2")
    assert (await ann.start(thread, request_id="r2")).id == started.id


async def test_concurrent_repeats_start_one_run(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("once",)
    thread = await ann.ready()
    runs = await asyncio.gather(*(ann.start(thread, request_id="same") for _ in range(8)))
    assert len({run.id for run in runs}) == 1
    await ann.watched(runs[0].id)
    assert await ann.history(thread) == [("user", "hello"), ("assistant", "once")]


async def test_other_writes_are_repeatable_too(ann: Caller) -> None:
    put = pb.PutAgentRequest(agent=agent_pb2.Agent(name="helper", instructions="one"), request_id="a1")
    stored = await ann.call("PutAgent", put)
    await ann.agent(instructions="two")
    assert await ann.call("PutAgent", put) == stored
    assert (await ann.call("GetAgent", pb.GetAgentRequest(name="helper"))).agent.version == 2
    create = pb.CreateThreadRequest(thread=thread_pb2.Thread(agent="helper"), request_id="t1")
    made = await ann.call("CreateThread", create)
    assert await ann.call("CreateThread", create) == made
    changed = pb.CreateThreadRequest(thread=thread_pb2.Thread(title="other"), request_id="t1")
    assert (await refused(ann.call("CreateThread", changed))).reason == "REQUEST_ID_REUSED"


async def test_an_agent_is_versioned(ann: Caller, peer: InferencePeer) -> None:
    one = await ann.agent(instructions="one", description="a helper")
    assert (one.version, one.instructions) == (1, "one")
    assert await ann.agent(instructions="one", description="a helper") == one, "the same content keeps its version"
    two = await ann.agent(instructions="two")
    assert two.version == 2
    assert (await ann.call("GetAgent", pb.GetAgentRequest(name="helper", version=1))).agent == one
    stale = pb.PutAgentRequest(agent=agent_pb2.Agent(name="helper", instructions="three"), expected_version=1)
    error = await refused(ann.call("PutAgent", stale))
    assert isinstance(error, Aborted)
    assert (error.reason, error.metadata["current_version"]) == ("VERSION_MISMATCH", "2")
    run = await ann.start(await ann.thread())
    await ann.agent(instructions="three")
    assert (await peer.call()).prompt.system == "two"
    assert (await ann.run(run.id)).agent_version == 2


async def test_an_agent_comes_back_as_it_was_put(own_url: str, redis_url: str, peer: InferencePeer) -> None:
    agent = agent_pb2.Agent(
        name="whole",
        model="fast",
        instructions="be brief",
        description="for tests",
        memory=agent_pb2.MemoryPolicy(
            space="attic",
            recall_limit=0,
            recall_scope=agent_pb2.RECALL_SCOPE_THREAD,
            window_tokens=100,
            recall_tokens=50,
            do_not_store=True,
            summarize=True,
        ),
        double_texting=agent_pb2.DOUBLE_TEXTING_REJECT,
        max_output_tokens=64,
    )
    agent.sampling.temperature = 0
    agent.sampling.seed = 7
    agent.reasoning.budget_tokens = 0
    agent.budgets.max_model_steps = 3
    agent.budgets.max_wall_time.seconds = 60
    async with (
        memory_peer() as memory,
        running(own_url, redis_url, inference_target=peer.target, memory_target=memory.target) as service,
    ):
        stored = (await service.caller().call("PutAgent", pb.PutAgentRequest(agent=agent))).agent
    assert stored.version == 1
    assert stored.HasField("created_at")
    stored.ClearField("version")
    stored.ClearField("created_at")
    assert stored == agent


async def test_agents_page_by_name(ann: Caller, service: Orchestration) -> None:
    names = ["B", "a", "a.1", "b", "c:2"]
    for name in reversed(names):
        await ann.agent(name)
    await service.caller().agent("of-somebody-else")
    found, token = [], ""
    while True:
        page = await ann.call("ListAgents", pb.ListAgentsRequest(page_size=2, page_token=token))
        found += [agent.name for agent in page.agents]
        if not (token := page.next_page_token):
            break
    assert found == names
    elsewhere = service.caller()
    page = await ann.call("ListAgents", pb.ListAgentsRequest(page_size=2))
    stolen = pb.ListAgentsRequest(page_token=page.next_page_token)
    assert (await refused(elsewhere.call("ListAgents", stolen))).reason == "PAGE_TOKEN_INVALID"


async def test_messages_page_both_ways(ann: Caller) -> None:
    messages = [
        content.Message(role=[content.ROLE_USER, content.ROLE_ASSISTANT][i % 2], parts=[content.Part(text=str(i))])
        for i in range(5)
    ]
    create = pb.CreateThreadRequest(thread=thread_pb2.Thread(id="talk", title="A talk"), messages=messages)
    thread = (await ann.call("CreateThread", create)).thread
    assert (thread.id, thread.title) == ("talk", "A talk")
    for descending in (False, True):
        found, token = [], ""
        while True:
            request = pb.ListMessagesRequest(thread_id="talk", page_size=2, page_token=token, descending=descending)
            page = await ann.call("ListMessages", request)
            found += [item.message.parts[0].text for item in page.messages]
            if not (token := page.next_page_token):
                break
        assert found == (list("43210") if descending else list("01234"))
    error = await refused(ann.call("CreateThread", pb.CreateThreadRequest(thread=thread_pb2.Thread(id="talk"))))
    assert isinstance(error, AlreadyExists)
    assert error.reason == "RESOURCE_EXISTS"


async def test_a_page_of_large_messages_ends_early(ann: Caller) -> None:
    large = content.Message(role=content.ROLE_USER, parts=[content.Part(text="x" * 900_000)])
    create = pb.CreateThreadRequest(thread=thread_pb2.Thread(id="large"), messages=[large] * 4)
    await ann.call("CreateThread", create)
    for descending in (False, True):
        places, token = [], ""
        while True:
            request = pb.ListMessagesRequest(thread_id="large", page_token=token, descending=descending)
            page = await ann.call("ListMessages", request)
            places.append([item.position for item in page.messages])
            if not (token := page.next_page_token):
                break
        assert places == ([[4, 3, 2], [1]] if descending else [[1, 2, 3], [4]])


async def test_the_same_ids_belong_to_each_tenant_apart(service: Orchestration, peer: InferencePeer) -> None:
    peer.always = ("mine",)
    ann, bob = service.caller(), service.caller()
    for who in (ann, bob):
        await who.agent(instructions=who.tenant)
        await who.thread(id="same")
    await all_events(ann.converse("same", "secret", request_id="r"))
    assert await bob.history("same") == []
    await all_events(bob.converse("same", "other", request_id="r"))
    assert await bob.history("same") == [("user", "other"), ("assistant", "mine")]
    assert [call.prompt.system for call in peer.calls] == [ann.tenant, bob.tenant]


async def test_what_is_not_there_is_not_found(ann: Caller, service: Orchestration, peer: InferencePeer) -> None:
    peer.always = ("x",)
    thread = await ann.ready()
    run = (await all_events(ann.converse(thread)))[0].run_id
    stranger = service.caller()
    for who, thread_id, run_id in ((ann, "no_thread", "no_run"), (stranger, thread, run)):
        for call in (
            who.call("GetThread", pb.GetThreadRequest(thread_id=thread_id)),
            who.call("ListMessages", pb.ListMessagesRequest(thread_id=thread_id)),
            who.call("StartRun", pb.StartRunRequest(input=asking(thread_id, "hi"))),
            who.run(run_id),
            who.cancel(run_id),
        ):
            assert isinstance(await refused(call), NotFound)
    assert isinstance(await refused(ann.call("GetAgent", pb.GetAgentRequest(name="nobody"))), NotFound)
    ninth = await refused(ann.call("GetAgent", pb.GetAgentRequest(name="helper", version=9)))
    assert isinstance(ninth, NotFound)
    assert ninth.message == "version 9 of agent 'helper' was not found"
    assert isinstance(await refused(ann.thread("nobody")), NotFound)
    assert isinstance(await refused(ann.start(thread, agent="nobody")), NotFound)


async def test_a_thread_without_an_agent_is_answered_by_the_default_one(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("at your service",)
    thread = await ann.thread("")
    events = await all_events(ann.converse(thread))
    assert text_of(events) == "at your service"
    started = next(event.run_started for event in events if event.HasField("run_started"))
    assert (started.agent, started.agent_version) == ("default", 1)
