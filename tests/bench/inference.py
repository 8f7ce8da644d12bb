"""`make bench`, second part: what the inference service adds between a caller and a provider.

The gateway is `janus serve --only inference` as a process, asked over gRPC on TCP. The provider is a
fake that costs almost nothing. Each figure has its baselines from the same run, measured in turn:

- direct: the provider asked by a bare HTTP client;
- bare chain: the least that could translate between the two (`bare_chain.py`), which tells what
  the SDK, gRPC and this machine cost, and so what of a figure is Janus;
- bare chain and a commit: the same, and one row committed to the gateway's Postgres: the least that
  could have what was used on record before it says the end of an answer, as Janus does.

`added` is to direct, `ratio` to the bare chain. Provider, gateway and load share the machine: on two
cores, run it on a machine that does nothing else. CPU is that of the gateway's own process alone.

With PEERS=1, LiteLLM is installed into an environment of its own (.venv-peers) and measured as well.
"""

import argparse
import asyncio
import gc
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import grpc
import uvloop
from tests.bench import processes
from tests.bench.clients import Client, Committed, Grpc, Heard, Http, PlainGrpc, total
from tests.bench.processes import Measured
from tests.bench.table import add_parts, at, header, ms, row, us

STREAMS = 32
MANY = 1_000
WARM_UP = 20
PARTS = ("latency", "tokens", "flat", "many")
Paced: TypeAlias = tuple[list[float], list[float], int]


@dataclass(frozen=True)
class Bench:
    """What is measured, what it is compared with, and for how long."""

    gateway: Measured
    bare: Measured
    upstream: Measured
    calls: int
    seconds: float


