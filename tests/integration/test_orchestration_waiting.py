"""Runs that wait for people and clients: durable, decided once, ended by time, gone on with by anybody."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
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
from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, JanusError, NotFound
from janus_kit.rpc_errors import from_rpc, from_status
from janus_orchestration import app
from janus_orchestration.model import SideEffect, Tool, ToolOutput
from janus_orchestration.ports import OutcomeUnknown, ToolReport, ToolTask

ALONE = agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True)
CITY = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
HERE = agent_pb2.AgentTool(name="where.am_i", client_side=True, description="Where the user is.")
WEATHER = agent_pb2.AgentTool(name="weather", client_side=True, parameters_schema_json=CITY)
NOW = agent_pb2.AgentTool(name="time.now")
ASKED_FIRST = agent_pb2.AgentTool(name="time.now", needs_approval=True)
SEARCH = agent_pb2.AgentTool(name="memory.search")
ASK = agent_pb2.AgentTool(name="user.ask")

TOOL, APPROVAL, INPUT = (
    run_pb2.RUN_STATE_WAITING_TOOL,
    run_pb2.RUN_STATE_WAITING_APPROVAL,
    run_pb2.RUN_STATE_WAITING_INPUT,
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


async def ready(ann: Caller, *tools: agent_pb2.AgentTool, **agent: Any) -> str:
    return await ann.ready(**{"memory": ALONE, "tools": tools, **agent})


def results(message: content.Message) -> dict[str, tuple[str, bool]]:
    assert message.role == content.ROLE_TOOL
    return {
        part.tool_result.call_id: ("".join(inner.text for inner in part.tool_result.parts), part.tool_result.is_error)
        for part in message.parts
    }


def of_kind(events: list[event_pb2.RunEvent], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]


def within(**duration: int) -> Duration:
    return Duration(**duration)


async def execute(url: str, statement: str) -> Any:
    """The first value of what it finds."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def refused(call: Any) -> JanusError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc(raised.value)


async def approval_of(ann: Caller, thread: str, peer: InferencePeer, *calls: tuple[str, ...]) -> tuple[Any, Any]:
    """A turn whose model asks for these calls: its stream, and the approval that is requested."""
    stream = ann.converse(thread)
    (await peer.call()).tools(*(calls or [("c1", "time.now")]))
    seen = await until_kind(stream, "approval_requested")
    return stream, seen[-1]


# -- client-side tools ----------------------------------------------------------------


async def test_the_client_answers_a_call_and_the_model_goes_on(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, HERE, WEATHER)
    stream = ann.converse(thread)
    asked = await peer.call()
    asked.tools(("c1", "weather", '{"city": "Ulm"}'))
    seen = await until_kind(stream, "tool_call_requested")
    assert seen[-1].tool_call_requested.client_side
    run_id = seen[0].run_id
    run = await ann.until(run_id, TOOL)
    (waiting,) = run.waiting_for
    assert waiting.tool.call == content.ToolCall(call_id="c1", name="weather", arguments_json='{"city": "Ulm"}')
    assert 6.9 * 86_400 < waiting.expires_at.seconds - run.created_at.seconds < 7.1 * 86_400
    assert [message.role for message in await ann.messages(thread)] == [content.ROLE_USER]
    answered = await ann.submit(run_id, {"c1": "rain"})
    assert not answered.waiting_for
    (await peer.call()).answer("Take a coat.")
    rest = await all_events(stream)
    check([*seen, *rest], after=0)
    assert kinds(rest)[:3] == ["tool_call_completed", "message_committed", "message_committed"]
    history = await ann.messages(thread)
    assert_pairs(history)
    assert results(history[2]) == {"c1": ("rain", False)}
    assert list(peer.calls[-1].prompt.messages) == history[:3]
    run = await ann.run(run_id)
    assert (run.state, run.takeovers, list(run.waiting_for)) == (run_pb2.RUN_STATE_COMPLETED, 0, [])
    assert [step.attempts for step in run.steps] == [1, 1, 1]
    assert await ann.watched(run_id) == [*seen, *rest]
    offered = {tool.name: tool for tool in asked.prompt.tools}
    assert offered["where.am_i"].description == "Where the user is."
    assert offered["weather"].parameters_schema_json == CITY


async def test_a_client_may_answer_the_moment_that_it_hears_the_question(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, HERE)
    for turn in range(10):
        stream = ann.converse(thread)
        (await peer.call()).tools((f"c{turn}", "where.am_i"))
        seen = await until_kind(stream, "tool_call_requested")
        await ann.submit(seen[0].run_id, {f"c{turn}": "home"})
        (await peer.call()).answer("ok")
        check([*seen, *(await all_events(stream))], after=0)
    assert_pairs(await ann.messages(thread))


async def test_a_result_may_say_that_the_tool_failed_or_say_nothing(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, HERE)
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "where.am_i"), ("c2", "where.am_i"))
    seen = await until_kind(stream, "tool_call_requested")
    given = [
        content.ToolResult(call_id="c2"),
        content.ToolResult(call_id="c1", parts=[content.Part(text="no signal")], is_error=True),
    ]
    sent = pb.ToolResults(run_id=seen[0].run_id, results=given)
    await ann.call("SubmitToolResults", pb.SubmitToolResultsRequest(results=sent))
    (await peer.call()).answer("ok")
    await all_events(stream)
    history = await ann.messages(thread)
    assert_pairs(history)
    assert [part.tool_result for part in history[2].parts] == given[::-1]


