"""Health of a service whose parts are real: frozen or killed, and back without a restart."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack

from pydantic import SecretStr

from janus_kit import redis as kit_redis
from janus_kit.migrations import migrate
from janus_kit.mount import Mount, Part
from janus_kit.postgres import database
from janus_kit.server import serve
from janus_kit.settings import PostgresSettings, RedisSettings, ServerSettings


async def test_health_follows_postgres_and_redis_as_they_go_and_come_back(own_stack, monkeypatch):
    monkeypatch.setattr("janus_kit.health.AWAY_INTERVAL_S", 0.02)
    postgres = PostgresSettings(url=SecretStr(own_stack.addresses.postgres_url))
    await migrate(postgres, [])
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(database(postgres, application="test"))
        cache = await stack.enter_async_context(
            kit_redis.redis(RedisSettings(url=SecretStr(own_stack.addresses.redis_url)))
        )
        parts = (
            Part("postgres", True, db.ping, "nothing is stored"),
            Part("redis", False, lambda: kit_redis.ping(cache), "windows are read from postgres"),
        )
        mount = Mount("memory", lambda server: None, (), parts)
        settings = ServerSettings(listen="127.0.0.1:0", lame_duck_s=0, health_interval_s=0.02)
        host = await stack.enter_async_context(serve([mount], settings))
        states = _States(host.monitor)
        assert await states.next("serving")

        redis_server = own_stack.stack.process_ids["redis"]
        os.kill(redis_server, signal.SIGSTOP)
        assert await states.next("degraded")
        os.kill(redis_server, signal.SIGCONT)
        assert await states.next("serving")
        own_stack.kill("postgres")
        assert await states.next("not_serving")
        assert await states.next("serving")


class _States:
    """Waits for the process to come into a state."""

    def __init__(self, monitor):
        self._monitor = monitor
        self._changed = asyncio.Event()
        monitor.on_change(self._changed.set)

    async def next(self, state):
        async with asyncio.timeout(30):
            while self._monitor.state().value != state:
                self._changed.clear()
                await self._changed.wait()
        return True
