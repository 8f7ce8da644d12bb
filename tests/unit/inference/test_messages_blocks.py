"""What Messages answers hold beside text: others' tools, sources, refusals, sub-usage, what is new."""

import json
from dataclasses import replace
from typing import Any

import pytest

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import request_pb2
from janus_inference.decode import prompt_from
from janus_inference.dialects.anthropic_request import messages_body
from janus_inference.dialects.anthropic_stream import MessagesReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.encode import answer_to
from janus_inference.events import (
    CitationAdded,
    Finished,
    FinishReason,
    OpaqueAdded,
    ProviderEvent,
    RefusalDelta,
    Started,
    Stopped,
    TextDelta,
    Timings,
    ToolCallCompleted,
    Usage,
    UsageUpdated,
)
from janus_inference.fold import Fold
from janus_inference.model import Citation

START = {"type": "message_start", "message": {"id": "m1", "usage": {"input_tokens": 8, "output_tokens": 1}}}
STOP = {"type": "message_stop"}


def end(reason: str = "end_turn", usage: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason, **more}, "usage": usage or {"output_tokens": 5}}


def block(start: dict[str, Any], *deltas: dict[str, Any], index: int = 0) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def reader() -> MessagesReader:
    return MessagesReader("claude", "model", "anthropic", CallCheck({}))


def read(*events: dict[str, Any], reading: MessagesReader | None = None) -> list[ProviderEvent]:
    reading = reading or reader()
    found: list[ProviderEvent] = []
    for event in events:
        found += reading.feed(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    found += reading.close()
    assert reading.failure is None
    return found


def opaque_of(*events: dict[str, Any]) -> list[dict[str, Any]]:
    found = read(START, *events, end(), STOP)
    return [json.loads(event.part.data) for event in found if isinstance(event, OpaqueAdded)]


@pytest.mark.parametrize(
    "start",
    [
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "web_search_result", "url": "u"}]},
        {"type": "code_execution_tool_result", "tool_use_id": "s", "content": {"return_code": 0}},
        {"type": "mcp_tool_result", "tool_use_id": "s", "content": [], "is_error": False},
        {"type": "container_upload", "file_id": "f"},
        {"type": "something_of_next_year", "anything": [1, {"x": None}]},
    ],
)
def test_blocks_of_others_are_kept_as_they_are(start: dict[str, Any]) -> None:
    assert opaque_of(*block(start)) == [start]


def test_the_input_of_a_server_s_tool_is_put_together() -> None:
    start = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"que', 'ry": "x"}')]
    assert opaque_of(*block(start, *pieces)) == [{**start, "input": {"query": "x"}}]


def test_what_deltas_add_to_an_unknown_block_is_kept() -> None:
    pieces = [{"type": "compaction_delta", "content": piece} for piece in ("What was ", "said.")]
    start = {"type": "compaction", "content": ""}
    assert opaque_of(*block(start, *pieces)) == [{"type": "compaction", "content": "What was said."}]


SOURCES: list[tuple[dict[str, Any], Citation]] = [
    (
        {"type": "char_location", "cited_text": "q", "document_index": 0, "document_title": "D", "start_char_index": 3},
        Citation(title="D", quote="q"),
    ),
    ({"type": "page_location", "cited_text": "q", "document_title": None}, Citation(quote="q")),
    ({"type": "content_block_location", "cited_text": "q", "document_title": "D"}, Citation(title="D", quote="q")),
    (
        {"type": "search_result_location", "cited_text": "q", "source": "https://s", "title": "S"},
        Citation(title="S", uri="https://s", quote="q"),
    ),
    (
        {"type": "web_search_result_location", "cited_text": "q", "url": "https://w", "title": "W"},
        Citation(title="W", uri="https://w", quote="q"),
    ),
]


@pytest.mark.parametrize(("said", "meant"), SOURCES)
def test_every_kind_of_source(said: dict[str, Any], meant: Citation) -> None:
    text = block(
        {"type": "text", "text": ""}, {"type": "text_delta", "text": "x"}, {"type": "citations_delta", "citation": said}
    )
    events = read(START, *text, end(), STOP)
    (found,) = [event.citation for event in events if isinstance(event, CitationAdded)]
    assert json.loads(found.data) == said
    assert found == replace(meant, issuer="anthropic", data=found.data)


