"""Telemetry of the whole service: what a scraper and a collector see of calls over gRPC."""

from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import REGISTRY, generate_latest
from tests.fakes.providers.inference_service import Service, prompt, running

from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import request_pb2
from janus_kit.telemetry import tracing

CANARY = "kanarienvogel"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure(endpoint=None, service="test", version="0", exporter=exporter)
    yield exporter
    tracing.shutdown()


@pytest.fixture
async def inference(postgres_url: str, redis_url: str) -> AsyncIterator[Service]:
    async with running(postgres_url, redis_url) as service:
        yield service


def served(provider: str, model: str, error_type: str = "") -> float:
    labels = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": provider,
        "gen_ai_request_model": model,
        "error_type": error_type,
    }
    return REGISTRY.get_sample_value("gen_ai_server_request_duration_seconds_count", labels) or 0.0


@pytest.mark.parametrize("resumable", [False, True])
async def test_an_attempt_is_part_of_its_rpc_and_named_as_configured(
    inference: Service, spans: InMemorySpanExporter, resumable: bool
) -> None:
    before = served("compatible", "fake")
    await inference.stream(
        request_pb2.Prompt(
            messages=prompt(CANARY).messages, model="compatible/fake", system=CANARY, resumable=resumable
        )
    )
    finished = {span.name: span for span in spans.get_finished_spans()}
    attempt = finished["chat fake"]
    (rpc,) = (span for name, span in finished.items() if name.endswith("InferenceService/StreamGenerate"))
    attributes = dict(attempt.attributes or {})
    assert attempt.parent is not None
    assert (attempt.parent.span_id, attempt.context.trace_id) == (rpc.context.span_id, rpc.context.trace_id)
    assert attributes["server.address"] == "127.0.0.1"
    assert attributes["server.port"] == int(inference.openai.url.rpartition(":")[2])
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert served("compatible", "fake") == before + 1
    assert CANARY not in "".join(span.to_json() for span in finished.values())
    assert CANARY not in generate_latest(REGISTRY).decode()


@pytest.mark.parametrize("resumable", [False, True])
async def test_a_stream_that_ends_in_failure_is_an_error_in_its_trace_though_its_status_is_ok(
    inference: Service, spans: InMemorySpanExporter, resumable: bool
) -> None:
    asked = request_pb2.Prompt(messages=prompt("/break 3").messages, model="scripted/rehearsal", resumable=resumable)
    events = await inference.stream(asked)
    assert events[-1][0] == "failed"
    if resumable:
        resumed = pb.ResumeGenerateRequest(generation_id=events[0][1].generation_id, after_sequence=1)
        again = [response.event async for response in inference.stub.ResumeGenerate(resumed)]
        assert again[-1].WhichOneof("event") == "failed"
    calls = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert len(calls) == 1 + resumable
    for call in calls:
        assert call.status.status_code is StatusCode.ERROR
        attributes = dict(call.attributes or {})
        assert attributes["rpc.status_code"] == "OK"
        assert attributes["error.type"] == "PROVIDER_STREAM_BROKEN"


@pytest.mark.parametrize("resumable", [False, True])
async def test_a_stream_that_ends_well_is_no_error_in_its_trace(
    inference: Service, spans: InMemorySpanExporter, resumable: bool
) -> None:
    await inference.stream(
        request_pb2.Prompt(messages=prompt().messages, model="scripted/rehearsal", resumable=resumable)
    )
    (call,) = (span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER)
    assert call.status.status_code is StatusCode.UNSET
    assert "error.type" not in dict(call.attributes or {})


async def test_models_that_callers_make_up_share_one_label(inference: Service) -> None:
    before = served("openai", "_OTHER")
    for number in range(3):
        await inference.generate(prompt(model=f"openai/{CANARY}-{number}"))
    assert served("openai", "_OTHER") == before + 3
    assert CANARY not in generate_latest(REGISTRY).decode()


async def test_breakers_and_budgets_are_shown_for_every_provider(postgres_url: str, redis_url: str) -> None:
    routing = {"max_attempts": 2, "backoff_s": 0, "breaker_failures": 2, "retry_budget_least": 2}
    async with running(postgres_url, redis_url, routing=routing) as service:
        with pytest.raises(grpc.aio.AioRpcError):
            await service.generate(prompt(model="openai/fake;status=503"))
        shown = {
            provider: (
                REGISTRY.get_sample_value("janus_inference_breaker_state", {"provider": provider}),
                REGISTRY.get_sample_value("janus_inference_retry_budget_ratio", {"provider": provider}),
            )
            for provider in ("openai", "anthropic", "compatible", "scripted")
        }
        assert shown == {"openai": (2, 0.5), "anthropic": (0, 0), "compatible": (0, 0), "scripted": (0, 0)}
    assert REGISTRY.get_sample_value("janus_inference_breaker_state", {"provider": "openai"}) is None


async def test_counting_and_embedding_are_calls_to_providers_too(inference: Service) -> None:
    def calls(operation: str, provider: str, model: str) -> float:
        labels = {
            "gen_ai_operation_name": operation,
            "gen_ai_provider_name": provider,
            "gen_ai_request_model": model,
            "error_type": "",
        }
        return REGISTRY.get_sample_value("gen_ai_client_operation_duration_seconds_count", labels) or 0.0

    counted, embedded = calls("count_tokens", "scripted", "rehearsal"), calls("embeddings", "compatible", "fake-embed")
    await inference.stub.CountTokens(pb.CountTokensRequest(prompt=prompt()))
    await inference.stub.Embed(pb.EmbedRequest(model="compatible/fake-embed", inputs=["a", "b"]))
    assert calls("count_tokens", "scripted", "rehearsal") == counted + 1
    assert calls("embeddings", "compatible", "fake-embed") == embedded + 1
