"""Resumable generations on a real Redis, with two replicas: nothing lost, nothing twice, one end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from tests.fakes.replicas import (
    ANNA,
    BOB,
    STARTED,
    Replica,
    Speaker,
    read,
    replica,
    speaker_of,
    whole,
)
from tests.fakes.tcp_proxy import TcpProxy

from janus_inference import answer_size
from janus_inference.events import Failed, Numbered, TextDelta, Usage, UsageUpdated
from janus_inference.resuming import owner
from janus_kit.errors import Cancelled, InvalidArgument, NotFound, OutOfRange, Unavailable
from janus_kit.redis import key


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    async with replica(redis_url, name="first") as first, replica(redis_url, name="second") as second:
        yield first, second


@pytest.fixture
def gen() -> str:
    return f"gen_{uuid.uuid4().hex}"


def contents(events: list[Numbered]) -> list[object]:
    """Events by value; errors, which have none, by what they say."""
    return [
        (each.sequence, each.event.error.code, each.event.error.reason, each.event.partial)
        if isinstance(each.event, Failed)
        else each
        for each in events
    ]


def end_of(events: list[Numbered]) -> Failed:
    assert [each.sequence for each in events] == list(range(events[0].sequence, events[-1].sequence + 1))
    last = events[-1].event
    assert isinstance(last, Failed)
    return last


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 10) -> None:
    """Look again and again, at what no event tells of, until it is so."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - it is another process's state
            await asyncio.sleep(0.005)


async def kept(at: Replica, generation_id: str, last: int) -> bool:
    """Whether the replay has come to that event."""
    head = await at.store.head(ANNA.tenant, generation_id)
    return head is not None and head.last >= last


async def gone(at: Replica, names: list[str]) -> bool:
    return not await at.client.exists(*names)


async def test_the_first_reader_gets_what_is_said_as_it_is_said(pair, gen):
    speaker = Speaker(STARTED)
    stream = pair[0].start(gen, speaker)
    assert await anext(stream) == Numbered(1, STARTED)
    speaker.words(0, 1)
    assert await anext(stream) == Numbered(2, TextDelta(0, "w0 "))
    speaker.finish()
    assert await read(stream) == whole(1)[2:]
    await pair[0].resumables.drain()


@pytest.mark.parametrize("cut", range(1, 9))
@pytest.mark.parametrize("where", [0, 1], ids=["the same replica", "another replica"])
async def test_a_stream_cut_at_any_event_goes_on_where_it_was_cut(pair, gen, cut, where):
    said = whole(6)
    speaker = speaker_of(said[:cut])
    seen = await read(pair[0].start(gen, speaker), cut)
    resumed = pair[where].follow(gen, cut)
    going_on = asyncio.create_task(read(resumed))
    speaker.say(*(numbered.event for numbered in said[cut:]))
    assert seen + await going_on == said


async def test_what_has_ended_is_read_again_from_any_place(pair, gen):
    said = whole(300)
    assert await read(pair[0].start(gen, speaker_of(said))) == said
    await pair[0].resumables.drain()
    for after in (0, 1, 150, 299, 301, 302):
        assert await read(pair[1].follow(gen, after)) == said[after:]


@pytest.mark.parametrize("where", [0, 1], ids=["the same replica", "another replica"])
async def test_a_place_beyond_the_last_event_is_out_of_range(pair, gen, where):
    speaker = Speaker(STARTED)
    stream = pair[0].start(gen, speaker)
    await anext(stream)
    with pytest.raises(OutOfRange) as raised:
        await read(pair[where].follow(gen, 2))
    assert (raised.value.reason, raised.value.metadata) == ("CURSOR_OUT_OF_RANGE", {"last_sequence": "1"})
    speaker.finish()
    await read(stream)
    await pair[0].resumables.drain()
    with pytest.raises(OutOfRange) as raised:
        await read(pair[where].follow(gen, 3))
    assert raised.value.metadata == {"last_sequence": "2"}


