"""Long-running operations on the wire."""

from typing import NamedTuple

from google.rpc import status_pb2

from janus_api.common.v1 import operation_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import space_pb2
from janus_kit.validate import Violations
from janus_memory.idempotency import Request
from janus_memory.model import DEFAULT_SPACE, Backend, Operation
from janus_memory.reindex import Wish
from janus_memory.spaces import MAX_DIMENSIONS
from janus_memory.wire.values import stamp
from janus_memory.wire.writes import request_of


class CancelCommand(NamedTuple):
    """CancelOperation, decoded."""

    operation_id: str
    request: Request


def cancel_command(message: pb.CancelOperationRequest) -> CancelCommand:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    check.id("operation_id", message.operation_id)
    check.id("request_id", message.request_id, optional=True)
    check.done()
    return CancelCommand(message.operation_id, request_of("CancelOperation", message))


def operation_to(operation: Operation) -> operation_pb2.Operation:
    return operation_pb2.Operation(
        id=operation.id,
        kind=operation.kind,
        state=operation_pb2.OperationState.ValueType(operation.state),
        done=operation.done,
        total=operation.total,
        phase=operation.phase,
        created_at=stamp(operation.created_at),
        updated_at=stamp(operation.updated_at),
        ended_at=stamp(operation.ended_at),
        error=status_pb2.Status.FromString(operation.error) if operation.error else None,
        result_json=operation.result_json,
    )


def watched_to(sequence: int, operation: Operation) -> pb.WatchOperationResponse:
    if operation.ended_at is None:
        return pb.WatchOperationResponse(sequence=sequence, progress=operation_to(operation))
    return pb.WatchOperationResponse(sequence=sequence, ended=operation_to(operation))


class ReindexCommand(NamedTuple):
    """Reindex, decoded."""

    wish: Wish
    request: Request


def reindex_command(message: pb.ReindexRequest) -> ReindexCommand:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    check.id("space", message.space, optional=True)
    check.require(message.backend in space_pb2.VectorBackend.values(), "backend", "must be a value of the enum")
    check.length("embedding_model", message.embedding_model, at_most=256)
    check.between("dimensions", message.dimensions, 0, MAX_DIMENSIONS)
    check.id("request_id", message.request_id, optional=True)
    check.done()
    wish = Wish(
        message.space or DEFAULT_SPACE,
        Backend(message.backend) if message.backend else None,
        message.embedding_model,
        message.dimensions,
    )
    return ReindexCommand(wish, request_of("Reindex", message))
