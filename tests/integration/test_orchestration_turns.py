"""Turns of a conversation over gRPC, with a model that the test plays."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.fakes.orchestration_service import (
    Caller,
    all_events,
    asking,
    check,
    eventually,
    kinds,
    running,
    said,
    text_of,
    until,
    until_kind,
)
from tests.fakes.peers.inference_peer import Call, InferencePeer, inference_peer, reason_of
from tests.fakes.stopwatch import RanFor

from janus_api.content.v1 import message_pb2 as content
from janus_api.content.v1 import usage_pb2
from janus_api.inference.v1 import event_pb2 as inference_pb2
from janus_api.orchestration.v1 import agent_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.errors import InvalidArgument, Unavailable
from janus_kit.rpc_errors import from_status, to_status


async def test_a_turn_is_streamed_and_committed(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("Hel", "lo", " Ann")
    thread = await ann.ready(instructions="Be kind.")
    events = await all_events(ann.converse(thread, "hi"))
    assert kinds(events) == [
        "run_queued",
        "run_started",
        "message_committed",
        "memory_recalled",
        "model.started",
        "model.text_delta",
        "model.text_delta",
        "model.text_delta",
        "model.finished",
        "message_committed",
        "run_completed",
    ]
    assert [event.cursor.sequence for event in events] == list(range(1, 12))
    assert text_of(events) == "Hello Ann"
    assert await ann.history(thread) == [("user", "hi"), ("assistant", "Hello Ann")]
    assert peer.calls[0].prompt.system == "Be kind."


async def test_the_next_turn_hears_the_conversation(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("noted",)
    thread = await ann.ready()
    await all_events(ann.converse(thread, "first"))
    await all_events(ann.converse(thread, "second"))
    said_to_model = [message.parts[0].text for message in peer.calls[1].prompt.messages]
    assert said_to_model == ["first", "noted", "second"]


async def test_the_run_tells_what_it_did(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("done",)
    thread = await ann.ready()
    events = await all_events(ann.converse(thread, labels={"team": "blue"}))
    run = await ann.run(events[0].run_id)
    assert run.state == run_pb2.RUN_STATE_COMPLETED
    assert [(step.kind, step.attempts) for step in run.steps] == [
        (run_pb2.STEP_KIND_RECALL, 1),
        (run_pb2.STEP_KIND_MODEL_CALL, 1),
        (run_pb2.STEP_KIND_STORE, 1),
    ]
    assert all(step.HasField("ended_at") for step in run.steps)
    assert run.steps[1].summary == "peer/played"
    assert [said(message) for message in run.output] == ["done"]
    assert run.last_event == events[-1].cursor
    assert (run.usage.output_tokens, run.takeovers, dict(run.labels)) == (5, 0, {"team": "blue"})
    assert run.created_at.ToDatetime() <= run.started_at.ToDatetime() <= run.ended_at.ToDatetime()


async def test_a_run_without_memory_goes_on_and_says_so(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("fine",)
    thread = await ann.ready()
    events = await all_events(ann.converse(thread))
    recalled = next(event.memory_recalled for event in events if event.HasField("memory_recalled"))
    assert (list(recalled.hits), list(recalled.degraded)) == ([], ["memory"])
    assert list(events[-2].message_committed.degraded) == ["memory"]
    assert kinds(events)[-1] == "run_completed"


async def test_an_agent_without_memory_neither_recalls_nor_stores(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("fine",)
    thread = await ann.ready(memory=agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True))
    events = await all_events(ann.converse(thread))
    assert "memory_recalled" not in kinds(events)
    assert list(events[-2].message_committed.degraded) == []
    assert [step.kind for step in (await ann.run(events[0].run_id)).steps] == [run_pb2.STEP_KIND_MODEL_CALL]
    assert await ann.history(thread) == [("user", "hello"), ("assistant", "fine")]


async def test_half_an_answer_is_never_committed(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    call = await peer.call()
    call.start()
    call.text("half an ans")
    broken = Unavailable("", "the provider broke off", reason="PROVIDER_STREAM_BROKEN", metadata={"provider": "p"})
    call.fail(broken)
    events = await all_events(stream)
    assert kinds(events)[-2:] == ["model.failed", "run_failed"]
    assert events[-1].run_failed.status == to_status(broken)
    assert events[-1].run_failed.retryable
    assert await ann.history(thread) == [("user", "hello")]
    run = await ann.run(events[0].run_id)
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert run.error == to_status(broken)
    assert list(run.output) == []


async def test_what_the_model_was_refused_for_is_the_runs_failure(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready(model="nope")
    stream = ann.converse(thread)
    refusal = InvalidArgument(
        "model", "must name a configured model", reason="MODEL_NOT_FOUND", metadata={"model": "nope"}
    )
    (await peer.call()).refuse(refusal)
    events = await all_events(stream)
    assert kinds(events)[-1] == "run_failed"
    assert events[-1].run_failed.status == to_status(refusal)
    assert not events[-1].run_failed.retryable


@pytest.mark.parametrize(("model", "path"), [("nope", "input.model"), ("", "agent.model")])
async def test_a_model_that_is_not_there_is_named_by_who_asked_for_it(
    ann: Caller, peer: InferencePeer, model: str, path: str
) -> None:
    stream = ann.converse(await ann.ready(model="nope"), model=model)
    (await peer.call()).refuse(InvalidArgument("prompt.model", "must name a model", reason="MODEL_NOT_FOUND"))
    error = from_status((await all_events(stream))[-1].run_failed.status)
    assert isinstance(error, InvalidArgument)
    assert (error.reason, error.violations[0].field) == ("MODEL_NOT_FOUND", path)


async def test_a_long_answer_has_parts_that_everybody_takes(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    # Of three bytes each: no cut of a megabyte is between two of them by chance.
    piece = "\u20ac" * 50_000
    (await peer.call()).answer(*[piece] * 10)
    events = await all_events(stream)
    assert kinds(events)[-1] == "run_completed"
    parts = events[-2].message_committed.message.parts
    assert len(parts) == 2
    assert max(len(part.text.encode()) for part in parts) <= 1024 * 1024
    assert "".join(part.text for part in parts) == piece * 10


async def test_an_answer_that_no_message_can_hold_fails_the_run(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    (await peer.call()).answer(*["x" * 1_000_000] * 4)
    failed = (await all_events(stream))[-1].run_failed
    error = from_status(failed.status)
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert not failed.retryable
    assert await ann.history(thread) == [("user", "hello")]


async def test_an_answer_with_nul_is_committed(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    (await peer.call()).answer("a\x00b")
    assert kinds(await all_events(stream))[-1] == "run_completed"
    assert await ann.history(thread) == [("user", "hello"), ("assistant", "a\x00b")]


def _cut(call: Call) -> None:
    call.cut()


def _gone(call: Call) -> None:
    call.refuse(Unavailable("inference"))


def _stopping(call: Call) -> None:
    call.fail(Unavailable("inference", "the server that worked on the answer stops", reason="DRAINING"))


@pytest.mark.parametrize("lose", [_cut, _gone, _stopping])
async def test_an_answer_that_is_lost_with_the_inference_service_is_asked_for_again(
    ann: Caller, peer: InferencePeer, lose: Callable[[Call], None]
) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    call = await peer.call()
    call.start()
    call.text("and then")
    seen = await until_kind(stream, "model.text_delta")
    lose(call)
    again = await peer.call()
    assert again.prompt == call.prompt
    again.answer("what you asked for")
    events = await all_events(stream)
    restarted = events[0].attempt_restarted
    assert (kinds(events)[0], restarted.attempt) == ("attempt_restarted", 2)
    # What was said of the first attempt comes after the place that the reader goes back to.
    after = (restarted.discard_after.epoch, restarted.discard_after.sequence)
    place = next(each for each in seen if each.HasField("model")).cursor
    assert after < (place.epoch, place.sequence)
    assert kinds(events)[-1] == "run_completed"
    assert await ann.history(thread) == [("user", "hello"), ("assistant", "what you asked for")]
    run = await ann.run(events[-1].run_id)
    (step,) = [step for step in run.steps if step.kind == run_pb2.STEP_KIND_MODEL_CALL]
    assert (step.attempts, run.takeovers) == (2, 0)


@pytest.mark.parametrize("is_told", ["as an event", "as a status"])
async def test_a_model_call_is_made_again_when_inference_lacked_what_it_needs(
    ann: Caller, peer: InferencePeer, is_told: str
) -> None:
    away = Unavailable("postgres", "the usage record could not be written in time")
    thread = await ann.ready()
    stream = ann.converse(thread)
    call = await peer.call()
    call.start()
    call.text("whole, but not on record")
    if is_told == "as an event":
        call.fail(away, partial=False)
    else:
        call.refuse(away)
    (await peer.call()).answer("whole ", "answer")
    events = await all_events(stream)
    assert kinds(events).count("attempt_restarted") == 1
    assert (kinds(events)[-1], text_of(events)) == ("run_completed", "whole answer")
    assert await ann.history(thread) == [("user", "hello"), ("assistant", "whole answer")]


async def test_an_answer_that_is_lost_again_and_again_fails_the_run(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    for _ in range(4):
        call = await peer.call()
        call.start()
        call.text("and then")
        call.cut()
    events = await all_events(stream)
    assert kinds(events).count("attempt_restarted") == 3
    assert kinds(events)[-1] == "run_failed"
    assert reason_of(events[-1].run_failed.status) == "DEPENDENCY_UNAVAILABLE"
    assert len(peer.calls) == 4


@pytest.mark.parametrize("lose", [_gone, _stopping])
async def test_a_run_whose_model_stops_with_the_process_is_handed_over(
    own_url: str, redis_url: str, peer: InferencePeer, lose: Callable[[Call], None]
) -> None:
    """As in `janus serve`, where inference ends its calls before orchestration has to."""
    async with (
        running(own_url, redis_url, inference_target=peer.target, lease_s=30) as second,
        AsyncExitStack() as stack,
    ):
        first = await stack.enter_async_context(
            running(own_url, redis_url, inference_target=peer.target, lease_s=30, drain_s=20)
        )
        ann = first.caller("ann")
        run = await ann.start(await ann.ready())
        call = await peer.call()
        call.start()
        stopped = asyncio.ensure_future(stack.aclose())

        async def stops() -> bool:
            return first.host.monitor.is_draining

        await eventually(stops)
        lose(call)
        (await peer.call()).answer("from the other one")
        await stopped
        ann = second.caller("ann")
        events = await ann.watched(run.id)
        assert (kinds(events)[-1], events[-1].cursor.epoch) == ("run_completed", 2)
        assert (await ann.run(run.id)).takeovers == 0


async def test_the_budget_of_wall_time_ends_a_run(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    budgets = agent_pb2.Budgets(max_wall_time=Duration(seconds=1))
    stream = ann.converse(thread, budgets=budgets)
    call = await peer.call()
    events = await all_events(stream)
    await asyncio.wait_for(call.closed.wait(), 10)
    assert kinds(events)[-1] == "run_failed"
    assert reason_of(events[-1].run_failed.status) == "DEADLINE_EXCEEDED"


async def test_it_is_told_when_most_of_the_wall_time_is_used(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread, budgets=agent_pb2.Budgets(max_wall_time=Duration(seconds=10)))
    (await peer.call()).answer("at once")
    assert "budget_warning" not in kinds(await all_events(stream))

    stream = ann.converse(thread, budgets=agent_pb2.Budgets(max_wall_time=Duration(seconds=4)))
    call = await peer.call()
    call.text("still ")
    seen = await until_kind(stream, "budget_warning")
    warning = seen[-1].budget_warning
    assert (warning.budget, warning.limit) == ("wall_time", 4)
    assert warning.used == pytest.approx(3.2)
    call.answer("here")
    events = [*seen, *await all_events(stream)]
    check(events)
    # It is part of the journal like every event that is kept.
    replayed = await ann.watched(events[0].run_id)
    assert [event for event in replayed if event.HasField("budget_warning")] == [seen[-1]]


async def test_every_part_of_an_answer_is_kept(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    call = await peer.call()
    call.start()
    for event in (
        inference_pb2.GenerationEvent(reasoning_delta=inference_pb2.ReasoningDelta(part_index=0, text="let me ")),
        inference_pb2.GenerationEvent(reasoning_delta=inference_pb2.ReasoningDelta(part_index=0, text="think")),
        inference_pb2.GenerationEvent(
            reasoning_signature=inference_pb2.ReasoningSignature(part_index=0, signature=b"\x00\xff", issuer="peer")
        ),
        inference_pb2.GenerationEvent(text_delta=inference_pb2.TextDelta(part_index=1, text="so: ")),
        inference_pb2.GenerationEvent(
            opaque=inference_pb2.OpaqueAdded(
                part_index=2, part=content.OpaquePart(issuer="peer", type="x", data=b"\x01")
            )
        ),
        inference_pb2.GenerationEvent(text_delta=inference_pb2.TextDelta(part_index=1, text="42")),
        inference_pb2.GenerationEvent(
            citation=inference_pb2.CitationAdded(citation=content.Citation(title="book", part_index=1))
        ),
    ):
        call.send(event)
    call.finish()
    events = await all_events(stream)
    message = events[-2].message_committed.message
    assert [part.WhichOneof("kind") for part in message.parts] == ["reasoning", "text", "opaque", "citation"]
    assert message.parts[0].reasoning == content.Reasoning(text="let me think", signature=b"\x00\xff", issuer="peer")
    assert message.parts[1].text == "so: 42"
    assert message.parts[2].opaque.data == b"\x01"
    assert (message.role, bool(message.id)) == (content.ROLE_ASSISTANT, True)


async def test_the_callers_deadline_does_not_bound_the_run(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    request = pb.ConverseRequest(input=asking(thread, "hello"))
    stream = ann.stub.Converse(request, metadata=ann.metadata, timeout=0.6)
    call = await peer.call()
    call.start()
    run_id = (await until(stream, 1))[0].run_id
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await all_events(stream)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not call.closed.is_set()
    call.text("still here")
    call.finish()
    assert kinds(await ann.watched(run_id))[-1] == "run_completed"


async def test_a_client_that_leaves_does_not_end_the_run(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    call = await peer.call()
    call.start()
    events = await until_kind(stream, "model.started")
    stream.cancel()
    call.text("you left")
    call.finish()
    rest = await ann.watched(events[0].run_id, events[-1].cursor)
    check([*events, *rest])
    assert text_of([*events, *rest]) == "you left"
    assert await ann.history(thread) == [("user", "hello"), ("assistant", "you left")]


async def test_a_run_bound_to_its_stream_ends_with_it(ann: Caller, peer: InferencePeer, ran_for: RanFor) -> None:
    thread = await ann.ready()
    before = {task for task in asyncio.all_tasks() if not task.done()}
    stream = ann.converse(thread, cancel=True)
    call = await peer.call()
    call.start()
    call.text("never to be ")
    events = await until_kind(stream, "model.text_delta")
    left_at = time.perf_counter()
    stream.cancel()
    await asyncio.wait_for(call.closed.wait(), 10)
    assert ran_for(left_at, call.closed_at) < 0.1
    rest = await ann.watched(events[0].run_id, events[-1].cursor)
    assert kinds(rest)[-1] == "run_cancelled"
    assert await ann.history(thread) == [("user", "hello")]
    assert (await ann.run(events[0].run_id)).state == run_pb2.RUN_STATE_CANCELLED

    async def no_task_is_left() -> bool:
        return not [task for task in asyncio.all_tasks() - before if events[0].run_id in task.get_name()]

    await eventually(no_task_is_left)


async def test_cancel_closes_the_model_call_and_ends_the_run(ann: Caller, peer: InferencePeer, ran_for: RanFor) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    call = await peer.call()
    call.start()
    call.text("on and on")
    events = await until_kind(stream, "model.text_delta")
    asked_at = time.perf_counter()
    run = await ann.cancel(events[0].run_id, "enough")
    assert run.state in (run_pb2.RUN_STATE_CANCELLING, run_pb2.RUN_STATE_CANCELLED)
    await asyncio.wait_for(call.closed.wait(), 10)
    assert ran_for(asked_at, call.closed_at) < 0.5
    rest = await all_events(stream)
    assert (kinds(rest)[-1], rest[-1].run_cancelled.reason) == ("run_cancelled", "enough")
    again = await ann.cancel(events[0].run_id)
    assert again.state == run_pb2.RUN_STATE_CANCELLED


@pytest.mark.parametrize("how", ["cancelled", "cut", "failed"])
async def test_a_model_call_without_an_end_costs_what_was_last_heard_of_it(
    ann: Caller, peer: InferencePeer, how: str
) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    call = await peer.call()
    call.start()
    for tokens in (1, 3):
        usage = usage_pb2.Usage(input_uncached_tokens=10, output_tokens=tokens, source=usage_pb2.USAGE_SOURCE_REPORTED)
        call.send(inference_pb2.GenerationEvent(usage=inference_pb2.UsageUpdated(usage=usage)))
    call.text("on and on")
    events = await until_kind(stream, "model.text_delta")
    if how == "cancelled":
        await ann.cancel(events[0].run_id)
    elif how == "cut":
        call.cut()
        for _ in range(3):
            call = await peer.call()
            call.start()
            call.cut()
    else:
        call.fail(Unavailable("", "the provider broke off", reason="PROVIDER_STREAM_BROKEN"))
    last = (await all_events(stream))[-1]
    told = last.run_cancelled.usage if how == "cancelled" else last.run_failed.usage
    run = await ann.run(events[0].run_id)
    (step,) = [step for step in run.steps if step.kind == run_pb2.STEP_KIND_MODEL_CALL]
    assert told == run.usage == step.usage
    assert (told.input_uncached_tokens, told.output_tokens) == (10, 3)
    assert told.source == usage_pb2.USAGE_SOURCE_ESTIMATED


async def test_an_answer_that_a_run_cannot_take_costs_what_it_used(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    call = await peer.call()
    call.start()
    call.finish(inference_pb2.FINISH_REASON_PAUSE)
    failed = (await all_events(stream))[-1].run_failed
    assert reason_of(failed.status) == "NOT_IMPLEMENTED"
    assert (failed.usage.output_tokens, failed.usage.source) == (5, usage_pb2.USAGE_SOURCE_REPORTED)


async def test_a_model_call_that_was_cut_before_anything_was_heard_of_its_usage_counts_nothing(
    ann: Caller, peer: InferencePeer
) -> None:
    thread = await ann.ready()
    stream = ann.converse(thread)
    call = await peer.call()
    call.start()
    call.text("on and on")
    events = await until_kind(stream, "model.text_delta")
    await ann.cancel(events[0].run_id)
    last = (await all_events(stream))[-1]
    assert not last.run_cancelled.HasField("usage")
    assert not (await ann.run(events[0].run_id)).HasField("usage")


async def test_an_inference_service_that_is_late_is_waited_for(own_url: str, redis_url: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    async with running(
        own_url, redis_url, peers_are_there=False, inference_target=address, inference_wait_s=15
    ) as serving:
        ann = serving.caller()
        thread = await ann.ready()
        stream = ann.converse(thread)
        await until_kind(stream, "memory_recalled")
        async with inference_peer(address) as late:
            late.always = ("here now",)
            assert text_of(await all_events(stream)) == "here now"
