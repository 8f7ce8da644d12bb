"""Erasing, checking and rebuilding."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from janus_api.common.v1 import operation_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import scope_pb2, space_pb2
from janus_app.embedded import read_state
from janus_app.memory.calls import Calls
from janus_app.memory.records import plain, print_json, when
from janus_app.memory.refusals import Refused
from janus_app.settings import load_settings


def erase(
    console: Console, calls: Calls, subject: str, space: str, reason: str, file: Path | None, *, as_json: bool
) -> None:
    """Show the receipt, and write it where that is asked for."""
    from janus_memory.receipts import ReceiptError, verify_receipt

    request = pb.EraseRequest(scope=scope_pb2.Scope(space=space, subject=subject), reason=reason)
    receipt = calls.unary("Erase", request).receipt
    if file is not None:
        text = json_format.MessageToJson(receipt, preserving_proto_field_name=True)
        file.write_text(f"{text}\n", encoding="utf-8")
    if as_json:
        print_json(receipt)
        return
    table = Table("store", "removed", "remaining", box=None, header_style="bold", pad_edge=False)
    for count in receipt.counts:
        table.add_row(count.store, str(count.removed), str(count.remaining))
    console.print(table)
    try:
        verify_receipt(receipt, receipt.key_id)
        signed = f"signed with the key {receipt.key_id}"
    except ReceiptError as error:
        raise Refused(f"The receipt's signature is wrong: {error}") from None
    console.print(f"receipt {receipt.id}, {when(receipt.erased_at)} UTC, {signed}", highlight=False, markup=False)


def verify(
    console: Console,
    data: Path,
    config: Path | None,
    environ: Mapping[str, str],
    tenant: str,
    space: str,
    *,
    repair: bool,
) -> bool:
    """Print a row a space; whether nothing was wrong. Stores are the running mesh's, or those of the settings."""
    from janus_memory.verify import COLUMNS, cells
    from janus_memory.verify import verify as compare

    loaded = load_settings(config, _stores_of(data, environ))
    table = Table(*COLUMNS, box=None, header_style="bold", pad_edge=False)

    async def work() -> bool:
        well = True
        async for findings in compare(
            loaded["memory"],
            postgres=loaded["postgres"],
            redis=loaded["redis"],
            tenant=tenant,
            space=space,
            repair=repair,
        ):
            table.add_row(*map(plain, cells(findings)))
            well = well and not findings.wrong and not findings.away
        return well

    well = asyncio.run(work())
    console.print(table)
    return well


def reindex(
    console: Console, calls: Calls, space: str, backend: str, model: str, dimensions: int, *, wait: bool
) -> bool:
    """Whether it succeeded, or has started where nobody waits for it."""
    names = {"": 0, "pgvector": space_pb2.VECTOR_BACKEND_PGVECTOR, "chroma": space_pb2.VECTOR_BACKEND_CHROMA}
    if backend not in names:
        raise Refused(f"There is no backend '{backend}': pgvector or chroma.")
    request = pb.ReindexRequest(
        space=space,
        backend=space_pb2.VectorBackend.ValueType(names[backend]),
        embedding_model=model,
        dimensions=dimensions,
    )
    operation = calls.unary("Reindex", request).operation
    if not wait:
        console.print(operation.id, highlight=False, markup=False)
        return True
    try:
        ended = _followed(console, calls, operation)
    except KeyboardInterrupt:
        if console.input("\nCancel it? Otherwise it goes on without you. [y/N] ").strip().lower() != "y":
            console.print(f"It goes on as {operation.id}.", highlight=False)
            return True
        calls.unary("CancelOperation", pb.CancelOperationRequest(operation_id=operation.id))
        ended = _followed(console, calls, operation)
    state = operation_pb2.OperationState.Name(ended.state).removeprefix("OPERATION_STATE_").lower()
    console.print(f"{state}: {ended.done} of {ended.total}", highlight=False)
    if ended.HasField("error"):
        console.print(plain(ended.error.message), style="red")
    return ended.state == operation_pb2.OPERATION_STATE_SUCCEEDED


def _followed(console: Console, calls: Calls, operation: operation_pb2.Operation) -> operation_pb2.Operation:
    """The operation at its end, with its progress shown meanwhile; a stream that is cut is taken up again."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("reindex", total=None)
        cuts = 0
        while True:
            watched: Iterator[pb.WatchOperationResponse] = calls.stream(
                "WatchOperation", pb.WatchOperationRequest(operation_id=operation.id)
            )
            try:
                for answer in watched:
                    cuts = 0
                    current = answer.ended if answer.WhichOneof("event") == "ended" else answer.progress
                    described = current.phase or "reindex"
                    progress.update(task, description=described, completed=current.done, total=current.total or None)
                    if answer.WhichOneof("event") == "ended":
                        return answer.ended
            except grpc.RpcError as error:
                cuts += 1
                if error.code() is not grpc.StatusCode.UNAVAILABLE or cuts > 20:
                    raise


def _stores_of(data: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """Addresses of the mesh that runs on a data folder; none where it has its stores from the settings."""
    state = read_state(data)
    if state is None:
        if not environ.get("JANUS_POSTGRES_URL") and not environ.get("JANUS_POSTGRES__URL"):
            raise Refused(f"No mesh is running on {data}. Start one with `janus serve`, or set JANUS_POSTGRES_URL.")
        return {}
    found = {
        "postgres.url": state.postgres_url,
        "redis.url": state.redis_url,
        "memory.chroma_url": state.chroma_url,
    }
    return {name: value for name, value in found.items() if value}
