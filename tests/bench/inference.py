"""`make bench`, second part: what the inference service adds between a caller and a provider.

The gateway is `janus serve --only inference` as a process, asked over gRPC on TCP. The provider is a
fake that costs almost nothing; asking it directly, by a bare HTTP client, is the baseline of every
figure. Provider, gateway and load share the machine in one run; with two cores, run it on a machine
that does nothing else. CPU is that of the gateway's own process alone.

With PEERS=1, LiteLLM is installed into an environment of its own (.venv-peers) and measured as well.
"""

import argparse
import asyncio
import gc
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import uvloop
from tests.bench import processes
from tests.bench.clients import Client, Grpc, Heard, Http, total
from tests.bench.processes import Measured
from tests.bench.table import at, header, ms, row, us

STREAMS = 32
MANY = 1_000
WARM_UP = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500, help="unary calls, and streams for the first token")
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long each throughput is measured")
    parser.add_argument("--only", default="", help="parts to measure, with commas: latency,tokens,flat,many")
    parser.add_argument("--peers", action="store_true", default=os.environ.get("PEERS") == "1")
    arguments = parser.parse_args()
    parts = [part for part in arguments.only.split(",") if part] or ["latency", "tokens", "flat", "many"]
    with tempfile.TemporaryDirectory(prefix="janus-bench-") as folder, processes.provider() as upstream:
        header("direct")
        if set(parts) - {"many"}:
            with processes.janus(Path(folder) / "first", upstream.address) as gateway:
                uvloop.run(_figures(gateway, upstream, arguments, parts))
        if "many" in parts:
            # A process of its own: memory that others left free would hide what a stream takes.
            with processes.janus(Path(folder) / "many", upstream.address) as gateway:
                uvloop.run(_many(gateway, upstream, 2 * arguments.seconds))
        if arguments.peers:
            from tests.bench import peers

            with peers.litellm(Path(folder), upstream.address) as gateway:
                header("direct")
                uvloop.run(_peer(gateway, upstream, arguments))


async def _figures(gateway: Measured, upstream: Measured, arguments: argparse.Namespace, parts: Sequence[str]) -> None:
    client, direct = Grpc(gateway.address, "bench", 4), Http(upstream.address)
    try:
        if "latency" in parts:
            await _latency(client, direct, arguments.calls)
        if "tokens" in parts:
            await _tokens(client, direct, gateway, arguments.seconds)
        if "flat" in parts:
            await _flat(client, gateway, arguments.seconds)
    finally:
        await client.close()
        await direct.close()


