"""compose.yaml as a file: valid, complete, closed, and in step with the settings. No engine runs it."""

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from janus_edge.settings import EdgeSettings
from janus_inference.settings import InferenceSettings
from janus_kit.settings import (
    Loaded,
    PostgresSettings,
    RedisSettings,
    ServerSettings,
    Settings,
    TelemetrySettings,
    load,
)
from janus_memory.settings import MemorySettings
from janus_orchestration.settings import OrchestrationSettings

# The part of the Compose Specification that the file needs.
TOP_LEVEL_KEYS = {"name", "networks", "secrets", "services", "volumes"}
SERVICE_KEYS = {
    *("build", "cap_drop", "command", "depends_on", "deploy", "entrypoint", "environment", "healthcheck", "image"),
    *("logging", "networks", "ports", "pull_policy", "read_only", "restart", "secrets", "security_opt", "shm_size"),
    *("stop_grace_period", "stop_signal", "tmpfs", "user", "volumes"),
}

OURS = ("migrate", "inference", "memory", "orchestration", "edge")
STORES = ("postgres", "redis", "chroma")
# What each process reads, as its __main__ says.
COMMON: Mapping[str, type[Settings]] = {
    "server": ServerSettings,
    "telemetry": TelemetrySettings,
    "postgres": PostgresSettings,
    "redis": RedisSettings,
}
SECTIONS: Mapping[str, Mapping[str, type[Settings]]] = {
    "migrate": {"postgres": PostgresSettings, "telemetry": TelemetrySettings},
    "inference": {**COMMON, "inference": InferenceSettings},
    "memory": {**COMMON, "memory": MemorySettings},
    "orchestration": {**COMMON, "orchestration": OrchestrationSettings},
    "edge": {"edge": EdgeSettings, "telemetry": TelemetrySettings},
}


@pytest.fixture
def loaded(services: dict[str, Any], secrets: Path, tmp_path: Path) -> dict[str, Loaded]:
    """The settings that each process would find in its container."""
    found = {}
    for name in OURS:
        folder = tmp_path / name
        folder.mkdir()
        for secret in services[name].get("secrets", []):
            source, target = (secret, secret) if isinstance(secret, str) else (secret["source"], secret["target"])
            (folder / target).write_text((secrets / source).read_text())
        environment = services[name]["environment"]
        mounted = environment.get("JANUS_SECRETS_DIR")
        assert mounted in (None, "/run/secrets")
        assert (mounted is not None) == ("secrets" in services[name]), f"{name}: the folder is there with secrets only"
        found[name] = load(SECTIONS[name], environ=environment, secrets_dir=folder if mounted else None)
    return found


def test_its_keys_are_those_of_compose(compose: dict[str, Any], services: dict[str, dict[str, Any]]):
    assert {key for key in compose if not key.startswith("x-")} <= TOP_LEVEL_KEYS
    assert {key for service in services.values() for key in service} <= SERVICE_KEYS


def test_compose_itself_accepts_it(deploy: Path):
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not on this machine; the other tests check the file without it")
    subprocess.run(
        [docker, "compose", "-f", deploy / "compose.yaml", "config", "--quiet"],
        check=True,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", OURS)
def test_each_command_is_a_module_that_exists(services: dict[str, Any], name: str):
    python, dash_m, module = services[name]["entrypoint"]
    assert (python, dash_m) == ("python", "-m")
    assert importlib.util.find_spec(f"{module}.__main__") is not None
    for package in services[name].get("command", []):
        assert importlib.util.find_spec(package) is not None


def test_every_variable_sets_something(loaded: dict[str, Loaded]):
    """Loading refuses unknown names; these values are what the deployment is for."""
    for name in ("inference", "memory", "orchestration"):
        server = loaded[name].section("server", ServerSettings)
        assert server.listen == "0.0.0.0:50051"
        assert server.allow_remote_development
    assert loaded["memory"]["memory"].default_backend == "chroma"
    assert loaded["memory"]["memory"].chroma_url == "http://chroma:8000"
    assert loaded["edge"].section("edge", EdgeSettings).workers == 2
    assert loaded["inference"]["inference"].openai_api_key.get_secret_value() == "sk-test"
    assert loaded["inference"]["inference"].anthropic_api_key is None


def test_credentials_come_from_secrets_and_only_where_they_are_needed(
    loaded: dict[str, Loaded], services: dict[str, Any]
):
    for name in ("memory", "orchestration"):
        for path in ("postgres.url", "redis.url"):
            assert loaded[name].origin(path) == "secret"
        assert "janus_service:" in loaded[name]["postgres"].url.get_secret_value()
        assert not loaded[name]["postgres"].migrate
    assert "postgres:" in loaded["migrate"]["postgres"].url.get_secret_value()
    owners = [name for name in OURS if "janus_postgres_admin_url" in str(services[name].get("secrets"))]
    assert owners == ["migrate"]
    assert "secrets" not in services["edge"]
    for name, service in services.items():
        for variable in service.get("environment", {}):
            secretive = re.search(r"PASSWORD|KEY|TOKEN|SECRET", variable)
            assert not secretive or variable.endswith(("_FILE", "_DIR")), f"{name}: {variable}"


def test_secrets_are_declared_used_and_made(compose: dict[str, Any], services: dict[str, Any], secrets: Path):
    used = {
        secret if isinstance(secret, str) else secret["source"]
        for service in services.values()
        for secret in service.get("secrets", [])
    }
    assert used == set(compose["secrets"])
    assert {path.name for path in secrets.iterdir()} == used
    for name, secret in compose["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}


def test_addresses_name_containers_that_are_reachable_and_listen_there(
    loaded: dict[str, Loaded], services: dict[str, Any]
):
    ports = {"postgres": "5432", "redis": "6379", "chroma": "8000", "edge": "8080"}
    seen = set()
    for name in OURS:
        values = json.dumps(loaded[name].masked())
        # Without the credentials, which look like host:port themselves.
        values += "".join(
            "//" + loaded[name][section].url.get_secret_value().rpartition("@")[2]
            for section in ("postgres", "redis")
            if section in SECTIONS[name] and loaded[name].origin(f"{section}.url") == "secret"
        )
        for host, port in re.findall(r"//([a-z]+):(\d+)", values):
            seen.add((name, host))
            assert port == ports.get(host, "50051"), f"{name} -> {host}"
            shared = set(services[name]["networks"]) & set(services[host]["networks"])
            assert shared - {"public"}, f"{name} and {host} share no internal network"
    assert {host for _, host in seen} >= {"postgres", "redis", "chroma", "inference", "memory", "orchestration"}


def test_ports_are_published_on_loopback_only_and_only_by_those_meant_to(services: dict[str, Any]):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"inference", "memory", "orchestration", "edge", "prometheus"}
    for ports in published.values():
        for port in ports:
            assert port.startswith("127.0.0.1:")
    hosts = [port.split(":")[1] for ports in published.values() for port in ports]
    assert len(set(hosts)) == len(hosts)


def test_networks_of_services_and_stores_have_no_way_out(compose: dict[str, Any], services: dict[str, Any]):
    assert compose["networks"]["mesh"]["internal"] is True
    assert compose["networks"]["stores"]["internal"] is True
    for name in (*STORES, "migrate"):
        assert services[name]["networks"] == ["stores"]
    for name in ("edge", "prometheus"):
        assert "stores" not in services[name]["networks"]


def test_every_container_is_confined(services: dict[str, Any]):
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert "privileged" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        limits = service["deploy"]["resources"]["limits"]
        assert set(limits) == {"cpus", "memory", "pids"}, name
        assert service["logging"]["options"]["max-size"], name
        assert service["restart"] in ("unless-stopped", "on-failure:5"), name
        if name != "chroma":  # its image has no other user
            assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), name


