"""Tool calls of Chat Completions, however a server numbers, names and identifies them."""

import json
from typing import Any

import pytest

from janus_inference.dialects.openai_chat_request import chat_body
from janus_inference.dialects.openai_chat_stream import ChatReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.events import (
    FinishReason,
    OpaqueAdded,
    ProviderEvent,
    Stopped,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallStarted,
)
from janus_inference.model import Message, Opaque, Prompt, Role, Text, ToolCall, ToolResult
from janus_inference.profiles import OPENAI
from janus_inference.provider_errors import ProviderFailure

DONE = b"data: [DONE]\n\n"
TOOLS: dict[str, Any] = {"weather": {}, "clock": {}, "clock_of": {}}


def reader() -> ChatReader:
    return ChatReader("upstream", "model", "upstream", CallCheck(TOOLS))


def chunk(*fragments: dict[str, Any], **delta: Any) -> bytes:
    more = {"tool_calls": list(fragments)} if fragments else {}
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {**more, **delta}}]})}\n\n".encode()


END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}\n\n' + DONE


def fragment(arguments: Any = None, name: str | None = None, **more: Any) -> dict[str, Any]:
    said = {"name": name, "arguments": arguments}
    return {"function": {key: value for key, value in said.items() if value is not None}, **more}


def read(*pieces: bytes) -> list[ProviderEvent]:
    reading = reader()
    events = [event for piece in pieces for event in reading.feed(piece)] + reading.close()
    if reading.failure is not None:
        raise reading.failure
    return events


def calls(events: list[ProviderEvent]) -> list[tuple[str, str, str]]:
    """The whole calls, each of which was told of as it is."""
    whole = [event for event in events if isinstance(event, ToolCallCompleted)]
    for each in whole:
        own = [event for event in events if getattr(event, "part_index", None) == each.part_index]
        (began,) = [event for event in own if isinstance(event, ToolCallStarted)]
        assert (began.call_id, began.name) == (each.call.call_id, each.call.name)
        said = "".join(event.fragment for event in own if isinstance(event, ToolCallArguments))
        assert each.call.arguments_json == (said or "{}")
    ids = [each.call.call_id for each in whole]
    assert len(set(ids)) == len(ids)
    return [(each.call.call_id, each.call.name, each.call.arguments_json) for each in whole]


def streamed(*fragments: dict[str, Any]) -> list[tuple[str, str, str]]:
    return calls(read(*map(chunk, fragments), END))


def answered(**message: Any) -> list[ProviderEvent]:
    body = {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "tool_calls"}]}
    return reader().body(json.dumps(body).encode())


@pytest.mark.parametrize("more", [{}, {"index": 0}, {"id": "a", "index": 0}, {"id": "a"}])
@pytest.mark.parametrize("arguments", ["", "{}", None, '{"city": "Rome"}', {"city": "Rome"}])
def test_whole_calls_of_a_body_are_never_fragments(arguments: Any, more: dict[str, Any]) -> None:
    found = calls(answered(tool_calls=[fragment(arguments, "weather", **more)] * 2))
    assert [name for _, name, _ in found] == ["weather", "weather"]
    wanted = arguments if isinstance(arguments, dict) else json.loads(arguments or "{}")
    assert [json.loads(text) for _, _, text in found] == [wanted, wanted]


@pytest.mark.parametrize("arguments", ["", None, "{}"])
@pytest.mark.parametrize("names", [("weather", "weather"), ("clock_of", "weather")])
def test_calls_without_id_index_and_arguments_stay_two(names: tuple[str, str], arguments: str | None) -> None:
    one, two = (fragment(arguments, name) for name in names)
    assert [name for _, name, _ in streamed(one, two)] == list(names)
    assert [name for _, name, _ in calls(read(chunk(one, two), END))] == list(names)


def test_calls_of_one_index_without_id_and_arguments_are_told_apart_by_their_tools() -> None:
    found = streamed(fragment("", "clock_of", index=0), fragment("", "weather", index=0))
    assert [name for _, name, _ in found] == ["clock_of", "weather"]


def test_names_of_one_delta_are_never_pieces_of_one() -> None:
    found = calls(read(chunk(fragment("", "left"), fragment("", "right")), END))
    assert [name for _, name, _ in found] == ["left", "right"]


@pytest.mark.parametrize("more", [{"index": 0}, {}])
@pytest.mark.parametrize(
    ("pieces", "name"),
    [
        (["wea", "ther"], "weather"),
        (["", "weather"], "weather"),
        (["clock", "clock_of"], "clock_of"),
        (["clock", "_of"], "clock_of"),
        (["no_", "such", "_tool"], "no_such_tool"),
    ],
)
def test_a_name_that_comes_in_pieces_is_added_up(pieces: list[str], name: str, more: dict[str, Any]) -> None:
    fragments = [fragment("", piece, **more) for piece in pieces]
    assert streamed(*fragments, fragment('{"n":', **more), fragment("1}", **more)) == [("call_0", name, '{"n":1}')]


def test_a_name_may_follow_its_id_or_its_arguments() -> None:
    assert streamed({"index": 0, "id": "a"}, fragment('{"n":1}', "weather", index=0)) == [("a", "weather", '{"n":1}')]
    assert streamed(fragment('{"n":', index=0), fragment("1}", "weather", index=0, id="a")) == [
        ("a", "weather", '{"n":1}')
    ]


