"""Tools of workers as a source of tools: the side of the run's owner.

Everything it knows of a call is in the records, so that it does not matter to
which replica the worker is connected, and an owner that takes a run over goes
on waiting for a call that its predecessor put up.
"""

import asyncio
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from janus_kit.errors import JanusError
from janus_kit.telemetry import tracing
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import state
from janus_orchestration.dispatching import (
    CallKey,
    Dispatch,
    DispatchState,
    NewDispatch,
    News,
    NewsKind,
    Standing,
)
from janus_orchestration.model import Tool, ToolOutput, WhenNoWorker
from janus_orchestration.outage import waited_out
from janus_orchestration.ports import Fenced, OutcomeUnknown, ToolReport, ToolTask
from janus_orchestration.state import AfterUnknown
from janus_orchestration.worker_ports import DispatchRecords

_log = get_logger(__name__)

# Told to the model, so that it looks before it asks anew.
_UNKNOWN = "whether it did anything is not known"
# A call that takes down every worker that gets it does not get all of them.
_MOST_ATTEMPTS = 3
_RETRY_S = 0.2
# To look a moment after a deadline, not before.
_LATE_S = 0.01


class _Waiter:
    """A call that is waited for in this process."""

    def __init__(self) -> None:
        self.latest: Dispatch | None = None
        self.moved = asyncio.Event()

    def told(self, dispatch: Dispatch) -> None:
        self.latest = dispatch
        self.moved.set()


class _Watched:
    """The calls that are waited for in this process, and what has to be looked at."""

    def __init__(self, records: DispatchRecords, lease_s: float) -> None:
        self.records = records
        self.lease_s = lease_s
        self.grace_s = lease_s / 3
        # How often the records were away: what was seen before proves nothing after.
        self.outages = 0
        self.waiters: dict[CallKey, tuple[str, _Waiter]] = {}
        self.due: set[CallKey] = set()
        self.look = asyncio.Event()

    @contextmanager
    def waiter(self, tenant: str, key: CallKey) -> Iterator[_Waiter]:
        entry = (tenant, _Waiter())
        self.waiters[key] = entry
        try:
            yield entry[1]
        finally:
            # One that was fenced may end after its successor in this process began.
            if self.waiters.get(key) is entry:
                del self.waiters[key]

    def look_at(self, *keys: CallKey) -> None:
        self.due.update(keys)
        self.look.set()


class WorkerTools:
    """A ``ToolSource``. Times in seconds.

    ``poll_s``: between looks at calls of which no news comes. ``lease_s``: of a
    worker. That it is over must be seen for a third of it, since after an outage
    of the records no lease has been renewed; and a call that was begun waits for
    a worker as long as that.
    """

    knows_calls = True

    def __init__(self, records: DispatchRecords, *, poll_s: float, lease_s: float) -> None:
        self._records = records
        self._poll_s = poll_s
        self._watched = _Watched(records, lease_s)

    async def find(self, tenant: str, names: Collection[str]) -> Sequence[Tool]:
        return await self._records.tools(tenant, names)

    async def call(self, tenant: str, task: ToolTask, report: ToolReport) -> ToolOutput:
        key = CallKey(task.run_id, task.step)
        new = NewDispatch(
            key=key,
            epoch=task.epoch,
            tool=task.tool.name,
            arguments_json=json.dumps(task.arguments, ensure_ascii=False),
            thread_id=task.thread.id,
            subject=task.thread.subject,
            traceparent=dict(tracing.outgoing(tracing.current())).get(tracing.TRACEPARENT, ""),
            timeout_s=task.timeout_s,
        )
        with self._watched.waiter(tenant, key) as waiter:
            dispatch = await waited_out(lambda: self._records.dispatch(tenant, new))
            if dispatch is None:
                raise Fenced(task.run_id)
            return await _Following(self._watched, tenant, task, report, waiter).to_end(dispatch)

    def heard(self, news: News) -> None:
        """News from other processes."""
        waiters = self._watched.waiters
        if news.kind is NewsKind.MISSED:
            self._watched.look_at(*waiters)
        elif news.kind is NewsKind.MOVED and (key := CallKey.parse(news.about)) in waiters:
            self._watched.look_at(key)

    async def watch(self) -> None:
        """Look at calls that something happened to, and at all now and then."""
        watched, loop = self._watched, asyncio.get_running_loop()
        poll_at = loop.time() + self._poll_s
        while True:
            try:
                async with asyncio.timeout_at(poll_at):
                    await watched.look.wait()
            except TimeoutError:
                watched.due.update(watched.waiters)
                poll_at = loop.time() + self._poll_s
            watched.look.clear()
            due, watched.due = watched.due, set()
            by_tenant: dict[str, list[CallKey]] = {}
            for key in due & watched.waiters.keys():
                by_tenant.setdefault(watched.waiters[key][0], []).append(key)
            for tenant, keys in by_tenant.items():
                await self._look(tenant, keys)

    async def _look(self, tenant: str, keys: Sequence[CallKey]) -> None:
        try:
            found = await self._records.look(tenant, keys)
        except JanusError as error:
            _log.debug("calls_not_looked_at", reason=error.reason)
            self._watched.outages += 1
            await asyncio.sleep(_RETRY_S)
            self._watched.look_at(*keys)
            return
        for key, dispatch in found.items():
            if (entry := self._watched.waiters.get(key)) is not None:
                entry[1].told(dispatch)


