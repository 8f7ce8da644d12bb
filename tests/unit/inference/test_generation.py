"""What holds for every provider: order, one end, limits, and what failures look like."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing

import pytest
from prometheus_client import REGISTRY
from tests.fakes.providers.setups import CALLER, Stores, events_of, prompt
from tests.fakes.providers.told import STOP, Batches, Told, falling_silent, telling

from janus_inference.deadlines import TimeLimits
from janus_inference.events import (
    Failed,
    Finished,
    FinishReason,
    ProviderEvent,
    Started,
    Stopped,
    TextDelta,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallStarted,
    Usage,
    UsageUpdated,
)
from janus_inference.fold import Fold
from janus_inference.model import Routing, Text, Timeouts, ToolCall
from janus_inference.ports import Ask
from janus_inference.provider_errors import Refused, broken, classify
from janus_kit.errors import InvalidArgument, JanusError


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"janus_inference_{name}", {"provider": "upstream", **labels}) or 0.0


async def test_a_stream_starts_once_and_ends_once(stores: Stores) -> None:
    provider = telling([UsageUpdated(Usage(3))], [TextDelta(0, "a"), TextDelta(0, "b")], [TextDelta(0, "c"), STOP])
    events = await events_of(stores.generation(provider), prompt())
    started, usage, first, second, finished = events
    assert isinstance(started, Started)
    assert (started.provider, started.model, started.attempt) == ("upstream", "fake", 1)
    assert usage == UsageUpdated(Usage(3))
    assert (first, second) == (TextDelta(0, "ab"), TextDelta(0, "c"))
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.provider_reason) == (FinishReason.STOP, "stop")
    assert (finished.usage, finished.provider_response_id) == (Usage(3), "id1")
    assert 0 <= finished.timings.overhead <= finished.timings.time_to_first_event <= finished.timings.total
    assert provider.closed == 1


async def test_the_whole_answer_is_the_folded_stream(stores: Stores) -> None:
    call = ToolCall("a", "weather", "{}")
    batches = [
        [TextDelta(0, "one "), TextDelta(0, "two")],
        [ToolCallStarted(1, "a", "weather"), ToolCallArguments(1, "{}"), ToolCallCompleted(1, call)],
        [UsageUpdated(Usage(1, output_tokens=2)), Stopped(FinishReason.TOOL_CALLS, "tool_calls")],
    ]
    fold = Fold()
    for event in await events_of(stores.generation(telling(*batches)), prompt()):
        fold.add(event)
    streamed, unary = fold.answer(), await stores.generation(telling(*batches)).answer(prompt(), CALLER)
    assert unary.message == streamed.message
    assert unary.message.parts == (Text("one two"), call)
    assert (unary.reason, unary.usage) == (streamed.reason, streamed.usage)


async def test_an_answer_without_content_is_whole_too(stores: Stores) -> None:
    started, finished = await events_of(stores.generation(telling([STOP])), prompt())
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)


async def test_usage_that_was_not_said_is_estimated(stores: Stores) -> None:
    events = await events_of(stores.generation(telling([TextDelta(0, "x" * 40), STOP])), prompt("y" * 40))
    assert isinstance(events[-1], Finished)
    assert events[-1].usage == Usage(14, output_tokens=10, estimated=True)


async def test_a_failure_before_the_first_event_is_raised(stores: Stores) -> None:
    refused = classify("upstream", "fake", Refused(529))
    for provider in (Told(telling()._tell, refused), telling([UsageUpdated(Usage(3))], refused)):
        with pytest.raises(JanusError) as raised:
            await events_of(stores.generation(provider), prompt())
        assert raised.value is refused.error


async def test_a_failure_afterwards_ends_the_stream_as_partial(stores: Stores) -> None:
    cut = broken("upstream", "cut")
    truncated = metric("streams_truncated_total")
    provider = telling([TextDelta(0, "half")], cut)
    events = await events_of(stores.generation(provider), prompt())
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert (failed.error, failed.retryable, failed.partial) == (cut.error, True, True)
    assert failed.usage.estimated
    assert failed.usage.output_tokens == 1
    assert provider.closed == 1
    assert metric("streams_truncated_total") == truncated + 1


async def test_a_half_answer_is_no_answer(stores: Stores) -> None:
    cut = broken("upstream", "cut")
    with pytest.raises(JanusError) as raised:
        await stores.generation(telling([TextDelta(0, "half")], cut)).answer(prompt(), CALLER)
    assert raised.value is cut.error


@pytest.mark.parametrize("before", [[], [TextDelta(0, "half")]])
async def test_a_content_filter_is_a_reason_to_finish(stores: Stores, before: list[ProviderEvent]) -> None:
    filtered = classify("upstream", "fake", Refused(400, code="content_filter"))
    batches = [before, filtered] if before else [filtered]
    events = await events_of(stores.generation(telling(*batches)), prompt())
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.CONTENT_FILTER


LIMITS = TimeLimits(first_event=5, idle=5, total=5)


@pytest.mark.parametrize(
    ("leg", "provider", "timeouts", "remaining"),
    [
        ("first_event", falling_silent(), Timeouts(first_event=0.01), None),
        ("first_event", falling_silent([UsageUpdated(Usage(1))]), Timeouts(first_event=0.01), None),
        ("total", falling_silent(), Timeouts(total=0.01), None),
        ("call", falling_silent(), Timeouts(), 0.01),
    ],
)
async def test_each_limit_before_the_first_event_is_raised_by_name(
    stores: Stores, leg: str, provider: Told, timeouts: Timeouts, remaining: float | None
) -> None:
    using = stores.generation(provider, LIMITS)
    with pytest.raises(JanusError) as raised:
        await using.answer(prompt(timeouts=timeouts), CALLER, remaining=remaining)
    assert (raised.value.code, raised.value.metadata["leg"]) == ("DEADLINE_EXCEEDED", leg)
    assert provider.closed == 1


@pytest.mark.parametrize(("leg", "timeouts"), [("idle", Timeouts(idle=0.01)), ("total", Timeouts(total=0.03, idle=1))])
async def test_each_limit_afterwards_ends_the_stream_by_name(stores: Stores, leg: str, timeouts: Timeouts) -> None:
    provider = falling_silent([TextDelta(0, "half")])
    failed = (await events_of(stores.generation(provider, LIMITS), prompt(timeouts=timeouts)))[-1]
    assert isinstance(failed, Failed)
    assert failed.error.metadata["leg"] == leg
    assert failed.retryable
    assert provider.closed == 1


async def test_a_count_is_no_piece_of_an_answer(stores: Stores) -> None:
    async def tell(ask: Ask) -> Batches:
        yield [TextDelta(0, "half")]
        while True:
            await asyncio.sleep(0.005)
            yield [UsageUpdated(Usage(3, output_tokens=1))]

    provider = Told(tell)
    asked = prompt(timeouts=Timeouts(idle=0.1, total=2))
    failed = (await events_of(stores.generation(provider, LIMITS), asked))[-1]
    assert isinstance(failed, Failed)
    assert failed.error.metadata["leg"] == "idle"
    assert provider.closed == 1


async def test_a_slow_reader_is_no_idle_provider(stores: Stores) -> None:
    provider = telling([TextDelta(0, "a")], [TextDelta(0, "b"), STOP])
    seen = []
    async for numbered in stores.generation(provider).run(prompt(timeouts=Timeouts(idle=0.02)), CALLER):
        await asyncio.sleep(0.03)  # longer than the limit, but spent by the reader
        seen.append(numbered.event)
    assert isinstance(seen[-1], Finished)


async def closing(stores: Stores, provider: Told) -> None:
    async with aclosing(stores.generation(provider).run(prompt(), CALLER)) as events:
        async for numbered in events:
            if isinstance(numbered.event, TextDelta):
                return


async def cancelling(stores: Stores, provider: Told) -> None:
    reading = asyncio.create_task(stores.generation(provider).answer(prompt(), CALLER))
    await provider.opened.wait()
    assert metric("streams_in_flight") == 1
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize("leave", [closing, cancelling])
async def test_whoever_leaves_closes_the_provider(stores: Stores, leave: Callable[[Told], Awaitable[None]]) -> None:
    before = metric("attempts_total", outcome="cancelled")
    measured = metric("upstream_cancel_seconds_count")
    provider = falling_silent([TextDelta(0, "half")])
    tasks = asyncio.all_tasks()
    await leave(stores, provider)
    assert provider.closed == 1
    assert asyncio.all_tasks() == tasks
    assert metric("streams_in_flight") == 0
    assert metric("attempts_total", outcome="cancelled") == before + 1
    assert metric("upstream_cancel_seconds_count") == measured + 1


async def test_bad_input_reaches_no_provider(stores: Stores) -> None:
    provider = telling([STOP])
    for asked in (prompt(stop=("",)), prompt(model="nope"), prompt(routing=Routing(("nope",)))):
        with pytest.raises(JanusError):
            await stores.generation(provider).answer(asked, CALLER)
    assert provider.closed == 0


async def test_a_prompt_that_the_dialect_cannot_say_counts_as_refused(stores: Stores) -> None:
    class Choosy(Told):
        def stream(self, ask: Ask) -> AbstractAsyncContextManager[Batches]:
            raise InvalidArgument("prompt.stop", "no")

    before = metric("attempts_total", outcome="refused")
    with pytest.raises(InvalidArgument):
        await stores.generation(Choosy(telling()._tell)).answer(prompt(), CALLER)
    assert metric("attempts_total", outcome="refused") == before + 1