async def test_another_tenants_generation_is_as_absent_as_one_that_never_was(pair, gen):
    speaker = speaker_of(whole(2))
    await read(pair[0].start(gen, speaker), 1)
    texts = set()
    for each in pair:
        for caller, name in ((BOB, gen), (ANNA, f"{gen}x")):
            with pytest.raises(NotFound) as raised:
                await read(each.follow(name, caller=caller))
            texts.add(raised.value.message.replace(f"{gen}x", gen))
    assert texts == {f"generation '{gen}' was not found"}


@pytest.mark.parametrize(("name", "after"), [("", 0), ("no good", 0), ("gen_1", -1)])
async def test_bad_input_names_its_field(pair, name, after):
    with pytest.raises(InvalidArgument) as raised:
        await read(pair[0].follow(name, after))
    assert raised.value.violations[0].field == ("after_sequence" if after else "generation_id")


async def test_fifty_readers_on_two_replicas_see_the_same_and_share_connections(pair, gen):
    said = whole(400)
    speaker = speaker_of(said[:100])
    first = asyncio.create_task(read(pair[0].start(gen, speaker)))
    await speaker.began.wait()
    await until(lambda: kept(pair[0], gen, 1))
    others = [asyncio.create_task(read(pair[number % 2].follow(gen))) for number in range(50)]
    speaker.say(*(numbered.event for numbered in said[100:250]))
    await until(lambda: kept(pair[0], gen, 250))
    connected = [each["name"] for each in await pair[0].client.client_list()]
    assert connected.count("second-read") <= 1
    speaker.say(*(numbered.event for numbered in said[250:]))
    for events in [await first, *await asyncio.gather(*others)]:
        assert events == said


@pytest.mark.parametrize("where", [0, 1], ids=["the same replica", "another replica"])
async def test_a_reader_that_sleeps_slows_nobody_and_loses_nothing(pair, gen, where):
    said = whole(5_000)
    speaker = speaker_of(said[:2])
    first = pair[0].start(gen, speaker)
    await anext(first)
    sleeper = pair[where].follow(gen)
    assert await anext(sleeper) == said[0]
    speaker.say(*(numbered.event for numbered in said[2:]))
    # The sleeper reads nothing more until everybody else has it all.
    assert await read(first) == said[1:]
    await pair[0].resumables.drain()
    assert await read(sleeper) == said[1:]


async def test_without_a_reader_for_as_long_as_it_may_linger_it_is_cancelled(pair, gen):
    speaker = Speaker(STARTED, TextDelta(0, "w0 "), UsageUpdated(Usage(5, 0, 0, 1)))
    seen = await read(pair[0].start(gen, speaker, linger_s=0.3), 3)
    async with asyncio.timeout(20):
        await speaker.closed.wait()
        await pair[0].resumables.drain()
    rest = await read(pair[1].follow(gen, 3))
    failed = end_of(seen + rest)
    assert isinstance(failed.error, Cancelled)
    assert (failed.retryable, failed.partial, failed.usage) == (False, True, Usage(5, 0, 0, 1))


async def test_a_reader_that_comes_back_in_time_keeps_it_going(pair, gen):
    speaker = Speaker(STARTED)
    await read(pair[0].start(gen, speaker, linger_s=1.0), 1)
    back = asyncio.create_task(read(pair[0].follow(gen, 1)))
    # Longer than it may linger.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(speaker.closed.wait(), 1.6)
    speaker.finish()
    assert await back == whole(0)[1:]


async def test_without_linger_it_ends_with_its_last_reader(pair, gen):
    speaker = Speaker(STARTED)
    both = [pair[0].start(gen, speaker, linger_s=0), None]
    await anext(both[0])
    both[1] = pair[0].follow(gen)
    await anext(both[1])
    await both[0].aclose()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(speaker.closed.wait(), 0.3)
    await both[1].aclose()
    async with asyncio.timeout(20):
        await speaker.closed.wait()


