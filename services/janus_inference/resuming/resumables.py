"""Resumable generations of this process, and reading those of any other.

``start`` works on a generation here; ``follow`` reads one from wherever it is:
from the feed of this process when it is worked on here, else from one that
follows its replay for all readers in this process, and from the replay alone
once it has ended.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Container
from contextlib import aclosing

from janus_inference.events import Numbered
from janus_inference.model import Caller
from janus_inference.ports import Pledge, ReplayAway, ReplayHead, ReplayStore
from janus_inference.resuming import ending
from janus_inference.resuming.feed import Feed, Subscription, is_terminal
from janus_inference.resuming.follower import Followed
from janus_inference.resuming.keeper import LEASE_S, Keeper
from janus_inference.resuming.owner import Owned, Spent
from janus_inference.resuming.settling import Settling
from janus_inference.telemetry import resumes_total
from janus_kit.errors import InvalidArgument, JanusError, Unavailable
from janus_kit.ids import require_id

# How long a read of the replay is tried again while its store is away.
PATIENCE_S = 5.0
_RETRY_S = 0.1
# Far more than an owner takes to give a store again what it forgot.
_RESTORE_S = 0.2
_CLOSE_S = 2.0

Key = tuple[str, str]


class Resumables:
    """Owned generations, followed ones, and what keeps them alive. ``close`` ends it all.

    ``settling`` puts on record what a generation used whose owner is gone.
    """

    def __init__(self, store: ReplayStore, settling: Settling | None = None) -> None:
        self._store = store
        self._settling = settling
        self._name = uuid.uuid4().hex
        self._owned: dict[Key, Owned] = {}
        self._followed: dict[Key, Followed] = {}
        self._working: set[asyncio.Task[None]] = set()
        self._following: set[asyncio.Task[None]] = set()
        self._keeper = Keeper(store, self._name, self._owned, self._followed)
        self._closed = False

    @property
    def owned(self) -> Container[Key]:
        """(tenant, generation) of those that are worked on here; it changes with them."""
        return self._owned.keys()

    def start(
        self,
        caller: Caller,
        generation_id: str,
        events: AsyncGenerator[Numbered, None],
        linger_s: float,
        *,
        pledge: Pledge | None,
        spent: Spent,
    ) -> AsyncGenerator[Numbered, None]:
        """Work on a generation; the first reader's stream.

        ``pledge`` is kept for the record that is made if this process dies; None when nobody is asked.
        ``spent`` says what was used, and what that costs, once ``events`` is
        closed; None when nothing was.

        ``events`` ends with a terminal event and raises nothing but
        CancelledError; it is not begun before the replay is. Closing the stream
        only takes that reader away: after ``linger_s`` seconds without a reader
        on any replica ``events`` is closed and a terminal Failed (Cancelled) is
        appended. Readers elsewhere are counted once a second.

        Raises Unavailable("redis"), before the first event when the replay
        cannot be begun, and later when it is lost: such a stream ends without a
        terminal event and can be resumed.
        """
        return self._started((caller.tenant, generation_id), events, linger_s, pledge, spent)

    async def follow(self, caller: Caller, generation_id: str, after: int) -> AsyncGenerator[Numbered, None]:
        """Every event after that sequence, to the terminal one.

        Raises InvalidArgument, NotFound, OutOfRange, and Unavailable("redis").
        """
        require_id("generation_id", generation_id)
        if after < 0:
            raise InvalidArgument("after_sequence", "must be 0 or more")
        outcome = "cut"
        try:
            async with aclosing(self._stream((caller.tenant, generation_id), after)) as stream:
                async for numbered in stream:
                    yield numbered
            outcome = "ended"
        except JanusError as error:
            outcome = error.code.lower()
            raise
        finally:
            resumes_total.labels(outcome).inc()

    async def drain(self) -> None:
        """Until the generations of this process have ended by themselves; the host bounds it."""
        while self._working:
            await asyncio.wait(self._working)

    def conclude(self) -> None:
        """End what is left, each generation with its terminal event; those of others can be resumed elsewhere."""
        self._closed = True
        for owned in list(self._owned.values()):
            owned.stop(ending.stopping())
        for followed in list(self._followed.values()):
            followed.leave(ending.stopping().error)

    async def close(self) -> None:
        """The same, and wait for it."""
        self.conclude()
        if self._working:
            await asyncio.wait(self._working, timeout=_CLOSE_S)
        tasks = [*self._working, *self._following]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._keeper.close()

    async def _started(
        self, key: Key, events: AsyncGenerator[Numbered, None], linger_s: float, pledge: Pledge | None, spent: Spent
    ) -> AsyncGenerator[Numbered, None]:
        if self._closed:
            raise ending.stopping().error
        owned = Owned(self._store, self._name, key, events, linger_s, LEASE_S, pledge, spent, self._owned_ended)
        self._owned[key] = owned
        # Before the task: the generation must not find itself without a reader.
        subscription = owned.feed.join()
        task = asyncio.create_task(owned.run(), name=f"resumable-{key[1]}")
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        self._keeper.look()
        async with aclosing(self._stream(key, 0, (owned.feed, subscription))) as stream:
            async for numbered in stream:
                yield numbered

    async def _stream(
        self, key: Key, position: int, joined: tuple[Feed, Subscription] | None = None
    ) -> AsyncGenerator[Numbered, None]:
        """Catch up from the replay, then read live; again whenever that breaks off."""
        is_first = True
        while True:
            feed, subscription = joined or await self._joined(key, position, is_first=is_first)
            joined, is_first = None, False
            try:
                if position < subscription.joined_at:
                    replayed = self._replayed(key, position, subscription.joined_at, is_over=feed is None)
                    async with aclosing(replayed) as past:
                        async for numbered in past:
                            yield numbered
                            position = numbered.sequence
                            if is_terminal(numbered):
                                return
                if feed is None:
                    return
                while (batch := await subscription.next()) is not None:
                    if batch[0].sequence > position + 1:
                        break  # something never came by here: the replay has it, or it is lost
                    for numbered in batch:
                        if numbered.sequence <= position:
                            continue
                        yield numbered
                        position = numbered.sequence
                        if is_terminal(numbered):
                            return
            finally:
                if feed is not None:
                    feed.leave(subscription)
                    self._reader_left(key, feed)

    async def _joined(self, key: Key, position: int, *, is_first: bool) -> tuple[Feed | None, Subscription]:
        """Where a generation's events come from; no feed once they are all in the replay."""
        owned = self._owned.get(key)
        if owned is not None:
            if is_first and position > owned.feed.published:
                # The store may have what was not confirmed to be there yet.
                head = await self._head(key)
                if head is None or position > head.last:
                    raise ending.beyond(owned.feed.published if head is None else head.last)
            return _entered(owned.feed)
        head = await (self._head(key) if is_first else self._known(key))
        if head is not None and is_first and position > head.last and head.is_owned:
            # Its owner may be giving it again to a store that forgot it.
            await asyncio.sleep(_RESTORE_S)
            head = await self._known(key)
        if head is None:
            raise ending.not_found(key[1])
        if head.is_lost:
            raise ending.events_lost()
        if is_first and position > head.last:
            raise ending.beyond(head.last)
        if head.has_ended:
            return None, Subscription(head.last)
        followed = self._followed.get(key)
        if followed is None:
            if self._closed:
                raise ending.stopping().error
            followed = Followed(self._store, key, head.last, self._followed_ended, self._settling)
            followed.task = asyncio.create_task(followed.run(), name=f"follow-{key[1]}")
            self._following.add(followed.task)
            followed.task.add_done_callback(self._following.discard)
            self._followed[key] = followed
            self._keeper.look()
        return _entered(followed.feed)

    async def _replayed(self, key: Key, position: int, until: int, *, is_over: bool) -> AsyncGenerator[Numbered, None]:
        """What the replay has beyond a position, at least to ``until``."""
        while position < until:
            page = await self._patiently(key, position)
            if not page and is_over and await self._head(key) is None:
                raise ending.not_found(key[1])
            if not page and not is_over:
                await self._known(key, position)
                page = await self._patiently(key, position)
            if not page or page[0].sequence != position + 1:
                raise ending.events_lost()
            for numbered in page:
                yield numbered
            position = page[-1].sequence

    async def _head(self, key: Key) -> ReplayHead | None:
        give_up_at = _now() + PATIENCE_S
        while True:
            try:
                return await self._store.head(*key)
            except ReplayAway:
                await _pause(give_up_at)

    async def _known(self, key: Key, beyond: int = -1) -> ReplayHead:
        """The head of a generation that was there, and went beyond that sequence.

        What a store forgot, its owner gives it again. Raises Unavailable when that takes too long.
        """
        give_up_at = _now() + PATIENCE_S
        while True:
            head = await self._head(key)
            if head is not None and (head.last > beyond or not head.is_owned):
                return head
            await _pause(give_up_at)

    async def _patiently(self, key: Key, position: int) -> list[Numbered]:
        give_up_at = _now() + PATIENCE_S
        while True:
            try:
                return await self._store.page(*key, position)
            except ReplayAway:
                await _pause(give_up_at)

    def _reader_left(self, key: Key, feed: Feed) -> None:
        followed = self._followed.get(key)
        if followed is not None and followed.feed is feed and not feed.subscribers:
            followed.stop()
            self._followed_ended(followed)
        # What nobody reads may have to end.
        self._keeper.look()

    def _owned_ended(self, owned: Owned) -> None:
        if self._owned.get(owned.key) is owned:
            del self._owned[owned.key]
            self._keeper.ended(owned.key)

    def _followed_ended(self, followed: Followed) -> None:
        if self._followed.get(followed.key) is followed:
            del self._followed[followed.key]
            self._keeper.left(followed.key)


def _entered(feed: Feed) -> tuple[Feed | None, Subscription]:
    """A place at a feed, unless nothing will come through it any more."""
    return (None, Subscription(feed.published)) if feed.has_ended else (feed, feed.join())


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _pause(give_up_at: float) -> None:
    """Before the next try. Raises Unavailable when that would be too late."""
    if _now() + _RETRY_S > give_up_at:
        raise Unavailable("redis")
    await asyncio.sleep(_RETRY_S)
