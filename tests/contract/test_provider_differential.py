"""The dialects' readers held against the SDKs' own typed objects, over the same bytes.

Janus parses the bytes of a stream itself, because the SDKs' objects cost many
times as much; here both read the same answers and must agree. The answers are
our fakes' and, where `../shared/recordings` is beside the checkout, real ones.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.providers import anthropic_wire, openai_wire, recorded
from tests.fakes.providers.http_server import Request, WireServer, serving

from janus_inference.dialects.anthropic_stream import MessagesReader
from janus_inference.dialects.openai_chat_stream import ChatReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.dialects.reader import StreamReader
from janus_inference.events import (
    ReasoningDelta,
    ReasoningSignature,
    RefusalDelta,
    Stopped,
    TextDelta,
    ToolCallArguments,
    ToolCallCompleted,
    UsageUpdated,
)

RECORDINGS = Path(__file__).parents[3] / "shared" / "recordings" / "provider_exchanges.jsonl"
CHAT_ORDERS = ["", ";tokens=40", ";tools=3", ";think=4", ";refuse=1", ";finish=length", ";usage=0", ";logprobs=1"]
MESSAGES_ORDERS = ["", ";tokens=40", ";tools=3", ";think=4", ";finish=max_tokens", ";finish=refusal"]
SOURCE = {"type": "page_location", "cited_text": "q", "document_index": 0, "start_page_number": 1, "end_page_number": 2}
BLOCKS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"type": "redacted_thinking", "data": "ZW5j"}, []),
    (
        {"type": "text", "text": "", "citations": []},
        [{"type": "citations_delta", "citation": SOURCE}, {"type": "text_delta", "text": "Züri"}],
    ),
    (
        {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {}},
        [{"type": "input_json_delta", "partial_json": piece} for piece in ("", '{"query"', ': "x"}')],
    ),
    ({"type": "web_search_tool_result", "tool_use_id": "srv", "content": []}, []),
    ({"type": "tool_use", "id": "t", "name": "clock", "input": {}}, []),
]


@dataclass
class Said:
    """What an answer says, however it was read."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    proofs: list[str] = field(default_factory=list)
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    logprobs: list[tuple[str, float, int]] = field(default_factory=list)
    finish: str | None = None
    identity: str = ""
    output_tokens: int | None = None


def ours(reading: StreamReader, data: bytes) -> Said:
    said = Said()
    fragments: dict[int, str] = {}
    events = [*reading.feed(data), *reading.close()]
    assert reading.failure is None
    assert reading.unknown == 0
    for event in events:
        match event:
            case TextDelta():
                said.text += event.text
                said.logprobs += [(token.token, token.logprob, len(token.top)) for token in event.logprobs]
            case ReasoningDelta(text=str(text)):
                said.reasoning += text
            case ReasoningSignature(signature=proof) if proof:
                said.proofs.append(proof.decode())
            case RefusalDelta():
                said.refusal += event.text
            case ToolCallArguments():
                fragments[event.part_index] = fragments.get(event.part_index, "") + event.fragment
            case ToolCallCompleted(call=call):
                assert json.loads(fragments.get(event.part_index) or "{}") == json.loads(call.arguments_json)
                said.calls.append((call.call_id, call.name, json.loads(call.arguments_json)))
            case UsageUpdated():
                said.output_tokens = event.usage.output_tokens
            case Stopped():
                said.finish, said.identity = event.provider_reason, event.response_id
    return said


async def chat_as_the_sdk_reads_it(url: str) -> Said:
    import openai

    said, calls = Said(), {}
    async with openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=0) as client:
        async for chunk in await client.chat.completions.create(model="m", messages=[], stream=True):
            said.identity = said.identity or chunk.id
            # Groq says it in a field of its own.
            beside = ((chunk.model_extra or {}).get("x_groq") or {}).get("usage")
            if chunk.usage is not None:
                said.output_tokens = chunk.usage.completion_tokens
            elif beside:
                said.output_tokens = beside["completion_tokens"]
            for choice in chunk.choices:
                said.text += choice.delta.content or ""
                said.refusal += choice.delta.refusal or ""
                extra = choice.delta.model_extra or {}
                said.reasoning += extra.get("reasoning_content") or extra.get("reasoning") or ""
                said.finish = choice.finish_reason or said.finish
                tokens = (choice.logprobs.content if choice.logprobs else None) or []
                said.logprobs += [(token.token, token.logprob, len(token.top_logprobs)) for token in tokens]
                for call in choice.delta.tool_calls or []:
                    known = calls.setdefault(call.index, {"id": call.id, "name": "", "arguments": ""})
                    assert call.function is not None
                    known["name"] += call.function.name or ""
                    known["arguments"] += call.function.arguments or ""
    said.calls = [(call["id"], call["name"], json.loads(call["arguments"] or "{}")) for call in calls.values()]
    return said


