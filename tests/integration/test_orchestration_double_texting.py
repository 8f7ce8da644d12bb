"""What a second message does while a run is going on: interrupt and rollback, with races and kills."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
from tests.fakes.memory_service import Memory
from tests.fakes.memory_service import running as running_memory
from tests.fakes.orchestration_service import (
    Caller,
    Process,
    all_events,
    assert_pairs,
    check,
    eventually,
    kinds,
    processes,
    running,
    said,
    until_kind,
)
from tests.fakes.peers.inference_peer import InferencePeer
from tests.fakes.peers.memory_between import memory_between
from tests.fakes.peers.memory_peer import memory_peer
from tests.fakes.tcp_proxy import TcpProxy
from tests.integration.test_orchestration_threads import refused

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as memory_pb
from janus_api.memory.v1 import scope_pb2
from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.errors import ResourceExhausted

ENQUEUE = agent_pb2.DOUBLE_TEXTING_ENQUEUE
INTERRUPT = agent_pb2.DOUBLE_TEXTING_INTERRUPT
ROLLBACK = agent_pb2.DOUBLE_TEXTING_ROLLBACK
TOOLS = [agent_pb2.AgentTool(name="time.now"), agent_pb2.AgentTool(name="memory.search")]
WITHOUT_RECALL = agent_pb2.MemoryPolicy(recall_limit=0)


def cancelled(events: list[event_pb2.RunEvent]) -> tuple[str, bool]:
    """How a run was cancelled: the reason, and whether its messages are gone."""
    check(events)
    last = events[-1]
    assert kinds(events)[-1] == "run_cancelled"
    return last.run_cancelled.reason, last.run_cancelled.rolled_back


INTERRUPTED = ("interrupted by a later message", False)
ROLLED_BACK = ("rolled back by a later message", True)


@pytest.mark.parametrize("policy", [INTERRUPT, ROLLBACK])
async def test_where_nothing_goes_on_the_policy_changes_nothing(
    ann: Caller, peer: InferencePeer, policy: agent_pb2.DoubleTexting.ValueType
) -> None:
    peer.always = ("ok",)
    thread = await ann.ready(double_texting=policy)
    for text in ("one", "two"):
        assert kinds(await all_events(ann.converse(thread, text)))[-1] == "run_completed"
    assert [text for _, text in await ann.history(thread)] == ["one", "ok", "two", "ok"]


async def test_an_interrupted_run_keeps_what_it_committed(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(double_texting=INTERRUPT, tools=TOOLS)
    first = ann.converse(thread, "one")
    (await peer.call()).tools(("c1", "time.now"))
    call = await peer.call()
    call.start()
    call.text("half an ")
    seen = await until_kind(first, "model.text_delta")
    while kinds(seen).count("model.text_delta") < 1 or "message_committed" not in kinds(seen):
        seen += await until_kind(first, "model.text_delta")
    second = ann.converse(thread, "two")
    await asyncio.wait_for(call.closed.wait(), 5)
    seen += await all_events(first)
    check(seen, after=0)
    assert cancelled(seen) == INTERRUPTED
    following = await peer.call()
    assert [content.Role.Name(message.role) for message in following.prompt.messages] == [
        "ROLE_USER",
        "ROLE_ASSISTANT",
        "ROLE_TOOL",
        "ROLE_USER",
    ]
    following.answer("2")
    events = await all_events(second)
    check(events, after=0)
    assert events[0].run_queued.ahead == 1
    assert kinds(events)[-1] == "run_completed"
    history = await ann.messages(thread)
    assert_pairs(history)
    assert [said(message) for message in history] == ["one", "", "", "two", "2"]
    run = await ann.run(seen[0].run_id)
    assert run.state == run_pb2.RUN_STATE_CANCELLED
    assert await ann.watched(run.id) == seen


async def test_a_run_interrupted_among_its_tools_says_that_their_outcome_is_unknown(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    async with (
        memory_peer() as memory,
        running(own_url, redis_url, inference_target=peer.target, memory_target=memory.target) as service,
    ):
        ann = service.caller()
        thread = await ann.ready(double_texting=INTERRUPT, tools=TOOLS, memory=WITHOUT_RECALL)
        first = ann.converse(thread, "one")
        (await peer.call()).tools(("c1", "time.now"), ("c2", "memory.search", '{"query": "x"}'))
        search = await memory.search()
        second = ann.converse(thread, "two")
        await asyncio.wait_for(search.closed.wait(), 5)
        assert cancelled(await all_events(first)) == INTERRUPTED
        (await peer.call()).answer("2")
        await all_events(second)
        history = await ann.messages(thread)
        assert_pairs(history)
        results = {part.tool_result.call_id: part.tool_result for part in history[2].parts}
        assert not results["c1"].is_error
        assert "is not known" in results["c2"].parts[0].text


async def test_a_rolled_back_run_leaves_nothing_in_the_thread(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(double_texting=ROLLBACK, tools=TOOLS)
    peer.always = ("0",)
    await all_events(ann.converse(thread, "zero"))
    peer.always = None
    await peer.call()
    first = ann.converse(thread, "one")
    (await peer.call()).tools(("c1", "time.now"))
    call = await peer.call()
    call.start()
    call.text("half an ")
    seen = await until_kind(first, "model.text_delta")
    run_id = seen[0].run_id
    assert len(await ann.messages(thread)) == 5
    second = ann.converse(thread, "two")
    seen += await all_events(first)
    check(seen, after=0)
    assert cancelled(seen) == ROLLED_BACK
    following = await peer.call()
    assert [said(message) for message in following.prompt.messages] == ["zero", "0", "two"]
    following.answer("2")
    check(await all_events(second), after=0)
    assert [text for _, text in await ann.history(thread)] == ["zero", "0", "two", "2"]
    run = await ann.run(run_id)
    assert (run.state, list(run.output)) == (run_pb2.RUN_STATE_CANCELLED, [])
    assert run.usage.output_tokens == 5, "what it cost was spent"


async def test_a_run_rolled_back_among_its_tools_leaves_no_answer_that_waits(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    async with (
        memory_peer() as memory,
        running(own_url, redis_url, inference_target=peer.target, memory_target=memory.target) as service,
    ):
        ann = service.caller()
        thread = await ann.ready(double_texting=ROLLBACK, tools=TOOLS, memory=WITHOUT_RECALL)
        first = ann.converse(thread, "one")
        (await peer.call()).tools(("c2", "memory.search", '{"query": "x"}'))
        await memory.search()
        second = ann.converse(thread, "two")
        assert cancelled(await all_events(first)) == ROLLED_BACK
        (await peer.call()).answer("2")
        await all_events(second)
        assert await ann.history(thread) == [("user", "two"), ("assistant", "2")]
        connection = await asyncpg.connect(own_url)
        try:
            assert await connection.fetchval("SELECT count(*) FROM orchestration.message") == 2
        finally:
            await connection.close()


async def test_what_waits_is_asked_together_after_an_interrupt(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(double_texting=ENQUEUE)
    await ann.agent("hasty", double_texting=INTERRUPT)
    first = await ann.start(thread, "one")
    await peer.call()
    waiting = [await ann.start(thread, text) for text in ("two", "three")]
    last = ann.converse(thread, "four", agent="hasty")
    for run in waiting:
        events = await ann.watched(run.id)
        assert (kinds(events), cancelled(events)) == (["run_queued", "run_cancelled"], INTERRUPTED)
    assert cancelled(await ann.watched(first.id)) == INTERRUPTED
    (await peer.call()).answer("all of it")
    events = await all_events(last)
    assert events[0].run_queued.ahead == 1
    assert [text for _, text in await ann.history(thread)] == ["one", "two", "three", "four", "all of it"]
    assert kinds(events).count("message_committed") == 4


async def test_what_waits_goes_with_a_rollback(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(double_texting=ENQUEUE)
    await ann.agent("hasty", double_texting=ROLLBACK)
    first = await ann.start(thread, "one")
    await peer.call()
    waiting = await ann.start(thread, "two")
    last = ann.converse(thread, "three", agent="hasty")
    assert kinds(await ann.watched(waiting.id)) == ["run_queued", "run_cancelled"]
    assert cancelled(await ann.watched(first.id)) == ROLLED_BACK
    (await peer.call()).answer("3")
    await all_events(last)
    assert await ann.history(thread) == [("user", "three"), ("assistant", "3")]


async def test_more_than_one_run_may_be_asked_is_refused_and_stops_nobody(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(double_texting=ENQUEUE)
    await ann.agent("hasty", double_texting=INTERRUPT)
    first = await ann.start(thread, "one")
    call = await peer.call()
    text = content.Message(role=content.ROLE_USER, parts=[content.Part(text="x" * 1_000_000)])
    for _ in range(4):
        await ann.call("StartRun", pb.StartRunRequest(input=pb.RunInput(thread_id=thread, messages=[text])))
    many = pb.RunInput(thread_id=thread, messages=[text], agent="hasty", request_id="r")
    error = await refused(ann.call("StartRun", pb.StartRunRequest(input=many)))
    assert isinstance(error, ResourceExhausted)
    assert error.reason == "OVERLOADED"
    assert error.retry_after is not None
    call.answer("1")
    assert kinds(await ann.watched(first.id))[-1] == "run_completed"


async def test_a_run_that_is_being_cancelled_can_still_be_rolled_back(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    proxy = TcpProxy.to(own_url)
    try:
        async with (
            running(own_url, redis_url, inference_target=peer.target) as other,
            processes(1, proxy.through(own_url), redis_url, inference_target=peer.target, lease_s=60) as (replica,),
        ):
            name = f"t{uuid.uuid4().hex[:12]}"
            ann, bob = replica.caller(name), other.caller(name)
            thread = await ann.ready(double_texting=ROLLBACK)
            first = await ann.start(thread, "one")
            (await peer.call()).start()
            # Its owner cannot write its end: both wishes are there when somebody can.
            proxy.cut()
            await bob.cancel(first.id, "never mind")
            second = await bob.start(thread, "two")
            proxy.mend()
            events = await bob.watched(first.id)
            assert cancelled(events) == ("never mind", True)
            (await peer.call()).answer("2")
            await bob.watched(second.id)
            assert await bob.history(thread) == [("user", "two"), ("assistant", "2")]
    finally:
        proxy.close()


@pytest.mark.parametrize("policy", [INTERRUPT, ROLLBACK])
async def test_messages_at_the_same_time_leave_one_that_is_answered(
    ann: Caller, peer: InferencePeer, policy: agent_pb2.DoubleTexting.ValueType
) -> None:
    thread = await ann.ready(double_texting=policy)
    first = await ann.start(thread, "m0")
    (await peer.call()).start()
    started = await asyncio.gather(*(ann.start(thread, f"m{number}") for number in range(1, 12)))
    # A cancel may come in between: it counts for its run, and for no other.
    await asyncio.gather(*(ann.cancel(run.id) for run in (first, started[3])))

    async def answer() -> None:
        while True:
            (await peer.any_call()).answer("ok")

    model = asyncio.create_task(answer())
    ends = [await ann.watched(run.id) for run in (first, *started)]
    model.cancel()
    outcomes = [kinds(events)[-1] for events in ends]
    assert outcomes.count("run_completed") <= 1
    assert set(outcomes) <= {"run_cancelled", "run_completed"}
    history = await ann.history(thread)
    asked = [text for role, text in history if role == "user"]
    assert len(set(asked)) == len(asked)
    if "run_completed" in outcomes:
        assert history[-1] == ("assistant", "ok")
        if policy == ROLLBACK:
            assert asked == [f"m{outcomes.index('run_completed')}"]
        else:
            assert len(asked) == 12
    assert (await ann.call("GetThread", pb.GetThreadRequest(thread_id=thread))).thread.active_run_id == ""


@pytest.mark.parametrize("policy", [INTERRUPT, ROLLBACK])
async def test_an_owner_elsewhere_makes_way_too(
    replicas: list[Process], peer: InferencePeer, policy: agent_pb2.DoubleTexting.ValueType
) -> None:
    first, second = (replica.caller(name) for name in ["t1"] for replica in replicas)
    thread = await first.ready(double_texting=policy)
    stream = first.converse(thread, "one")
    call = await peer.call()
    call.start()
    await until_kind(stream, "model.started")
    following = second.converse(thread, "two")
    await asyncio.wait_for(call.closed.wait(), 5)
    assert cancelled(await all_events(stream)) == (INTERRUPTED if policy == INTERRUPT else ROLLED_BACK)
    (await peer.call()).answer("2")
    assert kinds(await all_events(following))[-1] == "run_completed"
    expected = ["two", "2"] if policy == ROLLBACK else ["one", "two", "2"]
    assert [text for _, text in await second.history(thread)] == expected


@pytest.mark.parametrize("policy", [INTERRUPT, ROLLBACK])
async def test_a_kill_between_the_cancel_and_the_start_loses_neither(
    own_url: str, redis_url: str, peer: InferencePeer, policy: agent_pb2.DoubleTexting.ValueType
) -> None:
    """The owner dies when both wishes are durable and neither is carried out."""
    proxy = TcpProxy.to(own_url)
    try:
        async with processes(1, proxy.through(own_url), redis_url, inference_target=peer.target) as (doomed,):
            name = f"t{uuid.uuid4().hex[:12]}"
            ann = doomed.caller(name)
            thread = await ann.ready(double_texting=policy)
            stream = ann.converse(thread, "one")
            call = await peer.call()
            call.start()
            call.text("cut ")
            seen = await until_kind(stream, "model.text_delta")
            async with processes(1, own_url, redis_url, inference_target=peer.target) as (other,):
                bob = other.caller(name)
                # From here on the owner hears of nothing and writes nothing.
                proxy.cut()
                second = await bob.start(thread, "two", request_id="r")
                assert second.state == run_pb2.RUN_STATE_QUEUED
                assert (await bob.run(seen[0].run_id)).state in (
                    run_pb2.RUN_STATE_CANCELLING,
                    run_pb2.RUN_STATE_CANCELLED,
                )
                doomed.kill()
                rest = await bob.watched(seen[0].run_id, seen[-1].cursor)
                check([*seen, *rest], after=0)
                assert cancelled([*seen, *rest]) == (INTERRUPTED if policy == INTERRUPT else ROLLED_BACK)
                (await peer.call()).answer("2")
                check(await bob.watched(second.id), after=0)
                assert (await bob.start(thread, "two", request_id="r")).id == second.id
                expected = ["two", "2"] if policy == ROLLBACK else ["one", "two", "2"]
                assert [text for _, text in await bob.history(thread)] == expected
                assert len(peer.calls) == 2
    finally:
        proxy.close()


async def test_a_run_that_is_to_stop_ends_so_however_often_its_owners_died(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    proxy = TcpProxy.to(own_url)
    try:
        async with processes(1, proxy.through(own_url), redis_url, inference_target=peer.target) as (doomed,):
            ann = doomed.caller("t1")
            run = await ann.start(await ann.ready())
            (await peer.call()).start()
            proxy.cut()
            doomed.kill()
            connection = await asyncpg.connect(own_url)
            try:
                # More often than the server bears: it would be failed now, but for the cancel.
                await connection.execute("UPDATE orchestration.run SET takeovers = 1000, state = 'cancelling'")
            finally:
                await connection.close()
            async with processes(1, own_url, redis_url, inference_target=peer.target) as (other,):
                bob = other.caller("t1")
                assert kinds(await bob.watched(run.id))[-1] == "run_cancelled"
    finally:
        proxy.close()


@pytest.fixture
async def memory(own_url: str, redis_url: str) -> AsyncIterator[Memory]:
    async with running_memory(own_url, redis_url) as serving:
        yield serving


async def remembered(memory: Memory, ann: Caller, thread: str) -> list[str]:
    request = memory_pb.GetWindowRequest(scope=scope_pb2.Scope(thread=thread), max_tokens=1_000_000)
    answer = await memory.caller(ann.tenant).call("GetWindow", request)
    return [said(turn.message) for turn in answer.turns]


async def test_memory_forgets_a_run_that_is_rolled_back_after_its_answer(
    own_url: str, redis_url: str, peer: InferencePeer, memory: Memory
) -> None:
    """The answer is committed, and memory has the turns, but its answer to the write is yet to come."""
    async with (
        memory_between(memory.stub) as between,
        running(own_url, redis_url, inference_target=peer.target, memory_target=between.target) as service,
    ):
        ann = service.caller()
        await ann.agent(double_texting=ROLLBACK)
        # Messages that a client put come to memory together with the first run's: those stay.
        put = [content.Message(role=content.ROLE_USER, id="put", parts=[content.Part(text="before")])]
        create = pb.CreateThreadRequest(thread=thread_pb2.Thread(id="t", agent="helper"), messages=put)
        await ann.call("CreateThread", create)
        between.may_answer.clear()
        first = ann.converse("t", "tell me of the heron")
        (await peer.call()).answer("it is grey")

        async def is_written() -> bool:
            return await remembered(memory, ann, "t") == ["before", "tell me of the heron", "it is grey"]

        await eventually(is_written)
        second = ann.converse("t", "and the kettle?")
        assert cancelled(await all_events(first)) == ROLLED_BACK
        between.may_answer.set()
        events = await until_kind(second, "memory_recalled")
        texts = [said(hit.turn.message) for hit in events[-1].memory_recalled.hits]
        assert "tell me of the heron" not in texts, "what was rolled back is not recalled"
        (await peer.call()).answer("it is blue")
        await all_events(second)
        assert [text for _, text in await ann.history("t")] == ["before", "and the kettle?", "it is blue"]

        async def is_right() -> bool:
            return await remembered(memory, ann, "t") == ["before", "and the kettle?", "it is blue"]

        await eventually(is_right)
        await nothing_is_owed(own_url)


async def test_a_write_that_arrives_after_the_rollback_is_forgotten_later(
    own_url: str, redis_url: str, peer: InferencePeer, memory: Memory
) -> None:
    async with (
        memory_between(memory.stub) as between,
        running(own_url, redis_url, inference_target=peer.target, memory_target=between.target) as service,
    ):
        ann = service.caller()
        thread = await ann.ready(double_texting=ROLLBACK, memory=WITHOUT_RECALL)
        between.may_do.clear()
        first = ann.converse(thread, "one")
        (await peer.call()).answer("1")
        await asyncio.wait_for(between.arrived.wait(), 10)
        second = ann.converse(thread, "two")
        assert cancelled(await all_events(first)) == ROLLED_BACK
        between.may_do.set()
        (await peer.call()).answer("2")
        await all_events(second)

        # Nobody waits for it any more, and it is done all the same.
        written = await asyncio.gather(*between.writing)
        assert [list(answer.message_ids) for answer in written if len(answer.message_ids) == 2]
        connection = await asyncpg.connect(own_url)
        try:
            # The later time has come.
            await connection.execute("UPDATE orchestration.memory_removal SET final_at = now(), next_attempt = now()")
        finally:
            await connection.close()

        async def is_right() -> bool:
            return await remembered(memory, ann, thread) == ["two", "2"]

        await eventually(is_right)
        await nothing_is_owed(own_url)


async def nothing_is_owed(own_url: str) -> None:
    """All debts to memory are paid, none was put aside, and what it is to forget it has."""
    connection = await asyncpg.connect(own_url)
    try:

        async def is_so() -> bool:
            await connection.execute("UPDATE orchestration.memory_removal SET final_at = now(), next_attempt = now()")
            return bool(
                await connection.fetchval(
                    "SELECT (SELECT count(*) FROM orchestration.memory_outbox) "
                    "+ (SELECT count(*) FROM orchestration.memory_removal) = 0"
                )
            )

        await eventually(is_so, 20)
    finally:
        await connection.close()
