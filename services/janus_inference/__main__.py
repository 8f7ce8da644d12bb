"""Inference as a process of its own: ``python -m janus_inference``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from janus_inference.app import mount
from janus_inference.settings import InferenceSettings
from janus_kit.migrations import migrate
from janus_kit.mount import Mount
from janus_kit.reload import Reloading
from janus_kit.settings import PostgresSettings, RedisSettings
from janus_kit.standalone import main


@asynccontextmanager
async def _build(reloading: Reloading) -> AsyncIterator[Mount]:
    loaded = reloading.loaded
    postgres = loaded.section("postgres", PostgresSettings)
    if postgres.migrate:
        await migrate(postgres, ["janus_kit", "janus_inference"])
    async with mount(
        loaded.section("inference", InferenceSettings),
        postgres=postgres,
        redis=loaded.section("redis", RedisSettings),
        reload=reloading.section("inference", InferenceSettings),
    ) as mounted:
        yield mounted


if __name__ == "__main__":
    main("inference", InferenceSettings, _build)
