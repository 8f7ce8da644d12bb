"""Services over the real stores, as most integration tests want them; a module that wants another one says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from tests.fakes.mcp_shop import Shop
from tests.fakes.memory_service import Memory
from tests.fakes.memory_service import running as running_memory
from tests.fakes.orchestration_service import Caller, Orchestration, Process, processes, running
from tests.fakes.patience import patient_postgres
from tests.fakes.peers.inference_peer import InferencePeer, inference_peer

from janus_kit.postgres import Database, database


@pytest.fixture
async def peer() -> AsyncIterator[InferencePeer]:
    """The inference that `service` and `replicas` ask: a test answers in its name."""
    async with inference_peer() as running_peer:
        yield running_peer


@pytest.fixture
async def service(own_url: str, redis_url: str, peer: InferencePeer) -> AsyncIterator[Orchestration]:
    """Orchestration in this process, over a database of the test's own."""
    async with running(own_url, redis_url, inference_target=peer.target) as serving:
        yield serving


@pytest.fixture
def ann(service: Orchestration) -> Caller:
    """A client of `service`, of a new tenant."""
    return service.caller()


@pytest.fixture
async def replicas(own_url: str, redis_url: str, peer: InferencePeer) -> AsyncIterator[list[Process]]:
    """Two processes of orchestration over a database of the test's own."""
    async with processes(2, own_url, redis_url, inference_target=peer.target) as started:
        yield started


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """An MCP server, not started yet."""
    return Shop(tmp_path)


@pytest.fixture
async def memory(postgres_url: str, redis_url: str, chroma_url: str) -> AsyncIterator[Memory]:
    """Memory in this process, over the module's database."""
    async with running_memory(postgres_url, redis_url, chroma_url=chroma_url) as service:
        yield service


@pytest.fixture
async def owner(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to the module's database."""
    connection = await asyncpg.connect(postgres_url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def db(postgres_url: str) -> AsyncIterator[Database]:
    """The module's database, as services see it."""
    async with database(patient_postgres(postgres_url), application="test") as opened:
        yield opened
