"""Ingest: many records of one stream, in batches, each a transaction of its own.

One task reads, another writes, and a queue bounded by bytes is between them:
a client that sends faster than Postgres stores is made to wait. What is wrong
with an item is found before anything is written, so that a bad item costs the
others nothing; should a batch fail all the same, its halves are tried by
themselves. A stream that breaks off leaves the batches that were committed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, TypeAlias

from janus_kit.clock import Clock
from janus_kit.errors import (
    DeadlineExceeded,
    Internal,
    JanusError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_memory.append import place
from janus_memory.consistency import token
from janus_memory.gathering import Gathering
from janus_memory.idempotency import Request, once
from janus_memory.model import Cause, NewMemory, NewTurn, Space
from janus_memory.ports import Records, Transaction
from janus_memory.remember import has_wrong_vector, keep, wrong_vectors
from janus_memory.spaces import Spaces

METHOD = "Ingest"
LISTED_ERRORS = 1_000
BATCH = 512
BATCH_BYTES = 4 * 1024 * 1024
_QUEUE_BYTES = 2 * BATCH_BYTES
_LINGER_S = 0.05
# What has nothing to do with the items: smaller batches would fare no better.
_NOBODYS_FAULT = (DeadlineExceeded, ResourceExhausted, Unavailable)

_log = get_logger(__name__)

What: TypeAlias = NewMemory | NewTurn | JanusError


class Item(NamedTuple):
    """A piece of a stream: its place, what it is or why it is refused, and its size in bytes.

    Pieces of a document have the document's place.
    """

    place: int
    what: What
    size: int


class Source(Protocol):
    """A stream, decoded."""

    def items(self) -> AsyncIterator[Item]:
        """All items, once. Raises InvalidArgument when the stream itself makes no sense."""
        ...

    def digest(self) -> bytes:
        """Of everything that came, when the stream is at its end."""
        ...


@dataclass(frozen=True)
class Ingested:
    """What became of a stream. Errors are (place, packed error), the first 1,000."""

    stored: int
    unchanged: int
    rejected: int
    errors: tuple[tuple[int, str], ...]
    token: str


@dataclass
class _Tally:
    stored: int = 0
    unchanged: int = 0
    rejected: int = 0
    errors: list[tuple[int, JanusError]] = field(default_factory=list)
    upto: dict[int, int] = field(default_factory=dict)

    def refuse(self, index: int, error: JanusError) -> None:
        self.rejected += 1
        if len(self.errors) < LISTED_ERRORS:
            self.errors.append((index, error))

    def add(self, other: "_Tally") -> None:
        self.stored += other.stored
        self.unchanged += other.unchanged
        self.rejected += other.rejected
        # Of one batch, which has less than may be listed: they are found by kind, and listed by place.
        found = sorted(other.errors, key=lambda error: error[0])
        self.errors.extend(found[: LISTED_ERRORS - len(self.errors)])
        self.upto.update(other.upto)


class Ingest:
    """Stores streams. ``pack`` makes a text of an error, which is kept with the answer."""

    def __init__(self, records: Records, spaces: Spaces, clock: Clock, pack: Callable[[JanusError], str]) -> None:
        self._records = records
        self._spaces = spaces
        self._clock = clock
        self._pack = pack

    async def run(self, tenant: str, subject: str, space_name: str, request_id: str, source: Source) -> Ingested:
        """Everything that can be stored is, when this returns. ``subject`` is who writes.

        The request id is taken at the end only, so a stream that broke off can
        be sent again: what is there under the same id or content is unchanged.
        Raises NotFound for the stream's own space.
        """
        async with self._records.transaction(tenant) as tx:
            space = await self._spaces.for_write(tx, space_name)
            done = await tx.answered_request(METHOD, request_id) if request_id else None
        tally = _Tally()
        if done is not None:
            # Only whether it is the same body is left to find out.
            async for _ in source.items():
                pass
        else:
            queue: Gathering[Item] = Gathering(_QUEUE_BYTES)
            async with asyncio.TaskGroup() as group:
                group.create_task(_read(source, request_id, queue))
                group.create_task(self._write_all(tenant, subject, queue, tally))
        async with self._records.transaction(tenant) as tx:

            async def work() -> Mapping[str, Any]:
                return {
                    "stored": tally.stored,
                    "unchanged": tally.unchanged,
                    "rejected": tally.rejected,
                    "errors": [[index, self._pack(error)] for index, error in tally.errors],
                    "outbox": tally.upto.get(space.number) or await tx.enqueue(space.number),
                }

            answer, _ = await once(tx, Request(METHOD, request_id, source.digest()), work)
        return Ingested(
            stored=answer["stored"],
            unchanged=answer["unchanged"],
            rejected=answer["rejected"],
            errors=tuple((index, packed) for index, packed in answer["errors"]),
            token=token(space.number, int(answer["outbox"])),
        )

    async def _write_all(self, tenant: str, subject: str, queue: Gathering[Item], tally: _Tally) -> None:
        while batch := await queue.take(BATCH, BATCH_BYTES, _LINGER_S):
            tally.add(await self._write(tenant, subject, batch))

    async def _write(self, tenant: str, subject: str, batch: Sequence[Item]) -> _Tally:
        """Store a batch in one transaction; if that fails by an item's fault, its halves."""
        try:
            tally = _Tally()
            async with self._records.transaction(tenant) as tx:
                await self._store(tx, subject, batch, tally)
            return tally
        except _NOBODYS_FAULT:
            raise
        except Exception as error:  # noqa: BLE001 - one bad item must not stop the others
            tally = _Tally()
            if len(batch) == 1:
                tally.refuse(batch[0].place, _named(error))
                return tally
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                tally.add(await self._write(tenant, subject, half))
            return tally

    async def _store(self, tx: Transaction, subject: str, batch: Sequence[Item], tally: _Tally) -> None:
        by_space: dict[str, list[tuple[int, NewMemory | NewTurn]]] = {}
        for index, what, _ in batch:
            if isinstance(what, JanusError):
                tally.refuse(index, what)
            else:
                by_space.setdefault(what.scope.space, []).append((index, what))
        # Locks are taken in one order, so that two streams never wait for each other, nor for an erasure.
        await tx.hold_subjects([what.scope.subject for items in by_space.values() for _, what in items])
        for name, items in sorted(by_space.items()):
            try:
                space = await self._spaces.for_write(tx, name)
            except NotFound as absent:
                for index, _ in items:
                    tally.refuse(index, absent)
                continue
            await self._store_memories(tx, subject, space, items, tally)
            await self._store_turns(tx, space, items, tally)
            tally.upto[space.number] = await tx.enqueue(space.number)

    async def _store_memories(
        self,
        tx: Transaction,
        subject: str,
        space: Space,
        items: Sequence[tuple[int, NewMemory | NewTurn]],
        tally: _Tally,
    ) -> None:
        chosen: list[tuple[int, NewMemory]] = []
        for index, what in items:
            if not isinstance(what, NewMemory):
                continue
            if has_wrong_vector(space, what):
                tally.refuse(index, wrong_vectors(space, [0], len(what.embedding)))
            else:
                chosen.append((index, what))
        if not chosen:
            return

        def refuse(at: int, error: JanusError) -> None:
            tally.refuse(chosen[at][0], error)

        kept = await keep(tx, space, [memory for _, memory in chosen], Cause(subject), self._clock.now(), refuse)
        tally.stored += sum(each is not None and each.fresh for each in kept)
        tally.unchanged += sum(each is not None and not each.fresh for each in kept)

    async def _store_turns(
        self, tx: Transaction, space: Space, items: Sequence[tuple[int, NewMemory | NewTurn]], tally: _Tally
    ) -> None:
        by_thread: dict[str, list[tuple[int, NewTurn]]] = {}
        for index, what in items:
            if isinstance(what, NewTurn):
                by_thread.setdefault(what.scope.thread, []).append((index, what))
        for thread, turns in sorted(by_thread.items()):

            def refuse(at: int, error: JanusError, turns: Sequence[tuple[int, NewTurn]] = turns) -> None:
                tally.refuse(turns[at][0], error)

            head = await tx.lock_thread(space.number, thread)
            # Windows are not told: they see where the thread ends, and are read from the record.
            placed, _ = await place(tx, space, head, [turn for _, turn in turns], self._clock.now(), refuse)
            tally.stored += sum(each is not None and each.fresh for each in placed)
            tally.unchanged += sum(each is not None and not each.fresh for each in placed)


async def _read(source: Source, request_id: str, queue: Gathering[Item]) -> None:
    async for item in source.items():
        what = item.what
        if request_id and isinstance(what, NewTurn) and not what.id:
            item = item._replace(what=replace(what, id=_steady_id(request_id, item.place, what)))
        await queue.put(item, item.size)
    queue.close()


def _steady_id(request_id: str, index: int, turn: NewTurn) -> str:
    """An id for a turn without one that is the same when its stream is sent again."""
    named = f"{request_id}\0{index}\0".encode() + turn.digest
    return f"msg_{blake2b(named, digest_size=16).hexdigest()}"


def _named(error: Exception) -> JanusError:
    if isinstance(error, JanusError):
        return error
    incident = Internal(new_id("inc"))
    _log.error("ingest_failed", incident_id=incident.incident_id, exc_info=error)
    return incident
