"""What people and models say is in telemetry where that is switched on, within bounds, and nowhere else."""

import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY, generate_latest
from tests.fakes.providers.http_server import Cut, Reply, Request, serving
from tests.fakes.providers.setups import CALLER, Stores, events_of, prompt
from tests.fakes.providers.told import falling_silent, telling

from janus_inference.adapters.openai_chat import OpenAIChat
from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.events import (
    Failed,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Stopped,
    TextDelta,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallStarted,
)
from janus_inference.generation import Generation
from janus_inference.model import (
    Document,
    Image,
    Media,
    Message,
    Prompt,
    Reasoning,
    Role,
    Text,
    ToolCall,
    ToolDefinition,
    ToolResult,
)
from janus_inference.profiles import OPENAI
from janus_inference.provider_errors import Refused, classify
from janus_inference.routing import Alias
from janus_inference.settings import RoutingSettings
from janus_inference.telemetry import asked
from janus_inference.telemetry.content import MOST_BYTES, Said
from janus_kit.errors import InvalidArgument, JanusError
from janus_kit.telemetry import logging, tracing

CANARY = "kanarienvogel"
ANSWERED = [[TextDelta(0, f"the answer of the {CANARY}")], [Stopped(FinishReason.STOP, "stop")]]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure(endpoint=None, service="test", version="0", exporter=exporter)
    yield exporter
    tracing.shutdown()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    written = io.StringIO()
    logging.configure(level="debug", stream=written)
    yield written
    logging.configure(level="warning")


def everything(spans: InMemorySpanExporter, log: io.StringIO) -> str:
    """All that telemetry tells."""
    told = [span.to_json() for span in spans.get_finished_spans()]
    return "\n".join([*told, log.getvalue(), generate_latest(REGISTRY).decode()])


def secretive(model: str = "upstream/fake", **fields: Any) -> Prompt:
    return prompt(
        f"the question of the {CANARY}",
        model=model,
        system=f"you are a {CANARY}",
        stop=(CANARY,),
        tools=(ToolDefinition(f"{CANARY}_tool", f"feeds a {CANARY}"),),
        labels={"song": CANARY},
        **fields,
    )


def over_http(url: str, stores: Stores) -> Generation:
    """A generation over a provider that speaks HTTP."""
    client = OpenAIClient(url, "key")
    provider = OpenAIChat("upstream", client, OPENAI, issuer="openai", has_key=True, needs_key=True)
    return stores.generation(provider)


def saying(*pieces: bytes, status: int = 200, kind: str = "text/event-stream", cut: bool = False) -> Reply:
    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        if cut:
            raise Cut

    return Reply(body(), status=status, content_type=kind)


def chunk(**fields: Any) -> bytes:
    return f"data: {json.dumps({'id': '1', **fields})}\n\n".encode()


WORD = chunk(choices=[{"delta": {"content": f"{CANARY} "}}])
ERROR = json.dumps({"error": {"message": f"bad {CANARY}", "type": f"x {CANARY}", "param": f"a {CANARY}"}}).encode()
REPLIES = {
    "success": lambda: saying(WORD, chunk(choices=[{"delta": {}, "finish_reason": "stop"}]), b"data: [DONE]\n\n"),
    "refused": lambda: saying(ERROR, status=400, kind="application/json"),
    "overloaded": lambda: saying(ERROR, status=503, kind="application/json"),
    "error in the stream": lambda: saying(WORD, b"data: " + ERROR + b"\n\n"),
    "garbage": lambda: saying(WORD, f"data: {{{CANARY}\n\n".encode()),
    "cut": lambda: saying(WORD, cut=True),
    "a web page": lambda: saying(f"<p>{CANARY}</p>".encode(), kind="text/html"),
}


