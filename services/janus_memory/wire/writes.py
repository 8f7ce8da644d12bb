"""Requests that write, decoded and validated."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2
from janus_kit.validate import Violations
from janus_memory.idempotency import Request
from janus_memory.model import Kind, NewMemory, NewTurn, Role, Scope
from janus_memory.versions import digest
from janus_memory.wire.content import check_message, count_parts, facts
from janus_memory.wire.values import check_metadata, check_vector, scope_of, time_of

KiB = 1024
_MAX_ITEMS = 256
_MAX_PARTS = 16_384
_MAX_REQUEST_BYTES = 4 * KiB * KiB
_MAX_MEMORY_BYTES = 256 * KiB
_MAX_QUOTE_BYTES = 4 * KiB
_MAX_DIMENSIONS = 4_096
_MAX_PROVENANCE = 64
# A role that this version does not know was reported already.
_ROLES: Mapping[int, Role] = {int(role): role for role in Role}


@dataclass(frozen=True)
class AppendCommand:
    """AppendMessages, decoded."""

    scope: Scope
    turns: tuple[NewTurn, ...]
    request: Request
    waits: bool


@dataclass(frozen=True)
class ForgetCommand:
    """ForgetMessages, decoded."""

    scope: Scope
    ids: tuple[str, ...]
    request: Request


@dataclass(frozen=True)
class RememberCommand:
    """Remember, decoded. All memories are of one space."""

    space: str
    memories: tuple[NewMemory, ...]
    request: Request
    waits: bool


def request_of(method: str, message: Any) -> Request:
    """A valid write's identity. The body is everything but the id itself and when to answer."""
    body: Message = type(message)()
    body.CopyFrom(message)
    for field in ("request_id", "consistency"):
        if field in body.DESCRIPTOR.fields_by_name:
            body.ClearField(field)
    return Request(method, message.request_id, _digest(body), tuple(sorted(_subjects(message))))


def _subjects(message: Any, depth: int = 1) -> set[str]:
    """Subjects that a request names: in its scope, and in those of what it writes."""
    found: set[str] = set()
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for each in value if field.is_repeated else (value,):
            if isinstance(each, scope_pb2.Scope):
                found.add(each.subject)
            elif depth:
                found |= _subjects(each, depth - 1)
    return found - {""}


def append_command(message: pb.AppendMessagesRequest) -> AppendCommand:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    scope = scope_of(check, "scope", message.scope, thread_required=True)
    check.id("request_id", message.request_id, optional=True)
    waits = _waits(check, message.consistency)
    turns = [
        _turn(check, f"turns[{place}]", turn, scope) for place, turn in enumerate(_few_turns(check, message) or ())
    ]
    seen: set[str] = set()
    for place, turn in enumerate(turns):
        if turn.id:
            check.require(turn.id not in seen, f"turns[{place}].message.id", "must be unique in the request")
            seen.add(turn.id)
    check.done()
    return AppendCommand(scope, tuple(turns), request_of("AppendMessages", message), waits)


def forget_command(message: pb.ForgetMessagesRequest) -> ForgetCommand:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    scope = scope_of(check, "scope", message.scope, thread_required=True)
    check.require(not message.scope.subject, "scope.subject", "must be empty")
    check.require(not message.scope.agent, "scope.agent", "must be empty")
    check.id("request_id", message.request_id, optional=True)
    if check.count("message_ids", message.message_ids, at_least=1, at_most=_MAX_ITEMS):
        for place, message_id in enumerate(message.message_ids):
            check.id(f"message_ids[{place}]", message_id)
    check.done()
    return ForgetCommand(scope, tuple(message.message_ids), request_of("ForgetMessages", message))


