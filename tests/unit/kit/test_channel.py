"""A channel carries on what the call at hand knows, for every shape."""

import asyncio
from contextlib import suppress

import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import REGISTRY

from janus_kit.auth.identity import Identity, acting_as, current_identity
from janus_kit.channel import connect
from janus_kit.errors import FailedPrecondition, InvalidArgument, Unavailable
from janus_kit.interceptors.context import current_request_id, deadline_scope, remaining_seconds
from janus_kit.rpc_errors import from_rpc
from janus_kit.settings import ServerSettings
from janus_kit.telemetry import tracing

SERVICE = "janus.probe.v1.ProbeService"
shapes = pytest.mark.parametrize("shape", ["Unary", "ServerStream", "ClientStream", "Bidi"])
ACME = Identity("acme", "worker", frozenset())


def relaying(probe, shape, tell):
    """The probe calls itself once more; the second call answers with what it was told."""

    async def act(text):
        return (await probe.call(shape, "inner"))[0] if text == "outer" else str(tell())

    probe.act = act


@shapes
async def test_tenant_and_request_id_go_along(probe, shape):
    relaying(probe, shape, lambda: f"{current_identity().tenant} {current_request_id()}")
    metadata = (("janus-tenant", "acme"), ("x-request-id", "req-1"))
    async with grpc.aio.insecure_channel(probe.host.address) as client:
        assert await probe.call(shape, "outer", channel=client, metadata=metadata) == ["acme req-1"]


@shapes
async def test_what_is_left_of_the_deadline_goes_along(probe, shape):
    relaying(probe, shape, remaining_seconds)
    (remaining,) = await probe.call(shape, "outer", timeout=5)
    assert 3 < float(remaining) < 6


@shapes
async def test_background_work_acts_as_its_owner(probe, shape):
    async def act(text):
        return current_identity().tenant

    probe.act = act
    with acting_as(ACME):
        assert await probe.call(shape) == ["acme"]
    assert await probe.call(shape) == ["development"]


async def test_a_deadline_of_the_work_at_hand_limits_its_calls(probe):
    async def act(text):
        return str(remaining_seconds())

    probe.act = act
    with deadline_scope(5):
        assert 3 < float((await probe.call("Unary", timeout=60))[0]) < 6
        with deadline_scope(None):
            assert float((await probe.call("Unary"))[0]) > 200


async def test_metadata_given_by_hand_wins(probe):
    async def act(text):
        return current_identity().tenant

    probe.act = act
    with acting_as(ACME):
        assert await probe.call("Unary", metadata=(("janus-tenant", "other"),)) == ["other"]


@shapes
async def test_one_trace_spans_client_server_and_the_next_server(probe, shape, logs, eventually):
    exporter = InMemorySpanExporter()
    tracing.configure(endpoint=None, service="test", version="0", exporter=exporter)
    try:
        relaying(probe, shape, lambda: "done")
        assert await probe.call(shape, "outer") == ["done"]
        await eventually(lambda: len(exporter.get_finished_spans()) == 4)
    finally:
        tracing.shutdown()
    spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
    assert len({span.context.trace_id for span in spans.values()}) == 1
    (root,) = [span for span in spans.values() if span.parent is None]
    chain, current = [root], root
    while below := [s for s in spans.values() if s.parent and s.parent.span_id == current.context.span_id]:
        (current,) = below
        chain.append(current)
    assert [span.kind for span in chain] == [SpanKind.CLIENT, SpanKind.SERVER] * 2
    assert {span.name for span in chain} == {f"{SERVICE}/{shape}"}
    assert all(span.attributes["rpc.status_code"] == "OK" for span in chain)
    trace_id = format(root.context.trace_id, "032x")
    assert {line["trace_id"] for line in logs.named("rpc")} == {trace_id}


@pytest.mark.parametrize(
    ("error", "served_badly"),
    [
        (InvalidArgument("text", "must be another"), False),
        (FailedPrecondition("PROVIDER_AUTH", "no key"), False),
        (Unavailable("postgres", "away"), True),
        (RuntimeError("a bug"), True),
    ],
)
async def test_a_refusal_is_an_error_of_the_caller_s_span_alone(probe, eventually, error, served_badly):
    async def act(text):
        raise error

    probe.act = act
    exporter = InMemorySpanExporter()
    tracing.configure(endpoint=None, service="test", version="0", exporter=exporter)
    try:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await probe.call("Unary")
        await eventually(lambda: len(exporter.get_finished_spans()) == 2)
    finally:
        tracing.shutdown()
    spans = {span.kind: span for span in exporter.get_finished_spans()}
    assert {span.attributes["rpc.status_code"] for span in spans.values()} == {raised.value.code().name}
    assert spans[SpanKind.CLIENT].status.status_code is StatusCode.ERROR
    served = spans[SpanKind.SERVER]
    assert (served.status.status_code is StatusCode.ERROR) is served_badly
    assert ("error.type" in served.attributes) is served_badly


async def test_without_tracing_a_callers_trace_still_passes_through(probe, logs):
    relaying(probe, "Unary", lambda: "done")
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    header = ("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01")
    async with grpc.aio.insecure_channel(probe.host.address) as client:
        await probe.call("Unary", "outer", channel=client, metadata=(header,))
    assert [line["trace_id"] for line in logs.named("rpc")] == [trace_id, trace_id]
    assert not tracing.enabled()


async def test_a_traceparent_that_is_garbage_is_ignored(probe, logs):
    async with grpc.aio.insecure_channel(probe.host.address) as client:
        await probe.call("Unary", channel=client, metadata=(("traceparent", "00-garbage"),))
    assert "trace_id" not in logs.named("rpc")[0]


@shapes
async def test_calls_are_measured_as_their_caller_sees_them(probe, shape, eventually):
    labels = {"rpc_method": f"{SERVICE}/{shape}", "rpc_status_code": "OK"}

    def count():
        return REGISTRY.get_sample_value("rpc_client_call_duration_seconds_count", labels) or 0

    before = count()
    await probe.call(shape)
    await eventually(lambda: count() == before + 1)


async def test_a_service_that_is_not_there_is_named_without_its_address(tmp_path):
    async with connect(f"unix:{tmp_path}/nobody") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/a.B/C", None, None)(b"")
    error = from_rpc(raised.value, part="memory")
    assert error.reason == "DEPENDENCY_UNAVAILABLE"
    assert error.metadata == {"part": "memory"}
    assert str(tmp_path) not in error.message


async def test_a_service_that_comes_back_is_found_again(serving, tmp_path):
    settings = ServerSettings(lame_duck_s=0, listen="", uds=str(tmp_path / "s"), drain_s=0)
    async with connect(f"unix:{tmp_path}/s") as channel:
        async with serving(settings) as probe:
            assert await probe.call("Unary", channel=channel) == ["hello"]
        with pytest.raises(grpc.aio.AioRpcError):
            await probe.call("Unary", channel=channel)
        async with serving(settings) as probe:
            answer = None
            while answer is None:
                with suppress(grpc.aio.AioRpcError):
                    answer = await asyncio.wait_for(probe.call("Unary", channel=channel), 5)
            assert answer == ["hello"]
