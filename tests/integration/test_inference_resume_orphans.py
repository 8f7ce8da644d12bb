"""Generations whose owner is gone or whose store forgot them, and very many that are followed at once."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
from tests.fakes.providers.setups import Stores
from tests.fakes.replicas import PLEDGE, Speaker, replica
from tests.fakes.usage_records import rows

from janus_inference.adapters.redis_replay import RedisReplay
from janus_inference.events import Cost, Failed, Numbered, RouteChanged, Started, TextDelta, Usage, UsageUpdated
from janus_inference.model import Caller
from janus_inference.ports import Pledge
from janus_inference.resuming import Resumables, Settling
from janus_inference.stored import ProtobufEvents
from janus_kit.clock import SystemClock
from janus_kit.errors import OutOfRange

ANNA = Caller("anna", "a")


def numbered(*events: object) -> list[Numbered]:
    return [Numbered(number, event) for number, event in enumerate(events, 1)]  # type: ignore[arg-type]


async def test_what_a_dead_owner_s_generation_used_is_on_record_before_its_end_is_told(
    stores: Stores, postgres_url: str
) -> None:
    store = RedisReplay(stores.redis, ProtobufEvents(), keep_s=60)

    def price(provider: str, model: str, usage: Usage) -> Cost:
        return Cost(usage.output_tokens, "test")

    readers = [Resumables(store, Settling(store, stores.ledger.record, price, SystemClock())) for _ in range(2)]
    pledge = Pledge("somebody", {"team": "blue"}, datetime.now(UTC), 70)
    await store.open("anna", "gen_dead", "dead", 0.2, pledge)
    said = numbered(
        Started("gen_dead", "one", "m", 1),
        RouteChanged("one/m", "two/n", "PROVIDER_UNAVAILABLE", 2),
        UsageUpdated(Usage(80)),
        TextDelta(0, "x" * 400),
    )
    await store.append("anna", "gen_dead", "dead", said, spoken=True, terminal=False)

    async def followed(reader: Resumables) -> list[Numbered]:
        return [each async for each in reader.follow(ANNA, "gen_dead", 0)]

    async with asyncio.timeout(15):
        heard = await asyncio.gather(*map(followed, readers))
    for each in readers:
        await each.close()
    end = heard[0][-1].event
    assert heard[0][:-1] == heard[1][:-1] == said
    assert heard[1][-1].sequence == 5
    assert isinstance(end, Failed)
    assert end.partial
    assert end.usage == Usage(80, output_tokens=100, estimated=True)
    assert end.cost == Cost(100, "test")
    query = """
        SELECT tenant, subject, provider, model, attempt, outcome, labels, output_tokens
        FROM inference.usage WHERE generation_id = $1
    """
    (row,) = await rows(postgres_url, query, "gen_dead")
    assert tuple(row) == ("anna", "somebody", "two", "n", 2, "owner_gone", '{"team": "blue"}', 100)


async def test_a_generation_that_redis_forgot_is_restored_while_its_model_is_thinking(redis_url: str) -> None:
    async with replica(redis_url) as owner, replica(redis_url) as other:
        speaker = Speaker(Started("gen_forgotten", "one", "m", 1), TextDelta(0, "a"))
        direct = owner.start("gen_forgotten", speaker)
        await anext(direct)
        await anext(direct)
        async with aclosing(other.follow("gen_forgotten")) as reader:
            await anext(reader)
            await anext(reader)
            await owner.client.flushall()
            # Nothing more is said; the owner finds out when it renews its lease.
            await asyncio.sleep(2.5)
            later = [await anext(other.follow("gen_forgotten", after)) for after in (0, 1)]
            assert [each.sequence for each in later] == [1, 2]
            speaker.say(TextDelta(0, "b"))
            async with asyncio.timeout(5):
                assert (await anext(reader)).event == TextDelta(0, "b")
                assert (await anext(direct)).event == TextDelta(0, "b")
        await direct.aclose()


async def test_a_position_that_another_replica_gave_is_one_at_the_owner(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(redis_url) as owner, replica(redis_url) as other:
        speaker = Speaker(Started("gen_lag", "one", "m", 1))
        direct = owner.start("gen_lag", speaker)
        await anext(direct)
        append, answered = owner.store.append, asyncio.Event()

        async def late(*arguments: object, **more: object) -> int:
            written = await append(*arguments, **more)  # type: ignore[arg-type]
            await answered.wait()
            return written

        monkeypatch.setattr(owner.store, "append", late)
        speaker.say(TextDelta(0, "a"))
        assert [await anext(other.follow("gen_lag", after)) for after in (0, 1)][1].sequence == 2
        waiting = asyncio.create_task(anext(owner.follow("gen_lag", 2)))
        with pytest.raises(OutOfRange):
            await anext(owner.follow("gen_lag", 3))
        answered.set()
        speaker.say(TextDelta(0, "b"))
        async with asyncio.timeout(5):
            assert (await waiting).sequence == 3
        await direct.aclose()


async def test_hundreds_of_generations_are_followed_over_a_few_connections(redis_url: str) -> None:
    many = 600
    async with replica(redis_url) as writer, replica(redis_url) as reader:
        names = [f"gen_many{number}" for number in range(many)]
        for name in names:
            await writer.store.open("anna", name, "owner", 60.0, PLEDGE)
            first = numbered(Started(name, "one", "m", 1))
            await writer.store.append("anna", name, "owner", first, spoken=False, terminal=False)
        streams = [reader.follow(name) for name in names]
        await asyncio.gather(*(anext(stream) for stream in streams))
        second = [asyncio.create_task(anext(stream)) for stream in streams]
        # Longer than the store may be away.
        await asyncio.sleep(7)
        assert not any(task.done() for task in second)
        clients = await writer.client.client_list()
        assert len([each for each in clients if each["name"] == "replica-read"]) <= 20
        for name in names:
            more = [Numbered(2, TextDelta(0, "a"))]
            await writer.store.append("anna", name, "owner", more, spoken=True, terminal=False)
        async with asyncio.timeout(5):
            assert {(await task).sequence for task in second} == {2}
        for stream in streams:
            await stream.aclose()
