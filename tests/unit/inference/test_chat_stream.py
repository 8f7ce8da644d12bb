"""Chat Completions answers, including those that no specification foresaw."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_inference.dialects.openai_chat_stream import ChatReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.events import (
    CitationAdded,
    Finished,
    FinishReason,
    OpaqueAdded,
    ProviderEvent,
    ReasoningDelta,
    ReasoningSignature,
    RefusalDelta,
    Started,
    Stopped,
    TextDelta,
    Timings,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallStarted,
    Usage,
    UsageUpdated,
)
from janus_inference.fold import Fold
from janus_inference.model import Citation, Opaque, Reasoning, Text, ToolCall
from janus_inference.provider_errors import ProviderFailure, Refused, classify

DONE = b"data: [DONE]\n\n"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def reader(**options: Any) -> ChatReader:
    return ChatReader("upstream", "model", "upstream", CallCheck({"weather": SCHEMA}), **options)


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
    body = {"id": "c1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}
    return f"data: {json.dumps(body)}\n\n".encode()


def read(*pieces: bytes, **options: Any) -> list[ProviderEvent]:
    reading = reader(**options)
    events = [event for piece in pieces for event in reading.feed(piece)] + reading.close()
    if reading.failure is not None:
        raise reading.failure
    return events


def calls_of(*deltas: dict[str, Any]) -> list[ToolCall]:
    chunks = [chunk({"tool_calls": [delta]}) for delta in deltas]
    events = read(*chunks, chunk({}, "tool_calls"), DONE)
    return [event.call for event in events if isinstance(event, ToolCallCompleted)]


def call(arguments: str, **more: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
    return {"type": "function", "function": function, **more}


@pytest.mark.parametrize(
    ("tier", "off_list"),
    [(None, False), ("auto", False), ("default", False), ("on_demand", False), ("priority", True), ("flex", True)],
)
def test_the_tier_that_an_answer_was_charged_at_is_known(tier: str | None, off_list: bool) -> None:
    usage = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    reading = reader()
    reading.feed(chunk({"content": "Hel"}, service_tier=tier))
    assert reading.used() == (Usage(off_list=True) if off_list else None)
    events = reading.feed(chunk({}, "stop") + usage + DONE)
    assert events[0] == UsageUpdated(Usage(3, output_tokens=2, off_list=off_list))


def test_a_tier_alone_is_no_usage() -> None:
    assert read(chunk({"content": "Hello"}, service_tier="priority"), chunk({}, "stop"), DONE) == [
        TextDelta(0, "Hello"),
        Stopped(FinishReason.STOP, "stop", "c1"),
    ]


def test_text_usage_and_the_end() -> None:
    usage = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    assert read(chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({}, "stop"), usage, DONE) == [
        TextDelta(0, "Hel"),
        TextDelta(0, "lo"),
        UsageUpdated(Usage(3, output_tokens=2)),
        Stopped(FinishReason.STOP, "stop", "c1"),
    ]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("function_call", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("sensitive", FinishReason.CONTENT_FILTER),
        ("model_length", FinishReason.LENGTH),
        ("model_context_window_exceeded", FinishReason.LENGTH),
        ("whatever", FinishReason.OTHER),
    ],
)
def test_the_provider_s_own_word_is_kept(word: str, reason: FinishReason) -> None:
    assert read(chunk({"content": "x"}), chunk({}, word), DONE)[-1] == Stopped(reason, word, "c1")


def test_parts_are_numbered_in_the_order_in_which_they_begin() -> None:
    events = read(
        chunk({"reasoning_content": "hm"}),
        chunk({"content": "so"}),
        chunk({"tool_calls": [call("{}", index=0, id="a", name="weather")]}),
        chunk({"reasoning_content": "hm"}),
        chunk({}, "tool_calls"),
        DONE,
    )
    assert events[:5] == [
        ReasoningDelta(0, text="hm"),
        TextDelta(1, "so"),
        ToolCallStarted(2, "a", "weather"),
        ToolCallArguments(2, "{}"),
        ReasoningDelta(3, text="hm"),
    ]
    assert ReasoningSignature(0, b"", "upstream") in events


def test_interleaved_calls_are_kept_apart_by_their_index() -> None:
    found = calls_of(
        call("", index=0, id="a", name="weather"),
        call("", index=1, id="b", name="weather"),
        call('{"city"', index=0),
        call('{"city": "B"}', index=1),
        call(': "A"}', index=0),
    )
    assert found == [ToolCall("a", "weather", '{"city": "A"}'), ToolCall("b", "weather", '{"city": "B"}')]


@pytest.mark.parametrize("index", [{"index": 0}, {"index": None}, {}])
def test_calls_whose_indexes_collapse_are_kept_apart_by_their_ids(index: dict[str, Any]) -> None:
    found = calls_of(
        call('{"city": ', id="a", name="weather", **index),
        call('"A"}', **index),
        call('{"city": "B"}', id="b", name="weather", **index),
    )
    assert [(each.call_id, each.arguments_json) for each in found] == [
        ("a", '{"city": "A"}'),
        ("b", '{"city": "B"}'),
    ]


def test_an_id_that_is_repeated_with_every_fragment_is_one_call() -> None:
    found = calls_of(call('{"city": ', index=0, id="a", name="weather"), call('"A"}', index=0, id="a", name=""))
    assert found == [ToolCall("a", "weather", '{"city": "A"}')]


def test_calls_without_ids_get_some() -> None:
    found = calls_of(call("{}", index=0, name="weather"), call("{}", index=1, name="weather"))
    assert [each.call_id for each in found] == ["call_0", "call_1"]


@pytest.mark.parametrize(
    ("arguments", "whole", "valid_json", "valid_schema", "problem"),
    [
        ("", "{}", True, False, "$: 'city' is missing"),
        ('{"city": "Rome"}', '{"city": "Rome"}', True, True, ""),
        ('{"city": ', '{"city": ', False, False, "the arguments must be valid JSON"),
        ("[1]", "[1]", True, False, "the arguments must be a JSON object"),
    ],
)
def test_arguments_are_judged(arguments: str, whole: str, valid_json: bool, valid_schema: bool, problem: str) -> None:
    events = read(
        chunk({"tool_calls": [call(arguments, index=0, id="a", name="weather")]}),
        chunk({}, "tool_calls"),
        DONE,
    )
    completed = ToolCallCompleted(0, ToolCall("a", "weather", whole), valid_json, valid_schema, problem)
    assert completed in events


def test_a_forced_call_that_ends_with_stop_waits_for_its_tool() -> None:
    forced = chunk({"tool_calls": [call("{}", index=0, id="a", name="weather")]})
    assert read(forced, chunk({}, "stop"), DONE)[-1] == Stopped(FinishReason.TOOL_CALLS, "stop", "c1")


def test_a_refusal_is_a_reason() -> None:
    events = read(chunk({"refusal": "No."}), chunk({}, "stop"), DONE)
    assert events == [RefusalDelta(0, "No."), Stopped(FinishReason.REFUSAL, "stop", "c1")]


def test_citations_and_blocks_of_the_issuer_alone_are_kept() -> None:
    note = {"type": "url_citation", "url_citation": {"url": "https://a", "title": "A", "start_index": 1}}
    details = [
        {"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "h", "signature": None}]},
        {"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "m", "signature": "s"}]},
    ]
    events = read(chunk({"content": "x", "annotations": [note]}), *map(chunk, details), chunk({}, "stop"), DONE)
    whole = b'[{"type":"reasoning.text","index":0,"text":"hm","signature":"s"}]'
    assert CitationAdded(Citation(start=1, end=1, title="A", uri="https://a")) in events
    assert OpaqueAdded(1, Opaque("upstream", "reasoning_details", whole)) in events


@pytest.mark.parametrize("word", ["network_error", "insufficient_system_resource", "abort", "error"])
def test_a_word_that_says_that_the_answer_was_cut_is_a_failure(word: str) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
    reading = reader()
    events = [
        event for piece in (chunk({"content": "half"}), chunk({}, word), usage + DONE) for event in reading.feed(piece)
    ]
    assert not reading.whole
    assert reading.failure is not None
    assert (reading.failure.outcome, reading.failure.retryable) == ("broken", True)
    assert events == [TextDelta(0, "half")]
    assert reading.used() == Usage(3, output_tokens=4)


def test_half_a_surrogate_pair_becomes_a_replacement_character() -> None:
    said = [chunk({"content": text}) for text in ("\ude00a\ud83db", "c\ud83d", "d", "e\ud83d")]
    texts = [event.text for event in read(*said, chunk({}, "stop"), DONE) if isinstance(event, TextDelta)]
    # What an answer ends within is no character either.
    assert texts == ["\ufffda\ufffdb", "c", "\ufffdd", "e"]


def test_half_a_surrogate_pair_waits_for_its_other_half() -> None:
    quiet = [b": ping\n\n", chunk({}), chunk({"content": ""}), chunk({"content": None}, usage={"prompt_tokens": 1})]
    said = [chunk({"content": "a\ud83d"}), *quiet, chunk({"content": "\ude00b"})]
    for pieces in (said, [b"".join(said)]):
        texts = [event.text for event in read(*pieces, chunk({}, "stop"), DONE) if isinstance(event, TextDelta)]
        assert texts == ["a", "😀b"]


def test_texts_that_grow_beside_each_other_keep_their_own_halves() -> None:
    def calling(first: str, second: str) -> bytes:
        fragments = [call(text, id=f"t{at}", name="weather", index=at) for at, text in enumerate((first, second))]
        return chunk({"reasoning": first, "content": second, "tool_calls": fragments})

    start, end = calling('{"city": "\ud83d', '{"city": "\ud83c'), calling('\ude00"}', '\udf0d"}')
    events = read(start, end, chunk({}, "tool_calls"), DONE)
    calls = [event.call.arguments_json for event in events if isinstance(event, ToolCallCompleted)]
    assert calls == ['{"city": "😀"}', '{"city": "🌍"}']
    assert "".join(event.text or "" for event in events if isinstance(event, ReasoningDelta)) == calls[0]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == calls[1]


@pytest.mark.parametrize("number", [int, float, str])
def test_calls_that_take_turns_keep_their_own_halves(number: Any) -> None:
    def fragment(at: int, text: str, **more: Any) -> bytes:
        return chunk({"tool_calls": [call(text, index=number(at), **more)]})

    events = read(
        fragment(0, '{"city": "\ud83d', id="t0", name="weather"),
        fragment(1, '{"city": "\ud83c', id="t1", name="weather"),
        fragment(0, "\ude00"),
        chunk({"content": "so"}),
        fragment(1, '\udf0d"}'),
        fragment(0, '"}'),
        chunk({}, "tool_calls"),
        DONE,
    )
    calls = [event.call.arguments_json for event in events if isinstance(event, ToolCallCompleted)]
    assert calls == ['{"city": "😀"}', '{"city": "🌍"}']


def test_nul_becomes_a_replacement_character_wherever_the_model_writes() -> None:
    events = read(
        chunk({"content": "a\x00b", "reasoning_content": "c\x00", "refusal": "\x00d"}),
        chunk({"tool_calls": [call('{"city": "\x00"}', name="weather", id="t\x001", index=0)]}),
        chunk({}, "tool_calls"),
        DONE,
    )
    assert TextDelta(1, "a\ufffdb") in events
    assert ReasoningDelta(0, text="c\ufffd") in events
    assert RefusalDelta(2, "\ufffdd") in events
    assert ToolCallStarted(3, "t\ufffd1", "weather") in events
    assert ToolCallArguments(3, '{"city": "\ufffd"}') in events


def test_an_escaped_backslash_before_u0000_is_not_nul() -> None:
    assert read(chunk({"content": "\\u0000"}, "stop"), DONE)[0] == TextDelta(0, "\\u0000")


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b": ping\n\n"],
        [chunk({"content": "x"})],
        [chunk({"content": "x"}), DONE],
        [chunk({"content": "x"}), chunk({}, "stop")],
        [chunk({"content": "x"}), chunk({}, "stop"), b"data: [DO"],
        [b"<html>"],
    ],
)
def test_a_stream_without_its_end_is_broken(pieces: list[bytes]) -> None:
    with pytest.raises(ProviderFailure) as raised:
        read(*pieces)
    assert raised.value.error.reason == "PROVIDER_STREAM_BROKEN"


def test_servers_that_leave_the_marker_out_end_with_a_reason() -> None:
    assert read(chunk({}, "stop"), needs_done=False) == [Stopped(FinishReason.STOP, "stop", "c1")]
    with pytest.raises(ProviderFailure):
        read(chunk({"content": "x"}), needs_done=False)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        ({"type": "server_error", "code": None}, "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        ({"code": 502, "message": "bad gateway"}, "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        ({"code": "rate_limit_exceeded"}, "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED"),
        ({"status_code": 400, "code": "tool_use_failed"}, "UNAVAILABLE", "PROVIDER_STREAM_BROKEN"),
        ("just a text", "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
    ],
)
def test_errors_inside_a_stream_mean_what_they_mean_outside(error: Any, code: str, reason: str) -> None:
    with pytest.raises(ProviderFailure) as raised:
        read(f"data: {json.dumps({'error': error})}\n\n".encode())
    assert (raised.value.error.code, raised.value.error.reason) == (code, reason)


@pytest.mark.parametrize("advice", [None, False])
def test_a_model_that_cannot_call_is_asked_again_or_another_is(advice: bool | None) -> None:
    said = Refused(400, "tool_use_failed", "invalid_request_error", should_retry=advice)
    failure = classify("groq", "model", said)
    assert (failure.error.code, failure.outcome) == ("UNAVAILABLE", "broken")
    assert (failure.retryable, failure.elsewhere, failure.worked) == (True, True, True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "tool_calls", "function", "index", "usage", "error", "name"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(json_values | st.binary(max_size=20), max_size=5))
def test_nothing_that_a_server_sends_raises(documents: list[Any]) -> None:
    reading = reader()
    for document in documents:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        for event in reading.feed(b"data: " + data + b"\n\n"):
            assert not isinstance(event, TextDelta) or isinstance(event.text, str)
    reading.close()
    assert reading.failure is not None or reading.whole


def test_what_was_said_before_an_error_is_not_lost() -> None:
    reading = reader()
    both = chunk({"content": "half"}) + b'data: {"error": {"type": "server_error"}}\n\n'
    assert reading.feed(both) == [TextDelta(0, "half")]
    assert reading.failure is not None
    assert reading.feed(chunk({"content": "more"})) == []


def test_a_stream_that_is_cut_at_any_byte_is_never_whole() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    call_ = chunk({"tool_calls": [call('{"city": "Z\u00fcrich"}', index=0, id="a", name="weather")]})
    stream = chunk({"content": "Gr\u00fc\u00dfe"}) + call_ + chunk({}, "tool_calls") + usage + DONE
    for end in range(len(stream) - len(b"\n\n")):
        reading = reader()
        events = reading.feed(stream[:end]) + reading.close()
        assert reading.failure is not None
        assert not reading.whole
        assert not any(isinstance(event, Stopped) for event in events)


def test_what_goes_on_after_something_else_is_a_part_of_its_own() -> None:
    said = [
        chunk({"content": "a"}),
        chunk({"content": "b"}),
        chunk({"reasoning": "hm"}),
        chunk({"content": "c"}),
        chunk({"tool_calls": [call("{}", index=0, id="t", name="weather")]}),
        chunk({"content": "d"}),
        chunk({"reasoning": "so"}),
    ]
    events = read(*said, chunk({}, "tool_calls"), DONE)
    fold = Fold()
    for event in (Started("g", "upstream", "model", 1), *events[:-1]):
        fold.add(event)
    fold.add(Finished(FinishReason.TOOL_CALLS, "tool_calls", Usage(), Timings(0, 0, 0)))
    assert fold.answer().message.parts == (
        Text("ab"),
        Reasoning("hm", issuer="upstream"),
        Text("c"),
        ToolCall("t", "weather", "{}"),
        Text("d"),
        Reasoning("so", issuer="upstream"),
    )


def test_calls_without_arguments_are_told_in_their_order() -> None:
    began = [{"index": at, "id": f"t{at}", "function": {"name": name, "arguments": ""}} for at, name in enumerate("ab")]
    last = call('{"city": "x"}', index=2, id="t2", name="weather")
    for between in ([], [chunk({"content": "and"})]):
        said = [chunk({"tool_calls": [each]}) for each in began]
        events = read(*said, *between, chunk({"tool_calls": [last]}), chunk({}, "tool_calls"), DONE)
        started = [event for event in events if isinstance(event, ToolCallStarted)]
        assert [(event.call_id, event.name) for event in started] == [("t0", "a"), ("t1", "b"), ("t2", "weather")]
        assert [event.part_index for event in started] == [0, 1, 2 + len(between)]


def test_places_of_a_source_that_count_over_several_texts_are_left_out() -> None:
    noted = {"type": "url_citation", "url_citation": {"url": "https://a", "start_index": 1, "end_index": 3}}
    cited = chunk({"annotations": [noted]})
    text, thought = chunk({"content": "some words"}), chunk({"reasoning": "hm"})
    found = [
        [event.citation for event in read(*said, chunk({}, "stop"), DONE) if isinstance(event, CitationAdded)]
        for said in ((text, cited), (text, thought, text, cited))
    ]
    assert found == [[Citation(1, 3, uri="https://a", part_index=0)], [Citation(uri="https://a", part_index=2)]]


deltas = st.one_of(
    st.sampled_from([{"content": "a"}, {"reasoning": "b"}, {"refusal": "c"}, {"content": "d", "reasoning": "e"}]),
    st.builds(
        lambda index, name, arguments: {
            "tool_calls": [{"index": index, "id": f"t{index}", "function": {"name": name, "arguments": arguments}}]
        },
        st.integers(0, 2),
        st.sampled_from(["weather", "other", ""]),
        st.sampled_from(["", "{}", '{"a"']),
    ),
    st.builds(
        lambda index: {"tool_calls": [{"index": index, "id": f"t{index}", "custom": {"name": "free", "input": "x"}}]},
        st.integers(0, 2),
    ),
)


@given(st.lists(deltas, max_size=12))
def test_parts_are_numbered_as_they_appear_whatever_comes(said: list[dict[str, Any]]) -> None:
    reading = reader()
    pieces = [*map(chunk, said), chunk({}, "stop"), DONE]
    events = [event for piece in pieces for event in reading.feed(piece)]
    seen: list[int] = []
    for event in events:
        index = getattr(event, "part_index", None)
        if index is not None and index not in seen:
            seen.append(index)
    assert seen == list(range(len(seen)))
