"""How many tokens a prompt has, as the provider counts them or as they are guessed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.fakes.providers import anthropic_wire
from tests.fakes.providers.http_server import WireServer, serving
from tests.fakes.providers.prompts import prompt

from janus_inference.accounting import estimated_prompt_tokens
from janus_inference.adapters.anthropic import Anthropic
from janus_inference.adapters.scripted import Scripted
from janus_inference.counting import Counted, Counting
from janus_inference.deadlines import TimeLimits
from janus_inference.model import Audio, Media, Message, Prompt, Role, Text, ToolDefinition
from janus_inference.ports import TokenCounter
from janus_inference.routing import ProviderModels, Routes
from janus_kit.errors import InvalidArgument, JanusError

KEY = "sk-test-very-secret"


def counting(limits: TimeLimits | None = None, **counters: TokenCounter) -> Counting:
    names = {"upstream", *counters}
    routes = Routes(dict.fromkeys(names, ProviderModels(frozenset(), frozenset(), True)), {}, "upstream/fake")
    return Counting(counters, routes, limits or TimeLimits())


@asynccontextmanager
async def anthropic(key: str | None = KEY) -> AsyncIterator[tuple[Anthropic, WireServer]]:
    async with serving(anthropic_wire.application) as wire:
        provider = Anthropic("upstream", wire.url, key, issuer="anthropic")
        await provider.warm()
        try:
            yield provider, wire
        finally:
            await provider.close()


async def test_anthropic_counts_what_it_would_be_asked() -> None:
    async with anthropic() as (provider, wire):
        asked = prompt("one two", tools=(ToolDefinition("clock"),), stop=("x",), max_output_tokens=7)
        counted = await counting(upstream=provider).count(asked)
        (exchange,) = wire.exchanges
        assert counted == Counted(len(exchange.request.body.split()), exact=True)
        assert exchange.request.path == "/v1/messages/count_tokens"
        assert exchange.request.json.keys() == {"model", "messages", "tools"}


async def test_options_that_are_about_the_answer_are_not_sent_to_be_counted() -> None:
    async with anthropic() as (provider, wire):
        options = '{"cache_control": {"type": "ephemeral"}, "service_tier": "auto"}'
        await counting(upstream=provider).count(prompt(provider_options_json=options))
        assert "cache_control" in wire.exchanges[0].request.json
        assert "service_tier" not in wire.exchanges[0].request.json


@pytest.mark.parametrize(
    ("directives", "code", "reason"),
    [
        (";status=429", "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED"),
        (";status=529", "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (";status=401", "FAILED_PRECONDITION", "PROVIDER_AUTH"),
        (";garbage=1", "UNAVAILABLE", "PROVIDER_STREAM_BROKEN"),
    ],
)
async def test_a_provider_that_cannot_count_now_is_an_error_and_no_estimate(
    directives: str, code: str, reason: str
) -> None:
    async with anthropic() as (provider, _):
        with pytest.raises(JanusError) as raised:
            await counting(upstream=provider).count(prompt(model=f"upstream/fake{directives}"))
        assert (raised.value.code, raised.value.reason) == (code, reason)
        assert KEY not in f"{raised.value!r} {raised.value.metadata}"


async def test_without_a_key_nothing_is_counted() -> None:
    async with anthropic(key=None) as (provider, wire):
        with pytest.raises(JanusError) as raised:
            await counting(upstream=provider).count(prompt())
        assert raised.value.reason == "PROVIDER_AUTH"
        assert wire.exchanges == []


@pytest.mark.parametrize(
    ("limits", "remaining", "leg"),
    [(TimeLimits(first_event=0.5), None, "first_event"), (TimeLimits(total=0.5), 9.0, "total"), (None, 0.5, "call")],
)
async def test_counting_ends_when_its_time_is_up(limits: TimeLimits | None, remaining: float | None, leg: str) -> None:
    async with anthropic() as (provider, wire):
        # Long enough for the request to be there on a busy machine.
        with pytest.raises(JanusError) as raised:
            await counting(limits, upstream=provider).count(prompt(model="upstream/fake;silent=1"), remaining=remaining)
        assert raised.value.metadata["leg"] == leg
        await asyncio.wait_for((await wire.exchange()).client_gone.wait(), 5)


async def test_the_rehearsal_counts_its_words() -> None:
    counted = await counting(upstream=Scripted("upstream", 0)).count(prompt("three small words", system="and two"))
    assert counted == Counted(5, exact=True)


async def test_a_provider_that_does_not_count_is_estimated() -> None:
    asked = prompt("x" * 400)
    assert await counting().count(asked) == Counted(estimated_prompt_tokens(asked), exact=False)


async def test_a_prompt_that_could_not_be_asked_cannot_be_counted() -> None:
    sound = Prompt((Message(Role.USER, (Text("x"), Audio(Media("audio/wav", data=b"x")))),), model="upstream/fake")
    async with anthropic() as (provider, wire):
        with pytest.raises(InvalidArgument) as raised:
            await counting(upstream=provider).count(sound)
        assert raised.value.reason == "CAPABILITY_UNSUPPORTED"
        with pytest.raises(InvalidArgument):
            await counting(upstream=provider).count(prompt(model="nobody/x"))
        assert wire.exchanges == []