def remember_command(message: pb.RememberRequest) -> RememberCommand:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    scope = scope_of(check, "scope", message.scope)
    check.id("request_id", message.request_id, optional=True)
    waits = _waits(check, message.consistency)
    memories = [
        _memory(check, f"memories[{place}]", memory, scope)
        for place, memory in enumerate(_few_memories(check, message) or ())
    ]
    spaces = dict.fromkeys(memory.scope.space for memory in memories)
    first = next(iter(spaces), scope.space)
    for place, memory in enumerate(memories):
        check.require(
            memory.scope.space == first, f"memories[{place}].scope.space", "must be the same for all memories"
        )
    check.done()
    return RememberCommand(first, tuple(memories), request_of("Remember", message), waits)


def one_memory(memory: record_pb2.Memory, scope: Scope, path: str = "memories[0]") -> NewMemory:
    """A memory by itself, in a scope unless it has its own. Raises what Remember would for it."""
    check = Violations()
    few = check.count(f"{path}.provenance", memory.provenance, at_most=_MAX_PROVENANCE)
    if not check.count(f"{path}.embedding", memory.embedding, at_most=_MAX_DIMENSIONS) or not few:
        check.done()
    found = _memory(check, path, memory, scope)
    check.done()
    return found


def one_turn(turn: record_pb2.Turn, scope: Scope, path: str = "turns[0]") -> NewTurn:
    """A turn by itself, in a scope unless it has its own. Raises what AppendMessages would for it."""
    check = Violations()
    if turn.HasField("scope") and turn.scope != scope_pb2.Scope():
        scope = scope_of(check, "scope", turn.scope)
        turn.ClearField("scope")
    check.id("scope.thread", scope.thread)
    if count_parts(check, f"{path}.message", turn.message) is None:
        check.done()
    found = _turn(check, path, turn, scope)
    check.done()
    return found


# A request of 4 MiB can hold a million pieces, and looking at each would stop
# everybody else for seconds: what has too many is refused by its counts alone.


def _few_turns(check: Violations, message: pb.AppendMessagesRequest) -> Sequence[record_pb2.Turn] | None:
    """The turns, or None when there is too much to look at; that is then reported."""
    if not check.count("turns", message.turns, at_least=1, at_most=_MAX_ITEMS):
        return None
    if not check.require(message.ByteSize() <= _MAX_REQUEST_BYTES, "turns", "must be at most 4 MiB in all"):
        return None
    counts = [count_parts(check, f"turns[{place}].message", turn.message) for place, turn in enumerate(message.turns)]
    if None in counts:
        return None
    few = sum(count or 0 for count in counts) <= _MAX_PARTS
    return message.turns if check.require(few, "turns", f"must have at most {_MAX_PARTS} parts in all") else None


def _few_memories(check: Violations, message: pb.RememberRequest) -> Sequence[record_pb2.Memory] | None:
    """The memories, or None when there is too much to look at; that is then reported."""
    if not check.count("memories", message.memories, at_least=1, at_most=_MAX_ITEMS):
        return None
    if not check.require(message.ByteSize() <= _MAX_REQUEST_BYTES, "memories", "must be at most 4 MiB in all"):
        return None
    few = [
        check.count(f"memories[{place}].{field}", items, at_most=at_most)
        for place, memory in enumerate(message.memories)
        for field, items, at_most in (
            ("provenance", memory.provenance, _MAX_PROVENANCE),
            ("embedding", memory.embedding, _MAX_DIMENSIONS),
        )
    ]
    return message.memories if all(few) else None


def _turn(check: Violations, path: str, turn: record_pb2.Turn, scope: Scope) -> NewTurn:
    check_message(check, f"{path}.message", turn.message)
    check.require(not turn.HasField("scope") or turn.scope == scope_pb2.Scope(), f"{path}.scope", "must be empty")
    check_metadata(check, f"{path}.metadata_json", turn.metadata_json)
    said = time_of(check, f"{path}.message.created_at", turn.message, "created_at")
    occurred_at = time_of(check, f"{path}.occurred_at", turn, "occurred_at") or said
    about = facts(turn.message)
    # What the server fills in is no part of what the caller said.
    same = record_pb2.Turn(
        message=turn.message, occurred_at=turn.occurred_at if turn.HasField("occurred_at") else None,
        metadata_json=turn.metadata_json,
        scope=scope_pb2.Scope(subject=scope.subject, agent=scope.agent),
    )  # fmt: skip
    return NewTurn(
        id=turn.message.id,
        scope=scope,
        role=_ROLES.get(turn.message.role, Role.USER),
        speaker=turn.message.name,
        content=turn.message.SerializeToString(deterministic=True),
        text=about.text,
        tokens=about.tokens,
        calls=about.calls,
        results=about.results,
        occurred_at=occurred_at,
        metadata_json=turn.metadata_json,
        digest=_digest(same),
    )


