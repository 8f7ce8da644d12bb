"""Tools of workers: who gets a call, what becomes of it, and what the death of any side leaves."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, status_pb2
from tests.fakes.orchestration_service import (
    Caller,
    Orchestration,
    all_events,
    assert_pairs,
    eventually,
    kinds,
    running,
    until_kind,
)
from tests.fakes.peers.inference_peer import InferencePeer
from tests.fakes.tcp_proxy import TcpProxy
from tests.fakes.tool_worker import Worker, dialled, tool, worker

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2
from janus_api.tools.v1 import tool_worker_service_pb2 as pb
from janus_kit.errors import FailedPrecondition, InvalidArgument
from janus_kit.rpc_errors import from_rpc, from_status
from janus_orchestration import worker_sessions
from janus_orchestration.worker_sessions import WorkerSessions
from janus_worker import Worker as Helper

ALONE = agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True)
COUNT = ("c1", "count", '{"n": 1}')
LEASE_S = 2.0


@pytest.fixture
async def hasty(own_url: str, redis_url: str, peer: InferencePeer) -> AsyncIterator[Orchestration]:
    """A service that soon takes a silent worker for dead; workers that are to live send heartbeats here."""
    async with running(own_url, redis_url, inference_target=peer.target, worker_lease_s=LEASE_S) as serving:
        yield serving


async def ready(ann: Caller, name: str = "count", **fields: Any) -> str:
    """A thread of an agent with one tool."""
    return await ann.ready(memory=ALONE, tools=[agent_pb2.AgentTool(name=name, **fields)])


async def waiting(service: Orchestration, ann: Caller, *tools: pb.Tool) -> str:
    """A thread of an agent that waits for a worker, of which there has been one."""
    async with worker(service.address, ann.tenant, *tools) as early:
        await early.say(drain=pb.Drain())
        await early.closed()
    return await ready(ann, when_no_worker=agent_pb2.WHEN_NO_WORKER_WAIT)


def result(message: content.Message, place: int = 0) -> tuple[str, bool]:
    """What a tool answered, and whether it failed."""
    told = message.parts[place].tool_result
    return "".join(part.text for part in told.parts), told.is_error


def of_kind(events: list[event_pb2.RunEvent], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]


async def finished(ann: Caller, peer: InferencePeer, stream: Any, thread: str) -> tuple[str, bool]:
    """Let the model answer; what it was told by its one call."""
    (await peer.call()).answer("done")
    assert kinds(await all_events(stream))[-1] == "run_completed"
    history = await ann.messages(thread)
    assert_pairs(history)
    return result(history[2])


async def test_a_worker_runs_the_call_and_the_model_gets_its_answer(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    async with worker(service.address, ann.tenant, tool(description="Counts.")) as bob:
        await ann.agent(memory=ALONE, tools=[agent_pb2.AgentTool(name="count", timeout=Duration(seconds=30))])
        thread = await ann.thread(subject="ann")
        stream = ann.converse(thread)
        asked = await peer.call()
        assert [(each.name, each.description) for each in asked.prompt.tools] == [("count", "Counts.")]
        asked.tools(COUNT)
        call = await bob.given()
        await bob.say(started=pb.CallStarted(call_id=call.call_id))
        await bob.answer(call, "two")
        assert await finished(ann, peer, stream, thread) == ("two", False)
        run_id = (await ann.watched(stream_run(bob)))[0].run_id
        assert (call.run_id, call.thread_id, call.subject, call.tool) == (run_id, thread, "ann", "count")
        assert (call.arguments_json, call.attempt, call.idempotency_key) == ('{"n": 1}', 1, f"{run_id}:2")
        assert call.deadline.ToDatetime().timestamp() > 0
        assert await bob.beat() == []


def stream_run(bob: Worker) -> str:
    return next(told.call.run_id for told in bob.told if told.HasField("call"))


async def test_events_tell_who_has_the_call_and_how_far_it_is(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    async with worker(service.address, ann.tenant, worker_id="bob") as bob:
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT)
        call = await bob.given()
        await bob.say(progress=pb.CallProgress(call_id=call.call_id, fraction=0.5, message="half"))
        seen = await until_kind(stream, "tool_call_progress")
        progress = seen[-1].tool_call_progress
        assert (progress.call_id, progress.fraction, progress.message) == ("c1", 0.5, "half")
        (started,) = of_kind(seen, "tool_call_started")
        assert (started.call_id, started.worker_id, started.attempt) == ("c1", "bob", 1)
        await bob.answer(call, "done")
        await finished(ann, peer, stream, thread)


async def test_an_answer_may_have_pictures_and_documents(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    image = content.Part(image=content.Media(data=b"\x89PNG", mime_type="image/png"))
    async with worker(service.address, ann.tenant) as bob:
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT)
        call = await bob.given()
        parts = [content.Part(text="a\x00b", cache_breakpoint=True), image]
        await bob.say(completed=pb.CallCompleted(call_id=call.call_id, result=content.ToolResult(parts=parts)))
        await finished(ann, peer, stream, thread)
        told = (await ann.messages(thread))[2].parts[0].tool_result
        assert list(told.parts) == [content.Part(text="a\ufffdb"), image]
        assert told.call_id == "c1"


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ({"error": status_pb2.Status(code=code_pb2.NOT_FOUND, message="no such thing")}, "NOT_FOUND: no such thing"),
        ({"error": status_pb2.Status(code=99)}, "99"),
        ({}, "the tool's worker sent neither a result nor an error"),
        ({"error": status_pb2.Status(message="fine")}, "the tool's worker sent neither a result nor an error"),
        (
            {"result": content.ToolResult(parts=[content.Part(refusal="no")])},
            "the tool ran, but its result breaks a rule: result.parts[0]: must be text, an image or a document",
        ),
        (
            {"result": content.ToolResult(parts=[content.Part(text="x")] * 65)},
            "the tool ran, but its result breaks a rule: result.parts: must have 0 to 64 items",
        ),
    ],
)
async def test_what_goes_wrong_with_a_call_is_told_to_the_model(
    service: Orchestration, ann: Caller, peer: InferencePeer, outcome: dict[str, Any], told: str
) -> None:
    async with worker(service.address, ann.tenant) as bob:
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT)
        call = await bob.given()
        await bob.say(completed=pb.CallCompleted(call_id=call.call_id, **outcome))
        assert await finished(ann, peer, stream, thread) == (told, True)


async def test_no_worker_sees_arguments_that_do_not_hold_to_the_schema(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    async with worker(service.address, ann.tenant) as bob:
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(
            ("c1", "count", '{"n": "x"}'), ("c2", "count", '{"n": 1e400}'), ("c3", "count", '{"n": 1, "n": 3}')
        )
        call = await bob.given()
        # What the worker's parser would make of a name that is there twice is not left to it.
        assert call.arguments_json == '{"n": 3}'
        await bob.answer(call, "three")
        await finished(ann, peer, stream, thread)
        history = await ann.messages(thread)
        assert [result(history[2], place)[1] for place in range(3)] == [True, True, False]


async def test_calls_go_to_the_worker_with_the_least_to_do_and_wait_when_all_are_busy(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    async with (
        worker(service.address, ann.tenant, worker_id="one", credits=2) as one,
        worker(service.address, ann.tenant, worker_id="two", credits=2) as two,
    ):
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(*[(f"c{place}", "count", f'{{"n": {place}}}') for place in range(6)])
        calls = [await one.given(), await one.given(), await two.given(), await two.given()]
        assert len({call.call_id for call in calls}) == 4
        # All credits are used: nothing more comes until one is given back, or added.
        assert len(await one.beat()) == 2
        await one.answer(calls[0], "first")
        calls.append(await one.given())
        await two.say(credits=pb.AddCredits(credits=1))
        calls.append(await two.given())
        for holder, call in zip((one, two, two, one, two), calls[1:], strict=True):
            await holder.answer(call, "ok")
        await finished(ann, peer, stream, thread)


async def test_a_tool_without_a_worker_fails_at_once_unless_the_agent_waits(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    patient = await waiting(service, ann)
    thread = await ready(ann)
    stream = ann.converse(thread)
    (await peer.call()).tools(COUNT)
    told = await finished(ann, peer, stream, thread)
    assert told == ("no worker that offers 'count' is connected", True)

    await ready(ann, when_no_worker=agent_pb2.WHEN_NO_WORKER_WAIT)
    stream = ann.converse(patient)
    (await peer.call()).tools(COUNT)
    await until_kind(stream, "tool_call_requested")
    async with worker(service.address, ann.tenant) as bob:
        await bob.answer(await bob.given(), "here I am")
        (await peer.call()).answer("done")
        await all_events(stream)
        assert result((await ann.messages(patient))[2]) == ("here I am", False)


async def test_a_call_that_nobody_takes_in_time_fails(service: Orchestration, ann: Caller, peer: InferencePeer) -> None:
    async with worker(service.address, ann.tenant) as bob:
        thread = await ready(ann, when_no_worker=agent_pb2.WHEN_NO_WORKER_WAIT, timeout=Duration(nanos=300_000_000))
        await bob.say(drain=pb.Drain())
        await bob.closed()
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT)
        assert await finished(ann, peer, stream, thread) == ("no worker took the call within 0.3 s", True)


async def test_a_worker_is_told_when_its_time_is_up(service: Orchestration, ann: Caller, peer: InferencePeer) -> None:
    async with worker(service.address, ann.tenant) as bob:
        thread = await ready(ann, timeout=Duration(nanos=300_000_000))
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT)
        call = await bob.given()
        assert (await bob.dropped()).call_id == call.call_id
        assert await finished(ann, peer, stream, thread) == ("the tool did not answer within 0.3 s", True)
        # It comes too late, and gives the credit back all the same.
        assert await bob.beat(call.call_id) == [call.call_id]
        await bob.answer(call, "late")
        assert await bob.beat() == []


async def test_a_worker_is_told_of_a_cancelled_run(service: Orchestration, ann: Caller, peer: InferencePeer) -> None:
    async with worker(service.address, ann.tenant) as bob:
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT)
        call = await bob.given()
        await ann.cancel(call.run_id, "enough")
        assert (await bob.dropped()).call_id == call.call_id
        assert kinds(await all_events(stream))[-1] == "run_cancelled"
        assert_pairs(await ann.messages(thread))


async def test_a_worker_that_drains_gets_no_more_and_finishes_what_it_has(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    async with (
        worker(service.address, ann.tenant, worker_id="old") as old,
        worker(service.address, ann.tenant, worker_id="new") as new,
    ):
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT, ("c2", "count"))
        held, other = await old.given(), await new.given()
        await old.say(drain=pb.Drain(reason="bye"))
        await new.answer(other, "new")
        await old.answer(held, "old")
        assert (await old.closed()).code == 0
        (await peer.call()).tools(("c3", "count"))
        await new.answer(await new.given(), "still here")
        (await peer.call()).answer("done")
        assert kinds(await all_events(stream))[-1] == "run_completed"


@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_a_vanished_workers_call_is_sent_again_where_that_does_no_harm(
    hasty: Orchestration, peer: InferencePeer, how: str
) -> None:
    ann = hasty.caller()
    async with worker(hasty.address, ann.tenant, worker_id="first") as first:
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT)
        call = await first.given()
        async with worker(hasty.address, ann.tenant, worker_id="second") as second:
            beating = asyncio.create_task(keep_beating(second))
            if how == "cut":
                first.cut()
            again = await asyncio.wait_for(beating, 20)
            assert (again.attempt, again.idempotency_key) == (2, call.idempotency_key)
            assert again.call_id != call.call_id
            if how == "silent":
                assert from_status(await first.closed()).reason == "DEADLINE_EXCEEDED"
            await second.answer(again, "at last")
            assert await finished(ann, peer, stream, thread) == ("at last", False)
            started = of_kind(await ann.watched(call.run_id), "tool_call_started")
            assert [(each.worker_id, each.attempt) for each in started] == [("first", 1), ("second", 2)]
            assert [step.attempts for step in (await ann.run(call.run_id)).steps] == [1, 2, 1]


async def keep_beating(holder: Worker, *call_ids: str) -> pb.Call:
    """Signs of life until a call comes."""
    while True:
        await holder.say(heartbeat=pb.Heartbeat(call_ids=call_ids))
        if await holder.next() == "call":
            return holder.told[-1].call
        await asyncio.sleep(LEASE_S / 5)


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_a_vanished_workers_at_most_once_call_is_sent_again_only_with_a_persons_word(
    hasty: Orchestration, peer: InferencePeer, how: str, again: bool
) -> None:
    ann = hasty.caller()
    once = tool(side_effect=pb.SIDE_EFFECT_AT_MOST_ONCE)
    async with worker(hasty.address, ann.tenant, once, worker_id="first") as first:
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT)
        await first.given()
        async with worker(hasty.address, ann.tenant, once, worker_id="second") as second:
            beating = asyncio.create_task(keep_beating(second))
            if how == "cut":
                first.cut()
            asked = (await until_kind(stream, "approval_requested"))[-1]
            approval = asked.approval_requested.approval
            assert approval.reason.startswith("the tool's worker vanished before it answered; whether the call did")
            await ann.until(asked.run_id, run_pb2.RUN_STATE_WAITING_APPROVAL)
            assert not any(said.HasField("call") for said in second.told)
            await ann.decide(asked.run_id, approval.approval_id, approve=again)
            if again:
                call = await beating
                assert (call.attempt, call.idempotency_key) == (2, f"{asked.run_id}:2")
                await second.answer(call, "done")
            assert await finished(ann, peer, stream, thread) == (
                ("done", False)
                if again
                else ("the call was begun, whether it did anything is not known, and another try was declined", True)
            )
            beating.cancel()
            assert sum(said.HasField("call") for said in second.told) == again
            assert [step.attempts for step in (await ann.run(asked.run_id)).steps] == [1, 1 + again, 1]


async def late(ann: Caller, peer: InferencePeer, bob: Worker) -> tuple[str, Any, pb.Call, event_pb2.RunEvent]:
    """A thread, its run's stream, and a call about which a person is asked, as its worker is late."""
    thread = await ready(ann, timeout=Duration(nanos=300_000_000))
    stream = ann.converse(thread)
    (await peer.call()).tools(COUNT)
    call = await bob.given()
    asked = (await until_kind(stream, "approval_requested"))[-1]
    await ann.until(asked.run_id, run_pb2.RUN_STATE_WAITING_APPROVAL)
    return thread, stream, call, asked