async def test_a_reader_on_another_replica_keeps_it_going_until_it_leaves(pair, gen):
    speaker = Speaker(STARTED)
    first = pair[0].start(gen, speaker, linger_s=0.2)
    await anext(first)
    other = pair[1].follow(gen)
    await anext(other)
    state = key(ANNA.tenant, "generation", gen, "readers")
    await until(lambda: pair[0].client.zcard(state))

    async def is_heard_of() -> bool:
        return bool(pair[0].resumables._owned[ANNA.tenant, gen].readers_elsewhere)

    # The owner hears of it with its next renewal.
    await until(is_heard_of)
    await first.aclose()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(speaker.closed.wait(), 4.0)
    await other.aclose()
    async with asyncio.timeout(20):
        await speaker.closed.wait()


async def test_an_owner_that_lost_its_lease_is_fenced_and_all_readers_see_one_end(redis_url, gen):
    proxy = TcpProxy.to(redis_url)
    try:
        async with replica(proxy.through(redis_url)) as cut_off, replica(redis_url) as other:
            speaker = Speaker(STARTED, TextDelta(0, "w0 "))
            direct = cut_off.start(gen, speaker)
            assert [(await anext(direct)).sequence, (await anext(direct)).sequence] == [1, 2]
            remote = asyncio.create_task(read(other.follow(gen)))
            proxy.cut()
            async with asyncio.timeout(10):
                seen = await remote
            failed = end_of(seen)
            assert (failed.error.reason, failed.retryable, failed.partial) == ("DEPENDENCY_UNAVAILABLE", True, True)
            proxy.mend()
            async with asyncio.timeout(10):
                rest = await read(direct)
                await speaker.closed.wait()
            assert contents(rest) == contents(seen[2:])
            assert contents(await read(other.follow(gen, 2))) == contents(rest)
    finally:
        proxy.close()


async def test_an_owner_that_was_given_up_cannot_write_past_the_end(redis_url, gen):
    """The same, but it has something to say when it wakes up."""
    proxy = TcpProxy.to(redis_url)
    try:
        async with replica(proxy.through(redis_url)) as cut_off, replica(redis_url) as other:
            speaker = Speaker(STARTED)
            direct = cut_off.start(gen, speaker)
            await anext(direct)
            remote = asyncio.create_task(read(other.follow(gen)))
            proxy.cut()
            async with asyncio.timeout(10):
                seen = await remote
            speaker.words(0, 3)
            proxy.mend()
            async with asyncio.timeout(10):
                rest = await read(direct)
            assert contents(rest) == contents(seen[1:])
            assert [each.sequence for each in await read(other.follow(gen))] == [1, 2]
    finally:
        proxy.close()


async def test_events_said_while_redis_restarts_arrive_when_it_is_back(own_stack, gen):
    url = own_stack.addresses.redis_url
    async with replica(url) as first, replica(url) as second:
        said = whole(200)
        speaker = speaker_of(said[:100])
        direct = first.start(gen, speaker)
        seen = [await anext(direct) for _ in range(100)]
        remote = asyncio.create_task(read(second.follow(gen)))
        own_stack.kill("redis")
        speaker.say(*(numbered.event for numbered in said[100:]))
        async with asyncio.timeout(20):
            assert seen + await read(direct) == said
            assert await remote == said
            assert await read(second.follow(gen, 150)) == said[150:]


async def test_a_redis_that_stays_away_breaks_the_stream_and_cancels_the_provider(redis_url, gen, monkeypatch):
    monkeypatch.setattr(owner, "PATIENCE_S", 0.5)
    proxy = TcpProxy.to(redis_url)
    try:
        async with replica(proxy.through(redis_url)) as first, replica(redis_url) as other:
            speaker = Speaker(STARTED)
            direct = first.start(gen, speaker)
            await anext(direct)
            proxy.cut()
            speaker.words(0, 1)
            # No event that is not kept, and so no terminal one: the stream breaks.
            with pytest.raises(Unavailable) as raised:
                await anext(direct)
            assert raised.value.metadata == {"part": "redis"}
            await speaker.closed.wait()
            async with asyncio.timeout(10):
                rest = await read(other.follow(gen, 1))
            assert [each.sequence for each in rest] == [2]
            assert end_of(rest).retryable
    finally:
        proxy.close()


