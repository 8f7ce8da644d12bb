"""Fan-out: one source a run and process, any number of watchers.

Where the run is worked on, its log feeds the watchers directly. Elsewhere one
reader follows the run's stream in Redis for all of them. Every watcher has a
bounded buffer; one that reads too slowly loses its buffer, not events: it goes
back to the replay and joins again, and nobody else notices.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import NamedTuple, Protocol

from janus_kit.errors import JanusError
from janus_kit.telemetry.logging import get_logger
from janus_orchestration.model import Cursor, Recorded
from janus_orchestration.ports import EventStream, StreamAway

_log = get_logger(__name__)

# A reader that hears nothing for this long asks Postgres whether it missed something.
_IDLE_S = 1.0
# Without Redis the durable events come from Postgres, this often.
_POLL_S = 0.3


class Batch(NamedTuple):
    """Events to send now. ``kept_at`` is when they were persisted here; 0 from a replay."""

    kept_at: float
    events: Sequence[Recorded]


class PastEvents(Protocol):
    """Where a watcher catches up."""

    def pages(self, tenant: str, run_id: str, after: Cursor) -> AsyncIterator[list[Recorded]]:
        """All that is known beyond a cursor, in order and without undeclared gaps."""

    async def between(self, tenant: str, run_id: str, first: int, last: int) -> list[Recorded]:
        """A range as the journal has it, with what is lost declared."""

    async def last_durable(self, tenant: str, run_id: str) -> tuple[int, bool]:
        """Newest durable sequence, and whether the run has ended."""


class Subscription:
    """One watcher's place at a feed."""

    def __init__(self, feed: "Feed", limit: int) -> None:
        self._feed = feed
        self._limit = limit
        self._batches: list[Batch] = []
        self._held = 0
        self._lagging = False
        self._wake = asyncio.Event()

    def push(self, batch: Batch) -> None:
        """Never blocks: what does not fit sends the watcher to the replay."""
        if self._lagging:
            return
        if self._held + len(batch.events) > self._limit:
            self.lag()
            return
        self._batches.append(batch)
        self._held += len(batch.events)
        self._wake.set()

    def lag(self) -> None:
        """Have the watcher catch up from the replay."""
        self._lagging = True
        self._batches.clear()
        self._wake.set()

    def continues(self, after: Cursor) -> bool:
        """Whether the feed's next event is the one after the cursor, so that no replay is needed."""
        return self._feed.is_local and self._feed.published == after.sequence and not self._held

    async def ready(self) -> None:
        """Wait until nothing can slip through between a replay begun now and the feed."""
        await self._feed.ready.wait()

    async def next(self) -> list[Batch] | None:
        """What has come; None when the watcher must catch up."""
        await self._wake.wait()
        self._wake.clear()
        if self._lagging:
            return None
        batches, self._batches, self._held = self._batches, [], 0
        return batches


class Feed:
    """A run's events as they come into this process."""

    def __init__(self) -> None:
        self.subscribers: set[Subscription] = set()
        self.published = 0
        self.unkept: Sequence[Recorded] = ()
        self.is_local = False
        self.has_ended = False
        self.ready = asyncio.Event()
        self.reader: asyncio.Task[None] | None = None

    def push(self, events: Sequence[Recorded]) -> None:
        """Give events to all watchers; they are persisted."""
        if not events:
            return
        self.published = events[-1].cursor.sequence
        self.has_ended = events[-1].terminal
        batch = Batch(time.monotonic(), events)
        for subscriber in tuple(self.subscribers):
            subscriber.push(batch)

    def lag_all(self) -> None:
        """The source changed or missed something: everybody catches up."""
        for subscriber in tuple(self.subscribers):
            subscriber.lag()


