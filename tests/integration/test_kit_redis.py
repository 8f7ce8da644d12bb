"""The Redis factory against a real server."""

import asyncio
import os
import signal
import socket
import time
from contextlib import suppress

import pytest
from pydantic import SecretStr
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from janus_kit.errors import Unavailable
from janus_kit.redis import answering, key, ping, redis
from janus_kit.settings import RedisSettings


async def test_values_are_kept_under_a_tenants_key(redis_url):
    async with redis(RedisSettings(url=SecretStr(redis_url))) as client:
        await client.set(key("acme", "window", "thr_1"), b"text")
        assert await client.get("janus:{acme}:window:thr_1") == b"text"
        await ping(client)


def test_keys_of_one_tenant_share_a_cluster_slot_and_no_other_tenants_key():
    assert key("acme", "a", "b") == "janus:{acme}:a:b"
    assert key("acme", "a") != key("globex", "a")


async def test_redis_that_is_away_is_an_error_that_callers_can_name():
    async with redis(RedisSettings(url=SecretStr("redis://127.0.0.1:1"))) as client:
        with pytest.raises(RedisError):
            await client.get("key")
        with pytest.raises(Unavailable) as raised:
            await ping(client)
    assert raised.value.metadata == {"part": "redis"}


async def test_a_server_that_says_nothing_is_given_up():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        settings = RedisSettings(url=SecretStr(url), socket_timeout_s=0.05, connect_timeout_s=0.05)
        async with redis(settings) as client, asyncio.timeout(5):
            with pytest.raises(RedisError):
                await client.get("key")


@pytest.mark.parametrize("met", [ResponseError("no"), OSError("cut"), TimeoutError()])
async def test_what_keeps_redis_from_answering_becomes_the_caller_s_own_error(met):
    with pytest.raises(LookupError, match=type(met).__name__):
        async with answering(5, LookupError):
            raise met


async def test_a_call_that_takes_too_long_is_given_up_as_away():
    with pytest.raises(LookupError, match="TimeoutError"):
        async with answering(0.01, LookupError):
            await asyncio.Event().wait()


async def test_a_process_that_stood_still_takes_the_answer_that_came_meanwhile(redis_url):
    async with redis(RedisSettings(url=SecretStr(redis_url))) as client:
        await client.ping()

        async def asked() -> bytes:
            async with answering(0.2, LookupError):
                return await client.echo("here")

        asking = asyncio.create_task(asked())
        for _ in range(3):
            await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 - the stall itself
        assert await asking == b"here"


async def test_a_failure_while_a_call_is_cancelled_does_not_hide_the_cancellation():
    async def call():
        async with answering(5, LookupError):
            try:
                await asyncio.Event().wait()
            finally:
                raise ResponseError("the connection cannot be given back")

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_failure_after_a_cancellation_is_the_caller_s_own_error():
    async def call():
        try:
            await asyncio.Event().wait()
        finally:
            async with answering(5, LookupError):
                raise ResponseError("no")

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(LookupError):
        await task


@pytest.mark.parametrize("has_connection", [False, True])
async def test_a_cancel_ends_a_call_whenever_it_comes(redis_url, has_connection):
    async with redis(RedisSettings(url=SecretStr(redis_url), pool_max=1)) as client:
        for turns in range(100):
            if has_connection:
                await client.ping()
            else:
                await client.connection_pool.disconnect()
            call = asyncio.create_task(client.blpop(["never"], timeout=4))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call], timeout=2)
            ended = call.cancelled()
            call.cancel()
            assert ended, f"it goes on when it is cancelled after {turns} turns of the loop"
        assert await client.ping()


async def test_a_server_that_takes_nothing_in_is_given_up(own_stack):
    settings = RedisSettings(url=SecretStr(own_stack.addresses.redis_url), socket_timeout_s=0.2)
    async with redis(settings) as client, asyncio.timeout(10):
        await ping(client)
        pid = own_stack.stack.process_ids["redis"]
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(RedisTimeoutError):
                await client.set("key", bytes(64 * 1024 * 1024))
        finally:
            os.kill(pid, signal.SIGCONT)
        await ping(client)


async def test_a_full_pool_makes_callers_wait_briefly_and_then_fail(redis_url):
    settings = RedisSettings(url=SecretStr(redis_url), pool_max=1, pool_wait_s=0.05)
    async with redis(settings) as client:
        blocking = asyncio.create_task(client.blpop(["never"], timeout=1))
        await asyncio.sleep(0)
        with pytest.raises(RedisError):
            await client.get("key")
        await blocking
        assert await client.get("key") is None


async def test_a_killed_server_is_found_again_without_a_restart(own_stack):
    async with redis(RedisSettings(url=SecretStr(own_stack.addresses.redis_url))) as client:
        await client.set("key", "value")
        own_stack.kill("redis")
        async with asyncio.timeout(30):
            value = None
            while value is None:
                with suppress(RedisError, OSError):
                    value = await client.get("key")
                await asyncio.sleep(0.05)
    assert value == b"value"
