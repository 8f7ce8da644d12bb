"""Routing, idempotency, cache, resume, limits, usage, prices and counting, over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.fakes.providers.inference_service import Refusal, Service, prompt, running, user

from janus_api.content.v1 import message_pb2 as content
from janus_api.content.v1 import usage_pb2
from janus_api.inference.v1 import event_pb2, model_pb2, request_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb

OTHER = (("janus-tenant", "other"),)
CACHED = request_pb2.CachePolicy(mode=request_pb2.CACHE_MODE_READ_WRITE)


def settings(**more: Any) -> dict[str, Any]:
    return {
        "aliases": {
            "sure": ["openai/fake;status=503", "anthropic/fake"],
            "hedged": {"targets": ["openai/fake;ttft=60000", "anthropic/fake"], "hedge_after_s": 0.02},
            "spread": [{"model": "openai/fake", "weight": 3}, {"model": "anthropic/fake", "weight": 1}],
        },
        "routing": {"max_attempts": 3, "backoff_s": 0.001, "breaker_failures": 1000},
        "prices": {"openai/fake": {"input_usd": 1, "output_usd": 2000}},
        **more,
    }


@pytest.fixture
async def inference(postgres_url: str, redis_url: str) -> AsyncIterator[Service]:
    async with running(postgres_url, redis_url, **settings()) as service:
        yield service


async def refused(call: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await (call.read() if hasattr(call, "__aiter__") else call)
    return Refusal.of(raised.value)


def text_of(events: list[Any]) -> str:
    return "".join(event.text for kind, event in events if kind == "text_delta")


async def test_an_alias_falls_back_and_says_so(inference: Service) -> None:
    events = await inference.stream(prompt(model="sure"))
    assert [kind for kind, _ in events[:2]] == ["started", "route_changed"]
    started, changed = events[0][1], events[1][1]
    assert (started.provider, started.attempt) == ("openai", 1)
    assert (getattr(changed, "from"), changed.to) == ("openai/fake;status=503", "anthropic/fake")
    assert (changed.reason, changed.attempt) == ("PROVIDER_UNAVAILABLE", 2)
    answer = await inference.generate(prompt(model="sure"))
    assert (answer.provider, answer.attempts) == ("anthropic", 2)


async def test_a_prompt_brings_its_own_fallbacks(inference: Service) -> None:
    routing = request_pb2.Routing(fallbacks=["compatible/fake"])
    answer = await inference.generate(prompt(model="anthropic/fake;status=529", routing=routing))
    assert answer.provider == "compatible"


async def test_a_hedge_answers_in_time_and_the_slow_one_is_left(inference: Service) -> None:
    # The first call of a provider makes its client, which may take longer than a hedge waits.
    await inference.generate(prompt(model="openai/fake"))
    events = await inference.stream(prompt(model="hedged"))
    assert events[1][1].reason == "HEDGED"
    assert text_of(events)
    await (await inference.openai.exchange(1)).client_gone.wait()


# A seed is what only Chat Completions has.
@pytest.mark.parametrize(("provider", "seed"), [("openai", None), ("openai", 1), ("anthropic", None)])
async def test_a_tool_with_a_dot_in_its_name_works_where_names_have_none(
    inference: Service, provider: str, seed: int | None
) -> None:
    sampling = request_pb2.Sampling(seed=seed)
    tools = [request_pb2.ToolDefinition(name="city.weather")]
    model = f"{provider}/fake;tools=1;tool=city_weather"
    answer = await inference.generate(prompt(model=model, tools=tools, sampling=sampling))
    call = answer.message.parts[0].tool_call
    assert call.name == "city.weather"
    result = content.ToolResult(call_id=call.call_id, parts=[content.Part(text="sunny")])
    history = [
        user("hello"),
        answer.message,
        content.Message(role=content.ROLE_TOOL, parts=[content.Part(tool_result=result)]),
    ]
    choice = request_pb2.ToolChoice(mode=request_pb2.TOOL_CHOICE_MODE_NAMED, name="city.weather")
    asked = prompt(model=model, tools=tools, messages=history, tool_choice=choice, sampling=sampling)
    events = await inference.stream(asked)
    named = [event for kind, event in events if kind in ("tool_call_started", "tool_call_completed")]
    assert (named[0].name, named[1].call.name) == ("city.weather", "city.weather")
    sent = inference.wire(provider).exchanges[-1].request.body
    assert b"city.weather" not in sent
    assert sent.count(b'"city_weather"') == 3


async def test_the_same_request_id_is_answered_once_and_the_same(inference: Service) -> None:
    asked = prompt(model="openai/fake", request_id="r1")
    first, second = await inference.generate(asked), await inference.generate(asked)
    assert first == second
    assert len(inference.openai.exchanges) == 1
    streamed = prompt(model="openai/fake", request_id="r1")
    events, again = await inference.stream(streamed), await inference.stream(streamed)
    assert len(inference.openai.exchanges) == 2  # another method, another scope
    assert text_of(events) == text_of(again)
    assert events[-1] == again[-1]
    assert events[0] == again[0]
    reused = await refused(
        inference.stub.Generate(pb.GenerateRequest(prompt=prompt("else", model="openai/fake", request_id="r1")))
    )
    assert (reused.code, reused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    other = await inference.generate(asked, metadata=OTHER)
    assert other.generation_id != first.generation_id


async def test_a_request_that_is_being_worked_on_is_told_so_and_a_failed_one_is_free_again(inference: Service) -> None:
    slow = prompt(model="openai/fake;tokens=9;hang=1", request_id="slow")
    call = inference.stub.StreamGenerate(pb.StreamGenerateRequest(prompt=slow))
    await call.read()
    found = await refused(inference.stub.StreamGenerate(pb.StreamGenerateRequest(prompt=slow)))
    assert (found.code, found.reason) == (grpc.StatusCode.ABORTED, "REQUEST_IN_PROGRESS")
    assert found.retry_after
    call.cancel()
    failing = prompt(model="openai/fake;status=400", request_id="failing")
    for _ in range(2):
        found = await refused(inference.stub.Generate(pb.GenerateRequest(prompt=failing)))
        assert found.reason == "PROVIDER_REJECTED_REQUEST"
    assert len(inference.openai.exchanges) == 3


async def test_the_cache_answers_its_own_tenant_and_costs_nothing(inference: Service) -> None:
    asked = prompt(model="openai/fake", cache=CACHED)
    first = await inference.generate(asked)
    assert not first.from_cache
    second = await inference.generate(asked)
    assert second.from_cache
    assert second.message == first.message
    assert second.generation_id != first.generation_id
    assert second.usage == usage_pb2.Usage()
    events = await inference.stream(asked)
    assert events[-1][1].from_cache
    assert text_of(events) == first.message.parts[0].text
    assert len(inference.openai.exchanges) == 1
    await inference.generate(asked, metadata=OTHER)
    assert len(inference.openai.exchanges) == 2
    await inference.generate(prompt("else", model="openai/fake", cache=CACHED))
    assert len(inference.openai.exchanges) == 3


async def test_a_cut_stream_is_resumed_to_the_same_events(inference: Service) -> None:
    asked = prompt(model="openai/fake;tokens=20;pace=5", resumable=True)
    call = inference.stub.StreamGenerate(pb.StreamGenerateRequest(prompt=asked))
    head = [(await call.read()).event for _ in range(4)]
    call.cancel()
    resumed = inference.stub.ResumeGenerate(
        pb.ResumeGenerateRequest(generation_id=head[0].started.generation_id, after_sequence=head[-1].sequence)
    )
    tail = [reply.event async for reply in resumed]
    whole = [*head, *tail]
    assert [event.sequence for event in whole] == list(range(1, len(whole) + 1))
    assert "".join(event.text_delta.text for event in whole) == " ".join(f"wörd{n}" for n in range(20))
    assert whole[-1].WhichOneof("event") == "finished"
    again = inference.stub.ResumeGenerate(
        pb.ResumeGenerateRequest(generation_id=head[0].started.generation_id, after_sequence=0)
    )
    assert [reply.event async for reply in again] == whole
    for metadata, generation_id in ((OTHER, head[0].started.generation_id), (None, "gen_nobody")):
        gone = await refused(
            inference.stub.ResumeGenerate(pb.ResumeGenerateRequest(generation_id=generation_id), metadata=metadata)
        )
        assert (gone.code, gone.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    beyond = await refused(
        inference.stub.ResumeGenerate(
            pb.ResumeGenerateRequest(generation_id=head[0].started.generation_id, after_sequence=1000)
        )
    )
    assert beyond.code is grpc.StatusCode.OUT_OF_RANGE
    assert beyond.metadata["last_sequence"] == str(len(whole))


async def test_without_linger_a_vanished_reader_ends_the_generation_upstream(inference: Service) -> None:
    asked = prompt(model="openai/fake;tokens=9;hang=1", resumable=True, linger=Duration())
    call = inference.stub.StreamGenerate(pb.StreamGenerateRequest(prompt=asked))
    generation_id = (await call.read()).event.started.generation_id
    await call.read()
    call.cancel()
    await (await inference.openai.exchange()).client_gone.wait()
    resumed = inference.stub.ResumeGenerate(pb.ResumeGenerateRequest(generation_id=generation_id))
    events = [reply.event async for reply in resumed]
    assert events[-1].WhichOneof("event") == "failed"
    assert Refusal.of_status(events[-1].failed.status).code is grpc.StatusCode.CANCELLED


async def test_limits_refuse_by_name_and_hold_for_each_tenant(postgres_url: str, redis_url: str) -> None:
    limits = [{"name": "few", "requests_per_minute": 2, "models": ["openai/*"]}]
    async with running(postgres_url, redis_url, **settings(limits=limits)) as service:
        for _ in range(2):
            await service.generate(prompt(model="openai/fake"))
        found = await refused(service.stub.Generate(pb.GenerateRequest(prompt=prompt(model="openai/fake"))))
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        assert found.metadata["limit"] == "few"
        assert found.retry_after
        assert len(service.openai.exchanges) == 2
        await service.generate(prompt(model="anthropic/fake"))
        await service.generate(prompt(model="openai/fake"), metadata=OTHER)


async def test_what_was_used_is_reported_to_its_tenant(inference: Service) -> None:
    await inference.generate(prompt(model="openai/fake", labels={"team": "a"}))
    await inference.generate(prompt(model="anthropic/fake", labels={"team": "b"}))
    request = pb.GetUsageRequest(group_by=[pb.USAGE_DIMENSION_PROVIDER, pb.USAGE_DIMENSION_LABEL], label_key="team")
    buckets = {(each.provider, each.label_value): each for each in (await inference.stub.GetUsage(request)).buckets}
    assert {("openai", "a"), ("anthropic", "b")} <= set(buckets)
    priced, unpriced = buckets["openai", "a"], buckets["anthropic", "b"]
    assert priced.calls == 1
    assert priced.usage.output_tokens == 3
    assert priced.usage.cost_micro_usd == (8 + 4) * 1 + 3 * 2000  # of 12 read, 4 came from the provider's cache
    assert (unpriced.unpriced_calls, unpriced.usage.HasField("cost_micro_usd")) == (1, False)
    assert not (await inference.stub.GetUsage(request, metadata=(("janus-tenant", "nobody"),))).buckets
    early, late = Timestamp(seconds=10), Timestamp(seconds=5)
    wrong = await refused(inference.stub.GetUsage(pb.GetUsageRequest(start_time=early, end_time=late)))
    assert wrong.fields == ["start_time"]


async def test_prices_health_and_targets_are_listed(inference: Service) -> None:
    model = (await inference.stub.GetModel(pb.GetModelRequest(name="openai/fake"))).model
    assert model.price.input_micro_usd == 1_000_000
    assert model.price.version
    assert model.health == model_pb2.MODEL_HEALTH_OK
    alias = (await inference.stub.GetModel(pb.GetModelRequest(name="spread"))).model
    assert [(target.model, target.weight) for target in alias.targets] == [("openai/fake", 3), ("anthropic/fake", 1)]
    assert (await refused(inference.stub.GetModel(pb.GetModelRequest()))).fields == ["name"]
    unknown = (await inference.stub.GetModel(pb.GetModelRequest(name="anthropic/fake"))).model
    assert not unknown.HasField("price")


async def test_tokens_are_counted_exactly_or_said_to_be_a_guess(inference: Service) -> None:
    for model, exact in (("anthropic/fake", True), ("scripted/rehearsal", True), ("compatible/fake", False)):
        counted = await inference.stub.CountTokens(pb.CountTokensRequest(prompt=prompt("one two three", model=model)))
        assert counted.input_tokens > 0
        assert counted.exact is exact


async def test_the_cost_is_in_the_answer(inference: Service) -> None:
    answer = await inference.generate(prompt(model="openai/fake"))
    assert answer.usage.cost_micro_usd == (8 + 4) * 1 + 3 * 2000
    assert answer.usage.price_version
    unknown = await inference.generate(prompt(model="anthropic/fake"))
    assert not unknown.usage.HasField("cost_micro_usd")
    rehearsed = await inference.generate(prompt(model="scripted/rehearsal"))
    assert rehearsed.usage.HasField("cost_micro_usd")
    assert rehearsed.usage.cost_micro_usd == 0


async def test_unknown_enum_numbers_are_refused_and_not_ignored(inference: Service) -> None:
    for field, fields in (
        ("prompt.cache.mode", {"cache": request_pb2.CachePolicy(mode=77)}),  # type: ignore[arg-type]
        ("prompt.tool_choice.mode", {"tool_choice": request_pb2.ToolChoice(mode=77)}),  # type: ignore[arg-type]
        ("prompt.reasoning.effort", {"reasoning": request_pb2.ReasoningOptions(effort=77)}),  # type: ignore[arg-type]
    ):
        found = await refused(inference.stub.Generate(pb.GenerateRequest(prompt=prompt(**fields))))
        assert found.fields == [field]


async def test_the_rehearsal_can_do_all_of_it_without_a_key(inference: Service) -> None:
    asked = prompt("/long 12", model="scripted/rehearsal", resumable=True, request_id="rehearsed")
    events = await inference.stream(asked)
    assert events[-1][1].reason == event_pb2.FINISH_REASON_STOP
    assert await inference.stream(asked)
    calls = [inference.generate(prompt(f"/long {n}", model="scripted/rehearsal")) for n in range(1, 20)]
    answers = await asyncio.gather(*calls)
    assert len({answer.generation_id for answer in answers}) == 19
