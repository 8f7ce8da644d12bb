"""Chat Completions as the many servers write it that speak it with an accent."""

import json
from typing import Any

import pytest

from janus_inference.dialects.openai_chat_stream import ChatReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.events import (
    CitationAdded,
    OpaqueAdded,
    ProviderEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallCompleted,
)
from janus_inference.model import Citation, Opaque, ToolCall
from janus_inference.provider_errors import ProviderFailure

DONE = b"data: [DONE]\n\n"


def reader() -> ChatReader:
    return ChatReader("upstream", "model", "upstream", CallCheck({"weather": {}}))


def line(body: Any, name: str = "") -> bytes:
    named = f"event: {name}\n" if name else ""
    return f"{named}data: {json.dumps(body)}\n\n".encode()


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
    return line({"id": "c1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason, **more}]})


def read(*pieces: bytes, reading: ChatReader | None = None) -> list[ProviderEvent]:
    reading = reading or reader()
    events = [event for piece in pieces for event in reading.feed(piece)] + reading.close()
    if reading.failure is not None:
        raise reading.failure
    return events


def calls_of(*fragments: dict[str, Any]) -> list[ToolCall]:
    chunks = [chunk({"tool_calls": [fragment]}) for fragment in fragments]
    events = read(*chunks, chunk({}, "tool_calls"), DONE)
    return [event.call for event in events if isinstance(event, ToolCallCompleted)]


def fragment(arguments: str, name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"function": {"arguments": arguments, **({"name": name} if name else {})}, **more}


def test_log_probabilities_travel_with_their_text() -> None:
    said = {
        "content": [
            {
                "token": "Hi",
                "logprob": -0.5,
                "bytes": [72, 105],
                "top_logprobs": [{"token": "Hi", "logprob": -0.5}, {"token": "Yo", "logprob": -2}],
            }
        ],
        "refusal": None,
    }
    events = read(chunk({"content": "Hi"}, logprobs=said), chunk({}, "stop"), DONE)
    assert events[0] == TextDelta(0, "Hi", (TokenLogprob("Hi", -0.5, (("Hi", -0.5), ("Yo", -2.0))),))


def test_log_probabilities_of_text_that_was_sent_come_without_text() -> None:
    said = {"content": [{"token": "!", "logprob": -1}]}
    events = read(chunk({"content": ""}, logprobs=said), chunk({}, "stop"), DONE)
    assert events[0] == TextDelta(0, "", (TokenLogprob("!", -1.0),))


def test_content_in_pieces_is_text_and_thinking() -> None:
    pieces = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "Hello"},
        {"type": "hologram", "x": 1},
    ]
    reading = reader()
    events = read(chunk({"content": pieces}), chunk({}, "stop"), DONE, reading=reading)
    assert events[:2] == [ReasoningDelta(0, text="hm"), TextDelta(1, "Hello")]
    assert reading.unknown == 1


def test_calls_that_all_have_the_index_0_and_no_id_are_told_apart() -> None:
    calls = calls_of(fragment('{"city": "Rome"}', "weather", index=0), fragment('{"city": "Oslo"}', "weather", index=0))
    assert [call.arguments_json for call in calls] == ['{"city": "Rome"}', '{"city": "Oslo"}']
    assert len({call.call_id for call in calls}) == 2


def test_a_name_that_every_fragment_repeats_begins_no_new_call() -> None:
    (call,) = calls_of(
        fragment('{"city":', "weather", index=0),
        fragment(' "Rome"}', "weather", index=0),
        fragment("", "weather", index=0),
    )
    assert call.arguments_json == '{"city": "Rome"}'


def test_ids_that_repeat_are_made_different() -> None:
    calls = calls_of(
        fragment("{}", "weather", index=0, id="call"),
        fragment("{}", "weather", index=1, id="call"),
        fragment("", index=1, id="call"),
    )
    assert [call.call_id for call in calls] == ["call", "call_1"]


def test_interleaved_fragments_reach_their_calls() -> None:
    calls = calls_of(
        fragment("", "weather", index=0, id="a"),
        fragment("", "weather", index=1, id="b"),
        fragment('{"n":', index=0),
        fragment('{"n":', index=1),
        fragment("0}", index=0),
        fragment("1}", index=1),
    )
    assert [(call.call_id, call.arguments_json) for call in calls] == [("a", '{"n":0}'), ("b", '{"n":1}')]


def test_no_arguments_are_an_empty_object() -> None:
    (call,) = calls_of({"index": 0, "id": "a", "function": {"name": "weather"}})
    assert call.arguments_json == "{}"


