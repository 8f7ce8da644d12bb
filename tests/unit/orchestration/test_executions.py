"""How the work on a run ends here, whatever comes while it is being closed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from janus_orchestration.executions import Execution, Executions
from janus_orchestration.interrupt import Interrupt
from janus_orchestration.model import RunState


class Log:
    """A run's event log whose close waits until the test lets it go."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        self.let_go = asyncio.Event()
        self.has_stopped = False

    async def close(self, timeout_s: float) -> None:
        self.closing.set()
        await self.let_go.wait()

    def stop(self) -> None:
        self.has_stopped = True


class Hub:
    """Notes which runs are closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    def close_local(self, tenant: str, run_id: str) -> None:
        self.closed.append(run_id)


class Ground:
    """Executions with one run, whose work is the test's."""

    def __init__(self) -> None:
        self.log, self.hub, self.rooms = Log(), Hub(), 0
        nothing: Any = None
        hub: Any = self.hub
        limits: Any = SimpleNamespace(max_runs=1)
        self.executions = Executions(
            "me",
            store=nothing,
            stream=nothing,
            hub=hub,
            codec=nothing,
            clock=nothing,
            helpers=nothing,
            limits=limits,
        )
        self.executions.on_room = self._has_room
        journal: Any = SimpleNamespace(
            run=SimpleNamespace(id="run_1", subject="", epoch=1, state=RunState.RUNNING), log=self.log, is_over=False
        )
        self.execution = Execution("tenant", journal, Interrupt(), nothing)

    def _has_room(self) -> None:
        self.rooms += 1

    def launch(self, work: Any) -> asyncio.Task[None]:
        self.executions._launch(self.execution, work)
        assert self.execution.task is not None
        return self.execution.task

    def assert_gone(self) -> None:
        assert self.executions.ids() == []
        assert self.hub.closed == ["run_1"]
        assert self.rooms == 1
        assert self.log.has_stopped


async def at_once() -> None:
    """Work that is done."""


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_a_fence_while_the_log_closes_leaves_nothing_behind() -> None:
    ground = Ground()
    task = ground.launch(at_once)
    await ground.log.closing.wait()
    ground.executions.fence("run_1")
    ground.log.let_go.set()
    await task
    await asyncio.wait_for(ground.executions.drain(), 5)
    ground.assert_gone()


async def test_a_cancel_while_the_log_closes_leaves_nothing_behind() -> None:
    ground = Ground()
    task = ground.launch(at_once)
    await ground.log.closing.wait()
    task.cancel()
    await asyncio.wait_for(ground.executions.drain(), 5)
    ground.assert_gone()


async def test_a_fence_before_the_first_step_leaves_nothing_behind() -> None:
    ground = Ground()
    ground.launch(for_ever)
    ground.executions.fence("run_1")
    await asyncio.wait_for(ground.executions.drain(), 5)
    ground.assert_gone()


async def test_a_fence_stops_the_work() -> None:
    ground = Ground()
    ground.log.let_go.set()
    task = ground.launch(for_ever)
    await asyncio.sleep(0)
    ground.executions.fence("run_1")
    await asyncio.wait([task])
    assert task.cancelled()
    ground.assert_gone()
