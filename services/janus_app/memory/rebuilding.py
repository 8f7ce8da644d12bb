"""Rebuilding vectors, and operations that go on by themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import grpc
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from janus_api.common.v1 import operation_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import space_pb2
from janus_app.client import PATIENCE_SECONDS
from janus_app.memory.calls import Calls
from janus_app.terminal import plain

_PAUSE_S = 1.0
_CUTS = round(PATIENCE_SECONDS / _PAUSE_S)
"""Times that a stream may be cut without an answer between before nobody waits any longer."""


def reindex_request(space: str, backend: str, model: str, dimensions: int) -> pb.ReindexRequest:
    """Raises BadParameter for a backend that is none."""
    names = {"": 0, "pgvector": space_pb2.VECTOR_BACKEND_PGVECTOR, "chroma": space_pb2.VECTOR_BACKEND_CHROMA}
    if backend not in names:
        raise typer.BadParameter(f"There is no backend '{backend}': pgvector or chroma.")
    return pb.ReindexRequest(
        space=space,
        backend=space_pb2.VectorBackend.ValueType(names[backend]),
        embedding_model=model,
        dimensions=dimensions,
    )


def reindex(console: Console, calls: Calls, request: pb.ReindexRequest, *, wait: bool) -> bool:
    """Whether it succeeded, or has started where nobody waits for it."""
    started = calls.unary("Reindex", request).operation
    if wait:
        return _well(console, _followed(console, calls, started.id))
    console.print(started.id, highlight=False, markup=False)
    return True


def follow(console: Console, calls: Calls, operation_id: str, *, cancel: bool, wait: bool) -> bool:
    """Whether it succeeded, or may yet where nobody waits for it."""
    if cancel:
        _cancel(calls, operation_id)
    if wait:
        return _well(console, _followed(console, calls, operation_id))
    return _well(console, calls.unary("GetOperation", pb.GetOperationRequest(operation_id=operation_id)).operation)


def _cancel(calls: Calls, operation_id: str) -> None:
    calls.unary("CancelOperation", pb.CancelOperationRequest(operation_id=operation_id))


def _well(console: Console, operation: operation_pb2.Operation) -> bool:
    """Say how it is."""
    state = operation_pb2.OperationState.Name(operation.state).removeprefix("OPERATION_STATE_").lower()
    if not operation.HasField("ended_at"):
        console.print(plain(f"{state}: {operation.phase or 'to begin'}, {operation.done} of {operation.total}"))
        return True
    console.print(f"{state}: {operation.done} of {operation.total}", highlight=False)
    if operation.HasField("error"):
        console.print(plain(operation.error.message), style="red")
    for name, value in (json.loads(operation.result_json) if operation.result_json else {}).items():
        console.print(plain(f"  {name}: {'unknown' if value is None else value}"))
    return operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED


def _followed(console: Console, calls: Calls, operation_id: str) -> operation_pb2.Operation:
    """The operation at its end, or as it is when somebody would rather not wait."""
    try:
        return _watched(console, calls, operation_id)
    except KeyboardInterrupt:
        if not typer.confirm("\nCancel it? Otherwise it goes on without you"):
            console.print(f"Follow it with: janus memory operation {operation_id}", highlight=False)
            answer = calls.unary("GetOperation", pb.GetOperationRequest(operation_id=operation_id))
            current: operation_pb2.Operation = answer.operation
            return current
        _cancel(calls, operation_id)
        return _watched(console, calls, operation_id)


def _watched(console: Console, calls: Calls, operation_id: str) -> operation_pb2.Operation:
    """The operation at its end, with its progress shown meanwhile; a stream that is cut is taken up again."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("to begin", total=None)
        cuts = 0
        while True:
            request = pb.WatchOperationRequest(operation_id=operation_id)
            watched: Iterator[pb.WatchOperationResponse] = calls.stream("WatchOperation", request)
            try:
                for answer in watched:
                    cuts = 0
                    current = answer.ended if answer.WhichOneof("event") == "ended" else answer.progress
                    progress.update(
                        task,
                        description=plain(current.phase or "to begin").plain,
                        completed=current.done,
                        total=current.total or None,
                    )
                    if answer.WhichOneof("event") == "ended":
                        return answer.ended
            except grpc.RpcError as error:
                cuts += 1
                if error.code() is not grpc.StatusCode.UNAVAILABLE or cuts > _CUTS:
                    raise
                # A mesh that was killed is not back at once.
                time.sleep(_PAUSE_S)