@pytest.mark.parametrize(
    ("body", "name", "reason"),
    [
        ({"error": {"message": "x", "code": 429}}, "", "PROVIDER_RATE_LIMITED"),
        ({"message": "x", "type": "server_error"}, "error", "PROVIDER_UNAVAILABLE"),
        ({"error": {"message": "x", "type": "overloaded_error"}}, "", "PROVIDER_UNAVAILABLE"),
        ({"error": {"message": "x", "code": "context_length_exceeded", "status_code": 400}}, "", "CONTEXT_TOO_LONG"),
        ({"error": "out of order"}, "", "PROVIDER_UNAVAILABLE"),
    ],
)
def test_an_error_in_the_stream_keeps_what_was_said(body: Any, name: str, reason: str) -> None:
    reading = reader()
    events = reading.feed(chunk({"content": "Hel"}) + line(body, name))
    assert events == [TextDelta(0, "Hel")]
    assert isinstance(reading.failure, ProviderFailure)
    assert reading.failure.error.reason == reason


def test_what_moderation_refused_is_filtered() -> None:
    flagged = {"code": 403, "message": "x", "metadata": {"reasons": ["violence"], "flagged_input": "…"}}
    reading = reader()
    reading.feed(line({"error": flagged}))
    assert reading.failure is not None
    assert reading.failure.filtered


def test_unknown_chunks_are_counted_and_skipped() -> None:
    reading = reader()
    pieces = [
        line({"id": "c1", "object": "chat.completion.moderation"}),
        chunk({"content": "Hello"}),
        line({"heartbeat": 1}),
        chunk({}, "stop"),
        DONE,
    ]
    events = read(*pieces, reading=reading)
    assert events[0] == TextDelta(0, "Hello")
    assert (reading.unknown, reading.dialect) == (2, "openai_chat")


def test_citations_are_kept_within_the_contract_s_bounds() -> None:
    note = {"url": "https://a/" + "x" * 5000, "title": "T" * 5000, "start_index": -3, "end_index": "9", "content": "q"}
    delta = {"content": "x", "annotations": [{"type": "url_citation", "url_citation": note}, {"type": "file"}]}
    events = read(chunk(delta), chunk({}, "stop"), DONE)
    (found,) = [event.citation for event in events if isinstance(event, CitationAdded)]
    assert found == Citation(0, 0, "T" * 1024, ("https://a/" + "x" * 5000)[:2048], "q", 0)


def test_annotations_of_other_kinds_and_sound_are_kept_for_their_issuer() -> None:
    note = {"type": "file", "file": {"hash": "h", "content": []}}
    pieces = [
        chunk({"content": "x", "annotations": [note]}),
        chunk({"audio": {"id": "a1", "transcript": "Hel"}}),
        chunk({"audio": {"data": "QUI=", "transcript": "lo", "expires_at": None}}),
        chunk({"audio": {"data": "QQ==", "expires_at": 9}}),
    ]
    found = [event for event in read(*pieces, chunk({}, "stop"), DONE) if isinstance(event, OpaqueAdded)]
    sound = {"id": "a1", "transcript": "Hello", "data": ["QUI=", "QQ=="], "expires_at": 9}
    assert [(event.part.issuer, event.part.type, json.loads(event.part.data)) for event in found] == [
        ("upstream", "annotations", {"annotations": [note]}),
        ("upstream", "audio", sound),
    ]


def test_a_block_too_large_to_be_said_again_is_counted() -> None:
    reading = reader()
    events = read(chunk({"audio": {"data": "A" * (3 * 2**20)}}), chunk({}, "stop"), DONE, reading=reading)
    assert not any(isinstance(event, OpaqueAdded) for event in events)
    assert reading.unknown == 1


def details(events: list[ProviderEvent]) -> list[dict[str, Any]]:
    (found,) = [event.part for event in events if isinstance(event, OpaqueAdded)]
    assert isinstance(found, Opaque)
    assert (found.issuer, found.type) == ("upstream", "reasoning_details")
    return list(json.loads(found.data))


def block(text: str | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "reasoning.text", **({} if text is None else {"text": text}), **more}


def test_reasoning_blocks_of_one_body_are_never_joined() -> None:
    said = [block("a", index=0), block("b", index=0), block("b", index=0, id="r", signature="s")]
    message = {"content": "x", "reasoning_details": said}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    assert details(reader().body(json.dumps(body).encode())) == said


def test_fragments_of_reasoning_are_joined_by_type_index_and_id() -> None:
    pieces = [
        block("a", index=0, id="r1"),
        block("x", index=0, id="r2"),
        block("b", index=0, id="r1"),
        {"type": "reasoning.summary", "summary": "s", "index": 0, "id": "r1"},
        # Without an id it goes on with the last of its kind.
        block("c", index=0, id=None, signature="proof"),
        block("d", index=1),
    ]
    events = read(*(chunk({"reasoning_details": [piece]}) for piece in pieces), chunk({}, "stop"), DONE)
    assert details(events) == [
        block("abc", index=0, id="r1", signature="proof"),
        block("x", index=0, id="r2"),
        {"type": "reasoning.summary", "summary": "s", "index": 0, "id": "r1"},
        block("d", index=1),
    ]


def test_encrypted_reasoning_without_index_and_id_comes_whole() -> None:
    said = [{"type": "reasoning.encrypted", "data": "AA=="}, {"type": "reasoning.encrypted", "data": "BB=="}]
    events = read(*(chunk({"reasoning_details": [each]}) for each in said), chunk({}, "stop"), DONE)
    assert details(events) == said
