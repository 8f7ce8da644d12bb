"""Records as Export sends and Import takes them, and the checksum over them.

What the checksum is over is the same on both sides: a record's serialisation
within its ExportResponse without `sequence`, which is also its ImportRequest,
since the fields have the same numbers.
"""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2
from janus_kit.errors import InvalidArgument
from janus_kit.validate import Violations
from janus_memory.export import ExportQuery, Record
from janus_memory.importing import Completed, ImportedTurn, ImportRecord
from janus_memory.model import Block, Cause, Change, Memory, MemoryVersion, Scope, Space, Turn
from janus_memory.wire.answers import memory_to, space_to, turn_to
from janus_memory.wire.blocks import block_to, put_block_command
from janus_memory.wire.reads import put_space_command
from janus_memory.wire.values import scope_of, time_of
from janus_memory.wire.writes import one_memory, one_turn

# Higher by one with each change, for ever.
_MOST_VERSION = 2**53


def export_query(message: pb.ExportRequest) -> ExportQuery:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    scope = scope_of(check, "scope", message.scope)
    check.done()
    return ExportQuery(scope, message.include_history, message.include_vectors)


class Exported:
    """The messages of an export, numbered and counted."""

    def __init__(self) -> None:
        self._records = 0
        self._sha256 = hashlib.sha256()

    def message(self, record: Record) -> pb.ExportResponse:
        response = response_of(record)
        self._sha256.update(response.SerializeToString(deterministic=True))
        self._records += 1
        response.sequence = self._records
        return response

    def completed(self) -> pb.ExportResponse:
        """The end: how many there were, and their checksum."""
        whole = pb.ExportCompleted(records=self._records, sha256=self._sha256.digest())
        return pb.ExportResponse(sequence=self._records + 1, completed=whole)


def response_of(record: Record) -> pb.ExportResponse:
    """A record without its number."""
    match record:
        case Space():
            return pb.ExportResponse(space=space_to(record))
        case Turn():
            return pb.ExportResponse(turn=turn_to(record))
        case Block():
            return pb.ExportResponse(block=block_to(record))
        case MemoryVersion(memory=memory) if memory.superseded_at is None:
            return pb.ExportResponse(memory=_memory_to(record))
        case MemoryVersion():
            return pb.ExportResponse(version=_version_to(record))


def _memory_to(version: MemoryVersion) -> record_pb2.Memory:
    message = memory_to(version.memory)
    message.embedding.extend(version.embedding)
    return message


def _version_to(version: MemoryVersion) -> record_pb2.MemoryVersion:
    return record_pb2.MemoryVersion(
        memory=_memory_to(version),
        change=record_pb2.Change.ValueType(version.change),
        changed_by=version.cause.changed_by,
        message_id=version.cause.message_id,
        reason=version.cause.reason,
    )


def encoded(record: Record) -> bytes:
    """What the checksum is over."""
    return response_of(record).SerializeToString(deterministic=True)


@dataclass(frozen=True)
class ImportConfig:
    """Where to import to, empty: the exported space."""

    space: str
    request_id: str