async def test_without_redis_nothing_is_begun(gen):
    async with replica("redis://127.0.0.1:1/0") as lonely:
        speaker = speaker_of(whole(1))
        with pytest.raises(Unavailable) as raised:
            await read(lonely.start(gen, speaker))
        assert raised.value.metadata == {"part": "redis"}
        assert not speaker.began.is_set()


async def test_a_redis_that_forgot_the_newest_events_gets_them_again(pair, gen):
    said = whole(40)
    speaker = speaker_of(said[:1])
    direct = pair[0].start(gen, speaker)
    seen = [await anext(direct)]
    for numbered in said[1:30]:
        speaker.say(numbered.event)
        seen.append(await anext(direct))
    # As after a restart of one that does not sync every write.
    state, stream = (key(ANNA.tenant, "generation", gen, name) for name in ("state", "events"))
    remembered = await pair[0].client.xrange(stream, "-", "20-0")
    await pair[0].client.delete(stream)
    for entry, fields in remembered:
        await pair[0].client.xadd(stream, fields, id=entry)
    await pair[0].client.hset(state, "last", 20)
    speaker.say(*(numbered.event for numbered in said[30:]))
    assert seen + await read(direct) == said
    assert await read(pair[1].follow(gen)) == said


async def test_a_redis_that_forgot_everything_gets_it_again(pair, gen):
    said = whole(10)
    speaker = speaker_of(said[:6])
    direct = pair[0].start(gen, speaker)
    seen = [await anext(direct) for _ in range(6)]
    await pair[0].client.delete(*(key(ANNA.tenant, "generation", gen, name) for name in ("state", "events", "lease")))
    speaker.say(*(numbered.event for numbered in said[6:]))
    assert seen + await read(direct) == said
    assert await read(pair[1].follow(gen)) == said


async def test_when_kept_events_are_gone_for_good_nobody_is_told_another_story(pair, gen, monkeypatch):
    monkeypatch.setattr(owner, "_TAIL_BYTES", 1)
    speaker = Speaker(STARTED)
    direct = pair[0].start(gen, speaker)
    await anext(direct)
    for number in range(5):
        speaker.words(number, 1)
        await anext(direct)
    await pair[0].client.delete(*(key(ANNA.tenant, "generation", gen, name) for name in ("state", "events", "lease")))
    speaker.words(5, 1)
    with pytest.raises(Unavailable):
        await anext(direct)
    await speaker.closed.wait()
    for each in pair:
        with pytest.raises(Unavailable):
            await read(each.follow(gen, 3))


async def test_events_that_were_evicted_are_said_to_be_lost_and_not_left_out(pair, gen):
    said = whole(10)
    speaker = speaker_of(said[:6])
    direct = pair[0].start(gen, speaker)
    seen = [await anext(direct) for _ in range(6)]
    await pair[0].client.delete(key(ANNA.tenant, "generation", gen, "events"))
    speaker.say(*(numbered.event for numbered in said[6:]))
    assert seen + await read(direct) == said
    with pytest.raises(Unavailable):
        await read(pair[1].follow(gen))
    assert await read(pair[1].follow(gen, 6)) == said[6:]


async def test_a_stopping_replica_lets_generations_finish(pair, gen):
    said = whole(3)
    speaker = speaker_of(said[:2])
    await read(pair[0].start(gen, speaker), 2)
    draining = asyncio.create_task(pair[0].resumables.drain())
    speaker.say(*(numbered.event for numbered in said[2:]))
    await draining
    assert await read(pair[1].follow(gen)) == said


async def test_a_stopped_replica_ends_its_generations_at_once(pair, gen):
    speaker = Speaker(STARTED, TextDelta(0, "w0 "))
    direct = asyncio.create_task(read(pair[0].start(gen, speaker)))
    await speaker.began.wait()
    await until(lambda: kept(pair[0], gen, 2))
    remote = asyncio.create_task(read(pair[1].follow(gen)))
    await pair[0].resumables.close()
    async with asyncio.timeout(20):
        events = await direct
        assert contents(await remote) == contents(events)
    assert (end_of(events).error.reason, end_of(events).retryable) == ("DRAINING", True)
    assert speaker.closed.is_set()
    with pytest.raises(Unavailable):
        await read(pair[0].start(f"{gen}x", Speaker(STARTED)))


