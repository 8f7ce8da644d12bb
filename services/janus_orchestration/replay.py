"""Past events of a run, put together from the stream and the journal.

The stream has everything until it expires; the journal has the durable events
for good. Where deltas are in neither any more, ``replay_compacted`` stands in
their place: its cursor is that of the last event it stands for, so that a
reader goes on from there, and what they said follows as a committed message.
"""

from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from janus_kit.errors import NotFound, OutOfRange
from janus_kit.telemetry.logging import get_logger
from janus_orchestration.events import ReplayCompacted
from janus_orchestration.model import Cursor, Recorded, Run
from janus_orchestration.ports import EventCodec, EventStream, Store, StreamAway
from janus_orchestration.state import is_terminal

_log = get_logger(__name__)

_PAGE = 256

BEFORE_ALL = (Cursor(), Cursor(1, 0))
"""Positions before a run's first event, which is of the first epoch."""


class Replay:
    """Reads what has happened; writes nothing."""

    def __init__(self, store: Store, stream: EventStream, codec: EventCodec) -> None:
        self._store = store
        self._stream = stream
        self._codec = codec
        # What only this process has while the stream's store is away.
        self.unkept: Callable[[str, str], Sequence[Recorded]] = lambda tenant, run_id: ()

    async def between(self, tenant: str, run_id: str, first: int, last: int) -> list[Recorded]:
        return await self._journalled(tenant, run_id, first, last)

    async def last_durable(self, tenant: str, run_id: str) -> tuple[int, bool]:
        run = await self._run(tenant, run_id)
        return run.last_sequence, is_terminal(run.state)

    async def pages(self, tenant: str, run_id: str, after: Cursor) -> AsyncIterator[list[Recorded]]:
        """All that is known beyond a cursor, in order; every gap is declared."""
        position = after
        while True:
            page = await self._streamed(tenant, run_id, position)
            if not page:
                last, _ = await self.last_durable(tenant, run_id)
                if last <= position.sequence:
                    return
                # What was said before a durable event was in the stream before the
                # event was in the journal: looked at again, it is there or it is lost.
                page = await self._streamed(tenant, run_id, position)
                if not page:
                    page = await self._journalled(tenant, run_id, position.sequence + 1, last)
            complete: list[Recorded] = []
            for event in page:
                if event.cursor.sequence <= position.sequence:
                    continue
                if event.cursor.sequence > position.sequence + 1 and event.kind != ReplayCompacted.kind:
                    complete += await self._journalled(tenant, run_id, position.sequence + 1, event.cursor.sequence - 1)
                complete.append(event)
                position = event.cursor
                if event.terminal:
                    break
            if complete:
                yield complete
                if complete[-1].terminal:
                    return

    async def require_cursor(self, tenant: str, run: Run, after: Cursor, known: int | None) -> None:
        """Raise OutOfRange for a cursor that never was.

        ``known`` is the newest sequence where the run is worked on here.
        """
        if after in BEFORE_ALL:
            return
        starts = await self._epoch_starts(tenant, run.id)
        following = [first for epoch, first in starts if epoch > after.epoch]
        first = dict(starts).get(after.epoch)
        if first is None or not first <= after.sequence < min(following, default=after.sequence + 1):
            raise _out_of_range(run.last_sequence)
        if after.sequence <= run.last_sequence:
            return
        if is_terminal(run.state):
            raise _out_of_range(run.last_sequence)
        last = known if known is not None else await self._newest(tenant, run)
        if after.sequence > last:
            raise _out_of_range(last)

    async def _newest(self, tenant: str, run: Run) -> int:
        """Newest sequence that anybody may have seen of a run that is worked on elsewhere."""
        try:
            head = await self._stream.head(tenant, run.id)
        except StreamAway:
            head = None
        # Without the stream, all that was ever reserved may have been sent.
        return run.reserved_sequence if head is None or run.stream_broken else head.sequence

    async def newest_cursor(self, tenant: str, run: Run, known: int | None) -> Cursor:
        """Position of the newest event, as far as it can be told now."""
        last = run.last_sequence
        if not is_terminal(run.state):
            if known is not None:
                return Cursor(run.epoch, known)
            try:
                head = await self._stream.head(tenant, run.id)
            except StreamAway:
                head = None
            if head is not None and head.sequence > last:
                return head
        return cursor_of(await self._epoch_starts(tenant, run.id), last)

    async def _streamed(self, tenant: str, run_id: str, after: Cursor) -> list[Recorded]:
        with suppress(StreamAway):
            if page := await self._stream.page(tenant, run_id, after, _PAGE):
                return page
        return [e for e in self.unkept(tenant, run_id) if e.cursor.sequence > after.sequence][:_PAGE]

    async def _journalled(self, tenant: str, run_id: str, first: int, last: int) -> list[Recorded]:
        """The journal's events in a range that the stream does not have, gaps marked."""
        found: list[Recorded] = []
        position = first - 1
        async with self._store.tenant(tenant) as records:
            run = await records.run(run_id)
            starts = await records.epoch_starts(run_id)
            if run is None:
                raise NotFound("run", run_id)
            while position < last:
                page = await records.events(run_id, position + 1, last, _PAGE)
                for event in page:
                    if event.cursor.sequence > position + 1:
                        found.append(self._compacted(run, starts, event.cursor.sequence - 1))
                    found.append(event)
                    position = event.cursor.sequence
                if len(page) < _PAGE:
                    break
        if position < last:
            found.append(self._compacted(run, starts, last))
        return found

    def _compacted(self, run: Run, starts: list[tuple[int, int]], sequence: int) -> Recorded:
        through = cursor_of(starts, sequence)
        # The time is the run's, so that the same gap is always told in the same words.
        wire = self._codec.encode(run.id, through, run.created_at, ReplayCompacted(through))
        return Recorded(through, ReplayCompacted.kind, wire, durable=False)

    async def _epoch_starts(self, tenant: str, run_id: str) -> list[tuple[int, int]]:
        async with self._store.tenant(tenant) as records:
            return await records.epoch_starts(run_id)

    async def _run(self, tenant: str, run_id: str) -> Run:
        async with self._store.tenant(tenant) as records:
            run = await records.run(run_id)
        if run is None:
            raise NotFound("run", run_id)
        return run


def cursor_of(starts: list[tuple[int, int]], sequence: int) -> Cursor:
    """A sequence with the epoch that it belongs to."""
    if not sequence:
        return Cursor()
    place = bisect_right([first for _, first in starts], sequence) - 1
    return Cursor(starts[max(0, place)][0], sequence)


def _out_of_range(last: int) -> OutOfRange:
    return OutOfRange(
        "CURSOR_OUT_OF_RANGE",
        "the cursor is not one that this run's events ever had",
        {"last_sequence": str(last)},
    )
