"""Generations whose owner is gone or whose store forgot them, and very many that are followed at once."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr
from tests.fakes.providers.setups import Stores
from tests.fakes.replicas import PLEDGE, Speaker, read, replica, speaker_of, whole
from tests.fakes.usage_records import eventually, rows

from janus_inference.adapters.redis_replay import RedisReplay
from janus_inference.adapters.replay_waiter import ReplayWaiter
from janus_inference.events import Cost, Failed, Numbered, RouteChanged, Started, TextDelta, Usage, UsageUpdated
from janus_inference.model import Caller
from janus_inference.ports import Pledge, ReplayFenced, UsageRecord
from janus_inference.resuming import Resumables, Settling, Sweeper, follower
from janus_inference.resuming.sweeper import OVERDUE_S
from janus_inference.stored import ProtobufEvents
from janus_kit.clock import SystemClock
from janus_kit.errors import OutOfRange, Unavailable
from janus_kit.redis import key, redis
from janus_kit.settings import RedisSettings

ANNA = Caller("anna", "a")


def numbered(*events: object) -> list[Numbered]:
    return [Numbered(number, event) for number, event in enumerate(events, 1)]  # type: ignore[arg-type]


@pytest.mark.parametrize("paid", [Cost(80, "test"), None])
async def test_what_a_dead_owner_s_generation_used_is_on_record_before_its_end_is_told(
    stores: Stores, postgres_url: str, paid: Cost | None
) -> None:
    """What had no known cost while it went on has none at its end."""
    generation = f"gen_dead_{paid is not None}"
    store = RedisReplay(stores.redis, ProtobufEvents(), keep_s=60)

    def price(provider: str, model: str, usage: Usage) -> Cost:
        return Cost(usage.output_tokens, "test")

    readers = [Resumables(store, Settling(store, stores.ledger.record, price, SystemClock())) for _ in range(2)]
    pledge = Pledge("somebody", {"team": "blue"}, datetime.now(UTC), 70)
    await store.open("anna", generation, "dead", 0.2, pledge)
    said = numbered(
        Started(generation, "one", "m", 1),
        RouteChanged("one/m", "two/n", "PROVIDER_UNAVAILABLE", 2),
        UsageUpdated(Usage(80), paid),
        TextDelta(0, "x" * 400),
    )
    await store.append("anna", generation, "dead", said, spoken=True, terminal=False)

    async def followed(reader: Resumables) -> list[Numbered]:
        return [each async for each in reader.follow(ANNA, generation, 0)]

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
    assert end.cost == (Cost(100, "test") if paid else None)
    query = """
        SELECT tenant, subject, provider, model, attempt, outcome, labels, output_tokens
        FROM inference.usage WHERE generation_id = $1
    """
    (row,) = await rows(postgres_url, query, generation)
    assert tuple(row) == ("anna", "somebody", "two", "n", 2, "owner_gone", '{"team": "blue"}', 100)


async def test_an_owner_that_comes_back_while_its_usage_is_put_on_record_is_too_late(redis_url: str) -> None:
    """Else its own record, which is exact, would be refused for the estimate."""
    found: list[object] = []
    async with replica(redis_url) as late:

        async def record(_: object) -> None:
            found.append((await late.store.renew("late", [("anna", "gen_late")], [], 60.0))[0])
            with pytest.raises(ReplayFenced):
                await late.store.open("anna", "gen_late", "late", 60.0, PLEDGE)
            more = [Numbered(2, TextDelta(0, "a"))]
            with pytest.raises(ReplayFenced):
                await late.store.append("anna", "gen_late", "late", more, spoken=True, terminal=False)

        reader = Resumables(late.store, Settling(late.store, record, lambda *_: None, SystemClock()))
        await late.store.open("anna", "gen_late", "late", 0.2, PLEDGE)
        said = numbered(Started("gen_late", "one", "m", 1))
        await late.store.append("anna", "gen_late", "late", said, spoken=False, terminal=False)
        async with asyncio.timeout(15):
            heard = [each async for each in reader.follow(ANNA, "gen_late", 0)]
        await reader.close()
        assert found == [None]
        assert [each.sequence for each in heard] == [1, 2]
        assert isinstance(heard[-1].event, Failed)


async def test_what_cannot_be_put_on_record_now_does_not_keep_readers_waiting_for_their_end(redis_url: str) -> None:
    async with replica(redis_url) as other:

        async def record(_: object) -> None:
            raise Unavailable("postgres")

        reader = Resumables(other.store, Settling(other.store, record, lambda *_: None, SystemClock()))
        await other.store.open("anna", "gen_away", "dead", 0.2, PLEDGE)
        said = numbered(Started("gen_away", "one", "m", 1), TextDelta(0, "x" * 40))
        await other.store.append("anna", "gen_away", "dead", said, spoken=True, terminal=False)
        async with asyncio.timeout(15):
            end = [each async for each in reader.follow(ANNA, "gen_away", 2)][-1].event
        await reader.close()
        assert isinstance(end, Failed)
        assert end.usage == Usage(PLEDGE.prompt_tokens, output_tokens=10, estimated=True)


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
            async with asyncio.timeout(20):
                assert (await anext(reader)).event == TextDelta(0, "b")
                assert (await anext(direct)).event == TextDelta(0, "b")
        await direct.aclose()


async def test_a_reader_that_was_far_behind_finds_all_that_redis_forgot(redis_url: str) -> None:
    said = whole(3_000)
    async with replica(redis_url) as owner, replica(redis_url) as other:
        speaker = speaker_of(said[:2])
        direct = owner.start("gen_behind", speaker)
        await anext(direct)
        sleeper = other.follow("gen_behind")
        seen = [await anext(sleeper), await anext(sleeper)]
        speaker.say(*(each.event for each in said[2:-1]))
        # It reads nothing meanwhile, so it has to look into the replay after that.
        while (await anext(direct)).sequence < len(said) - 1:
            pass
        await asyncio.sleep(0.5)
        await owner.client.flushall()
        later = asyncio.create_task(read(sleeper))
        await asyncio.sleep(2)
        speaker.finish()
        async with asyncio.timeout(10):
            assert seen + await later == said
        await direct.aclose()


async def test_a_process_that_stood_still_does_not_break_off_what_it_works_on(redis_url: str) -> None:
    said = whole(2)
    recorded: list[UsageRecord] = []

    async def record(found: UsageRecord) -> None:
        recorded.append(found)

    async with replica(redis_url) as one:
        settling = Settling(one.store, record, lambda *_: None, SystemClock())
        speaker = speaker_of(said[:2])
        stream = one.start("gen_stood", speaker)
        seen = [await anext(stream), await anext(stream)]

        async def is_kept() -> bool:
            head = await one.store.head(ANNA.tenant, "gen_stood")
            return head is not None and head.last == 2

        await eventually(is_kept)
        # As after a pause for longer than the lease.
        await one.client.delete(key(ANNA.tenant, "generation", "gen_stood", "lease"))
        await one.client.zadd("janus:generations", {f"{ANNA.tenant} gen_stood": 1})
        await Sweeper(one.store, settling, one.resumables.owned).sweep()
        speaker.say(*(each.event for each in said[2:]))
        assert seen + await read(stream) == said
    assert not [each for each in recorded if each.generation_id == "gen_stood"]


async def test_being_told_again_that_redis_forgot_it_breaks_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when an append found out about it first."""
    said = whole(20)
    async with replica(redis_url) as owner:

        async def renew(_: str, owned: list[object], *__: object) -> list[int]:
            return [-1] * len(owned)

        monkeypatch.setattr(owner.store, "renew", renew)
        speaker = speaker_of(said[:10])
        direct = owner.start("gen_told", speaker)
        seen = [await anext(direct) for _ in range(10)]
        await asyncio.sleep(2.5)
        speaker.say(*(each.event for each in said[10:]))
        async with asyncio.timeout(20):
            assert seen + await read(direct) == said


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
        async with asyncio.timeout(20):
            assert (await waiting).sequence == 3
        await direct.aclose()


