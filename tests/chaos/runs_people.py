"""Clients of orchestration in `make chaos-runs`: they ask, watch, leave, come back and cancel."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
from tests.chaos.runs_model import Plan
from tests.fakes.orchestration_service import TERMINAL, Caller

from janus_api.orchestration.v1 import event_pb2, run_pb2
from janus_kit.rpc_errors import from_rpc

T = TypeVar("T")

PATIENCE_S = 180.0
_LEAVES = 0.03
_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class Violated(AssertionError):
    """Something is not as it should be."""


@dataclass
class Asked:
    """One run that somebody asked for, and what each watcher of it saw."""

    plan: Plan
    thread: str
    is_cancelled: bool
    is_careful: bool
    """Its agent asks before it calls what may run once."""
    run_id: str = ""
    known: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[list[event_pb2.RunEvent]] = field(default_factory=list)
    may_run: Counter[str] = field(default_factory=Counter)
    """How often somebody consented to a call, by its word."""

    def is_run(self, run_id: str) -> None:
        if self.run_id and self.run_id != run_id:
            raise Violated(f"one request id gave two runs, {self.run_id} and {run_id}")
        self.run_id = run_id
        self.known.set()


class People:
    """Clients of one tenant, at whichever replica. ``repeated`` counts what they had to do again."""

    def __init__(self, callers: Callable[[], list[Caller]]) -> None:
        self._callers = callers
        self.repeated: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()

    async def until_done(self, call: Callable[[Caller], Awaitable[T]], dice: random.Random) -> T:
        """Make a call again until it is answered."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await call(dice.choice(self._callers()))
                except grpc.aio.AioRpcError as error:
                    self._again(error)
                await asyncio.sleep(0.05)

    async def start(self, asked: Asked, dice: random.Random) -> None:
        """Have the run started in the background."""
        run = await self.until_done(
            lambda caller: caller.start(asked.thread, asked.plan.text, request_id=asked.plan.word), dice
        )
        asked.is_run(run.id)

    async def converse(self, asked: Asked, dice: random.Random) -> None:
        """See the run to its end, and answer what it asks; begins it where nobody did."""
        async with asyncio.TaskGroup() as answers:
            await self.watch(
                asked, dice, lambda event: answers.create_task(self._answer(asked, event, random.Random(dice.random())))
            )

    async def watch(
        self, asked: Asked, dice: random.Random, on_question: Callable[[event_pb2.RunEvent], object] = lambda _: None
    ) -> None:
        """See the run to its end, with a cut now and then."""
        seen: list[event_pb2.RunEvent] = []
        asked.seen.append(seen)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await self._watched(asked, seen, on_question, dice):  # noqa: ASYNC110 - tries
                    await asyncio.sleep(dice.random() * 0.1)
        except TimeoutError:
            raise Violated(f"{asked.run_id} was not over after {PATIENCE_S:.0f} s, {len(seen)} events") from None

    async def _answer(self, asked: Asked, event: event_pb2.RunEvent, dice: random.Random) -> None:
        """Consent, or do not; after a moment, so that the run comes to wait."""
        approval = event.approval_requested.approval
        request_id, approves = f"{approval.approval_id}-answer", dice.random() < 0.6
        if approves:
            asked.may_run[json.loads(approval.call.arguments_json)["word"]] += 1
        await asyncio.sleep(dice.random() * 1.5)
        self.answers["approved" if approves else "declined"] += 1

        async def decide(caller: Caller) -> None:
            try:
                await caller.decide(event.run_id, approval.approval_id, approve=approves, request_id=request_id)
            except grpc.aio.AioRpcError as error:
                # One that was cancelled asks no more.
                if not (asked.is_cancelled and error.code() is grpc.StatusCode.FAILED_PRECONDITION):
                    raise

        await self.until_done(decide, dice)

    async def _watched(
        self,
        asked: Asked,
        seen: list[event_pb2.RunEvent],
        on_question: Callable[[event_pb2.RunEvent], object],
        dice: random.Random,
    ) -> bool:
        """Whether the stream was read to its end."""
        caller = dice.choice(self._callers())
        if asked.run_id:
            stream = caller.watch(asked.run_id, seen[-1].cursor if seen else None)
        else:
            stream = caller.converse(asked.thread, asked.plan.text, request_id=asked.plan.word)
        try:
            while (response := await stream.read()) is not grpc.aio.EOF:
                seen.append(response.event)
                asked.is_run(response.event.run_id)
                if response.event.HasField("approval_requested"):
                    on_question(response.event)
                if response.event.WhichOneof("event") not in TERMINAL and dice.random() < _LEAVES:
                    self.repeated["left"] += 1
                    return False
        except grpc.aio.AioRpcError as error:
            self._again(error)
            return bool(seen) and seen[-1].WhichOneof("event") in TERMINAL
        finally:
            stream.cancel()
        if not seen or seen[-1].WhichOneof("event") not in TERMINAL:
            raise Violated(f"a stream of {asked.run_id} ended without a terminal event, after {len(seen)} events")
        return True

    async def watch_later(self, asked: Asked, dice: random.Random) -> None:
        """Somebody else who watches, from the start."""
        await asked.known.wait()
        await asyncio.sleep(dice.random() * 2)
        await self.watch(asked, dice)

    async def cancel(self, asked: Asked, dice: random.Random) -> None:
        await asked.known.wait()
        await asyncio.sleep(dice.random() * 1.5)
        found = await self.until_done(lambda caller: caller.cancel(asked.run_id, "enough"), dice)
        if found.state in (run_pb2.RUN_STATE_QUEUED, run_pb2.RUN_STATE_RUNNING):
            raise Violated(f"{asked.run_id} was cancelled and is {run_pb2.RunState.Name(found.state)}")

    def _again(self, error: grpc.aio.AioRpcError) -> None:
        if error.code() not in _AGAIN:
            raise Violated(f"refused: {from_rpc(error)!r}") from None
        self.repeated[error.code().name] += 1