async def test_nobody_is_asked_about_a_call_that_is_not_right(ann: Caller, peer: InferencePeer) -> None:
    careful = agent_pb2.AgentTool(name="memory.search", needs_approval=True)
    thread = await ready(ann, WEATHER, careful, ASK)
    stream = ann.converse(thread)
    (await peer.call()).tools(
        ("c1", "weather", '{"town": "Ulm"}'),
        ("c2", "memory.search", "{"),
        ("c3", "user.ask", '{"question": " "}'),
        ("c4", "delete_all"),
    )
    (await peer.call()).answer("sorry")
    events = await all_events(stream)
    assert not of_kind(events, "approval_requested")
    assert not of_kind(events, "input_requested")
    assert not any(asked.client_side for asked in of_kind(events, "tool_call_requested"))
    told = results((await ann.messages(thread))[2])
    assert all(is_error for _, is_error in told.values())
    assert "'city' is missing" in told["c1"][0]


async def test_a_result_for_which_the_run_has_no_room_is_refused_and_can_be_given_again(
    ann: Caller, peer: InferencePeer
) -> None:
    thread = await ready(ann, HERE)
    stream = ann.converse(thread, "x" * 500_000)
    (await peer.call()).tools(*((f"c{number}", "where.am_i") for number in range(1, 5)))
    run_id = (await until_kind(stream, "tool_call_requested"))[0].run_id
    await ann.until(run_id, TOOL)
    large = "y" * 900_000
    await ann.submit(run_id, {"c1": large})
    error = await refused(ann.submit(run_id, {"c2": large, "c3": large}))
    assert isinstance(error, InvalidArgument)
    ((field, rule),) = error.violations
    assert field == "results.results[1]"
    assert rule.startswith("must be at most ")
    # Nothing of it was taken; what fits is.
    await ann.submit(run_id, {"c2": large, "c3": "small", "c4": "small"})
    (await peer.call()).answer("ok")
    await all_events(stream)
    told = results((await ann.messages(thread))[2])
    assert told == {"c1": (large, False), "c2": (large, False), "c3": ("small", False), "c4": ("small", False)}


async def test_a_client_that_does_not_answer_in_time_ends_the_run(ann: Caller, peer: InferencePeer) -> None:
    hasty = agent_pb2.AgentTool(name="where.am_i", client_side=True, timeout=within(nanos=300_000_000))
    thread = await ready(ann, hasty, NOW)
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "time.now"), ("c2", "where.am_i"))
    events = await all_events(stream)
    assert kinds(events)[-4:] == ["tool_call_completed", "message_committed", "message_committed", "run_expired"]
    expired = events[-1].run_expired
    error = from_status(expired.status)
    assert (expired.waited_for, error.code, error.metadata["leg"]) == ("tool", "DEADLINE_EXCEEDED", "tool")
    assert expired.usage.output_tokens == 5
    run = await ann.run(events[0].run_id)
    assert (run.state, run.error) == (run_pb2.RUN_STATE_EXPIRED, expired.status)
    assert all(step.HasField("ended_at") for step in run.steps)
    history = await ann.messages(thread)
    assert_pairs(history)
    told = results(history[2])
    assert (told["c1"][1], told["c2"][1]) == (False, True)
    late = await refused(ann.submit(run.id, {"c2": "here"}))
    assert isinstance(late, FailedPrecondition)
    assert late.metadata["state"] == "EXPIRED"
    assert await ann.watched(run.id) == events
    # The thread's turn goes on.
    peer.always = ("again",)
    assert kinds(await all_events(ann.converse(thread)))[-1] == "run_completed"


# -- approvals ------------------------------------------------------------------------


async def test_an_approved_call_runs_and_the_events_say_who_decided(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, ASKED_FIRST)
    arguments = '{"time_zone": "UTC"}'
    stream, event = await approval_of(ann, thread, peer, ("c1", "time.now", arguments))
    requested = event.approval_requested
    assert requested.approval.call.arguments_json == arguments
    assert requested.approval.arguments_sha256 == hashlib.sha256(arguments.encode()).digest()
    run = await ann.until(event.run_id, APPROVAL)
    listed = await ann.call("ListRuns", pb.ListRunsRequest(states=[APPROVAL]))
    assert [list(each.waiting_for) for each in listed.runs] == [list(run.waiting_for)]
    assert [(item.approval, item.expires_at) for item in run.waiting_for] == [
        (requested.approval, requested.expires_at)
    ]
    await ann.decide(run.id, requested.approval.approval_id, comment="fine by me")
    (await peer.call()).answer("noon")
    rest = await all_events(stream)
    assert kinds(rest)[:3] == ["approval_resolved", "tool_call_started", "tool_call_completed"]
    resolved = rest[0].approval_resolved
    assert (resolved.decision, resolved.comment) == (agent_pb2.APPROVAL_DECISION_APPROVED, "fine by me")
    assert rest[1].tool_call_started.attempt == 1
    assert not results((await ann.messages(thread))[2])["c1"][1]


