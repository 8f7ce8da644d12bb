"""An answer that is held, whole or to be stored, cannot grow without end."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.providers.setups import CALLER, Stores, events_of, prompt
from tests.fakes.providers.told import STOP, Batches, Told, telling

from janus_inference import answer_size
from janus_inference.answer_size import AnswerSize
from janus_inference.coalesce import Joined
from janus_inference.events import (
    CitationAdded,
    Failed,
    Finished,
    FinishReason,
    Numbered,
    OpaqueAdded,
    ProviderEvent,
    ReasoningDelta,
    ReasoningSignature,
    RefusalDelta,
    Started,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallStarted,
    Usage,
    UsageUpdated,
)
from janus_inference.fold import Fold
from janus_inference.model import CachePolicy, Citation, Opaque, Prompt, Reasoning, Refusal, Text, ToolCall
from janus_inference.ports import Ask
from janus_kit.errors import JanusError

MOST = 10_000
REASONS = ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_size, "MOST_BYTES", MOST)


def endless(event: ProviderEvent, *before: ProviderEvent) -> Told:
    async def tell(ask: Ask) -> Batches:
        for each in before:
            yield [each]
        while True:
            yield [event]

    return Told(tell)


async def recorded(stores: Stores) -> list[tuple[str, bool]]:
    async with stores.pool.tenant(CALLER.tenant) as connection:
        rows = await connection.fetch("SELECT outcome, output_tokens FROM inference.usage ORDER BY started_at")
    return [(row["outcome"], row["output_tokens"] > 0) for row in rows]


@pytest.mark.parametrize(
    "event",
    [
        TextDelta(0, "z" * 1000),
        ReasoningDelta(0, text="z" * 1000),
        ReasoningDelta(0, redacted=b"z" * 1000),
        RefusalDelta(0, "z" * 1000),
        TextDelta(0, "z", (TokenLogprob("z", -1.0, (("y" * 500, -2.0),)),)),
        CitationAdded(Citation(quote="z" * 500, data=b"z" * 500)),
        OpaqueAdded(0, Opaque("upstream", "kind", b"z" * 1000)),
        ToolCallStarted(0, "a", "weather"),
    ],
)
async def test_a_whole_answer_that_does_not_end_is_ended(stores: Stores, event: ProviderEvent) -> None:
    provider = endless(event)
    with pytest.raises(JanusError) as raised:
        await stores.generation(provider).answer(prompt(), CALLER)
    assert (raised.value.code, raised.value.reason) == REASONS
    assert raised.value.retry_after is None
    assert provider.closed == 1


async def test_what_an_answer_that_was_ended_used_is_on_record(stores: Stores) -> None:
    before = await recorded(stores)
    with pytest.raises(JanusError):
        await stores.generation(endless(TextDelta(0, "z" * 1000))).answer(prompt(), CALLER)
    assert (await recorded(stores))[len(before) :] == [("too_large", True)]


async def test_no_other_target_is_asked_for_an_answer_that_was_too_large(stores: Stores) -> None:
    breakers = stores.generation(provider := endless(TextDelta(0, "z" * 1000))).desk.breakers
    for _ in range(breakers.rules.failures + 1):
        with pytest.raises(JanusError) as raised:
            await stores.generation(provider).answer(prompt(), CALLER)
        assert raised.value.reason == "MESSAGE_TOO_LARGE"


async def test_an_answer_that_is_too_large_to_be_resumed_says_what_is_on_record(stores: Stores) -> None:
    before = await recorded(stores)
    provider = endless(TextDelta(0, "z" * 1000))
    events = await events_of(stores.generation(provider), prompt(resumable=True))
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert (failed.error.code, failed.error.reason) == REASONS
    assert (await recorded(stores))[len(before) :] == [("cancelled", True)]
    async with stores.pool.tenant(CALLER.tenant) as connection:
        used = await connection.fetchval("SELECT output_tokens FROM inference.usage ORDER BY started_at DESC LIMIT 1")
    assert failed.usage.output_tokens == used
    assert provider.closed == 1


async def test_a_stream_that_will_be_stored_is_ended(stores: Stores) -> None:
    provider = endless(TextDelta(0, "z" * 1000))
    events = await events_of(stores.generation(provider), prompt(request_id="endless"))
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert (failed.error.code, failed.error.reason) == REASONS
    assert (failed.retryable, failed.partial) == (False, True)
    assert failed.usage.output_tokens >= MOST / 4
    assert provider.closed == 1


async def test_a_stream_that_nobody_holds_may_be_longer(stores: Stores) -> None:
    provider = telling(*[[TextDelta(0, "z" * 1000)]] * 50, [STOP])
    events = await events_of(stores.generation(provider), prompt())
    assert isinstance(events[-1], Finished)


async def test_the_arguments_of_a_tool_call_are_held_in_every_stream(stores: Stores) -> None:
    provider = endless(ToolCallArguments(0, "z" * 1000), TextDelta(0, "z" * 1000), ToolCallStarted(0, "a", "weather"))
    failed = (await events_of(stores.generation(provider), prompt()))[-1]
    assert isinstance(failed, Failed)
    assert failed.error.reason == "MESSAGE_TOO_LARGE"


async def test_an_answer_too_large_for_the_cache_is_whole_and_not_kept(stores: Stores) -> None:
    call = ToolCall("a", "weather", "{}")
    said: list[list[ProviderEvent]] = [
        *[[TextDelta(0, "z" * 1000)] for _ in range(50)],
        [ToolCallStarted(1, "a", "weather"), ToolCallArguments(1, "{}"), ToolCallCompleted(1, call), STOP],
    ]
    for _ in range(2):
        asked = prompt("too large", cache=CachePolicy(read=True, write=True))
        finished = (await events_of(stores.generation(telling(*said)), asked))[-1]
        assert isinstance(finished, Finished)
        assert not finished.from_cache


async def test_a_long_stream_that_can_be_resumed_is_stored_event_for_event(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_size, "MOST_BYTES", 1_000_000)
    asked = prompt(request_id="long", resumable=True)

    async def read(provider: Told, prompt: Prompt) -> list[Numbered]:
        return [each async for each in stores.generation(provider).run(prompt, CALLER, digest=b"d")]

    first = await read(telling(*[[TextDelta(0, f"w{number} ")] for number in range(2500)], [STOP]), asked)
    assert len(first) == 2502
    again = await read(telling(), asked)
    assert again[:-1] == first[:-1]
    assert isinstance(first[-1].event, Finished)
    assert isinstance(again[-1].event, Finished)
    assert again[-1].event.usage == first[-1].event.usage


pieces = st.sampled_from(["z", "ü", "zzzz"])
parts = st.integers(0, 1)
events = st.one_of(
    st.builds(TextDelta, parts, pieces),
    st.builds(RefusalDelta, parts, pieces),
    st.builds(ToolCallArguments, parts, pieces),
    st.builds(lambda part, said: ReasoningDelta(part, text=said), parts, pieces),
    st.builds(lambda part, said: ReasoningDelta(part, summary=said), parts, pieces),
    st.builds(ReasoningSignature, parts, st.just(b"proof"), st.just("upstream")),
)


@given(st.lists(events, max_size=40))
def test_no_more_is_counted_than_is_held(said: list[ProviderEvent]) -> None:
    whole, held, joined = AnswerSize(), Joined(), AnswerSize()
    for event in said:
        whole.add(event)
        held.add(event)
    for event in held:
        joined.add(event)
    fragments = [sum(isinstance(event, ToolCallArguments) for event in events) for events in (said, held)]
    # A fragment of arguments is also held as it came, until its call is whole.
    assert whole.bytes - joined.bytes == 64 * (fragments[0] - fragments[1])


@given(st.lists(events, max_size=40), st.integers(1, 5))
def test_what_is_held_in_between_adds_up_to_the_same(said: list[ProviderEvent], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_once = Joined()
        for event in said:
            at_once.add(event)
        patch.setattr("janus_inference.coalesce._WORTH_JOINING", most)
        held = Joined()
        for event in said:
            held.add(event)
        assert list(held) == list(at_once)


def test_many_small_pieces_take_little_more_than_their_text() -> None:
    fold, count = Fold(), 20_000
    tracemalloc.start()
    try:
        for number in range(count):
            for event in (ReasoningDelta(0, text=f"{number:04}"), UsageUpdated(Usage(number))):
                fold.add(event)
        for number in range(count):
            fold.add(TextDelta(1, f"{number:04}"))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 50 * count


async def test_pieces_are_put_together_in_order() -> None:
    fold = Fold()
    for event in (
        Started("g", "upstream", "fake", 1),
        ReasoningDelta(0, text="a"),
        TextDelta(1, "b", (TokenLogprob("b", -1.0),)),
        ReasoningDelta(0, text="c"),
        TextDelta(1, "d"),
        RefusalDelta(2, "e"),
        TextDelta(1, "f", (TokenLogprob("f", -1.0),)),
        RefusalDelta(2, "g"),
    ):
        fold.add(event)
    fold.add(Finished(FinishReason.STOP, "stop", Usage(), Timings(0, 0, 0)))
    answer = fold.answer()
    assert answer.message.parts == (Reasoning("ac"), Text("bdf"), Refusal("eg"))
    assert [each.token for each in answer.logprobs] == ["b", "f"]
