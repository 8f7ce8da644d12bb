"""The owner's side of a run's events: number, persist, then send.

Durable events are committed to the journal by the caller and published here.
What the model says, and that a tool was begun, is queued, and everything that waits goes to the stream in
one round trip; watchers get it when the stream has it.

While the stream's store is away, the journal first notes that events go out
which only this process has; a later owner then goes on beyond every sequence
that may have been sent, so that no sequence ever carries two contents. When it
is back, the stream gets what it missed.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from janus_kit.clock import Clock
from janus_kit.errors import JanusError
from janus_kit.telemetry.logging import get_logger
from janus_orchestration.events import Event
from janus_orchestration.model import Cursor, Recorded, Run
from janus_orchestration.ports import EventCodec, EventStream, Fenced, Store, StreamAway
from janus_orchestration.watch import Feed

_log = get_logger(__name__)

# Sequences that the first owner may use without asking; then more at a time.
FIRST_RESERVE = 1_024
_RESERVE = 8_192

_BATCH = 256
_MOST_QUEUED = 1_024
# What is kept for a stream that is away, before it is given up.
_MOST_MISSED = 16_384
_JOURNAL_RETRY_S = 0.2


class RunLog:
    """The events of one run under one epoch. Not to be shared between tasks, but for ``close``."""

    def __init__(
        self,
        tenant: str,
        run: Run,
        feed: Feed,
        *,
        base: Cursor,
        is_open: bool,
        store: Store,
        stream: EventStream,
        codec: EventCodec,
        clock: Clock,
        retry_s: float,
        on_fenced: Callable[[], None],
    ) -> None:
        self._tenant = tenant
        self._run = run
        self._feed = feed
        self._last = base
        self._is_open = is_open
        self._reserved = run.reserved_sequence
        self._store = store
        self._stream = stream
        self._codec = codec
        self._clock = clock
        self._retry_s = retry_s
        self._on_fenced = on_fenced
        self._queue: deque[Recorded] = deque()
        # How many of the queued ones nobody has been sent yet.
        self._saying = 0
        self._missed: list[Recorded] = []
        # Events that were said and are journalled with the next commit.
        self.notes: list[Recorded] = []
        self._has_noted = run.stream_broken
        self._retry_at = 0.0
        self._moved_at = clock.monotonic()
        self._fenced = False
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    @property
    def idle_s(self) -> float:
        """Seconds since the newest event."""
        return self._clock.monotonic() - self._moved_at

    @property
    def last(self) -> Cursor:
        """The newest event's place."""
        return self._last

    async def say(self, event: Event, *, keep: bool) -> None:
        """Number an event that is not in the journal yet and queue it; waits only when too many are queued.

        One that is to be kept is of the ``notes`` that the journal gets with its next commit.
        """
        while len(self._queue) >= _MOST_QUEUED and not self._fenced:
            self._moved.clear()
            await self._moved.wait()
        self._check()
        self._last = Cursor(self._run.epoch, self._last.sequence + 1)
        wire = self._codec.encode(self._run.id, self._last, self._clock.now(), event)
        recorded = Recorded(self._last, event.kind, wire, durable=False)
        self._queue.append(recorded)
        self._saying += 1
        self._moved_at = self._clock.monotonic()
        self._write_soon()
        if keep:
            self.notes.append(Recorded(self._last, event.kind, wire, durable=True))

    async def flushed(self) -> None:
        """Wait until all that was said is persisted and sent. Raises Fenced."""
        while self._saying:
            self._check()
            self._moved.clear()
            await self._moved.wait()
        self._check()

    def draft(self, events: Sequence[Event]) -> list[Recorded]:
        """Durable events with the places that they get if they are committed now."""
        now = self._clock.now()
        drafts = []
        for sequence, event in enumerate(events, self._last.sequence + 1):
            cursor = Cursor(self._run.epoch, sequence)
            wire = self._codec.encode(self._run.id, cursor, now, event)
            drafts.append(Recorded(cursor, event.kind, wire, durable=True, terminal=event.terminal))
        return drafts

    def publish(self, committed: Sequence[Recorded]) -> None:
        """Send events that are in the journal now; the stream gets them next."""
        if not committed:
            return
        self._last = committed[-1].cursor
        self._moved_at = self._clock.monotonic()
        self._feed.push(committed)
        self._queue.extend(committed)
        self._write_soon()

    async def close(self, timeout_s: float) -> None:
        """Let the stream have what is left, for so long, and stop."""
        with suppress(TimeoutError, Fenced, StreamAway):
            async with asyncio.timeout(timeout_s):
                while self._queue:
                    self._check()
                    self._moved.clear()
                    await self._moved.wait()
                if self._missed:
                    # The last chance: nobody will come back to it.
                    await self._append([])
        self.stop()
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)

    def stop(self) -> None:
        """Write no more, at once."""
        if self._writer is not None:
            self._writer.cancel()

    def _write_soon(self) -> None:
        """There is something in the queue."""
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(), name=f"events-{self._run.id}")
        self._wake.set()

    def _check(self) -> None:
        if self._fenced:
            raise Fenced(self._run.id)

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                # What is ready to run goes first: a model call above all, and what else is said at this moment.
                await asyncio.sleep(0)
                while self._queue:
                    batch = [self._queue[i] for i in range(min(_BATCH, len(self._queue)))]
                    await self._keep(batch)
                    # Durable ones were sent when they were committed.
                    said = [event for event in batch if not event.durable]
                    self._feed.push(said)
                    self._saying -= len(said)
                    for _ in batch:
                        self._queue.popleft()
                    self._moved.set()
        except Fenced:
            self._stop_for_good()
        except Exception:
            # A bug of ours: the run stops here and is taken over from its journal.
            _log.exception("event_log_broken")
            self._stop_for_good()
            raise

    def _stop_for_good(self) -> None:
        self._fenced = True
        self._moved.set()
        self._on_fenced()

    async def _keep(self, batch: list[Recorded]) -> None:
        if batch[-1].cursor.sequence > self._reserved:
            await self._reserve(batch[-1].cursor.sequence + _RESERVE)
        if self._clock.monotonic() >= self._retry_at:
            try:
                await self._append(batch)
                return
            except StreamAway as away:
                self._retry_at = self._clock.monotonic() + self._retry_s
                _log.warning("event_stream_away", error=str(away))
        if not self._has_noted and not all(event.durable for event in batch):
            await self._until_journalled(self._note_broken)
        self._missed = [*self._missed, *batch] if len(self._missed) < _MOST_MISSED else []
        # Of what the stream has, and cannot give now, a watcher must not miss what the journal is going to have.
        first = (self._missed or batch)[0].cursor.sequence
        self._feed.unkept = [*(note for note in self.notes if note.cursor.sequence < first), *self._missed]

    async def _append(self, batch: list[Recorded]) -> None:
        place = self._tenant, self._run.id, self._run.epoch
        if not self._is_open and self._run.epoch > 1:
            # From here on nobody of an older epoch gets in.
            known = (self._missed or batch)[0].cursor.sequence - 1
            await self._stream.open(*place, known=known, otherwise=known)
            self._is_open = True
        waiting = [*self._missed, *batch] if self._missed else batch
        for start in range(0, len(waiting), _BATCH):
            await self._stream.append(*place, waiting[start : start + _BATCH], begins=not self._is_open)
            self._is_open = True
        self._missed = []

    async def _note_broken(self) -> None:
        async with self._store.tenant(self._tenant) as records:
            if not await records.mark_stream_broken(self._run.id, self._run.epoch):
                raise Fenced(self._run.id)
        self._has_noted = True
        self._run = replace(self._run, stream_broken=True)

    async def _reserve(self, sequence: int) -> None:
        async def reserve() -> None:
            async with self._store.tenant(self._tenant) as records:
                if not await records.reserve(self._run.id, self._run.epoch, sequence):
                    raise Fenced(self._run.id)

        await self._until_journalled(reserve)
        self._reserved = sequence

    async def _until_journalled(self, write: Callable[[], object]) -> None:
        """Events wait for the journal, however long Postgres is away."""
        while True:
            try:
                await write()  # type: ignore[misc]
                return
            except JanusError:
                await asyncio.sleep(_JOURNAL_RETRY_S)
