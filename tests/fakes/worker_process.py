"""A worker built with ``janus_worker``, as a process that can be stopped, frozen and killed.

Run as a program it serves tools that leave a line in a file for each time that
they run, so that a test can count.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from janus_worker import Call, ToolError, Worker

_TARGET, _TENANT, _MARKS, _ID = "WORKER_TARGET", "WORKER_TENANT", "WORKER_MARKS", "WORKER_ID"


class WorkerProcess:
    """One worker; ``marks`` is the file of what ran."""

    def __init__(self, target: str, tenant: str, marks: Path, worker_id: str = "proc") -> None:
        marks.touch()
        self._marks = marks
        environ = {**os.environ, _TARGET: target, _TENANT: tenant, _MARKS: str(marks), _ID: worker_id}
        self.process = subprocess.Popen([sys.executable, "-m", "tests.fakes.worker_process"], env=environ)

    @property
    def lines(self) -> list[str]:
        return self._marks.read_text().split()

    @property
    def marks(self) -> list[str]:
        """What ran."""
        return [line for line in self.lines if "-key-" not in line]

    @property
    def keys(self) -> list[str]:
        """The idempotency keys that calls came with."""
        return [line for line in self.lines if "-key-" in line]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, 20)

    async def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        await self.ended()


class Workers:
    """Workers of a tenant, replaced when they are killed; their marks are of all that there were."""

    def __init__(self, addresses: Sequence[str], tenant: str, folder: Path) -> None:
        self._target = f"ipv4:{','.join(addresses)}"
        self._tenant = tenant
        self._folder = folder
        self._all: list[WorkerProcess] = []
        self.alive: list[WorkerProcess] = []

    def add(self) -> None:
        name = f"w{len(self._all) + 1}"
        made = WorkerProcess(self._target, self._tenant, self._folder / name, name)
        self._all.append(made)
        self.alive.append(made)

    async def kill(self, dice: random.Random) -> None:
        victim = dice.choice(self.alive)
        self.alive.remove(victim)
        await victim.stop()
        self.add()

    async def stop(self) -> None:
        await asyncio.gather(*(each.stop() for each in self._all))

    @property
    def marks(self) -> Counter[str]:
        return Counter(mark for each in self._all for mark in each.lines)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="worker: %(message)s")
    worker = Worker(
        os.environ[_TARGET], tenant=os.environ[_TENANT], worker_id=os.environ[_ID], concurrency=4, drain_s=10
    )
    marks = Path(os.environ[_MARKS])

    def mark(word: str) -> None:
        with marks.open("a") as file:
            file.write(f"{word}\n")

    async def slow(word: str, seconds: float) -> str:
        mark(f"{word}-begun")
        await asyncio.sleep(seconds)
        mark(f"{word}-done")
        return f"{word} is done"

    @worker.tool(side_effect="at_most_once")
    async def once(word: str, seconds: float = 0) -> str:
        return await slow(word, seconds)

    @worker.tool(side_effect="idempotent")
    async def again(word: str, call: Call, seconds: float = 0) -> str:
        mark(f"{word}-key-{call.idempotency_key}")
        return f"{await slow(word, seconds)}, try {call.attempt}"

    @worker.tool(side_effect="read_only")
    async def peek(word: str, seconds: float = 0) -> str:
        return await slow(word, seconds)

    @worker.tool(side_effect="read_only")
    def on_a_thread(call: Call, how: str = "") -> str:
        if how == "stops":
            raise StopIteration
        if how == "quits":
            sys.exit(1)
        call.progress(0.5, "half")
        time.sleep(0.2)
        return "from a thread"

    @worker.tool(side_effect="read_only")
    async def broken(how: str) -> str:
        if how == "told":
            raise ToolError("this is for the model")
        if how == "large":
            return "x" * 2_000_000
        raise ValueError("this is a secret")

    worker.run()


if __name__ == "__main__":
    main()