async def test_a_declined_call_is_not_run_and_the_model_reads_why(
    ann: Caller, peer: InferencePeer, memory: MemoryPeer
) -> None:
    policy = agent_pb2.ApprovalPolicy(tools=["memory.remember"])
    thread = await ready(ann, agent_pb2.AgentTool(name="memory.remember"), approval=policy)
    stream, event = await approval_of(ann, thread, peer, ("c1", "memory.remember", '{"text": "a secret"}'))
    await ann.decide(event.run_id, event.approval_requested.approval.approval_id, approve=False, comment="not that")
    (await peer.call()).answer("All right.")
    await all_events(stream)
    assert results((await ann.messages(thread))[2]) == {"c1": ("the call was declined: not that", True)}
    assert not memory.remembered


@pytest.mark.parametrize("approves", [True, False])
async def test_when_nobody_decides_the_policy_does(ann: Caller, peer: InferencePeer, approves: bool) -> None:
    decision = agent_pb2.APPROVAL_DECISION_APPROVED if approves else agent_pb2.APPROVAL_DECISION_UNSPECIFIED
    policy = agent_pb2.ApprovalPolicy(tools=["time.now"], expires_after=within(seconds=1), on_expiry=decision)
    thread = await ready(ann, NOW, approval=policy)
    stream, event = await approval_of(ann, thread, peer)
    (await peer.call()).answer("ok")
    rest = await all_events(stream)
    resolved = of_kind(rest, "approval_resolved")[0]
    assert resolved.decided_by == ""
    assert (resolved.decision == agent_pb2.APPROVAL_DECISION_APPROVED) is approves
    said, is_error = results((await ann.messages(thread))[2])["c1"]
    assert is_error is not approves
    assert approves or said == "nobody consented to the call in time"
    late = await refused(ann.decide(event.run_id, event.approval_requested.approval.approval_id))
    assert late.metadata["state"] == "EXPIRED"


async def test_a_client_side_call_may_need_consent_before_the_client_is_asked(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, WEATHER, approval=agent_pb2.ApprovalPolicy(tools=["weather"]))
    stream, event = await approval_of(ann, thread, peer, ("c1", "weather", '{"city": "Ulm"}'))
    early = await refused(ann.submit(event.run_id, {"c1": "sun"}))
    assert isinstance(early, NotFound)
    await ann.decide(event.run_id, event.approval_requested.approval.approval_id)
    seen = await until_kind(stream, "tool_call_requested")
    assert seen[-1].tool_call_requested.client_side
    await ann.submit(event.run_id, {"c1": "rain"})
    (await peer.call()).answer("ok")
    await all_events(stream)
    assert results((await ann.messages(thread))[2]) == {"c1": ("rain", False)}


async def test_a_consent_to_other_arguments_is_none(ann: Caller, peer: InferencePeer, own_url: str) -> None:
    thread = await ready(ann, ASKED_FIRST)
    stream, event = await approval_of(ann, thread, peer)
    # As if the call had changed between the question and the answer.
    await execute(own_url, "UPDATE orchestration.pending SET arguments_sha256 = sha256('other')")
    await ann.decide(event.run_id, event.approval_requested.approval.approval_id)
    seen = await until_kind(stream, "approval_requested")
    assert "tool_call_started" not in kinds(seen)
    asked = seen[-1].approval_requested.approval
    assert asked.arguments_sha256 == event.approval_requested.approval.arguments_sha256
    await ann.decide(event.run_id, asked.approval_id)
    (await peer.call()).answer("ok")
    assert kinds(await all_events(stream))[-1] == "run_completed"


async def test_an_agent_comes_back_with_what_it_waits_for(ann: Caller) -> None:
    policy = agent_pb2.ApprovalPolicy(
        tools=["time.now"], expires_after=within(seconds=60), on_expiry=agent_pb2.APPROVAL_DECISION_APPROVED
    )
    careful = agent_pb2.AgentTool(name="memory.search", needs_approval=True)
    tools = [WEATHER, NOW, careful]
    await ann.agent(tools=tools, approval=policy)
    agent = (await ann.call("GetAgent", pb.GetAgentRequest(name="helper"))).agent
    assert (list(agent.tools), agent.approval) == (tools, policy)
    assert (await ann.agent(tools=tools, approval=policy)).version == 1, "the same content keeps its version"


# -- calls whose outcome is not known ---------------------------------------------------

BOOK = agent_pb2.AgentTool(name="flight.book")


class Bookings:
    """An at-most-once tool beside Janus's own; what becomes of a call is the test's."""

    knows_calls = False

    def __init__(self) -> None:
        self.attempts: list[int] = []
        self.keys: set[str] = set()
        self.begun = asyncio.Event()
        self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def find(self, tenant: str, names: Collection[str]) -> Sequence[Tool]:
        book = Tool("flight.book", "Books.", "", SideEffect.AT_MOST_ONCE, timedelta(seconds=60))
        return [book] if book.name in names else []

    async def call(self, tenant: str, task: ToolTask, report: ToolReport) -> ToolOutput:
        await report.started("w1")
        self.attempts.append(task.attempt)
        self.keys.add(task.idempotency_key)
        self.begun.set()
        return ToolOutput(await asyncio.shield(self.outcome))


@pytest.fixture
async def bookings(monkeypatch: pytest.MonkeyPatch) -> Bookings:
    source = Bookings()
    plain = app.Toolbox
    monkeypatch.setattr(app, "Toolbox", lambda sources: plain([*sources, source]))
    return source


