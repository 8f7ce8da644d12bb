"""The response cache in Redis: one key an answer, within its tenant."""

import asyncio
from typing import Any

from redis.exceptions import RedisError

from janus_kit.errors import Unavailable
from janus_kit.redis import RedisClient, key


class RedisAnswers:
    """Answers by digest. ``timeout_s``: a cache that takes longer is no help."""

    def __init__(self, client: RedisClient, *, timeout_s: float = 0.25) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def get(self, tenant: str, digest: str) -> bytes | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                found: Any = await self._client.get(_key(tenant, digest))
        except (RedisError, TimeoutError, OSError) as error:
            raise Unavailable("redis") from error
        return None if found is None else bytes(found)

    async def put(self, tenant: str, digest: str, answer: bytes, keep_s: float) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.set(_key(tenant, digest), answer, px=max(1, round(keep_s * 1000)))
        except (RedisError, TimeoutError, OSError) as error:
            raise Unavailable("redis") from error


def _key(tenant: str, digest: str) -> str:
    return key(tenant, "answer", digest)
