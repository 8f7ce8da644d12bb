"""The process that works on a generation: pull its events, persist them, then send them.

The generation goes on at the provider's pace, whoever reads: what it says is
queued, everything that waits goes to the replay in one round trip, and readers
get it when it is there. So no sequence is ever seen with one content and kept
with another, and a reader that is cut finds every event that it had.

While the replay's store is away, nothing is sent and the queue fills up until
the provider is slowed down; after ``PATIENCE_S`` the provider is cancelled and
the streams that are read here break with UNAVAILABLE. They get no terminal
event: the last append may have been done without its answer, so the next
sequence may be taken. Whoever resumes later gets what was persisted and then
the terminal event that a reader writes for an owner that is gone.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from janus_inference import answer_size
from janus_inference.events import Cost, Numbered, Usage, UsageUpdated
from janus_inference.ports import Pledge, ReplayAway, ReplayFenced, ReplayLost, ReplayStore
from janus_inference.resuming import ending
from janus_inference.resuming.ending import Ending, is_semantic
from janus_inference.resuming.feed import Feed, is_terminal
from janus_inference.telemetry import broken_off_total
from janus_kit.errors import JanusError, Unavailable
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

# How long the replay's store may be away.
PATIENCE_S = 5.0
_RETRY_S = 0.1
_MOST_QUEUED = 1_024
_MOST_QUEUED_BYTES = 1024 * 1024
_BATCH = 256
# Bytes of the newest events that are held to give them to a store that forgot them.
_TAIL_BYTES = 256 * 1024


Spent = Callable[[], tuple[Usage, Cost | None] | None]
"""What a generation used and what that costs, once it is over; None when nothing was used."""


class Owned:
    """One generation that this process works on. ``run`` is its task; ``on_end`` is told when it is over."""

    def __init__(
        self,
        store: ReplayStore,
        owner: str,
        key: tuple[str, str],
        events: AsyncGenerator[Numbered, None],
        linger_s: float,
        lease_s: float,
        pledge: Pledge | None,
        spent: Spent,
        on_end: Callable[["Owned"], None],
    ) -> None:
        self.key = key
        self.linger_s = linger_s
        self.feed = Feed()
        self.is_open = False
        self.readers_elsewhere = 0
        self.unread_since: float | None = None
        self._store, self._owner, self._lease_s, self._on_end = store, owner, lease_s, on_end
        self._events = events
        self._pledge = pledge
        self._spent = spent
        self._must_restore = False
        self._queue: deque[tuple[Numbered, int]] = deque()
        self._queued_bytes = 0
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._pulling: asyncio.Task[None] | None = None
        self._ending: Ending | None = None
        self._fenced = False
        self._must_open = False
        self._spoken = False
        self._usage = Usage(estimated=True)
        self._cost: Cost | None = None
        self._tail: deque[tuple[list[Numbered], int]] = deque()
        self._tail_bytes = 0

    def stop(self, why: Ending) -> None:
        """Cancel the provider and end the generation with a terminal event."""
        if self._ending is None:
            self._ending = why
            self._wake.set()
            if self._pulling is not None:
                self._pulling.cancel()

    def fence(self) -> None:
        """Somebody else has ended it."""
        self._fenced = True
        self._wake.set()

    def restore(self) -> None:
        """The store has forgotten it: give it again what is held here, now and not with the next event."""
        self._must_restore = True
        self._wake.set()

    async def run(self) -> None:
        """From the first event to the last. Raises nothing but CancelledError."""
        broken: JanusError | None = None
        try:
            await self._begun()
            self.is_open = True
            await self._work()
        except ReplayFenced:
            broken_off_total.labels("fenced").inc()
            _log.warning("generation_fenced", generation_id=self.key[1])
        except ReplayAway as away:
            broken = Unavailable("redis")
            _log.warning("generation_without_replay", generation_id=self.key[1], error=str(away))
        except ReplayLost:
            broken = ending.events_lost()
            _log.error("generation_events_lost", generation_id=self.key[1])
            with suppress(ReplayAway):
                await self._store.discard(*self.key, self._owner)
        except asyncio.CancelledError:
            broken = ending.stopping().error
            raise
        except Exception:  # noqa: BLE001 - a bug of ours must not leave readers waiting
            broken = ending.owner_gone().error
            _log.exception("generation_broken", generation_id=self.key[1])
        finally:
            self._on_end(self)
            if broken is not None:
                broken_off_total.labels("error").inc()
                self.feed.fail(broken)
            elif self._fenced:
                self.feed.look_again()
            await self._events.aclose()

    async def _work(self) -> None:
        self._pulling = asyncio.create_task(self._pull(), name=f"generation-{self.key[1]}")
        self._pulling.add_done_callback(lambda _: self._wake.set())
        if self._ending is not None:
            self._pulling.cancel()
        try:
            await self._write()
        except ReplayFenced:
            self._fenced = True
            raise
        finally:
            self._pulling.cancel()
            await asyncio.gather(self._pulling, return_exceptions=True)

    async def _pull(self) -> None:
        """What the provider says, at its own pace until too much is waiting, and until it is too much in all."""
        taken = 0
        async with aclosing(self._events) as events:
            async for numbered in events:
                size = answer_size.kept_bytes(numbered.event)
                taken += size
                if taken > answer_size.MOST_BYTES and not is_terminal(numbered):
                    self._ending = self._ending or ending.too_large()
                    return
                while len(self._queue) >= _MOST_QUEUED or self._queued_bytes >= _MOST_QUEUED_BYTES:
                    self._room.clear()
                    await self._room.wait()
                self._queue.append((numbered, size))
                self._queued_bytes += size
                self._wake.set()

    async def _write(self) -> None:
        assert self._pulling is not None
        last: Numbered | None = None
        while True:
            await self._wake.wait()
            self._wake.clear()
            # Before the queue is emptied: what comes after that is for the next round.
            is_over = self._pulling.done()
            if self._must_restore and not is_over:
                await self._remembered()
            while self._queue:
                batch = [self._queue[at][0] for at in range(min(_BATCH, len(self._queue)))]
                await self._send(batch)
                for _ in batch:
                    self._queued_bytes -= self._queue.popleft()[1]
                self._room.set()
                last = batch[-1]
            if self._fenced:
                raise ReplayFenced(self.key[1])
            if is_over:
                break
        if last is None or not is_terminal(last):
            await self._end(last.sequence if last is not None else 0)

    async def _end(self, last: int) -> None:
        """The terminal event of a generation that did not come to its own."""
        why = self._ending or self._failure()
        broken_off_total.labels(why.cause).inc()
        if last == 0:
            # Nothing was said, so there is no stream to end.
            await self._store.discard(*self.key, self._owner)
            self.feed.fail(why.error)
            return
        usage, cost = self._spent() or (self._usage, self._cost)
        await self._send([why.after(last, spoken=self._spoken, usage=usage, cost=cost)])

    def _failure(self) -> Ending:
        """Why the events stopped without an end."""
        assert self._pulling is not None
        error = None if self._pulling.cancelled() else self._pulling.exception()
        if isinstance(error, JanusError):
            return ending.failed(error)
        _log.error("generation_without_end", generation_id=self.key[1], exc_info=error)
        return ending.owner_gone()

    async def _send(self, batch: list[Numbered]) -> None:
        for numbered in batch:
            if isinstance(numbered.event, UsageUpdated):
                self._usage, self._cost = numbered.event.usage, numbered.event.cost
            self._spoken = self._spoken or (is_semantic(numbered.event) and not is_terminal(numbered))
        await self._persist(batch)
        self.feed.push(batch)

    async def _persist(self, batch: list[Numbered]) -> None:
        """Raises ReplayFenced, and ReplayAway or ReplayLost when there is no hope any more."""
        loop = asyncio.get_running_loop()
        give_up_at = 0.0
        while True:
            try:
                if self._must_open:
                    # The store may be another process than before; the lease may have run out.
                    await self._opened()
                    self._must_open = False
                await self._append(batch)
                return
            except ReplayLost as lost:
                if not await self._restored(lost.last):
                    raise
            except ReplayAway:
                self._must_open = True
                give_up_at = give_up_at or loop.time() + PATIENCE_S
                if loop.time() >= give_up_at:
                    raise
                await asyncio.sleep(_RETRY_S)

    async def _begun(self) -> None:
        try:
            await self._opened()
        except ReplayAway:
            # A store that syncs every write may stall for a moment.
            await self._opened()

    async def _opened(self) -> None:
        await self._store.open(*self.key, self._owner, self._lease_s, self._pledge)

    async def _remembered(self) -> None:
        """Restore what the store forgot; where that cannot be done now, the next append finds out about it as well."""
        self._must_restore = False
        try:
            # An append that found out about it may have been quicker.
            head = await self._store.head(*self.key)
            last = head.last if head is not None else 0
            if head is None and not self._tail:
                await self._opened()
            elif self._tail and self._tail[-1][0][-1].sequence > last and not await self._restored(last):
                raise ReplayLost(last)
        except ReplayAway:
            self._must_open = True

    async def _append(self, batch: list[Numbered]) -> None:
        size = await self._store.append(
            *self.key, self._owner, batch, spoken=self._spoken, terminal=is_terminal(batch[-1])
        )
        self._tail.append((batch, size))
        self._tail_bytes += size
        while self._tail_bytes > _TAIL_BYTES and len(self._tail) > 1:
            self._tail_bytes -= self._tail.popleft()[1]

    async def _restored(self, last: int) -> bool:
        """Give a store that forgot the newest events what it lacks; False when that is not known here any more."""
        missing = [batch for batch, _ in self._tail if batch[-1].sequence > last]
        if not missing or missing[0][0].sequence != last + 1:
            return False
        await self._opened()
        for batch in missing:
            await self._store.append(*self.key, self._owner, batch, spoken=self._spoken, terminal=False)
        _log.warning("generation_restored", generation_id=self.key[1], events_after=last)
        return True
