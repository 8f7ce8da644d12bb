"""Requests that read, and spaces, decoded and validated."""

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from google.protobuf.message import Message

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import recall_pb2, space_pb2
from janus_kit.errors import InvalidArgument
from janus_kit.validate import Violations
from janus_memory.idempotency import Request
from janus_memory.model import Backend, HardFilter, Kind, RecallQuery, Scope, SpaceDraft, Weights
from janus_memory.wire.filters import filter_of
from janus_memory.wire.values import check_vector, retention_of, scope_of, time_of
from janus_memory.wire.writes import request_of

_MAX_DIMENSIONS = 4_096
_MAX_KINDS = 64
_MAX_NEIGHBOURS = 10
_NEIGHBOURS = 1


@dataclass(frozen=True)
class WindowQuery:
    """GetWindow, decoded."""

    scope: Scope
    max_tokens: int
    max_messages: int


@dataclass(frozen=True)
class PutSpaceCommand:
    """PutSpace, decoded."""

    draft: SpaceDraft
    expected_version: int
    request: Request


def window_query(message: pb.GetWindowRequest) -> WindowQuery:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    scope = scope_of(check, "scope", message.scope, thread_required=True)
    check.between("max_tokens", message.max_tokens, 0, 1_000_000)
    check.between("max_messages", message.max_messages, 0, 1_000)
    check.done()
    return WindowQuery(scope, message.max_tokens or 8_192, message.max_messages or 200)


def recall_query(message: recall_pb2.RecallRequest, now: datetime) -> RecallQuery:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    scope = scope_of(check, "scope", message.scope)
    check.length("query", message.query, at_least=1, at_most=8_192)
    check.between("limit", message.limit, 0, 200)
    few = check.count("kinds", message.kinds, at_most=_MAX_KINDS)
    for place, kind in enumerate(message.kinds if few else ()):
        check.specified(f"kinds[{place}]", kind, recall_pb2.RecordKind.values())
    valid_at = time_of(check, "valid_at", message, "valid_at")
    recorded_at = time_of(check, "recorded_at", message, "recorded_at")
    condition = filter_of(check, "filter", message.filter) if message.HasField("filter") else None
    weights = weights_of(check, "weights", message.weights)
    if check.count("query_embedding", message.query_embedding, at_most=_MAX_DIMENSIONS):
        check_vector(check, "query_embedding", message.query_embedding)
    check.between("pack_tokens", message.pack_tokens, 0, 200_000)
    check.between("pack_neighbours", message.pack_neighbours, 0, _MAX_NEIGHBOURS)
    check.length("consistency_token", message.consistency_token, at_most=128)
    check.done()
    kinds = tuple(dict.fromkeys(Kind(kind) for kind in message.kinds))
    return RecallQuery(
        query=message.query,
        limit=message.limit or 10,
        filter=HardFilter(scope, kinds, valid_at or now, recorded_at, now, condition),
        weights=weights,
        embedding=tuple(message.query_embedding),
        pack_tokens=message.pack_tokens,
        pack_neighbours=message.pack_neighbours if message.HasField("pack_neighbours") else _NEIGHBOURS,
        explain=message.explain,
        token=message.consistency_token,
        exact=message.exact,
    )


def put_space_command(message: pb.PutSpaceRequest) -> PutSpaceCommand:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    space = message.space
    check.present("space", message.HasField("space"))
    check.id("space.name", space.name)
    check.require(space.backend in space_pb2.VectorBackend.values(), "space.backend", "must be a value of the enum")
    check.length("space.embedding_model", space.embedding_model, at_most=256)
    check.between("space.dimensions", space.dimensions, 0, _MAX_DIMENSIONS)
    check.length("space.description", space.description, at_most=1_024)
    check.require(message.expected_version >= 0, "expected_version", "must not be negative")
    weights = weights_of(check, "space.weights", space.weights)
    retention = retention_of(check, "space.retention", space)
    check.id("request_id", message.request_id, optional=True)
    check.done()
    draft = SpaceDraft(
        name=space.name,
        backend=Backend(space.backend) if space.backend else None,
        model=space.embedding_model,
        dimensions=space.dimensions,
        weights=weights,
        description=space.description,
        retention=retention,
    )
    return PutSpaceCommand(draft, message.expected_version, request_of("PutSpace", message))


def weights_of(check: Violations, path: str, message: recall_pb2.RecallWeights) -> Weights:
    """Weights with None where nothing is said."""
    values: dict[str, float] = {}
    for name in Weights.__slots__:
        if message.HasField(name):  # type: ignore[arg-type]  # the fields have the same names
            values[name] = getattr(message, name)
            check.between(f"{path}.{name}", values[name], 0, 10)
    return Weights(**values)


def query_of(method: str, message: Message) -> str:
    """A list's query in words of its own: everything but the page. A token is of one query alone."""
    body: Message = type(message)()
    body.CopyFrom(message)
    for field in ("page_size", "page_token"):
        body.ClearField(field)
    return f"{method}:{hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()}"


def page_of(tenant: str, query: str, page_size: int, page_token: str) -> tuple[str, int]:
    """Where a page begins after, and its size. Raises InvalidArgument for a token of another query."""
    check = Violations()
    check.between("page_size", page_size, 0, 1_000)
    check.done()
    if not page_token:
        return "", page_size or 100
    try:
        data: Any = json.loads(base64.b64decode(page_token.encode(), altchars=b"-_", validate=True))
        mark, after = data
        if mark != _mark(tenant, query) or not isinstance(after, str) or "\x00" in after:
            raise ValueError
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise bad_page_token() from None
    return after, page_size or 100


def bad_page_token() -> InvalidArgument:
    """A token that this query did not return."""
    return InvalidArgument("page_token", "must be one that this query returned", reason="PAGE_TOKEN_INVALID")


def page_token(tenant: str, query: str, after: str) -> str:
    """A token for the page after a name; empty for none."""
    if not after:
        return ""
    return base64.urlsafe_b64encode(json.dumps([_mark(tenant, query), after]).encode()).decode()


def _mark(tenant: str, query: str) -> str:
    """Binds a token to who asked what. It guards nothing: the tenant's rows are all there is."""
    return hashlib.blake2b(f"{tenant}\0{query}".encode(), digest_size=8).hexdigest()
