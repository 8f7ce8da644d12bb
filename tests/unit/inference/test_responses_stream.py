"""Responses answers: every kind of item and event, and those that servers leave out."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_inference.dialects.openai_responses_stream import ResponsesReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.events import (
    CitationAdded,
    FinishReason,
    OpaqueAdded,
    ProviderEvent,
    ReasoningDelta,
    ReasoningSignature,
    RefusalDelta,
    Stopped,
    TextDelta,
    TokenLogprob,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallStarted,
    Usage,
    UsageUpdated,
)
from janus_inference.model import Citation, Opaque, ToolCall
from janus_inference.provider_errors import ProviderFailure

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
USAGE = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 21,
}
STOPPED = Stopped(FinishReason.STOP, "completed", "resp_1")


def reader() -> ResponsesReader:
    return ResponsesReader("upstream", "model", "openai", CallCheck({"weather": SCHEMA}))


def sse(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def ended(*items: Any, kind: str = "completed", **fields: Any) -> bytes:
    answer = {"id": "resp_1", "status": kind, "output": list(items), **fields}
    return sse(f"response.{kind}", response=answer)


@pytest.mark.parametrize(
    ("asked", "charged", "off_list"),
    [("auto", "default", False), ("auto", "priority", True), ("priority", "default", False), ("flex", None, True)],
)
def test_the_tier_that_the_answer_was_charged_at_is_the_last_that_was_said(
    asked: str, charged: str | None, off_list: bool
) -> None:
    reading = reader()
    events = reading.feed(sse("response.created", response={"id": "resp_1", "service_tier": asked}))
    events += reading.feed(ended(usage={"input_tokens": 3}, service_tier=charged))
    assert events[0] == UsageUpdated(Usage(3, off_list=off_list))


def test_the_tier_of_an_answer_that_is_cut_is_known() -> None:
    reading = reader()
    reading.feed(sse("response.created", response={"id": "resp_1", "service_tier": "priority"}))
    assert reading.used() == Usage(off_list=True)


def added(item: Any, place: int = 0) -> bytes:
    return sse("response.output_item.added", output_index=place, item=item)


def done(item: Any, place: int = 0) -> bytes:
    return sse("response.output_item.done", output_index=place, item=item)


def delta(kind: str, text: str, place: int = 0, **more: Any) -> bytes:
    return sse(f"response.{kind}.delta", output_index=place, delta=text, **more)


def message(*content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "role": "assistant", "content": list(content), **more}


def text(said: str, *notes: Any, **more: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": said, "annotations": list(notes), **more}


def call(arguments: Any = '{"city": "Rome"}', call_id: str = "a", **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "id": f"fc_{call_id}", "call_id": call_id, "name": "weather"} | {
        "arguments": arguments,
        **more,
    }


def read(*pieces: bytes) -> list[ProviderEvent]:
    reading = reader()
    events = [event for piece in pieces for event in reading.feed(piece)] + reading.close()
    if reading.failure is not None:
        raise reading.failure
    return events


def body(*items: Any, status: str = "completed", **fields: Any) -> list[ProviderEvent]:
    reading = reader()
    answer = {"id": "resp_1", "object": "response", "status": status, "output": list(items), **fields}
    events = reading.body(json.dumps(answer).encode())
    if reading.failure is not None:
        raise reading.failure
    return events


def test_text_usage_and_the_end() -> None:
    whole = message(text("Hello"))
    assert read(
        sse("response.created", response={"id": "resp_1", "status": "in_progress", "output": []}),
        sse("response.in_progress", response={}),
        added(message()),
        delta("output_text", "Hel", content_index=0),
        delta("output_text", "lo", content_index=0),
        sse("response.output_text.done", output_index=0, content_index=0, text="Hello"),
        done(whole),
        ended(whole, usage=USAGE),
    ) == [TextDelta(0, "Hel"), TextDelta(0, "lo"), UsageUpdated(Usage(8, 4, 0, 9, 2)), STOPPED]


def test_a_body_says_what_a_stream_says() -> None:
    whole = message(text("Hello"))
    assert body(whole, usage=USAGE) == [TextDelta(0, "Hello"), UsageUpdated(Usage(8, 4, 0, 9, 2)), STOPPED]


@pytest.mark.parametrize(
    "pieces",
    [
        [sse("response.output_text.done", output_index=0, content_index=0, text="Hello")],
        [added(message()), done(message(text("Hello")))],
        [done(message(text("Hello")))],
        [],
    ],
)
def test_a_server_may_leave_out_whichever_events_it_likes(pieces: list[bytes]) -> None:
    assert read(*pieces, ended(message(text("Hello")))) == [TextDelta(0, "Hello"), STOPPED]


def test_what_an_end_says_beyond_the_deltas_is_not_lost() -> None:
    assert read(delta("output_text", "Hel"), ended(message(text("Hello")))) == [
        TextDelta(0, "Hel"),
        TextDelta(0, "lo"),
        STOPPED,
    ]


def test_an_answer_is_not_said_twice_where_its_end_calls_the_items_otherwise() -> None:
    other = {**message(text("Hello")), "id": "msg_other"}
    assert read(done(message(text("Hello"))), ended(other)) == [TextDelta(0, "Hello"), STOPPED]


def test_parallel_calls_are_kept_apart() -> None:
    events = read(
        added(call("", "a"), 0),
        added(call("", "b"), 1),
        delta("function_call_arguments", '{"city"', 0),
        delta("function_call_arguments", '{"city": "B"}', 1),
        delta("function_call_arguments", ': "A"}', 0),
        sse("response.function_call_arguments.done", output_index=0, arguments='{"city": "A"}'),
        done(call('{"city": "A"}', "a"), 0),
        done(call('{"city": "B"}', "b"), 1),
        ended(call('{"city": "A"}', "a"), call('{"city": "B"}', "b")),
    )
    assert events[:2] == [ToolCallStarted(0, "a", "weather"), ToolCallStarted(1, "b", "weather")]
    assert [event.call for event in events if isinstance(event, ToolCallCompleted)] == [
        ToolCall("a", "weather", '{"city": "A"}'),
        ToolCall("b", "weather", '{"city": "B"}'),
    ]
    assert events[-1] == Stopped(FinishReason.TOOL_CALLS, "completed", "resp_1")


@pytest.mark.parametrize(
    ("arguments", "whole", "valid_json", "problem"),
    [
        ("", "{}", True, "$: 'city' is missing"),
        ({"city": "Rome"}, '{"city":"Rome"}', True, ""),
        ('{"city": ', '{"city": ', False, "the arguments must be valid JSON"),
    ],
)
def test_arguments_are_judged(arguments: Any, whole: str, valid_json: bool, problem: str) -> None:
    completed = ToolCallCompleted(0, ToolCall("a", "weather", whole), valid_json, not problem, problem)
    assert completed in body(call(arguments))


def test_a_call_that_a_limit_cut_is_completed_as_it_is() -> None:
    events = read(
        added(call("")),
        delta("function_call_arguments", '{"ci'),
        ended(kind="incomplete", incomplete_details={"reason": "max_output_tokens"}),
    )
    assert events[1:] == [
        ToolCallArguments(0, '{"ci'),
        ToolCallCompleted(0, ToolCall("a", "weather", '{"ci'), False, False, "the arguments must be valid JSON"),
        Stopped(FinishReason.LENGTH, "max_output_tokens", "resp_1"),
    ]


def thought(summary: list[str], cipher: str | None = "ZW5j", content: list[str] | None = None) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "reasoning", "id": "rs_1"}
    item["summary"] = [{"type": "summary_text", "text": each} for each in summary]
    if content is not None:
        item["content"] = [{"type": "reasoning_text", "text": each} for each in content]
    return item | {"encrypted_content": cipher}


def proof_in(events: list[ProviderEvent]) -> Any:
    (proof,) = [event for event in events if isinstance(event, ReasoningSignature)]
    assert proof.issuer == "openai"
    return json.loads(proof.signature)


def test_a_summary_comes_in_paragraphs_and_the_item_is_kept_whole() -> None:
    whole = thought(["One.", "Two."])
    events = read(
        added(thought([])),
        sse("response.reasoning_summary_part.added", output_index=0, summary_index=0, part={}),
        delta("reasoning_summary_text", "One", summary_index=0),
        delta("reasoning_summary_text", ".", summary_index=0),
        sse("response.reasoning_summary_text.done", output_index=0, summary_index=0, text="One."),
        delta("reasoning_summary_text", "Two.", summary_index=1),
        done(whole),
        ended({**whole, "encrypted_content": "another"}),
    )
    assert [event.summary for event in events if isinstance(event, ReasoningDelta)] == ["One", ".", "\n\nTwo."]
    assert proof_in(events) == whole
    of_body = body(whole)
    assert [event.summary for event in of_body if isinstance(event, ReasoningDelta)] == ["One.", "\n\nTwo."]
    assert proof_in(of_body) == whole


def test_raw_reasoning_is_text_and_comes_before_the_answer() -> None:
    whole = thought([], None, ["hm"])
    events = read(
        added(whole | {"content": []}),
        delta("reasoning_text", "h", content_index=0),
        delta("reasoning_text", "m", content_index=0),
        done(whole),
        delta("output_text", "so", 1),
        ended(whole, message(text("so"))),
    )
    assert events[:2] == [ReasoningDelta(0, text="h"), ReasoningDelta(0, text="m")]
    assert proof_in(events) == whole
    assert TextDelta(1, "so") in events


def test_reasoning_that_is_only_a_cipher_is_a_part_without_words() -> None:
    events = body(thought([]), message(text("x")))
    assert isinstance(events[0], ReasoningSignature)
    assert events[1] == TextDelta(1, "x")


def test_reasoning_that_was_cut_says_whose_it_is() -> None:
    events = read(
        delta("reasoning_text", "hm"), ended(kind="incomplete", incomplete_details={"reason": "max_output_tokens"})
    )
    assert ReasoningSignature(0, b"", "openai") in events


ITEMS = [
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
    {"type": "file_search_call", "id": "fs_1", "queries": ["x"], "results": None},
    {"type": "code_interpreter_call", "id": "ci_1", "code": "1+1", "container_id": "c", "outputs": None},
    {"type": "mcp_list_tools", "id": "l", "server_label": "s", "tools": []},
    {"type": "mcp_call", "id": "m", "name": "n", "arguments": "{}", "output": "o"},
    {"type": "image_generation_call", "id": "ig_1", "result": "aW1n"},
    {"type": "compaction", "id": "cmp_1", "encrypted_content": "ZW5j"},
    {"type": "something_new", "id": "n_1", "deep": {"er": [1, None, "é"]}},
]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: str(item["type"]))
def test_items_of_the_provider_s_own_are_kept_whole(item: dict[str, Any]) -> None:
    opaque = Opaque("openai", item["type"], json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode())
    expected = [OpaqueAdded(0, opaque), TextDelta(1, "x"), STOPPED]
    after = delta("output_text", "x", 1)
    both = ended(item, message(text("x")))
    begun = added({"type": item["type"], "id": item["id"]})
    assert read(begun, done(item), after, both) == expected
    assert body(item, message(text("x"))) == expected
    # Where nobody said that it is done, it comes with the end, in its place all the same.
    assert sorted(read(begun, after, both)[:2], key=lambda event: getattr(event, "part_index", 9)) == expected[:2]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "custom_tool_call", "id": "c", "name": "n", "input": "x"},
        {"type": "computer_call", "id": "c"},
        {"type": "mcp_approval_request", "id": "c"},
        {"type": "tool_search_call", "id": "c", "execution": "client", "arguments": {}},
    ],
)
def test_an_answer_that_waits_for_what_the_contract_has_no_part_for_is_not_called_done(item: Any) -> None:
    assert body(item)[-1] == Stopped(FinishReason.OTHER, "completed", "resp_1")


def test_what_only_the_issuer_understands_of_a_message_or_a_call_comes_before_it() -> None:
    phased = message(text("Wait."), phase="commentary")
    named = call(namespace="tools")
    expected = [
        OpaqueAdded(0, Opaque("openai", "message", b'{"phase":"commentary"}')),
        TextDelta(1, "Wait."),
        OpaqueAdded(2, Opaque("openai", "function_call", b'{"call_id":"a","namespace":"tools"}')),
    ]
    assert [event for event in body(phased, named) if isinstance(event, OpaqueAdded | TextDelta)] == expected
    streamed = read(
        added(message(phase="commentary")),
        delta("output_text", "Wait."),
        done(phased),
        added(call("", namespace="tools"), 1),
        done(named, 1),
        ended(phased, named),
    )
    assert set(expected) <= set(streamed)
    assert ToolCallStarted(3, "a", "weather") in streamed


def test_citations_come_once_whether_alone_or_with_their_text() -> None:
    page = {"type": "url_citation", "url": "https://a", "title": "A", "start_index": 1, "end_index": 3}
    file = {"type": "file_citation", "file_id": "file_1", "filename": "a.pdf", "index": 7}
    held = {"type": "container_file_citation", "container_id": "c", "file_id": "f", "filename": "x.png"}
    whole = message(text("abcdefgh", page, file, {**held, "start_index": 2, "end_index": 4}))
    cited = [
        CitationAdded(Citation(1, 3, "A", "https://a")),
        CitationAdded(Citation(7, 7, "a.pdf", "file_1")),
        CitationAdded(Citation(2, 4, "x.png", "c/f")),
    ]
    assert [event for event in body(whole) if isinstance(event, CitationAdded)] == cited
    streamed = read(
        delta("output_text", "abcdefgh"),
        sse("response.output_text.annotation.added", output_index=0, content_index=0, annotation=page),
        done(whole),
        ended(whole),
    )
    assert [event for event in streamed if isinstance(event, CitationAdded)] == cited


def test_log_probabilities_come_with_their_text_and_once() -> None:
    said = {"token": "Hi", "logprob": -0.5, "bytes": [72], "top_logprobs": [{"token": "Ho", "logprob": -1.5}]}
    meant = TextDelta(0, "Hi", (TokenLogprob("Hi", -0.5, (("Ho", -1.5),)),))
    whole = message(text("Hi", logprobs=[said]))
    assert body(whole) == [meant, STOPPED]
    assert read(delta("output_text", "Hi", logprobs=[said]), done(whole), ended(whole)) == [meant, STOPPED]


def test_a_refusal_is_a_reason() -> None:
    whole = message({"type": "refusal", "refusal": "No."})
    expected = [RefusalDelta(0, "No."), Stopped(FinishReason.REFUSAL, "completed", "resp_1")]
    assert body(whole) == expected
    assert read(delta("refusal", "No."), done(whole), ended(whole)) == expected


@pytest.mark.parametrize(
    ("reason", "meant"),
    [
        ("max_output_tokens", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("max_tool_calls", FinishReason.OTHER),
    ],
)
def test_an_incomplete_answer_says_why(reason: str, meant: FinishReason) -> None:
    expected = [TextDelta(0, "x"), Stopped(meant, reason, "resp_1")]
    details = {"reason": reason}
    assert body(message(text("x")), status="incomplete", incomplete_details=details) == expected
    assert read(ended(message(text("x")), kind="incomplete", incomplete_details=details)) == expected
    # One name for every end, as some servers have it.
    answer = {"id": "resp_1", "status": "incomplete", "incomplete_details": details, "output": [message(text("x"))]}
    assert read(sse("response.completed", response=answer)) == expected


ERRORS: list[tuple[Any, str, str]] = [
    ({"code": "server_error", "message": "x"}, "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
    ({"code": "rate_limit_exceeded", "message": "x"}, "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED"),
    ({"code": "invalid_prompt", "message": "x"}, "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST"),
    ({"code": "image_too_large", "message": "x"}, "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST"),
    ({"code": "context_length_exceeded", "message": "x"}, "INVALID_ARGUMENT", "CONTEXT_TOO_LONG"),
    ({"code": "vector_store_timeout", "message": "x"}, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
    ({"code": "insufficient_quota", "message": "x"}, "FAILED_PRECONDITION", "PROVIDER_BILLING"),
    ({"code": 502, "message": "bad gateway"}, "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
    ({"code": "429", "message": "slow down"}, "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED"),
    (None, "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
]


@pytest.mark.parametrize(("error", "code", "reason"), ERRORS)
def test_errors_inside_an_answer_mean_what_they_mean_outside(error: Any, code: str, reason: str) -> None:
    ways = [
        lambda: read(sse("error", **(error or {}))),
        lambda: read(sse("error", error=error)),
        lambda: read(ended(kind="failed", error=error)),
        lambda: body(status="failed", error=error),
    ]
    for way in ways:
        with pytest.raises(ProviderFailure) as raised:
            way()
        assert (raised.value.error.code, raised.value.error.reason) == (code, reason)


@pytest.mark.parametrize(
    ("message_", "seconds"),
    [("Please try again in 1.5s.", 1.5), ("Try again in 20ms", 0.02), ("try again in 2 minutes", 120), ("Wait", 1.0)],
)
def test_how_long_to_wait_is_read_from_the_words(message_: str, seconds: float) -> None:
    with pytest.raises(ProviderFailure) as raised:
        read(sse("error", code="rate_limit_exceeded", message=message_))
    assert raised.value.error.retry_after == pytest.approx(seconds)


@pytest.mark.parametrize("code", ["bio_policy", "misalignment_policy_violation", "image_content_policy_violation"])
def test_a_policy_s_refusal_is_a_content_filter(code: str) -> None:
    with pytest.raises(ProviderFailure) as raised:
        read(ended(kind="failed", error={"code": code, "message": "x"}))
    assert raised.value.filtered


def test_the_usage_of_a_failed_answer_is_not_lost() -> None:
    reading = reader()
    failed = ended(kind="failed", error={"code": "server_error"}, usage=USAGE)
    assert reading.feed(failed) == [UsageUpdated(Usage(8, 4, 0, 9, 2))]
    assert reading.failure is not None
    reading = reader()
    answer = {"id": "r", "status": "failed", "error": {"code": "server_error"}, "output": [], "usage": USAGE}
    assert reading.body(json.dumps(answer).encode()) == [UsageUpdated(Usage(8, 4, 0, 9, 2))]
    assert reading.failure is not None


@pytest.mark.parametrize("status", ["cancelled", "queued", "in_progress"])
def test_an_answer_that_was_not_made_is_no_answer(status: str) -> None:
    with pytest.raises(ProviderFailure) as raised:
        body(status=status)
    assert raised.value.error.reason == "PROVIDER_STREAM_BROKEN"


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b": ping\n\n"],
        [delta("output_text", "x")],
        [done(message(text("x")))],
        [done(message(text("x"))), b"data: [DONE]\n\n"],
        [ended(kind="cancelled")],
        [sse("response.output_text.delta", output_index=0, delta=7)],
        [sse("response.function_call_arguments.delta", output_index=0, delta="{}")],
        [b"data: <html>\n\n"],
    ],
)
def test_a_stream_without_its_end_is_broken(pieces: list[bytes]) -> None:
    with pytest.raises(ProviderFailure) as raised:
        read(*pieces)
    assert raised.value.error.reason == "PROVIDER_STREAM_BROKEN"


def test_what_comes_after_the_end_is_not_read() -> None:
    assert read(ended(message(text("x"))) + b"data: [DONE]\n\n" + sse("error", code="x")) == [
        TextDelta(0, "x"),
        STOPPED,
    ]


def test_unknown_events_are_counted_and_known_ones_are_not() -> None:
    reading = reader()
    for kind in ("response.web_search_call.searching", "response.mcp_call_arguments.delta", "response.queued"):
        reading.feed(sse(kind, output_index=0))
    assert reading.unknown == 0
    reading.feed(sse("response.audio.delta", delta="") + sse("codex.rate_limits") + ended(message(text("x"))))
    assert (reading.unknown, reading.whole) == (2, True)


def test_half_a_surrogate_pair_and_nul_become_replacement_characters() -> None:
    split = b'data: {"type":"response.output_text.delta","output_index":0,"delta":"a\\ud83d\\u0000"}\n\n'
    assert read(split, ended())[0] == TextDelta(0, "a\ufffd\ufffd")


@pytest.mark.parametrize("place", ["output_index", "item_id"])
def test_calls_that_take_turns_keep_their_own_halves(place: str) -> None:
    kind = "response.function_call_arguments.delta"
    item = {"type": "function_call", "name": "weather"}
    events = read(
        *(sse("response.output_item.added", item={**item, "call_id": name}, **{place: name}) for name in "ab"),
        sse(kind, delta='{"city": "\ud83d', **{place: "a"}),
        sse(kind, delta='{"city": "\ud83c', **{place: "b"}),
        sse(kind, delta='\ude00"}', **{place: "a"}),
        sse(kind, delta='\udf0d"}', **{place: "b"}),
        ended(),
    )
    calls = [event.call.arguments_json for event in events if isinstance(event, ToolCallCompleted)]
    assert calls == ['{"city": "😀"}', '{"city": "🌍"}']


def test_a_stream_that_is_cut_at_any_byte_is_never_whole() -> None:
    items = (thought(["hm"]), message(text("Grüße")), call('{"city": "Zürich"}'))
    stream = delta("output_text", "Grüße", 1) + b"".join(done(item, place) for place, item in enumerate(items))
    stream += ended(*items, usage=USAGE)
    for end in range(len(stream) - len(b"\n\n")):
        reading = reader()
        events = reading.feed(stream[:end]) + reading.close()
        assert reading.failure is not None
        assert not any(isinstance(event, Stopped) for event in events)


words = st.sampled_from(
    [
        "type",
        "item",
        "response",
        "output",
        "content",
        "delta",
        "text",
        "arguments",
        "summary",
        "usage",
        "error",
        "code",
        "status",
        "annotations",
        "logprobs",
        "output_index",
        "content_index",
        "id",
        "name",
        "call_id",
        "message",
        "function_call",
        "reasoning",
        "output_text",
        "response.completed",
        "response.output_item.added",
        "response.output_item.done",
        "response.output_text.delta",
        "error",
        "response.failed",
    ]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | words | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=5),
    max_leaves=14,
)


@given(st.lists(json_values | st.binary(max_size=20), max_size=6))
def test_nothing_that_a_server_sends_raises(documents: list[Any]) -> None:
    reading = reader()
    for document in documents:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        for event in reading.feed(b"data: " + data + b"\n\n"):
            assert not isinstance(event, TextDelta) or isinstance(event.text, str)
    reading.close()
    assert reading.failure is not None or reading.whole


@given(json_values)
def test_no_body_raises_anything_but_a_failure(document: Any) -> None:
    reading = reader()
    try:
        reading.body(json.dumps(document).encode())
    except ProviderFailure:
        return
    assert reading.failure is not None or reading.whole
