"""The owner's side of a call by a worker: what it makes of what the records say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from janus_kit.errors import Unavailable
from janus_orchestration.dispatching import CallKey, Dispatch, DispatchState, NewDispatch, News, NewsKind, Standing
from janus_orchestration.model import (
    MemoryPolicy,
    SideEffect,
    Thread,
    Tool,
    ToolCall,
    ToolOutput,
    WhenNoWorker,
)
from janus_orchestration.ports import Fenced, OutcomeUnknown, ToolTask
from janus_orchestration.worker_tools import WorkerTools

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = CallKey("run", 2)
OPEN = Dispatch(DispatchState.OPEN, 1, 30, True)
CLAIMED = Dispatch(DispatchState.CLAIMED, 1, 30, False, "wks", "bob", Standing.CONNECTED)
GRACE_S = 0.2
LEASE_S = 3 * GRACE_S
UNKNOWN = "whether it did anything is not known"


@dataclass
class Records:
    """Records of one call, as the test wants them to be."""

    now: Dispatch | None = OPEN
    away: bool = False
    withdrawn: int = 0
    taken_meanwhile: bool = False
    resent: list[int] = field(default_factory=list)
    looks: int = 0

    async def tools(self, tenant: str, names: Collection[str]) -> list[Tool]:
        return []

    async def dispatch(self, tenant: str, call: NewDispatch) -> Dispatch | None:
        self.check()
        return self.now

    async def look(self, tenant: str, keys: Collection[CallKey]) -> dict[CallKey, Dispatch]:
        self.check()
        self.looks += 1
        assert self.now is not None
        return dict.fromkeys(keys, self.now)

    async def resend(self, tenant: str, key: CallKey, lost: Dispatch) -> None:
        self.resent.append(lost.attempt)
        self.now = replace(OPEN, attempt=lost.attempt + 1)

    async def withdraw(self, tenant: str, key: CallKey) -> bool:
        self.withdrawn += 1
        if self.taken_meanwhile:
            self.now = CLAIMED
        return self.now is not None and self.now.state in (DispatchState.OPEN, DispatchState.WITHDRAWN)

    def check(self) -> None:
        if self.away:
            raise Unavailable("postgres")


@dataclass
class Report:
    told: list[object] = field(default_factory=list)

    async def started(self, worker_id: str = "", attempt: int | None = None) -> None:
        self.told.append((worker_id, attempt))

    async def progress(self, fraction: float | None, message: str) -> None:
        self.told.append(message)


@dataclass
class Asked:
    """A call under way."""

    records: Records
    tools: WorkerTools
    report: Report
    result: asyncio.Task[ToolOutput]

    def move(self, dispatch: Dispatch) -> None:
        self.records.now = dispatch
        self.tools.heard(News(NewsKind.MOVED, str(KEY)))

    async def seen(self) -> None:
        """The owner has looked once more."""
        looks = self.records.looks
        async with asyncio.timeout(5):
            while self.records.looks == looks:  # noqa: ASYNC110 - the records are the test's own
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)


@asynccontextmanager
async def asked(
    records: Records,
    side_effect: SideEffect = SideEffect.IDEMPOTENT,
    when_no_worker: WhenNoWorker = WhenNoWorker.FAIL,
    lease_s: float = LEASE_S,
) -> AsyncIterator[Asked]:
    tools, report = WorkerTools(records, poll_s=0.05, lease_s=lease_s), Report()
    task = ToolTask(
        tool=Tool("count", "", "", side_effect, timedelta(seconds=30)),
        call=ToolCall("c", "count", "{}"),
        arguments={},
        attempt=1,
        epoch=1,
        step=KEY.step,
        timeout_s=30,
        when_no_worker=when_no_worker,
        message_id="m",
        run_id=KEY.run_id,
        thread=Thread("t", "a", "", "", "", NOW, NOW),
        memory=MemoryPolicy(),
    )
    watching = asyncio.create_task(tools.watch())
    result = asyncio.create_task(tools.call("tenant", task, report))
    await asyncio.sleep(0.01)
    try:
        yield Asked(records, tools, report, result)
    finally:
        for each in (watching, result):
            each.cancel()
        await asyncio.gather(watching, result, return_exceptions=True)


async def test_an_answer_is_the_output() -> None:
    async with asked(Records(OPEN)) as call:
        call.move(CLAIMED)
        await call.seen()
        call.move(replace(CLAIMED, state=DispatchState.ANSWERED, result=b"r"))
        assert await call.result == ToolOutput(wire=b"r")
        assert call.report.told == [("bob", 1)]


async def test_who_is_fenced_gets_nothing() -> None:
    async with asked(Records(None)) as call:
        with pytest.raises(Fenced):
            await call.result


async def test_a_worker_that_is_lost_for_a_moment_is_not_lost() -> None:
    async with asked(Records(replace(CLAIMED, standing=Standing.LOST)), SideEffect.AT_MOST_ONCE) as call:
        await call.seen()
        call.move(CLAIMED)
        await asyncio.sleep(2 * GRACE_S)
        assert not call.result.done()
        call.move(replace(CLAIMED, standing=Standing.LOST))
        with pytest.raises(OutcomeUnknown, match="vanished"):
            await asyncio.wait_for(call.result, 5)
        assert not call.records.resent


async def test_what_was_seen_before_an_outage_proves_nothing_after_it() -> None:
    async with asked(Records(replace(CLAIMED, standing=Standing.LOST))) as call:
        await call.seen()
        call.records.away = True
        await asyncio.sleep(2 * GRACE_S)
        call.records.away = False
        await call.seen()
        assert not call.records.resent
        call.move(CLAIMED)
        await asyncio.sleep(2 * GRACE_S)
        assert not call.records.resent


async def test_a_call_whose_stream_ended_is_sent_again_at_once_if_it_may_be() -> None:
    async with asked(Records(replace(CLAIMED, standing=Standing.GONE))) as call:
        await call.seen()
        assert call.records.resent == [1]
    async with asked(Records(replace(CLAIMED, standing=Standing.GONE)), SideEffect.AT_MOST_ONCE) as call:
        await asyncio.sleep(2 * GRACE_S)
        assert not call.result.done(), "its worker may come back with what it did"


async def test_a_call_that_takes_every_worker_down_does_not_get_all_of_them() -> None:
    async with asked(Records(replace(CLAIMED, standing=Standing.GONE))) as call:
        for attempt in (2, 3):
            await call.seen()
            call.move(replace(CLAIMED, standing=Standing.GONE, attempt=attempt))
        output = await asyncio.wait_for(call.result, 5)
        assert output.is_error
        assert output.text == f"the tool's worker vanished before it answered, 3 times; {UNKNOWN}"
        assert call.records.resent == [1, 2]
        assert call.report.told == [("bob", 1), ("bob", 2), ("bob", 3)]


@pytest.mark.parametrize("side_effect", list(SideEffect))
async def test_a_call_that_is_late_may_have_done_something_once_it_was_claimed(side_effect: SideEffect) -> None:
    async with asked(Records(replace(CLAIMED, left_s=0.0)), side_effect) as call:
        kind = OutcomeUnknown if side_effect is SideEffect.AT_MOST_ONCE else TimeoutError
        with pytest.raises(kind):
            await asyncio.wait_for(call.result, 5)


async def test_a_call_that_is_taken_at_the_last_moment_is_waited_for() -> None:
    async with asked(Records(replace(OPEN, has_takers=False), taken_meanwhile=True)) as call:
        await call.seen()
        assert (call.records.withdrawn, call.result.done()) == (1, False)
        assert call.report.told == [("bob", 1)]


async def test_without_a_worker_the_agent_decides() -> None:
    nobody = replace(OPEN, has_takers=False)
    async with asked(Records(nobody)) as call:
        output = await asyncio.wait_for(call.result, 5)
        assert output == ToolOutput("no worker that offers 'count' is connected", is_error=True)
    async with asked(Records(nobody), when_no_worker=WhenNoWorker.WAIT) as call:
        await asyncio.sleep(2 * GRACE_S)
        assert not call.result.done()
        call.move(replace(nobody, left_s=-1.0))
        output = await asyncio.wait_for(call.result, 5)
        assert output == ToolOutput("no worker took the call within 30 s", is_error=True)


async def test_a_call_that_was_begun_waits_for_a_worker_to_come_back() -> None:
    nobody = replace(OPEN, has_takers=False, attempt=2)
    async with asked(Records(replace(CLAIMED, standing=Standing.GONE)), lease_s=60) as call:
        await call.seen()
        assert call.records.resent == [1]
        call.move(nobody)
        await call.seen()
        await call.seen()
        assert (call.records.withdrawn, call.result.done()) == (0, False)
        call.move(replace(CLAIMED, attempt=2))
        await call.seen()
        call.move(replace(CLAIMED, attempt=2, state=DispatchState.ANSWERED, result=b"r"))
        assert await asyncio.wait_for(call.result, 5) == ToolOutput(wire=b"r")
        assert call.report.told == [("bob", 1), ("bob", 2)]


async def test_a_call_that_was_begun_and_that_nobody_takes_says_that_its_effect_is_not_known() -> None:
    nobody = replace(OPEN, has_takers=False, attempt=2)
    vanished = "the tool's worker vanished before it answered, and no worker"
    async with asked(Records(nobody)) as call:
        output = await asyncio.wait_for(call.result, 5)
        assert output == ToolOutput(f"{vanished} that offers 'count' is connected; {UNKNOWN}", is_error=True)
    for when in WhenNoWorker:
        async with asked(Records(replace(nobody, left_s=-1.0)), when_no_worker=when) as call:
            output = await asyncio.wait_for(call.result, 5)
            assert output == ToolOutput(f"{vanished} took the call within 30 s; {UNKNOWN}", is_error=True)


async def test_a_call_that_was_begun_has_its_whole_wait_after_an_outage() -> None:
    async with asked(Records(replace(OPEN, has_takers=False, attempt=2))) as call:
        await call.seen()
        call.records.away = True
        await asyncio.sleep(2 * LEASE_S)
        call.records.away = False
        await call.seen()
        assert (call.records.withdrawn, call.result.done()) == (0, False)


async def test_a_call_that_an_earlier_owner_gave_up_is_not_waited_for_again() -> None:
    given_up = replace(OPEN, state=DispatchState.WITHDRAWN, has_takers=False, attempt=2)
    async with asked(Records(given_up)) as call:
        output = await asyncio.wait_for(call.result, 5)
        assert output.text.endswith(UNKNOWN)
        assert call.records.looks == 0


async def test_an_outage_when_a_call_is_put_up_is_waited_out() -> None:
    async with asked(Records(CLAIMED, away=True)) as call:
        await asyncio.sleep(0.1)
        assert not call.result.done()
        call.records.away = False
        call.move(replace(CLAIMED, state=DispatchState.ANSWERED, result=b"r"))
        assert await asyncio.wait_for(call.result, 5) == ToolOutput(wire=b"r")
