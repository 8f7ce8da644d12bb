"""`make bench-memory`: what recall finds, how long it takes, and what writing costs.

The service is `janus serve --only memory` as a process, with everything embedded, asked over gRPC on
TCP by one client. Memories and turns are made up; they are put into Postgres by SQL, except for what
measures writing. Each figure has its baselines from the same run:

- raw Postgres: the least that the database needs for it (for a recall: the nearest 200 vectors of one
  view by a scan, as one statement; for a write: one row committed);
- exact scan: the same call with `exact`.

`ratio` is to raw Postgres. Queries carry their vector, so embedding is not in these figures. Evidence
recall on LoCoMo is measured where its evaluation is beside the checkout (--evaluation).

Service, database and client share the machine: run it on one that does nothing else.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.bench import memory_locomo, memory_writes, processes
from tests.bench.memory_load import Corpus, Question, fill
from tests.bench.table import add_parts, at, header, ms, row

from janus_api.memory.v1 import memory_service_pb2_grpc as rpc
from janus_api.memory.v1 import recall_pb2
from janus_app.embedded import State, read_state

SERVICE = "janus.memory.v1.MemoryService"
PARTS = ("recall", "tenants", "write", "ingest", "locomo", "large")
_WARM_UP = 20
# What a search of vectors costs the database without anything around it.
_RAW = """SELECT unit FROM memory.vector
    WHERE tenant = $1 AND space_no = $2 AND generation = 1 AND view = $3 AND superseded_at IS NULL
    ORDER BY embedding <#> $4::real[]::vector LIMIT 200"""

Ask = Callable[[int, Question], Awaitable[Any]]


@dataclass(frozen=True)
class Bench:
    """The running service and ways to ask it and its database."""

    stub: Any
    owner: asyncpg.Connection
    state: State
    calls: int

    async def recall(self, tenant: str, question: Question, **fields: Any) -> list[str]:
        """Ids of the hits. Ends the run if a part was missing."""
        request = recall_pb2.RecallRequest(query=question.text, query_embedding=question.vector, **fields)
        answer = await self.stub.Recall(request, metadata=(("janus-tenant", tenant),))
        if answer.degraded:
            raise SystemExit(f"recall was degraded: {list(answer.degraded)}")
        return [hit.turn.message.id or hit.memory.id for hit in answer.hits]

    async def raw(self, tenant: str, question: Question, view: int) -> None:
        space = await self.owner.fetchval("SELECT number FROM memory.space WHERE tenant = $1", tenant)
        await self.owner.fetch(_RAW, tenant, space, view, list(question.vector))

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far: of the service, and of the database's processes that live."""
        service = psutil.Process(self.state.pid)
        times = service.cpu_times()
        database = 0.0
        for process in service.children(recursive=True):
            if process.name() == "postgres":
                database += process.cpu_times().user + process.cpu_times().system
        return times.user + times.system, database


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300, help="recalls and writes for each figure")
    parser.add_argument("--memories", type=int, default=10_000, help="records of the one tenant")
    parser.add_argument("--tenants", type=int, default=100, help="tenants of 1,000 memories; 1000 is the aim's size")
    parser.add_argument("--large", type=int, default=25_000, help="memories of the space that is searched by a graph")
    parser.add_argument("--evaluation", type=Path, default=Path("../shared/eval"), help="folder with locomo_eval.py")
    parser.add_argument("--model", action="append", default=[], help="also LoCoMo with it, e.g. onnx/minilm")
    parser.add_argument("--config", type=Path, help="settings of the service, e.g. where its models are")
    add_parts(parser, PARTS, without=("large",))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="janus-bench-") as folder, served(Path(folder), arguments.config) as state:
        header("raw Postgres", "exact scan", "ratio")
        asyncio.run(_measure(state, arguments.only, arguments))
        if "locomo" in arguments.only:
            _locomo(state, arguments)


async def _measure(state: State, parts: Sequence[str], arguments: argparse.Namespace) -> None:
    owner = await asyncpg.connect(state.postgres_url, command_timeout=3_600)
    try:
        async with grpc.aio.insecure_channel(state.published["grpc"]) as channel:
            bench = Bench(rpc.MemoryServiceStub(channel), owner, state, arguments.calls)
            if "recall" in parts:
                await _one_tenant(bench, arguments.memories)
            if "tenants" in parts:
                await _many_tenants(bench, arguments.tenants)
            if "write" in parts:
                await memory_writes.acknowledged(bench.stub, owner, arguments.calls)
            if "ingest" in parts:
                await memory_writes.ingested(bench.stub, owner, arguments.memories)
            if "large" in parts:
                await _large(bench, arguments.large)
    finally:
        await owner.close()