async def messages_as_the_sdk_reads_them(url: str) -> Said:
    import anthropic

    said, beside = Said(), []
    async with (
        anthropic.AsyncAnthropic(api_key="k", base_url=url, max_retries=0) as client,
        client.messages.stream(model="m", max_tokens=9, messages=[]) as stream,
    ):
        async for event in stream:
            if event.type == "message_delta":
                beside = (event.usage.model_extra or {}).get("iterations") or beside
        message = await stream.get_final_message()
    for block in message.content:
        if block.type == "text":
            said.text += block.text
        elif block.type == "thinking":
            said.reasoning += block.thinking
            said.proofs.append(block.signature)
        elif block.type == "tool_use":
            said.calls.append((block.id, block.name, block.input))
    said.finish, said.identity, said.output_tokens = message.stop_reason, message.id, message.usage.output_tokens
    # What an advisor wrote within the call is beside the whole, in a field that the SDK does not type.
    said.output_tokens += sum(each["output_tokens"] for each in beside if each["type"] != "message")
    return said


async def bytes_of(application: Any, model: str, **body: Any) -> bytes:
    asked = {"model": model, "stream": True, "stream_options": {"include_usage": True}, **body}
    reply = application(Request("POST", "/", {}, json.dumps(asked).encode()))
    return b"".join([piece async for piece in reply.pieces])


def blocks_of_every_kind() -> bytes:
    """One stream with the blocks that the fake does not send."""
    message = {"id": "m1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "usage": {"input_tokens": 1, "output_tokens": 1}}}
    ]
    for index, (start, deltas) in enumerate(BLOCKS):
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": "pause_turn", "stop_sequence": None}
    events += [{"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9}}, {"type": "message_stop"}]
    lines = [f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
    return "".join(lines).encode()


def real_streams(ending: str) -> list[bytes]:
    if not RECORDINGS.is_file():
        return []
    with RECORDINGS.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [
        each["response"].encode()
        for each in found
        if each["path"].endswith(ending) and each["stream"] and '"error"' not in each["response"]
    ]


@pytest.fixture
async def wire() -> AsyncIterator[WireServer]:
    async with serving(lambda request: pytest.fail("no answer chosen")) as made:
        yield made


def serve(wire: WireServer, data: bytes) -> None:
    wire.application = recorded.application(data, 200, "text/event-stream", recorded.every(50))


@pytest.mark.parametrize("orders", CHAT_ORDERS)
async def test_chat_is_read_as_the_sdk_reads_it(wire: WireServer, orders: str) -> None:
    wanted = {"logprobs": True, "top_logprobs": 2} if "logprobs" in orders else {}
    data = await bytes_of(openai_wire.application, f"fake{orders}", **wanted)
    serve(wire, data)
    theirs = await chat_as_the_sdk_reads_it(wire.url)
    assert ours(ChatReader("p", "m", "p", CallCheck({})), data) == theirs
    assert theirs.finish


@pytest.mark.parametrize("orders", MESSAGES_ORDERS)
async def test_messages_are_read_as_the_sdk_reads_them(wire: WireServer, orders: str) -> None:
    data = await bytes_of(anthropic_wire.application, f"fake{orders}")
    serve(wire, data)
    theirs = await messages_as_the_sdk_reads_them(wire.url)
    assert ours(MessagesReader("p", "m", "anthropic", CallCheck({})), data) == theirs
    assert theirs.finish


async def test_blocks_of_every_kind_are_read_as_the_sdk_reads_them(wire: WireServer) -> None:
    data = blocks_of_every_kind()
    serve(wire, data)
    theirs = await messages_as_the_sdk_reads_them(wire.url)
    assert ours(MessagesReader("p", "m", "anthropic", CallCheck({})), data) == theirs
    assert theirs.calls == [("t", "clock", {})]


@pytest.mark.skipif(not RECORDINGS.is_file(), reason="needs ../shared/recordings beside the checkout")
async def test_real_answers_are_read_as_the_sdks_read_them(wire: WireServer) -> None:
    streams = real_streams("/chat/completions")
    for data in streams:
        serve(wire, data)
        reading = ChatReader("p", "m", "p", CallCheck({}), needs_done=False)
        assert ours(reading, data) == await chat_as_the_sdk_reads_it(wire.url)
    messages = real_streams("/messages")
    for data in messages:
        serve(wire, data)
        reading = MessagesReader("p", "m", "anthropic", CallCheck({}))
        assert ours(reading, data) == await messages_as_the_sdk_reads_them(wire.url)
    assert streams
    assert messages
