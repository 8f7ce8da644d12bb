"""Turns that call tools: the loop, its history, its budgets, and what a crash leaves of it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from tests.fakes.memory_service import running as running_memory
from tests.fakes.orchestration_service import (
    Caller,
    Orchestration,
    all_events,
    assert_pairs,
    check,
    kinds,
    processes,
    running,
    until_kind,
)
from tests.fakes.peers.inference_peer import InferencePeer
from tests.fakes.peers.memory_peer import MemoryPeer, memory_peer

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as memory_pb
from janus_api.memory.v1 import record_pb2
from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.rpc_errors import from_status

# Without recall and store of its own, an agent asks memory only through tools.
ALONE = agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True)
BUILT_IN = ("time.now", "memory.search", "memory.remember")
NOW = ("c1", "time.now")


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


async def ready(ann: Caller, *named: str, **agent: Any) -> str:
    """A thread of an agent with these tools, or all that are built in."""
    granted = [agent_pb2.AgentTool(name=name) for name in named or BUILT_IN]
    return await ann.ready(**{"memory": ALONE, "tools": granted, **agent})


def results(message: content.Message) -> dict[str, tuple[str, bool]]:
    """By call: what a tool answered, and whether it failed."""
    assert message.role == content.ROLE_TOOL
    return {
        part.tool_result.call_id: ("".join(inner.text for inner in part.tool_result.parts), part.tool_result.is_error)
        for part in message.parts
    }


def of_kind(events: list[event_pb2.RunEvent], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]


async def test_the_model_gets_what_the_tool_answered_and_goes_on(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann)
    stream = ann.converse(thread, "what time is it?")
    (await peer.call()).tools(NOW)
    second = await peer.call()
    second.answer("noon")
    events = await all_events(stream)
    assert kinds(events) == [
        "run_queued",
        "run_started",
        "message_committed",
        "model.started",
        "model.tool_call_completed",
        "model.finished",
        "tool_call_requested",
        "tool_call_started",
        "tool_call_completed",
        "message_committed",
        "message_committed",
        "model.started",
        "model.text_delta",
        "model.finished",
        "message_committed",
        "run_completed",
    ]
    history = await ann.messages(thread)
    assert [content.Role.Name(message.role) for message in history] == [
        "ROLE_USER",
        "ROLE_ASSISTANT",
        "ROLE_TOOL",
        "ROLE_ASSISTANT",
    ]
    assert_pairs(history)
    assert list(second.prompt.messages) == history[:3]
    (said, is_error) = results(history[2])["c1"]
    assert (set(json.loads(said)), is_error) == ({"time", "weekday", "time_zone"}, False)
    (completed,) = of_kind(events, "tool_call_completed")
    assert completed.result == history[2].parts[0].tool_result
    (started,) = of_kind(events, "tool_call_started")
    assert (started.call_id, started.worker_id, started.attempt) == ("c1", "", 1)
    assert [item.position for item in of_kind(events, "message_committed")] == [1, 2, 3, 4]


async def test_the_run_tells_its_steps_and_sums_its_usage(ann: Caller, peer: InferencePeer) -> None:
    stream = ann.converse(await ready(ann))
    (await peer.call()).tools(NOW)
    (await peer.call()).answer("done")
    events = await all_events(stream)
    run = await ann.run(events[0].run_id)
    assert [(step.kind, step.attempts, step.summary) for step in run.steps] == [
        (run_pb2.STEP_KIND_MODEL_CALL, 1, "peer/played"),
        (run_pb2.STEP_KIND_TOOL_CALL, 1, "time.now"),
        (run_pb2.STEP_KIND_MODEL_CALL, 1, "peer/played"),
    ]
    assert all(step.HasField("ended_at") for step in run.steps)
    assert (run.usage.input_uncached_tokens, run.usage.output_tokens) == (20, 10)
    assert events[-1].run_completed.usage == run.usage
    assert [content.Role.Name(message.role) for message in run.output] == [
        "ROLE_ASSISTANT",
        "ROLE_TOOL",
        "ROLE_ASSISTANT",
    ]


async def test_the_model_is_told_of_the_tools_that_its_agent_has(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("fine",)
    await all_events(ann.converse(await ready(ann, "memory.search", "time.now")))
    offered = {tool.name: tool for tool in peer.calls[0].prompt.tools}
    assert list(offered) == ["memory.search", "time.now"]
    assert json.loads(offered["memory.search"].parameters_schema_json)["required"] == ["query"]
    assert offered["time.now"].description


async def test_an_agent_comes_back_with_its_tools(ann: Caller) -> None:
    put = agent_pb2.AgentTool(
        name="time.now",
        when_no_worker=agent_pb2.WHEN_NO_WORKER_WAIT,
        timeout=Duration(seconds=5),
        max_concurrency=3,
    )
    budgets = agent_pb2.Budgets(max_tokens=7, max_cost_micro_usd=8, max_tool_calls=9)
    await ann.agent(tools=[put], budgets=budgets)
    agent = (await ann.call("GetAgent", pb.GetAgentRequest(name="helper"))).agent
    assert (list(agent.tools), agent.budgets) == ([put], budgets)
    again = await ann.agent(tools=[put], budgets=budgets)
    assert again.version == 1, "the same content keeps its version"


async def test_a_call_that_is_not_allowed_or_not_right_goes_back_to_the_model(
    ann: Caller, peer: InferencePeer, memory: MemoryPeer
) -> None:
    thread = await ready(ann, "memory.search", "time.now")
    stream = ann.converse(thread)
    (await peer.call()).tools(
        ("c1", "memory.remember", '{"text": "granted to nobody"}'),
        ("c2", "delete_all"),
        ("c3", "memory.search", '{"query": 7}'),
        ("c4", "memory.search", '{"query": "x", "tenant": "other"}'),
        ("c5", "memory.search", "{"),
        ("c6", "memory.search", "[]"),
        ("c7", "time.now", '{"time_zone": "Moon/Crater"}'),
        ("c8", "time.now", '{"time_zone": "../../etc/passwd"}'),
        ("c9", "time.now", '{"time_zone": "localtime"}'),
    )
    (await peer.call()).answer("sorry")
    events = await all_events(stream)
    assert kinds(events)[-1] == "run_completed"
    history = await ann.messages(thread)
    assert_pairs(history)
    told = results(history[2])
    assert all(is_error for _, is_error in told.values())
    assert [told[f"c{place}"][0] for place in (1, 2, 5, 6, 7, 9)] == [
        "there is no tool named 'memory.remember'",
        "there is no tool named 'delete_all'",
        "the arguments must be valid JSON",
        "the arguments must be a JSON object",
        "there is no time zone 'Moon/Crater'",
        "there is no time zone 'localtime'",
    ]
    assert "$.query: must be string" in told["c3"][0]
    assert "'tenant' is not a known property" in told["c4"][0]
    assert not memory.remembered


async def test_calls_run_side_by_side_and_keep_the_models_order(
    ann: Caller, peer: InferencePeer, memory: MemoryPeer
) -> None:
    thread = await ready(ann)
    stream = ann.converse(thread)
    (await peer.call()).tools(
        ("c1", "memory.search", '{"query": "slow"}'), ("c2", "memory.search", '{"query": "quick"}')
    )
    searches = {search.request.query: search for search in [await memory.search(), await memory.search()]}
    searches["quick"].find("tea")
    seen = await until_kind(stream, "tool_call_completed")
    assert seen[-1].tool_call_completed.result.call_id == "c2"
    searches["slow"].find()
    (await peer.call()).answer("both")
    await all_events(stream)
    history = await ann.messages(thread)
    assert list(results(history[2])) == ["c1", "c2"]
    assert_pairs(history)


async def test_no_more_calls_of_a_tool_than_its_agent_allows(
    ann: Caller, peer: InferencePeer, memory: MemoryPeer
) -> None:
    one = agent_pb2.AgentTool(name="memory.search", max_concurrency=1)
    stream = ann.converse(await ready(ann, tools=[one]))
    (await peer.call()).tools(*[(f"c{place}", "memory.search", '{"query": "x"}') for place in range(3)])
    for _ in range(3):
        search = await memory.search()
        assert not memory.others_wait
        search.find()
    (await peer.call()).answer("done")
    assert kinds(await all_events(stream))[-1] == "run_completed"


async def test_a_tool_that_takes_too_long_is_left(ann: Caller, peer: InferencePeer, memory: MemoryPeer) -> None:
    hasty = agent_pb2.AgentTool(name="memory.search", timeout=Duration(nanos=100_000_000))
    thread = await ready(ann, tools=[hasty])
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "memory.search", '{"query": "x"}'))
    search = await memory.search()
    (await peer.call()).answer("never mind")
    assert kinds(await all_events(stream))[-1] == "run_completed"
    await asyncio.wait_for(search.closed.wait(), 10)
    assert results((await ann.messages(thread))[2]) == {"c1": ("the tool did not answer within 0.1 s", True)}


async def test_a_call_is_in_the_thread_only_with_its_result(
    ann: Caller, peer: InferencePeer, memory: MemoryPeer
) -> None:
    thread = await ready(ann)
    stream = ann.converse(thread)
    (await peer.call()).tools(NOW, ("c2", "memory.search", '{"query": "x"}'))
    search = await memory.search()
    seen = await until_kind(stream, "tool_call_completed")
    assert [message.role for message in await ann.messages(thread)] == [content.ROLE_USER]
    assert not (await ann.run(seen[0].run_id)).output
    search.find()
    (await peer.call()).answer("ok")
    await all_events(stream)
    assert_pairs(await ann.messages(thread))


@pytest.mark.parametrize("how", ["cancel", "wall_time"])
async def test_a_run_that_ends_among_its_calls_leaves_whole_pairs(
    ann: Caller, peer: InferencePeer, memory: MemoryPeer, how: str
) -> None:
    budgets = agent_pb2.Budgets(max_wall_time=Duration(seconds=1)) if how == "wall_time" else None
    thread = await ready(ann, budgets=budgets)
    stream = ann.converse(thread)
    (await peer.call()).tools(NOW, ("c2", "memory.search", '{"query": "x"}'))
    search = await memory.search()
    seen = await until_kind(stream, "tool_call_completed")
    if how == "cancel":
        await ann.cancel(seen[0].run_id, "enough")
    await asyncio.wait_for(search.closed.wait(), 10)
    rest = await all_events(stream)
    ended = "run_cancelled" if how == "cancel" else "run_failed"
    told_of = [kind for kind in kinds(rest) if kind != "budget_warning"]
    assert told_of == ["tool_call_completed", "message_committed", "message_committed", ended]
    history = await ann.messages(thread)
    assert_pairs(history)
    told = results(history[2])
    assert (told["c1"][1], told["c2"][1]) == (False, True)
    assert "whether it did anything is not known" in told["c2"][0]
    run = await ann.run(seen[0].run_id)
    assert all(step.HasField("ended_at") for step in run.steps)
    assert run.usage.output_tokens == 5
    # The next turn starts from there.
    peer.always = ("again",)
    await all_events(ann.converse(thread, "go on"))
    assert list(peer.calls[-1].prompt.messages)[:3] == history


async def test_calls_that_a_budget_does_not_allow_are_said_not_to_have_begun(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, budgets=agent_pb2.Budgets(max_tool_calls=1))
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "time.now"), ("c2", "time.now"))
    events = await all_events(stream)
    assert kinds(events)[-1] == "run_failed"
    assert "budget_warning" not in kinds(events), "nothing of the budget was used"
    told = results((await ann.messages(thread))[2])
    assert told == dict.fromkeys(("c1", "c2"), ("the run failed before the call was begun", True))


async def test_a_model_that_never_stops_asking_is_stopped(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, budgets=agent_pb2.Budgets(max_model_steps=3))
    stream = ann.converse(thread)
    for place in range(3):
        (await peer.call()).tools((f"c{place}", "time.now"))
    events = await all_events(stream)
    error = from_status(events[-1].run_failed.status)
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "BUDGET_EXCEEDED")
    assert dict(error.metadata) == {"budget": "model_steps", "limit": "3"}
    assert not events[-1].run_failed.retryable
    assert len(peer.calls) == 3
    assert_pairs(await ann.messages(thread))
    (warning,) = of_kind(events, "budget_warning")
    assert (warning.budget, warning.used, warning.limit) == ("model_steps", 3, 3)


async def test_more_calls_than_the_budget_allows_are_not_begun(
    ann: Caller, peer: InferencePeer, memory: MemoryPeer
) -> None:
    thread = await ready(ann)
    stream = ann.converse(thread, budgets=agent_pb2.Budgets(max_tool_calls=2))
    (await peer.call()).tools(
        *[(f"c{place}", "memory.remember", f'{{"text": "number {place}"}}') for place in range(3)]
    )
    events = await all_events(stream)
    assert from_status(events[-1].run_failed.status).metadata["budget"] == "tool_calls"
    assert not memory.remembered
    history = await ann.messages(thread)
    assert_pairs(history)
    assert len(results(history[2])) == 3


async def test_results_that_no_prompt_could_hold_are_left_out_and_said_so(
    ann: Caller, peer: InferencePeer, memory: MemoryPeer
) -> None:
    thread = await ready(ann, budgets=agent_pb2.Budgets(max_tool_calls=10_000))
    stream = ann.converse(thread)
    (await peer.call()).tools(*[(f"c{place}", "memory.search", '{"query": "x", "limit": 50}') for place in range(20)])
    for _ in range(20):
        (await memory.search()).find(*["x" * 4_000] * 50)
    (await peer.call()).answer("enough")
    assert kinds(await all_events(stream))[-1] == "run_completed"
    history = await ann.messages(thread)
    assert_pairs(history)
    failed = [said for said, is_error in results(history[2]).values() if is_error]
    assert 0 < len(failed) < 20
    assert set(failed) == {"the result is larger than this run has room for"}


async def test_ten_thousand_calls_are_no_message(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, budgets=agent_pb2.Budgets(max_tool_calls=10_000))
    stream = ann.converse(thread)
    (await peer.call()).tools(*[(f"c{place}", "time.now") for place in range(10_000)])
    events = await all_events(stream)
    assert from_status(events[-1].run_failed.status).reason == "MESSAGE_TOO_LARGE"
    assert [message.role for message in await ann.messages(thread)] == [content.ROLE_USER]


async def test_tokens_have_a_budget_too(ann: Caller, peer: InferencePeer) -> None:
    stream = ann.converse(await ready(ann, budgets=agent_pb2.Budgets(max_tokens=15)))
    (await peer.call()).tools(NOW)
    events = await all_events(stream)
    assert from_status(events[-1].run_failed.status).metadata["budget"] == "tokens"
    # An answer that is there is not thrown away.
    stream = ann.converse(await ann.thread(), budgets=agent_pb2.Budgets(max_tokens=15))
    (await peer.call()).answer("that was all")
    events = await all_events(stream)
    assert kinds(events)[-1] == "run_completed"
    assert [warning.budget for warning in of_kind(events, "budget_warning")] == ["tokens"]


async def test_memory_tools_act_for_the_runs_own_subject(ann: Caller, peer: InferencePeer, memory: MemoryPeer) -> None:
    policy = agent_pb2.MemoryPolicy(space="notes", recall_limit=0, do_not_store=True)
    await ann.agent(memory=policy, tools=[agent_pb2.AgentTool(name=name) for name in BUILT_IN])
    thread = await ann.thread(subject="ann")
    stream = ann.converse(thread)
    (await peer.call()).tools(
        ("c1", "memory.search", '{"query": "tea", "limit": 3}'),
        ("c2", "memory.remember", '{"text": "Ann likes tea.", "kind": "preference", "importance": 0.9}'),
    )
    search = await memory.search()
    search.find("Ann drinks tea.")
    (await peer.call()).answer("noted")
    events = await all_events(stream)
    history = await ann.messages(thread)
    told = results(history[2])
    assert json.loads(told["c1"][0]) == {"memories": [{"id": "mem_0", "kind": "fact", "text": "Ann drinks tea."}]}
    assert json.loads(told["c2"][0]) == {"remembered": "mem_new"}
    asked = search.request
    assert (asked.scope.space, asked.scope.subject, asked.scope.thread, asked.limit) == ("notes", "ann", "", 3)
    ((request_id, request),) = memory.remembered.items()
    assert request_id == f"{events[0].run_id}:3"
    assert (request.scope.space, request.scope.subject) == ("notes", "ann")
    (kept,) = request.memories
    assert (kept.kind, kept.importance) == (record_pb2.MEMORY_KIND_PREFERENCE, 0.9)
    assert kept.provenance[0] == record_pb2.Provenance(message_id=history[1].id, origin=record_pb2.ORIGIN_MODEL)


async def test_what_a_tool_remembered_is_found_by_a_tool_and_not_what_tools_said(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    async with (
        running_memory(own_url, redis_url) as memory,
        running(own_url, redis_url, inference_target=peer.target, memory_target=memory.host.address) as service,
    ):
        ann = service.caller()
        thread = await ready(ann, memory=agent_pb2.MemoryPolicy(recall_limit=0))
        stream = ann.converse(thread, "remember it")
        (await peer.call()).tools(("c1", "memory.remember", '{"text": "The key is under the blue stone."}'))
        (await peer.call()).answer("I will.")
        events = await all_events(stream)
        assert list(events[-2].message_committed.degraded) == []
        for turn in range(2):
            await memory.caller(ann.tenant).indexed()
            stream = ann.converse(thread, "where is it?")
            (await peer.call()).tools((f"s{turn}", "memory.search", '{"query": "key under the blue stone"}'))
            (await peer.call()).answer("There.")
            events = await all_events(stream)
            (done,) = of_kind(events, "tool_call_completed")
            found = json.loads(done.result.parts[0].text)["memories"]
            assert [hit["text"] for hit in found if hit["kind"] == "fact"] == ["The key is under the blue stone."]
            assert all(hit.get("speaker") != "tool" for hit in found)
        window = memory_pb.GetWindowRequest(max_tokens=100_000)
        window.scope.thread = thread
        stored = await memory.caller(ann.tenant).call("GetWindow", window)
        assert_pairs([turn.message for turn in stored.turns])
        assert len(stored.turns) == len(await ann.messages(thread)) == 12


async def test_a_call_whose_owner_is_killed_is_run_again_elsewhere(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer
) -> None:
    settings = {"inference_target": peer.target, "memory_target": memory.target}
    async with processes(2, own_url, redis_url, **settings) as replicas:
        name = f"t{uuid.uuid4().hex[:12]}"
        first, second = (replica.caller(name) for replica in replicas)
        thread = await ready(first)
        stream = first.converse(thread)
        asked = await peer.call()
        asked.tools(NOW, ("c2", "memory.search", '{"query": "x"}'))
        await memory.search()
        seen = await until_kind(stream, "tool_call_completed")
        replicas[0].kill()
        # What is in the thread is whole even while nobody works on the run.
        assert_pairs(await second.messages(thread))
        again = await memory.search()
        again.find("found")
        answering = await peer.call()
        answering.answer("at last")
        rest = await second.watched(seen[0].run_id, seen[-1].cursor)
        check([*seen, *rest], after=0)
        events = [*seen, *rest]
        assert [item.result.call_id for item in of_kind(events, "tool_call_completed")] == ["c1", "c2"]
        assert of_kind(rest, "tool_call_started")[0].attempt == 2
        history = await second.messages(thread)
        assert_pairs(history)
        assert list(answering.prompt.messages) == history[:3]
        run = await second.run(seen[0].run_id)
        assert [step.attempts for step in run.steps] == [1, 1, 2, 1]
        assert len(peer.calls) == 2, "the answer that asked is not asked for again"
        # From the journal alone it is the same.
        watched = await second.watched(run.id)
        assert [event for event in watched if event in events] == watched


async def test_a_cancel_of_a_run_whose_owner_was_killed_leaves_whole_pairs(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer
) -> None:
    settings = {"inference_target": peer.target, "memory_target": memory.target}
    async with processes(2, own_url, redis_url, **settings) as replicas:
        name = f"t{uuid.uuid4().hex[:12]}"
        first, second = (replica.caller(name) for replica in replicas)
        thread = await ready(first)
        stream = first.converse(thread)
        (await peer.call()).tools(NOW, ("c2", "memory.search", '{"query": "x"}'))
        await memory.search()
        seen = await until_kind(stream, "tool_call_completed")
        replicas[0].kill()
        await second.cancel(seen[0].run_id, "enough")
        rest = await second.watched(seen[0].run_id, seen[-1].cursor)
        assert kinds(rest)[-1] == "run_cancelled"
        history = await second.messages(thread)
        assert_pairs(history)
        told = results(history[2])
        assert (told["c1"][1], told["c2"][1]) == (False, True)
