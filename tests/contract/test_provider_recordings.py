"""Real answers of real providers, served byte for byte to the real SDKs.

Every recorded exchange of a dialect that Janus speaks is served by a local
server, whole and cut into pieces; what the adapter makes of it must equal an
independent reading of the body. The recordings are no part of the repository:
without `../shared/recordings` beside the checkout these tests are skipped.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.providers import recorded
from tests.fakes.providers.http_server import WireServer, serving

from janus_inference.adapters.anthropic import Anthropic
from janus_inference.adapters.openai_chat import OpenAIChat
from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.events import (
    Answer,
    Finished,
    ProviderEvent,
    Started,
    Stopped,
    Timings,
    Usage,
    UsageUpdated,
)
from janus_inference.fold import Fold
from janus_inference.model import (
    Citation,
    Message,
    Opaque,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    Role,
    Text,
    ToolCall,
    ToolDefinition,
)
from janus_inference.ports import Ask, Provider
from janus_inference.profiles import OPENAI, chat_profile
from janus_inference.provider_errors import ProviderFailure
from janus_inference.stopwatch import Unwatched

RECORDINGS = Path(__file__).parents[3] / "shared" / "recordings" / "provider_exchanges.jsonl"
pytestmark = pytest.mark.skipif(not RECORDINGS.is_file(), reason="needs ../shared/recordings beside the checkout")

CUTTERS = {
    "whole": recorded.whole,
    "1 byte": recorded.every(1),
    "7 bytes": recorded.every(7),
    "random": recorded.at_random(20240607),
}
_FINISH = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "end_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "stop_sequence": "stop_sequence",
    "refusal": "refusal",
    "pause_turn": "pause",
    "content_filter": "content_filter",
}
_CODES = {400: "INVALID_ARGUMENT", 404: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED"}


@dataclass
class Reading:
    """What a body says, read without any of Janus's code."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    signatures: list[str] = field(default_factory=list)
    redacted: list[str] = field(default_factory=list)
    opaque: list[tuple[str, Any]] = field(default_factory=list)
    citations: list[tuple[Any, ...]] = field(default_factory=list)
    refusal: str = ""
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    error: bool = False

    def tool_calls(self) -> list[tuple[str, str, Any]]:
        return [(c["id"], c["name"], json.loads(c["arguments"] or "{}")) for c in self.calls.values()]


def exchanges(dialect: str) -> list[dict[str, Any]]:
    ending = {"openai_chat": "/chat/completions", "anthropic": "/messages"}[dialect]
    with RECORDINGS.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [each for each in found if each["path"].endswith(ending)]


def sse(body: str) -> Iterator[Any]:
    for line in body.replace("\r\n", "\n").split("\n"):
        if line.startswith("data:") and line[5:].strip() != "[DONE]":
            yield json.loads(line[5:])


def read_chat(exchange: dict[str, Any]) -> Reading:
    reading, details = Reading(), list[dict[str, Any]]()
    streamed = exchange["stream"]
    for chunk in sse(exchange["response"]) if streamed else [json.loads(exchange["response"])]:
        reading.error |= "error" in chunk
        usage = chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage")
        reading.usage = usage or reading.usage
        for choice in chunk.get("choices", []):
            said = choice["delta" if streamed else "message"]
            reading.text += said.get("content") or ""
            reading.reasoning += said.get("reasoning_content") or said.get("reasoning") or ""
            reading.refusal += said.get("refusal") or ""
            reading.opaque += [("executed_tools", said["executed_tools"])] if said.get("executed_tools") else []
            for note in said.get("annotations") or []:
                if note["type"] == "url_citation":
                    cited = note["url_citation"]
                    place = (cited.get("start_index") or 0, cited.get("end_index") or 0)
                    source = (cited.get("title") or "", cited["url"], cited.get("content") or "")
                    reading.citations.append((*place, *source))
                else:
                    reading.opaque.append(("annotations", {"annotations": [note]}))
            for detail in said.get("reasoning_details") or []:
                last = details[-1] if details and streamed else {}
                if (last.get("type"), last.get("index")) == (detail["type"], detail.get("index")):
                    grown = {name: (last.get(name) or "") + (detail.get(name) or "") for name in ("text", "summary")}
                    last |= {name: value for name, value in detail.items() if value is not None}
                    last |= {name: value for name, value in grown.items() if name in last}
                else:
                    details.append(dict(detail))
            reading.finish = choice.get("finish_reason") or reading.finish
            for place, call in enumerate(said.get("tool_calls") or []):
                known = reading.calls.setdefault(call.get("index", place), {"id": "", "name": "", "arguments": ""})
                known["id"] = known["id"] or call.get("id") or ""
                known["name"] += call["function"].get("name") or ""
                known["arguments"] += call["function"].get("arguments") or ""
    reading.opaque += [("reasoning_details", details)] if details else []
    return reading


