"""`make chaos-memory`: people write, change, forget and are erased while everything under them is killed.

Two replicas of the memory service as processes, over an embedded Postgres, Valkey and Chroma. Clients
work through sequences of writes, each repeated with its request id until it is acknowledged, and read
back what they wrote; meanwhile kill -9 hits the replicas and the stores, one by one or all at once, and
they are started again. At the end every store is searched for what was erased or purged, everything
that was acknowledged is read in every way there is, and the reconciler compares the stores.

The seed decides what each client does, and the order of the kills, by the number of steps done; what is
under way when one comes is the machine's chance. Exits with 1 when anything is not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import grpc
from tests.chaos.memory_people import HALLS, Person, Violated
from tests.chaos.parts import EVERYTHING, counted, kill_service, kill_store, plan
from tests.conftest import StackThread
from tests.fakes.memory_process import MemoryProcess
from tests.fakes.memory_service import Caller, texts
from tests.fakes.traces import traces

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import space_pb2
from janus_kit.rpc_errors import from_rpc
from janus_kit.settings import PostgresSettings, RedisSettings
from janus_memory.settings import MemorySettings
from janus_memory.verify import verify

T = TypeVar("T")

STORES = ("postgres", "redis", "chroma")
REPLICAS = ("memory 1", "memory 2")
PARTS = (*REPLICAS, *STORES)
SPACES = {"near": space_pb2.VECTOR_BACKEND_PGVECTOR, "far": space_pb2.VECTOR_BACKEND_CHROMA}
TENANTS = 2
_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_ANSWERED_WITHIN_S = 180.0
_BACK_WITHIN_S = 120.0


@dataclass
class Report:
    """What was done, and what was wrong."""

    seed: int
    sequences: int
    seconds: float = 0.0
    steps: int = 0
    acknowledged: Counter[str] = field(default_factory=Counter)
    reads: int = 0
    repeated: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    gone: int = 0
    kept: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    differences: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            ("seed", self.seed),
            ("sequences", f"{self.sequences} with {self.steps} steps, {self.seconds:.0f} s"),
            ("kills", counted(self.kills)),
            ("acknowledged writes", counted(self.acknowledged)),
            ("reads", self.reads),
            ("calls made again", counted(self.repeated)),
            ("texts kept", f"{self.kept}, read in every way"),
            ("texts erased or purged", f"{self.gone}, looked for in every store"),
            ("repaired by the reconciler", counted(self.repaired)),
            ("differences after it", counted(self.differences)),
            ("violations", len(self.violations)),
        ]
        return "\n".join(f"{name:28}{value}" for name, value in lines) + "".join(
            f"\n  {each}" for each in self.violations
        )


@dataclass
class Chaos:
    """The service, what it stands on, and who uses it."""

    stack: StackThread
    replicas: dict[str, MemoryProcess]
    report: Report
    dice: random.Random
    tenants: list[str] = field(default_factory=lambda: [f"t{uuid4().hex[:12]}" for _ in range(TENANTS)])
    people: list[tuple[str, Person]] = field(default_factory=list)
    _down: dict[str, asyncio.Lock] = field(default_factory=lambda: {part: asyncio.Lock() for part in PARTS})

    def client(self, tenant: str, dice: random.Random) -> Callable[[Callable[[Caller], Awaitable[T]]], Awaitable[T]]:
        """A client that makes a call again, at any replica, until it is answered."""

        async def until_done(call: Callable[[Caller], Awaitable[T]]) -> T:
            end = time.monotonic() + _ANSWERED_WITHIN_S
            while True:
                try:
                    found = await call(self.replicas[dice.choice(REPLICAS)].caller(tenant))
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _AGAIN:
                        raise Violated(f"refused: {from_rpc(error)!r}") from None
                    if time.monotonic() > end:
                        raise Violated(f"not answered for {_ANSWERED_WITHIN_S:.0f} s: {from_rpc(error)!r}") from None
                    self.report.repeated[error.code().name] += 1
                    await asyncio.sleep(0.05)
                else:
                    return found

        return until_done

    async def use(self, clients: int, kills: Sequence[str]) -> None:
        """Work through all sequences, while the parts are killed in turn."""
        for tenant in self.tenants:
            until_done = self.client(tenant, self.dice)
            for name, backend in SPACES.items():
                request = pb.PutSpaceRequest(space=space_pb2.Space(name=name, backend=backend))
                await until_done(lambda desk, request=request: desk.call("PutSpace", request))
        waiting = []
        for number in range(self.report.sequences):
            dice = random.Random(f"{self.report.seed} {number}")
            tenant = dice.choice(self.tenants)
            person = Person(self.client(tenant, random.Random(f"{number}")), dice.choice(list(SPACES)), dice)
            self.people.append((tenant, person))
            waiting.append((number, person, person.steps()))
        planned = sum(len(steps) for _, _, steps in waiting)
        waiting.reverse()

        async def work() -> None:
            while waiting:
                await self._sequence(*waiting.pop())

        async with asyncio.TaskGroup() as group:
            killer = group.create_task(self._kill_in_turn(kills, planned))
            async with asyncio.TaskGroup() as workers:
                for _ in range(clients):
                    workers.create_task(work())
            # What is left of the kills would hit nobody.
            killer.cancel()

    async def _sequence(self, number: int, person: Person, steps: Sequence[Callable[[], Awaitable[None]]]) -> None:
        try:
            for step in steps:
                await step()
                self.report.steps += 1
                if person.dice.random() < 0.5:
                    await person.look()
                    self.report.reads += 1
        except Violated as violated:
            self.report.violations.append(f"sequence {number}: {violated}")

    async def _kill_in_turn(self, kills: Sequence[str], planned: int) -> None:
        """Each part at its turn, spread over the steps; the next may come while the one before is down."""
        dice = random.Random(f"times {self.report.seed}")
        async with asyncio.TaskGroup() as group:
            for number, part in enumerate(kills):
                due = planned * (number + dice.random()) / len(kills)
                pause, silence = dice.uniform(0, 0.03), dice.uniform(0, 0.5)
                while self.report.steps < due:  # noqa: ASYNC110 - many clients count
                    await asyncio.sleep(0.005)
                await asyncio.sleep(pause)
                for each in PARTS if part == EVERYTHING else [part]:
                    group.create_task(self._kill(each, silence))
                self.report.kills[part] += 1

    async def _kill(self, part: str, silence: float) -> None:
        async with self._down[part]:
            if part in STORES:
                await kill_store(self.stack, part)
            else:
                await kill_service(self.replicas[part], asyncio.sleep(silence))

    async def check(self) -> None:
        """After it all: everything acknowledged is there, nothing removed is, and the stores are equal."""
        addresses = self.stack.addresses
        for tenant in self.tenants:
            await self._indexed(tenant)
        self.report.repaired = await self._differences(repair=True)
        for tenant in self.tenants:
            await self._indexed(tenant)
        self.report.differences = await self._differences(repair=False)
        if self.report.differences:
            self.report.violations.append(f"the stores differ: {counted(self.report.differences)}")
        for number, (_, person) in enumerate(self.people):
            try:
                await person.look_everywhere()
            except Violated as violated:
                self.report.violations.append(f"at the end, sequence {number}: {violated}")
            self.report.acknowledged.update(person.acknowledged)
            self.report.kept += len(person.texts)
        await self._halls()
        gone = [word for _, person in self.people for word in person.gone]
        self.report.gone = len(gone)
        urls = (addresses.postgres_url, addresses.redis_url, addresses.chroma_url)
        found = await traces(*urls, *gone)
        self.report.violations += [f"erased or purged, and there: {each}" for each in found]
        kept = [text.split()[0] for _, person in self.people for text in person.texts]
        if not await traces(*urls, *kept[:10]):
            self.report.violations.append("what is there was not found either")

    async def _indexed(self, tenant: str) -> None:
        """Wait until the index of each space has caught up."""
        until_done = self.client(tenant, self.dice)
        end = time.monotonic() + _BACK_WITHIN_S
        for name in SPACES:
            ask = partial(Caller.call, method="GetSpace", request=pb.GetSpaceRequest(name=name))
            while backlog := (await until_done(ask)).space.index_backlog:
                if time.monotonic() > end:
                    self.report.violations.append(f"{backlog} records of {name} are not indexed")
                    return
                await asyncio.sleep(0.1)

    async def _differences(self, *, repair: bool) -> Counter[str]:
        addresses = self.stack.addresses
        compared = verify(
            MemorySettings(chroma_url=addresses.chroma_url),
            postgres=PostgresSettings(url=addresses.postgres_url),
            redis=RedisSettings(url=addresses.redis_url),
            repair=repair,
        )
        found: Counter[str] = Counter()
        async for each in compared:
            for name in ("missing", "stale", "surplus", "terms", "windows", "dead"):
                found[name] += getattr(each, name)
            found["away"] += len(each.away)
        return +found

    async def _halls(self) -> None:
        """Threads that everybody talked in hold what each of them said there, in order, and once."""
        for tenant in self.tenants:
            for space in SPACES:
                for hall in (f"hall{number}" for number in range(HALLS)):
                    until_done = self.client(tenant, self.dice)
                    asked: Any = {"scope": {"space": space}, "max_messages": 1_000, "max_tokens": 1_000_000}
                    shown = texts(await until_done(lambda desk, hall=hall, asked=asked: desk.window(hall, **asked)))
                    here = [each for of, each in self.people if (of, each.space) == (tenant, space)]
                    expected = [text for each in here for text in each.halls.get(hall, [])]
                    if Counter(shown) != Counter(expected):
                        missing, extra = Counter(expected) - Counter(shown), Counter(shown) - Counter(expected)
                        self.report.violations.append(f"{space} {hall}: lost {missing}, too much {extra}")


async def chaos(stack: StackThread, *, seed: int, sequences: int, kills: Sequence[str], clients: int) -> Report:
    """Run it on a stack of its own. ``kills``: parts, in their order."""
    addresses = stack.addresses
    urls = (addresses.postgres_url, addresses.redis_url, addresses.chroma_url or "")
    report = Report(seed, sequences)
    replicas = {name: MemoryProcess(*urls, stack.data / f"{name}.log") for name in REPLICAS}
    run = Chaos(stack, replicas, report, random.Random(seed))
    began = time.monotonic()
    try:
        await asyncio.gather(*(replica.start() for replica in run.replicas.values()))
        await run.use(clients, kills)
        await run.check()
    finally:
        for replica in run.replicas.values():
            await replica.stop()
    report.seconds = time.monotonic() - began
    return report


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make chaos-memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: by chance")
    parser.add_argument("--sequences", type=int, default=200, help="default: 200")
    parser.add_argument("--kills", type=int, default=0, help="default: half as many as sequences")
    parser.add_argument("--clients", type=int, default=16, help="at the same time; default: 16")
    asked = parser.parse_args(arguments)
    print(f"seed {asked.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="janus-chaos-"))
    stack = StackThread(folder).start()
    try:
        kills = plan(asked.seed, asked.kills or asked.sequences // 2, PARTS)
        report = asyncio.run(
            chaos(stack, seed=asked.seed, sequences=asked.sequences, kills=kills, clients=asked.clients)
        )
    finally:
        stack.stop()
    print(report)
    if report.violations:
        print(f"what everybody said and stored is in {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
