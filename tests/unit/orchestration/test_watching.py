"""A watcher's buffer: bounded, never blocking, and no harm to the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from janus_orchestration.model import Cursor, Recorded
from janus_orchestration.ports import Opened, StreamAway
from janus_orchestration.watch import Batch, Feed, Hub, Subscription


def event(sequence: int, *, terminal: bool = False) -> Recorded:
    return Recorded(Cursor(1, sequence), "model", b"%d" % sequence, durable=terminal, terminal=terminal)


class Past:
    """What has happened, as the replay would tell it."""

    def __init__(self) -> None:
        self.events: list[Recorded] = []
        self.reads = 0

    async def pages(self, tenant: str, run_id: str, after: Cursor) -> AsyncIterator[list[Recorded]]:
        self.reads += 1
        page = [item for item in self.events if item.cursor.sequence > after.sequence]
        if page:
            yield page

    async def between(self, tenant: str, run_id: str, first: int, last: int) -> list[Recorded]:
        return [Recorded(Cursor(1, last), "replay_compacted", b"lost", durable=False)]

    async def last_durable(self, tenant: str, run_id: str) -> tuple[int, bool]:
        return 0, False


class NoStream:
    """A stream's store that is away."""

    async def open(self, tenant: str, run_id: str, epoch: int, *, known: int, otherwise: int) -> Opened:
        raise StreamAway

    async def append(self, *_: object) -> None:
        raise StreamAway

    async def page(self, *_: object) -> list[Recorded]:
        raise StreamAway

    async def wait(self, *_: object) -> list[Recorded]:
        raise StreamAway

    async def head(self, *_: object) -> Cursor | None:
        raise StreamAway


async def collected(batches: AsyncIterator[Batch]) -> list[int]:
    return [item.cursor.sequence async for batch in batches for item in batch.events]


async def test_a_full_buffer_sends_only_its_owner_to_the_replay() -> None:
    feed = Feed()
    slow, quick = Subscription(feed, 2), Subscription(feed, 100)
    feed.subscribers |= {slow, quick}
    for sequence in range(1, 5):
        feed.push([event(sequence)])
    assert await slow.next() is None
    batches = await quick.next()
    assert batches is not None
    assert [item.cursor.sequence for batch in batches for item in batch.events] == [1, 2, 3, 4]


async def test_events_come_once_whether_from_the_replay_or_live() -> None:
    past = Past()
    hub = Hub(NoStream(), past, buffer=4)
    feed = hub.open_local("t", "r", 0)
    past.events = [event(1), event(2)]
    feed.push(past.events)
    watching = asyncio.create_task(collected(hub.follow("t", "r", Cursor())))
    while not feed.subscribers:  # noqa: ASYNC110 - it joins in a task of its own
        await asyncio.sleep(0)
    for sequence in range(3, 40):
        past.events.append(event(sequence, terminal=sequence == 39))
        feed.push(past.events[-1:])
        if sequence % 7 == 0:
            await asyncio.sleep(0)
    assert await asyncio.wait_for(watching, 5) == list(range(1, 40))


async def test_a_run_that_begins_here_needs_no_replay() -> None:
    past = Past()
    hub = Hub(NoStream(), past, buffer=100)
    feed = hub.open_local("t", "r", 0)
    first = hub.subscribe("t", "r")
    feed.push([event(1), event(2, terminal=True)])
    hub.close_local("t", "r")
    assert await collected(hub.follow("t", "r", Cursor(), first)) == [1, 2]
    assert past.reads == 0


async def test_what_is_lost_is_declared_and_the_rest_goes_on() -> None:
    past = Past()
    hub = Hub(NoStream(), past, buffer=100)
    feed = hub.open_local("t", "r", 5)
    watching = asyncio.create_task(collected(hub.follow("t", "r", Cursor(1, 2))))
    sequence = 6
    while not watching.done():
        feed.push([event(sequence, terminal=sequence > 20)])
        sequence += 1
        await asyncio.sleep(0)
    seen = await watching
    assert seen == list(range(seen[0], seen[-1] + 1)), "one declared gap, and no other"
    assert seen[0] >= 5


class Returning(NoStream):
    """A stream that is away until the test says so, and has then all that is past."""

    def __init__(self, past: Past) -> None:
        self.is_away = True
        self._past = past

    async def head(self, *_: object) -> Cursor | None:
        if self.is_away:
            raise StreamAway
        return self._past.events[-1].cursor

    async def wait(self, *_: object) -> list[Recorded]:
        await asyncio.sleep(0.01)
        return []


async def test_what_was_said_while_the_stream_was_away_reaches_who_came_then() -> None:
    past = Past()
    past.events = [event(1)]
    stream = Returning(past)
    hub = Hub(stream, past, buffer=10)
    watching = asyncio.create_task(collected(hub.follow("t", "r", Cursor())))
    while past.reads == 0:  # noqa: ASYNC110 - it reads in a task of its own
        await asyncio.sleep(0)
    past.events += [event(2), event(3, terminal=True)]
    stream.is_away = False
    assert await asyncio.wait_for(watching, 5) == [1, 2, 3]


async def test_the_last_watcher_leaves_nothing_behind() -> None:
    hub = Hub(NoStream(), Past(), buffer=10)
    before = asyncio.all_tasks()
    first, second = hub.subscribe("t", "r"), hub.subscribe("t", "r")
    assert len(asyncio.all_tasks() - before) == 1, "one reader a run"
    hub.unsubscribe("t", "r", first)
    hub.unsubscribe("t", "r", second)
    while asyncio.all_tasks() - before:  # noqa: ASYNC110 - a cancelled task ends by itself
        await asyncio.sleep(0)
