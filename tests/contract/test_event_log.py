"""The event stream's contract on real Redis: order, fencing, and knowing when something was lost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import redis.asyncio
from tests.fakes.tcp_proxy import TcpProxy

from janus_kit.redis import key
from janus_kit.redis import redis as client_of
from janus_kit.settings import RedisSettings
from janus_orchestration.adapters.redis_events import RedisEvents
from janus_orchestration.model import Cursor, Recorded
from janus_orchestration.ports import Fenced, Opened, StreamAway


@dataclass
class Stream:
    """One run's stream."""

    events: RedisEvents
    client: redis.asyncio.Redis
    place: tuple[str, str]

    async def open(self, epoch: int, known: int = 0, otherwise: int = 0) -> Opened:
        return await self.events.open(*self.place, epoch, known=known, otherwise=otherwise)

    async def append(self, epoch: int, *sequences: int) -> None:
        events = [event(epoch, sequence) for sequence in sequences]
        await self.events.append(*self.place, epoch, events, begins=epoch == 1)

    async def all(self, after: Cursor = Cursor()) -> list[tuple[int, int]]:  # noqa: B008 - it is immutable
        return [tuple(item.cursor) for item in await self.events.page(*self.place, after, 1000)]


@pytest.fixture
async def stream(redis_url: str) -> AsyncIterator[Stream]:
    async with client_of(RedisSettings(url=redis_url)) as client:
        events = RedisEvents(client, client, ttl_s=60, timeout_s=2)
        yield Stream(events, client, (f"t{uuid.uuid4().hex[:8]}", "run_1"))


def event(epoch: int, sequence: int, *, durable: bool = False, terminal: bool = False) -> Recorded:
    return Recorded(Cursor(epoch, sequence), "", b"wire %d" % sequence, durable=durable, terminal=terminal)


async def test_events_come_back_as_they_were(stream: Stream) -> None:
    sent = [event(1, 1, durable=True), event(1, 2), event(1, 3, durable=True, terminal=True)]
    await stream.events.append(*stream.place, 1, sent)
    assert await stream.events.page(*stream.place, Cursor(), 10) == sent
    assert await stream.events.page(*stream.place, Cursor(1, 1), 1) == sent[1:2]
    assert await stream.events.head(*stream.place) == Cursor(1, 3)


async def test_what_is_there_already_is_passed_over(stream: Stream) -> None:
    await stream.append(1, 1, 2)
    await stream.append(1, 2, 3)
    assert await stream.all() == [(1, 1), (1, 2), (1, 3)]


async def test_opening_fences_the_older_epoch_at_once(stream: Stream) -> None:
    await stream.append(1, 1, 2)
    assert await stream.open(2, known=1, otherwise=100) == Opened(2, intact=True)
    with pytest.raises(Fenced):
        await stream.append(1, 3)
    await stream.append(2, 3)
    assert await stream.all() == [(1, 1), (1, 2), (2, 3)]
    with pytest.raises(Fenced):
        await stream.open(1)


async def test_what_the_journal_knows_counts_too(stream: Stream) -> None:
    await stream.append(1, 1)
    assert await stream.open(2, known=7, otherwise=100) == Opened(7, intact=True)


async def test_a_lost_stream_goes_on_beyond_all_that_may_have_been_sent(stream: Stream) -> None:
    await stream.append(1, 1, 2)
    await stream.client.delete(key(stream.place[0], "run", "run_1", "events"))
    assert await stream.open(2, known=1, otherwise=100) == Opened(100, intact=False)
    with pytest.raises(Fenced):
        await stream.append(1, 3)
    await stream.append(2, 101)
    assert await stream.all() == [(2, 101)]


@asynccontextmanager
async def syncing(client: redis.asyncio.Redis, mode: str) -> AsyncIterator[None]:
    """How often Redis syncs its log to disk, for as long as the block runs."""
    before = (await client.config_get("appendfsync"))["appendfsync"]
    await client.config_set("appendfsync", mode)
    try:
        yield
    finally:
        await client.config_set("appendfsync", before)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("everysec", Opened(100, intact=False)), ("always", Opened(2, intact=True))],
)
async def test_a_redis_that_was_restarted_is_trusted_with_the_newest_only_if_it_syncs_them(
    stream: Stream, mode: str, expected: Opened
) -> None:
    await stream.append(1, 1, 2)
    await stream.client.set(key(stream.place[0], "run", "run_1", "redis"), "another process")
    async with syncing(stream.client, mode):
        assert await stream.open(2, known=1, otherwise=100) == expected


async def test_an_epoch_may_open_again(stream: Stream) -> None:
    await stream.open(2, known=5, otherwise=5)
    await stream.append(2, 6)
    assert (await stream.open(2, known=5, otherwise=5)).base == 6
    await stream.append(2, 7)


async def test_waiting_ends_with_the_first_event(stream: Stream) -> None:
    waiting = asyncio.create_task(stream.events.wait(*stream.place, Cursor(), 10))
    await asyncio.sleep(0)
    await stream.append(1, 1)
    assert [item.cursor for item in await waiting] == [Cursor(1, 1)]
    assert await stream.events.wait(*stream.place, Cursor(1, 1), 0.05) == []


async def test_streams_expire(stream: Stream) -> None:
    await stream.append(1, 1)
    for name in ("events", "redis"):
        assert 0 < await stream.client.pttl(key(stream.place[0], "run", "run_1", name)) <= 60_000


async def test_a_redis_that_is_away_says_so(redis_url: str) -> None:
    proxy = TcpProxy.to(redis_url)
    try:
        async with client_of(RedisSettings(url=proxy.through(redis_url))) as client:
            events = RedisEvents(client, client, ttl_s=60, timeout_s=0.5)
            assert await events.head("t", "r") is None
            proxy.cut()
            for call in (
                events.head("t", "r"),
                events.page("t", "r", Cursor(), 1),
                events.wait("t", "r", Cursor(), 0.1),
                events.append("t", "r", 1, [event(1, 1)]),
                events.open("t", "r", 1, known=0, otherwise=0),
            ):
                with pytest.raises(StreamAway):
                    await call
            proxy.mend()
            assert await events.head("t", "r") is None
    finally:
        proxy.close()
