"""Agents that bring others in: a conversation that is handed over, and agents that are asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
from tests.fakes.orchestration_service import (
    Caller,
    Orchestration,
    all_events,
    asking,
    assert_pairs,
    check,
    kinds,
    processes,
    running,
    said,
    until_kind,
)
from tests.fakes.peers.inference_peer import Call, InferencePeer
from tests.fakes.peers.memory_peer import MemoryPeer, memory_peer

from janus_api.content.v1 import message_pb2 as content
from janus_api.content.v1 import usage_pb2
from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.errors import InvalidArgument
from janus_kit.rpc_errors import from_rpc

ALONE = agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True)
NOW = agent_pb2.AgentTool(name="time.now")
COMPLETED, CANCELLED, FAILED = (
    run_pb2.RUN_STATE_COMPLETED,
    run_pb2.RUN_STATE_CANCELLED,
    run_pb2.RUN_STATE_FAILED,
)


@pytest.fixture
async def memory() -> AsyncIterator[MemoryPeer]:
    async with memory_peer() as running_peer:
        yield running_peer


@pytest.fixture
async def service(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer
) -> AsyncIterator[Orchestration]:
    async with running(own_url, redis_url, inference_target=peer.target, memory_target=memory.target) as serving:
        yield serving


def hands(agent: str) -> tuple[str, str, str]:
    return (f"h-{agent}", "agent.handoff", json.dumps({"agent": agent}))


def asks(agent: str, task: str = "count to three", call_id: str = "a1") -> tuple[str, str, str]:
    return (call_id, "agent.ask", json.dumps({"agent": agent, "task": task}))


def tool_names(call: Call) -> list[str]:
    return [tool.name for tool in call.prompt.tools]


def choices(call: Call, tool: str) -> list[str]:
    """The agents that a tool of a prompt lets the model choose from."""
    (schema,) = (each.parameters_schema_json for each in call.prompt.tools if each.name == tool)
    return list(json.loads(schema)["properties"]["agent"]["enum"])


def last_results(call: Call) -> dict[str, tuple[str, bool]]:
    """The results in the last message of a prompt."""
    message = call.prompt.messages[-1]
    assert message.role == content.ROLE_TOOL
    return {
        part.tool_result.call_id: ("".join(p.text for p in part.tool_result.parts), part.tool_result.is_error)
        for part in message.parts
    }


async def all_runs(ann: Caller) -> list[run_pb2.Run]:
    return list((await ann.call("ListRuns", pb.ListRunsRequest())).runs)


def of_kind(events: list[event_pb2.RunEvent], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]


async def desk(ann: Caller, **triage: Any) -> str:
    """A thread of `triage`, who may hand over to `billing`."""
    await ann.agent("billing", memory=ALONE, description="Knows about invoices.", instructions="You are billing.")
    await ann.agent("triage", memory=ALONE, handoffs=["billing"], **triage)
    return await ann.thread("triage")


async def office(ann: Caller, **boss: Any) -> str:
    """A thread of `boss`, who may ask `clerk`."""
    await ann.agent("clerk", memory=ALONE, description="Counts.")
    await ann.agent("boss", memory=ALONE, sub_agents=["clerk"], **boss)
    return await ann.thread("boss")


# -- handoffs --------------------------------------------------------------------------


async def test_another_agent_goes_on_with_the_whole_conversation(ann: Caller, peer: InferencePeer) -> None:
    thread = await desk(ann)
    stream = ann.converse(thread, "my invoice is wrong")
    asked = await peer.call()
    assert tool_names(asked) == ["agent.handoff"]
    assert choices(asked, "agent.handoff") == ["billing"]
    assert "Knows about invoices." in asked.prompt.tools[0].description
    asked.tools(hands("billing"))
    events = await all_events(stream)
    check(events)
    (handoff,) = of_kind(events, "handoff")
    assert (handoff.from_agent, handoff.to_agent) == ("triage", "billing")
    assert kinds(events)[-2:] == ["handoff", "run_completed"]

    goes_on = await peer.call()
    assert goes_on.prompt.system == "You are billing."
    assert said(goes_on.prompt.messages[0]) == "my invoice is wrong"
    assert_pairs(goes_on.prompt.messages)
    goes_on.answer("Let me see.")
    seen = await ann.watched(handoff.child_run_id)
    check(seen)
    child, parent = await ann.run(handoff.child_run_id), await ann.run(handoff.child_run_id and events[0].run_id)
    assert (child.parent_run_id, child.thread_id, child.agent, child.state) == (parent.id, thread, "billing", COMPLETED)
    assert [step.kind for step in parent.steps if step.kind == run_pb2.STEP_KIND_HANDOFF]
    assert_pairs(await ann.messages(thread))

    # The conversation is with it from now on.
    stream = ann.converse(thread, "thanks")
    later = await peer.call()
    assert later.prompt.system == "You are billing."
    later.answer("bye")
    await all_events(stream)
    assert [text for _, text in await ann.history(thread)][-2:] == ["thanks", "bye"]


async def test_who_goes_on_comes_before_what_waits(ann: Caller, peer: InferencePeer) -> None:
    thread = await desk(ann)
    stream = ann.converse(thread, "first")
    first = await peer.call()
    waits = await ann.start(thread, "second")
    first.tools(hands("billing"))
    (handoff,) = of_kind(await all_events(stream), "handoff")
    goes_on = await peer.call()
    assert [said(m) for m in goes_on.prompt.messages if m.role == content.ROLE_USER] == ["first"]
    assert (await ann.run(waits.id)).state == run_pb2.RUN_STATE_QUEUED
    goes_on.answer("to the first")
    second = await peer.call()
    assert said(second.prompt.messages[-1]) == "second"
    second.answer("to the second")
    assert (await ann.until(waits.id, COMPLETED)).agent == "triage"
    assert (await ann.run(handoff.child_run_id)).state == COMPLETED


async def test_nobody_is_brought_in_twice_in_one_chain(ann: Caller, peer: InferencePeer) -> None:
    thread = await desk(ann)
    await ann.agent("billing", memory=ALONE, handoffs=["triage", "default"])
    stream = ann.converse(thread)
    (await peer.call()).tools(hands("billing"))
    (handoff,) = of_kind(await all_events(stream), "handoff")
    second = await peer.call()
    assert choices(second, "agent.handoff") == ["default"]
    second.tools(hands("triage"))
    refused = await peer.call()
    text, is_error = last_results(refused)["h-triage"]
    assert is_error
    assert "agent" in text
    refused.answer("then I do it myself")
    assert (await ann.until(handoff.child_run_id, COMPLETED)).agent == "billing"
    # In the next turn it may go back.
    stream = ann.converse(thread)
    again = await peer.call()
    assert choices(again, "agent.handoff") == ["triage", "default"]
    again.answer("done")
    await all_events(stream)


async def test_a_chain_has_a_longest_length(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer
) -> None:
    async with running(
        own_url, redis_url, inference_target=peer.target, memory_target=memory.target, max_agents=2
    ) as serving:
        ann = serving.caller()
        thread = await desk(ann)
        await ann.agent("billing", memory=ALONE, handoffs=["default"])
        stream = ann.converse(thread)
        (await peer.call()).tools(hands("billing"))
        await all_events(stream)
        last = await peer.call()
        assert tool_names(last) == []
        last.tools(hands("default"))
        refused = await peer.call()
        assert last_results(refused)["h-default"][1]
        refused.answer("done")


async def test_other_calls_of_the_answer_are_done_first_and_one_handoff_is_heeded(
    ann: Caller, peer: InferencePeer
) -> None:
    await ann.agent("other", memory=ALONE)
    thread = await desk(ann, tools=[NOW])
    await ann.agent("triage", memory=ALONE, handoffs=["billing", "other"], tools=[NOW])
    stream = ann.converse(thread)
    (await peer.call()).tools(hands("billing"), ("t1", "time.now"), ("h2", "agent.handoff", '{"agent":"other"}'))
    events = await all_events(stream)
    (handoff,) = of_kind(events, "handoff")
    goes_on = await peer.call()
    found = last_results(goes_on)
    assert not found["t1"][1]
    assert sorted(is_error for call, (_, is_error) in found.items() if call != "t1") == [False, True]
    goes_on.answer("here I am")
    await ann.until(handoff.child_run_id, COMPLETED)


async def test_a_handoff_may_need_a_persons_consent(ann: Caller, peer: InferencePeer) -> None:
    thread = await desk(ann, approval=agent_pb2.ApprovalPolicy(tools=["agent.handoff"]))
    stream = ann.converse(thread)
    (await peer.call()).tools(hands("billing"))
    seen = await until_kind(stream, "approval_requested")
    await ann.decide(seen[0].run_id, seen[-1].approval_requested.approval.approval_id, approve=False)
    declined = await peer.call()
    assert last_results(declined)["h-billing"][1]
    declined.answer("I go on myself")
    rest = await all_events(stream)
    assert "handoff" not in kinds(rest)
    assert (await ann.call("GetThread", pb.GetThreadRequest(thread_id=thread))).thread.agent == "triage"


async def test_memory_is_owed_every_turn_once(
    ann: Caller, peer: InferencePeer, memory: MemoryPeer, own_url: str
) -> None:
    memory.refuses = 100
    await ann.agent("billing", memory=agent_pb2.MemoryPolicy(recall_limit=0))
    await ann.agent("triage", memory=agent_pb2.MemoryPolicy(recall_limit=0), handoffs=["billing"])
    thread = await ann.thread("triage")
    stream = ann.converse(thread, "my invoice")
    (await peer.call()).tools(hands("billing"))
    (handoff,) = of_kind(await all_events(stream), "handoff")
    (await peer.call()).answer("Let me see.")
    await ann.until(handoff.child_run_id, COMPLETED)
    connection = await asyncpg.connect(own_url)
    owed = "SELECT from_position, to_position FROM orchestration.memory_outbox ORDER BY 1"
    debts = [tuple(row) for row in await connection.fetch(owed)]
    await connection.close()
    assert len(await ann.messages(thread)) == 4
    assert debts == [(1, 3), (4, 4)]


async def test_a_handoff_survives_the_death_of_its_owner(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer
) -> None:
    async with processes(
        2, own_url, redis_url, inference_target=peer.target, memory_target=memory.target, lease_s=0.6, poll_s=0.1
    ) as both:
        first, second = (process.caller("t-1") for process in both)
        thread = await desk(first, tools=[NOW])
        stream = first.converse(thread)
        asked = await peer.call()
        run_id = (await until_kind(stream, "run_started"))[0].run_id
        both[0].kill()
        asked.cut()
        again = await peer.call()
        again.tools(hands("billing"))
        events = await second.watched(run_id)
        (handoff,) = of_kind(events, "handoff")
        (await peer.call()).answer("here")
        assert (await second.until(handoff.child_run_id, COMPLETED)).parent_run_id == run_id
        assert_pairs(await second.messages(thread))


# -- agents that are asked -------------------------------------------------------------


async def test_an_agent_that_is_asked_works_in_a_thread_of_its_own(ann: Caller, peer: InferencePeer) -> None:
    thread = await office(ann)
    stream = ann.converse(thread, "how far can you count?")
    asked = await peer.call()
    assert choices(asked, "agent.ask") == ["clerk"]
    asked.tools(asks("clerk"))
    clerk = await peer.call()
    assert [said(message) for message in clerk.prompt.messages] == ["count to three"]
    seen = await until_kind(stream, "tool_call_started")
    child_id = seen[-1].tool_call_started.child_run_id
    parent = await ann.until(seen[0].run_id, run_pb2.RUN_STATE_WAITING_TOOL)
    (waits,) = parent.waiting_for
    assert (waits.agent.call.call_id, waits.agent.child_run_id) == ("a1", child_id)
    clerk.answer("one two three")
    told = await peer.call()
    assert last_results(told) == {"a1": ("one two three", False)}
    told.answer("to three")
    check([*seen, *await all_events(stream)])
    child = await ann.run(child_id)
    assert (child.parent_run_id, child.agent, child.state) == (parent.id, "clerk", COMPLETED)
    assert child.thread_id != thread
    kept = (await ann.call("GetThread", pb.GetThreadRequest(thread_id=child.thread_id))).thread
    assert kept.parent_run_id == parent.id
    assert_pairs(await ann.messages(thread))
    # What the other one used is told of the step, and is not the run's own.
    done = await ann.run(parent.id)
    (step,) = (step for step in done.steps if step.kind == run_pb2.STEP_KIND_TOOL_CALL)
    assert step.usage == child.usage != usage_pb2.Usage()
    own = [step.usage.output_tokens for step in done.steps if step.kind == run_pb2.STEP_KIND_MODEL_CALL]
    assert done.usage.output_tokens == sum(own)


async def test_several_are_asked_side_by_side(ann: Caller, peer: InferencePeer) -> None:
    thread = await office(ann, tools=[NOW])
    stream = ann.converse(thread)
    (await peer.call()).tools(asks("clerk", "one", "a1"), ("t1", "time.now"), asks("clerk", "two", "a2"))
    calls = [await peer.call(), await peer.call()]
    for call in reversed(calls):
        call.answer(f"did {said(call.prompt.messages[0])}")
    told = await peer.call()
    found = last_results(told)
    assert (found["a1"], found["a2"]) == (("did one", False), ("did two", False))
    assert not found["t1"][1]
    told.answer("all done")
    check(await all_events(stream))


async def test_a_failure_of_who_was_asked_is_told_to_the_model(ann: Caller, peer: InferencePeer) -> None:
    thread = await office(ann)
    stream = ann.converse(thread)
    (await peer.call()).tools(asks("clerk"))
    (await peer.call()).refuse(InvalidArgument("prompt", "no"))
    told = await peer.call()
    text, is_error = last_results(told)["a1"]
    assert is_error
    assert "failed" in text
    told.answer("never mind")
    assert kinds(await all_events(stream))[-1] == "run_completed"


async def test_what_is_asked_after_a_handoff_is_answered_by_who_went_on(ann: Caller, peer: InferencePeer) -> None:
    await ann.agent("expert", memory=ALONE)
    thread = await office(ann)
    await ann.agent("clerk", memory=ALONE, handoffs=["expert"])
    stream = ann.converse(thread)
    (await peer.call()).tools(asks("clerk"))
    (await peer.call()).tools(hands("expert"))
    expert = await peer.call()
    assert said(expert.prompt.messages[0]) == "count to three"
    expert.answer("I know")
    told = await peer.call()
    assert last_results(told) == {"a1": ("I know", False)}
    told.answer("good")
    await all_events(stream)


async def test_cancelling_a_run_cancels_those_that_it_asked(ann: Caller, peer: InferencePeer) -> None:
    thread = await office(ann)
    stream = ann.converse(thread)
    (await peer.call()).tools(asks("clerk"))
    clerk = await peer.call()
    clerk.text("one")
    seen = await until_kind(stream, "tool_call_started")
    await ann.cancel(seen[0].run_id, "enough")
    assert kinds(await all_events(stream))[-1] == "run_cancelled"
    child = await ann.until(seen[-1].tool_call_started.child_run_id, CANCELLED, COMPLETED)
    assert child.state == CANCELLED
    assert_pairs(await ann.messages(thread))


@pytest.fixture
async def hardly_looking(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer
) -> AsyncIterator[tuple[Caller, Caller]]:
    """Callers of two replicas that are told of things, or do not find them within the time of a test.

    The second one takes no runs.
    """
    settings = {"inference_target": peer.target, "memory_target": memory.target, "poll_s": 60, "lease_s": 60}
    async with (
        running(own_url, redis_url, **settings) as first,
        running(own_url, redis_url, **settings, max_runs=1) as second,
    ):
        busy = second.caller()
        run = await busy.start(await busy.ready(memory=ALONE))
        await peer.call()
        yield first.caller("t-1"), second.caller("t-1")
        await busy.cancel(run.id)
        await busy.until(run.id, CANCELLED)


@pytest.mark.parametrize("where", [0, 1])
async def test_all_that_was_asked_is_told_of_a_cancel_at_once(
    hardly_looking: tuple[Caller, Caller], peer: InferencePeer, where: int
) -> None:
    ann = hardly_looking[0]
    await ann.agent("boy", memory=ALONE)
    thread = await office(ann)
    await ann.agent("clerk", memory=ALONE, sub_agents=["boy"])
    run = await ann.start(thread)
    (await peer.call()).tools(asks("clerk", "one", "a1"), asks("clerk", "two", "a2"))
    waits, works = await peer.call(), await peer.call()
    waits.tools(asks("boy"))
    below = await peer.call()
    for call in (works, below):
        call.start()
        call.text("one")
    so_far = len(peer.calls)
    await hardly_looking[where].cancel(run.id, "enough")
    async with asyncio.timeout(10):
        await works.closed.wait()
        await below.closed.wait()
    runs = await all_runs(ann)
    assert len(runs) == 4
    for each in runs:
        await ann.until(each.id, CANCELLED)
        (last,) = of_kind(await ann.watched(each.id), "run_cancelled")
        assert last.reason == ("enough" if each.id == run.id else "the run that asked does not wait any more")
    # Those who waited were not woken by the ends of those below them.
    assert len(peer.calls) == so_far
    assert_pairs(await ann.messages(thread))


async def test_one_that_nobody_waits_for_is_ended_before_it_begins(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer
) -> None:
    settings = {"inference_target": peer.target, "memory_target": memory.target, "poll_s": 60, "max_runs": 1}
    async with running(own_url, redis_url, **settings) as serving:
        ann = serving.caller("t-1")
        run = await ann.start(await office(ann))
        (await peer.call()).tools(asks("clerk", "one", "a1"), asks("clerk", "two", "a2"))
        works = await peer.call()
        works.start()
        works.text("one")
        await ann.until(run.id, run_pb2.RUN_STATE_WAITING_TOOL)
        # The other one waits for the place of this one.
        await ann.cancel(run.id)
        for each in await all_runs(ann):
            await ann.until(each.id, CANCELLED)
        assert works.closed.is_set()
        assert len(peer.calls) == 2


async def test_what_was_not_told_is_found(own_url: str, ann: Caller, peer: InferencePeer) -> None:
    run = await ann.start(await office(ann))
    (await peer.call()).tools(asks("clerk"))
    clerk = await peer.call()
    clerk.start()
    parent = await ann.until(run.id, run_pb2.RUN_STATE_WAITING_TOOL)
    child = parent.waiting_for[0].agent.child_run_id
    # As by a commit of which no news came.
    connection = await asyncpg.connect(own_url)
    await connection.execute("UPDATE orchestration.run_lease SET orphaned = true WHERE run_id = $1", child)
    await connection.close()
    async with asyncio.timeout(10):
        await clerk.closed.wait()
    (last,) = of_kind(await ann.watched(child), "run_cancelled")
    assert last.reason == "the run that asked does not wait any more"
    (await peer.call()).answer("then not")
    await ann.until(run.id, COMPLETED)


async def test_a_run_that_waits_for_another_needs_no_owner(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer
) -> None:
    settings = {"inference_target": peer.target, "memory_target": memory.target}
    async with running(own_url, redis_url, **settings, max_runs=1) as serving:
        # The one place is free again for the run that is waited for.
        ann = serving.caller("t-1")
        thread = await office(ann)
        run = await ann.start(thread)
        (await peer.call()).tools(asks("clerk"))
        clerk = await peer.call()
        await ann.until(run.id, run_pb2.RUN_STATE_WAITING_TOOL)
    clerk.cut()
    async with running(own_url, redis_url, **settings) as serving:
        ann = serving.caller("t-1")
        (await peer.call()).answer("three")
        (await peer.call()).answer("good")
        assert (await ann.until(run.id, COMPLETED, FAILED)).state == COMPLETED


async def test_tokens_and_money_are_limited_over_all(ann: Caller, peer: InferencePeer) -> None:
    # A call of this model takes 15 tokens.
    thread = await office(ann, budgets=agent_pb2.Budgets(max_tokens=60))
    stream = ann.converse(thread)
    (await peer.call()).tools(asks("clerk"))
    seen = await until_kind(stream, "tool_call_started")
    for _ in range(3):
        (await peer.call()).tools(("t1", "time.now"))
    rest = await all_events(stream)
    child, parent = await ann.run(seen[-1].tool_call_started.child_run_id), await ann.run(seen[0].run_id)
    assert (child.state, parent.state) == (FAILED, FAILED)
    for run in (child, parent):
        assert run.error.message == "the run's budget of tokens is used up"
    assert (parent.usage.output_tokens, child.usage.output_tokens) == (5, 15)
    assert "budget_warning" in kinds(rest)
    assert_pairs(await ann.messages(thread))


# -- agents as data --------------------------------------------------------------------


@pytest.mark.parametrize("field", ["handoffs", "sub_agents"])
@pytest.mark.parametrize(
    ("names", "place", "rule"),
    [
        (["nobody"], 0, "must name an agent that is there"),
        (["default", "default"], 1, "must be unique"),
        (["helper"], 0, "must not be the agent itself"),
        (["a b"], 0, "must be"),
    ],
)
async def test_an_agent_to_bring_in_must_be_there(
    ann: Caller, field: str, names: list[str], place: int, rule: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ann.agent("helper", **{field: names})
    error = from_rpc(raised.value)
    assert isinstance(error, InvalidArgument)
    (violation,) = error.violations
    assert violation.field == f"agent.{field}[{place}]"
    assert rule in violation.rule


async def test_an_agent_keeps_whom_it_may_bring_in(ann: Caller) -> None:
    await ann.agent("helper", handoffs=["default"], sub_agents=["default"])
    kept = (await ann.call("GetAgent", pb.GetAgentRequest(name="helper"))).agent
    assert (list(kept.handoffs), list(kept.sub_agents)) == (["default"], ["default"])


async def test_one_that_was_deleted_is_not_offered(ann: Caller, peer: InferencePeer) -> None:
    thread = await office(ann)
    stream = ann.converse(thread)
    asked = await peer.call()
    await ann.call("DeleteAgent", pb.DeleteAgentRequest(name="clerk"))
    asked.tools(asks("clerk"))
    told = await peer.call()
    assert last_results(told)["a1"][1]
    told.answer("nobody is there")
    await all_events(stream)
    stream = ann.converse(thread)
    later = await peer.call()
    assert tool_names(later) == []
    later.answer("alone")
    await all_events(stream)


# -- beside the rest -------------------------------------------------------------------


async def test_a_session_goes_on_with_who_goes_on(ann: Caller, peer: InferencePeer) -> None:
    thread = await desk(ann)
    call = ann.stub.Session(metadata=ann.metadata)
    await call.write(pb.SessionRequest(config=pb.SessionConfig(thread_id=thread)))
    await call.write(pb.SessionRequest(input=asking("", "my invoice")))
    await call.done_writing()
    (await peer.call()).tools(hands("billing"))
    (await peer.call()).answer("Let me see.")
    told: dict[str, list[str]] = {}
    async with asyncio.timeout(20):
        async for response in call:
            if response.WhichOneof("message") == "event":
                told.setdefault(response.event.run_id, []).append(response.event.WhichOneof("event"))
    parent, child = told
    assert told[parent][-2:] == ["handoff", "run_completed"]
    assert told[child][-1] == "run_completed"
    assert (await ann.run(child)).parent_run_id == parent


async def test_a_rollback_takes_back_what_was_before_the_handoff_too(ann: Caller, peer: InferencePeer) -> None:
    thread = await desk(ann)
    await ann.agent("billing", memory=ALONE, double_texting=agent_pb2.DOUBLE_TEXTING_ROLLBACK)
    stream = ann.converse(thread, "first")
    (await peer.call()).tools(hands("billing"))
    (handoff,) = of_kind(await all_events(stream), "handoff")
    goes_on = await peer.call()
    goes_on.text("Let")
    second = ann.converse(thread, "second")
    instead = await peer.call()
    assert [said(message) for message in instead.prompt.messages] == ["second"]
    instead.answer("yes?")
    await all_events(second)
    assert [text for _, text in await ann.history(thread)] == ["second", "yes?"]
    assert (await ann.run(handoff.child_run_id)).state == CANCELLED


async def test_what_keeps_a_conversation_from_being_deleted_is_named(ann: Caller, peer: InferencePeer) -> None:
    thread = await office(ann)
    stream = ann.converse(thread)
    (await peer.call()).tools(asks("clerk"))
    (await peer.call()).answer("three")
    (await peer.call()).answer("good")
    (started,) = of_kind(await all_events(stream), "tool_call_started")
    below = (await ann.run(started.child_run_id)).thread_id
    for place in (below, thread):
        run = await ann.start(place)
        await peer.call()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id=thread))
        error = from_rpc(raised.value)
        assert (error.reason, error.message) == ("STATE_CONFLICT", f"run '{run.id}' is going on in thread '{place}'")
        assert error.metadata == {"state": "RUNNING", "run_id": run.id, "thread_id": place}
        await ann.cancel(run.id)
        await ann.watched(run.id)
    await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id=thread))


async def test_a_conversation_goes_with_those_that_it_led_to(ann: Caller, peer: InferencePeer) -> None:
    thread = await office(ann)
    stream = ann.converse(thread)
    (await peer.call()).tools(asks("clerk"))
    (await peer.call()).answer("three")
    (await peer.call()).answer("good")
    events = await all_events(stream)
    (started,) = of_kind(events, "tool_call_started")
    below = (await ann.run(started.child_run_id)).thread_id
    listed = (await ann.call("ListThreads", pb.ListThreadsRequest())).threads
    assert [each.id for each in listed] == [thread]
    fork = (await ann.call("ForkThread", pb.ForkThreadRequest(thread_id=thread))).thread
    assert fork.parent_run_id == ""
    await ann.call("DeleteThread", pb.DeleteThreadRequest(thread_id=thread))
    for gone in (thread, below):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ann.call("GetThread", pb.GetThreadRequest(thread_id=gone))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await ann.call("GetThread", pb.GetThreadRequest(thread_id=fork.id))).thread.id == fork.id
