"""What writing memories costs: acknowledged, searchable, and many at once."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import grpc
from tests.bench.memory_load import Corpus
from tests.bench.table import at, ms, row

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2

_BATCH = 100
_AT_ONCE = 4


async def acknowledged(stub: Any, owner: asyncpg.Connection, writes: int) -> None:
    """Rows: one memory at a time by one client, until it is acknowledged and until it is indexed."""
    texts = Corpus(4).texts(2 * writes)
    await owner.execute("CREATE TABLE IF NOT EXISTS public.raw_write (text text)")
    ours, raw, lag = [], [], []
    for text in texts[:writes]:
        began = time.perf_counter()
        await stub.Remember(pb.RememberRequest(memories=[_memory(text)]), metadata=_tenant("writer"))
        done = time.perf_counter()
        ours.append(done - began)
        await emptied(owner, "memory.outbox WHERE tenant = 'writer'", 0.002)
        lag.append(time.perf_counter() - done)
        began = time.perf_counter()
        await owner.execute("INSERT INTO public.raw_write VALUES ($1)", text)
        raw.append(time.perf_counter() - began)
    await owner.execute("DROP TABLE public.raw_write")
    for quantile, aim in ((0.5, ""), (0.95, "≤ 10 ms")):
        mine, direct = at(ours, quantile), at(raw, quantile)
        row(
            f"write acknowledged, one client, p{quantile * 100:.0f}",
            ms(mine),
            direct=ms(direct),
            ratio=f"{mine / direct:.1f}",
            aim=aim,
        )
    row("  from there until it is indexed, p95", ms(at(lag, 0.95)), aim="≤ 500 ms")


async def ingested(stub: Any, owner: asyncpg.Connection, size: int) -> None:
    """Rows: memories a second, stored and indexed; by Ingest if the server has it."""
    texts = Corpus(5).texts(size)
    began = time.perf_counter()
    way = "Ingest"
    try:
        await stub.Ingest(_stream(texts), metadata=_tenant("ingest"))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        way = f"Remember, {_BATCH} at a time"
        began = time.perf_counter()
        await _remembered(stub, texts)
    stored = time.perf_counter() - began
    await emptied(owner, "memory.outbox WHERE tenant = 'ingest'", 0.02)
    indexed = time.perf_counter() - began
    await owner.execute("CREATE TABLE public.raw_ingest (text text)")
    began = time.perf_counter()
    await owner.executemany("INSERT INTO public.raw_ingest VALUES ($1)", [(text,) for text in texts])
    raw = time.perf_counter() - began
    await owner.execute("DROP TABLE public.raw_ingest")
    row(
        f"ingest of {size:,} memories ({way}), stored",
        f"{size / stored:,.0f}/s",
        direct=f"{size / raw:,.0f}/s",
        ratio=f"{stored / raw:.1f}",
        aim="≥ 2,000/s",
    )
    row("  stored and indexed", f"{size / indexed:,.0f}/s")


async def emptied(owner: asyncpg.Connection, rows: str, poll_s: float) -> None:
    """Wait until there are no such rows."""
    while await owner.fetchval(f"SELECT EXISTS (SELECT FROM {rows})"):  # noqa: ASYNC110 - another process's; constants
        await asyncio.sleep(poll_s)


async def _remembered(stub: Any, texts: list[str]) -> None:
    batches = iter([texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)])

    async def work() -> None:
        for batch in batches:
            await stub.Remember(pb.RememberRequest(memories=map(_memory, batch)), metadata=_tenant("ingest"))

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))


def _stream(texts: list[str]) -> Iterator[pb.IngestRequest]:
    yield pb.IngestRequest(config=pb.IngestConfig())
    for text in texts:
        yield pb.IngestRequest(memory=_memory(text))


def _memory(text: str) -> record_pb2.Memory:
    return record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text=text)


def _tenant(name: str) -> tuple[tuple[str, str], ...]:
    return (("janus-tenant", name),)