async def test_readers_wait_for_connections_and_do_not_take_redis_for_away(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "PATIENCE_S", 1.0)
    said = whole(3)
    async with replica(redis_url) as owner, replica(redis_url, pool_max=2) as reader:
        names = [f"gen_few{number}" for number in range(100)]
        speakers = [speaker_of(said[:2]) for _ in names]
        owned = [asyncio.create_task(read(owner.start(*each))) for each in zip(names, speakers, strict=True)]
        await asyncio.gather(*(speaker.began.wait() for speaker in speakers))
        await asyncio.sleep(0.5)
        streams = [asyncio.create_task(read(reader.follow(name))) for name in names]
        # Longer than the store may be away, and a connection may be waited for.
        await asyncio.sleep(3.5)
        for speaker in speakers:
            speaker.say(*(each.event for each in said[2:]))
        async with asyncio.timeout(10):
            assert all(events == said for events in await asyncio.gather(*owned, *streams))


async def test_who_comes_when_all_reads_are_under_way_is_taken_along_at_once(redis_url: str) -> None:
    settings = RedisSettings(url=SecretStr(redis_url), socket_timeout_s=60)
    async with redis(settings) as client:
        waiter = ReplayWaiter(client)
        waits = []
        for number in range(40):
            waits.append(asyncio.create_task(waiter.wait(f"nothing{number}", 0, 30)))
            await asyncio.sleep(0.01)
        late = asyncio.create_task(waiter.wait("something", 0, 30))
        await client.xadd("something", {"e": "1"}, id="1-0")
        async with asyncio.timeout(10):
            assert await late == [(b"1-0", {b"e": b"1"})]
            await client.xadd("nothing39", {"e": "2"}, id="1-0")
            assert await waits[39] == [(b"1-0", {b"e": b"2"})]
        async with asyncio.timeout(10):
            await waiter.close()
            ended = await asyncio.gather(*waits[:39], return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended)


