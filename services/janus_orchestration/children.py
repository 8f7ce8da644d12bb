"""Runs that runs start: an agent that goes on, and agents that are asked.

Both are made in the transaction that journals why: who hands over ends in it,
who asks waits from then on. Nothing is decided twice, whoever works on either.
"""

import asyncio
import json
from dataclasses import replace
from typing import Protocol

from janus_kit.clock import Clock
from janus_kit.errors import JanusError, NotFound
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import telemetry
from janus_orchestration.agents import agent_or_default
from janus_orchestration.event_log import FIRST_RESERVE
from janus_orchestration.events import RunQueued
from janus_orchestration.model import (
    Budgets,
    Cursor,
    Message,
    Pending,
    Recorded,
    Role,
    Run,
    RunOptions,
    RunState,
    Thread,
    ToolOutput,
    Verdict,
)
from janus_orchestration.ports import EventCodec, Leases, Records, ToolCodec

_log = get_logger(__name__)

_AT_ONCE = 32
ORPHANED = "the run that asked does not wait any more"
"""Why a run is cancelled that was asked by another one."""


class Children:
    """Makes them."""

    def __init__(self, codec: EventCodec, tools: ToolCodec, clock: Clock) -> None:
        self._codec = codec
        self._tools = tools
        self._clock = clock

    async def ask(self, records: Records, parent: Run, subject: str, pending: Pending, left: Budgets | None) -> None:
        """Have an agent do what a call of `agent.ask` says, in a thread of its own."""
        arguments = json.loads(pending.call.arguments_json)
        now = self._clock.now()
        if await agent_or_default(records, arguments["agent"], self._clock) is None:
            # Taken out since it was offered; the model is told.
            await records.answer_pending(parent.id, pending.id, Verdict.ANSWERED, b"", "")
            return
        thread = Thread(
            id=new_id("thr"),
            agent=arguments["agent"],
            subject=subject,
            title="",
            metadata_json="",
            created_at=now,
            updated_at=now,
            parent_run=parent.id,
        )
        await records.add_thread(thread)
        task = self._tools.said(arguments["task"], now)
        await self._add(records, parent, pending.child_run, thread, arguments["agent"], [task], left)

    async def hand_over(
        self, records: Records, parent: Run, thread: Thread, child_run: str, agent: str, left: Budgets | None
    ) -> None:
        """Have another agent go on in the thread, once its turn is passed on. Raises NotFound."""
        await self._add(records, parent, child_run, thread, agent, [], left)
        await records.set_thread_agent(thread.id, agent)
        # Whoever asked the agent that hands over waits for the other one now.
        await records.pass_question(parent.id, child_run)

    async def _add(
        self,
        records: Records,
        parent: Run,
        run_id: str,
        thread: Thread,
        name: str,
        messages: list[Message],
        left: Budgets | None,
    ) -> None:
        agent = await agent_or_default(records, name, self._clock)
        if agent is None:
            raise NotFound("agent", name)
        now = self._clock.now()
        run = Run(
            id=run_id,
            thread_id=thread.id,
            agent=name,
            agent_version=agent.version,
            state=RunState.QUEUED,
            options=RunOptions(budgets=left, labels=parent.options.labels),
            subject=parent.subject,
            epoch=1,
            revision=0,
            last_sequence=1,
            reserved_sequence=FIRST_RESERVE,
            created_at=now,
            parent_run=parent.id,
        )
        await records.add_run(run, has_turn=not thread.active_run)
        if not thread.active_run:
            await records.write_thread(replace(thread, active_run=run.id))
        await records.add_waiting_messages(run, messages, is_output=False)
        first = Cursor(1, 1)
        queued = RunQueued(thread.id, 0)
        wire = self._codec.encode(run.id, first, now, queued)
        await records.add_events(run, [Recorded(first, queued.kind, wire, durable=True)])
        telemetry.runs_started.inc()


async def answer_of(records: Records, pending: Pending) -> tuple[ToolOutput, Run | None]:
    """What the run that was asked has to say, and the run; it must have ended."""
    run = await records.run(pending.child_run)
    if run is None:
        return ToolOutput("there is no such agent any more, or its conversation was deleted", is_error=True), None
    if run.state is not RunState.COMPLETED:
        return ToolOutput(f"the agent did not answer: its run {_HOW[run.state]}", is_error=True), run
    made = await records.messages_of(run.id)
    said = [item.message for item in made if item.is_output and item.message.role is Role.ASSISTANT]
    return ToolOutput(said[-1].text if said else ""), run


_HOW = {RunState.FAILED: "failed", RunState.CANCELLED: "was cancelled", RunState.EXPIRED: "expired"}


class Stops(Protocol):
    """What ends runs."""

    async def abandon(self, tenant: str, run_id: str, reason: str) -> None: ...


class Orphans:
    """Cancels runs that nobody waits for any more, where those who work on them were not told in time."""

    def __init__(self, leases: Leases, runs: Stops, *, poll_s: float) -> None:
        self._leases = leases
        self._runs = runs
        self._poll_s = poll_s

    async def work(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                for tenant, run_id in await self._leases.orphaned(_AT_ONCE):
                    await self._runs.abandon(tenant, run_id, ORPHANED)
            except JanusError as error:
                _log.debug("orphans_wait", reason=error.reason)
