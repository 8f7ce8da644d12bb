"""Whatever a provider answers, the message that it adds up to is one that a prompt takes."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_inference.adapters.tool_names import _own_name
from janus_inference.dialects.anthropic_request import messages_body
from janus_inference.dialects.anthropic_stream import MessagesReader
from janus_inference.dialects.openai_chat_stream import ChatReader
from janus_inference.dialects.openai_responses_request import responses_body
from janus_inference.dialects.openai_responses_stream import ResponsesReader
from janus_inference.dialects.parts import CallCheck, OpenCall
from janus_inference.dialects.reader import StreamReader
from janus_inference.events import (
    Finished,
    FinishReason,
    ProviderEvent,
    ReasoningDelta,
    RefusalDelta,
    Started,
    Stopped,
    TextDelta,
    Timings,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallStarted,
    Usage,
)
from janus_inference.fold import Fold
from janus_inference.model import (
    MOST_ANSWER_BYTES,
    MOST_ARGUMENTS_BYTES,
    MOST_OPAQUE_BYTES,
    MOST_TEXT_BYTES,
    Message,
    Prompt,
    Role,
    Text,
    ToolCall,
    ToolResult,
)
from janus_inference.profiles import OPENAI
from janus_inference.validation import validate

TOOLS: dict[str, Any] = {"weather": {}, "memory_search": {}}
Call = tuple[str, str, str]


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)


def anthropic(*calls: Call, blocks: list[dict[str, Any]] | None = None) -> tuple[StreamReader, bytes]:
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"id": "m"}}]
    for index, (given_id, name, arguments) in enumerate(calls):
        block = {"type": "tool_use", "id": given_id, "name": name, "caller": {"type": "code", "tool_id": given_id}}
        delta = {"type": "input_json_delta", "partial_json": arguments}
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
    for index, block in enumerate(blocks or (), len(calls)):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events.append({"type": "content_block_stop", "index": index})
    events += [{"type": "message_delta", "delta": {"stop_reason": "tool_use"}}, {"type": "message_stop"}]
    return MessagesReader("p", "m", "anthropic", CallCheck(TOOLS)), sse(*events)


def responses(*calls: Call) -> tuple[StreamReader, bytes]:
    items = [
        {"type": "function_call", "id": f"fc_{at}", "call_id": i, "name": n, "arguments": a, "namespace": "x"}
        for at, (i, n, a) in enumerate(calls)
    ]
    events: list[dict[str, Any]] = []
    for at, item in enumerate(items):
        events.append({"type": "response.output_item.added", "output_index": at, "item": item})
        events.append({"type": "response.output_item.done", "output_index": at, "item": item})
    answer = {"id": "r", "status": "completed", "output": items}
    events.append({"type": "response.completed", "response": answer})
    return ResponsesReader("p", "m", "openai", CallCheck(TOOLS)), sse(*events)


def chat(*calls: Call, kind: str = "function", key: str = "arguments") -> tuple[StreamReader, bytes]:
    said = [
        {"index": at, "id": i, "type": kind, kind: {"name": n or "_", key: a}} for at, (i, n, a) in enumerate(calls)
    ]
    events = [
        {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": said}}]},
        {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    ]
    return ChatReader("p", "m", "chat", CallCheck(TOOLS)), sse(*events) + b"data: [DONE]\n\n"


def custom(*calls: Call) -> tuple[StreamReader, bytes]:
    return chat(*calls, kind="custom", key="input")


DIALECTS = [anthropic, responses, chat, custom]
Dialect = Callable[..., tuple[StreamReader, bytes]]


def events_of(reader: StreamReader, data: bytes) -> list[ProviderEvent]:
    events = reader.feed(data) + reader.close()
    if reader.failure is not None:
        raise reader.failure
    return events


def message_of(events: list[ProviderEvent]) -> Message:
    fold = Fold()
    fold.add(Started("gen_1", "p", "m", 1))
    for event in events:
        if not isinstance(event, Stopped):
            fold.add(event)
    fold.add(Finished(FinishReason.STOP, "", Usage(), Timings(0, 0, 0)))
    return fold.answer().message


def sent_back(message: Message) -> Prompt:
    """The next prompt of a plain loop; raises InvalidArgument where it is refused."""
    calls = [part for part in message.parts if isinstance(part, ToolCall)]
    results = tuple(ToolResult(call.call_id, (Text("done"),)) for call in calls)
    messages = [Message(Role.USER, (Text("hi"),)), message]
    prompt = Prompt((*messages, Message(Role.TOOL, results)) if results else tuple(messages), model="p/m")
    validate(prompt)
    return prompt


NAMES = st.one_of(st.sampled_from(["weather", "memory/search", "memory search", ""]), st.text(max_size=80))
IDS = st.one_of(st.sampled_from(["t1", "t1_1", "", "x" * 128, "x" * 300]), st.text(max_size=140))
CALLS = st.lists(st.tuples(IDS, NAMES, st.one_of(st.just("{}"), st.text(max_size=8))), max_size=6)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(calls=CALLS)
def test_calls_can_be_sent_back_however_they_are_named_and_numbered(dialect: Dialect, calls: list[Call]) -> None:
    reader, data = dialect(*calls)
    events = events_of(reader, data)
    message = message_of(events)
    sent_back(message)
    whole = [event for event in events if isinstance(event, ToolCallCompleted)]
    begun = [event for event in events if isinstance(event, ToolCallStarted)]
    assert [(each.part_index, each.call_id, each.name) for each in begun] == [
        (each.part_index, each.call.call_id, each.call.name) for each in whole
    ]


@pytest.mark.parametrize("dialect", [anthropic, responses])
def test_a_call_that_was_mended_keeps_what_its_issuer_must_see(dialect: Dialect) -> None:
    prompt = sent_back(message_of(events_of(*dialect(("t1", "weather", "{}"), ("t1", "weather", "{}")))))
    if dialect is anthropic:
        blocks = messages_body(prompt, "claude-sonnet-4-5", "anthropic")["messages"][1]["content"]
        assert [(block["id"], block["caller"]["tool_id"]) for block in blocks] == [("t1", "t1"), ("t1_1", "t1")]
    else:
        said = responses_body(prompt, "gpt-5", OPENAI, "openai")["input"]
        calls = [item for item in said if item.get("type") == "function_call"]
        assert [(item["call_id"], item["namespace"]) for item in calls] == [("t1", "x"), ("t1_1", "x")]


@pytest.mark.parametrize("dialect", DIALECTS[:3])
def test_a_name_that_a_model_makes_up_never_becomes_that_of_a_tool(dialect: Dialect) -> None:
    events = events_of(*dialect(("t1", "memory/search", "{}")))
    (whole,) = [event for event in events if isinstance(event, ToolCallCompleted)]
    assert not whole.valid_schema
    assert whole.call.name.startswith("memory_search_")
    assert _own_name(whole, {"memory_search": "memory.search"}) == whole


@pytest.mark.parametrize("dialect", DIALECTS)
def test_arguments_have_a_bound(dialect: Dialect) -> None:
    large = json.dumps({"x": "ü" * (MOST_ARGUMENTS_BYTES // 2)}, ensure_ascii=False)
    reader, data = dialect(("t1", "weather", large))
    events = reader.feed(data) + reader.close()
    assert reader.failure is not None
    assert not reader.whole
    assert (reader.failure.error.reason, reader.failure.retryable) == ("MESSAGE_TOO_LARGE", False)
    assert not any(isinstance(event, ToolCallCompleted | Stopped) for event in events)


def test_arguments_that_grow_without_end_are_broken_off_while_they_come() -> None:
    reader, data = anthropic(("t1", "weather", "x" * 1000))
    start, _, rest = data.partition(b'data: {"type": "content_block_delta"')
    delta, _, _ = rest.partition(b"\n\n")
    reader.feed(start)
    events: list[ProviderEvent] = []
    for _ in range(2 * MOST_ARGUMENTS_BYTES // 1000):
        events += reader.feed(b'data: {"type": "content_block_delta"' + delta + b"\n\n")
    assert reader.failure is not None
    assert sum(len(event.fragment) for event in events if isinstance(event, ToolCallArguments)) <= MOST_ARGUMENTS_BYTES


@pytest.mark.parametrize(
    "block",
    [
        {"type": "x" * 129},
        {"type": "", "a": 1},
        {"type": "new", "data": "x" * MOST_OPAQUE_BYTES},
        {"type": "redacted_thinking", "data": "x" * (MOST_TEXT_BYTES + 1)},
        {"type": "thinking", "thinking": "hm", "signature": "x" * (MOST_TEXT_BYTES + 1)},
    ],
    ids=["a long kind", "no kind", "a large block", "large reasoning", "a large proof"],
)
def test_what_could_not_be_sent_back_is_left_out(block: dict[str, Any]) -> None:
    sent_back(message_of(events_of(*anthropic(blocks=[block]))))


@pytest.mark.parametrize("text", ["x" * MOST_ANSWER_BYTES, "ü" * (MOST_ANSWER_BYTES // 2)], ids=["ascii", "other"])
@pytest.mark.parametrize(
    "said",
    [
        lambda text: TextDelta(0, text),
        lambda text: RefusalDelta(0, text),
        lambda text: ReasoningDelta(0, text=text),
        lambda text: ReasoningDelta(0, summary=text),
    ],
    ids=["text", "refusal", "reasoning", "summary"],
)
def test_a_part_of_an_answer_may_be_as_large_as_the_answer(said: Callable[[str], ProviderEvent], text: str) -> None:
    sent_back(message_of([said(text)]))


def test_an_answer_of_nothing_is_an_empty_text() -> None:
    message = message_of(events_of(*anthropic()))
    assert message.parts == (Text(""),)
    sent_back(message)


def test_an_answer_has_no_more_parts_than_a_message() -> None:
    blocks = [{"type": "text", "text": "a"}] * 1024
    sent_back(message_of(events_of(*anthropic(blocks=blocks))))
    reader, data = anthropic(blocks=[*blocks, blocks[0]])
    reader.feed(data)
    assert reader.failure is not None
    assert reader.failure.error.reason == "MESSAGE_TOO_LARGE"


def test_a_call_has_another_id_than_those_before_it_in_the_conversation() -> None:
    before = Message(Role.ASSISTANT, (ToolCall("call_0", "weather", "{}"),))
    answer = Message(Role.TOOL, (ToolResult("call_0", (Text("rain"),)),))
    asked = Message(Role.USER, (Text("hi"),))
    check = CallCheck.of(Prompt(model="m", messages=(asked, before, answer)))
    ids = [check.begun(OpenCall(index, "call_0", "weather")).call_id for index in range(2)]
    assert len({"call_0", *ids}) == 3
