"""Real Responses answers, served byte for byte to the real SDK; see test_provider_recordings.

Each is read by the adapter and, apart from it, by plain code here and by the
SDK's own typed objects; all three must agree.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.fakes.providers import recorded
from tests.fakes.providers.http_server import WireServer, serving
from tests.fakes.providers.responses_recordings import ISSUER, RECORDINGS, exchanges, functions, profile_for

from janus_inference.adapters.openai_client import OpenAIClient, make_client
from janus_inference.adapters.openai_responses import OpenAIResponses
from janus_inference.events import (
    Finished,
    FinishReason,
    ProviderEvent,
    Started,
    Stopped,
    Timings,
    ToolCallCompleted,
    Usage,
    UsageUpdated,
)
from janus_inference.fold import Fold
from janus_inference.model import (
    Citation,
    Message,
    Opaque,
    Prompt,
    Reasoning,
    Refusal,
    Role,
    Text,
    ToolCall,
)
from janus_inference.ports import Ask
from janus_inference.provider_errors import ProviderFailure
from janus_inference.stopwatch import Unwatched

pytestmark = pytest.mark.skipif(not RECORDINGS.is_file(), reason="needs ../shared/recordings beside the checkout")

CUTTERS = {
    "whole": recorded.whole,
    "1 byte": recorded.every(1),
    "7 bytes": recorded.every(7),
    "random": recorded.at_random(20240607),
}
# Made by background mode and asked for again later, which Janus does not do.
_NOT_MADE = ("queued", "in_progress")


@dataclass
class Reading:
    """What a body says, read without any of Janus's code; parts as tuples."""

    status: str = ""
    parts: list[tuple[Any, ...]] = field(default_factory=list)
    citations: list[tuple[Any, ...]] = field(default_factory=list)
    usage: tuple[int, ...] = ()
    finish: str = "stop"


def server_events(body: str) -> Iterator[Any]:
    for line in body.replace("\r\n", "\n").split("\n"):
        if line.startswith("data:") and line[5:].strip() != "[DONE]":
            yield json.loads(line[5:])


def answer_of(exchange: dict[str, Any]) -> dict[str, Any]:
    """The whole answer: of a stream the one in its last event, with the deltas held against it."""
    if not exchange["stream"]:
        return dict(json.loads(exchange["response"]))
    texts: dict[tuple[Any, ...], str] = {}
    items: dict[int, Any] = {}
    for event in server_events(exchange["response"]):
        kind = event["type"]
        if kind in ("response.output_text.delta", "response.reasoning_text.delta"):
            key = (event["output_index"], event["content_index"])
            texts[key] = texts.get(key, "") + event["delta"]
        if kind == "response.output_item.done":
            items[event["output_index"]] = event["item"]
        if kind in ("response.completed", "response.incomplete"):
            answer = event["response"]
    for (item, content), text in texts.items():
        assert answer["output"][item]["content"][content]["text"] == text
    # Reasoning is encrypted anew for the last event; that of its item is what the provider wants back.
    whole = [items[index] for index in sorted(items)]
    assert [without_cipher(item) for item in whole] == [without_cipher(item) for item in answer["output"]]
    return {**answer, "output": whole}


def without_cipher(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != "encrypted_content"}