class _Following:
    """One call, from its being put up to what became of it."""

    def __init__(self, watched: _Watched, tenant: str, task: ToolTask, report: ToolReport, waiter: _Waiter) -> None:
        self._watched = watched
        self._tenant = tenant
        self._task = task
        self._key = CallKey(task.run_id, task.step)
        self._report = report
        self._waiter = waiter
        self._started: tuple[int, str] | None = None
        self._reports = 0
        # What the call lacks, how many outages there had been when that was seen, and since when it is so.
        self._lack: tuple[str, int, float] | None = None

    async def to_end(self, dispatch: Dispatch) -> ToolOutput:
        while True:
            await self._tell(dispatch)
            if (output := await self._settled(dispatch)) is not None:
                return output
            dispatch = await self._next(dispatch)

    async def _next(self, dispatch: Dispatch) -> Dispatch:
        """How the call is, once something may have changed."""
        wait_s = max(dispatch.left_s, 0) + _LATE_S
        if self._lack is not None:
            wait_s = min(wait_s, self._watched.grace_s)
        waiter = self._waiter
        try:
            async with asyncio.timeout(wait_s):
                await waiter.moved.wait()
        except TimeoutError:
            self._watched.look_at(self._key)
            await waiter.moved.wait()
        waiter.moved.clear()
        assert waiter.latest is not None
        return waiter.latest

    async def _tell(self, dispatch: Dispatch) -> None:
        """Events of what is new."""
        has_begun = dispatch.state in (DispatchState.CLAIMED, DispatchState.ANSWERED)
        if has_begun and self._started != (dispatch.attempt, dispatch.worker_id):
            self._started = (dispatch.attempt, dispatch.worker_id)
            await self._report.started(dispatch.worker_id, dispatch.attempt)
        if dispatch.progress is not None and dispatch.progress.number > self._reports:
            self._reports = dispatch.progress.number
            await self._report.progress(dispatch.progress.fraction, dispatch.progress.message)

    async def _settled(self, dispatch: Dispatch) -> ToolOutput | None:
        """What became of the call; None while it goes on."""
        match dispatch.state:
            case DispatchState.ANSWERED:
                return ToolOutput(wire=dispatch.result)
            case DispatchState.OPEN | DispatchState.WITHDRAWN:
                return await self._unclaimed(dispatch)
            case DispatchState.CLAIMED:
                return await self._claimed(dispatch)

    async def _unclaimed(self, dispatch: Dispatch) -> ToolOutput | None:
        has_begun = dispatch.attempt > 1
        if dispatch.left_s <= 0:
            why = f"no worker took the call within {self._task.timeout_s:g} s"
        elif not self._is_in_vain(dispatch, has_begun):
            return None
        else:
            why = f"no worker that offers '{self._task.tool.name}' is connected"
        if has_begun:
            why = f"the tool's worker vanished before it answered, and {why}; {_UNKNOWN}"
        if not await waited_out(lambda: self._watched.records.withdraw(self._tenant, self._key)):
            # Somebody took it at this very moment.
            self._watched.look_at(self._key)
            return None
        return ToolOutput(why, is_error=True)

    def _is_in_vain(self, dispatch: Dispatch, has_begun: bool) -> bool:
        """Whether no worker is to be waited for.

        The one that had begun the call has time to come back: a restart is no reason to give up.
        """
        if dispatch.has_takers or self._task.when_no_worker is WhenNoWorker.WAIT:
            self._lack = None
            return False
        if not has_begun or dispatch.state is DispatchState.WITHDRAWN:
            return True
        return self._lacks_for("takers") >= self._watched.lease_s

    async def _claimed(self, dispatch: Dispatch) -> ToolOutput | None:
        may_resend = state.after_unknown(self._task.tool.side_effect) is AfterUnknown.RESEND
        if dispatch.left_s <= 0:
            if may_resend:
                raise TimeoutError
            raise OutcomeUnknown(f"the tool did not answer within {self._task.timeout_s:g} s")
        if not self._is_lost(dispatch, may_resend):
            return None
        _log.warning("tool_worker_lost", step=self._task.step, attempt=dispatch.attempt)
        if not may_resend:
            raise OutcomeUnknown("the tool's worker vanished before it answered")
        if dispatch.attempt >= _MOST_ATTEMPTS:
            why = f"the tool's worker vanished before it answered, {dispatch.attempt} times; {_UNKNOWN}"
            return ToolOutput(why, is_error=True)
        await waited_out(lambda: self._watched.records.resend(self._tenant, self._key, dispatch))
        self._lack = None
        self._watched.look_at(self._key)
        return None

    def _is_lost(self, dispatch: Dispatch, may_resend: bool) -> bool:
        """Whether nobody can be expected to answer any more.

        A worker whose stream has ended may come back with what it did. That is
        waited for only where sending the call again is no choice.
        """
        if dispatch.standing is Standing.CONNECTED or (dispatch.standing is Standing.GONE and not may_resend):
            self._lack = None
            return False
        if dispatch.standing is Standing.GONE:
            return True
        return self._lacks_for(dispatch.worker) >= self._watched.grace_s

    def _lacks_for(self, what: str) -> float:
        """For how long it was seen that the call lacks this; an outage begins that anew."""
        now = asyncio.get_running_loop().time()
        if self._lack is None or self._lack[:2] != (what, self._watched.outages):
            self._lack = (what, self._watched.outages, now)
        return now - self._lack[2]
