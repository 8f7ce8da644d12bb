"""What the client commands know of a running mesh: where it is, and its stubs.

They are plain blocking gRPC clients, as any user's program could be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from janus_api.common.v1 import status_service_pb2_grpc as status_rpc
from janus_api.inference.v1 import inference_service_pb2_grpc as inference_rpc
from janus_api.memory.v1 import memory_service_pb2_grpc as memory_rpc
from janus_api.orchestration.v1 import orchestration_service_pb2_grpc as orchestration_rpc
from janus_app.embedded import read_state

READY_SECONDS = 3.0
PATIENCE_SECONDS = 75.0
"""How long a mesh that restarts is waited for: it drains (20 s, unless set), and then has to be started."""
PAUSE_SECONDS = 0.5

# A mesh that is back is found at once, not after gRPC's two minutes.
_OPTIONS = [("grpc.enable_retries", 0), ("grpc.max_reconnect_backoff_ms", 1_000)]


class MeshNotUp(Exception):
    """No mesh answers where one was looked for; the text says what to do."""


@dataclass(frozen=True)
class Mesh:
    """The stubs of one mesh, all on one channel."""

    address: str
    channel: grpc.Channel
    inference: inference_rpc.InferenceServiceStub
    memory: memory_rpc.MemoryServiceStub
    orchestration: orchestration_rpc.OrchestrationServiceStub
    status: status_rpc.StatusServiceStub


def find(data: Path, address: str | None) -> str:
    """`address` if given, else where the mesh of this data folder says it listens."""
    if address:
        return address
    state = read_state(data)
    if state is None or not (grpc_address := state.published.get("grpc")):
        raise MeshNotUp(
            f"No mesh is running on {data}. Start one with `janus serve`, or name one: --address HOST:PORT."
        )
    return grpc_address


@contextmanager
def connect(data: Path, address: str | None = None) -> Iterator[Mesh]:
    """Stubs for a mesh that answers; raises MeshNotUp after 3 s when none does."""
    target = find(data, address)
    with grpc.insecure_channel(target, options=_OPTIONS) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=READY_SECONDS)
        except grpc.FutureTimeoutError:
            raise MeshNotUp(f"Nothing answers at {target}. Is the mesh up? Start it with `janus serve`.") from None
        yield Mesh(
            address=target,
            channel=channel,
            inference=inference_rpc.InferenceServiceStub(channel),
            memory=memory_rpc.MemoryServiceStub(channel),
            orchestration=orchestration_rpc.OrchestrationServiceStub(channel),
            status=status_rpc.StatusServiceStub(channel),
        )


def await_restart(data: Path, on_wait: Callable[[], None]) -> None:
    """Return when the mesh of this folder answers, or 75 s later; at once when no process runs on it.

    One that runs and does not answer stops or starts: `on_wait` is called, and the next one waited for. At an
    address that was given, one that restarts looks like none.
    """
    if read_state(data) is None:
        return
    give_up, is_told = time.monotonic() + PATIENCE_SECONDS, False
    while time.monotonic() < give_up:
        try:
            with connect(data):
                return
        except MeshNotUp:
            if not is_told:
                on_wait()
            is_told = True
            time.sleep(PAUSE_SECONDS)


def explain(error: grpc.RpcError) -> str:
    """One or more lines for a person: code, message, and each broken rule that the message does not say."""
    message = error.details() or ""
    lines = [f"{error.code().name}: {message}"]
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        bad = error_details_pb2.BadRequest()
        if packed.Unpack(bad):
            rules = [f"{violation.field}: {violation.description}" for violation in bad.field_violations]
            lines += [f"  {rule}" for rule in rules if rule not in message]
    return "\n".join(lines)