def test_every_container_says_how_it_is(services: dict[str, Any]):
    for name, service in services.items():
        check = service["healthcheck"]
        if name == "migrate":
            assert check == {"disable": True}
            continue
        assert check["test"][0] in ("CMD", "CMD-SHELL"), name
        assert {"interval", "timeout", "retries", "start_period"} <= set(check), name
    for name in ("inference", "memory", "orchestration"):
        service = f"janus.{name}.v1.{name.capitalize()}Service"
        assert services[name]["healthcheck"]["test"][-1] == f"grpc://127.0.0.1:50051/{service}"


def test_the_schema_is_there_before_a_service_starts(services: dict[str, Any]):
    for name in ("inference", "memory", "orchestration"):
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["migrate"]["command"] == ["janus_inference", "janus_memory", "janus_orchestration"]


def test_nothing_waits_for_itself(services: dict[str, Any]):
    def below(name: str, path: tuple[str, ...] = ()) -> None:
        assert name not in path, f"{' -> '.join((*path, name))}"
        for other in services[name].get("depends_on", {}):
            below(other, (*path, name))

    for name in services:
        below(name)


def test_containers_get_longer_to_stop_than_processes_take(services: dict[str, Any], loaded: dict[str, Loaded]):
    for name in OURS:
        grace = int(services[name]["stop_grace_period"].removesuffix("s"))
        for section, field in (("server", "drain_s"), ("edge", "drain_s")):
            if section in SECTIONS[name]:
                assert grace > getattr(loaded[name][section], field)


def test_images_are_pinned(services: dict[str, Any], lock: dict[str, str]):
    for name, service in services.items():
        image, _, tag = service["image"].partition(":")
        assert tag, name
        assert tag != "latest", name
        if image == "chromadb/chroma":
            assert tag == lock["chromadb"], "server and client of Chroma are of one version"
    assert [name for name in services if "build" in services[name]] == ["migrate"]


def test_files_and_volumes_that_are_mounted_exist(compose: dict[str, Any], services: dict[str, Any], deploy: Path):
    for service in services.values():
        for volume in service.get("volumes", []):
            source, _, mode = volume.partition(":")[0], *volume.partition(":")[1:]
            if source.startswith("."):
                assert (deploy / source).is_file()
                assert mode.endswith(":ro")
            else:
                assert source in compose["volumes"]
    build = services["migrate"]["build"]
    assert (deploy / build["context"] / build["dockerfile"]).is_file()
    # Where the image of Postgres 18 keeps its data; elsewhere it would be lost with the container.
    assert "postgres:/var/lib/postgresql" in services["postgres"]["volumes"]


def test_the_consent_to_open_listeners_comes_with_a_warning(deploy: Path):
    text = (deploy / "compose.yaml").read_text()
    assert "CALLERS ARE NOT IDENTIFIED IN THIS VERSION" in text.split("services:", 1)[0]
    for line in re.findall(r"(.*)\n.*ALLOW_REMOTE_DEVELOPMENT: ", text):
        assert "See the warning at the top." in line
