"""Run memory alone: ``python -m janus_memory``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from janus_kit.migrations import migrate
from janus_kit.mount import Mount
from janus_kit.reload import Reloading
from janus_kit.settings import PostgresSettings, RedisSettings
from janus_kit.standalone import main
from janus_memory.app import mount
from janus_memory.settings import MemorySettings


@asynccontextmanager
async def _build(reloading: Reloading) -> AsyncIterator[Mount]:
    loaded = reloading.loaded
    postgres = loaded.section("postgres", PostgresSettings)
    if postgres.migrate:
        await migrate(postgres, ["janus_kit", "janus_memory"])
    async with mount(
        loaded.section("memory", MemorySettings),
        postgres=postgres,
        redis=loaded.section("redis", RedisSettings),
    ) as mounted:
        yield mounted


if __name__ == "__main__":
    main("memory", MemorySettings, _build)
