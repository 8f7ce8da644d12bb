"""Requests about memories on record, decoded and validated, and their answers."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2
from janus_kit.ids import require_id
from janus_kit.validate import Violations
from janus_memory.idempotency import Request
from janus_memory.lifecycle import Mark, Updated
from janus_memory.model import HardFilter, Kind, Memory, MemoryVersion
from janus_memory.wire.answers import memory_to
from janus_memory.wire.filters import filter_of
from janus_memory.wire.reads import bad_page_token, page_of, page_token, query_of
from janus_memory.wire.values import check_metadata, scope_of, stamp, time_of
from janus_memory.wire.writes import check_text, request_of

_MAX_KINDS = 64
_MAX_REASON = 1_024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ListQuery:
    """ListMemories, decoded. ``query`` is what its page tokens are bound to."""

    where: HardFilter
    after: Mark | None
    limit: int
    query: str


@dataclass(frozen=True)
class UpdateCommand:
    """UpdateMemory, decoded. ``values`` are of Memory's fields, by name."""

    memory_id: str
    values: Mapping[str, Any]
    expected_version: int
    reason: str
    request: Request


@dataclass(frozen=True)
class ForgetCommand:
    """ForgetMemory, decoded."""

    memory_id: str
    purge: bool
    reason: str
    request: Request


@dataclass(frozen=True)
class HistoryQuery:
    """GetHistory, decoded. ``query`` is what its page tokens are bound to."""

    memory_id: str
    after: int
    limit: int
    query: str


def list_query(tenant: str, message: pb.ListMemoriesRequest, now: datetime) -> ListQuery:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    scope = scope_of(check, "scope", message.scope)
    few = check.count("kinds", message.kinds, at_most=_MAX_KINDS)
    for place, kind in enumerate(message.kinds if few else ()):
        check.specified(f"kinds[{place}]", kind, record_pb2.MemoryKind.values())
    condition = filter_of(check, "filter", message.filter) if message.HasField("filter") else None
    check.done()
    query = query_of("ListMemories", message)
    after, limit = page_of(tenant, query, message.page_size, message.page_token)
    kinds = tuple(dict.fromkeys(Kind(kind + 1) for kind in message.kinds))
    where = HardFilter(scope, kinds, now, None, now, condition, whenever=True, inactive=message.include_inactive)
    return ListQuery(where, _mark(after) if after else None, limit, query)


def update_command(message: pb.UpdateMemoryRequest) -> UpdateCommand:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    check.present("memory", message.HasField("memory"))
    check.id("memory.id", message.memory.id)
    # Nothing is moved by it; but who is named there is on record with the request's answer, for an erasure.
    scope_of(check, "memory.scope", message.memory.scope)
    values: dict[str, Any] = {}
    if check.count("update_mask.paths", message.update_mask.paths, at_least=1, at_most=64):
        for place, path in enumerate(dict.fromkeys(message.update_mask.paths)):
            read = _FIELDS.get(path)
            if read is None:
                check.add(f"update_mask.paths[{place}]", f"must be one of {', '.join(sorted(_FIELDS))}")
            else:
                values[path] = read(check, message.memory)
    begins, ends = values.get("valid_from"), values.get("valid_to")
    if begins and ends:
        check.require(ends > begins, "memory.valid_to", "must be after valid_from")
    check.require(message.expected_version >= 0, "expected_version", "must not be negative")
    check.length("reason", message.reason, at_most=_MAX_REASON)
    check.id("request_id", message.request_id, optional=True)
    check.done()
    return UpdateCommand(
        message.memory.id, values, message.expected_version, message.reason, request_of("UpdateMemory", message)
    )


def forget_command(message: pb.ForgetMemoryRequest) -> ForgetCommand:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    check.id("memory_id", message.memory_id)
    check.length("reason", message.reason, at_most=_MAX_REASON)
    check.id("request_id", message.request_id, optional=True)
    check.done()
    return ForgetCommand(message.memory_id, message.purge, message.reason, request_of("ForgetMemory", message))


def history_query(tenant: str, message: pb.GetHistoryRequest) -> HistoryQuery:
    """Raises InvalidArgument naming every field that is wrong."""
    require_id("memory_id", message.memory_id)
    query = query_of("GetHistory", message)
    after, limit = page_of(tenant, query, message.page_size, message.page_token)
    number = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else 0
    if after and not number:
        raise bad_page_token()
    return HistoryQuery(message.memory_id, number, limit, query)


def listed_to(tenant: str, query: str, memories: list[Memory], following: Mark | None) -> pb.ListMemoriesResponse:
    after = ""
    if following is not None:
        after = json.dumps([_microseconds(following.as_of), _microseconds(following.recorded_at), following.id])
    return pb.ListMemoriesResponse(memories=map(memory_to, memories), next_page_token=page_token(tenant, query, after))


def updated_to(done: Updated) -> pb.UpdateMemoryResponse:
    left = record_pb2.Memory(id=done.id, version=done.number)
    memory = left if done.version is None else _memory_of(done.version)
    return pb.UpdateMemoryResponse(memory=memory, consistency_token=done.token)


def forgotten_to(at: datetime) -> pb.ForgetMemoryResponse:
    return pb.ForgetMemoryResponse(forgotten_at=stamp(at))


def history_to(tenant: str, query: str, versions: list[MemoryVersion], following: int) -> pb.GetHistoryResponse:
    return pb.GetHistoryResponse(
        versions=[
            record_pb2.MemoryVersion(
                memory=_memory_of(version),
                change=record_pb2.Change.ValueType(version.change),
                changed_by=version.cause.changed_by,
                message_id=version.cause.message_id,
                reason=version.cause.reason,
            )
            for version in versions
        ],
        next_page_token=page_token(tenant, query, str(following) if following else ""),
    )


def _memory_of(version: MemoryVersion) -> record_pb2.Memory:
    if version.purged:
        return record_pb2.Memory(id=version.memory.id, version=version.memory.version)
    return memory_to(version.memory)


def _text(check: Violations, memory: record_pb2.Memory) -> str:
    check_text(check, "memory.text", memory.text)
    return memory.text


def _importance(check: Violations, memory: record_pb2.Memory) -> float:
    importance = memory.importance if memory.HasField("importance") else 0.5
    check.between("memory.importance", importance, 0, 1)
    return importance


def _time(field: str) -> Callable[[Violations, record_pb2.Memory], datetime | None]:
    return lambda check, memory: time_of(check, f"memory.{field}", memory, field)


def _metadata(check: Violations, memory: record_pb2.Memory) -> str:
    check_metadata(check, "memory.metadata_json", memory.metadata_json)
    return memory.metadata_json


def _predicate(check: Violations, memory: record_pb2.Memory) -> str:
    check.length("memory.predicate", memory.predicate, at_most=128)
    return memory.predicate


# Fields that a mask may name; the names are the model's too.
_FIELDS: Mapping[str, Callable[[Violations, record_pb2.Memory], Any]] = {
    "text": _text,
    "importance": _importance,
    "valid_from": _time("valid_from"),
    "valid_to": _time("valid_to"),
    "expires_at": _time("expires_at"),
    "metadata_json": _metadata,
    "predicate": _predicate,
}


def _mark(after: str) -> Mark:
    try:
        as_of, recorded_at, memory_id = json.loads(after)
        return Mark(_moment(as_of), _moment(recorded_at), require_id("page_token", memory_id))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise bad_page_token() from None


def _microseconds(when: datetime) -> int:
    return (when - _EPOCH) // timedelta(microseconds=1)


def _moment(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
