"""Providers that fail and callers that vanish: typed answers, closed sockets, nothing left behind."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.fakes.providers.inference_service import KEY, Refusal, Service, prompt, running
from tests.fakes.stopwatch import RanFor

from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_api.inference.v1 import request_pb2
from janus_kit.telemetry import logging

Call = grpc.aio.UnaryStreamCall[Any, Any]
Leave = Callable[[Call, grpc.aio.Channel], Awaitable[None]]

PROVIDERS = ["openai", "chat", "anthropic"]
SECRET_TEXT = "my-private-question"


@pytest.fixture
async def inference(postgres_url: str, redis_url: str) -> AsyncIterator[Service]:
    async with running(postgres_url, redis_url, beside={"chat": {"kind": "openai", "api": "chat"}}) as service:
        yield service


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    written = io.StringIO()
    logging.configure(level="debug", stream=written)
    yield written
    logging.configure()


def asked(provider: str, directives: str, **fields: object) -> request_pb2.Prompt:
    return prompt(SECRET_TEXT, model=f"{provider}/fake{directives}", **fields)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    ("directives", "code", "reason", "retry_after"),
    [
        (";status=429;retry-after=3", grpc.StatusCode.RESOURCE_EXHAUSTED, "PROVIDER_RATE_LIMITED", 3),
        (";status=529", grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE", 1),
        (";status=500", grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE", 1),
        (";status=504", grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", 1.0),
        (";status=401", grpc.StatusCode.FAILED_PRECONDITION, "PROVIDER_AUTH", None),
        (";status=400", grpc.StatusCode.INVALID_ARGUMENT, "PROVIDER_REJECTED_REQUEST", None),
        (";error=0", grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE", 1),
        (";cut=0", grpc.StatusCode.UNAVAILABLE, "PROVIDER_STREAM_BROKEN", 1),
    ],
)
async def test_a_failure_before_the_first_event_is_a_status_that_tells_no_secrets(
    inference: Service,
    log: io.StringIO,
    provider: str,
    directives: str,
    code: grpc.StatusCode,
    reason: str,
    retry_after: float | None,
) -> None:
    for call in (inference.generate, inference.stream):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(asked(provider, directives))
        refused = Refusal.of(raised.value)
        assert (refused.code, refused.reason, refused.retry_after) == (code, reason, retry_after)
        assert refused.metadata["provider"] == provider
        for place in (refused.text, raised.value.details() or "", log.getvalue()):
            assert KEY not in place
            assert SECRET_TEXT not in place
    assert "attempt failed" in log.getvalue()


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("directives", [";cut=2", ";end=2;unframed=1", ";error=2", ";garbage=2", ";line=10000000"])
async def test_a_failure_afterwards_is_the_last_event(inference: Service, provider: str, directives: str) -> None:
    events = await inference.stream(asked(provider, f";tokens=5{directives}"))
    kind, failed = events[-1]
    assert kind == "failed"
    assert failed.partial
    assert failed.retryable
    assert failed.retry_after.ToTimedelta().total_seconds() == 1
    refused = Refusal.of_status(failed.status)
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert failed.usage.output_tokens > 0
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await inference.generate(asked(provider, f";tokens=5{directives}"))
    assert Refusal.of(raised.value).reason == refused.reason


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("hang", "leg"), [(0, "first_event"), (2, "idle")])
async def test_a_provider_that_falls_silent_is_left_in_time(
    inference: Service, provider: str, hang: int, leg: str
) -> None:
    await inference.generate(asked(provider, ""))
    limit = request_pb2.Timeouts(**{leg: Duration(nanos=80_000_000)})
    request = asked(provider, f";tokens=9;hang={hang}", timeouts=limit)
    if hang:
        refused = Refusal.of_status((await inference.stream(request))[-1][1].status)
    else:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await inference.stream(request)
        refused = Refusal.of(raised.value)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.metadata["leg"] == leg
    await (await inference.wire(provider).exchange(1)).client_gone.wait()


async def leave_by_cancel(call: Call, channel: grpc.aio.Channel) -> None:
    call.cancel()


async def leave_by_closing_the_channel(call: Call, channel: grpc.aio.Channel) -> None:
    await channel.close()


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("leave", [leave_by_cancel, leave_by_closing_the_channel])
@pytest.mark.parametrize("directives", [";tokens=9;hang=1", ";tokens=100000;pace=1", ";tokens=500000"])
async def test_a_caller_that_goes_away_closes_the_provider_s_socket_within_100_ms(
    inference: Service, provider: str, leave: Leave, directives: str, ran_for: RanFor
) -> None:
    before = asyncio.all_tasks()
    channel = grpc.aio.insecure_channel(inference.address)
    call = rpc.InferenceServiceStub(channel).StreamGenerate(
        pb.StreamGenerateRequest(prompt=asked(provider, directives))
    )
    while (await call.read()).event.WhichOneof("event") != "text_delta":
        pass
    exchange = await inference.wire(provider).exchange()
    left = time.perf_counter()
    await leave(call, channel)
    await exchange.client_gone.wait()
    assert ran_for(left, exchange.gone_at) < 0.1
    await channel.close()
    await _tasks_are_gone(before)


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_unary_caller_that_goes_away_closes_the_socket_too(
    inference: Service, provider: str, ran_for: RanFor
) -> None:
    call = inference.stub.Generate(pb.GenerateRequest(prompt=asked(provider, ";tokens=9;hang=1")))
    exchange = await inference.wire(provider).exchange()
    left = time.perf_counter()
    call.cancel()
    await exchange.client_gone.wait()
    assert ran_for(left, exchange.gone_at) < 0.1


async def test_a_deadline_of_the_caller_ends_the_work(inference: Service) -> None:
    # The first call waits for the provider's client, which takes longer than the deadline of the next one.
    await inference.generate(asked("openai", ""))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await inference.stream(asked("openai", ";tokens=9;hang=1"), timeout=0.3)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await (await inference.openai.exchange(1)).client_gone.wait()


async def test_a_storm_of_cancels_leaves_nothing_behind(inference: Service) -> None:
    await inference.generate(asked("openai", ""))
    before = asyncio.all_tasks()
    calls = []
    for number in range(200):
        request = pb.StreamGenerateRequest(prompt=asked("openai", ";tokens=9;hang=1"))
        calls.append(inference.stub.StreamGenerate(request))
        if number % 4 == 0:
            await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*(_ended(call) for call in calls))
    await _tasks_are_gone(before)
    assert (await inference.generate(asked("openai", ""))).message.parts


async def _ended(call: Call) -> None:
    with pytest.raises(asyncio.CancelledError):
        async for _ in call:
            pass


async def _tasks_are_gone(before: set[asyncio.Task[Any]]) -> None:
    """Every task begun since has ended: each is awaited, so one that stays fails by hanging.

    But gRPC's own, one a method, that waits for the next call.
    """
    mine = {asyncio.current_task()}
    async with asyncio.timeout(5):
        while left := [
            task
            for task in asyncio.all_tasks() - before - mine
            if not task.done() and not getattr(task.get_coro(), "__qualname__", "").startswith("AioServer.")
        ]:
            await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
