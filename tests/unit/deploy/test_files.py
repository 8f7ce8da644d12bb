"""The small files beside compose.yaml, run for real where their programs come as wheels."""

import asyncio
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import grpc
import pytest
import yaml
from redis import AuthenticationError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from janus_app.embedded import binaries
from janus_kit.mount import Mount
from janus_kit.server import serve
from janus_kit.settings import ServerSettings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_prometheus_reads_every_service_where_it_has_metrics(deploy: Path, services: dict[str, Any]):
    jobs = yaml.safe_load((deploy / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    found = {}
    for job in jobs:
        for each in job.get("dns_sd_configs", []):
            found[job["job_name"]] = (each["names"][0], each["port"])
        for each in job.get("static_configs", []):
            host, _, port = each["targets"][0].partition(":")
            found[job["job_name"]] = (host, int(port))
    assert found.pop("prometheus") == ("localhost", 9090)
    assert set(found) == {"inference", "memory", "orchestration", "edge"}
    for job, (host, port) in found.items():
        assert job == host
        environment = services[host]["environment"]
        listen = environment.get("JANUS_TELEMETRY__METRICS_LISTEN") or environment["JANUS_EDGE__LISTEN"]
        assert listen == f"0.0.0.0:{port}"
        assert set(services[host]["networks"]) & set(services["prometheus"]["networks"]) - {"public"}
    assert '"edge"' in services["edge"]["environment"]["JANUS_EDGE__ALLOWED_HOSTS"]


def test_secrets_are_made_once_and_for_the_owner_only(deploy: Path, tmp_path: Path):
    folder = tmp_path / "secrets"
    script = [deploy / "make-secrets.sh", folder]
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL, timeout=30)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL, timeout=30)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    passwords = {first[name] for name in ("postgres_admin_password", "postgres_service_password", "redis_password")}
    assert len(passwords) == 3
    assert all(len(password) == 48 for password in passwords)
    assert first["janus_redis_url"] == b"redis://:" + first["redis_password"] + b"@redis:6379/0"


async def test_the_services_user_may_take_its_roles_and_owns_nothing(
    deploy: Path, postgres_url: str, secrets: Path, tmp_path: Path
):
    script = (deploy / "postgres/10-janus-service.sh").read_text()
    # Roles belong to the whole cluster: the user gets another name, Janus's roles are made if missing.
    user = f"deploy_{os.getpid()}"
    script = script.replace("/run/secrets", str(secrets)).replace("janus_service", user)
    script = re.sub(r"(CREATE ROLE janus_(?:app|worker) .*);", r"SELECT $$\1$$ \\gexec", script)
    script = script.replace("--set=ON_ERROR_STOP=1 ", "")
    (tmp_path / "init.sh").write_text(script)
    at = urlsplit(postgres_url)
    environment = {
        "PATH": f"{binaries.postgres_programs().bin}:{os.environ['PATH']}",
        "POSTGRES_USER": at.username or "",
        "POSTGRES_DB": at.path.strip("/"),
        "PGHOST": at.hostname or "",
        "PGPORT": str(at.port),
        "PGPASSWORD": at.password or "",
    }
    run = await asyncio.create_subprocess_exec("sh", tmp_path / "init.sh", env=environment, stderr=subprocess.PIPE)
    _, complaints = await asyncio.wait_for(run.communicate(), 30)
    assert not [line for line in complaints.decode().splitlines() if "ERROR" in line and "already exists" not in line]
    password = (secrets / "postgres_service_password").read_text()
    admin = await asyncpg.connect(postgres_url)
    try:
        service = await asyncpg.connect(postgres_url, user=user, password=password)
        for role in ("janus_app", "janus_worker"):
            await service.execute(f"SET ROLE {role}")
        await service.execute("RESET ROLE")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute("CREATE SCHEMA mine")
        row = await service.fetchrow(
            "SELECT rolsuper, rolcreaterole, rolbypassrls, rolinherit FROM pg_roles WHERE rolname = $1", user
        )
        await service.close()
        assert not any(row.values())
    finally:
        await admin.execute(f'DROP ROLE "{user}"')
        await admin.close()


@pytest.fixture
async def redis_port(deploy: Path, secrets: Path, tmp_path: Path) -> AsyncIterator[int]:
    """A server with the deployment's redis.conf; only its folders are elsewhere."""
    conf = (deploy / "redis/redis.conf").read_text()
    conf = conf.replace("/run/secrets", str(secrets)).replace("dir /data", f"dir {tmp_path}")
    port = free_port()
    conf = conf.replace("port 6379", f"port {port}").replace("bind * -::*", "bind 127.0.0.1")
    (tmp_path / "redis.conf").write_text(conf)
    server = await asyncio.create_subprocess_exec(
        binaries.valkey_server(), tmp_path / "redis.conf", stdout=subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        server.terminate()
        await server.wait()


async def test_redis_starts_with_its_configuration_and_wants_the_password(redis_port: int, secrets: Path):
    password = (secrets / "redis_password").read_text()
    async with Redis(port=redis_port, password=password) as client, asyncio.timeout(20):
        while True:
            try:
                assert await client.ping()
                break
            except RedisConnectionError:
                await asyncio.sleep(0.05)
        assert (await client.config_get("appendonly"))["appendonly"] == "yes"
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "volatile-lru"
    async with Redis(port=redis_port, retry=Retry(NoBackoff(), 0)) as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.ping()


async def probe(deploy: Path, address: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, deploy / "docker/probe.py", address, stderr=subprocess.PIPE
    )
    _, complaint = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, complaint.decode()


async def test_the_probe_says_whether_a_service_serves(deploy: Path):
    def register(host: grpc.aio.Server) -> None:
        pass

    mount = Mount("status-only", register, ())
    async with serve([mount], ServerSettings(listen="127.0.0.1:0", drain_s=0)) as host:
        assert await probe(deploy, f"grpc://{host.address}/janus.common.v1.StatusService") == (0, "")
        assert await probe(deploy, f"grpc://{host.address}") == (0, "")
        status, complaint = await probe(deploy, f"grpc://{host.address}/janus.memory.v1.MemoryService")
        assert (status, "NOT_FOUND" in complaint) == (1, True)
    status, complaint = await probe(deploy, f"http://127.0.0.1:{free_port()}/readyz")
    assert status == 1
    assert "refused" in complaint
