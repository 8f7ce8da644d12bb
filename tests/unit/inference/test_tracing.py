"""Spans of model calls: the standard names, one an attempt, and not a word of what was said."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.fakes.providers.setups import CALLER, Stores, events_of, prompt
from tests.fakes.providers.told import STOP, falling_silent, telling

from janus_inference.adapters.scripted import Scripted
from janus_inference.dialects.anthropic_stream import MessagesReader
from janus_inference.dialects.openai_chat_stream import ChatReader
from janus_inference.dialects.openai_responses_stream import ResponsesReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.dialects.reader import Reader
from janus_inference.embedding import Embedding
from janus_inference.events import FinishReason, Started, Stopped, TextDelta, Usage, UsageUpdated
from janus_inference.model import EmbedPurpose, JsonFormat, Routing, Sampling
from janus_inference.ports import Stopwatch, Vectors
from janus_inference.provider_errors import Refused, broken, classify
from janus_inference.routing import Alias, ProviderModels, Routes
from janus_inference.settings import RoutingSettings
from janus_kit.errors import JanusError
from janus_kit.telemetry import tracing

QUICK = RoutingSettings(backoff_s=0.001)
OVERLOADED = classify("one", "fake", Refused(529))


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure(endpoint=None, service="test", version="0", exporter=exporter)
    yield exporter
    tracing.shutdown()


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


async def test_a_call_to_a_model_is_a_client_span(stores: Stores, spans: InMemorySpanExporter) -> None:
    await events_of(stores.generation(Scripted("upstream", 0)), prompt("a private question"))
    (span,) = spans.get_finished_spans()
    attributes = attributes_of(span)
    assert (span.name, span.kind) == ("chat fake", SpanKind.CLIENT)
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.provider.name"] == attributes["janus.provider"] == "upstream"
    assert attributes["gen_ai.request.model"] == "fake"
    assert attributes["gen_ai.request.stream"] is True
    assert float(attributes["gen_ai.response.time_to_first_chunk"]) >= 0
    assert attributes["gen_ai.usage.input_tokens"] == 3
    assert attributes["gen_ai.usage.output_tokens"] > 0
    assert "error.type" not in attributes
    assert "private" not in span.to_json()


async def test_a_span_says_what_was_asked_where_and_what_came_back(stores: Stores, spans: InMemorySpanExporter) -> None:
    usage = Usage(5, cache_read_tokens=3, cache_write_tokens=2, output_tokens=7, reasoning_tokens=4)
    whole = Stopped(FinishReason.STOP, "end", "answer-1", "gpt-5-mini-2025-08-07")
    provider = telling([TextDelta(0, "hi")], [UsageUpdated(usage), whole])
    using = stores.generation({"openai": provider}, openai_api_key="key")
    asked = prompt(
        model="openai/gpt-5-mini",
        sampling=Sampling(temperature=0.5, top_p=0.75, top_k=8, seed=7, frequency_penalty=0.25, presence_penalty=1.5),
        max_output_tokens=100,
        response_format=JsonFormat(),
        stop=("a stop word",),
    )
    started, *_ = await events_of(using, asked)
    assert isinstance(started, Started)
    (span,) = spans.get_finished_spans()
    attributes = dict(attributes_of(span))
    assert attributes.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.75,
        "gen_ai.request.top_k": 8,
        "gen_ai.request.seed": 7,
        "gen_ai.request.frequency_penalty": 0.25,
        "gen_ai.request.presence_penalty": 1.5,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.output.type": "json",
        "gen_ai.response.id": "answer-1",
        "gen_ai.response.model": "gpt-5-mini-2025-08-07",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.cache_creation.input_tokens": 2,
        "gen_ai.usage.reasoning.output_tokens": 4,
        "server.address": "api.openai.com",
        "server.port": 443,
        "janus.provider": "openai",
        "janus.generation.id": started.generation_id,
        "janus.attempt.number": 1,
        "janus.attempt.outcome": "ok",
    }


async def test_a_failed_call_says_how(stores: Stores, spans: InMemorySpanExporter) -> None:
    with pytest.raises(JanusError):
        await stores.generation(Scripted("upstream", 0)).answer(prompt("/fail rate_limited"), CALLER)
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes_of(span)["error.type"] == "rate_limited"


async def test_a_call_that_its_caller_left_is_no_error(stores: Stores, spans: InMemorySpanExporter) -> None:
    events = stores.generation(falling_silent([TextDelta(0, "half")])).run(prompt(), CALLER)
    while not isinstance((await anext(events)).event, TextDelta):
        pass
    await events.aclose()
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.UNSET
    assert attributes_of(span)["janus.attempt.outcome"] == "cancelled"
    assert "error.type" not in attributes_of(span)
    assert attributes_of(span)["gen_ai.usage.output_tokens"] > 0


async def test_attempts_of_one_call_are_siblings_under_its_rpc(stores: Stores, spans: InMemorySpanExporter) -> None:
    providers = {"one": telling(OVERLOADED), "two": telling([TextDelta(0, "hi")], [STOP])}
    using = stores.generation(providers, routing=QUICK)
    with tracing.server_span("janus.inference.v1.InferenceService/StreamGenerate", {}) as rpc:
        assert rpc is not None
        await events_of(using, prompt(model="one/fake", routing=Routing(("two/fake",))))
        rpc.end()
    one, two, parent = spans.get_finished_spans()
    assert [attributes_of(each)["janus.attempt.number"] for each in (one, two)] == [1, 2]
    assert [attributes_of(each)["janus.provider"] for each in (one, two)] == ["one", "two"]
    assert attributes_of(one)["janus.generation.id"] == attributes_of(two)["janus.generation.id"]
    assert one.parent == two.parent == parent.context


async def test_a_hedge_and_the_attempt_that_it_beats_are_siblings(stores: Stores, spans: InMemorySpanExporter) -> None:
    alias = Alias((("one/fake", 0), ("two/fake", 0)), hedge_after=0.001)
    providers = {"one": falling_silent(), "two": telling([TextDelta(0, "hi")], [STOP])}
    using = stores.generation(providers, routing=QUICK, aliases={"sure": alias})
    with tracing.server_span("janus.inference.v1.InferenceService/StreamGenerate", {}) as rpc:
        assert rpc is not None
        await events_of(using, prompt(model="sure"))
        rpc.end()
    *attempts, parent = spans.get_finished_spans()
    outcomes = {
        attributes_of(each)["janus.provider"]: attributes_of(each)["janus.attempt.outcome"] for each in attempts
    }
    assert outcomes == {"one": "cancelled", "two": "ok"}
    assert {each.parent.span_id for each in attempts if each.parent} == {parent.context.span_id}


async def test_an_embedding_is_a_client_span(stores: Stores, spans: InMemorySpanExporter) -> None:
    class Embedder:
        most_inputs, most_tokens = 8, 100

        async def embed(
            self,
            model: str,
            inputs: Sequence[str],
            dimensions: int | None,
            purpose: EmbedPurpose | None,
            stopwatch: Stopwatch,
        ) -> Vectors:
            return Vectors(tuple([0.5, 0.5] for _ in inputs), Usage(4))

    routes = Routes({"one": ProviderModels(frozenset(), frozenset(), True)}, {}, "one/chat", "one/vectors")
    embedding = Embedding({"one": Embedder()}, routes, 5, stores.desk())
    await embedding.embed("one/vectors", ["a private text"], caller=CALLER, labels={}, dimensions=2)
    await embedding.close()
    (span,) = spans.get_finished_spans()
    attributes = attributes_of(span)
    assert (span.name, span.kind) == ("embeddings vectors", SpanKind.CLIENT)
    assert attributes["gen_ai.operation.name"] == "embeddings"
    assert attributes["gen_ai.usage.input_tokens"] == 4
    assert attributes["gen_ai.embeddings.dimension.count"] == 2
    assert "private" not in span.to_json()


def _line(event: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()


@pytest.mark.parametrize(
    ("reader", "body"),
    [
        (
            ChatReader("one", "asked", "one", CallCheck({})),
            _line({"id": "1", "model": "told", "choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]})
            + b"data: [DONE]\n\n",
        ),
        (
            MessagesReader("one", "asked", "one", CallCheck({})),
            _line({"type": "message_start", "message": {"id": "1", "model": "told", "usage": {}}})
            + _line({"type": "message_delta", "delta": {"stop_reason": "end_turn"}})
            + _line({"type": "message_stop"}),
        ),
        (
            ResponsesReader("one", "asked", "one", CallCheck({})),
            _line({"type": "response.created", "response": {"id": "1", "model": "told"}})
            + _line({"type": "response.completed", "response": {"id": "1", "status": "completed", "output": []}}),
        ),
    ],
)
def test_the_model_that_answered_is_the_one_that_the_provider_names(reader: Reader, body: bytes) -> None:
    stopped = reader.feed(body)[-1]
    assert isinstance(stopped, Stopped)
    assert (stopped.response_id, stopped.model) == ("1", "told")


async def test_a_failed_piece_of_work_keeps_the_text_of_its_error_to_itself(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="private"), tracing.span("search_memory"):
        raise ValueError("a private text")
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes_of(span)["error.type"] == "ValueError"
    assert "private" not in span.to_json()


async def test_without_a_tracer_nothing_is_described(stores: Stores) -> None:
    assert not tracing.enabled()
    assert await events_of(stores.generation(Scripted("upstream", 0), record_content=True), prompt())


async def test_a_broken_answer_counts_what_it_used(stores: Stores, spans: InMemorySpanExporter) -> None:
    provider = telling([UsageUpdated(Usage(9))], [TextDelta(0, "x" * 40)], broken("upstream", "cut"))
    await events_of(stores.generation(provider), prompt())
    (span,) = spans.get_finished_spans()
    assert attributes_of(span)["gen_ai.usage.input_tokens"] == 9
    assert attributes_of(span)["gen_ai.usage.output_tokens"] == 10
    assert attributes_of(span)["error.type"] == "broken"
