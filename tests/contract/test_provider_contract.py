"""What every provider must do, asked of each adapter at a server that speaks its real wire format."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.fakes.providers import anthropic_wire, openai_wire
from tests.fakes.providers.full_listener import full_listener
from tests.fakes.providers.http_server import WireServer, serving
from tests.fakes.providers.setups import CALLER, NAME, Stores, events_of, prompt
from tests.fakes.stopwatch import RanFor

from janus_inference.adapters.anthropic import Anthropic
from janus_inference.adapters.openai_chat import OpenAIChat
from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.adapters.openai_responses import OpenAIResponses
from janus_inference.adapters.scripted import Scripted
from janus_inference.events import Failed, Finished, FinishReason, Started, TextDelta, Usage
from janus_inference.model import Prompt, Reasoning, Refusal, Sampling, Text, Timeouts, ToolCall, ToolDefinition
from janus_inference.ports import Provider
from janus_inference.profiles import OPENAI, chat_profile
from janus_kit.errors import InvalidArgument, JanusError

KEY = "sk-test-very-secret"
WEATHER = ToolDefinition(
    "weather",
    parameters_schema_json='{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}',
)


def openai(url: str) -> Provider:
    client = OpenAIClient(f"{url}/v1", KEY)
    return OpenAIChat(NAME, client, OPENAI, issuer="openai", has_key=True, needs_key=True)


def responses(url: str) -> Provider:
    client = OpenAIClient(f"{url}/v1", KEY)
    return OpenAIResponses(NAME, client, OPENAI, issuer="openai", has_key=True, needs_key=True)


def compatible(url: str) -> Provider:
    profile = chat_profile("localhost")
    client = OpenAIClient(f"{url}/v1", None)
    return OpenAIChat(NAME, client, profile, issuer=NAME, has_key=False, needs_key=False)


def anthropic(url: str) -> Provider:
    return Anthropic(NAME, url, KEY, issuer="anthropic")


@dataclass(frozen=True)
class Adapter:
    build: Callable[[str], Provider]
    application: Any
    usage: Usage
    """Of an answer of three words."""


ADAPTERS = {
    "openai": Adapter(openai, openai_wire.application, Usage(8, 4, 0, 3)),
    "responses": Adapter(responses, openai_wire.application, Usage(8, 4, 0, 3)),
    "compatible": Adapter(compatible, openai_wire.application, Usage(8, 4, 0, 3)),
    "anthropic": Adapter(anthropic, anthropic_wire.application, Usage(8, 4, 2, 3)),
}


@dataclass(frozen=True)
class Setup:
    provider: Provider
    wire: WireServer
    adapter: Adapter


@asynccontextmanager
async def built(adapter: Adapter) -> AsyncIterator[Setup]:
    async with serving(adapter.application) as wire:
        provider = adapter.build(wire.url)
        # The SDK is built before the clocks of the tests start to run.
        await provider.warm()
        try:
            yield Setup(provider, wire, adapter)
        finally:
            await provider.close()


@pytest.fixture(params=ADAPTERS)
async def setup(request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    async with built(ADAPTERS[request.param]) as made:
        yield made


def asked(directives: str = "", **fields: Any) -> Prompt:
    return prompt("hello", model=f"{NAME}/fake{directives}", **fields)


async def failure(stores: Stores, setup: Setup, directives: str, **fields: Any) -> JanusError:
    with pytest.raises(JanusError) as raised:
        await stores.generation(setup.provider).answer(asked(directives, **fields), CALLER)
    return raised.value


async def recorded(stores: Stores, directives: str) -> list[int]:
    """What is on record of all calls with these directives: input tokens of each attempt."""
    await stores.ledger.drain()
    async with stores.pool.tenant(CALLER.tenant) as connection:
        rows = await connection.fetch(
            """SELECT input_uncached_tokens + cache_read_tokens + cache_write_tokens AS input FROM inference.usage
               WHERE model = $1""",
            f"fake{directives}",
        )
    return [row["input"] for row in rows]


async def test_text_usage_and_finish(stores: Stores, setup: Setup) -> None:
    events = await events_of(stores.generation(setup.provider), asked())
    finished = events[-1]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "wörd0 wörd1 wörd2"
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.usage) == (FinishReason.STOP, setup.adapter.usage)
    assert finished.provider_response_id


@pytest.mark.parametrize("order", ["zeros", "total", "nonsense"])
@pytest.mark.parametrize("whole", ["", ";whole=1"])
async def test_a_count_of_nothing_is_no_count(stores: Stores, setup: Setup, order: str, whole: str) -> None:
    answer = await stores.generation(setup.provider).answer(asked(f";uncounted={order}{whole}"), CALLER)
    assert answer.usage.estimated
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0


@pytest.mark.parametrize("end", ["cut", "error", "hang", "left"])
async def test_what_was_counted_along_the_way_is_not_lost(stores: Stores, end: str) -> None:
    order = "hang" if end == "left" else end
    async with built(ADAPTERS["compatible"]) as setup:
        using = stores.generation(setup.provider)
        model = f";tokens=9;counting=1;{order}=3"
        heard = ""
        async with aclosing(using.run(asked(model, timeouts=Timeouts(idle=0.2)), CALLER)) as events:
            async for numbered in events:
                heard += numbered.event.text if isinstance(numbered.event, TextDelta) else ""
                if end == "left" and "wörd2" in heard:
                    break
        if end != "left":
            assert isinstance(numbered.event, Failed)
            assert numbered.event.usage == Usage(1000, output_tokens=150, estimated=True)
    await stores.ledger.drain()
    async with stores.pool.tenant(CALLER.tenant) as connection:
        row = await connection.fetchrow(
            "SELECT input_uncached_tokens, output_tokens FROM inference.usage ORDER BY started_at DESC LIMIT 1"
        )
    assert tuple(row) == (1000, 150)


async def test_an_answer_that_was_counted_along_the_way_is_told_its_last_count(stores: Stores) -> None:
    async with built(ADAPTERS["compatible"]) as setup:
        answer = await stores.generation(setup.provider).answer(asked(";counting=1;uncounted=zeros"), CALLER)
    assert answer.usage == Usage(1000, output_tokens=150)


async def test_a_body_instead_of_a_stream_means_the_same(stores: Stores, setup: Setup) -> None:
    using = stores.generation(setup.provider)
    streamed, whole = await using.answer(asked(), CALLER), await using.answer(asked(";whole=1"), CALLER)
    assert (whole.message, whole.usage, whole.reason) == (streamed.message, streamed.usage, streamed.reason)


async def test_tool_calls_in_fragments(stores: Stores, setup: Setup) -> None:
    answer = await stores.generation(setup.provider).answer(asked(";tools=2", tools=(WEATHER,)), CALLER)
    calls = [part for part in answer.message.parts if isinstance(part, ToolCall)]
    assert [call.arguments_json for call in calls] == ['{"city": "Zürich", "days": 3}'] * 2
    assert len({call.call_id for call in calls}) == 2
    assert answer.reason is FinishReason.TOOL_CALLS


async def test_reasoning_comes_before_the_text(stores: Stores, setup: Setup) -> None:
    answer = await stores.generation(setup.provider).answer(asked(";think=2"), CALLER)
    thought, said = answer.message.parts
    assert isinstance(thought, Reasoning)
    assert thought.text == "wörd0 wörd1"
    assert isinstance(said, Text)


async def test_a_limit_is_a_finish_reason(stores: Stores, setup: Setup) -> None:
    word = {anthropic: "max_tokens", responses: "max_output_tokens"}.get(setup.adapter.build, "length")
    answer = await stores.generation(setup.provider).answer(asked(f";finish={word}"), CALLER)
    assert (answer.reason, answer.provider_reason) == (FinishReason.LENGTH, word)


async def test_connections_are_used_again(stores: Stores, setup: Setup) -> None:
    using = stores.generation(setup.provider)
    for _ in range(5):
        await using.answer(asked(), CALLER)
    assert setup.wire.connections == 1


async def test_each_word_goes_out_when_it_comes(stores: Stores, setup: Setup) -> None:
    """A word that is held back for the next one would never come: the server waits for ever."""
    async with aclosing(stores.generation(setup.provider).run(asked(";tokens=9;hang=1"), CALLER)) as events:
        kinds = [type((await anext(events)).event)]
        while kinds[-1] is not TextDelta:
            kinds.append(type((await anext(events)).event))
    assert kinds[0] is Started


async def test_leaving_closes_the_socket_at_once(stores: Stores, setup: Setup, ran_for: RanFor) -> None:
    tasks = asyncio.all_tasks() | setup.wire.open
    async with aclosing(stores.generation(setup.provider).run(asked(";tokens=9;hang=1"), CALLER)) as events:
        async for numbered in events:
            if isinstance(numbered.event, TextDelta):
                break
        left = time.perf_counter()
    exchange = await setup.wire.exchange()
    await exchange.client_gone.wait()
    assert ran_for(left, exchange.gone_at) < 0.1
    await asyncio.gather(*setup.wire.open, return_exceptions=True)
    assert asyncio.all_tasks() <= tasks


@pytest.mark.parametrize("directives", [";silent=1", ";ttft=60000", ";tokens=9;hang=0", ";tokens=9;hang=1"])
async def test_cancelling_closes_the_socket_whatever_it_waits_for(
    stores: Stores, setup: Setup, directives: str, ran_for: RanFor
) -> None:
    asking = asyncio.create_task(stores.generation(setup.provider).answer(asked(directives), CALLER))
    exchange = await setup.wire.exchange()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    left = time.perf_counter()
    await exchange.client_gone.wait()
    assert ran_for(left, exchange.gone_at) < 0.1


@pytest.mark.parametrize(
    ("directives", "code", "reason"),
    [
        (";status=429", "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED"),
        (";status=529", "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (";status=500", "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (";status=408", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        (";status=504", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        (";status=401", "FAILED_PRECONDITION", "PROVIDER_AUTH"),
        (";status=403", "FAILED_PRECONDITION", "PROVIDER_AUTH"),
        (";status=400", "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST"),
        (";status=400;code=context_length_exceeded", "INVALID_ARGUMENT", "CONTEXT_TOO_LONG"),
        (";status=404", "INVALID_ARGUMENT", "MODEL_NOT_FOUND"),
        (";status=307", "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (";error=0", "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (";cut=0", "UNAVAILABLE", "PROVIDER_STREAM_BROKEN"),
        (";garbage=0", "UNAVAILABLE", "PROVIDER_STREAM_BROKEN"),
        (";type=text/html", "UNAVAILABLE", "PROVIDER_STREAM_BROKEN"),
        (";type=application/json", "UNAVAILABLE", "PROVIDER_STREAM_BROKEN"),
    ],
)
async def test_a_refusal_before_the_first_event_is_a_status(
    stores: Stores, setup: Setup, directives: str, code: str, reason: str
) -> None:
    error = await failure(stores, setup, directives)
    assert (error.code, error.reason) == (code, reason)
    assert len(setup.wire.exchanges) == 1  # the SDKs do not try again
    shown = f"{error!r} {error.message} {error.metadata}"
    assert KEY not in shown
    assert "hello" not in shown


async def test_retry_after_is_passed_on(stores: Stores, setup: Setup) -> None:
    assert (await failure(stores, setup, ";status=429;retry-after=7")).retry_after == 7
    assert (await failure(stores, setup, ";status=503;retry-after-ms=1500")).retry_after == 1.5
    advised = ";status=429;should-retry=false;retry-after-ms=1500"
    assert (await failure(stores, setup, advised)).retry_after == 1.5
    assert (await failure(stores, setup, ";status=503;should-retry=false")).retry_after == 1


@pytest.mark.parametrize(
    "directives",
    [";cut=2", ";end=2", ";end=2;unframed=1", ";error=2", ";garbage=2", ";done=0;finish=", ";line=10000000"],
)
async def test_an_answer_that_breaks_off_is_failed_never_finished(
    stores: Stores, setup: Setup, directives: str
) -> None:
    events = await events_of(stores.generation(setup.provider), asked(f";tokens=5{directives}"))
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert failed.partial
    assert failed.error.code == "UNAVAILABLE"
    assert "".join(event.text for event in events if isinstance(event, TextDelta)).startswith("wörd0")


@pytest.mark.parametrize("said", [1, 200])
async def test_all_that_came_before_an_answer_broke_off_is_given_out(stores: Stores, setup: Setup, said: int) -> None:
    for _ in range(3):
        events = await events_of(stores.generation(setup.provider), asked(f";tokens=900;end={said}"))
        assert isinstance(events[-1], Failed)
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        assert text.split() == [f"wörd{number}" for number in range(said)]


async def test_a_content_filter_is_a_finish_reason(stores: Stores, setup: Setup) -> None:
    answer = await stores.generation(setup.provider).answer(asked(";status=400;code=content_filter"), CALLER)
    assert answer.reason is FinishReason.CONTENT_FILTER


@pytest.mark.parametrize(
    ("directives", "leg", "timeouts"),
    [
        (";silent=1", "first_event", Timeouts(first_event=0.25)),
        (";tokens=9;hang=0", "first_event", Timeouts(first_event=0.25)),
        (";tokens=9;hang=0", "total", Timeouts(total=0.25)),
    ],
)
async def test_pings_are_no_output(stores: Stores, setup: Setup, directives: str, leg: str, timeouts: Timeouts) -> None:
    # The first request imports what it needs; the one that is measured must be at the provider in time.
    await stores.generation(setup.provider).answer(asked(), CALLER)
    error = await failure(stores, setup, directives, timeouts=timeouts)
    assert (error.code, error.metadata["leg"]) == ("DEADLINE_EXCEEDED", leg)
    exchange = await setup.wire.exchange(1)
    await exchange.client_gone.wait()


async def test_pings_do_not_keep_an_idle_stream_alive(stores: Stores, setup: Setup) -> None:
    events = await events_of(stores.generation(setup.provider), asked(";tokens=9;hang=2", timeouts=Timeouts(idle=0.1)))
    assert isinstance(events[-1], Failed)
    assert events[-1].error.metadata["leg"] == "idle"


async def test_a_reader_that_rests_makes_the_provider_wait(stores: Stores, setup: Setup) -> None:
    """Buffers are bounded: a provider cannot run ahead by a whole long answer."""
    async with aclosing(stores.generation(setup.provider).run(asked(";tokens=200000"), CALLER)) as events:
        await anext(events)
        exchange = await setup.wire.exchange()
        # Nobody reads: what fits into the buffers is sent, then the server waits for us.
        before = -1
        while exchange.sent_bytes > before:
            before = exchange.sent_bytes
            for _ in range(1000):
                await asyncio.sleep(0)
        assert not exchange.sent_whole
        assert exchange.sent_bytes < 16 * 1024 * 1024
    await exchange.client_gone.wait()


async def test_log_probabilities_are_told_to_who_asked_for_them_however(stores: Stores, setup: Setup) -> None:
    using = stores.generation(setup.provider)
    answer = await using.answer(asked(";unasked=1"), CALLER)
    assert answer.logprobs == ()
    if setup.adapter.build is anthropic:
        return  # it has none
    included = '{"include": ["message.output_text.logprobs"]}'
    options = included if setup.adapter.build is responses else '{"logprobs": true}'
    for fields in ({"sampling": Sampling(top_logprobs=0)}, {"provider_options_json": options}):
        answer = await using.answer(asked(**fields), CALLER)
        assert [each.token for each in answer.logprobs] == ["wörd0", " wörd1", " wörd2"]


async def test_options_are_passed_through_and_cannot_override(stores: Stores, setup: Setup) -> None:
    using = stores.generation(setup.provider)
    await using.answer(asked(provider_options_json='{"service_tier": "flex", "metadata": {"a": [1]}}'), CALLER)
    sent = (await setup.wire.exchange()).request.json
    assert (sent["service_tier"], sent["metadata"]) == ("flex", {"a": [1]})
    for field in ("model", "input" if setup.adapter.build is responses else "messages", "stream"):
        with pytest.raises(InvalidArgument) as raised:
            await using.answer(asked(provider_options_json=f'{{"{field}": 1}}'), CALLER)
        assert raised.value.violations[0].field == "prompt.provider_options_json"


async def test_the_key_goes_to_the_provider_and_nowhere_else(stores: Stores, setup: Setup) -> None:
    await stores.generation(setup.provider).answer(asked(), CALLER)
    headers = (await setup.wire.exchange()).request.headers
    if setup.adapter.build is compatible:
        assert "authorization" not in headers
    else:
        assert KEY in headers.get("x-api-key", headers.get("authorization", ""))


async def test_nobody_there_is_unavailable(stores: Stores) -> None:
    async with serving(openai_wire.application) as gone:
        url = gone.url
    for build in (openai, responses, compatible, anthropic):
        provider = build(url)
        with pytest.raises(JanusError) as raised:
            await stores.generation(provider).answer(asked(), CALLER)
        assert (raised.value.code, raised.value.reason) == ("UNAVAILABLE", "PROVIDER_UNAVAILABLE")
        assert url not in raised.value.message
        await provider.close()


@pytest.mark.parametrize("build", [openai, anthropic])
async def test_a_connection_that_is_not_accepted_times_out_by_name(
    stores: Stores, build: Callable[[str], Provider]
) -> None:
    # TEST-NET-1 is routed nowhere; where a sandbox refuses at once instead, that is as good.
    provider = build("http://192.0.2.1:9")
    with pytest.raises(JanusError) as raised:
        await stores.generation(provider).answer(asked(timeouts=Timeouts(connect=0.1)), CALLER)
    error = raised.value
    assert error.metadata.get("leg") == "connect" or error.reason == "PROVIDER_UNAVAILABLE"
    await provider.close()


@pytest.mark.parametrize("limits", [Timeouts(first_event=0.2), Timeouts(total=0.2)])
async def test_what_never_had_a_connection_is_not_on_record(stores: Stores, limits: Timeouts) -> None:
    directives = f";never={limits.total}"
    with full_listener() as url:
        provider = openai(f"{url}/v1")
        with pytest.raises(JanusError) as raised:
            await stores.generation(provider).answer(asked(directives, timeouts=limits), CALLER)
        await provider.close()
    assert (raised.value.code, raised.value.metadata["leg"]) == (
        "DEADLINE_EXCEEDED",
        "total" if limits.total else "first_event",
    )
    assert await recorded(stores, directives) == []


async def test_what_was_reported_before_an_error_is_on_record(stores: Stores) -> None:
    directives = ";error=0;reported=1"
    async with serving(anthropic_wire.application) as wire:
        provider = anthropic(wire.url)
        with pytest.raises(JanusError) as raised:
            await stores.generation(provider).answer(asked(directives), CALLER)
        await provider.close()
    assert raised.value.reason == "PROVIDER_UNAVAILABLE"
    assert set(await recorded(stores, directives)) == {8 + 4 + 2}


@pytest.mark.parametrize("name", ["openai", "anthropic"])
async def test_without_a_key_a_provider_is_not_asked(stores: Stores, name: str) -> None:
    adapter = ADAPTERS[name]
    async with serving(adapter.application) as wire:
        unusable: Provider = (
            Anthropic(NAME, wire.url, None, issuer="anthropic")
            if name == "anthropic"
            else OpenAIChat(NAME, OpenAIClient(wire.url, None), OPENAI, issuer="openai", has_key=False, needs_key=True)
        )
        with pytest.raises(JanusError) as raised:
            await stores.generation(unusable).answer(asked(), CALLER)
        assert raised.value.reason == "PROVIDER_AUTH"
        assert not wire.exchanges


@pytest.mark.parametrize("name", ["openai", "responses"])
async def test_a_refusal_of_the_model_is_a_part_and_a_reason(stores: Stores, name: str) -> None:
    async with built(ADAPTERS[name]) as setup:
        answer = await stores.generation(setup.provider).answer(asked(";refuse=1"), CALLER)
    assert answer.message.parts == (Refusal("wörd0 wörd1 wörd2"),)
    assert answer.reason is FinishReason.REFUSAL


async def test_the_rehearsal_keeps_the_same_promises(stores: Stores) -> None:
    using = stores.generation(Scripted(NAME, 0))
    assert isinstance((await events_of(using, prompt("/long 5")))[-1], Finished)
    assert isinstance((await events_of(using, prompt("/long 5\n/break 2")))[-1], Failed)
    hung = asyncio.create_task(using.answer(prompt("/long 5\n/hang 1"), CALLER))
    await asyncio.sleep(0)
    hung.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hung
