"""Import: exported records put back, all of them or none.

They wait in pieces until the last has come and their checksum is right, and
are then stored in one transaction, so that nobody ever sees a part of an
import. What is there already, the same, is left alone; what is there with
other content refuses the import.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias
from uuid import uuid4

from janus_kit.cancellation import finished
from janus_kit.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, JanusError
from janus_memory.append import advanced, turn_document
from janus_memory.export import Record
from janus_memory.idempotency import Request, once
from janus_memory.model import Block, Change, Document, MemoryVersion, NewTurn, Space, SpaceDraft, ThreadHead, Turn
from janus_memory.ports import Records, Transaction
from janus_memory.spaces import Spaces
from janus_memory.text import LONG_TEXT
from janus_memory.versions import document

METHOD = "Import"
PART_BYTES = 4 * 1024 * 1024
_AT_ONCE = 256
_FRAME = 4


class ImportedTurn(NamedTuple):
    """A turn as it was recorded, and as a caller would have handed it in."""

    turn: Turn
    new: NewTurn


ImportRecord: TypeAlias = SpaceDraft | ImportedTurn | MemoryVersion | Block


class Completed(NamedTuple):
    """What an export ended in."""

    records: int
    sha256: bytes


class ImportSource(Protocol):
    """A stream of records, each in the bytes that its checksum is over."""

    def records(self) -> AsyncIterator[bytes]:
        """All records, once; the first is the space. Raises InvalidArgument for a stream that makes no sense."""
        ...

    def completed(self) -> Completed:
        """The end of the stream, when it has been read."""
        ...

    def decode(self, record: bytes, index: int, space: str) -> ImportRecord:
        """A record for a space. ``index`` is its place, from 0. Raises InvalidArgument naming every field."""
        ...


@dataclass
class Imported:
    """How many records were stored, and how many were there already, the same."""

    stored: int = 0
    unchanged: int = 0


class Import:
    """Stores exports. ``encode`` gives a record as it would be exported."""

    def __init__(self, records: Records, spaces: Spaces, encode: Callable[[Record], bytes]) -> None:
        self._records = records
        self._spaces = spaces
        self._encode = encode

    async def run(self, tenant: str, space: str, request_id: str, source: ImportSource) -> Imported:
        """All records or none, into a space; empty: the exported one, which is made if it is not there.

        Raises DataLoss / CHECKSUM_MISMATCH when they are not what was
        exported, AlreadyExists for a record that is there with other content.
        """
        waiting = _Waiting(self._records, tenant)
        try:
            await waiting.gather(source)
            draft = source.decode(waiting.first, 0, space)
            assert isinstance(draft, SpaceDraft)
            async with self._records.transaction(tenant) as tx:
                exists = await tx.space(draft.name) is not None
            # May ask a model for its dimensions, over the network: before the transaction.
            complete = draft if exists else await self._spaces.completed(draft)
            request = Request(METHOD, request_id, waiting.body(space))
            async with self._records.transaction(tenant) as tx:

                async def work() -> Mapping[str, Any]:
                    into = await tx.space(draft.name) or await tx.add_space(complete)
                    storing = _Storing(tx, into, draft.model, self._encode)
                    storing.count(stored=not exists)
                    index = 1
                    async for records in waiting.pieces(tx):
                        decoded = []
                        waited = 0
                        for record in records:
                            decoded.append(source.decode(record, index, draft.name))
                            index += 1
                            waited += len(record)
                            if waited > LONG_TEXT:
                                # Others on the event loop take their turn every few milliseconds.
                                waited = 0
                                await asyncio.sleep(0)
                        await storing.store(decoded)
                    await tx.enqueue(storing.space.number)
                    return {"stored": storing.done.stored, "unchanged": storing.done.unchanged}

                answer, _ = await once(tx, request, work)
        finally:
            # Also of a caller who left: the end of what is sent may be heard before the cancel.
            await finished(waiting.drop())
        return Imported(answer["stored"], answer["unchanged"])


class _Waiting:
    """Records until their checksum has been checked: the newest in memory, older ones in the database."""

    def __init__(self, records: Records, tenant: str) -> None:
        self._records = records
        self._tenant = tenant
        self._id = str(uuid4())
        self._parts = 0
        self._tail: list[bytes] = []
        self._sha256 = hashlib.sha256()
        self.first = b""

    async def gather(self, source: ImportSource) -> None:
        count, size = 0, 0
        async for record in source.records():
            if not count:
                self.first = record
            count += 1
            self._sha256.update(record)
            if size + len(record) > PART_BYTES and self._tail:
                async with self._records.transaction(self._tenant) as tx:
                    await tx.add_import_part(self._id, self._parts, _joined(self._tail))
                self._parts, self._tail, size = self._parts + 1, [], 0
            self._tail.append(record)
            size += len(record)
        end = source.completed()
        if (end.records, end.sha256) != (count, self._sha256.digest()):
            raise DataLoss(
                "CHECKSUM_MISMATCH",
                "the records are not those that were exported: number or checksum is another",
                {"records": str(count)},
            )

    def body(self, space: str) -> bytes:
        """Digest of everything that was asked for."""
        return hashlib.sha256(space.encode() + b"\0" + self._sha256.digest()).digest()

    async def pieces(self, tx: Transaction) -> AsyncIterator[list[bytes]]:
        """All records but the first, some at a time."""
        skip = 1
        for number in range(self._parts):
            part = await tx.import_part(self._id, number)
            if part is None:
                # Erased with everything else of the tenant, or removed by age.
                raise FailedPrecondition(
                    "STATE_CONFLICT",
                    "the import's records were removed while it ran",
                    {"state": "records_removed"},
                    subject="import",
                )
            for piece in _some(list(_parted(part))[skip:]):
                yield piece
            skip = 0
        for piece in _some(self._tail[skip:]):
            yield piece

    async def drop(self) -> None:
        if not self._parts:
            return
        try:
            async with self._records.transaction(self._tenant) as tx:
                await tx.drop_import(self._id)
        except JanusError:
            pass  # Postgres is away or busy: removed by age.


class _Storing:
    """An import's records on their way into one space, within one transaction."""

    def __init__(self, tx: Transaction, space: Space, model: str, encode: Callable[[Record], bytes]) -> None:
        self.space = space
        self.done = Imported()
        self._tx = tx
        # What made the vectors that come along.
        self._model = model
        self._encode = encode
        self._head: ThreadHead | None = None
        self._thread = ""
        # Whether the import holds what its thread ended with before, so that it goes on from there.
        self._goes_on = False
        self._is_locked = False

    def count(self, *, stored: bool) -> None:
        if stored:
            self.done.stored += 1
        else:
            self.done.unchanged += 1

    async def store(self, records: Sequence[ImportRecord]) -> None:
        turns = [record for record in records if isinstance(record, ImportedTurn)]
        await self._tx.hold_subjects(
            [record.turn.scope.subject for record in turns]
            + [record.memory.scope.subject for record in records if isinstance(record, MemoryVersion)]
            + [record.scope.subject for record in records if isinstance(record, Block)]
        )
        for thread in dict.fromkeys(turn.turn.scope.thread for turn in turns):
            await self._store_turns(thread, [turn for turn in turns if turn.turn.scope.thread == thread])
        versions = [record for record in records if isinstance(record, MemoryVersion)]
        if versions:
            await self._store_versions(versions)
        for record in records:
            if isinstance(record, Block):
                await self._store_block(record)

    async def _store_block(self, block: Block) -> None:
        stored = await self._tx.put_block(self.space, block, 0)
        if stored is None:
            there = await self._tx.block(self.space, block.scope, block.name)
            if there is None or _said(there) != _said(block):
                raise _conflict("block", block.name)
        self.count(stored=stored is not None)

    async def _store_turns(self, thread: str, turns: Sequence[ImportedTurn]) -> None:
        if self._head is None or thread != self._thread:
            self._thread, self._head = thread, await self._tx.lock_thread(self.space.number, thread)
            self._goes_on = self._head.last_position == 0
        head = self._head
        known: dict[int, Turn] = {}
        taken: set[str] = set()
        if head.last_position:
            there_are = await self._tx.turns_at(self.space, thread, [each.turn.position for each in turns])
            known = {turn.position: turn for turn in there_are}
            taken.update(await self._tx.known_turns(self.space.number, thread, [each.turn.id for each in turns]))
        stored: list[Turn] = []
        documents: list[Document] = []
        new: list[NewTurn] = []
        for turn, given in turns:
            there = known.get(turn.position)
            if there is not None:
                if self._encode(there) != self._encode(turn):
                    raise _conflict("message", turn.id)
                self._goes_on = self._goes_on or turn.position == head.last_position
                self.count(stored=False)
                continue
            if not self._goes_on or turn.position <= head.last_position or turn.id in taken:
                raise _conflict("message", turn.id)
            head = replace(advanced(head, turn.occurred_at), last_position=turn.position)
            taken.add(turn.id)
            stored.append(replace(turn, session=head.session))
            new.append(given)
            documents.append(replace(turn_document(self.space, given, head), recorded_at=turn.recorded_at))
            self.count(stored=True)
        if stored:
            await self._tx.put_turns(self.space.number, stored, new, documents)
        self._head = head

    async def _store_versions(self, versions: Sequence[MemoryVersion]) -> None:
        if not self._is_locked:
            # What somebody remembers meanwhile must not be what is imported.
            await self._tx.lock_remembering(self.space.number)
            self._is_locked = True
        self._refuse_wrong_vectors(versions)
        known = await self._tx.versions_of(self.space, list({each.memory.id for each in versions}))
        elsewhere = {each.version.memory.id for each in known if not each.here}
        there = {_key(each.version): each.version for each in known}
        current = {each.version.memory.id for each in known if each.version.memory.superseded_at is None}
        same_texts = await self._tx.known_memories(self.space.number, [], [each.digest for each in versions])
        digests = {each.digest for each in same_texts}
        stored: list[MemoryVersion] = []
        documents: list[Document] = []
        for version in versions:
            memory = version.memory
            same = there.get(_key(version))
            if memory.id in elsewhere or (same is not None and not self._is_same(same, version)):
                raise _conflict("memory", memory.id)
            if same is not None:
                self.count(stored=False)
                continue
            is_current = memory.superseded_at is None
            if is_current and (memory.id in current or version.digest in digests):
                raise _conflict("memory", memory.id)
            if is_current:
                current.add(memory.id)
                digests.add(version.digest)
            there[_key(version)] = version
            stored.append(version)
            # Of a purged version nothing is left to be searched, and what closes a memory never was.
            if memory.text and memory.superseded_at != memory.recorded_at:
                made = document(self.space, memory, memory.version, memory.recorded_at)
                documents.append(replace(made, recorded_at=memory.recorded_at, superseded_at=memory.superseded_at))
                if len(memory.text) > LONG_TEXT:
                    await asyncio.sleep(0)
            self.count(stored=True)
        if stored:
            await self._tx.put_versions(self.space.number, stored, documents)
        for version in stored:
            if version.change is Change.FORGOTTEN:
                await self._tx.remove_from_search(self.space.number, version.memory.id)

    def _refuse_wrong_vectors(self, versions: Sequence[MemoryVersion]) -> None:
        lengths = {len(version.embedding) for version in versions if version.embedding}
        wrong = next((length for length in lengths if length != self.space.dimensions), 0)
        if wrong or (lengths and self._model != self.space.model):
            raise InvalidArgument(
                "memory.embedding",
                f"must be made by '{self.space.model}' and have {self.space.dimensions} numbers, as space"
                f" '{self.space.name}' wants; without vectors they are made anew",
                reason="DIMENSION_MISMATCH",
                metadata={"expected": str(self.space.dimensions), "actual": str(wrong or self.space.dimensions)},
            )

    def _is_same(self, there: MemoryVersion, given: MemoryVersion) -> bool:
        """Vectors aside; and what is current in the import may have been superseded here since."""
        if given.memory.superseded_at is None:
            there = replace(there, memory=replace(there.memory, superseded_at=None))
        return self._encode(replace(there, embedding=())) == self._encode(replace(given, embedding=()))


def _said(block: Block) -> tuple[str, int, str]:
    """What a block is, whatever number and time the version has that is here already."""
    return block.text, block.size_limit, block.description


def _key(version: MemoryVersion) -> tuple[str, int]:
    return version.memory.id, version.memory.version


def _conflict(kind: str, name: str) -> AlreadyExists:
    return AlreadyExists(
        "RESOURCE_EXISTS", f"{kind} '{name}', or what stands in its place, is there with other content", kind, name
    )


def _joined(records: Sequence[bytes]) -> bytes:
    return b"".join(len(record).to_bytes(_FRAME, "big") + record for record in records)


def _parted(part: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(part):
        size = int.from_bytes(part[at : at + _FRAME], "big")
        yield part[at + _FRAME : at + _FRAME + size]
        at += _FRAME + size


def _some(records: Sequence[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(records), _AT_ONCE):
        yield list(records[start : start + _AT_ONCE])
