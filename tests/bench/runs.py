"""`make bench`, third part: what orchestration costs, and how soon it is where it should be.

Two replicas as processes with their default settings, over an embedded Postgres and Valkey. Model and memory
are a process that costs almost nothing, but where a figure is of what is upstream of the real inference
service. Each figure has its baselines from the same run:

- direct: the model asked by the same client, without orchestration between;
- bare run: the least that a durable run can be, with the libraries alone (`bare_run.py`).

`ratio` is to the bare run where there is one, else to direct. Services, stores and load share the machine: on two
cores, run it on a machine that does nothing else. CPU is that of the replica's own process alone.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import uvloop
from tests.bench import processes
from tests.bench.table import add_parts, at, header, ms, row
from tests.conftest import StackThread
from tests.fakes.inference_processes import InferenceProcess
from tests.fakes.orchestration_service import TERMINAL, Caller, Process
from tests.fakes.providers import openai_wire
from tests.fakes.providers.http_server import WireServer, serving

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import inference_service_pb2 as inference_pb
from janus_api.inference.v1 import inference_service_pb2_grpc as inference_rpc
from janus_api.inference.v1 import request_pb2
from janus_api.orchestration.v1 import agent_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2_grpc as rpc
from janus_kit.channel import connect
from janus_kit.migrations import migrate
from janus_kit.settings import PostgresSettings

TENANT = "bench"
AT_ONCE = 8
EVERY_MS = 20
# No recall, nothing stored: what is left is orchestration's own.
BARE_MEMORY = agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True)
# A model call and a store.
TWO_STEPS = agent_pb2.MemoryPolicy(recall_limit=0)
DEFAULTS = {"lease_s": 3.0, "poll_s": 0.5, "inference_wait_s": 15.0, "stream_retry_s": 1.0}


@dataclass(frozen=True)
class Bench:
    """What is measured and what it is compared with."""

    replicas: Sequence[Process]
    bare: processes.Measured
    upstream: str
    wire: WireServer
    times: int

    def caller(self, number: int = 0) -> Caller:
        return self.replicas[number].caller(TENANT)

    @asynccontextmanager
    async def bare_caller(self) -> AsyncIterator[Caller]:
        """A client of the bare run."""
        async with connect(self.bare.address) as channel:
            yield Caller(rpc.OrchestrationServiceStub(channel), TENANT)

    async def threads(self, count: int, model: str, memory: agent_pb2.MemoryPolicy = BARE_MEMORY) -> list[str]:
        """Threads of an agent of their own."""
        caller = self.caller()
        agent = await caller.agent(name=f"a{time.perf_counter_ns()}", model=model, memory=memory)
        return [await caller.thread(agent.name) for _ in range(count)]


# -- from the call to the model ------------------------------------------------------


async def start(bench: Bench) -> None:
    """Orchestration's own time before the model is asked: among runs that talk, and of runs begun at one moment."""
    talking = f"tokens-10-every-{EVERY_MS}"
    await _before_the_model(bench, f"{AT_ONCE} runs at once", talking, 10, 0.025, ("≤ 5 ms", "≤ 15 ms"))
    await _before_the_model(bench, f"{AT_ONCE} begun at one moment", "tokens-1", 1, 0, ("", ""))