async def _peer(gateway: Measured, upstream: Measured, arguments: argparse.Namespace) -> None:
    client, direct = Http(gateway.address), Http(upstream.address)
    try:
        await _latency(client, direct, max(50, arguments.calls // 5))
        await _tokens(client, direct, gateway, arguments.seconds)
        row("LiteLLM: resident memory", f"{gateway.rss() / 1e6:.0f} MB")
    finally:
        await client.close()
        await direct.close()


async def _latency(client: Client, direct: Client, calls: int) -> None:
    """One call in flight, through the gateway and directly in turn."""
    unary: tuple[list[float], list[float]] = ([], [])
    first: tuple[list[float], list[float]] = ([], [])
    for call in range(calls + WARM_UP):
        for at_hand, seen_unary, seen_first in zip((client, direct), unary, first, strict=True):
            began = time.perf_counter()
            await at_hand.unary("tokens-16")
            seconds = time.perf_counter() - began
            heard = await at_hand.stream("tokens-16")
            if call >= WARM_UP:
                seen_unary.append(seconds)
                seen_first.append(heard.first_s)
    for name, quantile, aim in (("p50", 0.5, "≤ 2 ms"), ("p99", 0.99, "≤ 5 ms")):
        ours, theirs = at(unary[0], quantile), at(unary[1], quantile)
        row(f"unary, 1 in flight, {name}: added", ms(ours), ms(theirs), ms(ours - theirs), aim)
    for name, quantile, aim in (("p50", 0.5, "≤ 2 ms"), ("p99", 0.99, "")):
        ours, theirs = at(first[0], quantile), at(first[1], quantile)
        row(f"time to first token, {name}: added", ms(ours), ms(theirs), ms(ours - theirs), aim)


async def _tokens(client: Client, direct: Client, gateway: Measured, seconds: float) -> None:
    """CPU a token at 32 streams."""
    for name, model, aim, rate_aim in (
        ("burst", "tokens-200", "≤ 15 µs", "≥ 60,000"),
        ("one token a message", "tokens-200-every-5", "≤ 45 µs", ""),
    ):
        cpu, tokens, messages, wall = await _rounds(client, gateway, model, STREAMS, seconds)
        before = _own_cpu()
        direct_tokens = total(await _round(direct, model, STREAMS, timed=False))[0]
        bare = (_own_cpu() - before) / direct_tokens
        row(f"CPU a token, {STREAMS} streams, {name}", us(cpu / tokens), us(bare), f"{cpu / tokens / bare:.1f}", aim)
        row("  tokens a message", f"{tokens / messages:.1f}")
        if rate_aim:
            row("  tokens/s of one core", f"{tokens / cpu:,.0f}", "", "", rate_aim)
        row("  tokens/s in all, the load on the same cores", f"{tokens / wall:,.0f}")


async def _flat(client: Client, gateway: Measured, seconds: float) -> None:
    """Whether a token costs the same among many streams and in a long answer."""
    cost: dict[str, float] = {}
    for name, model, streams in (
        ("32 streams of 200", "tokens-200", STREAMS),
        ("1,000 streams of 200", "tokens-200", MANY),
        ("32 streams of 2,000", "tokens-2000", STREAMS),
        ("32 streams of 20,000", "tokens-20000", STREAMS),
    ):
        cpu, tokens, messages, _ = await _rounds(client, gateway, model, streams, seconds)
        cost[name] = cpu / tokens
        base = cost["32 streams of 200"]
        row(
            f"CPU a token, {name} tokens, burst",
            us(cpu / tokens),
            us(base),
            f"{cpu / tokens / base:.2f}",
            "flat" if streams == MANY or "20,000" in name else "",
        )
        row("  tokens a message", f"{tokens / messages:.1f}")


async def _many(gateway: Measured, upstream: Measured, seconds: float) -> None:
    """1,000 streams at 20 tokens a second each."""
    client, direct = Grpc(gateway.address, "bench", 8), Http(upstream.address)
    lead = 4.0
    model = f"tokens-{int((seconds + 2 * lead) * 20)}-every-50"
    try:
        await _round(client, "tokens-200", STREAMS)
        gc.disable()
        bare = await _paced(direct, model, lead, seconds)
        idle, before = gateway.rss(), gateway.cpu_s()
        samples: list[int] = []
        ours = await _paced(client, model, lead, seconds, lambda: samples.append(gateway.rss()))
        cpu = gateway.cpu_s() - before
    finally:
        gc.enable()
        await client.close()
        await direct.close()
    name = f"{MANY:,} streams at 20 tokens/s"
    for label, pick, aim in (("gap between tokens", 0, "≤ 50 ms"), ("token under way", 1, "")):
        mine, theirs = at(ours[pick], 0.99), at(bare[pick], 0.99)
        row(f"{name}, {label}, p99: added", ms(mine), ms(theirs), ms(mine - theirs), aim)
    row(f"{name}, memory a stream", f"{(max(samples) - idle) / MANY / 1e3:.0f} KB", "", "", "≤ 100 KB")
    row(f"{name}, CPU a token", us(cpu / ours[2]), "", "", "")


async def _paced(
    client: Client, model: str, lead: float, seconds: float, sample: Callable[[], None] | None = None
) -> tuple[list[float], list[float], int]:
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
    heard = await asyncio.gather(*running)
    gaps: list[float] = []
    transits: list[float] = []
    for each in heard:
        times = list(zip(each.sent_ns, each.got_ns, strict=True))
        for (sent_before, got_before), (sent, got) in pairwise(times):
            if begins <= sent <= ends:
                gaps.append(((got - got_before) - (sent - sent_before)) / 1e9)
                transits.append((got - sent) / 1e9)
    return gaps, transits, total(heard)[0]


async def _rounds(
    client: Client, gateway: Measured, model: str, streams: int, seconds: float
) -> tuple[float, int, int, float]:
    """The gateway's CPU seconds, tokens, messages and seconds of several rounds."""
    await _round(client, "tokens-200", streams)
    began, before = time.perf_counter(), gateway.cpu_s()
    tokens = messages = 0
    while time.perf_counter() < began + seconds:
        more, parts = total(await _round(client, model, streams))
        tokens, messages = tokens + more, messages + parts
    return gateway.cpu_s() - before, tokens, messages, time.perf_counter() - began


async def _round(client: Client, model: str, streams: int, *, timed: bool = False) -> Sequence[Heard]:
    """So many streams at once, each to its end."""
    paced = "-every-" in model
    return await asyncio.gather(*[client.stream(model, timed=paced or timed) for _ in range(streams)])


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
