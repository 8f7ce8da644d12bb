"""Where a word is, in anything that memory stores."""

from __future__ import annotations

from typing import Any

import asyncpg
import redis.asyncio

from janus_memory.text import term_hash


async def traces(postgres_url: str, redis_url: str, chroma_url: str | None, word: str) -> list[str]:
    """Tables, keys and collections that hold the word: in text, in bytes, or as what is searched of it."""
    return [
        *await _in_postgres(postgres_url, word),
        *await _in_redis(redis_url, word.encode()),
        *(await _in_chroma(chroma_url, word) if chroma_url else []),
    ]


async def _in_postgres(url: str, word: str) -> list[str]:
    owner = await asyncpg.connect(url)
    try:
        names = await owner.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'memory'::regnamespace AND relkind IN ('r', 'p')"
        )
        found = []
        for row in names:
            table = row["relname"]
            forms = [word, word.encode().hex(), *([term_hash(word).hex()] if table == "unit" else [])]
            hits = await owner.fetchval(
                f"SELECT count(*) FROM memory.{table} t WHERE t::text LIKE ANY($1::text[])",
                [f"%{form}%" for form in forms],
            )
            found += [f"postgres memory.{table}"] * hits
        return found
    finally:
        await owner.close()


async def _in_redis(url: str, word: bytes) -> list[str]:
    client = redis.asyncio.Redis.from_url(url)
    try:
        found = []
        async for key in client.scan_iter():
            kind = await client.type(key)
            value: Any = await (client.zrange(key, 0, -1) if kind == b"zset" else client.dump(key))
            if word in key or any(word in part for part in (value if isinstance(value, list) else [value or b""])):
                found.append(f"redis {key!r}")
        return found
    finally:
        await client.aclose()


async def _in_chroma(url: str, word: str) -> list[str]:
    import chromadb

    host, _, port = url.rpartition("/")[2].partition(":")
    client = await chromadb.AsyncHttpClient(host=host, port=int(port))
    found = []
    for collection in await client.list_collections(limit=10_000):
        held = await collection.get(include=["metadatas", "documents"])
        if word in repr(held):
            found.append(f"chroma {collection.name}")
    return found