@pytest.mark.parametrize("again", [True, False])
async def test_a_call_that_may_have_happened_is_run_again_only_with_a_persons_word(
    bookings: Bookings, ann: Caller, peer: InferencePeer, again: bool
) -> None:
    bookings.outcome.set_exception(OutcomeUnknown("the worker vanished"))
    thread = await ready(ann, BOOK)
    stream, event = await approval_of(ann, thread, peer, ("c1", "flight.book"))
    asked = event.approval_requested.approval
    assert asked.reason.startswith("the worker vanished; whether the call did anything is not known")
    await ann.until(event.run_id, APPROVAL)
    bookings.outcome = asyncio.get_running_loop().create_future()
    bookings.outcome.set_result("booked")
    await ann.decide(event.run_id, asked.approval_id, approve=again)
    (await peer.call()).answer("ok")
    assert kinds(await all_events(stream))[-1] == "run_completed"
    assert bookings.attempts == ([1, 2] if again else [1])
    assert len(bookings.keys) == 1
    said, is_error = results((await ann.messages(thread))[2])["c1"]
    assert (
        (said, is_error) == ("booked", False) if again else is_error and "whether it did anything is not known" in said
    )


async def test_time_never_consents_to_another_try(bookings: Bookings, ann: Caller, peer: InferencePeer) -> None:
    bookings.outcome.set_exception(OutcomeUnknown("the worker vanished"))
    policy = agent_pb2.ApprovalPolicy(expires_after=within(seconds=1), on_expiry=agent_pb2.APPROVAL_DECISION_APPROVED)
    thread = await ready(ann, BOOK, approval=policy)
    stream, _ = await approval_of(ann, thread, peer, ("c1", "flight.book"))
    (await peer.call()).answer("ok")
    await all_events(stream)
    assert bookings.attempts == [1]


async def test_an_at_most_once_call_whose_owner_is_gone_is_asked_about(
    bookings: Bookings, own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    async with running(own_url, redis_url, inference_target=peer.target, lease_s=30) as second:
        async with running(own_url, redis_url, inference_target=peer.target, lease_s=30) as first:
            ann = first.caller("ann")
            run = await ann.start(await ready(ann, BOOK))
            (await peer.call()).tools(("c1", "flight.book"))
            await bookings.begun.wait()
        ann = second.caller("ann")
        run = await ann.until(run.id, APPROVAL)
        (asked,) = run.waiting_for
        assert asked.approval.reason.startswith("the process that ran the call is gone")
        # It stopped in order, and nobody took anything over.
        assert (bookings.attempts, run.takeovers) == ([1], 0)
        bookings.outcome.set_result("booked")
        await ann.decide(run.id, asked.approval.approval_id)
        (await peer.call()).answer("ok")
        await ann.watched(run.id)
        assert bookings.attempts == [1, 2]


# -- questions ------------------------------------------------------------------------


async def test_the_model_asks_the_person_and_reads_the_words(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, ASK)
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "user.ask", '{"question": "Which colour?"}'))
    seen = await until_kind(stream, "input_requested")
    asked = seen[-1].input_requested.input
    assert (asked.question, asked.schema_json) == ("Which colour?", "")
    run = await ann.until(seen[0].run_id, INPUT)
    assert [item.input for item in run.waiting_for] == [asked]
    error = await refused(ann.provide(run.id, asked.input_id, "7"))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == ["answer.answer_json"]
    await ann.provide(run.id, asked.input_id, '"blue, \\u201cvery\\u201d blue"')
    (await peer.call()).answer("Blue it is.")
    await all_events(stream)
    assert results((await ann.messages(thread))[2]) == {"c1": ("blue, “very” blue", False)}


async def test_an_answer_holds_to_the_questions_schema(ann: Caller, peer: InferencePeer) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    thread = await ready(ann, ASK)
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "user.ask", json.dumps({"question": "How many?", "schema": schema})))
    seen = await until_kind(stream, "input_requested")
    asked = seen[-1].input_requested.input
    assert json.loads(asked.schema_json) == schema
    error = await refused(ann.provide(seen[0].run_id, asked.input_id, '{"n": "seven"}'))
    assert "$.n: must be integer" in error.message
    await ann.provide(seen[0].run_id, asked.input_id, '{"n": 7}')
    (await peer.call()).answer("Seven.")
    await all_events(stream)
    assert results((await ann.messages(thread))[2]) == {"c1": ('{"n": 7}', False)}


async def test_a_question_that_nobody_answers_ends_the_run(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, agent_pb2.AgentTool(name="user.ask", timeout=within(nanos=300_000_000)))
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "user.ask", '{"question": "Anybody?"}'))
    events = await all_events(stream)
    assert (kinds(events)[-1], events[-1].run_expired.waited_for) == ("run_expired", "input")
    history = await ann.messages(thread)
    assert_pairs(history)
    assert results(history[2]) == {"c1": ("the run expired before the question was answered", True)}


# -- several at once ------------------------------------------------------------------


