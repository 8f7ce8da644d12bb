"""The processes of deploy/compose.yaml, each on its own, as plain processes of this machine.

Their commands, environment and secrets are those of the file; only host names
become loopback ports. Postgres, Redis and Chroma are the embedded ones.
"""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
import pytest_asyncio
import yaml
from openai import AsyncOpenAI

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as memory_pb
from janus_api.memory.v1 import memory_service_pb2_grpc as memory_rpc
from janus_api.memory.v1 import space_pb2
from janus_api.orchestration.v1 import agent_pb2, event_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as orchestration_pb
from janus_api.orchestration.v1 import orchestration_service_pb2_grpc as orchestration_rpc
from janus_app.embedded import Addresses
from janus_kit.channel import connect

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICES = ("inference", "memory", "orchestration", "edge")
PASSWORD = "for-this-test-only"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Machine:
    """Where everything is instead of in containers."""

    def __init__(self, stack: Addresses, admin_url: str, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in SERVICES}
        self.chroma_url = stack.chroma_url
        self.user = f"service_{os.getpid()}"
        self.secrets = {
            "janus_postgres_admin_url": admin_url,
            "janus_postgres_url": re.sub(r"//[^@]*@", f"//{self.user}:{PASSWORD}@", admin_url),
            "janus_redis_url": stack.redis_url,
            "openai_api_key": "",
            "anthropic_api_key": "",
        }
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / "compose.yaml").read_text())
        self.services: dict[str, Any] = yaml.safe_load(text)["services"]

    def environment(self, name: str) -> dict[str, str]:
        """The container's environment with addresses of this machine."""
        secrets = self.folder / name
        secrets.mkdir()
        for secret in self.services[name].get("secrets", []):
            source, target = (secret, secret) if isinstance(secret, str) else (secret["source"], secret["target"])
            (secrets / target).write_text(self.secrets[source])
        found = {key: value for key, value in os.environ.items() if not key.startswith(("JANUS_", "PROMETHEUS_"))}
        for variable, value in self.services[name]["environment"].items():
            text = value.replace("/run/secrets", str(secrets)).replace("http://chroma:8000", str(self.chroma_url))
            text = re.sub(r"dns:///([a-z]+):\d+", lambda found: f"127.0.0.1:{self.ports[found[1]]}", text)
            text = re.sub(r"^0\.0\.0\.0:(8080|50051)$", f"127.0.0.1:{self.ports.get(name)}", text)
            text = re.sub(r"^0\.0\.0\.0:9464$", f"127.0.0.1:{free_port()}", text)
            found[variable] = text
        return found

    async def start(self, name: str) -> asyncio.subprocess.Process:
        python, *entrypoint = self.services[name]["entrypoint"]
        assert python == "python"
        with (self.folder / f"{name}.log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *entrypoint,
                *self.services[name].get("command", []),
                env=self.environment(name),
                stderr=log,
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]


@asynccontextmanager
async def stopped(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.wait(), 60)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(stack: Addresses, empty_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Machine]:
    """Migrated, with all services up and the edge ready."""
    found = Machine(stack, empty_url, tmp_path_factory.mktemp("apart"))
    migrate = await found.start("migrate")
    assert await asyncio.wait_for(migrate.wait(), 60) == 0, found.log("migrate")
    # As deploy/postgres/10-janus-service.sh makes it.
    admin = await asyncpg.connect(empty_url)
    await admin.execute(f"CREATE ROLE {found.user} LOGIN NOINHERIT PASSWORD '{PASSWORD}'")
    await admin.execute(f"GRANT janus_app, janus_worker TO {found.user}")
    try:
        async with AsyncExitStack() as processes:
            for name in SERVICES:
                await processes.enter_async_context(stopped(await found.start(name)))
            await _ready(found)
            yield found
    finally:
        await admin.execute(f"DROP ROLE {found.user}")
        await admin.close()


async def _ready(machine: Machine) -> None:
    readiness = "no answer"
    try:
        async with asyncio.timeout(60), httpx2.AsyncClient(trust_env=False, verify=False) as client:
            while True:
                try:
                    answer = await client.get(f"http://127.0.0.1:{machine.ports['edge']}/readyz")
                    readiness = answer.text
                    if answer.json()["status"] == "ready":
                        return
                except httpx2.TransportError:
                    pass
                await asyncio.sleep(0.1)
    except TimeoutError:
        logs = "\n".join(f"--- {name}\n{machine.log(name)}" for name in SERVICES)
        pytest.fail(f"not ready: {readiness}\n{logs}")


async def test_a_turn_goes_through_all_of_them_and_is_remembered_in_chroma(machine: Machine):
    async with (
        connect(f"127.0.0.1:{machine.ports['orchestration']}") as orchestration_channel,
        connect(f"127.0.0.1:{machine.ports['memory']}") as memory_channel,
    ):
        orchestration: Any = orchestration_rpc.OrchestrationServiceStub(orchestration_channel)
        memory: Any = memory_rpc.MemoryServiceStub(memory_channel)

        await orchestration.PutAgent(orchestration_pb.PutAgentRequest(agent=agent_pb2.Agent(name="keeper")))

        async def converse(text: str) -> list[event_pb2.RunEvent]:
            created = await orchestration.CreateThread(
                orchestration_pb.CreateThreadRequest(thread=thread_pb2.Thread(subject="kim", agent="keeper"))
            )
            said = content.Message(role=content.ROLE_USER, parts=[content.Part(text=text)])
            turn = orchestration_pb.RunInput(thread_id=created.thread.id, messages=[said])
            replies = orchestration.Converse(orchestration_pb.ConverseRequest(input=turn), timeout=60)
            return [reply.event async for reply in replies]

        told = await converse("My cat is called Ada and she is afraid of thunder.")
        assert told[-1].WhichOneof("event") == "run_completed"
        asked = await converse("What is my cat afraid of?")
        answer = "".join(event.model.event.text_delta.text for event in asked)
        assert "afraid of thunder" in answer
        space = (await memory.GetSpace(memory_pb.GetSpaceRequest(name="default"))).space
        assert space.backend == space_pb2.VECTOR_BACKEND_CHROMA


async def test_openai_clients_are_answered(machine: Machine):
    url = f"http://127.0.0.1:{machine.ports['edge']}/v1"
    async with AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert "hello" in text