@pytest.mark.parametrize("reply", REPLIES)
async def test_no_word_is_told_of_what_a_provider_says(
    reply: str, stores: Stores, spans: InMemorySpanExporter, log: io.StringIO
) -> None:
    def application(request: Request) -> Reply:
        assert CANARY in request.body.decode()
        return REPLIES[reply]()

    async with serving(application) as wire:
        using = over_http(f"{wire.url}/v1", stores)
        try:
            events = await events_of(using, secretive())
            assert reply == "success" or isinstance(events[-1], Failed)
        except JanusError:
            assert reply != "success"
        await using.desk.providers["upstream"].close()
    (span,) = spans.get_finished_spans()
    assert ("error.type" in dict(span.attributes or {})) == (reply != "success")
    assert CANARY not in everything(spans, log)


async def test_no_word_is_told_of_a_call_that_is_cancelled(
    stores: Stores, spans: InMemorySpanExporter, log: io.StringIO
) -> None:
    events = stores.generation(falling_silent([TextDelta(0, CANARY)])).run(secretive(), CALLER)
    while not isinstance((await anext(events)).event, TextDelta):
        pass
    await events.aclose()
    assert len(spans.get_finished_spans()) == 1
    assert CANARY not in everything(spans, log)


async def test_no_word_is_told_of_retries_fallbacks_and_hedges(
    stores: Stores, spans: InMemorySpanExporter, log: io.StringIO
) -> None:
    overloaded = classify("one", "fake", Refused(529, message=CANARY))
    providers = {"one": telling(overloaded), "two": falling_silent(), "three": telling(*ANSWERED)}
    alias = Alias((("one/fake", 0), ("two/fake", 0), ("three/fake", 0)), hedge_after=0.001)
    using = stores.generation(providers, routing=RoutingSettings(backoff_s=0.001), aliases={"sure": alias})
    assert CANARY in str(await events_of(using, secretive("sure")))
    assert len(spans.get_finished_spans()) == 3
    assert "attempt failed" in log.getvalue()
    assert CANARY not in everything(spans, log)


async def test_a_model_that_a_caller_makes_up_is_no_label(stores: Stores) -> None:
    await events_of(stores.generation(telling(*ANSWERED)), secretive(f"upstream/{CANARY}"))
    assert CANARY not in generate_latest(REGISTRY).decode()


async def test_what_was_asked_and_answered_is_in_the_span_when_that_is_wanted(
    stores: Stores, spans: InMemorySpanExporter, log: io.StringIO
) -> None:
    call = ToolCall("call_1", "weather", '{"city":"Rome"}')
    provider = telling(
        [ReasoningDelta(0, text="let me "), ReasoningDelta(0, text="think")],
        [TextDelta(1, "It is "), TextDelta(1, "fine")],
        [RefusalDelta(3, "no more")],
        [ToolCallStarted(2, "call_1", "weather"), ToolCallArguments(2, '{"city":'), ToolCallCompleted(2, call)],
        [Stopped(FinishReason.TOOL_CALLS, "tool_calls")],
    )
    conversation = (
        Message(Role.USER, (Text("look"), Image(Media("image/png", data=b"\x89PNG secret"))), name="ann"),
        Message(Role.ASSISTANT, (Reasoning(summary="hm", signature=b"proof", issuer="openai"), call)),
        Message(Role.TOOL, (ToolResult("call_1", (Text("sun"),)),)),
        Message(Role.USER, (Document(Media("application/pdf", uri="https://example.org/a.pdf")),)),
    )
    using = stores.generation(provider, record_content=True)
    await events_of(using, Prompt(conversation, model="upstream/fake", system="be brief", stop=("END",)))
    (span,) = spans.get_finished_spans()
    attributes = dict(span.attributes or {})
    called = {"type": "tool_call", "id": "call_1", "name": "weather", "arguments": '{"city":"Rome"}'}
    assert json.loads(str(attributes["gen_ai.system_instructions"])) == [{"type": "text", "content": "be brief"}]
    assert attributes["gen_ai.request.stop_sequences"] == ("END",)
    assert json.loads(str(attributes["gen_ai.input.messages"])) == [
        {
            "role": "user",
            "name": "ann",
            "parts": [
                {"type": "text", "content": "look"},
                {"type": "blob", "modality": "image", "mime_type": "image/png"},
            ],
        },
        {"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"}, called]},
        {
            "role": "tool",
            "parts": [{"type": "tool_call_response", "id": "call_1", "response": [{"type": "text", "content": "sun"}]}],
        },
        {
            "role": "user",
            "parts": [
                {
                    "type": "uri",
                    "modality": "document",
                    "mime_type": "application/pdf",
                    "uri": "https://example.org/a.pdf",
                }
            ],
        },
    ]
    assert json.loads(str(attributes["gen_ai.output.messages"])) == [
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "let me think"},
                {"type": "text", "content": "It is fine"},
                called,
                {"type": "refusal", "content": "no more"},
            ],
            "finish_reason": "tool_calls",
        }
    ]
    assert "janus.content.cut" not in attributes
    assert "be brief" not in log.getvalue() + generate_latest(REGISTRY).decode()


