"""Commands that share a connection, against a real server."""

import asyncio
import os
import random
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.connection import DefaultParser
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as Lost

from janus_kit import redis_line
from janus_kit.redis import redis
from janus_kit.settings import RedisSettings


@pytest.fixture
async def client(redis_url):
    async with redis(RedisSettings(url=SecretStr(redis_url)), application="line") as found:
        yield found


async def connections(client: Redis) -> int:
    return len([each for each in await client.client_list() if each["name"] == "line"])


async def test_what_many_ask_at_once_goes_over_one_connection_and_each_gets_its_answer(client):
    said = [f"{number}".encode() * (number % 50 + 1) for number in range(2_000)]
    assert await asyncio.gather(*(client.echo(text) for text in said)) == said
    assert await connections(client) == 1


async def test_callers_that_give_up_take_nobody_s_answer(client):
    dice = random.Random(7)

    async def ask(number: int) -> bool:
        call = asyncio.create_task(client.echo(str(number)))
        for _ in range(dice.randrange(6)):
            await asyncio.sleep(0)
        if dice.random() < 0.5 and call.cancel():
            await asyncio.wait([call])
            return call.cancelled()
        return await call == str(number).encode()

    for _ in range(20):
        assert all(await asyncio.gather(*(ask(number) for number in range(100))))
    assert await connections(client) == 1


async def test_a_refusal_is_the_matter_of_who_asked(client):
    await client.set("text", "a")
    found = await asyncio.gather(client.get("text"), client.incr("text"), client.get("text"), return_exceptions=True)
    assert found[0] == found[2] == b"a"
    assert isinstance(found[1], ResponseError)


async def test_a_command_that_blocks_holds_nobody_up(client):
    blocked = asyncio.create_task(client.blpop(["line:later"], timeout=4))
    reading = asyncio.create_task(client.xread({"line:stream": "$"}, block=4_000))
    async with asyncio.timeout(20):
        for number in range(50):
            assert await client.echo(str(number)) == str(number).encode()
        await client.rpush("line:later", "now")
        assert await blocked == (b"line:later", b"now")
        while not reading.done():
            await client.xadd("line:stream", {"a": "b"})
        assert await reading


async def test_a_pipeline_s_commands_are_answered_as_redis_py_does(client):
    pipeline = client.pipeline(transaction=False)
    pipeline.set("p", 1)
    pipeline.hgetall("p")
    pipeline.incr("p")
    done, refused, count = await pipeline.execute(raise_on_error=False)
    assert (done, count) == (True, 2)
    assert isinstance(refused, ResponseError)
    pipeline.hgetall("p")
    with pytest.raises(ResponseError, match=r"Command # 1 \(HGETALL p\)"):
        await pipeline.execute()
    assert await pipeline.execute() == []
    async with client.pipeline(transaction=True) as transaction:
        transaction.incr("p")
        transaction.incr("p")
        assert await transaction.execute() == [3, 4]


async def test_pipelines_and_commands_at_once_get_their_own_answers(client):
    async def together(number: int) -> list[bytes]:
        pipeline = client.pipeline(transaction=False)
        for part in range(number % 7):
            pipeline.echo(f"{number}.{part}")
        return await pipeline.execute()

    found = await asyncio.gather(*(together(number) for number in range(300)), client.echo("alone"))
    assert found.pop() == b"alone"
    assert found == [[f"{number}.{part}".encode() for part in range(number % 7)] for number in range(300)]


async def test_a_connection_that_was_cut_while_idle_is_replaced_unnoticed(client, redis_url):
    await client.ping()
    async with Redis.from_url(redis_url) as other:
        for each in await other.client_list():
            if each["name"] == "line":
                await other.client_kill_filter(_id=each["id"])
    assert await client.echo("again") == b"again"


async def test_a_script_that_the_server_does_not_know_is_given_to_it(client):
    script = client.register_script("return {KEYS[1], ARGV[1]}")
    await client.script_flush()
    assert await asyncio.gather(*(script(keys=["k"], args=[number]) for number in range(20))) == [
        [b"k", str(number).encode()] for number in range(20)
    ]


async def test_a_server_that_does_not_answer_gets_only_so_much(own_stack, monkeypatch):
    monkeypatch.setattr(redis_line, "_MOST_ASKED", 10)
    url = SecretStr(own_stack.addresses.redis_url)
    async with redis(RedisSettings(url=url, pool_wait_s=0.05, socket_timeout_s=20)) as client, asyncio.timeout(20):
        await client.ping()
        pid = own_stack.stack.process_ids["redis"]
        os.kill(pid, signal.SIGSTOP)
        try:
            asked = [asyncio.create_task(client.echo(str(number))) for number in range(10)]
            await asyncio.sleep(0)
            with pytest.raises(Lost, match="too many"):
                await client.echo("one more")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await asyncio.gather(*asked) == [str(number).encode() for number in range(10)]
        assert await client.echo("there is room") == b"there is room"


async def test_what_waits_for_a_hanging_server_is_given_up_together(own_stack):
    url = SecretStr(own_stack.addresses.redis_url)
    async with redis(RedisSettings(url=url, socket_timeout_s=0.2)) as client, asyncio.timeout(20):
        await client.ping()
        pid = own_stack.stack.process_ids["redis"]
        os.kill(pid, signal.SIGSTOP)
        try:
            found = await asyncio.gather(*(client.echo("a") for _ in range(30)), return_exceptions=True)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert all(isinstance(each, RedisError) for each in found)
        assert len({id(each) for each in found}) == len(found)
        assert await client.echo("back") == b"back"


async def test_a_client_that_is_closed_says_so(redis_url):
    async with redis(RedisSettings(url=SecretStr(redis_url))) as client:
        waiting = asyncio.create_task(client.echo("a"))
        await asyncio.sleep(0)
    with pytest.raises(Lost, match="closed"):
        await waiting
    with pytest.raises(Lost, match="closed"):
        await client.ping()


async def test_answers_are_whole_whatever_they_came_in_and_end_with_what_ends_the_connection():
    taken: list[Any] = []
    transport = SimpleNamespace(set_protocol=lambda _: None)
    connection = SimpleNamespace(_parser=DefaultParser, _writer=SimpleNamespace(transport=transport))
    answers = redis_line._Answers(connection, taken.append)
    for byte in b"+OK\r\n#f\r\n>2\r\n$4\r\nnews\r\n:1\r\n*2\r\n:1\r\n$2\r\nab\r\n":
        answers.data_received(bytes([byte]))
    assert taken == [b"OK", False, [1, b"ab"]]
    answers.data_received(b"-ERR wrong\r\n+a\r\n-LOADING the dataset\r\n+b\r\n")
    answers.data_received(b"+c\r\n")
    assert isinstance(taken[3], ResponseError)
    assert taken[4:] == [b"a"]
    with pytest.raises(BusyLoadingError):
        await answers.lost
