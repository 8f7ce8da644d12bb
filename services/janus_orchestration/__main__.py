"""Orchestration as a process of its own: ``python -m janus_orchestration``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from janus_kit.migrations import migrate
from janus_kit.mount import Mount
from janus_kit.reload import Reloading
from janus_kit.settings import PostgresSettings, RedisSettings
from janus_kit.standalone import main
from janus_orchestration.app import mount
from janus_orchestration.settings import OrchestrationSettings


@asynccontextmanager
async def _build(reloading: Reloading) -> AsyncIterator[Mount]:
    loaded = reloading.loaded
    postgres = loaded.section("postgres", PostgresSettings)
    if postgres.migrate:
        await migrate(postgres, ["janus_kit", "janus_orchestration"])
    async with mount(
        loaded.section("orchestration", OrchestrationSettings),
        postgres=postgres,
        redis=loaded.section("redis", RedisSettings),
    ) as mounted:
        yield mounted


if __name__ == "__main__":
    main("orchestration", OrchestrationSettings, _build)
