"""Spans of model calls: the standard names, and not a word of what was said."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.fakes.providers.setups import events_of, generation, prompt

from janus_inference.adapters.scripted import Scripted
from janus_kit.errors import JanusError
from janus_kit.telemetry import tracing


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure(endpoint=None, service="test", version="0", exporter=exporter)
    yield exporter
    tracing.shutdown()


async def test_a_call_to_a_model_is_a_client_span(spans: InMemorySpanExporter) -> None:
    await events_of(generation(Scripted("upstream", 0)), prompt("a private question"))
    (span,) = spans.get_finished_spans()
    attributes = dict(span.attributes or {})
    assert (span.name, span.kind) == ("chat fake", SpanKind.CLIENT)
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.provider.name"] == "upstream"
    assert attributes["gen_ai.request.model"] == "fake"
    assert attributes["gen_ai.request.stream"] is True
    assert float(str(attributes["gen_ai.response.time_to_first_chunk"])) >= 0
    assert attributes["gen_ai.usage.input_tokens"] == 3
    assert int(str(attributes["gen_ai.usage.output_tokens"])) > 0
    assert "private" not in str(attributes)


async def test_a_failed_call_says_how(spans: InMemorySpanExporter) -> None:
    with pytest.raises(JanusError):
        await generation(Scripted("upstream", 0)).answer(prompt("/fail rate_limited"))
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "rate_limited"