async def test_half_an_answer_is_told_as_one_that_failed(stores: Stores, spans: InMemorySpanExporter) -> None:
    using = stores.generation(falling_silent([TextDelta(0, "half")]), record_content=True)
    events = using.run(prompt(), CALLER)
    while not isinstance((await anext(events)).event, TextDelta):
        pass
    await events.aclose()
    (span,) = spans.get_finished_spans()
    (message,) = json.loads(str(dict(span.attributes or {})["gen_ai.output.messages"]))
    assert (message["parts"], message["finish_reason"]) == ([{"type": "text", "content": "half"}], "error")


@pytest.mark.parametrize("with_content", [True, False])
async def test_why_a_provider_refused_is_told_where_content_is(
    stores: Stores, spans: InMemorySpanExporter, with_content: bool
) -> None:
    """Its text may quote the prompt."""
    refusal = classify("one", "fake", Refused(400, message="messages.1: tool_use ids were found without tool_result"))
    using = stores.generation(telling(refusal), record_content=with_content)
    with pytest.raises(InvalidArgument):
        await using.answer(prompt(), CALLER)
    (span,) = spans.get_finished_spans()
    told = dict(span.attributes or {}).get("janus.upstream.message")
    assert told == (refusal.said if with_content else None)


@pytest.mark.parametrize("letter", ["x", "é", "\x00", '"', "😀"])
def test_a_long_conversation_is_cut_to_its_newest_part_and_marked(letter: str) -> None:
    messages = tuple(Message(Role.USER, (Text(f"{number} {letter * 20_000}"),)) for number in range(8))
    newest = Message(Role.USER, (Text("the newest"),))
    attributes = asked(Prompt((*messages, newest), system="short"), "gen_1", 1, with_content=True)
    told = str(attributes["gen_ai.input.messages"])
    assert len(told.encode()) <= MOST_BYTES
    kept = json.loads(told)
    assert kept[-1]["parts"] == [{"type": "text", "content": "the newest"}]
    assert len(kept) > 1
    assert kept[0]["parts"][0]["content"].endswith("[…]")
    assert attributes["janus.content.cut"] == ["gen_ai.input.messages"]


def test_a_long_answer_is_cut_and_marked() -> None:
    said = Said()
    for _ in range(100):
        said.add(TextDelta(0, "é" * 1000))
    said.add(ToolCallCompleted(1, ToolCall("c", "n", "{}")))
    attributes = said.attributes(FinishReason.STOP)
    told = str(attributes["gen_ai.output.messages"])
    assert len(told.encode()) <= MOST_BYTES
    assert json.loads(told)[0]["finish_reason"] == "stop"
    assert attributes["janus.content.cut"] == ["gen_ai.output.messages"]


def test_what_cannot_be_sent_is_replaced() -> None:
    said = Said()
    said.add(TextDelta(0, "half a pair: \ud83d"))
    told = str(said.attributes(None)["gen_ai.output.messages"])
    assert told.encode()
    assert re.search(r"half a pair: \?", told)


def test_bytes_in_an_address_are_bytes() -> None:
    image = Image(Media("image/png", uri=f"data:image/png;base64,{CANARY}"))
    attributes = asked(Prompt((Message(Role.USER, (image,)),)), "gen_1", 1, with_content=True)
    assert CANARY not in str(attributes)
