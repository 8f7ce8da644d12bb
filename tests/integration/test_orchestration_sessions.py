"""A live conversation on one stream: everything in, everything out, and nothing that others do not see."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import pytest
from tests.fakes.orchestration_service import (
    TERMINAL,
    Caller,
    Orchestration,
    asking,
    assert_pairs,
    check,
    kinds,
    processes,
    text_of,
    until_kind,
)
from tests.fakes.peers.inference_peer import InferencePeer

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.channel import connect
from janus_kit.errors import FailedPrecondition, InvalidArgument, JanusError, NotFound, OutOfRange
from janus_kit.rpc_errors import from_rpc, from_status

ALONE = agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True)
TOOLS = [
    agent_pb2.AgentTool(name="where.am_i", client_side=True),
    agent_pb2.AgentTool(name="time.now", needs_approval=True),
    agent_pb2.AgentTool(name="user.ask"),
]


class Session:
    """A client's side of a session, and all that it was told."""

    def __init__(self, who: Caller, thread: str, **config: Any) -> None:
        self.call = who.stub.Session(metadata=who.metadata)
        self.config = pb.SessionConfig(thread_id=thread, **config)
        self.told: list[pb.SessionResponse] = []

    async def __aenter__(self) -> Session:
        await self.send(config=self.config)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()

    async def send(self, **message: Any) -> None:
        await self.call.write(pb.SessionRequest(**message))

    async def say(self, text: str = "hello", **fields: Any) -> None:
        await self.send(input=asking("", text, **fields))

    async def next(self) -> pb.SessionResponse:
        async with asyncio.timeout(20):
            response = await self.call.read()
        assert response is not grpc.aio.EOF, f"the session ended after {kinds(self.events)}"
        self.told.append(response)
        assert [each.sequence for each in self.told] == list(range(1, len(self.told) + 1))
        return response

    async def event(self, kind: str) -> event_pb2.RunEvent:
        """The next event of a kind, whatever comes before it."""
        while (response := await self.next()).event.WhichOneof("event") != kind:
            assert response.WhichOneof("message") == "event"
        return response.event

    async def rejected(self) -> tuple[int, JanusError]:
        while (response := await self.next()).WhichOneof("message") != "rejected":
            assert response.WhichOneof("message") == "event"
        return response.rejected.request_sequence, from_status(response.rejected.status)

    async def rest(self) -> None:
        """Say no more, and hear the end."""
        await self.call.done_writing()
        while (await self.next()).WhichOneof("message") != "ended":
            pass
        async with asyncio.timeout(10):
            assert await self.call.read() is grpc.aio.EOF

    async def refusal(self) -> JanusError:
        """The status with which the call ends."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            while True:
                await self.next()
        return from_rpc(raised.value)

    @property
    def events(self) -> list[event_pb2.RunEvent]:
        return [response.event for response in self.told if response.HasField("event")]

    def of(self, run_id: str) -> list[event_pb2.RunEvent]:
        return [event for event in self.events if event.run_id == run_id]


async def test_turns_follow_each_other_on_one_stream(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(memory=ALONE)
    async with Session(ann, thread) as session:
        for turn in range(3):
            await session.say(f"question {turn}")
            (await peer.call()).answer(f"answer {turn}")
            run_id = (await session.event("run_completed")).run_id
            check(session.of(run_id), after=0)
            assert session.of(run_id) == await ann.watched(run_id)
        await session.rest()
    assert await ann.history(thread) == [
        line for turn in range(3) for line in (("user", f"question {turn}"), ("assistant", f"answer {turn}"))
    ]


async def test_everything_that_a_run_waits_for_is_answered_on_the_stream(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(memory=ALONE, tools=TOOLS)
    async with Session(ann, thread) as session:
        await session.say()
        (await peer.call()).tools(("c1", "where.am_i"), ("c2", "time.now"), ("c3", "user.ask", '{"question": "?"}'))
        asked = await session.event("approval_requested")
        question = await session.event("input_requested")
        run_id = asked.run_id
        watching = asyncio.create_task(ann.watched(run_id))
        result = content.ToolResult(call_id="c1", parts=[content.Part(text="home")])
        await session.send(tool_results=pb.ToolResults(run_id=run_id, results=[result]))
        approval = pb.ApprovalAnswer(
            run_id=run_id,
            approval_id=asked.approval_requested.approval.approval_id,
            decision=agent_pb2.APPROVAL_DECISION_APPROVED,
        )
        await session.send(approval=approval)
        answer = pb.InputAnswer(run_id=run_id, input_id=question.input_requested.input.input_id, answer_json='"yes"')
        await session.send(answer=answer)
        # Given once: the session is told, and goes on.
        await session.send(approval=approval)
        place, error = await session.rejected()
        assert (place, error.reason, error.metadata["state"]) == (6, "STATE_CONFLICT", "APPROVED")
        (await peer.call()).answer("done")
        await session.rest()
        check(session.events, after=0)
        assert await watching == session.events
    history = await ann.messages(thread)
    assert_pairs(history)
    assert not any(part.tool_result.is_error for part in history[2].parts)


@pytest.mark.parametrize("rolls_back", [False, True])
async def test_the_next_message_takes_the_place_of_a_run_that_waits(
    ann: Caller, peer: InferencePeer, rolls_back: bool
) -> None:
    policy = agent_pb2.DOUBLE_TEXTING_ROLLBACK if rolls_back else agent_pb2.DOUBLE_TEXTING_INTERRUPT
    thread = await ann.ready(memory=ALONE, tools=TOOLS, double_texting=policy)
    async with Session(ann, thread) as session:
        await session.say("one")
        (await peer.call()).tools(("c1", "where.am_i"))
        first = (await session.event("tool_call_requested")).run_id
        await ann.until(first, run_pb2.RUN_STATE_WAITING_TOOL)
        await session.say("two")
        (await peer.call()).answer("2")
        second = (await session.event("run_completed")).run_id
        for run_id in (first, second):
            check(session.of(run_id), after=0)
            assert session.of(run_id) == await ann.watched(run_id)
        assert session.of(first)[-1].run_cancelled.rolled_back is rolls_back
        await session.rest()
    roles = [role for role, _ in await ann.history(thread)]
    assert roles == ["user", "assistant"] if rolls_back else ["user", "assistant", "tool", "user", "assistant"]
    assert_pairs(await ann.messages(thread))


async def test_a_client_that_has_said_all_hears_the_end_of_its_runs(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(memory=ALONE)
    async with Session(ann, thread) as session:
        await session.say("one")
        await session.say("two")
        await session.call.done_writing()
        first = await peer.call()
        for _ in range(2):
            await session.event("run_queued")
        first.answer("first")
        (await peer.call()).answer("second")
        while (await session.next()).WhichOneof("message") != "ended":
            pass
        ended = [event.run_id for event in session.events if event.WhichOneof("event") in TERMINAL]
        assert len(ended) == 2
        for run_id in ended:
            check(session.of(run_id), after=0)
        # The second is told of while the first goes on.
        assert session.of(ended[1])[0].run_queued.ahead == 1
        assert await session.call.read() is grpc.aio.EOF
    async with Session(ann, thread) as silent:
        await silent.rest()
        assert [each.WhichOneof("message") for each in silent.told] == ["ended"]


async def test_a_client_that_goes_away_leaves_its_runs_to_themselves(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(memory=ALONE)
    async with Session(ann, thread) as session:
        await session.say()
        call = await peer.call()
        call.start()
        call.text("half ")
        started = await session.event("run_started")
        await session.event("message_committed")
    call.text("whole")
    call.finish()
    events = await ann.watched(started.run_id)
    assert (kinds(events)[-1], text_of(events)) == ("run_completed", "half whole")


async def test_a_cancel_stops_the_run_that_is_going_on_or_the_one_that_is_named(
    ann: Caller, peer: InferencePeer
) -> None:
    thread = await ann.ready(memory=ALONE)
    async with Session(ann, thread) as session:
        await session.send(cancel=pb.SessionCancel())
        place, error = await session.rejected()
        assert isinstance(error, FailedPrecondition)
        assert (place, error.metadata["state"]) == (2, "IDLE")
        await session.say("one")
        await session.say("two")
        call = await peer.call()
        while len({event.run_id for event in session.events}) < 2:
            await session.next()
        first, second = dict.fromkeys(event.run_id for event in session.events)
        await session.send(cancel=pb.SessionCancel(run_id=second, reason="never mind"))
        assert (await session.event("run_cancelled")).run_id == second
        await session.send(cancel=pb.SessionCancel(reason="enough"))
        cancelled = await session.event("run_cancelled")
        assert (cancelled.run_id, cancelled.run_cancelled.reason) == (first, "enough")
        await asyncio.wait_for(call.closed.wait(), 10)
        await session.send(cancel=pb.SessionCancel(run_id="run_none"))
        assert isinstance((await session.rejected())[1], NotFound)
        await session.rest()


async def test_what_is_not_right_is_rejected_and_the_session_goes_on(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("fine",)
    thread = await ann.ready(memory=ALONE)
    await ann.agent("leaving", memory=ALONE)
    async with Session(ann, thread, agent="leaving") as session:
        for place, message, field in (
            (2, {}, "message"),
            (3, {"config": session.config}, "config"),
            (4, {"input": pb.RunInput()}, "input.messages"),
            (5, {"input": asking(await ann.thread(), "elsewhere")}, "input.thread_id"),
            (6, {"tool_results": pb.ToolResults(run_id="r")}, "results.results"),
            (7, {"approval": pb.ApprovalAnswer(run_id="r", approval_id="a")}, "approval.decision"),
            (8, {"answer": pb.InputAnswer(run_id="r", input_id="i")}, "answer.answer_json"),
            (9, {"cancel": pb.SessionCancel(run_id="!")}, "run_id"),
        ):
            await session.send(**message)
            at, error = await session.rejected()
            assert isinstance(error, InvalidArgument)
            assert (at, [violation.field for violation in error.violations]) == (place, [field])
        await ann.call("DeleteAgent", pb.DeleteAgentRequest(name="leaving"))
        await session.say()
        assert (await session.rejected())[1].message == "agent 'leaving' was not found"
        await session.say(agent="helper")
        await session.event("run_completed")
        await session.rest()


async def test_bytes_that_are_no_message_are_rejected_as_well(service: Orchestration, ann: Caller) -> None:
    thread = await ann.ready(memory=ALONE)
    config = pb.SessionRequest(config=pb.SessionConfig(thread_id=thread)).SerializeToString()
    channel = connect(service.address)
    try:
        path = "/janus.orchestration.v1.OrchestrationService/Session"
        call = channel.stream_stream(path)(
            iter([config, b"\x0a\xff\xff\xff\xff\x0f"]), metadata=ann.metadata, timeout=20
        )
        told = [pb.SessionResponse.FromString(raw) async for raw in call]
    finally:
        await channel.close()
    assert [each.WhichOneof("message") for each in told] == ["rejected", "ended"]
    assert from_status(told[0].rejected.status).reason == "REQUEST_UNDECODABLE"


async def test_an_input_that_is_said_twice_is_one_run_and_told_once(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("fine",)
    thread = await ann.ready(memory=ALONE)
    async with Session(ann, thread) as session:
        await session.say("once", request_id="r1")
        await session.say("once", request_id="r1")
        await session.say("other", request_id="r1")
        _, error = await session.rejected()
        assert error.reason == "REQUEST_ID_REUSED"
        await session.rest()
        check(session.events, after=0)
    assert await ann.history(thread) == [("user", "once"), ("assistant", "fine")]


async def test_a_session_goes_on_with_a_run_where_it_was_cut(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(memory=ALONE)
    async with Session(ann, thread) as cut:
        await cut.say("first")
        call = await peer.call()
        call.start()
        call.text("half ")
        await cut.event("message_committed")
        seen = list(cut.events)
    await until_kind(ann.watch(seen[0].run_id), "model.text_delta")
    call.text("whole")
    async with Session(ann, thread, resume_run_id=seen[0].run_id, resume_after=seen[-1].cursor) as session:
        await session.say("second")
        await session.event("run_queued")
        # What was said of the run before comes before anything of another one.
        assert text_of(session.of(seen[0].run_id)).startswith("half ")
        call.finish()
        (await peer.call()).answer("two")
        await session.rest()
        check([*seen, *session.of(seen[0].run_id)], after=0)
        second = [event for event in session.events if event.run_id != seen[0].run_id]
        check(second, after=0)
    # One that has ended is told from its start, once.
    async with Session(ann, thread, resume_run_id=second[0].run_id) as session:
        await session.rest()
        assert session.events == second


async def test_a_session_that_cannot_begin_ends_with_the_reason(
    ann: Caller, service: Orchestration, peer: InferencePeer
) -> None:
    peer.always = ("fine",)
    thread = await ann.ready(memory=ALONE)
    run = await ann.start(thread)
    await ann.watched(run.id)
    other = await ann.thread()
    stranger = service.caller()
    for who, where, config, kind in (
        (ann, "none", {}, NotFound),
        (stranger, thread, {}, NotFound),
        (ann, thread, {"agent": "nobody"}, NotFound),
        (ann, thread, {"resume_run_id": "none"}, NotFound),
        (ann, other, {"resume_run_id": run.id}, NotFound),
        (ann, thread, {"resume_run_id": run.id, "resume_after": run_pb2.Cursor(epoch=1, sequence=999)}, OutOfRange),
    ):
        async with Session(who, where, **config) as session:
            assert isinstance(await session.refusal(), kind)


async def test_a_session_names_an_agent_that_is_there_or_resumes_a_run_of_one_that_was(
    ann: Caller, peer: InferencePeer
) -> None:
    peer.always = ("fine",)
    thread = await ann.ready(memory=ALONE)
    async with Session(ann, thread, agent="default") as session:
        await session.say()
        await session.event("run_completed")
    await ann.agent("other", memory=ALONE)
    run = await ann.start(thread, agent="other")
    await ann.call("DeleteAgent", pb.DeleteAgentRequest(name="other"))
    async with Session(ann, thread, agent="other") as session:
        error = await session.refusal()
        assert isinstance(error, NotFound)
        assert (error.resource_type, error.resource_name) == ("agent", "other")
    async with Session(ann, thread, agent="other", resume_run_id=run.id) as session:
        await session.event("run_completed")


async def test_a_client_that_does_not_read_loses_nothing(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(memory=ALONE)
    async with Session(ann, thread) as session:
        await session.say()
        call = await peer.call()
        call.start()
        # More than all buffers on the way hold.
        word = "x" * 1_000
        for _ in range(20):
            call.text(*[word] * 100)
            await asyncio.sleep(0.01)
        call.finish()
        run_id = (await session.event("run_queued")).run_id
        await ann.until(run_id, run_pb2.RUN_STATE_COMPLETED)
        await session.rest()
        check(session.events, after=0)
        assert len(text_of(session.events)) == 2_000_000


async def test_a_session_survives_its_replica_as_its_run_does(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    async with processes(2, own_url, redis_url, inference_target=peer.target) as replicas:
        name = f"t{uuid.uuid4().hex[:12]}"
        first, second = (replica.caller(name) for replica in replicas)
        thread = await first.ready(memory=ALONE, tools=TOOLS)
        async with Session(first, thread) as cut:
            await cut.say()
            (await peer.call()).tools(("c1", "where.am_i"))
            await cut.event("tool_call_requested")
            replicas[0].kill()
            seen = list(cut.events)
        async with Session(second, thread, resume_run_id=seen[0].run_id, resume_after=seen[-1].cursor) as session:
            result = content.ToolResult(call_id="c1", parts=[content.Part(text="home")])
            await session.send(tool_results=pb.ToolResults(run_id=seen[0].run_id, results=[result]))
            (await peer.call()).answer("welcome")
            await session.rest()
            check([*seen, *session.events], after=0)
        assert_pairs(await second.messages(thread))