@dataclass
class Used:
    """What some streams of a model took of a process."""

    cpu_s: float = 0.0
    tokens: int = 0
    messages: int = 0
    wall_s: float = 0.0

    @property
    def per_token(self) -> float:
        return self.cpu_s / self.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500, help="unary calls, and streams for the first token")
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long each throughput is measured")
    add_parts(parser, PARTS)
    parser.add_argument("--peers", action="store_true", default=os.environ.get("PEERS") == "1")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="janus-bench-") as folder,
        processes.provider() as upstream,
        processes.bare_chain(upstream.address) as bare,
    ):
        header()
        for name in ("first", "many"):
            # A process of its own for many streams: memory that others left free would hide what a stream takes.
            chosen = [part for part in arguments.only if (part == "many") == (name == "many")]
            if not chosen:
                continue
            with processes.janus(Path(folder) / name, upstream.address) as gateway:
                uvloop.run(_figures(Bench(gateway, bare, upstream, arguments.calls, arguments.seconds), chosen))
        if arguments.peers:
            from tests.bench import peers

            with peers.litellm(Path(folder), upstream.address) as gateway:
                header()
                calls = max(50, arguments.calls // 5)
                uvloop.run(_peer(Bench(gateway, bare, upstream, calls, arguments.seconds)))


async def _figures(bench: Bench, parts: Sequence[str]) -> None:
    measures = {"latency": _latency, "tokens": _tokens, "flat": _flat, "many": _many}
    for part in parts:
        await measures[part](bench)


async def _latency(bench: Bench) -> None:
    """One call in flight, in turn through each."""
    clients: list[Client] = [PlainGrpc(bench.gateway.address, "bench"), Http(bench.upstream.address)]
    clients += [PlainGrpc(bench.bare.address, "bench"), Committed(bench.bare.address, bench.gateway.postgres_url)]
    await _one_by_one(clients, bench.calls)


async def _one_by_one(clients: Sequence[Client], calls: int) -> None:
    unary: list[list[float]] = [[] for _ in clients]
    first: list[list[float]] = [[] for _ in clients]
    for call in range(calls + WARM_UP):
        for client, seen_unary, seen_first in zip(clients, unary, first, strict=True):
            began = time.perf_counter()
            await client.unary("tokens-16")
            seconds = time.perf_counter() - began
            heard = await client.stream("tokens-16")
            if call >= WARM_UP:
                seen_unary.append(seconds)
                seen_first.append(heard.first_s)
    for what, seen, aims in (
        ("unary, 1 in flight", unary, ("≤ 2 ms", "≤ 5 ms")),
        ("time to first token", first, ("≤ 2 ms", "")),
    ):
        for name, quantile, aim in zip(("p50", "p99"), (0.5, 0.99), aims, strict=True):
            ours, direct, *least = (at(each, quantile) for each in seen)
            row(
                f"{what}, {name}: added",
                ms(ours),
                direct=ms(direct),
                bare=ms(least[0]) if least else "",
                ratio=ms(ours - direct),
                aim=aim,
            )
            if least and seen is unary:
                row("  bare chain and a commit: added", ms(least[1]), ratio=ms(least[1] - direct))
    for client in clients:
        await client.close()


async def _tokens(bench: Bench) -> None:
    """CPU a token at 32 streams."""
    clients = Grpc(bench.gateway.address, "bench", 4), Grpc(bench.bare.address, "bench", 4)
    for name, model, aim, rate_aim in (
        ("burst", "tokens-200", "≤ 15 µs", "≥ 60,000"),
        ("burst, one token a message", "tokens-200-apart", "≤ 45 µs", ""),
        ("one token each 5 ms", "tokens-200-every-5", "", ""),
    ):
        ours, bare = await _in_turn(
            [(clients[0], bench.gateway, model, STREAMS), (clients[1], bench.bare, model, STREAMS)], bench.seconds
        )
        _cpu_row(f"CPU a token, {STREAMS} streams, {name}", ours, bare, aim)
        if rate_aim:
            row(
                "  tokens/s of one core",
                f"{1 / ours.per_token:,.0f}",
                bare=f"{1 / bare.per_token:,.0f}",
                ratio=f"{bare.per_token / ours.per_token:.2f}",
                aim=rate_aim,
            )
        rates = [f"{each.tokens / each.wall_s:,.0f}" for each in (ours, bare)]
        row("  tokens/s in all, the load on the same cores", rates[0], bare=rates[1])
    for client in clients:
        await client.close()


def _cpu_row(what: str, ours: Used, bare: Used, aim: str) -> None:
    row(what, us(ours.per_token), bare=us(bare.per_token), ratio=f"{ours.per_token / bare.per_token:.2f}", aim=aim)
    row(
        "  tokens a message",
        f"{ours.tokens / ours.messages:.1f}",
        bare=f"{bare.tokens / bare.messages:.1f}",
    )


async def _flat(bench: Bench) -> None:
    """Whether a token costs the same among many streams and in a long answer."""
    client = Grpc(bench.gateway.address, "bench", 4)
    base = (client, bench.gateway, "tokens-200", STREAMS)
    for name, model, streams in (
        ("1,000 streams of 200", "tokens-200", MANY),
        ("32 streams of 2,000", "tokens-2000", STREAMS),
        ("32 streams of 20,000", "tokens-20000", STREAMS),
    ):
        ours, usual = await _in_turn([(client, bench.gateway, model, streams), base], bench.seconds)
        what = f"CPU a token, {name} tokens, to 32 of 200"
        row(what, us(ours.per_token), ratio=f"{ours.per_token / usual.per_token:.2f}", aim="flat: about 1 or less")
    await client.close()


async def _many(bench: Bench) -> None:
    """1,000 streams at 20 tokens a second each."""
    client, direct = Grpc(bench.gateway.address, "bench", 8), Http(bench.upstream.address)
    bare = Grpc(bench.bare.address, "bench", 8)
    seconds, lead = 2 * bench.seconds, 4.0
    model = f"tokens-{int((seconds + 2 * lead) * 20)}-every-50"
    await _round(client, "tokens-200", STREAMS)
    idle = bench.gateway.rss()
    samples: list[int] = []
    gc.disable()
    try:
        straight = await _paced(direct, model, lead, seconds)
        chained = await _used(bench.bare, _paced(bare, model, lead, seconds))
        ours = await _used(
            bench.gateway, _paced(client, model, lead, seconds, lambda: samples.append(bench.gateway.rss()))
        )
    finally:
        gc.enable()
    for each in (client, direct, bare):
        await each.close()
    name = f"{MANY:,} streams at 20 tokens/s"
    for label, pick, aim in (("gap between tokens", 0, "≤ 50 ms"), ("token under way", 1, "")):
        theirs = at(straight[pick], 0.99)
        mine, least = (each if isinstance(each, str) else at(each[0][pick], 0.99) for each in (ours, chained))
        row(
            f"{name}, {label}, p99: added",
            mine if isinstance(mine, str) else ms(mine),
            direct=ms(theirs),
            bare=least if isinstance(least, str) else ms(least),
            ratio="" if isinstance(mine, str) else ms(mine - theirs),
            aim=aim,
        )
    row(f"{name}, memory a stream", f"{(max(samples) - idle) / MANY / 1e3:.0f} KB", aim="≤ 100 KB")
    mine, least = (each if isinstance(each, str) else each[1] / each[0][2] for each in (ours, chained))
    row(
        f"{name}, CPU a token",
        mine if isinstance(mine, str) else us(mine),
        bare=least if isinstance(least, str) else us(least),
        ratio="" if isinstance(mine, str) or isinstance(least, str) else f"{mine / least:.2f}",
    )


async def _used(process: Measured, paced: Awaitable[Paced]) -> tuple[Paced, float] | str:
    """What was heard and the CPU time it took, in seconds; or the status of what broke.

    Both break where a message costs more than the 50 µs that there are for it: gRPC gives a call up
    that waited 30 s for its server.
    """
    before = process.cpu_s()
    try:
        return await paced, process.cpu_s() - before
    except grpc.aio.AioRpcError as overloaded:
        return overloaded.code().name


async def _peer(bench: Bench) -> None:
    """Another gateway, asked over HTTP as its clients do."""
    client = Http(bench.gateway.address)
    await _one_by_one([Http(bench.gateway.address), Http(bench.upstream.address)], bench.calls)
    bare = Grpc(bench.bare.address, "bench", 4)
    for name, model in (("burst", "tokens-200"), ("one token each 5 ms", "tokens-200-every-5")):
        ours, least = await _in_turn(
            [(client, bench.gateway, model, STREAMS), (bare, bench.bare, model, STREAMS)], bench.seconds
        )
        _cpu_row(f"CPU a token, {STREAMS} streams, {name}", ours, least, "")
        row("  tokens/s in all, the load on the same cores", f"{ours.tokens / ours.wall_s:,.0f}")
    row("resident memory", f"{bench.gateway.rss() / 1e6:.0f} MB")
    await client.close()
    await bare.close()


async def _paced(
    client: Client, model: str, lead: float, seconds: float, sample: Callable[[], None] | None = None
) -> Paced:
    """Added gaps and transit times of all tokens while every stream was open, and the number of all tokens."""

    async def one(number: int) -> Heard:
        await asyncio.sleep(lead * number / MANY)
        return await client.stream(model, timed=True)

    running = [asyncio.create_task(one(number)) for number in range(MANY)]
    begins = (time.perf_counter() + lead) * 1e9
    ends = begins + seconds * 1e9
    while sample and time.perf_counter() * 1e9 < ends:
        await asyncio.sleep(0.5)
        sample()
    try:
        heard = await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    gaps: list[float] = []
    transits: list[float] = []
    for each in heard:
        times = list(zip(each.sent_ns, each.got_ns, strict=True))
        for (sent_before, got_before), (sent, got) in pairwise(times):
            if begins <= sent <= ends:
                gaps.append(((got - got_before) - (sent - sent_before)) / 1e9)
                transits.append((got - sent) / 1e9)
    return gaps, transits, total(heard)[0]


async def _in_turn(cases: Sequence[tuple[Client, Measured, str, int]], seconds: float) -> list[Used]:
    """What each case used; a round of one follows a round of the other, so that all see the same machine."""
    for client, _, _, _ in cases:
        await _round(client, "tokens-200", STREAMS)
    used = [Used() for _ in cases]
    while min(each.wall_s for each in used) < seconds:
        for (client, process, model, streams), mine in zip(cases, used, strict=True):
            began, before = time.perf_counter(), process.cpu_s()
            while time.perf_counter() < began + 0.5:
                tokens, messages = total(await _round(client, model, streams))
                mine.tokens, mine.messages = mine.tokens + tokens, mine.messages + messages
            mine.cpu_s += process.cpu_s() - before
            mine.wall_s += time.perf_counter() - began
    return used


async def _round(client: Client, model: str, streams: int) -> Sequence[Heard]:
    """So many streams at once, each to its end."""
    return await asyncio.gather(*[client.stream(model, timed="-every-" in model) for _ in range(streams)])


if __name__ == "__main__":
    main()
