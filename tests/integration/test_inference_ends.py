"""What is on record, and stored, by the time an end is told: on every way that a call may end."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from tests.fakes.providers.inference_service import Refusal, running
from tests.fakes.providers.inference_service import prompt as asked
from tests.fakes.providers.setups import CALLER, Stores, events_of, prompt
from tests.fakes.providers.told import STOP, Told, falling_silent, telling
from tests.fakes.usage_records import rows

from janus_inference import ledger
from janus_inference.adapters.redis_replay import RedisReplay
from janus_inference.events import Failed, Finished, FinishReason, Numbered, Started, TextDelta, Usage, UsageUpdated
from janus_inference.limits import Limiter
from janus_inference.model import CachePolicy, Caller, Routing, Timeouts
from janus_inference.ports import Ask
from janus_inference.prices import Price, PriceTable
from janus_inference.provider_errors import Refused, broken, classify, unreachable
from janus_inference.routing import Alias
from janus_inference.settings import LimitSettings, RoutingSettings
from janus_inference.stored import ProtobufEvents
from janus_kit.errors import Aborted, JanusError

BODY = b"digest"
FILTERED = classify("upstream", "fake", Refused(400, code="content_filter"))
HEDGED = {"h": Alias((("a/m", 0), ("b/m", 0)), 0.05)}
SOME = RoutingSettings(max_attempts=4)


async def read(events: AsyncIterator[Numbered]) -> list[Numbered]:
    return [numbered async for numbered in events]


def slowly_written(stores: Stores, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[Sequence[Any]]:
    """Every commit takes so long; what was committed, a batch each."""
    store: Any = stores.ledger._store
    write, written = store.write, list[Sequence[Any]]()

    async def slow(batch: Sequence[Any]) -> None:
        await asyncio.sleep(seconds)
        await write(batch)
        written.append([(record.provider, record.outcome) for record, _ in batch])

    monkeypatch.setattr(store, "write", slow)
    return written


async def test_a_failure_before_the_first_event_is_told_once_it_is_on_record(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = slowly_written(stores, monkeypatch, 0.3)
    using = stores.generation(telling([UsageUpdated(Usage(3000))], broken("upstream", "cut")))
    with pytest.raises(JanusError):
        await events_of(using, prompt())
    assert written == [[("upstream", "broken")]]


async def test_a_generation_that_lingered_for_too_long_ends_once_it_is_on_record_and_says_what_it_used(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = slowly_written(stores, monkeypatch, 0.3)
    provider = falling_silent([TextDelta(0, "x" * 400)])
    using = stores.generation(provider)
    stream = using.run(prompt("y" * 400, resumable=True, linger=0.1), CALLER)
    first = [await anext(stream), await anext(stream)]
    await stream.aclose()
    await provider.left.wait()  # nobody reads it for longer than it may linger
    rest = await read(using.resume(first[0].event.generation_id, CALLER, 0))  # type: ignore[union-attr]
    end = rest[-1].event
    assert isinstance(end, Failed)
    assert end.usage.estimated
    assert (end.usage.input_tokens > 99, end.usage.output_tokens) == (True, 100)
    assert written == [[("upstream", "cancelled")]]


async def test_the_loser_of_a_hedge_is_on_record_before_the_winner_ends(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = slowly_written(stores, monkeypatch, 0.0)

    class Silent(Told):
        @asynccontextmanager
        async def stream(self, ask: Ask) -> AsyncIterator[Any]:
            ask.stopwatch.sent()
            ask.stopwatch.connected()
            await asyncio.Event().wait()
            yield

    providers = {"a": Silent(None), "b": telling([TextDelta(0, "b"), STOP])}  # type: ignore[arg-type]
    using = stores.generation(providers, routing=SOME, aliases=HEDGED)
    async for numbered in using.run(prompt(model="h"), CALLER):
        if isinstance(numbered.event, Finished):
            found = [each for batch in written for each in batch]
            assert sorted(found) == [("a", "cancelled"), ("b", "ok")]
            break
    else:
        pytest.fail("there was no end")


async def test_a_provider_that_had_the_request_and_hung_up_may_have_worked(postgres_url: str, redis_url: str) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    provider = {"kind": "openai_compatible", "base_url": f"http://127.0.0.1:{port}/v1"}
    async with running(postgres_url, redis_url, providers={"x": provider}, routing={"max_attempts": 1}) as service:
        with pytest.raises(Exception, match="lost"):
            await service.generate(asked(model="x/m"))
        query = "SELECT outcome, estimated, input_uncached_tokens > 0 FROM inference.usage WHERE provider = 'x'"
        found = await rows(postgres_url, query)
    server.close()
    assert [tuple(row) for row in found] == [("broken", True, True)]


async def test_a_connection_that_was_never_made_costs_nothing(postgres_url: str, redis_url: str) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        # Its queue is full, so that nobody else gets in.
        crowd = [socket.socket() for _ in range(8)]
        for each in crowd:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        provider = {"kind": "openai_compatible", "base_url": f"http://127.0.0.1:{port}/v1"}
        async with running(postgres_url, redis_url, providers={"deaf": provider}, connect_timeout_s=0.3) as service:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await service.generate(asked(model="deaf/m"))
            found = await rows(postgres_url, "SELECT 1 FROM inference.usage WHERE provider = 'deaf'")
        for each in crowd:
            each.close()
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert Refusal.of(raised.value).metadata["leg"] == "connect"
    assert found == []


async def test_a_refusal_that_used_nothing_does_not_wait_for_what_others_used(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = stores.ledger._store
    write, begun, let = store.write, asyncio.Event(), asyncio.Event()

    async def held(batch: Sequence[Any]) -> None:
        begun.set()
        await let.wait()
        await write(batch)

    monkeypatch.setattr(store, "write", held)
    monkeypatch.setattr(stores.ledger, "_wait_s", 60.0)
    other = asyncio.create_task(events_of(stores.generation(telling([TextDelta(0, "a"), STOP])), prompt()))
    await begun.wait()
    refusing = stores.generation(telling([], unreachable("upstream")))
    async with asyncio.timeout(20):
        with pytest.raises(JanusError) as raised:
            await events_of(refusing, prompt())
    assert (raised.value.reason, other.done()) == ("PROVIDER_UNAVAILABLE", False)
    let.set()
    await other


async def test_a_stored_answer_of_a_generation_whose_owner_dies_is_not_put_on_record(stores: Stores) -> None:
    using = stores.generation(telling([TextDelta(0, "a"), STOP]))
    cache = CachePolicy(read=True, write=True)
    pledged = []
    for _ in range(2):
        heard = await read(using.run(prompt("stored", resumable=True, cache=cache), CALLER))
        begun, end = heard[0].event, heard[-1].event
        assert isinstance(begun, Started)
        assert isinstance(end, Finished)
        head = await RedisReplay(stores.redis, ProtobufEvents(), keep_s=60).head(CALLER.tenant, begun.generation_id)
        assert head is not None
        pledged.append((end.from_cache, head.pledge is not None))
    assert pledged == [(False, True), (True, False)]


async def test_a_hedged_call_that_is_cancelled_twice_closes_everything_and_records_it(stores: Stores) -> None:
    silent = [falling_silent(), falling_silent()]
    using = stores.generation({"a": silent[0], "b": silent[1]}, routing=SOME, aliases=HEDGED)
    task = asyncio.create_task(read(using.run(prompt(model="h"), Caller("twice", "anna"))))
    await asyncio.gather(silent[0].opened.wait(), silent[1].opened.wait())
    # As gRPC and the deadline of the call do, one after the other.
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [each.closed for each in silent] == [1, 1]
    await stores.ledger.flushed()
    async with stores.pool.tenant("twice") as connection:
        found = await connection.fetch("SELECT provider, outcome FROM inference.usage ORDER BY provider")
    assert [tuple(row) for row in found] == [("a", "cancelled"), ("b", "cancelled")]


async def test_the_time_of_a_whole_call_is_up_also_while_nobody_reads(stores: Stores) -> None:
    provider = falling_silent([TextDelta(0, "a")])
    using = stores.generation(provider)
    stream = using.run(prompt(timeouts=Timeouts(total=0.3)), CALLER)
    await anext(stream)
    await anext(stream)
    await provider.left.wait()
    (end,) = await read(stream)
    assert isinstance(end.event, Failed)
    assert end.event.error.metadata["leg"] == "total"
    assert end.event.partial


async def test_a_stream_that_failed_is_closed_upstream_before_its_record_is_written(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = falling_silent([TextDelta(0, "a")])
    closed: list[int] = []
    store: Any = stores.ledger._store
    write = store.write

    async def watching(batch: Sequence[Any]) -> None:
        closed.append(provider.closed)
        await write(batch)

    monkeypatch.setattr(store, "write", watching)
    events = await events_of(stores.generation(provider), prompt(timeouts=Timeouts(idle=0.1)))
    assert isinstance(events[-1], Failed)
    assert closed == [1]


async def test_a_resumable_answer_that_is_asked_for_again_has_the_numbers_it_had(stores: Stores) -> None:
    async def words(ask: Ask) -> AsyncIterator[Any]:
        for word in ["one", "two", "three", "four", "five"]:
            await asyncio.sleep(0.01)
            yield [TextDelta(0, f"{word} ")]
        yield [UsageUpdated(Usage(3, output_tokens=5)), STOP]

    using = stores.generation(Told(words))
    again = prompt(resumable=True, request_id="again")
    first = await read(using.run(again, CALLER, digest=BODY))
    second = await read(using.run(again, CALLER, digest=BODY))
    # Timings come back as nanoseconds.
    assert second[:-1] == first[:-1]
    assert (second[-1].sequence, type(second[-1].event)) == (first[-1].sequence, Finished)


async def test_a_resumable_request_that_is_still_being_begun_elsewhere_is_in_progress(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = stores.holds.store.reserve
    is_begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        is_begun.set()
        await goes_on.wait()
        return await reserve(*arguments)

    monkeypatch.setattr(stores.holds.store, "reserve", slow)
    using = limited(stores, telling([TextDelta(0, "a"), STOP]), requests_per_minute=100)
    begun = prompt(resumable=True, request_id="begun")
    first = asyncio.create_task(read(using.run(begun, CALLER, digest=BODY)))
    await is_begun.wait()
    with pytest.raises(Aborted) as raised:
        await read(using.run(begun, CALLER, digest=BODY))
    assert raised.value.reason == "REQUEST_IN_PROGRESS"
    goes_on.set()
    assert isinstance((await first)[-1].event, Finished)


@pytest.mark.parametrize("said", [[], [[TextDelta(0, "half")]]])
async def test_what_a_filter_stopped_is_an_answer_and_not_asked_for_twice(stores: Stores, said: list[Any]) -> None:
    times = 0

    async def tell(ask: Ask) -> AsyncIterator[Any]:
        nonlocal times
        times += 1
        ask.stopwatch.sent()
        ask.stopwatch.connected()
        for batch in said:
            yield batch
        raise FILTERED

    using = stores.generation(Told(tell))
    again = prompt(request_id=f"filtered-{len(said)}")
    answers = [await using.answer(again, CALLER, digest=BODY) for _ in range(2)]
    assert times == 1
    assert [answer.reason for answer in answers] == [FinishReason.CONTENT_FILTER] * 2
    assert answers[0].generation_id == answers[1].generation_id


async def test_an_answer_that_could_not_be_kept_leaves_its_request_free(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MOST_ANSWER_BYTES", 10)
    using = stores.generation(telling([TextDelta(0, "a"), STOP]))
    answers = [await using.answer(prompt(request_id="large"), CALLER, digest=BODY) for _ in range(2)]
    assert answers[0].generation_id != answers[1].generation_id


def limited(stores: Stores, providers: Any, aliases: Any = None, prices: Any = None, **limit: Any) -> Any:
    """A generation under one limit."""
    using = stores.generation(providers, routing=SOME, aliases=aliases or {})
    limiter = Limiter(stores.holds, [LimitSettings(name="only", **limit)])
    table = PriceTable("test", {}, {}, prices or {})
    return replace(using, desk=replace(using.desk, limiter=limiter, prices=table))


@pytest.mark.parametrize(
    "model", [prompt(model="h"), prompt(model="a/m"), prompt(model="b/m", routing=Routing(fallbacks=("a/m",)))]
)
async def test_a_target_without_a_price_is_passed_over_where_money_is_limited(stores: Stores, model: Any) -> None:
    async def slow(ask: Ask) -> AsyncIterator[Any]:
        await asyncio.sleep(0.2)
        yield [TextDelta(0, "a"), STOP]

    providers = {"a": Told(slow), "b": telling([TextDelta(0, "b"), STOP])}
    using = limited(stores, providers, HEDGED, {"a/m": Price(1, 1, 1, 1)}, spend_usd=5)
    events = await events_of(using, model)
    assert TextDelta(0, "a") in events
    assert isinstance(events[-1], Finished)


async def test_the_same_question_to_an_alias_by_weight_is_asked_once(stores: Stores) -> None:
    times = 0

    async def tell(ask: Ask) -> AsyncIterator[Any]:
        nonlocal times
        times += 1
        yield [TextDelta(0, "a"), STOP]

    alias = Alias(tuple((f"{name}/m", 1) for name in "abcd"))
    using = stores.generation({name: Told(tell) for name in "abcd"}, aliases={"spread": alias})
    for _ in range(20):
        await using.answer(prompt("spread", model="spread", cache=CachePolicy(read=True, write=True)), CALLER)
    assert times == 1


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(
    ("options", "is_known"),
    [
        ("", True),
        ('{"service_tier": "default"}', True),
        ('{"service_tier": "priority"}', False),
        ('{"speed": "fast"}', False),
        ('{"cache_control": {"type": "ephemeral", "ttl": "1h"}}', False),
    ],
)
async def test_what_is_charged_at_another_price_has_no_known_cost(
    stores: Stores, options: str, is_known: bool, is_whole: bool
) -> None:
    said = [UsageUpdated(Usage(3)), TextDelta(0, "a")]
    told = telling([*said, STOP]) if is_whole else telling(said, broken("upstream", "it was cut"))
    using = limited(stores, told, requests_per_minute=1000)
    priced = replace(using.desk, prices=PriceTable("test", {}, {}, {"upstream/fake": Price(10**6, 1, 1, 1)}))
    events = await events_of(replace(using, desk=priced), prompt(provider_options_json=options))
    end = events[-1]
    assert isinstance(end, Finished if is_whole else Failed)
    assert (end.cost is not None) is is_known


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("is_counted", [True, False])
async def test_what_was_charged_at_another_price_has_no_known_cost(
    stores: Stores, is_whole: bool, is_counted: bool
) -> None:
    async def tell(ask: Ask) -> AsyncIterator[Any]:
        ask.stopwatch.counts(lambda: Usage(3 if is_counted else 0, off_list=True))
        yield [TextDelta(0, "a")]
        if not is_whole:
            raise broken("upstream", "it was cut")
        yield [STOP]

    using = limited(stores, Told(tell), requests_per_minute=1000)
    priced = replace(using.desk, prices=PriceTable("test", {}, {}, {"upstream/fake": Price(10**6, 1, 1, 1)}))
    end = (await events_of(replace(using, desk=priced), prompt()))[-1]
    assert isinstance(end, Finished if is_whole else Failed)
    assert end.usage.estimated
    assert end.usage.input_tokens > 0
    assert end.cost is None
