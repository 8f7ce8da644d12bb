"""Retries, fallbacks, hedges and breakers: who is asked, what is told of it, and what is left behind."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.fakes.providers.setups import CALLER, Stores, events_of, prompt
from tests.fakes.providers.told import STOP, Batches, Told, falling_silent, telling

from janus_inference.adapters.redis_replay import RedisReplay
from janus_inference.events import (
    Event,
    Failed,
    Finished,
    ProviderEvent,
    RouteChanged,
    Started,
    TextDelta,
    Usage,
    UsageUpdated,
)
from janus_inference.generation import Generation
from janus_inference.model import Prompt, Routing
from janus_inference.ports import Ask, ReplayAway
from janus_inference.provider_errors import ProviderFailure, Refused, broken, classify, unreachable
from janus_inference.routing import Alias
from janus_inference.settings import RoutingSettings
from janus_kit.errors import InvalidArgument, JanusError, Unavailable

QUICK = RoutingSettings(backoff_s=0.001, backoff_most_s=0.05)
OVERLOADED = classify("one", "fake", Refused(529))
REVOKED = classify("one", "fake", Refused(401))
MALFORMED = classify("one", "fake", Refused(400))


class Playing(Told):
    """Plays one part after the other, a part an attempt: a failure of the opening, or batches."""

    def __init__(self, *parts: ProviderFailure | Sequence[Sequence[ProviderEvent] | ProviderFailure]) -> None:
        super().__init__(telling()._tell)
        self._parts = list(parts)
        self.asked: list[str] = []

    @asynccontextmanager
    async def stream(self, ask: Ask) -> AsyncIterator[Batches]:
        self.asked.append(ask.model)
        part = self._parts[min(len(self.asked), len(self._parts)) - 1]
        ask.stopwatch.sent()
        ask.stopwatch.connected()
        if isinstance(part, ProviderFailure):
            raise part
        async with telling(*part).stream(ask) as batches:
            yield batches


def saying(text: str) -> list[Sequence[ProviderEvent]]:
    return [[TextDelta(0, text)], [STOP]]


def falling_back(*models: str) -> Prompt:
    return prompt(model=f"{models[0]}/fake", routing=Routing(tuple(f"{model}/fake" for model in models[1:])))


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def outcomes(stores: Stores, generation_id: str) -> list[tuple[int, str, str]]:
    """What is on record of a generation: attempt, provider, outcome."""
    await stores.ledger.drain()
    async with stores.pool.tenant(CALLER.tenant) as connection:
        rows = await connection.fetch(
            "SELECT attempt, provider, outcome FROM inference.usage WHERE generation_id = $1 ORDER BY attempt",
            generation_id,
        )
    return [tuple(row) for row in rows]


async def test_a_retryable_failure_is_tried_again_and_told(stores: Stores) -> None:
    provider = Playing(OVERLOADED, OVERLOADED, saying("third time"))
    events = await events_of(stores.generation({"one": provider}, routing=QUICK), prompt(model="one/fake"))
    started, again, once_more, text, finished = events
    assert isinstance(started, Started)
    assert (started.provider, started.attempt) == ("one", 1)
    assert again == RouteChanged("one/fake", "one/fake", "PROVIDER_UNAVAILABLE", 2)
    assert once_more == RouteChanged("one/fake", "one/fake", "PROVIDER_UNAVAILABLE", 3)
    assert text == TextDelta(0, "third time")
    assert isinstance(finished, Finished)
    assert await outcomes(stores, started.generation_id) == [
        (1, "one", "unavailable"),
        (2, "one", "unavailable"),
        (3, "one", "ok"),
    ]


@pytest.mark.parametrize("failure", [OVERLOADED, REVOKED, unreachable("one"), broken("one", "cut")])
async def test_another_target_answers_for_one_that_cannot(stores: Stores, failure: ProviderFailure) -> None:
    providers = {"one": Playing(failure), "two": Playing(saying("two speaks"))}
    using = stores.generation(providers, routing=QUICK)
    events = await events_of(using, falling_back("one", "two"))
    assert events[1] == RouteChanged("one/fake", "two/fake", failure.error.reason, 2)
    assert text_of(events) == "two speaks"
    answer = await using.answer(falling_back("one", "two"), CALLER)
    assert (answer.provider, answer.model, answer.attempts) == ("two", "fake", 2)


async def test_what_no_target_can_mend_is_asked_once(stores: Stores) -> None:
    providers = {"one": Playing(MALFORMED), "two": Playing(saying("never"))}
    with pytest.raises(InvalidArgument):
        await stores.generation(providers, routing=QUICK).answer(falling_back("one", "two"), CALLER)
    assert (providers["one"].asked, providers["two"].asked) == (["fake"], [])


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("hedge_after", [None, 5.0])
async def test_a_target_that_cannot_say_the_prompt_is_passed_over(
    stores: Stores, resumable: bool, hedge_after: float | None
) -> None:
    """It was not asked, so no event names it."""

    class Choosy(Playing):
        def stream(self, ask: Ask) -> AbstractAsyncContextManager[Batches]:
            raise InvalidArgument("prompt.stop", "no", reason="CAPABILITY_UNSUPPORTED")

    def asked(*models: str) -> Prompt:
        falling = falling_back(*models)
        return replace(falling, resumable=resumable, routing=replace(falling.routing, hedge_after=hedge_after))

    providers = {"one": Choosy(), "two": Playing(OVERLOADED, saying("two speaks")), "three": Choosy()}
    using = stores.generation(providers, routing=QUICK)
    events = await events_of(using, asked("one", "two", "three"))
    began = [event for event in events if isinstance(event, Started | RouteChanged)]
    assert [(event.provider, event.attempt) for event in began if isinstance(event, Started)] == [("two", 1)]
    assert began[1:] == [RouteChanged("two/fake", "two/fake", "PROVIDER_UNAVAILABLE", 2)]
    assert text_of(events) == "two speaks"
    with pytest.raises(InvalidArgument):
        await events_of(using, asked("one"))


@pytest.mark.parametrize("hedge_after", [None, 5.0])
async def test_nobody_is_asked_for_a_resumable_answer_whose_replay_cannot_be_begun(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, hedge_after: float | None
) -> None:
    async def away(*_: object) -> None:
        await asyncio.sleep(0.02)
        raise ReplayAway

    monkeypatch.setattr(RedisReplay, "open", away)
    provider = Playing(saying("hello"))
    with pytest.raises(Unavailable):
        asked = replace(prompt(model="one/fake", routing=Routing(hedge_after=hedge_after)), resumable=True)
        await events_of(stores.generation({"one": provider}), asked)
    assert provider.asked == []


async def test_after_the_first_event_nobody_else_is_asked(stores: Stores) -> None:
    providers = {
        "one": Playing([[TextDelta(0, "half")], broken("one", "cut")]),
        "two": Playing(saying("never")),
    }
    events = await events_of(stores.generation(providers, routing=QUICK), falling_back("one", "two"))
    assert isinstance(events[-1], Failed)
    assert events[-1].partial
    assert providers["two"].asked == []


async def test_usage_alone_is_no_event_that_keeps_from_trying_again(stores: Stores) -> None:
    provider = Playing([[UsageUpdated(Usage(3))], broken("one", "cut")], saying("again"))
    assert text_of(await events_of(stores.generation({"one": provider}, routing=QUICK), prompt(model="one/fake")))


async def test_there_are_no_more_attempts_than_allowed_and_the_failure_is_told(stores: Stores) -> None:
    provider = Playing(OVERLOADED)
    with pytest.raises(JanusError) as raised:
        await stores.generation({"one": provider}, routing=QUICK).answer(prompt(model="one/fake"), CALLER)
    assert raised.value.reason == "PROVIDER_UNAVAILABLE"
    assert len(provider.asked) == QUICK.max_attempts


async def test_a_provider_that_asks_for_a_long_pause_is_not_retried(stores: Stores) -> None:
    provider = Playing(classify("one", "fake", Refused(429, retry_after=30)))
    with pytest.raises(JanusError) as raised:
        await stores.generation({"one": provider}, routing=QUICK).answer(prompt(model="one/fake"), CALLER)
    assert (raised.value.reason, raised.value.retry_after) == ("PROVIDER_RATE_LIMITED", 30)
    assert len(provider.asked) == 1


async def test_extra_attempts_stay_within_the_budget(stores: Stores) -> None:
    provider = Playing(OVERLOADED)
    routing = RoutingSettings(backoff_s=0, retry_budget_least=2, retry_budget_ratio=0.2, breaker_failures=1000)
    using = stores.generation({"one": provider}, routing=routing)
    for _ in range(60):
        with pytest.raises(JanusError):
            await using.answer(prompt(model="one/fake"), CALLER)
    assert len(provider.asked) - 60 == 12


async def test_a_fallback_to_another_provider_needs_no_budget_and_a_second_model_of_the_same_one_does(
    stores: Stores,
) -> None:
    """It gives a provider no more work than its callers have; a second request to the one in trouble does."""
    routing = RoutingSettings(backoff_s=0, retry_budget_least=2, retry_budget_ratio=0, breaker_failures=1000)
    one, two = Playing(classify("one", "fake", Refused(401))), Playing(saying("two"))
    using = stores.generation({"one": one, "two": two}, routing=routing)
    for _ in range(10):
        assert text_of(await events_of(using, falling_back("one", "two"))) == "two"
    assert (len(one.asked), len(two.asked)) == (10, 10)
    for _ in range(10):
        with pytest.raises(JanusError):
            await using.answer(prompt(model="one/fake", routing=Routing(("one/other",))), CALLER)
    assert len(one.asked) == 10 + 10 + 2


def opened(stores: Stores, one: Told, two: Told | None = None, **routing: Any) -> Generation:
    rules = RoutingSettings(
        **{"max_attempts": 2, "backoff_s": 0, "breaker_failures": 2, "breaker_open_s": 60, **routing}
    )
    return stores.generation({"one": one} | ({"two": two} if two else {}), routing=rules)


async def test_an_open_breaker_says_why_and_when_to_come_back_without_asking(stores: Stores) -> None:
    provider = Playing(REVOKED)
    using = opened(stores, provider)
    for _ in range(4):
        with pytest.raises(JanusError) as raised:
            await using.answer(prompt(model="one/fake"), CALLER)
        assert raised.value.reason == "PROVIDER_AUTH"
    assert len(provider.asked) == 2
    assert raised.value.retry_after == pytest.approx(60, abs=5)


async def test_behind_an_open_breaker_the_next_target_is_asked_first(stores: Stores) -> None:
    one, two = Playing(OVERLOADED), Playing(saying("two speaks"))
    using = opened(stores, one, two)
    for _ in range(5):
        answer = await using.answer(falling_back("one", "two"), CALLER)
        assert answer.provider == "two"
    assert (len(one.asked), len(two.asked)) == (2, 5)
    assert answer.attempts == 1


async def test_a_caller_s_own_impatience_opens_no_breaker(stores: Stores) -> None:
    from janus_inference.model import Timeouts

    using = opened(stores, falling_silent())
    for _ in range(5):
        with pytest.raises(JanusError) as raised:
            await using.answer(prompt(model="one/fake", timeouts=Timeouts(first_event=0.005)), CALLER)
        assert raised.value.metadata["leg"] == "first_event"


def hedged(stores: Stores, one: Told, two: Told, after: float = 0.01, **routing: Any) -> Generation:
    alias = Alias((("one/fake", 0), ("two/fake", 0)), hedge_after=after)
    rules = RoutingSettings(**{"backoff_s": 0, **routing})
    return stores.generation({"one": one, "two": two}, routing=rules, aliases={"sure": alias})


async def test_a_hedge_answers_for_one_that_is_slow_and_the_loser_is_closed_and_recorded(stores: Stores) -> None:
    slow = falling_silent()
    events = await events_of(hedged(stores, slow, telling(*saying("fast"))), prompt(model="sure"))
    started, changed, text, finished = events
    assert isinstance(started, Started)
    assert started.provider == "one"
    assert changed == RouteChanged("one/fake", "two/fake", "HEDGED", 2)
    assert text == TextDelta(0, "fast")
    assert isinstance(finished, Finished)
    assert slow.closed == 1
    assert await outcomes(stores, started.generation_id) == [(1, "one", "cancelled"), (2, "two", "ok")]


async def test_a_hedge_passes_over_a_target_that_cannot_say_the_prompt(stores: Stores) -> None:
    class Choosy(Told):
        def stream(self, ask: Ask) -> AbstractAsyncContextManager[Batches]:
            raise InvalidArgument("prompt.stop", "no", reason="CAPABILITY_UNSUPPORTED")

    providers = {"one": falling_silent(), "two": Choosy(telling()._tell), "three": telling(*saying("fast"))}
    alias = Alias(tuple((f"{name}/fake", 0) for name in providers), hedge_after=0.01)
    using = stores.generation(providers, routing=RoutingSettings(backoff_s=0), aliases={"sure": alias})
    events = await events_of(using, prompt(model="sure"))
    assert events[1] == RouteChanged("one/fake", "three/fake", "HEDGED", 2)
    assert text_of(events) == "fast"


async def test_a_hedge_that_loses_leaves_no_trace_in_the_stream(stores: Stores) -> None:
    begin = asyncio.Event()

    async def tell(ask: Ask) -> Batches:
        await begin.wait()
        for batch in saying("slow but first"):
            yield batch

    other = falling_silent()
    using = hedged(stores, Told(tell), other)
    reading = asyncio.create_task(events_of(using, prompt(model="sure")))
    await other.opened.wait()
    begin.set()
    events = await reading
    assert text_of(events) == "slow but first"
    assert not any(isinstance(event, RouteChanged) for event in events)
    assert other.closed == 1


async def test_a_fast_first_target_is_never_hedged(stores: Stores) -> None:
    other = telling(*saying("never"))
    assert text_of(await events_of(hedged(stores, telling(*saying("fast")), other, 5), prompt(model="sure"))) == "fast"
    assert not other.opened.is_set()


async def test_when_the_first_fails_the_hedge_goes_on(stores: Stores) -> None:
    fail, answer = asyncio.Event(), asyncio.Event()

    async def failing(ask: Ask) -> Batches:
        await fail.wait()
        raise OVERLOADED
        yield []

    async def answering(ask: Ask) -> Batches:
        await answer.wait()
        for batch in saying("two speaks"):
            yield batch

    two = Told(answering)
    reading = asyncio.create_task(events_of(hedged(stores, Told(failing), two), prompt(model="sure")))
    await two.opened.wait()
    fail.set()
    await asyncio.sleep(0)
    answer.set()
    events = await reading
    assert events[1] == RouteChanged("one/fake", "two/fake", "PROVIDER_UNAVAILABLE", 2)
    assert text_of(events) == "two speaks"


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_hedge_that_is_refused_does_not_end_a_call_that_another_answers(stores: Stores, status: int) -> None:
    refused = asyncio.Event()

    async def slow(ask: Ask) -> Batches:
        await refused.wait()
        for batch in saying("slow but well"):
            yield batch

    async def refusing(ask: Ask) -> Batches:
        asyncio.get_running_loop().call_later(0.02, refused.set)
        raise classify("two", "fake", Refused(status))
        yield []

    events = await events_of(hedged(stores, Told(slow), Told(refusing)), prompt(model="sure"))
    assert text_of(events) == "slow but well"
    started = events[0]
    assert isinstance(started, Started)
    assert await outcomes(stores, started.generation_id) == [(1, "one", "ok"), (2, "two", "rejected")]


async def test_a_hedge_answers_for_one_that_is_refused_meanwhile(stores: Stores) -> None:
    hedging = asyncio.Event()

    async def refusing(ask: Ask) -> Batches:
        await hedging.wait()
        raise MALFORMED
        yield []

    async def answering(ask: Ask) -> Batches:
        hedging.set()
        await asyncio.sleep(0.02)
        for batch in saying("two speaks"):
            yield batch

    events = await events_of(hedged(stores, Told(refusing), Told(answering)), prompt(model="sure"))
    assert text_of(events) == "two speaks"


async def test_what_all_of_a_race_refuse_is_refused(stores: Stores) -> None:
    hedging = asyncio.Event()

    async def one(ask: Ask) -> Batches:
        await hedging.wait()
        await asyncio.sleep(0.02)
        raise MALFORMED
        yield []

    async def two(ask: Ask) -> Batches:
        hedging.set()
        raise classify("two", "fake", Refused(400))
        yield []

    with pytest.raises(InvalidArgument, match="'two'") as raised:
        await hedged(stores, Told(one), Told(two)).answer(prompt(model="sure"), CALLER)
    assert raised.value.reason == "PROVIDER_REJECTED_REQUEST"


async def test_a_hedge_whose_dialect_refuses_the_prompt_does_not_end_the_call(stores: Stores) -> None:
    class Strict(Told):
        def stream(self, ask: Ask) -> AbstractAsyncContextManager[Batches]:
            refused.set()
            raise InvalidArgument("prompt.stop", "no")

    refused = asyncio.Event()

    async def slow(ask: Ask) -> Batches:
        await refused.wait()
        await asyncio.sleep(0.02)
        for batch in saying("slow but well"):
            yield batch

    events = await events_of(hedged(stores, Told(slow), Strict(telling()._tell)), prompt(model="sure"))
    assert text_of(events) == "slow but well"


async def test_a_target_that_there_is_no_budget_to_hedge_at_is_still_asked_when_the_first_fails(stores: Stores) -> None:
    async def late(ask: Ask) -> Batches:
        await asyncio.sleep(0.05)
        raise OVERLOADED
        yield

    two = Playing(saying("two speaks"))
    using = hedged(stores, Told(late), two, retry_budget_least=0, retry_budget_ratio=0)
    events = await events_of(using, prompt(model="sure"))
    assert events[1] == RouteChanged("one/fake", "two/fake", "PROVIDER_UNAVAILABLE", 2)
    assert text_of(events) == "two speaks"


async def test_whoever_leaves_during_a_race_closes_both(stores: Stores) -> None:
    one, two = falling_silent(), falling_silent()
    using = hedged(stores, one, two)
    reading = asyncio.create_task(using.answer(prompt(model="sure"), CALLER))
    await two.opened.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert (one.closed, two.closed) == (1, 1)
    # Stores have tasks of their own, which come and go.
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("attempt-", "close-"))]


async def test_a_resumable_generation_tells_every_attempt_as_it_begins(stores: Stores) -> None:
    provider = Playing(OVERLOADED)
    using = stores.generation({"one": provider}, routing=QUICK)
    events = await events_of(using, prompt(model="one/fake", resumable=True))
    assert isinstance(events[0], Started)
    assert [event.attempt for event in events if isinstance(event, RouteChanged)] == [2, 3, 4]
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert not failed.partial
    assert failed.retryable


async def test_leaving_in_the_middle_puts_what_was_used_on_record(stores: Stores) -> None:
    provider = falling_silent([UsageUpdated(Usage(7))], [TextDelta(0, "x" * 40)])
    async with aclosing(stores.generation({"one": provider}).run(prompt(model="one/fake"), CALLER)) as events:
        async for numbered in events:
            if isinstance(numbered.event, Started):
                generation_id = numbered.event.generation_id
            if isinstance(numbered.event, TextDelta):
                break
    await stores.ledger.drain()
    async with stores.pool.tenant(CALLER.tenant) as connection:
        row = await connection.fetchrow(
            "SELECT outcome, input_uncached_tokens, output_tokens, estimated FROM inference.usage"
            " WHERE generation_id = $1",
            generation_id,
        )
    assert tuple(row) == ("cancelled", 7, 10, True)