def test_an_answer_with_sources_is_said_again_as_it_was() -> None:
    """Over the wire and back: folded, encoded, sent in the next prompt."""
    found = {
        "type": "web_search_result_location",
        "cited_text": "It rains in Zürich.",
        "encrypted_index": "ZW5j",
        "title": None,
        "url": "https://w",
    }
    searched = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    events = read(
        START,
        *block(searched),
        *block({"type": "text", "text": "Well: "}, index=1),
        *block(
            {"type": "text", "text": "", "citations": []},
            {"type": "citations_delta", "citation": found},
            {"type": "text_delta", "text": "it rains."},
            index=2,
        ),
        end(),
        STOP,
    )
    fold = Fold()
    fold.add(Started("gen_1", "claude", "model", 1))
    for event in events:
        if isinstance(event, Stopped):
            fold.add(Finished(event.reason, event.provider_reason, Usage(), Timings(0, 0, 0), event.response_id))
        else:
            fold.add(event)
    asked = content.Message(role=content.ROLE_USER, parts=[content.Part(text="weather?")])
    prompt = request_pb2.Prompt(messages=[asked, answer_to(fold.answer()).message, asked])
    assert messages_body(prompt_from(prompt), "claude-sonnet-4-5", "anthropic")["messages"][1]["content"] == [
        searched,
        {"type": "text", "text": "Well: "},
        {"type": "text", "text": "it rains.", "citations": [found]},
    ]


def test_a_source_that_is_too_large_to_be_said_again_is_cited_all_the_same() -> None:
    said = {"type": "page_location", "cited_text": "q" * 70_000}
    text = block({"type": "text", "text": "x", "citations": [said]})
    (found,) = [event.citation for event in read(START, *text, end(), STOP) if isinstance(event, CitationAdded)]
    assert found == Citation(quote="q" * 16 * 1024)


def test_a_refusal_is_told_in_the_provider_s_words() -> None:
    details = {"type": "refusal", "category": "bio", "explanation": "I cannot help with that."}
    events = read(START, end("refusal", stop_details=details), STOP)
    assert events[-2:] == [
        RefusalDelta(0, "I cannot help with that."),
        Stopped(FinishReason.REFUSAL, "refusal", "m1"),
    ]


def test_what_is_unknown_is_counted_and_skipped() -> None:
    reading = reader()
    text = block({"type": "text", "text": ""}, {"type": "glitter_delta", "x": 1}, {"type": "text_delta", "text": "hi"})
    events = read(START, {"type": "ping"}, {"type": "weather_report"}, *text, end(), STOP, reading=reading)
    assert TextDelta(0, "hi") in events
    assert (reading.unknown, reading.dialect) == (2, "anthropic_messages")


def test_what_an_advisor_used_is_part_of_the_usage() -> None:
    own, advisor = {"input_tokens": 20, "output_tokens": 7}, {"input_tokens": 100, "output_tokens": 30}
    iterations = [{**own, "type": "message"}, {**advisor, "type": "advisor_message", "model": "another"}]
    events = read(START, end(usage={**own, "iterations": iterations}), STOP)
    (usage,) = [event.usage for event in events if isinstance(event, UsageUpdated)][-1:]
    assert (usage.input_uncached_tokens, usage.output_tokens) == (120, 37)


def test_a_server_s_tool_that_was_cut_within_its_input_ends_with_the_answer_and_breaks_nothing() -> None:
    start = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
    text = block({"type": "text", "text": "Let me look."})
    cut = block(start, {"type": "input_json_delta", "partial_json": '{"query": "we'}, index=1)
    events = read(START, *text, *cut, end("max_tokens"), STOP)
    assert TextDelta(0, "Let me look.") in events
    assert not [event for event in events if isinstance(event, OpaqueAdded)]
    assert isinstance(events[-1], Stopped)
    assert events[-1].reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({"caller": {"type": "direct"}, "toolset_name": None}, []),
        (
            {"caller": {"type": "code_execution_20260120", "tool_id": "s1"}},
            [{"id": "t1", "caller": {"type": "code_execution_20260120", "tool_id": "s1"}}],
        ),
        ({"caller": {"type": "direct"}, "toolset_name": "files"}, [{"id": "t1", "toolset_name": "files"}]),
    ],
)
def test_what_only_the_provider_understands_of_a_call_is_kept_before_it(
    more: dict[str, Any], kept: list[dict[str, Any]]
) -> None:
    events = read(START, *block({"type": "tool_use", "id": "t1", "name": "weather", "input": {}, **more}), end(), STOP)
    opaque = [event for event in events if isinstance(event, OpaqueAdded)]
    assert [(event.part.type, json.loads(event.part.data)) for event in opaque] == [("tool_use", each) for each in kept]
    (call,) = [event for event in events if isinstance(event, ToolCallCompleted)]
    assert call.part_index == len(kept)