async def _before_the_model(
    bench: Bench, what: str, model: str, turns: int, apart_s: float, aims: tuple[str, str]
) -> None:
    """``turns`` runs in each thread, one after the other; the threads begin ``apart_s`` after each other."""
    async with _stub(bench.upstream) as stub, bench.bare_caller() as bare:
        ways: list[Callable[[str], AsyncIterator[str]]] = [
            lambda thread: _said(bench.caller().converse(thread)),
            lambda _: _generate(stub, model),
            lambda thread: _said(bare.converse(thread)),
        ]

        async def one_by_one(place: int, thread: str, ask: Callable[[str], AsyncIterator[str]]) -> list[float]:
            await asyncio.sleep(place * apart_s)
            times = []
            for _ in range(turns):
                began = time.perf_counter_ns()
                times.append((await _first_arrival(ask(thread)) - began) / 1e9)
            return times

        seen: list[list[float]] = [[], [], []]
        threads = [await bench.threads(AT_ONCE, f"bench/{model}") for _ in ways]
        for round_ in range(-(-bench.times // turns) + 1):
            for times, ask, own in zip(seen, ways, threads, strict=True):
                found = await asyncio.gather(*(one_by_one(place, own[place], ask) for place in range(AT_ONCE)))
                if round_:  # the first one opens connections and fills caches
                    times += [each for of_thread in found for each in of_thread]
    for quantile, name, aim in ((0.5, "p50", aims[0]), (0.95, "p95", aims[1])):
        mine, direct, least = (at(each, quantile) for each in seen)
        row(
            f"before the model call, {what}, {name}",
            ms(mine),
            direct=ms(direct),
            bare=ms(least),
            ratio=f"{mine / least:.1f}",
            aim=aim,
        )


# -- from the owner to who watches ---------------------------------------------------


async def hop(bench: Bench) -> None:
    """From the owner's having an event to a watcher's having it, and the same tokens straight from the model."""
    tokens = max(50, bench.times)
    model = f"tokens-{tokens}-every-{EVERY_MS}"
    for replica, where in ((0, ""), (1, " of another replica")):
        for watchers, aim in ((1, "≤ 3 ms"), (50, "≤ 10 ms")):
            (thread,) = await bench.threads(1, f"bench/{model}")
            run = await bench.caller().start(thread)
            async with _watchers(bench, replica, watchers) as callers:
                found = await asyncio.gather(*(_hops(caller.watch(run.id)) for caller in callers))
            async with _stub(bench.upstream) as stub:
                straight = await asyncio.gather(*(_transits(_generate(stub, model)) for _ in range(watchers)))
            for quantile, name in ((0.5, "p50"), (0.95, "p95")):
                mine = at([each for times in found for each in times], quantile)
                direct = at([each for times in straight for each in times], quantile)
                row(
                    f"event to {watchers} watcher{'s' * (watchers > 1)}{where}, {name}",
                    ms(mine),
                    direct=ms(direct),
                    ratio=f"{mine / direct:.1f}",
                    aim=aim if name == "p95" else "",
                )


@asynccontextmanager
async def _watchers(bench: Bench, replica: int, count: int) -> AsyncIterator[list[Caller]]:
    """Callers at a replica, eight a connection."""
    address = bench.replicas[replica].address
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(-(-count // 8))]
    stubs = [rpc.OrchestrationServiceStub(channel) for channel in channels]
    try:
        yield [Caller(stubs[number % len(stubs)], TENANT) for number in range(count)]
    finally:
        for channel in channels:
            await channel.close()


async def _hops(stream: Any) -> list[float]:
    """Seconds from each live token's being said by the owner to its arrival here."""
    times = []
    live_from = time.time() + 0.2
    async for response in stream:
        now = time.time()
        event = response.event
        said_at = event.at.seconds + event.at.nanos / 1e9
        if event.model.event.HasField("text_delta") and said_at > live_from:
            times.append(now - said_at)
    return times


async def _transits(texts: AsyncIterator[str]) -> list[float]:
    return [(time.perf_counter_ns() - int(text)) / 1e9 async for text in texts]


# -- back again ----------------------------------------------------------------------


async def resume(bench: Bench) -> None:
    """From WatchRun with a cursor to the first event after it."""
    model = f"tokens-{40 * bench.times // 10}-every-{EVERY_MS}"
    (thread,) = await bench.threads(1, f"bench/{model}")
    run = await bench.caller().start(thread)
    await asyncio.sleep(1)
    seen: dict[str, list[float]] = {"at the owner": [], "at another replica": [], "direct": []}
    early = run_pb2.Cursor(epoch=1, sequence=5)
    async with _stub(bench.upstream) as stub:
        for _ in range(bench.times):
            for name, number in (("at the owner", 0), ("at another replica", 1)):
                seen[name].append(await _first(bench.caller(number).watch(run.id, early)))
            seen["direct"].append(await _first(stub.StreamGenerate(_asked("tokens-1"))))
    await bench.caller().cancel(run.id)
    ended = [event.cursor for event in await bench.caller().watched(run.id)]
    after = [await _first(bench.caller(turn % 2).watch(run.id, ended[4])) for turn in range(bench.times)]
    direct = at(seen["direct"], 0.95)
    for name, times in ((f"live, {key}", seen[key]) for key in list(seen)[:2]):
        _resumed(name, times, direct)
    _resumed("ended", after, direct)


def _resumed(name: str, times: Sequence[float], direct: float) -> None:
    mine = at(times, 0.95)
    row(f"resume to first event, {name}, p95", ms(mine), direct=ms(direct), ratio=f"{mine / direct:.1f}", aim="≤ 50 ms")


async def _first(stream: Any) -> float:
    began = time.perf_counter()
    assert await stream.read() is not grpc.aio.EOF
    seconds = time.perf_counter() - began
    stream.cancel()
    return seconds


# -- how much ------------------------------------------------------------------------


async def rate(bench: Bench) -> None:
    """Runs of two steps, a model call and a store, by one process's CPU; the model and the memory are instant."""
    at_once = 4 * AT_ONCE
    each, rounds = max(5, bench.times // 20), 4
    async with bench.bare_caller() as bare:
        ways = [(bench.caller(), bench.replicas[0].pid), (bare, bench.bare.pid)]
        threads = [await bench.threads(at_once, "bench/tokens-3", TWO_STEPS) for _ in ways]

        async def runs(caller: Caller, thread: str, count: int) -> None:
            for _turn in range(count):
                async for _ in _said(caller.converse(thread)):
                    pass

        cpu, wall = [0.0, 0.0], [0.0, 0.0]
        # In turns, so that a machine that is slow for a while is slow for both.
        for round_ in range(rounds + 1):
            for place, (caller, pid) in enumerate(ways):
                process = psutil.Process(pid)
                before, began = process.cpu_times(), time.perf_counter()
                await asyncio.gather(*(runs(caller, thread, each) for thread in threads[place]))
                after, ended = process.cpu_times(), time.perf_counter()
                if round_:  # the first one opens connections and fills caches
                    cpu[place] += after.user + after.system - before.user - before.system
                    wall[place] += ended - began
    count = rounds * each * at_once
    rates, walls = ([count / seconds for seconds in found] for found in (cpu, wall))
    row(
        "two-step runs/s of one core, instant model",
        f"{rates[0]:,.0f}",
        bare=f"{rates[1]:,.0f}",
        ratio=f"{rates[0] / rates[1]:.2f}",
        aim="≥ 200",
    )
    row("  CPU a run", ms(cpu[0] / count), bare=ms(cpu[1] / count), ratio=f"{cpu[0] / cpu[1]:.2f}")
    row(
        f"  runs/s in all, {at_once} at once, the load on the same cores",
        f"{walls[0]:,.0f}",
        bare=f"{walls[1]:,.0f}",
        ratio=f"{walls[0] / walls[1]:.2f}",
    )


# -- when something ends -------------------------------------------------------------


async def takeover(bench: Bench) -> None:
    """From kill -9 of the owner to the next event at a watcher elsewhere."""
    times = []
    for _ in range(max(3, bench.times // 20)):
        (thread,) = await bench.threads(1, "bench/tokens-2000-every-20")
        run = await bench.caller().start(thread)
        stream = bench.caller(1).watch(run.id)
        while not (await stream.read()).event.model.event.HasField("text_delta"):
            pass
        bench.replicas[0].kill()
        killed = time.perf_counter()
        while (event := (await stream.read()).event).cursor.epoch == 1:
            pass
        times.append(time.perf_counter() - killed)
        assert event.HasField("attempt_restarted"), event
        await bench.caller(1).cancel(run.id)
        await bench.replicas[0].start()
    row("kill -9 of the owner to the first event of the next, worst", f"{max(times):.2f} s", aim="≤ 5 s")
    row("  median", f"{at(times, 0.5):.2f} s")


async def cancel(bench: Bench) -> None:
    """From CancelRun to the provider's seeing its connection closed, through the real inference service."""
    for number, where in ((0, "at the owner"), (1, "at another replica")):
        times = []
        for _ in range(max(20, bench.times // 2)):
            (thread,) = await bench.threads(1, "compatible/fake;tokens=2000;pace=20")
            stream = bench.caller().converse(thread)
            before = len(bench.wire.exchanges)
            while not (event := (await stream.read()).event).model.event.HasField("text_delta"):
                pass
            began = time.perf_counter()
            await bench.caller(number).cancel(event.run_id)
            exchange = bench.wire.exchanges[before]
            await exchange.client_gone.wait()
            times.append(exchange.gone_at - began)
            while (await stream.read()).event.WhichOneof("event") not in TERMINAL:
                pass
        row(f"cancel {where} to upstream closed, p95", ms(at(times, 0.95)), aim="≤ 100 ms")


# -- asking --------------------------------------------------------------------------


@asynccontextmanager
async def _stub(address: str) -> AsyncIterator[Any]:
    channel = connect(address)
    try:
        yield inference_rpc.InferenceServiceStub(channel)
    finally:
        await channel.close()


def _asked(model: str) -> inference_pb.StreamGenerateRequest:
    said = content.Message(role=content.ROLE_USER, parts=[content.Part(text="hello")])
    return inference_pb.StreamGenerateRequest(prompt=request_pb2.Prompt(model=f"bench/{model}", messages=[said]))


async def _generate(stub: Any, model: str) -> AsyncIterator[str]:
    """The texts of an answer."""
    async for response in stub.StreamGenerate(_asked(model)):
        if response.event.HasField("text_delta"):
            yield response.event.text_delta.text


async def _said(stream: Any) -> AsyncIterator[str]:
    """The texts of a run, which must end well."""
    ended = False
    async for response in stream:
        if response.event.model.event.HasField("text_delta"):
            yield response.event.model.event.text_delta.text
        ended = response.event.HasField("run_completed")
    assert ended, "a run did not complete"


async def _first_arrival(texts: AsyncIterator[str]) -> int:
    """When the model's call arrived; reads to the end, so that the next run is not in its way."""
    found = [int(text.split()[0]) async for text in texts]
    return found[0]


# -- all of it -----------------------------------------------------------------------


MEASURES: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "start": start,
    "hop": hop,
    "resume": resume,
    "rate": rate,
    "takeover": takeover,
    "cancel": cancel,
}


async def _measure(stack: StackThread, parts: Sequence[str], times: int) -> None:
    addresses = stack.addresses
    await migrate(PostgresSettings(url=addresses.postgres_url), ["janus_inference", "janus_orchestration"])
    async with AsyncExitStack() as kept:
        upstream = kept.enter_context(processes.services())
        wire = await kept.enter_async_context(serving(openai_wire.application))
        urls = (addresses.postgres_url, addresses.redis_url)
        inference = InferenceProcess(*urls, wire.url, stack.data / "inference.log")
        kept.push_async_callback(inference.stop)
        await inference.start()
        bare = kept.enter_context(processes.bare_run(*urls, upstream.address))
        for part in parts:
            # What is cancelled upstream goes through the real service.
            target = inference.address if part == "cancel" else upstream.address
            async with AsyncExitStack() as mine:
                replicas = [
                    Process(
                        *urls,
                        log=stack.data / "orchestration.log",
                        **DEFAULTS,
                        inference_target=target,
                        memory_target=upstream.address,
                    )
                    for _ in range(2)
                ]
                for replica in replicas:
                    mine.push_async_callback(replica.stop)
                    await replica.start()
                await MEASURES[part](Bench(replicas, bare, upstream.address, wire, times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="about how often each thing is done")
    add_parts(parser, MEASURES)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="janus-bench-"))
    stack = StackThread(folder, chroma=False).start()
    try:
        header(bare="bare run", ratio="ratio")
        uvloop.run(_measure(stack, arguments.only, arguments.times))
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
