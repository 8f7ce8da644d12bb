"""Telemetry of runs: what a scraper and a collector see of tool calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import REGISTRY
from tests.fakes.mcp_shop import Shop
from tests.fakes.orchestration_service import Caller, Orchestration, all_events, kinds, running
from tests.fakes.peers.inference_peer import InferencePeer
from tests.fakes.tool_worker import tool, worker

from janus_api.orchestration.v1 import agent_pb2
from janus_api.tools.v1 import tool_worker_service_pb2 as tools_pb
from janus_kit.telemetry import tracing

ALONE = agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True)
CANARY = "kanarienvogel"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure(endpoint=None, service="test", version="0", exporter=exporter)
    yield exporter
    tracing.shutdown()


@pytest.fixture
async def service(own_url: str, redis_url: str, peer: InferencePeer, shop: Shop) -> AsyncIterator[Orchestration]:
    servers = {"shop": shop.stdio()}
    async with running(own_url, redis_url, inference_target=peer.target, mcp_servers=servers) as serving:
        yield serving


def executed(spans: InMemorySpanExporter) -> dict[str, Any]:
    """The spans of tool calls, by the calls' ids."""
    found = [span for span in spans.get_finished_spans() if span.name.startswith("execute_tool")]
    by_call = {str((span.attributes or {})["gen_ai.tool.call.id"]): span for span in found}
    assert len(by_call) == len(found)
    return by_call


def counted(name: str, error_type: str = "") -> float:
    labels = {"gen_ai_tool_name": name, "error_type": error_type}
    return REGISTRY.get_sample_value("gen_ai_execute_tool_duration_seconds_count", labels) or 0.0


async def test_a_tool_call_is_a_span_that_its_worker_and_server_carry_on(
    service: Orchestration, ann: Caller, peer: InferencePeer, shop: Shop, spans: InMemorySpanExporter
) -> None:
    before = {name: counted(name) for name in ("count", "shop.price", "time.now")}
    async with worker(service.address, ann.tenant) as bob:
        names = [*before, "shop.refuse"]
        thread = await ann.ready(memory=ALONE, tools=[agent_pb2.AgentTool(name=name) for name in names])
        stream = ann.converse(thread, CANARY)
        (await peer.call()).tools(
            ("c1", "count", '{"n": 1}'),
            ("c2", "shop.price", f'{{"item": "{CANARY}"}}'),
            ("c3", "time.now"),
            ("c4", "shop.refuse"),
            ("c5", "count", '{"n": "not a number"}'),
            ("c6", "shop.brew"),
        )
        call = await bob.given()
        await bob.answer(call, CANARY)
        (await peer.call()).answer("done")
        events = await all_events(stream)
        assert kinds(events)[-1] == "run_completed"

    found = executed(spans)
    # Calls that nobody was given are none.
    assert sorted(found) == ["c1", "c2", "c3", "c4"]
    assert {call_id: span.name for call_id, span in found.items()} == {
        "c1": "execute_tool count",
        "c2": "execute_tool shop.price",
        "c3": "execute_tool time.now",
        "c4": "execute_tool shop.refuse",
    }
    assert found["c1"].kind is SpanKind.INTERNAL
    assert dict(found["c1"].attributes) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "count",
        "gen_ai.tool.call.id": "c1",
        "gen_ai.conversation.id": thread,
        "janus.run.id": events[0].run_id,
        "janus.attempt.number": 1,
    }
    assert {call_id: span.attributes.get("error.type") for call_id, span in found.items()} == {
        "c1": None,
        "c2": None,
        "c3": None,
        "c4": "tool_error",
    }
    assert found["c4"].status.status_code is StatusCode.ERROR
    assert found["c1"].status.status_code is StatusCode.UNSET
    (converse,) = [
        span for span in spans.get_finished_spans() if span.name.endswith("/Converse") and span.kind is SpanKind.SERVER
    ]
    assert {span.parent.span_id for span in found.values()} == {converse.context.span_id}

    assert call.traceparent.split("-")[1:3] == identity(found["c1"])
    (seen,) = shop.saw("price")
    assert seen["trace"].split("-")[1:3] == identity(found["c2"])
    assert CANARY not in "".join(span.to_json() for span in spans.get_finished_spans())
    assert {name: counted(name) - before[name] for name in before} == {"count": 1, "shop.price": 1, "time.now": 1}


def identity(span: Any) -> list[str]:
    return [format(span.context.trace_id, "032x"), format(span.context.span_id, "016x")]


async def test_a_call_that_is_too_slow_or_whose_outcome_is_not_known_says_so(
    service: Orchestration, ann: Caller, peer: InferencePeer, spans: InMemorySpanExporter
) -> None:
    careful = tool("careful", side_effect=tools_pb.SIDE_EFFECT_AT_MOST_ONCE)
    async with worker(service.address, ann.tenant, tool(), careful) as bob:
        soon = Duration(nanos=300_000_000)
        await ann.agent(memory=ALONE, tools=[agent_pb2.AgentTool(name=n, timeout=soon) for n in ("count", "careful")])
        thread = await ann.thread()
        run = await ann.start(thread)
        (await peer.call()).tools(("c1", "count"), ("c2", "careful"))
        await bob.given()
        await bob.given()
        stream = ann.watch(run.id)
        async for response in stream:
            if response.event.HasField("approval_requested"):
                break
        stream.cancel()
        await ann.cancel(run.id)
    found = executed(spans)
    assert {call_id: span.attributes["error.type"] for call_id, span in found.items()} == {
        "c1": "TimeoutError",
        "c2": "OutcomeUnknown",
    }
