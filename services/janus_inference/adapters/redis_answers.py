"""The response cache in Redis: one key an answer, within its tenant."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from janus_kit.errors import Unavailable
from janus_kit.redis import RedisClient, answering, key


class RedisAnswers:
    """Answers by digest. ``timeout_s``: a cache that takes longer is no help."""

    def __init__(self, client: RedisClient, *, timeout_s: float = 0.25) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def get(self, tenant: str, digest: str) -> bytes | None:
        async with self._answering():
            found: Any = await self._client.get(_key(tenant, digest))
        return None if found is None else bytes(found)

    async def put(self, tenant: str, digest: str, answer: bytes, keep_s: float) -> None:
        async with self._answering():
            await self._client.set(_key(tenant, digest), answer, px=max(1, round(keep_s * 1000)))

    def _answering(self) -> AbstractAsyncContextManager[None]:
        return answering(self._timeout_s, lambda _: Unavailable("redis"))


def _key(tenant: str, digest: str) -> str:
    return key(tenant, "answer", digest)