def read_messages(exchange: dict[str, Any]) -> Reading:
    reading = Reading()
    blocks: list[dict[str, Any]] = []
    if not exchange["stream"]:
        message = json.loads(exchange["response"])
        blocks, reading.usage, reading.finish = message["content"], message["usage"], message["stop_reason"]
        reading.refusal = explanation(message)
        blocks = [{**b, "json": json.dumps(b["input"])} if b["type"] == "tool_use" else b for b in blocks]
    else:
        for event in sse(exchange["response"]):
            if event["type"] == "message_start":
                reading.usage = event["message"]["usage"]
            elif event["type"] == "content_block_start":
                blocks.append({**event["content_block"], "json": ""})
            elif event["type"] == "content_block_delta":
                block, delta = blocks[event["index"]], event["delta"]
                for key in ("text", "thinking", "signature"):
                    if key in delta:
                        block[key] += delta[key]
                block["json"] += delta.get("partial_json", "")
                if "citation" in delta:
                    block["citations"] = [*(block.get("citations") or []), delta["citation"]]
                if block["type"] not in ("text", "thinking", "tool_use") and delta["type"] != "input_json_delta":
                    added = {name: value for name, value in delta.items() if name != "type" and value is not None}
                    block |= {name: (block.get(name) or "") + value for name, value in added.items()}
            elif event["type"] == "message_delta":
                reading.finish = event["delta"]["stop_reason"]
                reading.refusal = explanation(event["delta"])
                reading.usage = {**reading.usage, **{k: v for k, v in event["usage"].items() if v is not None}}
    for place, block in enumerate(blocks):
        if block["type"] == "text":
            reading.text += block["text"]
            reading.citations += [(block["text"], each) for each in block.get("citations") or []]
        elif block["type"] == "thinking":
            reading.reasoning += block["thinking"]
            reading.signatures.append(block["signature"])
        elif block["type"] == "redacted_thinking":
            reading.redacted.append(block["data"])
        elif block["type"] == "tool_use":
            reading.calls[place] = {"id": block["id"], "name": block["name"], "arguments": block["json"]}
            if block.get("caller") not in (None, {"type": "direct"}):
                reading.opaque.append(("tool_use", {"id": block["id"], "caller": block["caller"]}))
        else:
            whole = {name: value for name, value in block.items() if name != "json"}
            if block.get("json"):
                whole["input"] = json.loads(block["json"])
            reading.opaque.append((block["type"], whole))
    return reading


def explanation(said: dict[str, Any]) -> str:
    """In what words a model declined."""
    words = (said.get("stop_details") or {}).get("explanation") or ""
    return words if said["stop_reason"] == "refusal" else ""


def normal_usage(dialect: str, said: dict[str, Any]) -> tuple[int, int, int, int]:
    """Uncached, read, written and output tokens."""
    if dialect == "anthropic":
        keys = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
        # What others did within the call, such as an advisor, is said in its iterations alone.
        others = [each for each in said.get("iterations") or [] if each["type"] != "message"]
        uncached, read, written, output = (sum(each.get(key) or 0 for each in [said, *others]) for key in keys)
        return uncached, read, written, output
    details = said.get("prompt_tokens_details") or {}
    read = details.get("cached_tokens")
    if read is None:
        read = said.get("prompt_cache_hit_tokens", said.get("cached_tokens")) or 0
    written = details.get("cache_write_tokens") or 0
    return said["prompt_tokens"] - read - written, read, written, said["completion_tokens"]


def differences(dialect: str, reading: Reading, answer: Answer) -> list[str]:
    parts = answer.message.parts
    calls = [(part.call_id, part.name, json.loads(part.arguments_json)) for part in parts if isinstance(part, ToolCall)]
    thoughts = [part for part in parts if isinstance(part, Reasoning)]
    usage: Usage = answer.usage
    counted = (
        usage.input_uncached_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
    )
    pairs: list[tuple[str, Any, Any]] = [
        ("text", reading.text, "".join(part.text for part in parts if isinstance(part, Text))),
        ("reasoning", reading.reasoning, "".join(part.text or "" for part in thoughts)),
        ("calls", reading.tool_calls(), calls),
        ("finish", _FINISH[str(reading.finish)], answer.reason.value),
        ("provider's reason", reading.finish, answer.provider_reason),
        ("usage", normal_usage(dialect, reading.usage), counted),
        ("usage is reported", False, usage.estimated),
        ("refusal", reading.refusal, "".join(part.text for part in parts if isinstance(part, Refusal))),
        ("opaque", reading.opaque, [(part.type, json.loads(part.data)) for part in parts if isinstance(part, Opaque)]),
        ("citations", reading.citations, [cited(dialect, part, parts) for part in parts if isinstance(part, Citation)]),
    ]
    if dialect == "anthropic":
        proofs = [part.signature.decode() for part in thoughts if part.redacted is None]
        redacted = [part.redacted.decode() for part in thoughts if part.redacted is not None]
        pairs += [
            ("signatures", reading.signatures, proofs),
            ("redacted", reading.redacted, redacted),
        ]
    return [f"{name}: {want!r} became {got!r}" for name, want, got in pairs if want != got]