def read(answer: dict[str, Any]) -> Reading:
    reading = Reading(status=answer["status"])
    for item in answer["output"]:
        kind = item["type"]
        if kind == "message":
            if item.get("phase"):
                reading.parts.append(("opaque", "message", {"phase": item["phase"]}))
            for content in item["content"]:
                if content["type"] == "refusal":
                    reading.parts.append(("refusal", content["refusal"]))
                    reading.finish = "refusal"
                    continue
                reading.parts.append(("text", content["text"]))
                for note in content.get("annotations") or []:
                    at = note.get("index"), note.get("index")
                    start, end = (note["start_index"], note["end_index"]) if "start_index" in note else at
                    title = note.get("title", note.get("filename"))
                    held = [note[key] for key in ("container_id", "file_id") if key in note]
                    reading.citations.append((start, end, title, note.get("url", "/".join(held))))
        elif kind == "function_call":
            if item.get("namespace"):
                extra = {"call_id": item["call_id"], "namespace": item["namespace"]}
                reading.parts.append(("opaque", "function_call", extra))
            reading.parts.append(("call", item["call_id"], item["name"], item["arguments"] or "{}"))
            reading.finish = "tool_calls"
        elif kind == "reasoning":
            text = "\n\n".join(part["text"] for part in item.get("content") or [])
            summary = "\n\n".join(part["text"] for part in item["summary"])
            reading.parts.append(("reasoning", text or None, None if text else summary or None, item))
        else:
            reading.parts.append(("opaque", kind, item))
            if item.get("execution") == "client" and reading.finish == "stop":
                reading.finish = "other"
    if said := answer.get("usage"):
        cached = said["input_tokens_details"]
        read_, written = cached.get("cached_tokens") or 0, cached.get("cache_write_tokens") or 0
        reading.usage = (
            said["input_tokens"] - read_ - written,
            read_,
            written,
            said["output_tokens"],
            said["output_tokens_details"]["reasoning_tokens"],
        )
    return reading


def read_again(events: list[ProviderEvent]) -> Reading:
    """The same of Janus's events, added up as a generation adds them."""
    fold, usage = Fold(), Usage()
    stopped = events[-1]
    assert isinstance(stopped, Stopped)
    fold.add(Started("g", "recorded", "model", 1))
    for event in events[:-1]:
        if isinstance(event, UsageUpdated):
            usage = event.usage
        elif not isinstance(event, Stopped):
            fold.add(event)
    fold.add(Finished(stopped.reason, stopped.provider_reason, usage, Timings(0, 0, 0), stopped.response_id))
    reading = Reading(stopped.provider_reason, finish=stopped.reason.value)
    reading.usage = (
        usage.input_uncached_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
    )
    parts = fold.answer().message.parts
    for part in parts:
        match part:
            case Text(text=text):
                reading.parts.append(("text", text))
            case Refusal(text=text):
                reading.parts.append(("refusal", text))
            case ToolCall():
                reading.parts.append(("call", part.call_id, part.name, part.arguments_json))
            case Reasoning():
                assert part.issuer == ISSUER
                reading.parts.append(("reasoning", part.text, part.summary, json.loads(part.signature)))
            case Opaque():
                assert part.issuer == ISSUER
                reading.parts.append(("opaque", part.type, json.loads(part.data)))
            case Citation():
                assert isinstance(parts[part.part_index], Text)
                reading.citations.append((part.start, part.end, part.title, part.uri))
            case _:
                raise AssertionError(part)
    return reading


def serve(exchange: dict[str, Any], wire: WireServer, cut: str) -> None:
    streamed = exchange["stream"] and exchange["status"] == 200
    kind = "text/event-stream; charset=utf-8" if streamed else "application/json"
    wire.application = recorded.application(exchange["response"].encode(), exchange["status"], kind, CUTTERS[cut])


async def asked(exchange: dict[str, Any], wire: WireServer) -> tuple[list[ProviderEvent], ProviderFailure | None]:
    """The adapter's events, and the failure that ended them."""
    client = OpenAIClient(wire.url, "test-key")
    provider = OpenAIResponses("recorded", client, profile_for(exchange), issuer=ISSUER, has_key=True, needs_key=True)
    tools = tuple(replace(tool, strict=False) for tool in functions(exchange["request"]))
    prompt = Prompt((Message(Role.USER, (Text("hello"),)),), tools=tools)
    events: list[ProviderEvent] = []
    try:
        async with provider.stream(Ask(prompt, "model", Unwatched(), 5)) as batches:
            async for batch in batches:
                events += batch
    except ProviderFailure as failure:
        return events, failure
    finally:
        await provider.close()
    return events, None