async def test_of_calls_side_by_side_some_wait_and_others_do_not(
    ann: Caller, peer: InferencePeer, memory: MemoryPeer
) -> None:
    thread = await ready(ann, HERE, ASK, SEARCH, NOW, agent_pb2.AgentTool(name="memory.remember", needs_approval=True))
    stream = ann.converse(thread)
    (await peer.call()).tools(
        ("c1", "memory.search", '{"query": "slow"}'),
        ("c2", "where.am_i"),
        ("c3", "time.now"),
        ("c4", "memory.remember", '{"text": "it"}'),
        ("c5", "user.ask", '{"question": "Sure?"}'),
    )
    seen = await until_kind(stream, "tool_call_completed")
    assert seen[-1].tool_call_completed.result.call_id == "c3"
    run = await ann.run(seen[0].run_id)
    assert run.state == run_pb2.RUN_STATE_RUNNING, "a call is running"
    assert [item.WhichOneof("kind") for item in run.waiting_for] == ["tool", "approval", "input"]
    # Answered while others run: taken at once.
    await ann.submit(run.id, {"c2": "home"})
    seen += await until_kind(stream, "tool_call_completed")
    (await memory.search()).find("found")
    seen += await until_kind(stream, "tool_call_completed")
    run = await ann.until(run.id, APPROVAL)
    approval, question = run.waiting_for
    await ann.provide(run.id, question.input.input_id, '"yes"')
    seen += await until_kind(stream, "tool_call_completed")
    run = await ann.until(run.id, APPROVAL)
    assert [item.approval.approval_id for item in run.waiting_for] == [approval.approval.approval_id]
    assert [message.role for message in await ann.messages(thread)] == [content.ROLE_USER]
    await ann.decide(run.id, approval.approval.approval_id)
    (await peer.call()).answer("done")
    seen += await all_events(stream)
    check(seen, after=0)
    assert [done.result.call_id for done in of_kind(seen, "tool_call_completed")] == ["c3", "c2", "c1", "c5", "c4"]
    history = await ann.messages(thread)
    assert_pairs(history)
    assert list(results(history[2])) == ["c1", "c2", "c3", "c4", "c5"]
    assert not any(is_error for _, is_error in results(history[2]).values())
    assert len(memory.remembered) == 1
    run = await ann.run(run.id)
    assert ([step.attempts for step in run.steps], run.takeovers) == ([1] * 7, 0)
    assert await ann.watched(run.id) == seen


async def test_more_calls_than_the_budget_allows_ask_nobody(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, HERE, ASKED_FIRST)
    stream = ann.converse(thread, budgets=agent_pb2.Budgets(max_tool_calls=1))
    (await peer.call()).tools(("c1", "where.am_i"), ("c2", "time.now"))
    events = await all_events(stream)
    assert kinds(events)[-1] == "run_failed"
    assert not of_kind(events, "approval_requested")
    assert not any(asked.client_side for asked in of_kind(events, "tool_call_requested"))


async def test_waiting_is_not_work(ann: Caller, peer: InferencePeer, own_url: str) -> None:
    thread = await ready(ann, HERE, budgets=agent_pb2.Budgets(max_wall_time=within(seconds=60)))
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "where.am_i"), ("c2", "where.am_i"))
    seen = await until_kind(stream, "tool_call_requested")
    for call in ("c1", "c2"):
        await ann.until(seen[0].run_id, TOOL)
        # Time flies.
        await execute(
            own_url,
            "UPDATE orchestration.run SET started_at = started_at - interval '1 hour', "
            "waiting_since = waiting_since - interval '1 hour'",
        )
        await ann.submit(seen[0].run_id, {call: "home"})
        if call == "c1":
            await until_kind(stream, "tool_call_completed")
    (await peer.call()).answer("ok")
    assert kinds(await all_events(stream))[-1] == "run_completed"


async def test_work_among_waits_is_work(ann: Caller, peer: InferencePeer, own_url: str) -> None:
    thread = await ready(ann, HERE, budgets=agent_pb2.Budgets(max_wall_time=within(seconds=60)))
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "where.am_i"))
    seen = await until_kind(stream, "tool_call_requested")
    await ann.until(seen[0].run_id, TOOL)
    await execute(own_url, "UPDATE orchestration.run SET started_at = started_at - interval '1 hour'")
    await ann.submit(seen[0].run_id, {"c1": "home"})
    # Whether the model is asked once more before the time is found to be over is a race.
    events = await all_events(stream)
    assert from_status(events[-1].run_failed.status).metadata["budget"] == "wall_time"


async def test_the_next_turn_waits_behind_one_that_waits(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, HERE)
    stream = ann.converse(thread, "first")
    (await peer.call()).tools(("c1", "where.am_i"))
    seen = await until_kind(stream, "tool_call_requested")
    second = await ann.start(thread, "second")
    await ann.until(seen[0].run_id, TOOL)
    assert (await ann.run(second.id)).state == run_pb2.RUN_STATE_QUEUED
    await ann.submit(seen[0].run_id, {"c1": "home"})
    (await peer.call()).answer("one")
    (await peer.call()).answer("two")
    await ann.watched(second.id)
    roles = [role for role, _ in await ann.history(thread)]
    assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant"]