def test_a_call_of_a_known_tool_begins_at_once() -> None:
    events = reader().feed(chunk(fragment("", "weather", index=0, id="a")))
    assert events == [ToolCallStarted(0, "a", "weather")]
    # There is a tool whose name goes on, so that this one may not be whole.
    assert reader().feed(chunk(fragment("", "clock", index=0, id="a"))) == []


def test_a_call_that_never_gets_a_name_breaks_the_answer() -> None:
    with pytest.raises(ProviderFailure) as raised:
        read(chunk(fragment('{"n":1}', index=0, id="a")), END)
    assert raised.value.outcome == "broken"


def test_a_fragment_that_says_nothing_is_no_call() -> None:
    assert streamed(fragment("{}", "weather", index=0, id="a"), fragment("", index=1)) == [("a", "weather", "{}")]


@pytest.mark.parametrize("index", [{}, {"index": None}, {"index": 0}])
def test_interleaved_calls_without_an_index_of_their_own_are_found_by_id(index: dict[str, Any]) -> None:
    found = streamed(
        fragment("", "weather", id="a", **index),
        fragment("", "clock", id="b", **index),
        fragment('{"n":', id="a", **index),
        fragment('{"n":', id="b", **index),
        fragment("0}", id="a", **index),
        fragment("1}", id="b", **index),
    )
    assert found == [("a", "weather", '{"n":0}'), ("b", "clock", '{"n":1}')]


def test_an_id_of_every_fragment_s_own_begins_no_new_call() -> None:
    found = streamed(
        fragment("", "weather", index=0, id="x1"),
        fragment('{"n":', index=0, id="x2"),
        fragment("1}", index=0, id="x3"),
    )
    assert found == [("x1", "weather", '{"n":1}')]


def test_an_id_of_ours_that_the_server_gives_as_well_is_not_said_twice() -> None:
    found = streamed(fragment("{}", "weather", index=0, id="call_1"), fragment("{}", "weather", index=1))
    assert [call_id for call_id, _, _ in found] == ["call_1", "call_1_1"]


def test_the_call_of_the_time_before_tools_is_one() -> None:
    whole = {"name": "weather", "arguments": '{"n":1}'}
    assert calls(answered(function_call=whole)) == [("call_0", "weather", '{"n":1}')]
    pieces = [chunk(function_call={"name": "weather", "arguments": ""})]
    pieces += [chunk(function_call={"arguments": piece}) for piece in ('{"n":', "1}")]
    assert calls(read(*pieces, END)) == [("call_0", "weather", '{"n":1}')]


def test_a_call_of_free_text_is_passed_on_and_goes_back_as_it_came() -> None:
    whole = {"id": "a", "type": "custom", "custom": {"name": "shell", "input": 'ls "x"'}}
    pieces = [
        chunk({"index": 0, "id": "a", "type": "custom", "custom": {"name": "shell", "input": ""}}),
        chunk({"index": 0, "custom": {"input": "ls "}}),
        chunk({"index": 0, "custom": {"input": '"x"'}}),
    ]
    kept, call = Opaque("upstream", "custom_tool_call", b'{"id":"a"}'), ToolCall("a", "shell", '{"input":"ls \\"x\\""}')
    for events in (answered(tool_calls=[whole]), read(*pieces, END)):
        assert OpaqueAdded(0, kept) in events
        assert ToolCallCompleted(1, call) in events
        assert isinstance(events[-1], Stopped)
        assert events[-1].reason is FinishReason.TOOL_CALLS
    history = (
        Message(Role.USER, (Text("list"),)),
        Message(Role.ASSISTANT, (kept, call, ToolCall("b", "weather", "{}"))),
        Message(Role.TOOL, (ToolResult("a", (Text("none"),)), ToolResult("b", (Text("sun"),)))),
    )
    said = chat_body(Prompt(history), "gpt", OPENAI, "upstream")["messages"]
    assert said[1]["tool_calls"][0] == whole
    assert said[1]["tool_calls"][1]["type"] == "function"
    elsewhere = chat_body(Prompt(history), "gpt", OPENAI, "another")["messages"]
    assert [each["type"] for each in elsewhere[1]["tool_calls"]] == ["function", "function"]


def test_calls_of_an_unknown_kind_are_counted() -> None:
    reading = reader()
    reading.feed(chunk({"index": 0, "id": "a", "type": "hologram", "hologram": {}}) + END)
    assert (reading.failure, reading.unknown) == (None, 1)


@pytest.mark.parametrize("first", ["0", 0.0, 0], ids=repr)
@pytest.mark.parametrize("second", ["1", 1.0], ids=repr)
def test_an_index_is_a_number_however_it_is_written(first: object, second: object) -> None:
    assert calls(
        read(
            chunk(fragment('{"x":', "clock", index=first, id="a")),
            chunk(fragment('{"y":2', "weather", index=second, id="b")),
            chunk(fragment("1}", index=0)),
            chunk(fragment("}", index=second)),
            END,
        )
    ) == [("a", "clock", '{"x":1}'), ("b", "weather", '{"y":2}')]


@pytest.mark.parametrize("index", ["", "one", "-1", "1.0", 0.5, True, [0], {}], ids=repr)
def test_an_index_that_is_no_number_counts_as_none(index: object) -> None:
    assert calls(
        read(
            chunk(fragment('{"x":', "clock", index=index, id="a")),
            chunk(fragment("1}", index=index)),
            chunk(fragment('{"y":', "weather", index=index, id="b")),
            chunk(fragment("2}", index=index)),
            END,
        )
    ) == [("a", "clock", '{"x":1}'), ("b", "weather", '{"y":2}')]