async def outcome(exchange: dict[str, Any], wire: WireServer, cut: str) -> list[str]:
    """What differs between the body and the adapter's answer; empty when nothing does."""
    serve(exchange, wire, cut)
    events, failure = await asked(exchange, wire)
    if exchange["status"] != 200:
        refused = failure is not None and failure.error.code == "INVALID_ARGUMENT" and not failure.retryable
        return [] if refused else [f"{failure!r} for a refusal"]
    answer = answer_of(exchange)
    if answer["status"] in _NOT_MADE:
        broken = failure is not None and failure.error.reason == "PROVIDER_STREAM_BROKEN" and not events
        return [] if broken else ["an answer that is not made yet passed for one"]
    if failure is not None:
        return [f"{failure!r} {failure.detail}"]
    want, got = read(answer), read_again(events)
    wrong = [
        f"{name}: {getattr(want, name)!r} became {getattr(got, name)!r}"
        for name in ("status", "parts", "citations", "usage", "finish")
        if getattr(want, name) != getattr(got, name)
    ]
    known = {tool.name for tool in functions(exchange["request"])}
    wrong += [
        f"call of {event.call.name}: {event.problem}"
        for event in events
        if isinstance(event, ToolCallCompleted)
        and not (event.valid_json and (event.valid_schema or event.call.name not in known))
    ]
    return wrong


@pytest.mark.parametrize("cut", CUTTERS)
async def test_recorded_answers_are_read_as_they_were_written(cut: str) -> None:
    wrong: dict[str, list[str]] = {}
    served = 0
    async with serving(lambda request: pytest.fail("no recording chosen")) as wire:
        for exchange in exchanges():
            # A body in one piece is read whole before it is parsed: one way of cutting shows that.
            if cut not in ("whole", "random") and not exchange["stream"]:
                continue
            served += 1
            if found := await outcome(exchange, wire, cut):
                wrong[exchange["id"]] = found
    print(f"openai_responses, {cut}: {served - len(wrong)} of {served} recorded exchanges pass")  # noqa: T201
    assert not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)
    assert served


async def test_the_sdk_s_own_objects_say_the_same() -> None:
    """On the same bytes; the SDK keeps fields that it does not know as well."""
    compared, left_out = 0, []
    async with serving(lambda request: pytest.fail("no recording chosen")) as wire:
        client = make_client(wire.url, "test-key")
        for exchange in exchanges():
            if exchange["status"] != 200:
                continue
            serve(exchange, wire, "whole")
            typed: Any = None
            deltas, items = "", []
            if exchange["stream"]:
                async for event in await client.responses.create(input="hello", stream=True):
                    if event.type == "response.output_text.delta":
                        deltas += event.delta
                    if event.type == "response.output_item.done":
                        items.append(event.item)
                    typed = getattr(event, "response", typed)
                typed.output = items
            else:
                typed = await client.responses.create(input="hello")
            if typed.status in _NOT_MADE:
                left_out.append(exchange["id"])
                continue
            want = read(json.loads(typed.to_json(exclude_unset=True, warnings=False)))
            serve(exchange, wire, "7 bytes" if exchange["stream"] else "whole")
            events, _ = await asked(exchange, wire)
            got = read_again(events)
            assert (got.parts, got.citations, got.usage) == (want.parts, want.citations, want.usage), exchange["id"]
            said = "".join(part[1] for part in got.parts if part[0] == "text")
            assert said == typed.output_text
            assert not exchange["stream"] or said == deltas
            compared += 1
        await client.close()
    answered = [each for each in exchanges() if each["status"] == 200]
    assert compared == len(answered) - len(left_out) > len(left_out)


def test_a_stopped_answer_has_a_reason_that_the_contract_knows() -> None:
    assert {read(answer_of(each)).finish for each in exchanges() if each["status"] == 200} <= {
        reason.value for reason in FinishReason
    }