class ImportStream:
    """Implements importing.ImportSource over the messages of a call."""

    def __init__(self, messages: AsyncIterator[pb.ImportRequest], subject: str) -> None:
        self._messages = messages
        self._subject = subject
        self._origin = ""
        self._completed: Completed | None = None

    async def config(self) -> ImportConfig:
        """The first message. Raises InvalidArgument when it is something else, or wrong."""
        first = await anext(aiter(self._messages), None)
        if first is None or first.WhichOneof("record") != "config":
            raise InvalidArgument("config", "must be sent first")
        check = Violations()
        check.id("config.space", first.config.space, optional=True)
        check.id("config.request_id", first.config.request_id, optional=True)
        check.done()
        return ImportConfig(first.config.space, first.config.request_id)

    async def records(self) -> AsyncIterator[bytes]:
        index = 0
        async for message in self._messages:
            kind = message.WhichOneof("record")
            if self._completed is not None:
                raise InvalidArgument("completed", "must be sent last")
            if kind == "completed":
                self._completed = Completed(message.completed.records, message.completed.sha256)
                continue
            if kind is None or kind == "config" or (kind == "space") != (index == 0):
                raise InvalidArgument(f"records[{index}]", "must be the space first, then other records")
            if kind == "space":
                self._origin = message.space.name
            yield message.SerializeToString(deterministic=True)
            index += 1
        if self._completed is None or not index:
            raise InvalidArgument("completed", "must be sent last, after a space at least")

    def completed(self) -> Completed:
        assert self._completed is not None
        return self._completed

    def decode(self, record: bytes, index: int, space: str) -> ImportRecord:
        message = pb.ImportRequest.FromString(record)
        path = f"records[{index}]"
        match message.WhichOneof("record"):
            case "space":
                message.space.name = space or message.space.name
                return put_space_command(pb.PutSpaceRequest(space=message.space)).draft
            case "turn":
                return self._turn(message.turn, f"{path}.turn", space)
            case "block":
                message.block.scope.space = self._exported(message.block.scope.space, f"{path}.block.scope", space)
                return self._block(message.block, f"{path}.block")
            case "memory":
                return self._version(record_pb2.MemoryVersion(memory=message.memory), f"{path}.memory", space)
            case _:
                return self._version(message.version, f"{path}.version.memory", space)

    def _block(self, block: record_pb2.Block, path: str) -> Block:
        found = put_block_command(pb.PutBlockRequest(block=block)).block
        check = Violations()
        updated_at = time_of(check, f"{path}.updated_at", block, "updated_at")
        check.between(f"{path}.version", block.version, 0, _MOST_VERSION)
        check.done()
        return replace(found, updated_at=updated_at, version=block.version)

    def _turn(self, turn: record_pb2.Turn, path: str, space: str) -> ImportedTurn:
        check = Violations()
        scope = self._scope(check, f"{path}.scope", turn.scope, space)
        check.id(f"{path}.message.id", turn.message.id)
        check.require(turn.position >= 1, f"{path}.position", "must be 1 or more")
        occurred_at = time_of(check, f"{path}.occurred_at", turn, "occurred_at")
        check.present(f"{path}.occurred_at", occurred_at is not None)
        recorded_at = time_of(check, f"{path}.recorded_at", turn, "recorded_at")
        check.present(f"{path}.recorded_at", recorded_at is not None)
        check.done()
        assert occurred_at is not None
        assert recorded_at is not None
        if turn.message.HasField("created_at") and turn.message.created_at == turn.recorded_at:
            # The export said when it was stored, since nobody had said when it was said.
            turn.message.ClearField("created_at")
        turn.ClearField("scope")
        new = one_turn(turn, scope, path)
        return ImportedTurn(
            Turn(
                id=new.id,
                scope=scope,
                speaker=new.speaker,
                text=new.text,
                content=new.content,
                tokens=new.tokens,
                calls=new.calls,
                results=new.results,
                position=turn.position,
                session=0,
                occurred_at=occurred_at,
                recorded_at=recorded_at,
                metadata_json=new.metadata_json,
            ),
            new,
        )

    def _version(self, version: record_pb2.MemoryVersion, path: str, space: str) -> MemoryVersion:
        """A current memory, or a superseded version; by path which of them."""
        memory = version.memory
        is_old = path.endswith("version.memory")
        check = Violations()
        scope = self._scope(check, f"{path}.scope", memory.scope, space)
        check.id(f"{path}.id", memory.id)
        check.require(memory.version >= 1, f"{path}.version", "must be 1 or more")
        recorded_at = time_of(check, f"{path}.recorded_at", memory, "recorded_at")
        check.present(f"{path}.recorded_at", recorded_at is not None)
        superseded_at = time_of(check, f"{path}.superseded_at", memory, "superseded_at")
        rule = "must be set" if is_old else "must not be set: superseded versions are sent as such"
        check.require((superseded_at is not None) == is_old, f"{path}.superseded_at", rule)
        check.length("changed_by", version.changed_by, at_most=1_024)
        check.id("message_id", version.message_id, optional=True)
        check.length("reason", version.reason, at_most=1_024)
        if is_old:
            check.specified("change", version.change, record_pb2.Change.values())
        check.done()
        assert recorded_at is not None
        memory.ClearField("scope")
        text = memory.text
        if is_old and not text:
            # Purged: nothing but that it was there is left.
            memory.text = "purged"
            memory.kind = memory.kind or record_pb2.MEMORY_KIND_FACT
        new = one_memory(memory, scope, path)
        return MemoryVersion(
            Memory(
                id=new.id,
                version=memory.version,
                kind=new.kind,
                text=text,
                scope=scope,
                predicate=new.predicate,
                provenance_json=new.provenance_json,
                valid_from=new.valid_from,
                valid_to=new.valid_to,
                expires_at=new.expires_at,
                importance=new.importance,
                metadata_json=new.metadata_json,
                recorded_at=recorded_at,
                superseded_at=superseded_at,
            ),
            change=Change(version.change) if is_old else Change.IMPORTED,
            cause=Cause(version.changed_by, version.message_id, version.reason) if is_old else Cause(self._subject),
            purged=is_old and not text,
            embedding=new.embedding,
            digest=new.digest,
        )

    def _exported(self, named: str, path: str, space: str) -> str:
        check = Violations()
        check.require(named == self._origin, f"{path}.space", "must be the exported space")
        check.done()
        return space

    def _scope(self, check: Violations, path: str, scope: scope_pb2.Scope, space: str) -> Scope:
        check.require(scope.space == self._origin, f"{path}.space", "must be the exported space")
        return replace(scope_of(check, path, scope), space=space)
