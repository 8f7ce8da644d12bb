"""The composition root of a whole mesh in one process: stores, services, edge."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from janus_app.embedded import Addresses, Stack, stack
from janus_app.embedded.login import service_url
from janus_kit.migrations import migrate
from janus_kit.mount import Mount
from janus_kit.reload import Reloading
from janus_kit.server import check_listen, serve
from janus_kit.settings import Loaded, PostgresSettings, RedisSettings, ServerSettings, TelemetrySettings

SERVICES = ("inference", "memory", "orchestration", "edge")
STORED = frozenset({"inference", "memory", "orchestration"})
"""Services that keep something in Postgres and Redis."""
POSTGRES_WAIT_S = 30.0
"""How long a configured Postgres may be away when the mesh starts."""


@dataclass(frozen=True)
class Stores:
    """Where the services find what they keep."""

    postgres: PostgresSettings
    redis: RedisSettings
    chroma_url: str | None

    def at(self, addresses: Addresses) -> Stores:
        """The same settings at these addresses."""
        return Stores(
            self.postgres.model_copy(update={"url": SecretStr(addresses.postgres_url)}),
            self.redis.model_copy(update={"url": SecretStr(addresses.redis_url)}),
            addresses.chroma_url,
        )


@dataclass(frozen=True)
class Mesh:
    """What is running and where it listens; an address is empty where nothing does."""

    services: tuple[str, ...]
    grpc: str
    http: str
    data: Path


@asynccontextmanager
async def running(reloading: Reloading, data: Path, services: Sequence[str] = SERVICES) -> AsyncIterator[Mesh]:
    """Start everything that `services` need, in order; stop it in reverse.

    The services of one mesh call each other through a Unix socket, as they would through TCP when
    they are apart; a service that is not here is looked for where its settings say. A store whose URL
    is configured is used as it is, the others are started here, on the data folder. Services that can
    follow changes of the settings do, while `reloading` is watched.
    Raises EmbeddedError, ListenError, MigrationError, and Unavailable when a configured Postgres is away.
    """
    settings = reloading.loaded
    async with AsyncExitStack() as parts:
        if set(services) - {"edge"}:
            check_listen(settings.section("server", ServerSettings))
        stored = [name for name in services if name in STORED]
        stores = Stores(settings["postgres"], settings["redis"], settings["memory"].chroma_url)
        embedded: Stack | None = None
        if stored:
            embedded = await parts.enter_async_context(
                stack(
                    data,
                    postgres_url=configured(settings, "postgres.url"),
                    redis_url=configured(settings, "redis.url"),
                    chroma_url=stores.chroma_url,
                    chroma="memory" in services,
                )
            )
            stores = stores.at(embedded.addresses)
            packages = [f"janus_{name}" for name in stored]
            if stores.postgres.migrate:
                await migrate(stores.postgres, packages, wait_s=POSTGRES_WAIT_S)
            if configured(settings, "postgres.url") is None:
                stores = stores.at(
                    replace(embedded.addresses, postgres_url=await service_url(embedded.addresses.postgres_url))
                )
        server = settings.section("server", ServerSettings)
        if embedded is not None and server.uds is None:
            server = server.model_copy(update={"uds": str(embedded.socket)})
        target = f"unix:{server.uds}" if server.uds else None
        mounts = [
            await parts.enter_async_context(mount)
            for mount in _mounts(reloading, stores, {name: target for name in services if target}, services)
        ]
        telemetry = settings.section("telemetry", TelemetrySettings)
        grpc_address, http_address = "", ""
        if mounts:
            host = await parts.enter_async_context(serve(mounts, server, telemetry=telemetry))
            grpc_address = host.address or ""
            if embedded is not None:
                embedded.publish(grpc=grpc_address)
        if "edge" in services:
            # Imported here: FastAPI takes longer to import than the services take to start.
            from janus_edge.app import server as edge

            serving = await parts.enter_async_context(
                edge(settings["edge"], (target or grpc_address) if mounts else None)
            )
            http_address = serving.address
            if embedded is not None:
                embedded.publish(http=http_address)
        yield Mesh(services=tuple(services), grpc=grpc_address, http=http_address, data=data)


def _mounts(
    reloading: Reloading, stores: Stores, here: Mapping[str, str], services: Sequence[str]
) -> Iterator[AbstractAsyncContextManager[Mount]]:
    """The services' mounts; each service's code is imported only when it is wanted."""
    settings = reloading.loaded

    def targets(section: Any) -> Any:
        """The section with the targets of services that run here."""
        fields = {
            f"{name}_target": target for name, target in here.items() if f"{name}_target" in type(section).model_fields
        }
        return section.model_copy(update=fields)

    if "inference" in services:
        from janus_inference.app import mount as inference
        from janus_inference.settings import InferenceSettings

        yield inference(
            settings["inference"],
            postgres=stores.postgres,
            redis=stores.redis,
            reload=reloading.section("inference", InferenceSettings),
        )
    if "memory" in services:
        from janus_memory.app import mount as memory

        section = targets(settings["memory"]).model_copy(update={"chroma_url": stores.chroma_url})
        yield memory(section, postgres=stores.postgres, redis=stores.redis)
    if "orchestration" in services:
        from janus_orchestration.app import mount as orchestration

        yield orchestration(targets(settings["orchestration"]), postgres=stores.postgres, redis=stores.redis)


def configured(settings: Loaded, path: str) -> str | None:
    """A store's URL when somebody set it; None where the mesh starts the store itself."""
    if settings.origin(path) == "default":
        return None
    section, _, key = path.partition(".")
    return str(getattr(settings[section], key).get_secret_value())
