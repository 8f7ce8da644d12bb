"""What was used, on record: every attempt that reached a provider, exactly once, also across an outage of Postgres.

Records of calls that end together share one commit: while one batch is being
written the next one gathers. A record whose writing failed stays in memory and
is written when Postgres is back. Its key is the attempt, so that writing it
again after a commit whose outcome is unknown counts nothing twice. What the
process holds in memory is lost only when the process is killed, and then the
end of that answer was never told.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from janus_inference import telemetry
from janus_inference.ports import AnsweredRequest, UsageRecord, UsageStore
from janus_inference.prices import undated
from janus_kit.errors import Internal, JanusError, ResourceExhausted, Unavailable
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

MOST_QUEUED = 10_000
"""Records that wait for Postgres before calls are refused; as many again fit for calls that nobody waits for."""
MOST_ANSWER_BYTES = 64 * 1024 * 1024
"""Bytes of answers of idempotent requests that wait; beyond that records are kept without them."""
MOST_BATCH = 500
"""Records of one commit."""
DRAIN_S = 5.0
_BACKOFF_S, _BACKOFF_MOST_S = 0.05, 1.0


@dataclass(eq=False, slots=True)
class _Entry:
    """``stirs`` wake those who wait: it is written, or nobody else will do it."""

    record: UsageRecord
    answered: AnsweredRequest | None
    is_written: bool = False
    incident: str = ""
    stirs: list[asyncio.Future[None]] = field(default_factory=list)

    def stirred(self) -> None:
        for stir in self.stirs:
            if not stir.done():
                stir.set_result(None)
        self.stirs.clear()


class Ledger:
    """Usage records on their way into the store.

    ``run`` writes them; one task of it for the life of the process. ``wait_s``
    is how long ``record`` waits for the commit.
    """

    def __init__(self, store: UsageStore, *, wait_s: float, most_queued: int = MOST_QUEUED) -> None:
        self._store = store
        self._wait_s = wait_s
        self._most = most_queued
        self._queue: deque[_Entry] = deque()
        self._answer_bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._writing = asyncio.Lock()
        self._backoff_s = 0.0
        self._at_work = False

    async def record(self, record: UsageRecord, answered: AnsweredRequest | None = None) -> bool:
        """Return once the record is committed, with the answer of the idempotent request in the same commit.

        False when the answer was not kept with it: too many wait, or there is none.
        Raises Unavailable when that takes too long, and ResourceExhausted when
        too many wait already; the record is kept and written all the same.
        Raises Internal for a record that no database would take.
        """
        entry = _Entry(record, answered)
        deadline = asyncio.get_running_loop().time() + self._wait_s
        if len(self._queue) >= self._most:
            await self._roomy(entry, deadline)
        self._append(entry)
        try:
            async with asyncio.timeout_at(deadline):
                await self._written(entry)
        except TimeoutError:
            raise Unavailable("postgres", "the usage record could not be written in time") from None
        if entry.incident:
            raise Internal(entry.incident)
        return entry.answered is not None

    async def flushed(self) -> None:
        """Return once all that is queued now is committed, or ``wait_s`` have passed: for an end that costs nothing."""
        if not self._queue:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                await self._written(self._queue[-1])

    def record_later(self, record: UsageRecord) -> None:
        """Have it written; never blocks. Only when the memory for records is full is it dropped, counted and logged."""
        self._keep(_Entry(record, None))

    async def run(self) -> None:
        """Write what comes, for ever."""
        self._at_work = True
        try:
            while True:
                await self._arrived.wait()
                if self._backoff_s:
                    await asyncio.sleep(self._backoff_s)
                await self._write_some()
        finally:
            self._at_work = False
            for entry in self._queue:
                entry.stirred()

    async def drain(self) -> None:
        """Write what is queued, within 5 s; can be called again, also after ``run`` has ended."""
        try:
            async with asyncio.timeout(DRAIN_S):
                while self._queue:
                    await self._write_some()
                    if self._backoff_s:
                        await asyncio.sleep(self._backoff_s)
        except TimeoutError:
            _log.error("usage_unwritten", records=len(self._queue))

    async def _roomy(self, entry: _Entry, deadline: float) -> None:
        """Wait for room; the entry is kept also where that ends in an error."""
        try:
            async with asyncio.timeout_at(deadline):
                while len(self._queue) >= self._most:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            self._keep(entry)
            raise ResourceExhausted(
                "OVERLOADED",
                "too many usage records wait for the database",
                {"part": "postgres"},
                retry_after=1.0,
                quota=("usage records", f"{self._most} waiting at the same time"),
            ) from None
        except asyncio.CancelledError:
            self._keep(entry)
            raise

    async def _written(self, entry: _Entry) -> None:
        """Wait for ``run``. Before it begins and after it has ended, callers write for themselves."""
        while not entry.is_written:
            if self._at_work:
                stir = asyncio.get_running_loop().create_future()
                entry.stirs.append(stir)
                await stir
            else:
                await self._write_some()
                await asyncio.sleep(self._backoff_s)

    def _keep(self, entry: _Entry) -> None:
        if len(self._queue) >= 2 * self._most:
            telemetry.usage_dropped_total.inc()
            _log.error("usage_dropped", generation=entry.record.generation_id, attempt=entry.record.attempt)
            return
        self._append(entry)

    def _append(self, entry: _Entry) -> None:
        answer = entry.answered
        if answer is not None and self._answer_bytes + len(answer.answer) > MOST_ANSWER_BYTES:
            # Sent again, the request is worked on again: better than no record.
            _log.warning("answer_not_kept", generation=entry.record.generation_id)
            entry.answered = None
        elif answer is not None:
            self._answer_bytes += len(answer.answer)
        self._queue.append(entry)
        self._arrived.set()
        telemetry.usage_unwritten.set(len(self._queue))
        _count_cost(entry.record)

    async def _write_some(self) -> None:
        """One batch from the front; it leaves the queue when it is committed."""
        async with self._writing:
            batch = [self._queue[place] for place in range(min(MOST_BATCH, len(self._queue)))]
            if not batch:
                self._arrived.clear()
                return
            try:
                await self._write(batch)
            except JanusError as error:
                if not self._backoff_s:
                    _log.warning("usage_waits", records=len(self._queue), error=error.reason)
                self._backoff_s = min(max(_BACKOFF_S, 2 * self._backoff_s), _BACKOFF_MOST_S)
                return
            if self._backoff_s:
                self._backoff_s = 0.0
                _log.info("usage_written_again", records=len(batch))
            self._done(batch)

    async def _write(self, batch: Sequence[_Entry]) -> None:
        """Commit them. One that the database will never take is put aside, and does not hold up the others."""
        try:
            await self._store.write([(entry.record, entry.answered) for entry in batch])
        except ValueError as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._write(batch[:middle])
                await self._write(batch[middle:])
                return
            telemetry.usage_dropped_total.inc()
            batch[0].incident = new_id("inc")
            record = batch[0].record
            _log.error(
                "usage_unwritable",
                incident_id=batch[0].incident,
                generation=record.generation_id,
                attempt=record.attempt,
                error=str(error),
            )

    def _done(self, batch: Sequence[_Entry]) -> None:
        for entry in batch:
            self._queue.popleft()
            if entry.answered is not None:
                self._answer_bytes -= len(entry.answered.answer)
            entry.is_written = True
            entry.stirred()
        telemetry.usage_unwritten.set(len(self._queue))
        if not self._queue:
            self._arrived.clear()
        if len(self._queue) < self._most:
            self._room.set()


def _count_cost(record: UsageRecord) -> None:
    """Only models with a price are counted, by the family: so there are not more labels than prices."""
    if record.cost is not None and record.cost.micro_usd:
        telemetry.cost_microusd_total.labels(record.provider, undated(record.model)).inc(record.cost.micro_usd)