async def test_an_answer_that_comes_while_a_person_is_asked_counts(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    once = tool(side_effect=pb.SIDE_EFFECT_AT_MOST_ONCE)
    async with worker(service.address, ann.tenant, once, worker_id="bob") as bob:
        thread, stream, call, asked = await late(ann, peer, bob)
        approval = asked.approval_requested.approval
        assert approval.reason.startswith("the tool did not answer within 0.3 s; whether the call did")
        await bob.answer(call, "late, but there")
        await bob.beat()
        await ann.decide(asked.run_id, approval.approval_id)
        assert await finished(ann, peer, stream, thread) == ("late, but there", False)
        assert sum(said.HasField("call") for said in bob.told) == 1


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set whenever the service has looked for late calls, which are so as soon as their deadline has passed."""
    event, look = asyncio.Event(), WorkerSessions._look_at_all

    def look_and_tell(sessions: WorkerSessions) -> None:
        look(sessions)
        event.set()

    monkeypatch.setattr(worker_sessions, "_OVERDUE_S", 0.0)
    monkeypatch.setattr(WorkerSessions, "_look_at_all", look_and_tell)
    return event


async def has_looked(looked: asyncio.Event) -> None:
    looked.clear()
    async with asyncio.timeout(15):
        await looked.wait()


@pytest.mark.parametrize("approve", [True, False])
async def test_a_late_call_that_must_not_be_repeated_is_kept_until_a_person_has_decided(
    service: Orchestration, ann: Caller, peer: InferencePeer, looked: asyncio.Event, approve: bool
) -> None:
    once = tool(side_effect=pb.SIDE_EFFECT_AT_MOST_ONCE)
    async with worker(service.address, ann.tenant, once, worker_id="bob") as bob:
        thread, stream, call, asked = await late(ann, peer, bob)
        await has_looked(looked)
        assert await bob.beat(call.call_id) == [call.call_id]
        await ann.decide(asked.run_id, asked.approval_requested.approval.approval_id, approve=approve)
        assert (await bob.dropped()).call_id == call.call_id, "nobody waits for this try any more"
        if approve:
            again = await bob.given()
            assert (again.attempt, again.idempotency_key) == (2, call.idempotency_key)
            await bob.answer(again, "done")
        text, is_error = await finished(ann, peer, stream, thread)
        assert (text == "done", is_error) == (approve, not approve)


async def offered(ann: Caller) -> str:
    """A thread of an agent with the one tool, as soon as its worker has registered."""

    async def is_offered() -> bool:
        try:
            await ann.agent(memory=ALONE, tools=[agent_pb2.AgentTool(name="count")])
        except grpc.aio.AioRpcError as error:
            if from_rpc(error).reason != "FIELD_INVALID":
                raise
            return False
        return True

    await eventually(is_offered)
    return await ann.thread()


async def test_the_helper_finishes_a_late_call_that_must_not_be_repeated(
    service: Orchestration, ann: Caller, peer: InferencePeer, looked: asyncio.Event
) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    calls = 0
    helper = Helper(service.address, tenant=ann.tenant)

    @helper.tool(timeout=timedelta(milliseconds=300))
    async def count(n: int) -> str:
        nonlocal calls
        calls += 1
        begun.set()
        await may_end.wait()
        return "late, but there"

    serving = asyncio.create_task(helper.serve())
    try:
        thread = await offered(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT)
        await asyncio.wait_for(begun.wait(), 15)
        asked = (await until_kind(stream, "approval_requested"))[-1]
        await ann.until(asked.run_id, run_pb2.RUN_STATE_WAITING_APPROVAL)
        await has_looked(looked)
        may_end.set()
        # It has no calls then, and the server has what this one said.
        helper.stop()
        await asyncio.wait_for(serving, 15)
        await ann.decide(asked.run_id, asked.approval_requested.approval.approval_id)
        assert await finished(ann, peer, stream, thread) == ("late, but there", False)
        assert calls == 1
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@pytest.mark.parametrize("kind", ["SIDE_EFFECT_IDEMPOTENT", "SIDE_EFFECT_AT_MOST_ONCE"])
async def test_a_call_that_was_never_claimed_is_sent_whatever_its_kind(
    service: Orchestration, ann: Caller, peer: InferencePeer, kind: str
) -> None:
    made = tool(side_effect=pb.SideEffect.Value(kind))
    async with worker(service.address, ann.tenant, made, worker_id="first", credits=1) as first:
        thread = await ready(ann, when_no_worker=agent_pb2.WHEN_NO_WORKER_WAIT)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT, ("c2", "count", '{"n": 2}'))
        taken = await first.given()
        await first.answer(taken, "one")
        second_call = await first.given()
        await first.answer(second_call, "two")
        assert {taken.attempt, second_call.attempt} == {1}
        await finished(ann, peer, stream, thread)


async def test_a_worker_that_comes_back_goes_on_with_its_calls(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    once = tool(side_effect=pb.SIDE_EFFECT_AT_MOST_ONCE)
    async with worker(service.address, ann.tenant, once, worker_id="bob") as before:
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT)
        call = await before.given()
        before.cut()
        async with worker(service.address, ann.tenant, once, worker_id="bob") as after:
            # It says what it runs, and the call is its own again.
            assert await after.beat(call.call_id) == [call.call_id]
            await after.answer(call, "done once")
            assert await finished(ann, peer, stream, thread) == ("done once", False)


async def test_a_worker_is_told_which_of_its_calls_nobody_waits_for(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    async with worker(service.address, ann.tenant, worker_id="bob") as bob:
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT)
        call = await bob.given()
        async with worker(service.address, ann.tenant, worker_id="eve") as eve:
            # Another worker cannot take the call over by naming it.
            await eve.say(heartbeat=pb.Heartbeat(call_ids=[call.call_id, "made:up", f"{call.run_id}:9:1"]))
            assert {(await eve.dropped()).call_id for _ in range(3)} == {
                call.call_id,
                "made:up",
                f"{call.run_id}:9:1",
            }
            await eve.answer(call, "not mine")
        await bob.answer(call, "mine")
        assert await finished(ann, peer, stream, thread) == ("mine", False)


async def test_a_worker_of_another_tenant_never_sees_a_call(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    async with (
        worker(service.address, "other", worker_id="bob") as foreign,
        worker(service.address, ann.tenant, worker_id="bob") as own,
    ):
        thread = await ready(ann)
        stream = ann.converse(thread)
        (await peer.call()).tools(COUNT, ("c2", "count"))
        calls = [await own.given(), await own.given()]
        await foreign.say(heartbeat=pb.Heartbeat(call_ids=[calls[0].call_id]))
        assert (await foreign.dropped()).call_id == calls[0].call_id
        await foreign.answer(calls[0], "stolen")
        for call in calls:
            await own.answer(call, "own")
        assert await finished(ann, peer, stream, thread) == ("own", False)
        assert not any(said.HasField("call") for said in foreign.told)


async def test_a_tool_of_another_tenant_is_no_tool(service: Orchestration, ann: Caller) -> None:
    async with worker(service.address, "other"):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ready(ann)
        refused = from_rpc(raised.value)
        assert isinstance(refused, InvalidArgument)
        assert [violation.field for violation in refused.violations] == ["agent.tools[0].name"]


async def test_workers_of_one_tool_must_agree(service: Orchestration, ann: Caller) -> None:
    async with worker(service.address, ann.tenant):
        # The same schema, written otherwise.
        async with worker(service.address, ann.tenant, tool(parameters_schema_json=spaced()), worker_id="w2"):
            pass
        for other in (tool(side_effect=pb.SIDE_EFFECT_READ_ONLY), tool(parameters_schema_json="")):
            async with dialled(service.address, ann.tenant) as refused:
                await refused.say(register=pb.Register(worker_id="w3", tools=[tool("fine"), other], credits=1))
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await refused.next()
                error = from_rpc(raised.value)
                assert isinstance(error, FailedPrecondition)
                assert (error.reason, dict(error.metadata)) == ("STATE_CONFLICT", {"tools": "count"})


def spaced() -> str:
    return '{\n "additionalProperties":false, "properties": {"n":{"type":"integer"}},"type":"object"}'


REGISTRATIONS: list[tuple[pb.ConnectRequest, list[str]]] = [
    (pb.ConnectRequest(heartbeat=pb.Heartbeat()), ["register"]),
    (pb.ConnectRequest(), ["register"]),
    (
        pb.ConnectRequest(register=pb.Register()),
        ["register.worker_id", "register.credits", "register.tools"],
    ),
    (
        pb.ConnectRequest(
            register=pb.Register(
                worker_id="w",
                credits=1_001,
                tools=[
                    tool("a b"),
                    tool("memory.x"),
                    tool("twice"),
                    tool("twice"),
                    tool("a", parameters_schema_json='{"$ref": "https://x"}'),
                    tool("b", parameters_schema_json='{"type": "array"}'),
                    tool("c", timeout=Duration(nanos=1)),
                    tool("d", side_effect=9),
                    tool("e", description="x" * 16_385),
                ],
            )
        ),
        [
            "register.credits",
            "register.tools[0].name",
            "register.tools[1].name",
            "register.tools[3].name",
            "register.tools[4].parameters_schema_json",
            "register.tools[5].parameters_schema_json",
            "register.tools[6].timeout",
            "register.tools[7].side_effect",
            "register.tools[8].description",
        ],
    ),
]


@pytest.mark.parametrize(("first", "fields"), REGISTRATIONS, ids=range(len(REGISTRATIONS)))
async def test_a_bad_registration_names_its_fields(
    service: Orchestration, ann: Caller, first: pb.ConnectRequest, fields: list[str]
) -> None:
    async with dialled(service.address, ann.tenant) as bob:
        await bob.call.write(first)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await bob.next()
        error = from_rpc(raised.value)
        assert isinstance(error, InvalidArgument), error
        assert [violation.field for violation in error.violations] == fields


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"register": pb.Register()}, "register"),
        ({}, "message"),
        ({"credits": pb.AddCredits(credits=0)}, "credits.credits"),
        ({"credits": pb.AddCredits(credits=1_000)}, "credits.credits"),
        ({"heartbeat": pb.Heartbeat(call_ids=["a b"])}, "heartbeat.call_ids[0]"),
        ({"progress": pb.CallProgress(call_id="x", fraction=1.5)}, "progress.fraction"),
        ({"progress": pb.CallProgress(call_id="x", message="x" * 1_025)}, "progress.message"),
        ({"drain": pb.Drain(reason="x" * 1_025)}, "drain.reason"),
    ],
)
async def test_a_bad_message_ends_the_stream_and_says_why(
    service: Orchestration, ann: Caller, message: dict[str, Any], field: str
) -> None:
    async with worker(service.address, ann.tenant) as bob:
        await bob.say(**message)
        error = from_status(await bob.closed())
        assert isinstance(error, InvalidArgument)
        assert [violation.field for violation in error.violations] == [field]


async def test_what_is_said_of_unknown_calls_changes_nothing(service: Orchestration, ann: Caller) -> None:
    async with worker(service.address, ann.tenant) as bob:
        await bob.say(started=pb.CallStarted(call_id="run:1:1"))
        await bob.say(progress=pb.CallProgress(call_id="run:1:1"))
        await bob.answer("run:1:1", "x")
        await bob.answer("nonsense", "x")
        assert await bob.beat() == []


@pytest.mark.parametrize("kind", ["SIDE_EFFECT_IDEMPOTENT", "SIDE_EFFECT_AT_MOST_ONCE"])
async def test_a_server_that_stops_sends_its_workers_elsewhere(
    own_url: str, redis_url: str, peer: InferencePeer, kind: str
) -> None:
    name = f"t{uuid.uuid4().hex[:12]}"
    options = {"inference_target": peer.target, "lease_s": 30}
    once = tool(side_effect=pb.SideEffect.Value(kind))
    async with AsyncExitStack() as stack, running(own_url, redis_url, **options) as stays:
        ann = stays.caller(name)
        async with running(own_url, redis_url, **options) as stops:
            busy = await stack.enter_async_context(worker(stops.address, name, once, worker_id="busy", credits=1))
            thread = await ready(ann)
            stream = ann.converse(thread)
            (await peer.call()).tools(COUNT)
            call = await busy.given()
            idle = await stack.enter_async_context(worker(stops.address, name, once, worker_id="idle"))
        assert from_status(await idle.closed()).reason == "DRAINING"
        async with worker(stays.address, name, once, worker_id="busy") as again:
            assert await again.beat(call.call_id) == [call.call_id]
            await again.answer(call, "slow")
            assert await finished(ann, peer, stream, thread) == ("slow", False)
        assert from_status(await busy.closed()).reason == "DRAINING"


async def test_a_stream_that_has_lived_long_enough_is_made_anew(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    async with running(own_url, redis_url, inference_target=peer.target, worker_stream_s=0.3) as service:
        ann = service.caller()
        async with worker(service.address, ann.tenant, worker_id="bob") as before:
            thread = await ready(ann)
            stream = ann.converse(thread)
            (await peer.call()).tools(COUNT)
            call = await before.given()
            assert await before.next() == "drain"
            async with worker(service.address, ann.tenant, worker_id="bob") as after:
                assert await after.beat(call.call_id) == [call.call_id]
                assert from_status(await before.closed()).reason == "DRAINING"
                await after.answer(call, "over the new one")
                assert await finished(ann, peer, stream, thread) == ("over the new one", False)


async def test_an_outage_of_the_records_that_outlasts_every_lease_makes_no_worker_vanish(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    once = tool(side_effect=pb.SIDE_EFFECT_AT_MOST_ONCE)
    with closing(TcpProxy.to(own_url)) as proxy:
        async with running(
            proxy.through(own_url), redis_url, inference_target=peer.target, worker_lease_s=LEASE_S
        ) as service:
            ann = service.caller()
            thread = await waiting(service, ann, once)
            stream = ann.converse(thread)
            (await peer.call()).tools(COUNT)
            await until_kind(stream, "tool_call_requested")
            async with worker(service.address, ann.tenant, once) as bob:
                call = await bob.given()
                await until_kind(stream, "tool_call_started")
                proxy.cut()
                for _ in range(10):
                    await asyncio.sleep(LEASE_S / 4)
                    assert await bob.beat(call.call_id) == [call.call_id]
                proxy.mend()
                for _ in range(4):
                    await asyncio.sleep(LEASE_S / 4)
                    assert await bob.beat(call.call_id) == [call.call_id]
                await bob.answer(call, "all along")
                assert await finished(ann, peer, stream, thread) == ("all along", False)


async def test_an_answer_that_cannot_be_written_is_written_later(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    with closing(TcpProxy.to(own_url)) as proxy:
        async with running(proxy.through(own_url), redis_url, inference_target=peer.target) as service:
            ann = service.caller()
            async with worker(service.address, ann.tenant) as bob:
                thread = await ready(ann)
                stream = ann.converse(thread)
                (await peer.call()).tools(COUNT)
                call = await bob.given()
                await until_kind(stream, "tool_call_started")
                proxy.cut()
                await bob.answer(call, "kept")
                # Until it is written the server says that it has the call, and so the worker keeps the result.
                assert await bob.beat() == [call.call_id]
                proxy.mend()
                assert await finished(ann, peer, stream, thread) == ("kept", False)
                assert await bob.beat() == []
