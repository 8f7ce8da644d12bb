"""The embedded stack when processes are killed, with real kills."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest
import redis.asyncio

from janus_app.embedded import EmbeddedError, process
from janus_app.embedded import stack as embedded_stack
from janus_app.embedded.chroma import Chroma
from janus_app.embedded.folder import DataFolder
from janus_app.embedded.part import Part
from janus_app.embedded.postgres import Postgres
from janus_app.embedded.valkey import Valkey

# What the clients say while a server is away.
AWAY = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    httpx.HTTPError,
    redis.exceptions.RedisError,
)
# Runs a stack until SIGTERM, as `janus serve` does; tells its addresses and processes in one line.
HOST = """\
import asyncio, json, signal, sys
from dataclasses import asdict
from pathlib import Path
from janus_app.embedded import EmbeddedError, stack

async def main():
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with stack(Path(sys.argv[1])) as running:
        print(json.dumps(asdict(running.addresses) | {"pids": running.process_ids}), flush=True)
        await stop.wait()

try:
    asyncio.run(main())
except EmbeddedError as error:
    sys.exit(str(error))
"""


class Host:
    """A stack in a process of its own."""

    def __init__(self, data: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", HOST, str(data)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.postgres_url: str = self.said["postgres_url"]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def hosts() -> Iterator[Callable[[Path], Host]]:
    started: list[Host] = []

    def start(data: Path) -> Host:
        started.append(Host(data))
        return started[-1]

    yield start
    for host in started:
        if host.process.poll() is None:
            host.end(signal.SIGKILL)


def working_in(data: Path) -> list[psutil.Process]:
    """Every living process that has to do with the folder, by its working directory or command line."""
    found = []
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if candidate.status() == psutil.STATUS_ZOMBIE or candidate.pid == os.getpid():
                continue
            if str(data) in candidate.cwd() or any(str(data) in word for word in candidate.cmdline()):
                found.append(candidate)
    return found


async def eventually(attempt: Callable[[], Awaitable[bool]], within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while True:
        with contextlib.suppress(OSError, *AWAY):
            if await attempt():
                return
        assert time.monotonic() < deadline, "it did not come back"
        await asyncio.sleep(0.02)


async def execute(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_killed_postgres_comes_back_on_its_port_with_what_was_committed(own_stack):
    url = own_stack.addresses.postgres_url
    bystander = await asyncpg.connect(url)
    await execute(url, "CREATE TABLE kept (number int)")
    for number in range(2):
        await execute(url, f"INSERT INTO kept VALUES ({number})")
        killed = own_stack.kill("postgres")

        async def is_back(expected: int = number + 1) -> bool:
            return await execute(url, "SELECT count(*) FROM kept") == expected

        await eventually(is_back)
        assert own_stack.stack.process_ids["postgres"] != killed
    with pytest.raises((OSError, *AWAY)):
        await bystander.fetchval("SELECT 1")


async def test_a_statement_that_a_killed_postgres_worked_on_is_lost_and_did_not_take_too_long(own_stack):
    connection = await asyncpg.connect(own_stack.addresses.postgres_url)
    at_work = asyncio.create_task(connection.fetchval("SELECT count(*) FROM generate_series(1, 10_000_000_000)"))
    await asyncio.sleep(0.2)
    own_stack.kill("postgres")
    with pytest.raises((OSError, *AWAY)) as raised:
        await at_work
    assert not isinstance(raised.value, asyncpg.QueryCanceledError)


async def test_killed_valkey_and_chroma_come_back_on_their_ports_with_their_data(own_stack):
    async with redis.asyncio.Redis.from_url(own_stack.addresses.redis_url) as client:
        await client.set("kept", "1")
        own_stack.kill("redis")

        async def has_the_key() -> bool:
            return await client.get("kept") == b"1"

        await eventually(has_the_key)
    async with httpx.AsyncClient(base_url=own_stack.addresses.chroma_url) as client:
        assert (await client.post("/api/v2/tenants", json={"name": "kept"})).status_code == 200
        own_stack.kill("chroma")

        async def has_the_tenant() -> bool:
            return (await client.get("/api/v2/tenants/kept")).status_code == 200

        await eventually(has_the_tenant)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_normal_stop_leaves_no_process(tmp_path: Path, hosts: Callable[[Path], Host], number: signal.Signals):
    host = hosts(tmp_path / "data")
    assert len(working_in(tmp_path)) > 3
    assert host.end(number) == 0
    assert working_in(tmp_path) == []


async def test_after_kill_9_of_the_parent_the_next_start_has_the_data_and_no_stray_remains(
    tmp_path: Path, hosts: Callable[[Path], Host]
):
    data = tmp_path / "data"
    first = hosts(data)
    await execute(first.postgres_url, "CREATE TABLE kept AS SELECT 42 AS answer")
    first.end(signal.SIGKILL)
    second = hosts(data)  # at once, while the servers of the first are still going down
    assert second.postgres_url == first.postgres_url
    assert await execute(second.postgres_url, "SELECT answer FROM kept") == 42
    strays = {found.pid for found in working_in(tmp_path)} & set(first.said["pids"].values())
    assert strays == set()
    assert second.end(signal.SIGTERM) == 0
    assert working_in(tmp_path) == []


async def test_after_kill_9_of_everything_at_once_the_next_start_has_the_data(
    tmp_path: Path, hosts: Callable[[Path], Host]
):
    data = tmp_path / "data"
    first = hosts(data)
    await execute(first.postgres_url, "CREATE TABLE kept AS SELECT 42 AS answer")
    for found in working_in(tmp_path):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.kill()
    first.process.wait()
    async with embedded_stack(data) as second:
        assert await execute(second.addresses.postgres_url, "SELECT answer FROM kept") == 42


async def test_servers_left_running_are_stopped_before_the_start(tmp_path: Path):
    """As after a kill of the parent whose notice by the kernel never came."""
    data = tmp_path / "data"
    async with embedded_stack(data) as first:
        ports = {name: int(url.rpartition(":")[2].split("/")[0]) for name, url in _urls(first.addresses).items()}
    folder = DataFolder(data)
    left: list[asyncio.subprocess.Process] = []
    parts: list[Part] = [make(folder, ports[make.name]) for make in (Postgres, Valkey, Chroma)]
    for part in parts:
        await part.prepare()
        part.clear()
        left.append(await process.start(replace(part.command(), death_signal=0)))
        await eventually(part.ready)
    async with embedded_stack(data) as second:
        assert second.addresses == first.addresses
        assert all(server.returncode is not None for server in left)
        assert not {server.pid for server in left} & set(second.process_ids.values())
    assert working_in(tmp_path) == []


async def test_a_stranger_working_in_a_data_folder_is_left_alone(tmp_path: Path):
    data = tmp_path / "data"
    async with embedded_stack(data):
        pass
    strangers = [
        await asyncio.create_subprocess_exec("sleep", "60", cwd=data / name) for name in ("postgres", "redis", "chroma")
    ]
    # An id that was the server's before the machine was started again.
    (data / "postgres" / "postmaster.pid").write_text(f"{strangers[0].pid}\n{data}\n", encoding="utf-8")
    try:
        async with embedded_stack(data) as running:
            assert await execute(running.addresses.postgres_url, "SELECT 1") == 1
        assert [stranger.returncode for stranger in strangers] == [None] * 3
    finally:
        for stranger in strangers:
            stranger.kill()
            await stranger.wait()


async def test_an_initialisation_that_was_cut_off_is_done_anew(tmp_path: Path):
    data = tmp_path / "data"
    (data / "postgres.unfinished" / "base").mkdir(parents=True)
    async with embedded_stack(data, redis_url="redis://x", chroma=False) as running:
        assert await execute(running.addresses.postgres_url, "SELECT 1") == 1
    assert not (data / "postgres.unfinished").exists()


async def test_a_lost_password_file_is_made_anew(tmp_path: Path):
    data = tmp_path / "data"
    async with embedded_stack(data, redis_url="redis://x", chroma=False) as running:
        before = running.addresses.postgres_url
    (data / "secrets" / "postgres").unlink()
    async with embedded_stack(data, redis_url="redis://x", chroma=False) as running:
        assert running.addresses.postgres_url != before
        assert await execute(running.addresses.postgres_url, "SELECT 1") == 1


async def test_data_of_another_postgres_version_is_refused_untouched(tmp_path: Path):
    cluster = tmp_path / "data" / "postgres"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("16\n", encoding="ascii")
    with pytest.raises(EmbeddedError, match="made by Postgres 16") as refused:
        async with embedded_stack(tmp_path / "data", redis_url="redis://x", chroma=False):
            pass
    assert "pg_dump" in refused.value.fix
    assert [file.name for file in cluster.iterdir()] == ["PG_VERSION"]


async def test_a_server_that_cannot_start_says_why_and_stops_the_others(tmp_path: Path):
    (tmp_path / "data" / "chroma").mkdir(parents=True)
    (tmp_path / "data" / "chroma" / "chroma.sqlite3").write_text("this is no database" * 100, encoding="ascii")
    with pytest.raises(EmbeddedError, match="the embedded Chroma"):
        async with embedded_stack(tmp_path / "data"):
            pass
    assert working_in(tmp_path) == []


async def test_a_damaged_append_only_file_is_set_aside(tmp_path: Path):
    data = tmp_path / "data"
    async with (
        embedded_stack(data, postgres_url="postgresql://x", chroma=False) as running,
        redis.asyncio.Redis.from_url(running.addresses.redis_url) as client,
    ):
        await client.set("lost", "1")
    for file in (data / "redis" / "appendonlydir").glob("*.incr.aof"):
        file.write_bytes(b"garbage" + file.read_bytes())
    async with (
        embedded_stack(data, postgres_url="postgresql://x", chroma=False) as running,
        redis.asyncio.Redis.from_url(running.addresses.redis_url) as client,
    ):
        assert await client.get("lost") is None
    assert list((data / "redis").glob("appendonlydir.damaged-*"))


def _urls(addresses: Any) -> dict[str, str]:
    return {"postgres": addresses.postgres_url, "redis": addresses.redis_url, "chroma": addresses.chroma_url}
