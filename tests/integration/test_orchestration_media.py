"""Pictures, sounds and documents in a thread whose model does not take them: what follows is answered all the same."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fakes.orchestration_service import Caller, asking, kinds
from tests.fakes.peers.inference_peer import Call, InferencePeer

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.errors import InvalidArgument, Unavailable

PICTURE = content.Part(image=content.Media(data=b"\x89PNG", mime_type="image/png"))
SOUND = content.Part(audio=content.Media(data=b"RIFF", mime_type="audio/wav"))
HIDDEN = "[of kind {}: this model cannot be shown it]"


def takes_no(capability: str) -> InvalidArgument:
    return InvalidArgument(
        "prompt.messages[0].parts[1]", "this model takes none", reason="CAPABILITY_UNSUPPORTED",
        metadata={"model": "m", "capability": capability},
    )  # fmt: skip


def malformed() -> InvalidArgument:
    return InvalidArgument("prompt", "refused as malformed", reason="PROVIDER_REJECTED_REQUEST")


async def ask_with(ann: Caller, thread: str, *parts: content.Part) -> Any:
    request = pb.ConverseRequest(input=asking(thread, "look"))
    request.input.messages[0].parts.extend(parts)
    return ann.stub.Converse(request, metadata=ann.metadata)


def shown(call: Call) -> list[str]:
    """What the model is shown, by kind; texts as they are."""
    return [part.text or str(part.WhichOneof("kind")) for message in call.prompt.messages for part in message.parts]


async def answered(stream: Any) -> list[str]:
    return kinds([response.event async for response in stream])


async def test_a_turn_that_is_refused_for_its_own_picture_does_not_end_those_after_it(
    ann: Caller, peer: InferencePeer
) -> None:
    thread = await ann.ready()
    stream = await ask_with(ann, thread, PICTURE)
    (await peer.call()).refuse(takes_no("IMAGE_INPUT"))
    assert (await answered(stream))[-1] == "run_failed", "what was asked is shown, or refused"
    for _ in range(2):
        stream = ann.converse(thread, "never mind")
        refused = await peer.call()
        assert "image" in shown(refused)
        refused.refuse(takes_no("IMAGE_INPUT"))
        again = await peer.call()
        assert HIDDEN.format("image") in shown(again)
        assert "image" not in shown(again)
        again.answer("fine")
        events = await answered(stream)
        assert events[-1] == "run_completed"
        assert "attempt_restarted" in events


async def test_only_the_kind_that_was_refused_is_hidden(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    stream = await ask_with(ann, thread, PICTURE, SOUND)
    (await peer.call()).answer("seen and heard")
    await answered(stream)
    stream = await ask_with(ann, thread, PICTURE)
    (await peer.call()).refuse(takes_no("AUDIO_INPUT"))
    again = await peer.call()
    assert shown(again).count("image") == 2
    assert HIDDEN.format("audio") in shown(again)
    again.answer("fine")
    assert (await answered(stream))[-1] == "run_completed"


@pytest.mark.parametrize("how", ["status", "event"])
async def test_what_a_provider_refuses_in_its_own_words_is_tried_without_all_of_it(
    ann: Caller, peer: InferencePeer, how: str
) -> None:
    thread = await ann.ready()
    stream = await ask_with(ann, thread, PICTURE, SOUND)
    (await peer.call()).answer("ok")
    await answered(stream)
    stream = ann.converse(thread, "go on")
    call = await peer.call()
    if how == "status":
        call.refuse(malformed())
    else:
        call.start()
        call.fail(malformed(), partial=False)
    again = await peer.call()
    assert {HIDDEN.format("image"), HIDDEN.format("audio")} <= set(shown(again))
    again.answer("fine")
    assert (await answered(stream))[-1] == "run_completed"


async def test_a_prompt_that_shows_no_more_than_texts_is_asked_once(ann: Caller, peer: InferencePeer) -> None:
    stream = ann.converse(await ann.ready(), "hello")
    (await peer.call()).refuse(malformed())
    assert (await answered(stream))[-1] == "run_failed"
    assert len(peer.calls) == 1


async def test_another_failure_hides_nothing(ann: Caller, peer: InferencePeer) -> None:
    thread = await ann.ready()
    stream = await ask_with(ann, thread, PICTURE)
    (await peer.call()).answer("ok")
    await answered(stream)
    stream = ann.converse(thread, "go on")
    (await peer.call()).refuse(Unavailable("", "away", reason="PROVIDER_UNAVAILABLE"))
    assert (await answered(stream))[-1] == "run_failed"
    assert len(peer.calls) == 2


async def test_a_picture_that_a_tool_answered_is_no_end_either(ann: Caller, peer: InferencePeer) -> None:
    camera = agent_pb2.AgentTool(name="camera", client_side=True)
    thread = await ann.ready(tools=[camera])
    stream = ann.converse(thread, "what do you see?")
    (await peer.call()).tools(("c1", "camera"))
    seen = [response.event async for response in _until(stream, "tool_call_requested")]
    result = content.ToolResult(call_id="c1", parts=[PICTURE])
    results = pb.ToolResults(run_id=seen[-1].run_id, results=[result])
    await ann.call("SubmitToolResults", pb.SubmitToolResultsRequest(results=results))
    (await peer.call()).refuse(takes_no("IMAGE_INPUT"))
    again = await peer.call()
    (parts,) = [p.tool_result.parts for m in again.prompt.messages for p in m.parts if p.HasField("tool_result")]
    assert [part.text for part in parts] == [HIDDEN.format("image")]
    again.answer("nothing")
    assert (await answered(ann.watch(seen[-1].run_id)))[-1] == "run_completed"


async def _until(stream: Any, kind: str) -> Any:
    async for response in stream:
        yield response
        if response.event.WhichOneof("event") == kind:
            return
