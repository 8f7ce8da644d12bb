"""Where a word is, in anything that memory stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
import redis.asyncio

from janus_memory.text import term_hash


async def traces(postgres_url: str, redis_url: str, chroma_url: str | None, *words: str) -> list[str]:
    """Tables, keys and collections that hold one of the words: in text, in bytes, or as what is searched of it."""
    return [
        *await _in_postgres(postgres_url, words),
        *await _in_redis(redis_url, [word.encode() for word in words]),
        *(await _in_chroma(chroma_url, words) if chroma_url else []),
    ]


async def _in_postgres(url: str, words: Sequence[str]) -> list[str]:
    owner = await asyncpg.connect(url)
    try:
        names = await owner.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'memory'::regnamespace AND relkind IN ('r', 'p')"
        )
        found = []
        for row in names:
            table = row["relname"]
            rows = await owner.fetch(f"SELECT t::text FROM memory.{table} t")
            forms = [form for word in words for form in _forms(word, table)]
            found += [f"postgres memory.{table}" for row in rows if any(form in row[0] for form in forms)]
        return found
    finally:
        await owner.close()


def _forms(word: str, table: str) -> list[str]:
    return [word, word.encode().hex(), *([term_hash(word).hex()] if table == "unit" else [])]


async def _in_redis(url: str, words: Sequence[bytes]) -> list[str]:
    client = redis.asyncio.Redis.from_url(url)
    try:
        found = []
        async for key in client.scan_iter():
            kind = await client.type(key)
            value: Any = await (client.zrange(key, 0, -1) if kind == b"zset" else client.dump(key))
            parts = [key, *(value if isinstance(value, list) else [value or b""])]
            if any(word in part for word in words for part in parts):
                found.append(f"redis {key!r}")
        return found
    finally:
        await client.aclose()


async def _in_chroma(url: str, words: Sequence[str]) -> list[str]:
    import chromadb

    host, _, port = url.rpartition("/")[2].partition(":")
    client = await chromadb.AsyncHttpClient(host=host, port=int(port))
    found = []
    for collection in await client.list_collections(limit=10_000):
        held = await collection.get(include=["metadatas", "documents"])
        text = repr(held)
        if any(word in text for word in words):
            found.append(f"chroma {collection.name}")
    return found