async def test_a_run_that_waits_is_cancelled_by_whoever_is_there(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, HERE, ASKED_FIRST)
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "where.am_i"), ("c2", "time.now"))
    seen = await until_kind(stream, "approval_requested")
    run = await ann.until(seen[0].run_id, APPROVAL)
    assert (await ann.cancel(run.id, "changed my mind")).state == run_pb2.RUN_STATE_CANCELLING
    rest = await all_events(stream)
    assert rest[-1].run_cancelled.reason == "changed my mind"
    history = await ann.messages(thread)
    assert_pairs(history)
    assert results(history[2]) == {
        "c1": ("the run was cancelled before the tool answered; whether it did anything is not known", True),
        "c2": ("the run was cancelled before the call was begun", True),
    }
    for late in (ann.submit(run.id, {"c1": "x"}), ann.decide(run.id, seen[-1].approval_requested.approval.approval_id)):
        error = await refused(late)
        assert isinstance(error, FailedPrecondition)
        assert (error.reason, error.metadata["state"]) == ("STATE_CONFLICT", "CANCELLED")


@pytest.mark.parametrize("rolls_back", [False, True])
async def test_the_next_message_takes_the_place_of_a_run_that_waits(
    ann: Caller, peer: InferencePeer, own_url: str, rolls_back: bool
) -> None:
    policy = agent_pb2.DOUBLE_TEXTING_ROLLBACK if rolls_back else agent_pb2.DOUBLE_TEXTING_INTERRUPT
    thread = await ready(ann, HERE, ASKED_FIRST, ASK, double_texting=policy)
    first = ann.converse(thread, "one")
    (await peer.call()).tools(
        ("c1", "where.am_i"), ("c2", "time.now"), ("c3", "user.ask", '{"question": "Which colour?"}')
    )
    seen = await until_kind(first, "input_requested")
    run = await ann.until(seen[0].run_id, APPROVAL)
    given = {item.WhichOneof("kind"): item for item in run.waiting_for}
    await ann.submit(run.id, {"c1": "home"})
    seen += await until_kind(first, "tool_call_completed")
    await ann.until(run.id, APPROVAL)
    second = ann.converse(thread, "two")
    seen += await all_events(first)
    check(seen, after=0)
    assert seen[-1].run_cancelled.rolled_back is rolls_back
    (await peer.call()).answer("2")
    assert kinds(await all_events(second))[-1] == "run_completed"
    for late in (
        ann.decide(run.id, given["approval"].approval.approval_id),
        ann.provide(run.id, given["input"].input.input_id, '"blue"'),
    ):
        error = await refused(late)
        assert (error.reason, error.metadata["state"]) == ("STATE_CONFLICT", "CANCELLED")
    run = await ann.run(run.id)
    assert (run.state, list(run.waiting_for)) == (run_pb2.RUN_STATE_CANCELLED, [])
    assert await ann.watched(run.id) == seen
    history = await ann.messages(thread)
    assert_pairs(history)
    if rolls_back:
        assert await ann.history(thread) == [("user", "two"), ("assistant", "2")]
        assert await execute(own_url, "SELECT count(*) FROM orchestration.message") == 2, "and none is left that waits"
        return
    assert results(history[2]) == {
        "c1": ("home", False),
        "c2": ("the run was cancelled before the call was begun", True),
        "c3": ("the run was cancelled before the question was answered", True),
    }
    assert await ann.history(thread) == [
        ("user", "one"),
        ("assistant", ""),
        ("tool", ""),
        ("user", "two"),
        ("assistant", "2"),
    ]


async def test_a_thread_with_a_run_that_waits_is_deleted_when_the_run_has_ended(
    ann: Caller, peer: InferencePeer, own_url: str
) -> None:
    thread = await ready(ann, ASKED_FIRST)
    stream, event = await approval_of(ann, thread, peer)
    await ann.until(event.run_id, APPROVAL)
    request = pb.DeleteThreadRequest(thread_id=thread)
    error = await refused(ann.call("DeleteThread", request))
    assert isinstance(error, FailedPrecondition)
    assert (error.reason, error.metadata["state"]) == ("STATE_CONFLICT", "WAITING_APPROVAL")
    await ann.cancel(event.run_id)
    assert kinds(await all_events(stream))[-1] == "run_cancelled"
    await ann.call("DeleteThread", request)
    assert await execute(own_url, "SELECT count(*) FROM orchestration.pending") == 0
    gone = await refused(ann.decide(event.run_id, event.approval_requested.approval.approval_id))
    assert isinstance(gone, NotFound)


async def test_a_stream_that_is_cut_cancels_a_run_that_waits_when_it_is_bound_to_it(
    ann: Caller, peer: InferencePeer
) -> None:
    stream = ann.converse(await ready(ann, HERE), cancel=True)
    (await peer.call()).tools(("c1", "where.am_i"))
    seen = await until_kind(stream, "tool_call_requested")
    await ann.until(seen[0].run_id, TOOL)
    stream.cancel()
    await ann.until(seen[0].run_id, run_pb2.RUN_STATE_CANCELLED)


# -- what answers are refused ----------------------------------------------------------


