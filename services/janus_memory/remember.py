"""Remember: memories as versions, in one transaction, without any model."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from janus_kit.clock import Clock
from janus_kit.errors import AlreadyExists, FieldViolation, InvalidArgument, JanusError
from janus_kit.ids import new_id
from janus_memory.consistency import caught_up, token
from janus_memory.idempotency import Request, once
from janus_memory.model import Cause, Kind, NewMemory, Space
from janus_memory.parts import Parts
from janus_memory.ports import KnownMemory, Records, Transaction
from janus_memory.spaces import Spaces, away_for
from janus_memory.text import LONG_TEXT
from janus_memory.versions import TICK, document


@dataclass(frozen=True)
class Remembered:
    """What became of a remember. The ids are in the order of the request."""

    ids: tuple[str, ...]
    token: str
    searchable: bool
    degraded: tuple[str, ...]


class Kept(NamedTuple):
    """What became of one memory: its id, and whether it was stored just now."""

    id: str
    fresh: bool


class Remember:
    """Stores memories."""

    def __init__(self, records: Records, spaces: Spaces, parts: Parts, clock: Clock) -> None:
        self._records = records
        self._spaces = spaces
        self._parts = parts
        self._clock = clock

    async def run(
        self, tenant: str, subject: str, space_name: str, memories: Sequence[NewMemory], request: Request, wait_s: float
    ) -> Remembered:
        """All memories or none; all of one space. ``subject`` is who writes.

        The same text, kind and scope again gives the id that is there; an id
        that is there with other content: AlreadyExists. A memory that has
        expired is brought back as a new version of its id; so is one that was
        forgotten, or whose place another took, when its id is given. Without
        the id, its text is a new memory.
        """
        until = asyncio.get_running_loop().time() + wait_s
        async with self._records.transaction(tenant) as tx:
            space = await self._spaces.for_write(tx, space_name)
            _check_vectors(space, memories)

            async def work() -> Mapping[str, Any]:
                ids = await self._store(tx, space, memories, subject)
                return {"ids": ids, "outbox": await tx.enqueue(space.number)}

            answer, replayed = await once(tx, request, work)
        upto = int(answer["outbox"])
        # What was written just now is not indexed yet; only who waits, or comes again, asks.
        asks = wait_s > 0 or replayed
        searchable = asks and await caught_up(self._records, tenant, space.number, upto, until)
        return Remembered(
            ids=tuple(answer["ids"]),
            token=token(space.number, upto),
            searchable=searchable,
            degraded=tuple(away_for(space, self._parts)),
        )

    async def _store(self, tx: Transaction, space: Space, memories: Sequence[NewMemory], subject: str) -> list[str]:
        kept = await keep(tx, space, memories, Cause(subject), self._clock.now(), _raise)
        return [each.id for each in kept if each]


async def keep(
    tx: Transaction,
    space: Space,
    memories: Sequence[NewMemory],
    cause: Cause,
    now: datetime,
    refuse: Callable[[int, JanusError], None],
) -> list[Kept | None]:
    """Store what is not there yet; what became of each, in order.

    ``refuse`` gets the place and the error of a memory that cannot be stored;
    if it does not raise, the others are stored and this one is None.
    """
    # Before any row, as an erasure does it, which waits for writers of the subject; and two writers of one
    # text must not both find it absent.
    at = await tx.lock_remembering(space.number, [memory.scope.subject for memory in memories])
    known = await tx.known_memories(
        space.number, [memory.id for memory in memories if memory.id], [memory.digest for memory in memories]
    )
    by_digest = {each.digest: each for each in known if each.current and each.here}
    by_id = {each.id: each for each in known}
    kept: list[Kept | None] = []
    fresh: list[tuple[NewMemory, int]] = []
    written: set[str] = set()
    for place, memory in enumerate(memories):
        there = by_digest.get(memory.digest)
        if there is None and memory.id in by_id:
            there = by_id[memory.id]
            if there.current or not there.here:
                refuse(place, _taken(memory.id))
                kept.append(None)
                continue
        if there is not None and there.current and (not _expired(there, now) or there.id in written):
            kept.append(Kept(there.id, False))
            continue
        version = there.version + 1 if there else 1
        memory = replace(
            memory,
            id=there.id if there else memory.id or new_id("mem"),
            provenance_json=_sources(memory, cause.changed_by),
        )
        fresh.append((memory, version))
        written.add(memory.id)
        at = max(at, there.recorded_at + TICK) if there else at
        by_digest[memory.digest] = by_id[memory.id] = KnownMemory(
            memory.id, version, memory.digest, memory.expires_at, at
        )
        kept.append(Kept(memory.id, True))
    if fresh:
        documents = []
        waited = 0
        for memory, version in fresh:
            documents.append(document(space, memory, version, at))
            waited += len(memory.text)
            if waited > LONG_TEXT:
                # Others on the event loop take their turn every few milliseconds.
                waited = 0
                await asyncio.sleep(0)
        await tx.add_memories(space.number, fresh, documents, cause, at)
    return kept


def _sources(memory: NewMemory, client: str) -> str:
    """Where it comes from. A fact that nobody named a source for comes from who writes it."""
    # Who writes is known, and not asked: nobody speaks for another.
    named = [source for source in json.loads(memory.provenance_json) if "client" not in source]
    if not named and memory.kind is Kind.FACT:
        named = [{"client": client, "quote": "", "origin": 0}]
    return json.dumps(named)


def _raise(place: int, error: JanusError) -> None:
    raise error


def _taken(memory_id: str) -> AlreadyExists:
    return AlreadyExists("RESOURCE_EXISTS", f"memory '{memory_id}' exists with other content", "memory", memory_id)


def _expired(memory: KnownMemory, now: datetime) -> bool:
    return memory.expires_at is not None and memory.expires_at <= now


def _check_vectors(space: Space, memories: Sequence[NewMemory]) -> None:
    """The caller's own vectors must be of the space's length."""
    wrong = [place for place, memory in enumerate(memories) if has_wrong_vector(space, memory)]
    if wrong:
        raise wrong_vectors(space, wrong, len(memories[wrong[0]].embedding))


def has_wrong_vector(space: Space, memory: NewMemory) -> bool:
    """Whether it brings a vector that is not of the space's length."""
    return bool(memory.embedding) and len(memory.embedding) != space.dimensions


def wrong_vectors(space: Space, places: Sequence[int], length: int) -> InvalidArgument:
    """The refusal of memories at these places of a request, the first of which brings so many numbers."""
    rule = f"must have {space.dimensions} numbers, the dimensions of space '{space.name}'"
    return InvalidArgument.of(
        [FieldViolation(f"memories[{place}].embedding", rule) for place in places],
        reason="DIMENSION_MISMATCH",
        metadata={"expected": str(space.dimensions), "actual": str(length)},
    )
