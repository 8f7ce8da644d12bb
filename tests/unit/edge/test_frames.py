"""Events as server-sent events in OpenAI's shape."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import event_pb2 as pb
from janus_edge.openai_compat.frames import DONE, Frames, is_semantic

STARTED = pb.GenerationEvent(started=pb.GenerationStarted(generation_id="gen_1", provider="scripted", model="echo"))


def text(words: str) -> pb.GenerationEvent:
    return pb.GenerationEvent(text_delta=pb.TextDelta(text=words))


def finished(reason: Any = pb.FINISH_REASON_STOP) -> pb.GenerationEvent:
    return pb.GenerationEvent(finished=pb.GenerationFinished(reason=reason))


def chunks(*events: pb.GenerationEvent, include_usage: bool = False) -> list[ChatCompletionChunk]:
    frames = Frames(1_700_000_000, include_usage=include_usage)
    frames.announce(STARTED)
    raw = frames.open() + b"".join(map(frames.frame, events))
    assert raw.endswith(DONE)
    return [
        ChatCompletionChunk.model_validate_json(line.removeprefix(b"data: "), strict=True)
        for line in raw.removesuffix(DONE).split(b"\n\n")
        if line
    ]


def test_an_answer_is_role_deltas_finish_and_done():
    role, first, second, end = chunks(text("Hel"), text("lo"), finished())
    assert role.choices[0].delta.role == "assistant"
    assert (first.choices[0].delta.content, second.choices[0].delta.content) == ("Hel", "lo")
    assert first.choices[0].finish_reason is None
    assert end.choices[0].finish_reason == "stop"
    assert end.choices[0].delta.content is None
    for chunk in (role, first, second, end):
        assert (chunk.id, chunk.model, chunk.created) == ("chatcmpl-gen_1", "scripted/echo", 1_700_000_000)
        assert chunk.usage is None


def test_usage_is_a_chunk_of_its_own_when_asked_for():
    end = finished()
    end.finished.usage.input_uncached_tokens = 3
    end.finished.usage.cache_read_tokens = 2
    end.finished.usage.cache_write_tokens = 1
    end.finished.usage.output_tokens = 5
    end.finished.usage.reasoning_tokens = 4
    *_, last, usage = chunks(text("x"), end, include_usage=True)
    assert last.usage is None
    assert usage.choices == []
    assert usage.usage is not None
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens, usage.usage.total_tokens) == (6, 5, 11)
    assert usage.usage.prompt_tokens_details.cached_tokens == 2
    assert usage.usage.completion_tokens_details.reasoning_tokens == 4


def test_tool_calls_are_numbered_from_zero_whatever_their_part():
    def started(part: int) -> pb.GenerationEvent:
        return pb.GenerationEvent(tool_call_started=pb.ToolCallStarted(part_index=part, call_id=f"c{part}", name="add"))

    def arguments(part: int, fragment: str) -> pb.GenerationEvent:
        delta = pb.ToolCallArgumentsDelta(part_index=part, fragment=fragment)
        return pb.GenerationEvent(tool_call_arguments_delta=delta)

    def completed(part: int, whole: str) -> pb.GenerationEvent:
        call = content.ToolCall(call_id=f"c{part}", name="add", arguments_json=whole)
        return pb.GenerationEvent(tool_call_completed=pb.ToolCallCompleted(part_index=part, call=call))

    answer = chunks(
        text("I add."),
        started(1),
        arguments(1, '{"a":'),
        arguments(1, "1}"),
        completed(1, '{"a":1}'),
        started(3),
        completed(3, "{}"),
        completed(4, '{"b":2}'),
        finished(pb.FINISH_REASON_TOOL_CALLS),
    )
    calls: dict[int, dict[str, str]] = {}
    for chunk in answer:
        for delta in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(delta.index, {"arguments": ""})
            call |= {"id": delta.id} if delta.id else {}
            call["arguments"] += delta.function.arguments or ""
    assert calls == {
        0: {"id": "c1", "arguments": '{"a":1}'},
        1: {"id": "c3", "arguments": "{}"},
        2: {"id": "c4", "arguments": '{"b":2}'},
    }
    assert answer[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (pb.FINISH_REASON_STOP, "stop"),
        (pb.FINISH_REASON_STOP_SEQUENCE, "stop"),
        (pb.FINISH_REASON_REFUSAL, "stop"),
        (pb.FINISH_REASON_OTHER, "stop"),
        (pb.FINISH_REASON_LENGTH, "length"),
        (pb.FINISH_REASON_PAUSE, "length"),
        (pb.FINISH_REASON_CONTENT_FILTER, "content_filter"),
    ],
)
def test_every_finish_reason_has_a_word(reason: Any, word: str):
    assert chunks(finished(reason))[-1].choices[0].finish_reason == word


def test_a_refusal_is_told_as_one():
    _, refusal, _ = chunks(
        pb.GenerationEvent(refusal_delta=pb.RefusalDelta(text="I cannot")),
        finished(pb.FINISH_REASON_REFUSAL),
    )
    assert refusal.choices[0].delta.refusal == "I cannot"


def test_another_target_is_named_when_it_answered():
    frames = Frames(0, include_usage=False)
    frames.announce(STARTED)
    frames.announce(pb.GenerationEvent(route_changed=pb.RouteChanged(to="openai/gpt")))
    assert json.loads(frames.open().removeprefix(b"data: "))["model"] == "openai/gpt"


def test_what_is_no_part_of_an_answer_does_not_begin_one():
    assert not is_semantic(STARTED)
    assert not is_semantic(pb.GenerationEvent(usage=pb.UsageUpdated()))
    assert is_semantic(text("x"))
    assert is_semantic(finished())


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_no_text_can_end_a_line_of_the_stream(words: str):
    frames = Frames(0, include_usage=False)
    frames.announce(STARTED)
    frames.open()
    frame = frames.frame(text(words))
    assert len(frame.decode("ascii").splitlines()) == 2
    assert json.loads(frame.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == words