async def test_an_answer_is_refused_for_what_it_is(ann: Caller, service: Orchestration, peer: InferencePeer) -> None:
    thread = await ready(ann, HERE, ASKED_FIRST, ASK)
    stream = ann.converse(thread)
    (await peer.call()).tools(
        ("c1", "where.am_i"), ("c2", "where.am_i"), ("c3", "time.now"), ("c4", "user.ask", '{"question": "?"}')
    )
    seen = await until_kind(stream, "input_requested")
    run_id = seen[0].run_id
    approval = of_kind(seen, "approval_requested")[0].approval.approval_id
    question = seen[-1].input_requested.input.input_id
    other_thread = await ann.thread()
    other_stream = ann.converse(other_thread)
    (await peer.call()).tools(("c1", "where.am_i"))
    other = (await until_kind(other_stream, "tool_call_requested"))[0].run_id

    async def state_of(call: Any) -> str:
        error = await refused(call)
        assert isinstance(error, FailedPrecondition), error
        assert error.reason == "STATE_CONFLICT"
        return error.metadata["state"]

    for absent in (
        ann.submit("run_none", {"c1": "x"}),
        ann.submit(run_id, {"c9": "x"}),
        ann.submit(run_id, {"c3": "an approval is no result"}),
        ann.submit(run_id, {"c1": "x", "c9": "y"}),
        ann.decide(run_id, "none"),
        ann.decide(other, approval),
        ann.decide(run_id, question),
        ann.provide(other, question, '"x"'),
        ann.provide(run_id, approval, '"x"'),
        service.caller().submit(run_id, {"c1": "x"}),
        service.caller().decide(run_id, approval),
    ):
        error = await refused(absent)
        assert isinstance(error, NotFound), error
    # One that is refused changes nothing: c1 was named beside one that is not there.
    await ann.submit(run_id, {"c1": "first"})
    assert await state_of(ann.submit(run_id, {"c1": "again"})) == "ANSWERED"
    assert await state_of(ann.submit(run_id, {"c2": "x", "c1": "again"})) == "ANSWERED"
    await ann.decide(run_id, approval, approve=False)
    assert await state_of(ann.decide(run_id, approval)) == "DECLINED"
    await ann.provide(run_id, question, '"x"')
    assert await state_of(ann.provide(run_id, question, '"y"')) == "ANSWERED"
    await ann.submit(run_id, {"c2": "second"})
    (await peer.call()).answer("ok")
    await all_events(stream)
    assert await state_of(ann.submit(run_id, {"c2": "late"})) == "ANSWERED"
    told = results((await ann.messages(thread))[2])
    assert [told[call][0] for call in ("c1", "c2", "c4")] == ["first", "second", "x"]


async def test_an_answer_with_a_request_id_is_given_once(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, HERE, ASKED_FIRST, ASK)
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "where.am_i"), ("c2", "time.now"), ("c3", "user.ask", '{"question": "?"}'))
    seen = await until_kind(stream, "input_requested")
    run_id = seen[0].run_id
    approval = of_kind(seen, "approval_requested")[0].approval.approval_id
    question = seen[-1].input_requested.input.input_id
    assert await ann.submit(run_id, {"c1": "x"}, "r1") == await ann.submit(run_id, {"c1": "x"}, "r1")
    assert isinstance(await refused(ann.submit(run_id, {"c1": "y"}, "r1")), AlreadyExists)
    assert await ann.decide(run_id, approval, request_id="r1") == await ann.decide(run_id, approval, request_id="r1")
    assert isinstance(await refused(ann.decide(run_id, approval, approve=False, request_id="r1")), AlreadyExists)
    first = await ann.provide(run_id, question, '"z"', "r1")
    (await peer.call()).answer("ok")
    await all_events(stream)
    assert await ann.provide(run_id, question, '"z"', "r1") == first


async def test_two_decisions_at_once_make_one(ann: Caller, peer: InferencePeer) -> None:
    thread = await ready(ann, ASKED_FIRST)
    stream, event = await approval_of(ann, thread, peer)
    approval = event.approval_requested.approval.approval_id
    both = await asyncio.gather(
        ann.decide(event.run_id, approval), ann.decide(event.run_id, approval, approve=False), return_exceptions=True
    )
    (lost,) = [each for each in both if isinstance(each, grpc.aio.AioRpcError)]
    assert from_rpc(lost).reason == "STATE_CONFLICT"
    (await peer.call()).answer("ok")
    (resolved,) = of_kind(await all_events(stream), "approval_resolved")
    approved = not isinstance(both[0], BaseException)
    assert (resolved.decision == agent_pb2.APPROVAL_DECISION_APPROVED) is approved


# -- replicas that die ----------------------------------------------------------------


def tenant() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


async def test_a_run_waits_while_every_replica_is_dead(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer
) -> None:
    settings = {"inference_target": peer.target, "memory_target": memory.target, "stream_ttl_s": 1}
    async with processes(2, own_url, redis_url, **settings) as replicas:
        name = tenant()
        first = replicas[0].caller(name)
        thread = await ready(first, HERE, NOW)
        stream = first.converse(thread)
        (await peer.call()).tools(("c1", "time.now"), ("c2", "where.am_i"))
        seen = await until_kind(stream, "tool_call_completed")
        run_id = seen[0].run_id
        await first.until(run_id, TOOL)
        for replica in replicas:
            replica.kill()
        # Longer than the events live in Redis.
        await asyncio.sleep(1.2)
        await replicas[1].start()
        second = replicas[1].caller(name)
        (waiting,) = (await second.run(run_id)).waiting_for
        assert waiting.tool.call.call_id == "c2"
        await second.submit(run_id, {"c2": "home"})
        (await peer.call()).answer("welcome back")
        rest = await second.watched(run_id, seen[-1].cursor)
        check([*seen, *rest], after=0)
        assert "replay_compacted" not in kinds(rest)
        assert results((await second.messages(thread))[2])["c2"] == ("home", False)
        run = await second.run(run_id)
        assert (run.takeovers, [step.attempts for step in run.steps]) == (0, [1, 1, 1, 1])