async def _one_tenant(bench: Bench, size: int) -> None:
    for name, turns in (("memories", False), ("turns", True)):
        corpus = Corpus(1)
        await fill(bench.owner, corpus, [name], size, turns=turns)
        await bench.owner.execute("VACUUM ANALYZE")
        questions = corpus.questions(bench.calls + _WARM_UP)
        before = bench.cpu_s()
        times = await timed(lambda _, q, name=name: bench.recall(name, q), questions)  # type: ignore[misc]
        after = bench.cpu_s()
        exact = await timed(lambda _, q, name=name: bench.recall(name, q, exact=True), questions[:120])  # type: ignore[misc]
        raw = await timed(lambda _, q, name=name, view=int(turns): bench.raw(name, q, view), questions[:120])  # type: ignore[misc]
        for quantile, aim in ((0.5, 8), (0.95, 25)):
            ours, direct = at(times, quantile), at(raw, quantile)
            row(
                f"recall of one tenant with {size:,} {name}, p{quantile * 100:.0f}",
                ms(ours),
                direct=ms(direct),
                bare=ms(at(exact, quantile)),
                ratio=f"{ours / direct:.1f}",
                aim=f"≤ {aim} ms",
            )
        used = [(late - early) / len(questions) for early, late in zip(before, after, strict=True)]
        row("  CPU of one: service, database", f"{ms(used[0])}", direct=ms(used[1]))


async def _many_tenants(bench: Bench, tenants: int) -> None:
    corpus = Corpus(2)
    names = [f"tenant-{number}" for number in range(tenants)]
    for start in range(0, tenants, 10):
        await fill(bench.owner, corpus, names[start : start + 10], 1_000, turns=False)
    await bench.owner.execute("VACUUM ANALYZE")
    questions = corpus.questions(bench.calls + _WARM_UP)

    def asked(number: int) -> str:
        return names[number * 7919 % tenants]

    times = await timed(lambda number, q: bench.recall(asked(number), q), questions)
    raw = await timed(lambda number, q: bench.raw(asked(number), q, 0), questions[:120])
    for quantile, aim in ((0.5, ""), (0.95, "≤ 40 ms at 1,000 tenants")):
        ours, direct = at(times, quantile), at(raw, quantile)
        row(
            f"recall at {tenants * 1_000:,} memories in {tenants:,} tenants, p{quantile * 100:.0f}",
            ms(ours),
            direct=ms(direct),
            ratio=f"{ours / direct:.1f}",
            aim=aim,
        )
    found = await agreement(bench, asked(0), questions[:60])
    row(f"recall@10 of one of them ({100 / tenants:.1f} %) against exact", f"{found:.3f}", aim="1.000")


async def _large(bench: Bench, size: int) -> None:
    corpus = Corpus(3)
    await fill(bench.owner, corpus, ["large"], size, turns=False)
    subject = "UPDATE memory.{} SET subject = 'rare' WHERE tenant = 'large' AND unit % 100 = 0"
    for table in ("unit", "vector"):
        await bench.owner.execute(subject.format(table))
    questions = corpus.questions(bench.calls + _WARM_UP)
    scanned = await timed(lambda _, q: bench.recall("large", q, exact=True), questions[:120])
    began = time.perf_counter()
    await memory_writes.emptied(bench.owner, "memory.vector WHERE tenant = 'large' AND NOT graph", 1)
    grown = time.perf_counter() - began
    row(f"{size:,} vectors into the graph, in the background", f"{grown:.0f} s", ratio=f"{size / grown:.0f}/s")
    times = await timed(lambda _, q: bench.recall("large", q), questions)
    for quantile in (0.5, 0.95):
        row(
            f"recall of a space of {size:,} memories, p{quantile * 100:.0f}",
            ms(at(times, quantile)),
            bare=ms(at(scanned, quantile)),
        )
    row("  recall@10 against exact", f"{await agreement(bench, 'large', questions[:60]):.3f}")
    rare = {"scope": {"subject": "rare"}}
    found = await agreement(bench, "large", questions[:60], **rare)
    row("  recall@10 of a subject with 1 % of it against exact", f"{found:.3f}", aim="1.000")


async def agreement(bench: Bench, tenant: str, questions: Sequence[Question], **fields: Any) -> float:
    """The share of the exact answer's ten that the usual answer has."""
    shares = []
    for question in questions:
        exact = set(await bench.recall(tenant, question, exact=True, **fields))
        shares.append(len(exact & set(await bench.recall(tenant, question, **fields))) / max(len(exact), 1))
    return sum(shares) / len(shares)


async def timed(ask: Ask, questions: Sequence[Question]) -> list[float]:
    """Seconds of each, one after the other; the first ones, which fill caches, are not counted."""
    times = []
    for number, question in enumerate(questions):
        began = time.perf_counter()
        await ask(number, question)
        if number >= _WARM_UP:
            times.append(time.perf_counter() - began)
    return times


def _locomo(state: State, arguments: argparse.Namespace) -> None:
    if not (arguments.evaluation / "locomo_eval.py").is_file():
        row("LoCoMo: not measured", "", aim=f"no evaluation in {arguments.evaluation}")
        return
    for model in ("", *arguments.model):
        memory_locomo.measure(state.published["grpc"], arguments.evaluation, model, backends=not model)


@contextmanager
def served(folder: Path, config: Path | None) -> Iterator[State]:
    """The memory service with what it needs; entered when it says SERVING."""
    data, log = folder / "data", folder / "serve.log"
    command = [sys.executable, "-m", "janus_app", "serve", "--only", "memory", "--data", str(data)]
    command += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    command += ["--config", str(config)] if config else []
    with processes.started(command, log) as process:
        processes.wait_until(lambda: _is_serving(data, process.pid), process, log)
        state = read_state(data)
        assert state
        yield state


def _is_serving(data: Path, pid: int) -> bool:
    state = read_state(data)
    if not state or state.pid != pid or "grpc" not in state.published:
        return False
    with grpc.insecure_channel(state.published["grpc"]) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    main()