async def test_an_answer_that_is_too_large_to_keep_ends(pair, gen, monkeypatch):
    monkeypatch.setattr(answer_size, "MOST_BYTES", 10_000)
    speaker = Speaker(STARTED)
    direct = pair[0].start(gen, speaker)
    await anext(direct)
    speaker.say(TextDelta(0, "x"), TextDelta(0, "x" * 10_000))
    failed = end_of(await read(direct))
    assert (failed.error.reason, failed.retryable, failed.partial) == ("MESSAGE_TOO_LARGE", False, True)
    assert speaker.closed.is_set()


async def test_an_answer_that_is_too_large_to_keep_ends_however_quickly_it_comes(pair, gen, monkeypatch):
    monkeypatch.setattr(answer_size, "MOST_BYTES", 10_000)
    speaker = Speaker(STARTED, *[TextDelta(0, "x" * 1_000)] * 20)
    speaker.finish()
    events = await read(pair[0].start(gen, speaker))
    assert end_of(events).error.reason == "MESSAGE_TOO_LARGE"
    assert sum(len(each.event.text) for each in events if isinstance(each.event, TextDelta)) == 9_000
    assert contents(await read(pair[1].follow(gen))) == contents(events)


async def test_a_store_that_hangs_slows_the_provider_down_by_what_waits(pair, gen, monkeypatch):
    taken = 0
    hanging = asyncio.Event()

    async def endless():
        nonlocal taken
        yield Numbered(1, STARTED)
        for number in range(2, 1_000):
            taken += 1
            yield Numbered(number, TextDelta(0, "x" * 300_000))

    async def hang(*args, **kwargs):
        hanging.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(pair[0].store, "append", hang)
    stream = pair[0].resumables.start(ANNA, gen, endless(), 30.0, pledge=None, spent=lambda: None)
    reading = asyncio.create_task(anext(stream))
    await hanging.wait()
    await asyncio.sleep(0.5)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert taken <= 5  # 1 MiB, and the one that waits for room


async def test_a_generation_that_said_nothing_leaves_nothing(pair, gen):
    speaker = Speaker()
    stream = pair[0].start(gen, speaker, linger_s=0)
    waiting = asyncio.create_task(anext(stream))
    await speaker.began.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await pair[0].resumables.drain()
    assert speaker.closed.is_set()
    with pytest.raises(NotFound):
        await read(pair[1].follow(gen))


async def test_what_is_kept_expires_after_the_end_and_never_while_it_goes_on(redis_url, gen):
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(replica(redis_url, keep_s=0.5))
        second = await stack.enter_async_context(replica(redis_url, keep_s=0.5))
        said = whole(2)
        speaker = speaker_of(said[:2])
        stream = first.start(gen, speaker)
        seen = [await anext(stream), await anext(stream)]
        names = [key(ANNA.tenant, "generation", gen, name) for name in ("state", "events")]
        for name in names:
            assert await first.client.pttl(name) > 50_000
        speaker.say(*(numbered.event for numbered in said[2:]))
        assert seen + await read(stream) == said
        for name in names:
            assert 0 < await first.client.pttl(name) <= 500
        assert not await first.client.exists(key(ANNA.tenant, "generation", gen, "lease"))
        await until(lambda: gone(first, names))
        with pytest.raises(NotFound):
            await read(second.follow(gen))


async def test_when_all_is_over_no_task_is_left(redis_url, gen):
    before = asyncio.all_tasks()
    async with replica(redis_url) as first, replica(redis_url) as second:
        said = whole(5)
        speaker = speaker_of(said[:3])
        stream = first.start(gen, speaker)
        await anext(stream)
        other = second.follow(gen)
        await anext(other)
        await other.aclose()
        speaker.say(*(numbered.event for numbered in said[3:]))
        await read(stream)
        unread = Speaker(STARTED)
        await read(first.start(f"{gen}x", unread), 1)
    assert unread.closed.is_set()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == set()