async def test_answers_given_while_the_owner_is_dead_are_taken_by_the_next_one(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer
) -> None:
    settings = {"inference_target": peer.target, "memory_target": memory.target}
    async with processes(2, own_url, redis_url, **settings) as replicas:
        name = tenant()
        first, second = (replica.caller(name) for replica in replicas)
        thread = await ready(first, HERE, ASKED_FIRST, SEARCH)
        stream = first.converse(thread)
        # A search that never ends keeps the owner at work.
        (await peer.call()).tools(("c1", "where.am_i"), ("c2", "time.now"), ("c3", "memory.search", '{"query": "x"}'))
        await memory.search()
        seen = await until_kind(stream, "tool_call_started")
        run_id = seen[0].run_id
        approval = of_kind(seen, "approval_requested")[0].approval.approval_id
        replicas[0].kill()
        await second.submit(run_id, {"c1": "home"})
        await second.decide(run_id, approval)
        (await memory.search()).find("it")
        answering = await peer.call()
        answering.answer("all there")
        rest = await second.watched(run_id, seen[-1].cursor)
        check([*seen, *rest], after=0)
        assert sorted(done.result.call_id for done in of_kind(rest, "tool_call_completed")) == ["c1", "c2", "c3"]
        history = await second.messages(thread)
        assert_pairs(history)
        assert not any(is_error for _, is_error in results(history[2]).values())
        assert list(answering.prompt.messages) == history[:3]
        run = await second.run(run_id)
        assert (run.takeovers, [step.attempts for step in run.steps]) == (1, [1, 1, 1, 2, 1])
        assert await second.watched(run_id) == [*seen, *rest] or "replay_compacted" in kinds(rest)


async def test_a_cancel_and_an_expiry_need_no_owner(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer
) -> None:
    settings = {"inference_target": peer.target, "memory_target": memory.target}
    async with processes(2, own_url, redis_url, **settings) as replicas:
        name = tenant()
        first, second = (replica.caller(name) for replica in replicas)
        hasty = agent_pb2.AgentTool(name="user.ask", timeout=within(seconds=2))
        await first.agent(memory=ALONE, tools=[HERE, hasty])
        runs = []
        for call in (("c1", "where.am_i"), ("c1", "user.ask", '{"question": "?"}')):
            run = await first.start(await first.thread())
            (await peer.call()).tools(call)
            runs.append(await first.until(run.id, TOOL, INPUT))
        replicas[0].kill()
        await second.cancel(runs[0].id, "nobody is there")
        for run, end in zip(runs, ("run_cancelled", "run_expired"), strict=True):
            events = await second.watched(run.id)
            check(events, after=0)
            assert kinds(events)[-1] == end
            assert_pairs(await second.messages(run.thread_id))


@pytest.mark.parametrize("rolls_back", [False, True])
async def test_the_next_message_takes_the_place_of_a_run_that_waits_with_any_replica(
    own_url: str, redis_url: str, peer: InferencePeer, memory: MemoryPeer, rolls_back: bool
) -> None:
    policy = agent_pb2.DOUBLE_TEXTING_ROLLBACK if rolls_back else agent_pb2.DOUBLE_TEXTING_INTERRUPT
    settings = {"inference_target": peer.target, "memory_target": memory.target}
    async with processes(2, own_url, redis_url, **settings) as replicas:
        name = tenant()
        first, second = (replica.caller(name) for replica in replicas)
        thread = await ready(first, ASKED_FIRST, double_texting=policy)
        run = await first.start(thread, "one")
        (await peer.call()).tools(("c1", "time.now"))
        await first.until(run.id, APPROVAL)
        replicas[0].kill()
        following = second.converse(thread, "two")
        events = await second.watched(run.id)
        check(events, after=0)
        assert events[-1].run_cancelled.rolled_back is rolls_back
        (await peer.call()).answer("2")
        assert kinds(await all_events(following))[-1] == "run_completed"
        history = await second.history(thread)
        roles = ["user", "assistant"] if rolls_back else ["user", "assistant", "tool", "user", "assistant"]
        assert [role for role, _ in history] == roles
        assert_pairs(await second.messages(thread))
        assert (await second.run(run.id)).takeovers == 0


async def test_a_watcher_elsewhere_sees_the_same(own_url: str, redis_url: str, peer: InferencePeer) -> None:
    async with (
        running(own_url, redis_url, inference_target=peer.target, lease_s=30) as one,
        running(own_url, redis_url, inference_target=peer.target, lease_s=30) as other,
    ):
        ann, there = one.caller("ann"), other.caller("ann")
        thread = await ready(ann, ASKED_FIRST)
        stream, event = await approval_of(ann, thread, peer)
        watching = asyncio.create_task(there.watched(event.run_id))
        await there.until(event.run_id, APPROVAL)
        await there.decide(event.run_id, event.approval_requested.approval.approval_id)
        (await peer.call()).answer("ok")
        await all_events(stream)
        assert await watching == await ann.watched(event.run_id)
