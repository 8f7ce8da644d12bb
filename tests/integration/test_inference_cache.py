"""The response cache over gRPC on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr
from tests.fakes.providers.inference_service import Service, prompt, running
from tests.fakes.tcp_proxy import TcpProxy

from janus_api.content.v1 import usage_pb2
from janus_api.inference.v1 import request_pb2
from janus_inference.adapters.redis_answers import RedisAnswers
from janus_kit.errors import Unavailable
from janus_kit.redis import key, redis
from janus_kit.settings import RedisSettings

MODEL = "compatible/fake"


@pytest.fixture
async def inference(postgres_url: str, redis_url: str) -> AsyncIterator[Service]:
    async with running(postgres_url, redis_url) as service:
        yield service


def cached(text: str, mode: int = request_pb2.CACHE_MODE_READ_WRITE, **fields: Any) -> request_pb2.Prompt:
    return prompt(text, model=MODEL, cache=request_pb2.CachePolicy(mode=mode), **fields)


async def test_the_same_question_is_asked_once(inference):
    first = await inference.generate(cached("once"))
    again = await inference.generate(cached("once", labels={"team": "blue"}))
    assert len(inference.openai.exchanges) == 1
    assert (first.from_cache, again.from_cache) == (False, True)
    assert again.message == first.message
    assert again.generation_id != first.generation_id
    assert first.usage.output_tokens == 3
    assert again.usage == usage_pb2.Usage()
    events = await inference.stream(cached("once"))
    assert "".join(event.text for kind, event in events if kind == "text_delta") == first.message.parts[0].text
    assert events[-1][1].from_cache
    assert len(inference.openai.exchanges) == 1


async def test_another_tenant_asks_anew(inference):
    for tenant in ("anna", "bob", "anna", "bob"):
        await inference.generate(cached("whose"), metadata=[("janus-tenant", tenant)])
    assert len(inference.openai.exchanges) == 2


async def test_a_prompt_that_does_not_ask_for_the_cache_never_meets_it(inference):
    for mode, asked in (
        (request_pb2.CACHE_MODE_UNSPECIFIED, 1),
        (request_pb2.CACHE_MODE_READ, 2),
        (request_pb2.CACHE_MODE_WRITE, 3),
        (request_pb2.CACHE_MODE_WRITE, 4),
        (request_pb2.CACHE_MODE_READ, 4),
    ):
        await inference.generate(cached("modes", mode))
        assert len(inference.openai.exchanges) == asked


async def test_without_redis_every_question_is_asked(postgres_url, redis_url):
    proxy = TcpProxy.to(redis_url)
    try:
        async with running(postgres_url, proxy.through(redis_url)) as inference:
            proxy.cut()
            for _ in range(2):
                answer = await inference.generate(cached("away"))
                assert not answer.from_cache
            assert len(inference.openai.exchanges) == 2
    finally:
        proxy.close()


async def test_an_answer_is_kept_under_its_tenant_for_its_time(redis_url):
    async with redis(RedisSettings(url=SecretStr(redis_url))) as client:
        answers = RedisAnswers(client)
        await answers.put("anna", "d1", b"\x00\xff", 60)
        assert await answers.get("anna", "d1") == b"\x00\xff"
        assert await answers.get("bob", "d1") is None
        assert 59_000 < await client.pttl(key("anna", "answer", "d1")) <= 60_000


async def test_a_store_that_is_away_says_so():
    async with redis(RedisSettings(url=SecretStr("redis://127.0.0.1:1"))) as client:
        answers = RedisAnswers(client)
        with pytest.raises(Unavailable):
            await answers.get("anna", "d1")
        with pytest.raises(Unavailable):
            await answers.put("anna", "d1", b"x", 1)
