"""`python -m janus_edge` as it runs in production: Gunicorn, several workers, signals."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import psutil
import pytest
from tests.fakes.providers.inference_service import inference_on

from janus_inference.settings import InferenceSettings
from janus_kit.server import serve
from janus_kit.settings import ServerSettings

ASK = {"model": "scripted/rehearsal", "stream": True}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def target(postgres_url: str, redis_url: str) -> AsyncIterator[str]:
    async with (
        inference_on(postgres_url, redis_url, InferenceSettings(scripted_pace_ms=0)) as mounted,
        serve([mounted], ServerSettings(listen="127.0.0.1:0", drain_s=0)) as host,
    ):
        assert host.address is not None
        yield host.address


class Process:
    """The arbiter with its workers."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    async def up(self) -> None:
        async with asyncio.timeout(60), httpx2.AsyncClient(trust_env=False, verify=False) as client:
            while True:
                assert self.process.returncode is None, "it ended"
                try:
                    if (await client.get(f"{self.url}/readyz")).status_code == 200:
                        return
                except httpx2.TransportError:
                    pass
                await asyncio.sleep(0.1)


@asynccontextmanager
async def running(**settings: str) -> AsyncIterator[Process]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JANUS_", "PROMETHEUS_"))}
    port = free_port()
    environment = {**inherited, "JANUS_EDGE__LISTEN": f"127.0.0.1:{port}"}
    environment |= {f"JANUS_EDGE__{name.upper()}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "janus_edge", env=environment, stderr=subprocess.DEVNULL
    )
    edge = Process(process, f"http://127.0.0.1:{port}")
    try:
        await edge.up()
        yield edge
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 60)


async def test_requests_in_flight_are_finished_on_sigterm_and_it_ends_well(target: str):
    question = [{"role": "user", "content": "/pace 20\n/long 60"}]
    async with (
        running(target=target, workers="2", drain_s="30") as edge,
        httpx2.AsyncClient(trust_env=False, verify=False) as client,
    ):
        async with client.stream("POST", f"{edge.url}/v1/chat/completions", json={**ASK, "messages": question}) as got:
            lines = got.aiter_lines()
            await anext(lines)
            edge.process.send_signal(signal.SIGTERM)
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert "word60" in "".join(rest)
        assert await asyncio.wait_for(edge.process.wait(), 60) == 0


async def test_metrics_are_of_all_workers(target: str):
    async with running(target=target, workers="2") as edge:
        for _ in range(10):
            # A connection each, so that both workers get some.
            async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
                assert (await client.get(f"{edge.url}/livez")).status_code == 200
        async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
            text = (await client.get(f"{edge.url}/metrics")).text
        assert len(edge.workers()) == 2
    assert 'janus_edge_requests_total{method="GET",route="/livez",status="200"} 10.0' in text


async def test_a_worker_that_is_killed_is_replaced_and_workers_follow_a_killed_arbiter(target: str):
    async with running(target=target, workers="1") as edge:
        (first,) = edge.workers()
        first.kill()
        async with asyncio.timeout(60):
            while not (found := [each for each in edge.workers() if each.pid != first.pid]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await edge.up()
        edge.process.kill()
        await edge.process.wait()
        gone, alive = await asyncio.to_thread(psutil.wait_procs, found, 60)
        assert (len(gone), alive) == (1, [])


async def test_settings_that_are_wrong_are_said_in_words():
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "janus_edge",
        env={**os.environ, "JANUS_EDGE__LISTEN": "0.0.0.0:8080", "JANUS_EDGE__WORKER": "2"},
        stderr=subprocess.PIPE,
    )
    _, complaint = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    text = complaint.decode()
    assert "edge.worker: unknown key, did you mean 'workers'?" in text
    assert "Traceback" not in text