def cited(dialect: str, part: Citation, parts: tuple[Part, ...]) -> tuple[Any, ...]:
    """A source with the text that it stands behind, as its issuer wrote it; where nothing takes it back, in ours."""
    text = parts[part.part_index]
    assert isinstance(text, Text)
    if dialect != "anthropic":
        return (part.start, part.end, part.title, part.uri, part.quote)
    source = json.loads(part.data)
    assert part.issuer
    assert part.quote == source["cited_text"]
    return (text.text, source)


def provider_for(dialect: str, exchange: dict[str, Any], url: str) -> Provider:
    if dialect == "anthropic":
        return Anthropic("recorded", url, "test-key", issuer="anthropic")
    profile = OPENAI if exchange["provider"] == "openai" else chat_profile(exchange["host"])
    client = OpenAIClient(url, "test-key")
    return OpenAIChat("recorded", client, profile, issuer="recorded", has_key=True, needs_key=True)


def prompt_for(exchange: dict[str, Any]) -> Prompt:
    """A short prompt with the recorded tools, so that calls are checked against their schemas."""
    tools = []
    for tool in (exchange["request"] or {}).get("tools") or []:
        said = tool.get("function", tool)
        schema = said.get("parameters", said.get("input_schema"))
        if schema is not None and "name" in said:
            tools.append(ToolDefinition(said["name"], parameters_schema_json=json.dumps(schema)))
    message = Message(Role.USER, (Text("hello"),))
    return Prompt((message,), model="recorded/model", tools=tuple(tools))


async def heard(provider: Provider, prompt: Prompt) -> tuple[list[ProviderEvent], ProviderFailure | None]:
    """All that the adapter makes of an answer, and what ended it if it is not whole."""
    events: list[ProviderEvent] = []
    try:
        async with provider.stream(Ask(prompt, "model", Unwatched(), 5.0)) as batches:
            async for batch in batches:
                events += batch
    except ProviderFailure as failure:
        return events, failure
    return events, None


def folded(events: list[ProviderEvent]) -> Answer:
    """The whole answer that the events add up to."""
    fold, usage = Fold(), Usage()
    fold.add(Started("gen_1", "recorded", "model", 1))
    for event in events:
        if isinstance(event, Stopped):
            fold.add(Finished(event.reason, event.provider_reason, usage, Timings(0, 0, 0), event.response_id))
            continue
        if isinstance(event, UsageUpdated):
            usage = event.usage
        fold.add(event)
    return fold.answer()


async def outcome(exchange: dict[str, Any], dialect: str, wire: WireServer, cutter: Any) -> list[str]:
    """What differs between the body and the adapter's answer; empty when nothing does."""
    kind = "text/event-stream" if exchange["stream"] and exchange["status"] == 200 else "application/json"
    body = exchange["response"].encode()
    wire.application = recorded.application(body, exchange["status"], kind, cutter)
    provider = provider_for(dialect, exchange, wire.url)
    try:
        events, failure = await heard(provider, prompt_for(exchange))
    finally:
        await provider.close()
    if exchange["status"] != 200:
        # A model that calls no tool as it should is not the caller's fault.
        model_failed = "tool_use_failed" in json.dumps(exchange["response"])
        got, wanted = failure and failure.error.code, "UNAVAILABLE" if model_failed else _CODES[exchange["status"]]
        return [] if got == wanted and not events else [f"{got} is not {wanted}"]
    reading = (read_chat if dialect == "openai_chat" else read_messages)(exchange)
    if reading.error:
        return [] if events and failure is not None else ["an error came as an answer"]
    return [str(failure)] if failure is not None else differences(dialect, reading, folded(events))


@pytest.mark.parametrize("cut", CUTTERS)
@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic"])
async def test_recorded_answers_are_read_as_they_were_written(dialect: str, cut: str, record_property: Any) -> None:
    wrong: dict[str, list[str]] = {}
    served = 0
    async with serving(lambda request: pytest.fail("no recording chosen")) as wire:
        for exchange in exchanges(dialect):
            # A body in one piece is read whole before it is parsed: one way of cutting shows that.
            if cut not in ("whole", "random") and not exchange["stream"]:
                continue
            served += 1
            found = await outcome(exchange, dialect, wire, CUTTERS[cut])
            if found:
                wrong[exchange["id"]] = found
    record_property("exchanges", served)
    print(f"{dialect}, {cut}: {served - len(wrong)} of {served} recorded exchanges pass")  # noqa: T201
    assert not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)
    assert served
