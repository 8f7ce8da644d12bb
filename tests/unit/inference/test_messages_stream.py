"""Messages answers as Anthropic writes them, and as nobody should."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_inference.dialects.anthropic_stream import MessagesReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.events import (
    CitationAdded,
    FinishReason,
    OpaqueAdded,
    ProviderEvent,
    ReasoningDelta,
    ReasoningSignature,
    Stopped,
    TextDelta,
    ToolCallCompleted,
    Usage,
    UsageUpdated,
)
from janus_inference.model import Citation, Opaque, ToolCall
from janus_inference.provider_errors import ProviderFailure

START = {"type": "message_start", "message": {"id": "m1", "usage": {"input_tokens": 8, "output_tokens": 1}}}
STOP = {"type": "message_stop"}


def end(reason: str = "end_turn") -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 5}}


def block(start: dict[str, Any], *deltas: dict[str, Any], index: int = 0) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def reader() -> MessagesReader:
    return MessagesReader("claude", "model", "anthropic", CallCheck({"weather": {}}))


def read(*events: dict[str, Any]) -> list[ProviderEvent]:
    reading = reader()
    found: list[ProviderEvent] = []
    for event in events:
        found += reading.feed(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    found += reading.close()
    if reading.failure is not None:
        raise reading.failure
    return found


def test_calls_that_take_turns_keep_their_own_halves() -> None:
    def start(index: int) -> dict[str, Any]:
        begun = {"type": "tool_use", "id": f"t{index}", "name": "weather", "input": {}}
        return {"type": "content_block_start", "index": index, "content_block": begun}

    def delta(index: int, piece: str) -> dict[str, Any]:
        said = {"type": "input_json_delta", "partial_json": piece}
        return {"type": "content_block_delta", "index": index, "delta": said}

    first = [delta(0, '{"city": "\ud83d'), delta(1, '{"city": "\ud83c')]
    rest = [delta(0, '\ude00"}'), delta(1, '\udf0d"}')]
    events = read(START, start(0), start(1), *first, *rest, end("tool_use"), STOP)
    calls = [event.call.arguments_json for event in events if isinstance(event, ToolCallCompleted)]
    assert calls == ['{"city": "😀"}', '{"city": "🌍"}']


def test_usage_that_was_said_before_the_answer_alone_is_an_estimate() -> None:
    text = block({"type": "text", "text": ""}, {"type": "text_delta", "text": "Hello"})
    uncounted = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    *_, last, stopped = read(START, *text, uncounted, STOP)
    assert last == UsageUpdated(Usage(8, output_tokens=1, estimated=True))
    assert isinstance(stopped, Stopped)


def test_text_usage_and_the_end() -> None:
    text = block({"type": "text", "text": ""}, {"type": "text_delta", "text": "Hello"})
    assert read(START, {"type": "ping"}, *text, end(), STOP) == [
        UsageUpdated(Usage(8, output_tokens=1)),
        TextDelta(0, "Hello"),
        UsageUpdated(Usage(8, output_tokens=5)),
        Stopped(FinishReason.STOP, "end_turn", "m1"),
    ]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("end_turn", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("model_context_window_exceeded", FinishReason.LENGTH),
        ("stop_sequence", FinishReason.STOP_SEQUENCE),
        ("tool_use", FinishReason.TOOL_CALLS),
        ("pause_turn", FinishReason.PAUSE),
        ("refusal", FinishReason.REFUSAL),
        ("something_new", FinishReason.OTHER),
    ],
)
def test_the_provider_s_own_word_is_kept(word: str, reason: FinishReason) -> None:
    assert read(START, end(word), STOP)[-1] == Stopped(reason, word, "m1")


def test_reasoning_keeps_its_proof() -> None:
    thinking = block(
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "signature_delta", "signature": "c2ln"},
    )
    hidden = block({"type": "redacted_thinking", "data": "ZW5j"}, index=1)
    assert read(START, *thinking, *hidden, end(), STOP)[1:5] == [
        ReasoningDelta(0, text="hm"),
        ReasoningSignature(0, b"c2ln", "anthropic"),
        ReasoningDelta(1, redacted=b"ZW5j"),
        ReasoningSignature(1, b"", "anthropic"),
    ]


@pytest.mark.parametrize(
    ("begun", "last"),
    [
        (
            block(
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {}},
                {"type": "input_json_delta", "partial_json": '{"x":1}'},
            ),
            ToolCallCompleted(0, ToolCall("t1", "weather", '{"x":1}')),
        ),
        (
            block(
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {}},
                {"type": "input_json_delta", "partial_json": '{"x":'},
            ),
            ToolCallCompleted(0, ToolCall("t1", "weather", '{"x":'), False, False, "the arguments must be valid JSON"),
        ),
        (
            block(
                {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
                {"type": "input_json_delta", "partial_json": '{"q":"x"}'},
            ),
            OpaqueAdded(
                0,
                Opaque(
                    "anthropic",
                    "server_tool_use",
                    b'{"type":"server_tool_use","id":"s1","name":"web_search","input":{"q":"x"}}',
                ),
            ),
        ),
        (
            block(
                {"type": "thinking", "thinking": "", "signature": ""},
                {"type": "thinking_delta", "thinking": "hm"},
                {"type": "signature_delta", "signature": "c2ln"},
            ),
            ReasoningSignature(0, b"c2ln", "anthropic"),
        ),
    ],
)
def test_a_block_that_is_never_stopped_ends_with_the_message(begun: list[dict[str, Any]], last: ProviderEvent) -> None:
    stopped, unstopped = read(START, *begun, end(), STOP), read(START, *begun[:-1], end(), STOP)
    assert unstopped[-3:] == [UsageUpdated(Usage(8, output_tokens=5)), last, stopped[-1]]
    assert {*map(repr, stopped)} == {*map(repr, unstopped)}


def test_a_block_ends_where_another_begins_in_its_place() -> None:
    calls = [block({"type": "tool_use", "id": identity, "name": "weather", "input": {}})[0] for identity in "ab"]
    events = read(START, *calls, end("tool_use"), STOP)
    whole = [event for event in events if isinstance(event, ToolCallCompleted)]
    assert [(each.part_index, each.call.call_id) for each in whole] == [(0, "a"), (1, "b")]


def test_a_block_that_is_stopped_twice_is_said_once() -> None:
    tool = block({"type": "tool_use", "id": "t1", "name": "weather", "input": {}})
    events = read(START, *tool, tool[-1], end("tool_use"), STOP)
    assert sum(isinstance(event, ToolCallCompleted) for event in events) == 1


@pytest.mark.parametrize(
    ("pieces", "arguments"),
    [([], "{}"), ([""], "{}"), (['{"ci', 'ty": "R', 'ome"}'], '{"city": "Rome"}'), (["{oh"], "{oh")],
)
def test_arguments_come_in_any_pieces(pieces: list[str], arguments: str) -> None:
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    tool = block({"type": "tool_use", "id": "t1", "name": "weather", "input": {}}, *deltas)
    events = read(START, *tool, end("tool_use"), STOP)
    whole = [event.call for event in events if isinstance(event, ToolCallCompleted)]
    assert whole == [ToolCall("t1", "weather", arguments)]


def test_server_side_tools_are_kept_as_blocks_of_their_issuer() -> None:
    search = block(
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"query": '},
        {"type": "input_json_delta", "partial_json": '"ü"}'},
    )
    result = block({"type": "web_search_tool_result", "tool_use_id": "s1", "content": []}, index=1)
    opaque = [event for event in read(START, *search, *result, end(), STOP) if isinstance(event, OpaqueAdded)]
    asked = '{"type":"server_tool_use","id":"s1","name":"web_search","input":{"query":"ü"}}'
    found = '{"type":"web_search_tool_result","tool_use_id":"s1","content":[]}'
    assert opaque == [
        OpaqueAdded(0, Opaque("anthropic", "server_tool_use", asked.encode())),
        OpaqueAdded(1, Opaque("anthropic", "web_search_tool_result", found.encode())),
    ]


def test_citations_name_their_part() -> None:
    cited = {"type": "web_search_result_location", "url": "https://a", "title": "A", "cited_text": "quoted"}
    text = block(
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "x"},
        {"type": "citations_delta", "citation": cited},
    )
    (found,) = [event.citation for event in read(START, *text, end(), STOP) if isinstance(event, CitationAdded)]
    assert found == Citation(title="A", uri="https://a", quote="quoted", issuer="anthropic", data=found.data)


def test_unknown_events_and_deltas_are_skipped() -> None:
    text = block({"type": "text", "text": ""}, {"type": "sparkle_delta"}, {"type": "text_delta", "text": "x"})
    assert TextDelta(0, "x") in read(START, {"type": "confetti"}, *text, end(), STOP)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [START],
        [START, *block({"type": "text", "text": "x"})],
        [START, end()],
        [START, STOP],
        [{"type": "content_block_delta", "index": 3, "delta": {"type": "text_delta", "text": "x"}}],
        [START, {"type": "content_block_start", "index": 0}],
    ],
)
def test_a_stream_without_its_end_or_out_of_order_is_broken(events: list[dict[str, Any]]) -> None:
    with pytest.raises(ProviderFailure) as raised:
        read(*events)
    assert raised.value.error.reason == "PROVIDER_STREAM_BROKEN"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("overloaded_error", "PROVIDER_UNAVAILABLE"),
        ("rate_limit_error", "PROVIDER_RATE_LIMITED"),
        ("authentication_error", "PROVIDER_AUTH"),
        ("timeout_error", "DEADLINE_EXCEEDED"),
        ("a_new_error", "PROVIDER_UNAVAILABLE"),
    ],
)
def test_errors_inside_a_stream_mean_what_they_mean_outside(kind: str, reason: str) -> None:
    with pytest.raises(ProviderFailure) as raised:
        read(START, {"type": "error", "error": {"type": kind, "message": "x"}})
    assert raised.value.error.reason == reason


json_values = st.recursive(
    st.none() | st.integers(-1, 2) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["index", "delta", "content_block", "type", "text", "message", "usage", "id"]),
            inner | st.sampled_from(["text", "tool_use", "text_delta", "thinking", "input_json_delta"]),
            max_size=4,
        )
    ),
    max_leaves=10,
)
kinds = st.sampled_from(
    ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta"]
)


@given(st.lists(st.tuples(kinds, json_values), max_size=6))
def test_nothing_that_a_server_sends_raises(documents: list[Any]) -> None:
    reading = reader()
    for kind, document in documents:
        event = {**(document if isinstance(document, dict) else {"index": document}), "type": kind}
        reading.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    reading.close()
    assert reading.failure is not None
    assert not reading.whole


def test_a_stream_that_is_cut_at_any_byte_is_never_whole() -> None:
    text = block({"type": "text", "text": ""}, {"type": "text_delta", "text": "Gr\u00fc\u00dfe"})
    events = [START, *text, end(), STOP]
    stream = b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events)
    for place in range(len(stream) - len(b"\n\n")):
        reading = reader()
        found = reading.feed(stream[:place]) + reading.close()
        assert reading.failure is not None
        assert not any(isinstance(event, Stopped) for event in found)


def test_nul_becomes_a_replacement_character_wherever_the_model_writes() -> None:
    events = read(
        START,
        *block({"type": "thinking", "thinking": ""}, {"type": "thinking_delta", "thinking": "c\x00"}),
        *block({"type": "text", "text": ""}, {"type": "text_delta", "text": "a\x00b"}, index=1),
        *block(
            {"type": "tool_use", "id": "t\x001", "name": "weather", "input": {}},
            {"type": "input_json_delta", "partial_json": '{"city": "\x00"}'},
            index=2,
        ),
        end("tool_use"),
        STOP,
    )
    assert ReasoningDelta(0, text="c\ufffd") in events
    assert TextDelta(1, "a\ufffdb") in events
    (made,) = [event.call for event in events if isinstance(event, ToolCallCompleted)]
    assert made == ToolCall("t\ufffd1", "weather", '{"city": "\ufffd"}')