def _memory(check: Violations, path: str, memory: record_pb2.Memory, outer: Scope) -> NewMemory:
    check.id(f"{path}.id", memory.id, optional=True)
    check.specified(f"{path}.kind", memory.kind, record_pb2.MemoryKind.values())
    check_text(check, f"{path}.text", memory.text)
    own = memory.HasField("scope") and memory.scope != scope_pb2.Scope()
    scope = scope_of(check, f"{path}.scope", memory.scope) if own else outer
    check.length(f"{path}.predicate", memory.predicate, at_most=128)
    check_metadata(check, f"{path}.metadata_json", memory.metadata_json)
    valid_from = time_of(check, f"{path}.valid_from", memory, "valid_from")
    valid_to = time_of(check, f"{path}.valid_to", memory, "valid_to")
    if valid_from and valid_to:
        check.require(valid_to > valid_from, f"{path}.valid_to", "must be after valid_from")
    importance = memory.importance if memory.HasField("importance") else 0.5
    check.between(f"{path}.importance", importance, 0, 1)
    check_vector(check, f"{path}.embedding", memory.embedding)
    kind = Kind(memory.kind + 1) if 1 <= memory.kind <= 5 else Kind.FACT
    return NewMemory(
        id=memory.id,
        kind=kind,
        text=memory.text,
        scope=scope,
        predicate=memory.predicate,
        provenance_json=_provenance(check, f"{path}.provenance", memory),
        valid_from=valid_from,
        valid_to=valid_to,
        expires_at=time_of(check, f"{path}.expires_at", memory, "expires_at"),
        importance=importance,
        metadata_json=memory.metadata_json,
        embedding=tuple(memory.embedding),
        digest=digest(kind, memory.text, scope),
    )


def check_text(check: Violations, path: str, text: str) -> None:
    """What a memory says."""
    if "\x00" in text:
        check.add(path, "must not contain NUL characters")
    elif not text.strip() or len(text.encode()) > _MAX_MEMORY_BYTES:
        check.add(path, f"must be 1 character to {_MAX_MEMORY_BYTES} bytes of UTF-8, not blank")


def _provenance(check: Violations, path: str, memory: record_pb2.Memory) -> str:
    found = []
    for place, source in enumerate(memory.provenance):
        kind = source.WhichOneof("source")
        inside = f"{path}[{place}]"
        if kind is None:
            check.add(inside, "must name a message, a memory or a document")
            continue
        value = getattr(source, kind)
        if kind == "document":
            check.length(f"{inside}.document", value, at_least=1, at_most=1_024)
        elif kind == "client":
            check.length(f"{inside}.client", value, at_most=1_024)
        else:
            check.id(f"{inside}.{kind}", value)
        check.require("\x00" not in source.quote, f"{inside}.quote", "must not contain NUL characters")
        check.require(
            len(source.quote.encode()) <= _MAX_QUOTE_BYTES,
            f"{inside}.quote",
            f"must be at most {_MAX_QUOTE_BYTES} bytes of UTF-8",
        )
        check.require(source.origin in record_pb2.Origin.values(), f"{inside}.origin", "must be a value of the enum")
        found.append({kind: value, "quote": source.quote, "origin": source.origin})
    return json.dumps(found)


def _waits(check: Violations, consistency: int) -> bool:
    check.require(consistency in scope_pb2.Consistency.values(), "consistency", "must be a value of the enum")
    return consistency == scope_pb2.CONSISTENCY_READ_YOUR_WRITES


def _digest(message: Message) -> bytes:
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()