async def test_hundreds_of_generations_are_followed_over_a_few_connections(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "PATIENCE_S", 1.0)
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
        # Longer than the store may be away, and a connection may be waited for.
        await asyncio.sleep(3.5)
        assert not any(task.done() for task in second)
        clients = await writer.client.client_list()
        assert len([each for each in clients if each["name"] == "replica-read"]) <= 20
        for name in names:
            more = [Numbered(2, TextDelta(0, "a"))]
            await writer.store.append("anna", name, "owner", more, spoken=True, terminal=False)
        async with asyncio.timeout(20):
            assert {(await task).sequence for task in second} == {2}
        for stream in streams:
            await stream.aclose()


async def test_a_sweep_ends_what_nobody_reads_and_leaves_what_is_alive(redis_url: str) -> None:
    recorded: list[UsageRecord] = []

    async def record(found: UsageRecord) -> None:
        recorded.append(found)

    async with replica(redis_url) as one:
        store = one.store
        sweeper = Sweeper(store, Settling(store, record, lambda *_: None, SystemClock()))

        async def overdue() -> list[str]:
            """Those of this test."""
            return [name for tenant, name in await store.overdue(OVERDUE_S, 10_000) if tenant == "swept"]

        async def are_overdue() -> bool:
            return sorted(await overdue()) == ["gen_ended", "gen_gone", "gen_silent"]

        said = numbered(Started("gen", "one", "m", 1), TextDelta(0, "x" * 400))
        for generation_id, lease_s in (("gen_gone", 0.05), ("gen_ended", 0.05), ("gen_alive", 60.0)):
            await store.open("swept", generation_id, "owner", lease_s, PLEDGE)
            await store.append("swept", generation_id, "owner", said, spoken=True, terminal=False)
        end = Numbered(3, Failed(Unavailable("inference"), True, True, Usage()))
        await store.append("swept", "gen_ended", "owner", [end], spoken=True, terminal=True)
        await store.open("swept", "gen_silent", "owner", 0.05, None)
        async with asyncio.timeout(10):
            await eventually(are_overdue)
            while await overdue():
                await sweeper.sweep()
        mine = [(each.generation_id, each.outcome) for each in recorded if each.caller.tenant == "swept"]
        assert mine == [("gen_gone", "owner_gone")]
        gone, ended, alive = [await store.head("swept", name) for name in ("gen_gone", "gen_ended", "gen_alive")]
        assert gone is not None
        assert ended is not None
        assert alive is not None
        assert (gone.has_ended, gone.last) == (True, 3)
        assert (ended.has_ended, ended.last) == (True, 3)
        assert (alive.has_ended, alive.is_owned) == (False, True)
        told = await read(one.follow("gen_gone", caller=Caller("swept", "a")))
        assert [numbered.sequence for numbered in told] == [1, 2, 3]
