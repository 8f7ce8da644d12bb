"""The unmodified `openai` SDK against a running edge, the real inference service behind it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from tests.fakes.providers import openai_wire
from tests.fakes.providers.http_server import WireServer, serving
from tests.fakes.providers.inference_service import inference_on

from janus_edge.app import Running, server
from janus_edge.settings import EdgeSettings
from janus_inference.settings import AliasSettings, InferenceSettings, ProviderSettings
from janus_kit.server import serve
from janus_kit.settings import ServerSettings

REHEARSAL = "scripted/rehearsal"


@pytest.fixture
async def upstream() -> AsyncIterator[WireServer]:
    async with serving(openai_wire.application) as fake:
        yield fake


@pytest.fixture
async def edge(upstream: WireServer, postgres_url: str, redis_url: str) -> AsyncIterator[Running]:
    fake = ProviderSettings(kind="openai_compatible", base_url=f"{upstream.url}/v1")
    inference = InferenceSettings(
        providers={"fake": fake},
        aliases={"fast": AliasSettings.model_validate({"targets": [REHEARSAL]})},
        scripted_pace_ms=0,
    )
    async with (
        inference_on(postgres_url, redis_url, inference) as mounted,
        serve([mounted], ServerSettings(listen="127.0.0.1:0", drain_s=0)) as host,
        server(EdgeSettings(listen="127.0.0.1:0", drain_s=1), host.address) as running,
    ):
        yield running


@pytest.fixture
async def client(edge: Running) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="any", max_retries=0, timeout=30) as found:
        yield found


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


async def test_a_whole_answer(client: AsyncOpenAI):
    answer = await client.chat.completions.create(
        model="fast", messages=said("hello there"), max_completion_tokens=500, metadata={"team": "a"}
    )
    assert "hello there" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == REHEARSAL
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert answer._request_id


async def test_a_streamed_answer_is_the_whole_one_in_pieces(client: AsyncOpenAI):
    whole = await client.chat.completions.create(model=REHEARSAL, messages=said("hello"))
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model=REHEARSAL, messages=said("hello"), stream=True, stream_options={"include_usage": True}
        )
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


async def test_the_synchronous_client_works_as_well(edge: Running):
    def ask() -> str:
        with OpenAI(base_url=f"{edge.url}/v1", api_key="any", max_retries=0) as client:
            stream = client.chat.completions.create(model="fast", messages=said("hello"), stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert "hello" in await asyncio.to_thread(ask)


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_are_called_and_answered(client: AsyncOpenAI, stream: bool):
    tool: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    question = said('/call add {"a": 1, "b": 2}')
    if stream:
        async with client.chat.completions.stream(model=REHEARSAL, messages=question, tools=[tool]) as events:
            answer = await events.get_final_completion()
    else:
        answer = await client.chat.completions.create(model=REHEARSAL, messages=question, tools=[tool])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "add"
    assert json.loads(call.function.arguments) == {"a": 1, "b": 2}
    # What only the SDK's streaming helper adds is not part of the API.
    answered: Any = choice.message.model_dump(exclude={"parsed"})
    for each in answered["tool_calls"]:
        each["function"].pop("parsed_arguments", None)
    messages: Any = [*question, answered, {"role": "tool", "tool_call_id": call.id, "content": "three"}]
    final = await client.chat.completions.create(model=REHEARSAL, messages=messages, tools=[tool])
    assert "The tool add answered: three" in (final.choices[0].message.content or "")


async def test_the_sdks_own_answer_can_be_sent_back(client: AsyncOpenAI):
    first = await client.chat.completions.create(model=REHEARSAL, messages=said("hello"))
    again = await client.chat.completions.create(
        model=REHEARSAL, messages=[*said("hello"), first.choices[0].message, *said("and again")]
    )
    assert "and again" in (again.choices[0].message.content or "")


async def test_models_are_listed_and_found(client: AsyncOpenAI):
    names = [model.id async for model in await client.models.list()]
    assert {REHEARSAL, "fast"} <= set(names)
    found = await client.models.retrieve(REHEARSAL)
    assert (found.id, found.owned_by) == (REHEARSAL, "scripted")


async def test_an_unknown_model_is_not_found_and_a_wrong_field_a_bad_request(client: AsyncOpenAI):
    with pytest.raises(openai.NotFoundError) as absent:
        await client.models.retrieve("scripted/nope")
    assert absent.value.code == "model_not_found"
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as unknown:
            await client.chat.completions.create(model="nope", messages=said("x"), stream=stream)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as hot:
        await client.chat.completions.create(model=REHEARSAL, messages=said("x"), temperature=9)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as several:
        await client.chat.completions.create(model=REHEARSAL, messages=said("x"), n=2)
    assert several.value.param == "n"


@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        ("rate_limited", openai.RateLimitError, "provider_rate_limited"),
        ("unavailable", openai.InternalServerError, "provider_unavailable"),
        ("context", openai.BadRequestError, "context_too_long"),
        ("auth", openai.BadRequestError, "provider_auth"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failures_of_a_provider_are_the_sdks_error_classes(
    client: AsyncOpenAI, kind: str, error: type[openai.APIStatusError], code: str, stream: bool
):
    with pytest.raises(error) as raised:
        await client.chat.completions.create(model=REHEARSAL, messages=said(f"/fail {kind}"), stream=stream)
    assert raised.value.code == code


async def test_a_stream_that_breaks_raises_and_does_not_look_whole(client: AsyncOpenAI):
    got = []

    async def read() -> None:
        stream = await client.chat.completions.create(model=REHEARSAL, messages=said("/break 3"), stream=True)
        async for chunk in stream:
            got.extend(choice.finish_reason for choice in chunk.choices)

    with pytest.raises(openai.APIError) as raised:
        await read()
    assert raised.value.code == "provider_stream_broken"
    assert got
    assert set(got) == {None}


async def test_reasoning_stays_inside_and_a_refusal_comes_out(client: AsyncOpenAI):
    thought = await client.chat.completions.create(model=REHEARSAL, messages=said("/think deeply\nhello"))
    assert "deeply" not in (thought.choices[0].message.content or "")
    refusal = await client.chat.completions.create(model=REHEARSAL, messages=said("/refuse not me"))
    assert (refusal.choices[0].message.refusal, refusal.choices[0].message.content) == ("not me", None)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_closes_the_providers_connection(
    client: AsyncOpenAI, upstream: WireServer, stream: bool
):
    """The whole way: SDK, HTTP, gRPC, inference, provider."""
    asking = asyncio.create_task(_read_one(client, stream))
    exchange = await asyncio.wait_for(upstream.exchange(), 20)
    if stream:
        assert await asking
    else:
        asking.cancel()
    await asyncio.wait_for(exchange.client_gone.wait(), 20)
    assert not exchange.sent_whole


async def _read_one(client: AsyncOpenAI, stream: bool) -> str:
    """The first piece of text of an answer that hangs, then leave."""
    answer: Any = await client.chat.completions.create(
        model="fake/fake;tokens=9;hang=2", messages=said("x"), stream=stream
    )
    async with answer:
        async for chunk in answer:
            if chunk.choices[0].delta.content:
                return str(chunk.choices[0].delta.content)
    return ""
