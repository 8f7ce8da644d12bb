"""A part goes away and comes back, under a mesh that is told where its parts are."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.fakes.tcp_proxy import TcpProxy
from tests.system.driver import Server, detail, eventually, server, user

from janus_api.common.v1 import status_service_pb2 as status
from janus_api.memory.v1 import memory_service_pb2 as memory
from janus_api.memory.v1 import recall_pb2, record_pb2, space_pb2
from janus_api.memory.v1 import scope_pb2 as memory_scope
from janus_api.orchestration.v1 import orchestration_service_pb2 as orchestration
from janus_app.client import Mesh, connect
from janus_app.embedded import Addresses

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
MEMORY = "janus.memory.v1.MemoryService"
ORCHESTRATION = "janus.orchestration.v1.OrchestrationService"
INFERENCE = "janus.inference.v1.InferenceService"


@dataclass
class Network:
    """A mesh whose every store is behind a proxy that can be cut."""

    served: Server
    postgres: TcpProxy
    redis: TcpProxy
    chroma: TcpProxy


@pytest.fixture(scope="module")
def network(stack: Addresses, empty_url: str, redis_url: str, chroma_url: str) -> Iterator[Network]:
    postgres, redis, chroma = TcpProxy.to(empty_url), TcpProxy.to(redis_url), TcpProxy.to(chroma_url)
    environment = {
        "JANUS_POSTGRES_URL": postgres.through(empty_url),
        "JANUS_REDIS_URL": redis.through(redis_url),
        "JANUS_CHROMA_URL": chroma.through(chroma_url),
    }
    try:
        with server(environment=environment) as served:
            yield Network(served, postgres, redis, chroma)
    finally:
        for proxy in (postgres, redis, chroma):
            proxy.close()


@pytest.fixture
def mesh(network: Network) -> Iterator[Mesh]:
    with connect(network.served.data) as stubs:
        yield stubs


def health(mesh: Mesh, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return int(health_pb2_grpc.HealthStub(mesh.channel).Check(request, timeout=10).status)


def part(mesh: Mesh, service: str, name: str) -> status.PartStatus:
    reply = mesh.status.GetStatus(status.GetStatusRequest(), timeout=10)
    parts = next(entry.parts for entry in reply.services if entry.service == service)
    return next(entry for entry in parts if entry.name == name)


def append(mesh: Mesh, thread: str, text: str, space: str = "", **options: int) -> memory.AppendMessagesResponse:
    return mesh.memory.AppendMessages(
        memory.AppendMessagesRequest(
            scope=memory_scope.Scope(space=space, thread=thread, subject=thread),
            turns=[record_pb2.Turn(message=user(text))],
            **options,  # type: ignore[arg-type]
        ),
        timeout=20,
    )


def recall(mesh: Mesh, subject: str, query: str, space: str = "") -> recall_pb2.RecallResponse:
    scope = memory_scope.Scope(space=space, subject=subject)
    return mesh.memory.Recall(recall_pb2.RecallRequest(scope=scope, query=query), timeout=20)


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def test_a_mesh_with_configured_stores_starts_none_of_its_own(network: Network) -> None:
    import psutil

    assert network.served.process is not None
    names = {child.name() for child in psutil.Process(network.served.process.pid).children(recursive=True)}
    assert not names & {"postgres", "valkey-server"}


def test_without_redis_nothing_is_refused_and_the_answer_says_so(network: Network, mesh: Mesh) -> None:
    thread = unique("no-redis")
    append(mesh, thread, "Before the cut.")
    network.redis.cut()
    try:
        written = append(mesh, thread, "While Redis is away.")
        window = mesh.memory.GetWindow(memory.GetWindowRequest(scope=memory_scope.Scope(thread=thread)), timeout=20)
        created = mesh.orchestration.CreateThread(orchestration.CreateThreadRequest(), timeout=20).thread
        talk = orchestration.RunInput(thread_id=created.id, messages=[user("Are you there?")])
        events = [
            reply.event for reply in mesh.orchestration.Converse(orchestration.ConverseRequest(input=talk), timeout=30)
        ]
        eventually(lambda: not part(mesh, MEMORY, "redis").available)
        away = part(mesh, MEMORY, "redis")
        served = [health(mesh, name) for name in (MEMORY, ORCHESTRATION, INFERENCE)]
    finally:
        network.redis.mend()
    assert list(written.degraded) == ["redis"]
    assert list(window.degraded) == ["redis"]
    assert [turn.message.parts[0].text for turn in window.turns] == [
        "Before the cut.",
        "While Redis is away.",
    ]
    assert events[-1].WhichOneof("event") == "run_completed"
    assert away.detail
    assert served == [SERVING, SERVING, SERVING]
    eventually(lambda: part(mesh, MEMORY, "redis").available)
    eventually(lambda: not append(mesh, thread, "After the cut.").degraded)
    window = mesh.memory.GetWindow(memory.GetWindowRequest(scope=memory_scope.Scope(thread=thread)), timeout=20)
    assert [turn.message.parts[0].text for turn in window.turns][:2] == [
        "Before the cut.",
        "While Redis is away.",
    ]
    assert not window.degraded


def test_without_chroma_writes_are_kept_and_found_when_it_is_back(network: Network, mesh: Mesh) -> None:
    space, subject = unique("space"), unique("no-chroma")
    backend = space_pb2.VECTOR_BACKEND_CHROMA
    mesh.memory.PutSpace(memory.PutSpaceRequest(space=space_pb2.Space(name=space, backend=backend)))
    network.chroma.cut()
    try:
        append(mesh, subject, "The harbour master keeps a parrot.", space)
        found = recall(mesh, subject, "Who keeps a parrot?", space)
        eventually(lambda: not part(mesh, MEMORY, "chroma").available)
        away, served = part(mesh, MEMORY, "chroma"), health(mesh, MEMORY)
    finally:
        network.chroma.mend()
    assert list(found.degraded) == ["chroma"]
    assert "parrot" in found.hits[0].turn.message.parts[0].text
    assert away.detail
    assert served == SERVING
    eventually(lambda: not recall(mesh, subject, "Who keeps a parrot?", space).degraded, 30)
    eventually(lambda: mesh.memory.GetSpace(memory.GetSpaceRequest(name=space)).space.index_backlog == 0, 60)
    later = append(mesh, subject, "The parrot is green.", space, consistency=memory_scope.CONSISTENCY_READ_YOUR_WRITES)
    assert later.searchable


def test_without_postgres_calls_are_unavailable_and_it_heals(network: Network, mesh: Mesh) -> None:
    thread = unique("no-postgres")
    append(mesh, thread, "Before the cut.")
    network.postgres.cut()
    try:
        with pytest.raises(grpc.RpcError) as raised:
            append(mesh, thread, "Never acknowledged.")
        eventually(lambda: health(mesh, MEMORY) == NOT_SERVING)
        others = [
            eventually(lambda name=name: health(mesh, name) == NOT_SERVING) for name in (ORCHESTRATION, INFERENCE)
        ]
    finally:
        network.postgres.mend()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    info = detail(raised.value, error_details_pb2.ErrorInfo)
    assert (info.reason, info.metadata["part"]) == ("DEPENDENCY_UNAVAILABLE", "postgres")
    assert detail(raised.value, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0
    assert all(others)
    for name in (MEMORY, ORCHESTRATION, INFERENCE):
        eventually(lambda name=name: health(mesh, name) == SERVING)
    append(mesh, thread, "After the cut.")
    window = mesh.memory.GetWindow(memory.GetWindowRequest(scope=memory_scope.Scope(thread=thread)), timeout=20)
    assert [turn.message.parts[0].text for turn in window.turns] == ["Before the cut.", "After the cut."]
