"""Remember: memories as versions, in one transaction, without any model."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from janus_kit.clock import Clock
from janus_kit.errors import AlreadyExists, FieldViolation, InvalidArgument
from janus_kit.ids import new_id
from janus_memory.consistency import caught_up, token
from janus_memory.idempotency import Request, once
from janus_memory.model import Document, NewMemory, Space
from janus_memory.parts import Parts
from janus_memory.ports import KnownMemory, Records, Transaction
from janus_memory.spaces import Spaces, away_for
from janus_memory.text import LONG_TEXT, bag, lexeme, terms


@dataclass(frozen=True)
class Remembered:
    """What became of a remember. The ids are in the order of the request."""

    ids: tuple[str, ...]
    token: str
    searchable: bool
    degraded: tuple[str, ...]


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
        expired is brought back as a new version of its id.
        """
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
        searchable = asks and await caught_up(self._records, tenant, space.number, upto, wait_s)
        return Remembered(
            ids=tuple(answer["ids"]),
            token=token(space.number, upto),
            searchable=searchable,
            degraded=tuple(away_for(space, self._parts)),
        )

    async def _store(self, tx: Transaction, space: Space, memories: Sequence[NewMemory], subject: str) -> list[str]:
        now = self._clock.now()
        # Two writers of one text must not both find it absent.
        await tx.lock_remembering(space.number)
        known = await tx.known_memories(
            space.number, [memory.id for memory in memories if memory.id], [memory.digest for memory in memories]
        )
        by_digest = {each.digest: each for each in known}
        by_id = {each.id: each for each in known}
        ids: list[str] = []
        fresh: list[tuple[NewMemory, int]] = []
        for memory in memories:
            there = by_digest.get(memory.digest)
            if there is None and memory.id in by_id:
                raise AlreadyExists(
                    "RESOURCE_EXISTS", f"memory '{memory.id}' exists with other content", "memory", memory.id
                )
            if there is None or _expired(there, now):
                version = there.version + 1 if there else 1
                memory = replace(memory, id=there.id if there else memory.id or new_id("mem"))
                fresh.append((memory, version))
                there = KnownMemory(memory.id, version, memory.digest, memory.expires_at)
                by_digest[memory.digest] = by_id[memory.id] = there
            ids.append(there.id)
        if fresh:
            documents = []
            for memory, version in fresh:
                documents.append(_document(space, memory, version, now))
                if len(memory.text) > LONG_TEXT:
                    await asyncio.sleep(0)
            await tx.add_memories(space.number, fresh, documents, subject)
        return ids


def _expired(memory: KnownMemory, now: datetime) -> bool:
    return memory.expires_at is not None and memory.expires_at <= now


def _document(space: Space, memory: NewMemory, version: int, now: datetime) -> Document:
    own = terms(memory.text)
    return Document(
        kind=memory.kind,
        record_id=memory.id,
        version=version,
        scope=memory.scope,
        position=0,
        session=0,
        speaker="",
        occurred_at=memory.valid_from or now,
        lexemes=tuple(lexeme(space.number, term) for term in dict.fromkeys(own)),
        bag=bag(own),
        importance=memory.importance,
        valid_from=memory.valid_from,
        valid_to=memory.valid_to,
        expires_at=memory.expires_at,
        metadata_json=memory.metadata_json,
    )


def _check_vectors(space: Space, memories: Sequence[NewMemory]) -> None:
    """The caller's own vectors must be of the space's length."""
    wrong = [
        (place, len(memory.embedding))
        for place, memory in enumerate(memories)
        if memory.embedding and len(memory.embedding) != space.dimensions
    ]
    if wrong:
        rule = f"must have {space.dimensions} numbers, the dimensions of space '{space.name}'"
        raise InvalidArgument.of(
            [FieldViolation(f"memories[{place}].embedding", rule) for place, _ in wrong],
            reason="DIMENSION_MISMATCH",
            metadata={"expected": str(space.dimensions), "actual": str(wrong[0][1])},
        )
