"""`make chaos-runs`: people talk with agents while replicas, workers and stores are killed and frozen.

Replicas of orchestration and tool workers as processes, a real inference service before a provider's
HTTP, Postgres and Valkey. Runs are plain or call tools of all three side-effect classes, several at once;
some ask for consent, some are cancelled. Each is watched by two clients that leave and come back with their
cursor, at whichever replica. Meanwhile kill -9 hits the replicas, the workers and the stores, one by one or
all at once, and replicas and workers are stopped (SIGSTOP) for longer than their leases and go on. At the
end what every watcher saw, what the workers wrote down, what the threads hold and what Postgres noted of
every write are compared.

The seed decides what each run does, and the order of the faults, by the number of runs that are over; what
is under way when one comes is the machine's chance. Exits with 1 when anything is not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc
from tests.chaos import runs_audit, runs_check
from tests.chaos.parts import EVERYTHING, counted, kill_service, kill_store, plan
from tests.chaos.runs_model import TOOLS, Plan, application
from tests.chaos.runs_people import Asked, People, Violated
from tests.conftest import StackThread
from tests.fakes.inference_processes import InferenceProcess
from tests.fakes.orchestration_service import Process, assert_pairs, kinds
from tests.fakes.providers.http_server import serving
from tests.fakes.worker_process import WorkerProcess, Workers

from janus_api.orchestration.v1 import agent_pb2
from janus_kit.migrations import migrate
from janus_kit.settings import PostgresSettings

STORES = ("postgres", "redis")
REPLICAS = ("replica 1", "replica 2")
WORKER, FROZEN_WORKER = "worker", "frozen worker"
FROZEN = {f"frozen {name}": name for name in REPLICAS}
PARTS = (*REPLICAS, *FROZEN, WORKER, FROZEN_WORKER, *STORES)
WORKERS = 2
LEASE_S = 1.5
WORKER_LEASE_S = 2.5
_TENANT = "chaos"
# Agents: the second asks before it calls what may run once.
_PLAIN, _CAREFUL = "plain", "careful"


@dataclass
class Report:
    """What was done, and what was wrong."""

    seed: int
    wanted: int
    seconds: float = 0.0
    over: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    events: int = 0
    durable: int = 0
    restarted: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    taken: int = 0
    fenced: int = 0
    writes: int = 0
    looks: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            ("seed", self.seed),
            ("runs", f"{counted(self.ends)}, {self.seconds:.0f} s"),
            ("faults", counted(self.faults)),
            ("watchers came back", counted(self.repeated)),
            ("events seen", f"{self.events}, and {self.durable} are journalled"),
            ("tools ran", counted(self.calls)),
            ("consents asked for", counted(self.answers)),
            ("runs taken over", f"{self.taken}, and {self.fenced} owners found themselves fenced"),
            ("model calls made again", self.restarted),
            ("writes of owners", f"{self.writes}, each compared with who owned the run"),
            ("threads read meanwhile", self.looks),
            ("violations", len(self.violations)),
        ]
        return "\n".join(f"{name:28}{value}" for name, value in lines) + "".join(
            f"\n  {each}" for each in self.violations
        )


@dataclass
class Chaos:
    """The service, what it stands on, and who uses it."""

    stack: StackThread
    replicas: dict[str, Process]
    workers: Workers
    people: People
    report: Report
    threads: dict[str, list[Asked]] = field(default_factory=dict)
    _down: dict[str, asyncio.Lock] = field(
        default_factory=lambda: {part: asyncio.Lock() for part in (*REPLICAS, WORKER, *STORES)}
    )

    @property
    def asked(self) -> list[Asked]:
        return [each for runs in self.threads.values() for each in runs]

    # -- use -------------------------------------------------------------------------

    async def use(self, clients: int, faults: Sequence[str]) -> None:
        """Have all runs, while the faults come in turn."""
        await self._agents()
        waiting = list(self._conversations())

        async def work() -> None:
            while waiting:
                await self._guarded(*waiting.pop())

        async with asyncio.TaskGroup() as group:
            faulting = group.create_task(self._in_turn(faults))
            looking = group.create_task(self._look())
            async with asyncio.TaskGroup() as workers:
                for _ in range(clients):
                    workers.create_task(work())
            looking.cancel()
            # What is left of the faults would hit nobody; what began ends.
            faulting.cancel()

    async def _agents(self) -> None:
        dice = random.Random(0)
        tools = [agent_pb2.AgentTool(name=name, when_no_worker=agent_pb2.WHEN_NO_WORKER_WAIT) for name in TOOLS]
        async with asyncio.timeout(60):
            while True:
                # Refused until a worker has offered its tools.
                with suppress(grpc.aio.AioRpcError):
                    caller = self.replicas[dice.choice(REPLICAS)].caller(_TENANT)
                    for name, policy in ((_PLAIN, None), (_CAREFUL, agent_pb2.ApprovalPolicy(tools=["once"]))):
                        await caller.agent(name, model="compatible/planned", tools=tools, approval=policy)
                    return
                await asyncio.sleep(0.1)

    def _conversations(self) -> list[tuple[random.Random, list[tuple[Plan, bool]]]]:
        """For each thread its dice, and its runs: what they do, and whether they are cancelled."""
        made: list[tuple[random.Random, list[tuple[Plan, bool]]]] = []
        left = self.report.wanted
        while left:
            dice = random.Random(f"{self.report.seed} {len(made)}")
            turns = min(left, dice.randint(1, 4))
            left -= turns
            plans = [Plan.by_chance(f"w{len(made)}x{turn}", dice) for turn in range(turns)]
            made.append((dice, [(each, dice.random() < 0.1) for each in plans]))
        return made[::-1]

    async def _guarded(self, dice: random.Random, plans: Sequence[tuple[Plan, bool]]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._conversation(dice, plans))
        except* Violated as violated:
            self.report.violations += _each(violated)

    async def _conversation(self, dice: random.Random, plans: Sequence[tuple[Plan, bool]]) -> None:
        """One thread: its turns wait for each other at the client, or in the thread."""
        is_careful = dice.random() < 0.25
        agent = _CAREFUL if is_careful else _PLAIN
        thread = await self.people.until_done(lambda caller: caller.thread(agent), dice)
        asked = [Asked(each, thread, is_cancelled, is_careful) for each, is_cancelled in plans]
        self.threads[thread] = asked
        at_once = dice.random() < 0.3
        async with asyncio.TaskGroup() as group:
            for each in asked:
                if at_once:
                    await self.people.start(each, dice)
                watched = group.create_task(self._followed(each, dice))
                if not at_once:
                    await watched

    async def _followed(self, asked: Asked, dice: random.Random) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.people.converse(asked, random.Random(dice.random())))
            group.create_task(self.people.watch_later(asked, random.Random(dice.random())))
            if asked.is_cancelled:
                group.create_task(self.people.cancel(asked, random.Random(dice.random())))
        self.report.over += 1

    async def _look(self) -> None:
        """Somebody who reads threads at any time, and finds no call without its result."""
        dice = random.Random(f"looks {self.report.seed}")
        while True:
            await asyncio.sleep(0.1)
            if not self.threads:
                continue
            thread = dice.choice(list(self.threads))
            history = await self.people.until_done(lambda caller, thread=thread: caller.messages(thread), dice)  # type: ignore[misc]
            self.report.looks += 1
            try:
                assert_pairs(history)
            except AssertionError:
                self.report.violations.append(f"meanwhile, {thread} had a call without its result")

    # -- faults ----------------------------------------------------------------------

    async def _in_turn(self, faults: Sequence[str]) -> None:
        """Each fault at its turn, spread over the runs; the next may come while the one before lasts."""
        dice = random.Random(f"times {self.report.seed}")
        async with asyncio.TaskGroup() as group:
            for number, fault in enumerate(faults):
                due = self.report.wanted * (number + dice.random()) / len(faults) - 4
                pause = dice.uniform(0, 0.5)
                while self.report.over < due:  # noqa: ASYNC110 - many clients count
                    await asyncio.sleep(0.01)
                await asyncio.sleep(pause)
                for each in (*REPLICAS, WORKER, *STORES) if fault == EVERYTHING else [fault]:
                    group.create_task(self._fault(each, random.Random(f"{self.report.seed} {number}")))
                self.report.faults[fault] += 1

    async def _fault(self, fault: str, dice: random.Random) -> None:
        part = FROZEN.get(fault, WORKER if fault == FROZEN_WORKER else fault)
        async with self._down[part]:
            if fault in STORES:
                await kill_store(self.stack, fault)
            elif fault == WORKER:
                await self.workers.kill(dice)
            elif fault == FROZEN_WORKER:
                await _freeze(dice.choice(self.workers.alive), WORKER_LEASE_S, dice)
            elif fault in FROZEN:
                await _freeze(self.replicas[part], LEASE_S, dice)
            else:
                await kill_service(self.replicas[fault], asyncio.sleep(dice.uniform(0, 2)))

    # -- check -----------------------------------------------------------------------

    async def check(self, postgres_url: str, logs: Sequence[Path]) -> None:
        """After it all: nothing is lost, doubled, contradicted, or written by who may not."""
        report, asked = self.report, self.asked
        dice = random.Random(0)
        for each in asked:
            # Once more from the start, by somebody who was not there.
            try:
                await self.people.watch(each, dice)
            except Violated as violated:
                report.violations.append(str(violated))
        histories = {
            thread: await self.people.until_done(lambda caller, thread=thread: caller.messages(thread), dice)  # type: ignore[misc]
            for thread in self.threads
        }
        marks = self.workers.marks
        connection = await asyncpg.connect(postgres_url)
        try:
            report.violations += await runs_check.stores(connection)
            journal = await runs_check.journalled(connection)
            report.writes = await runs_audit.written(connection)
        finally:
            await connection.close()
        report.violations += runs_check.runs(asked, journal)
        report.violations += runs_check.worker_logs(marks, asked)
        for thread, history in histories.items():
            found = runs_check.thread(history, self.threads[thread], journal, marks)
            report.violations += [f"{thread}: {what}" for what in found]
        report.repeated, report.answers = self.people.repeated, self.people.answers
        report.taken = sum(run.takeovers for run in journal.values())
        report.ends.update(run.state for run in journal.values())
        report.durable = sum(len(run.events) for run in journal.values())
        seen = [event for each in asked for events in each.seen for event in events]
        report.events = len(seen)
        report.restarted = sum(event.HasField("attempt_restarted") for run in journal.values() for event in run.events)
        report.calls.update(mark.rpartition("-")[2] for mark in marks.elements() if mark.endswith(("begun", "done")))
        said_by_replicas = [line for log in logs for line in log.read_text().splitlines()]
        report.fenced = sum("run_lost_to_another_owner" in line for line in said_by_replicas)
        # Whatever is away or dies, nothing breaks.
        report.violations += [line for line in said_by_replicas if '"incident_id"' in line]


def _each(group: BaseExceptionGroup[Violated]) -> list[str]:
    """What is in a group, and in groups in it."""
    return [
        what
        for each in group.exceptions
        for what in (_each(each) if isinstance(each, BaseExceptionGroup) else [str(each)])
    ]


async def _freeze(process: Process | WorkerProcess, lease_s: float, dice: random.Random) -> None:
    """Let a process sleep through its lease, and go on."""
    process.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(lease_s + dice.uniform(0.5, 2))
    finally:
        process.signal(signal.SIGCONT)


@asynccontextmanager
async def _services(stack: StackThread) -> AsyncIterator[tuple[dict[str, Process], Workers, list[Path]]]:
    """Inference before its provider, the replicas, and their workers."""
    addresses = stack.addresses
    await migrate(PostgresSettings(url=addresses.postgres_url), ["janus_inference", "janus_orchestration"])
    urls = await runs_audit.install(addresses.postgres_url, len(REPLICAS))
    async with AsyncExitStack() as kept:
        wire = await kept.enter_async_context(serving(application))
        inference = InferenceProcess(
            addresses.postgres_url,
            addresses.redis_url,
            wire.url,
            stack.data / "inference.log",
            # An answer waits for Postgres as long as its run does.
            usage_wait_s=60,
        )
        kept.push_async_callback(inference.stop)
        await inference.start()
        logs = {name: stack.data / f"{name}.log" for name in REPLICAS}
        replicas = {
            name: Process(
                url,
                addresses.redis_url,
                log=logs[name],
                inference_target=inference.address,
                inference_wait_s=30,
                lease_s=LEASE_S,
                worker_lease_s=WORKER_LEASE_S,
                # Here it is not the run that kills its owners.
                max_takeovers=1_000,
            )
            for name, url in zip(REPLICAS, urls, strict=True)
        }
        for replica in replicas.values():
            kept.push_async_callback(replica.stop)
        await asyncio.gather(*(replica.start() for replica in replicas.values()))
        workers = Workers([replica.address for replica in replicas.values()], _TENANT, stack.data)
        kept.push_async_callback(workers.stop)
        for _ in range(WORKERS):
            workers.add()
        yield replicas, workers, list(logs.values())


async def chaos(stack: StackThread, *, seed: int, runs: int, faults: Sequence[str], clients: int) -> Report:
    """Run it on a stack of its own. ``faults``: of PARTS, in their order."""
    report = Report(seed, runs)
    began = time.monotonic()
    async with _services(stack) as (replicas, workers, logs):
        people = People(lambda: [replica.caller(_TENANT) for replica in replicas.values()])
        run = Chaos(stack, replicas, workers, people, report)
        await run.use(clients, faults)
        await run.check(stack.addresses.postgres_url, logs)
        if report.violations:
            await asyncio.to_thread(_write_down, stack.data / "seen", run.asked)
    report.seconds = time.monotonic() - began
    return report


def _write_down(file: Path, asked: Sequence[Asked]) -> None:
    """What every watcher saw, a line an event."""
    with file.open("w") as lines:
        for each in asked:
            for watcher, events in enumerate(each.seen):
                for event, kind in zip(events, kinds(events), strict=True):
                    place = f"{event.cursor.epoch}-{event.cursor.sequence}"
                    lines.write(f"{each.run_id} {watcher} {place} {kind} {event.at.ToJsonString()}\n")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make chaos-runs", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: by chance")
    parser.add_argument("--runs", type=int, default=300, help="default: 300")
    parser.add_argument("--faults", type=int, default=0, help="default: one for every three runs")
    parser.add_argument("--clients", type=int, default=12, help="conversations at the same time; default: 12")
    asked = parser.parse_args(arguments)
    print(f"seed {asked.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="janus-chaos-"))
    stack = StackThread(folder, chroma=False).start()
    try:
        faults = plan(asked.seed, asked.faults or asked.runs // 3, PARTS)
        report = asyncio.run(chaos(stack, seed=asked.seed, runs=asked.runs, faults=faults, clients=asked.clients))
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