class Hub:
    """The feeds of this process. ``buffer`` is the most events held for one watcher."""

    def __init__(self, stream: EventStream, past: PastEvents, *, buffer: int) -> None:
        self._stream = stream
        self._past = past
        self._buffer = buffer
        self._feeds: dict[tuple[str, str], Feed] = {}

    def open_local(self, tenant: str, run_id: str, published: int) -> Feed:
        """The run is worked on here from now on; watchers that were reading elsewhere move over."""
        feed = self._feeds.setdefault((tenant, run_id), Feed())
        feed.published = published
        if not feed.is_local:
            self._stop_reader(feed)
            feed.is_local = True
            feed.ready.set()
            feed.lag_all()
        return feed

    def close_local(self, tenant: str, run_id: str) -> None:
        """The run is not worked on here any more; watchers that are left find their way."""
        feed = self._feeds.pop((tenant, run_id), None)
        if feed is not None:
            feed.is_local = False
            # After a terminal event everybody has, or holds, all that there is.
            if not feed.has_ended:
                feed.lag_all()

    def unkept(self, tenant: str, run_id: str) -> Sequence[Recorded]:
        """Events of a run that is worked on here which its stream does not have yet, in order."""
        feed = self._feeds.get((tenant, run_id))
        return feed.unkept if feed is not None else ()

    def published(self, tenant: str, run_id: str) -> int | None:
        """The newest sequence of a run that is worked on here."""
        feed = self._feeds.get((tenant, run_id))
        return feed.published if feed is not None and feed.is_local else None

    def subscribe(self, tenant: str, run_id: str) -> Subscription:
        """Join a run's feed; leave with ``unsubscribe``."""
        key = (tenant, run_id)
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed()
            feed.reader = asyncio.create_task(self._read(key, feed), name=f"watch-{run_id}")
        subscription = Subscription(feed, self._buffer)
        feed.subscribers.add(subscription)
        return subscription

    def unsubscribe(self, tenant: str, run_id: str, subscription: Subscription) -> None:
        """Leave; the last one turns the lights off."""
        feed = subscription._feed
        feed.subscribers.discard(subscription)
        if feed.subscribers or feed.is_local:
            return
        self._stop_reader(feed)
        if self._feeds.get((tenant, run_id)) is feed:
            del self._feeds[(tenant, run_id)]

    async def close(self) -> None:
        """End all readers."""
        readers = [feed.reader for feed in self._feeds.values() if feed.reader is not None]
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    async def follow(
        self, tenant: str, run_id: str, after: Cursor, first: Subscription | None = None
    ) -> AsyncIterator[Batch]:
        """Every event after the cursor, once and in order, to the terminal one.

        ``first`` is a subscription made before the run could say anything.
        """
        position = after
        gap_at: Cursor | None = None
        while True:
            subscription = first or self.subscribe(tenant, run_id)
            skip_replay, first = first is not None, None
            try:
                await subscription.ready()
                if not skip_replay and not subscription.continues(position):
                    async with aclosing(self._past.pages(tenant, run_id, position)) as pages:  # type: ignore[type-var]
                        async for page in pages:
                            yield Batch(0.0, page)
                            position = page[-1].cursor
                            if page[-1].terminal:
                                return
                    last, has_ended = await self._past.last_durable(tenant, run_id)
                    if has_ended and position.sequence >= last:
                        return
                while (batches := await subscription.next()) is not None:
                    for batch in batches:
                        fresh = [e for e in batch.events if e.cursor.sequence > position.sequence]
                        if not fresh:
                            continue
                        if fresh[0].cursor.sequence != position.sequence + 1:
                            # Something never came by here. The replay has it, or it is gone.
                            if gap_at != position:
                                gap_at = position
                                subscription.lag()
                                break
                            last = fresh[0].cursor.sequence - 1
                            lost = await self._past.between(tenant, run_id, position.sequence + 1, last)
                            yield Batch(0.0, lost)
                        yield Batch(batch.kept_at, fresh)
                        position = fresh[-1].cursor
                        if fresh[-1].terminal:
                            return
            finally:
                self.unsubscribe(tenant, run_id, subscription)

    def _stop_reader(self, feed: Feed) -> None:
        if feed.reader is not None:
            feed.reader.cancel()
            feed.reader = None

    async def _read(self, key: tuple[str, str], feed: Feed) -> None:
        """Follow a run that is worked on elsewhere, for all its watchers here."""
        last: Cursor | None = None
        while True:
            try:
                if last is None:
                    last = await self._stream.head(*key) or Cursor()
                    feed.published = last.sequence
                    if feed.ready.is_set():
                        # While the stream was away watchers began with what was there then.
                        feed.lag_all()
                    feed.ready.set()
                events = await self._stream.wait(*key, last, _IDLE_S)
                if events:
                    last = events[-1].cursor
                    feed.push(events)
                    continue
            except StreamAway:
                feed.ready.set()
                await asyncio.sleep(_POLL_S)
            except Exception:  # noqa: BLE001 - the reader serves many; it logs and goes on
                _log.exception("watch_reader_failed")
                await asyncio.sleep(_POLL_S)
            await self._look_for_missed(key, feed)

    async def _look_for_missed(self, key: tuple[str, str], feed: Feed) -> None:
        """Durable events that never came through the stream send everybody to the replay."""
        try:
            durable, _ = await self._past.last_durable(*key)
        except JanusError:
            return
        if durable > feed.published:
            feed.published = durable
            feed.lag_all()
