"""The workers that are connected to this process: who gets which call, and who is still there."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from janus_kit.errors import DeadlineExceeded, FailedPrecondition, Internal, JanusError
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import telemetry
from janus_orchestration.dispatching import CallId, CallKey, News, NewsKind, OpenCall, Registration
from janus_orchestration.outage import waited_out
from janus_orchestration.ports import ToolSource
from janus_orchestration.worker_ports import WorkerRecords
from janus_orchestration.worker_session import Session, connect_again

_log = get_logger(__name__)

_CLAIM_AT_ONCE = 64
_RETRY_S = 0.2
_REPORTS_AFTER_S = 0.1
# Time for a worker to read that its stream ends.
_FAREWELL_S = 2.0
# A late answer to a call that its owner has given up is no reason to stop the worker at once.
_OVERDUE_S = 1.0


@dataclass(frozen=True)
class SessionLimits:
    """Times in seconds; see OrchestrationSettings."""

    heartbeat_s: float
    lease_s: float
    longest_s: float
    poll_s: float


class WorkerSessions:
    """The connections of all tenants' workers to this process.

    ``mcp``: the tools that come before those of workers.
    """

    def __init__(self, records: WorkerRecords, limits: SessionLimits, mcp: ToolSource) -> None:
        self.limits = limits
        self._records = records
        self._mcp = mcp
        self._sessions: dict[str, Session] = {}
        # Tenants for which a call may be claimed.
        self._due: set[str] = set()
        self._look = asyncio.Event()
        # Tenants of which a claim broke off: whether it was committed is not known.
        self._unsure: set[str] = set()
        # What the records and this process say of a connection's calls is brought into line under this lock.
        self._aligning = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._is_draining = False

    # -- a connection ----------------------------------------------------------------

    @asynccontextmanager
    async def connected(self, tenant: str, registration: Registration) -> AsyncIterator[Session]:
        """A worker's connection, for as long as the block runs.

        Raises FailedPrecondition when an MCP server offers one of the names, or
        connected workers offer other tools under one. The task that holds it is
        cancelled when it does not end although the session is over.
        """
        await self._require_free(tenant, registration)
        session = Session(new_id("wks"), tenant, registration)
        conflicts = await self._records.register(tenant, session.id, registration, self.limits.lease_s)
        if conflicts:
            names = ", ".join(f"'{registration.tools[place].name}'" for place in conflicts)
            raise FailedPrecondition(
                "STATE_CONFLICT",
                f"workers that are connected offer {names} with another schema or side effect",
                {"tools": ",".join(registration.tools[place].name for place in conflicts)},
                subject="tools",
            )
        session.on_room = lambda: self._claim_for(tenant)
        writing = asyncio.create_task(self._write(session), name=f"worker-writes-{session.id}")
        writing.add_done_callback(lambda _: session.end(None))
        ending = asyncio.create_task(_end(session, asyncio.current_task()), name=f"worker-ends-{session.id}")
        self._sessions[session.id] = session
        self._nobody.clear()
        telemetry.workers_connected(session.tools, 1)
        _log.info("worker_connected", worker_id=session.worker_id, tools=len(session.tools))
        if self._is_draining:
            session.stop_calls("the server is stopping")
        self._claim_for(tenant)
        try:
            yield session
        finally:
            ending.cancel()
            session.end(None)
            del self._sessions[session.id]
            if not self._sessions:
                self._nobody.set()
            telemetry.workers_connected(session.tools, -1)
            _log.info("worker_disconnected", worker_id=session.worker_id, calls=len(session.calls))
            leaving = asyncio.create_task(self._leave(session, writing), name=f"worker-leaves-{session.id}")
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _require_free(self, tenant: str, registration: Registration) -> None:
        """A worker of a tool that an MCP server has would wait for calls for ever."""
        taken = [tool.name for tool in await self._mcp.find(tenant, [tool.name for tool in registration.tools])]
        if taken:
            servers = ", ".join(f"'{name}'" for name in dict.fromkeys(name.partition(".")[0] for name in taken))
            names = ", ".join(f"'{name}'" for name in taken)
            raise FailedPrecondition(
                "STATE_CONFLICT",
                f"no worker may offer {names}, which the MCP server {servers} offers",
                {"tools": ",".join(taken)},
                subject="tools",
            )

    def hide(self, names: Collection[str], tenants: Collection[str]) -> None:
        """An MCP server offers these names to these tenants (none: to all) from now on.

        A worker that came first keeps its stream for its other tools and the calls that it has.
        """
        for session in self._sessions.values():
            hidden = [name for name in session.tools if name in names]
            if hidden and (not tenants or session.tenant in tenants):
                _log.warning("worker_tools_hidden", worker_id=session.worker_id, tools=hidden)

    async def _leave(self, session: Session, writing: asyncio.Task[None]) -> None:
        """Its last answers are written, and what it never heard of is for others."""
        await asyncio.wait([writing])
        await waited_out(
            lambda: self._records.leave(
                session.tenant, session.id, session.unsent(), is_awaited=session.was_sent_elsewhere
            )
        )

    async def _write(self, session: Session) -> None:
        while True:
            answers, reports = await session.to_write(_REPORTS_AFTER_S)
            if not answers and not reports:
                if session.is_over:
                    return
                continue
            try:
                await waited_out(lambda: self._records.write(session.tenant, session.id, answers, reports))  # noqa: B023
            except Exception:  # noqa: BLE001 - whatever it was, the worker must not wait for ever
                incident = new_id("inc")
                _log.exception("worker_answers_not_written", incident_id=incident)
                session.end(Internal(incident))
                return
            session.written(answers)

    async def stop_calls(self, session: Session, reason: str | None) -> None:
        """No more calls for this connection: by the worker's wish (None) or this side's."""
        session.stop_calls(reason)
        try:
            await self._records.stop_calls(session.tenant, session.id)
        except JanusError as error:
            # Only whether it counts as a worker that could take a call.
            _log.debug("worker_drain_not_written", reason=error.reason)

    async def heartbeat(self, session: Session, told: Sequence[str]) -> None:
        """A worker's list of the calls that it has: some may be from an earlier connection."""
        foreign = {text: CallId.parse(text) for text in told}
        held = set(session.calls)
        unknown = {text: call_id for text, call_id in foreign.items() if call_id not in held}
        wanted = [call_id for call_id in unknown.values() if call_id is not None]
        if wanted and not await self._take_back(session, wanted):
            return
        held = set(session.calls)
        for text, call_id in unknown.items():
            if call_id is None or call_id not in held:
                session.cancel(text, "nobody waits for this call")
        session.answer_heartbeat()

    async def _take_back(self, session: Session, wanted: Sequence[CallId]) -> bool:
        """Calls from an earlier connection are this one's; False when it cannot be said yet."""
        async with self._aligning:
            try:
                taken = await self._records.take_back(session.tenant, session.id, session.worker_id, wanted)
            except JanusError as error:
                _log.warning("worker_calls_not_taken_back", reason=error.reason)
                return False
            for call in taken:
                for other in self._of(session.tenant):
                    if other is not session:
                        other.release(call.call_id)
                session.hold(call)
        return True

    # -- claims ----------------------------------------------------------------------

    def _of(self, tenant: str) -> list[Session]:
        return [session for session in self._sessions.values() if session.tenant == tenant]

    def _claim_for(self, tenant: str) -> None:
        self._due.add(tenant)
        self._look.set()

    async def claim(self) -> None:
        """Take calls for the workers that have room."""
        loop = asyncio.get_running_loop()
        poll_at = loop.time() + self.limits.poll_s
        while True:
            try:
                async with asyncio.timeout_at(poll_at):
                    await self._look.wait()
            except TimeoutError:
                self._due.update(session.tenant for session in self._sessions.values())
                poll_at = loop.time() + self.limits.poll_s
            self._look.clear()
            due, self._due = self._due, set()
            for tenant in due:
                try:
                    await self._claim(tenant)
                except JanusError as error:
                    _log.debug("calls_not_claimed", reason=error.reason)
                    self._unsure.add(tenant)
                    await asyncio.sleep(_RETRY_S)
                    self._claim_for(tenant)

    async def _claim(self, tenant: str) -> None:
        rooms = {session.id: session for session in self._of(tenant) if session.room}
        async with self._aligning:
            if tenant in self._unsure:
                sessions = self._of(tenant)
                known = [call_id for session in sessions for call_id in session.calls]
                await self._records.reopen(tenant, [session.id for session in sessions], known)
                self._unsure.discard(tenant)
            if not rooms:
                return
            tools = {name for session in rooms.values() for name in session.tools}
            limit = min(_CLAIM_AT_ONCE, sum(session.room for session in rooms.values()))
            claimed = await self._records.claim(tenant, tools, limit, lambda calls: share(calls, list(rooms.values())))
            for call in claimed:
                if call.call_id.attempt == 1:
                    telemetry.tool_queue(call.tool, call.waited_s)
                if not rooms[call.worker].give(call):
                    # Its stream ended meanwhile: it was not sent.
                    self._unsure.add(tenant)
        if len(claimed) == limit or tenant in self._unsure:
            self._claim_for(tenant)

    # -- leases ----------------------------------------------------------------------

    async def keep(self) -> None:
        """Leases of those that are there, and an end for those that are not."""
        tick_s = min(1.0, self.limits.heartbeat_s / 2)
        renew_s = self.limits.lease_s / 3
        loop = asyncio.get_running_loop()
        renew_at = ticked_at = loop.time()
        while True:
            await asyncio.sleep(tick_s)
            now = loop.time()
            # After a pause of this process the workers' signs of life are yet to be read.
            if now - ticked_at < tick_s + self.limits.lease_s / 2:
                self._look_at_all()
            ticked_at = now
            if now >= renew_at and self._sessions:
                try:
                    await self._renew()
                    renew_at = now + renew_s
                except JanusError as error:
                    _log.warning("worker_leases_not_renewed", reason=error.reason)

    def _look_at_all(self) -> None:
        for session in list(self._sessions.values()):
            if session.silent_s > self.limits.lease_s:
                _log.warning("worker_silent", worker_id=session.worker_id, seconds=round(session.silent_s, 1))
                session.end(DeadlineExceeded("heartbeat", "the worker was not heard of for longer than its lease"))
            elif session.takes_calls and session.age_s > self.limits.longest_s:
                session.stop_calls("the stream has lived long enough; connect anew")
            for call_id in session.overdue(_OVERDUE_S):
                session.drop(call_id, "its deadline has passed")

    async def _renew(self) -> None:
        before = {session.id: session.awaited for session in self._sessions.values()}
        held = await self._records.renew(list(before), self.limits.lease_s)
        for session_id, calls in before.items():
            session = self._sessions.get(session_id)
            for call_id in calls:
                if session is None or (session_id, call_id) in held or call_id not in session.awaited:
                    continue
                if session.takes_calls:
                    session.drop(call_id, "nobody waits for this call")
                else:
                    # One that drains may have taken it to another connection, where it goes on.
                    session.release(call_id)

    # -- news and the end ------------------------------------------------------------

    def heard(self, news: News) -> None:
        """News from other processes."""
        match news.kind:
            case NewsKind.MISSED:
                for session in self._sessions.values():
                    self._claim_for(session.tenant)
            case NewsKind.OPEN:
                if any(session.tenant == news.about for session in self._sessions.values()):
                    self._claim_for(news.about)
            case NewsKind.DROPPED:
                if (call_id := CallId.parse(news.about)) is not None:
                    for session in self._sessions.values():
                        session.drop(call_id, "nobody waits for this call")
            case NewsKind.MOVED:
                pass

    async def drain(self) -> None:
        """No more calls; wait until those under way are answered or taken elsewhere."""
        self._is_draining = True
        for session in list(self._sessions.values()):
            await self.stop_calls(session, "the server is stopping")
        await self._nobody.wait()

    def conclude(self) -> None:
        """Streams say their own end; what runs goes on, and its answers come over other streams."""
        for session in self._sessions.values():
            session.end(connect_again())

    async def close(self) -> None:
        """Wait for what is left to be written."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_FAREWELL_S)
        for task in self._leaving:
            task.cancel()


def share(calls: Sequence[OpenCall], sessions: Sequence[Session]) -> Mapping[CallKey, str]:
    """Each call to the worker with the least to do among those that offer its tool and have room."""
    given: dict[CallKey, str] = {}
    more = {session.id: 0 for session in sessions}
    for call in calls:
        able = [session for session in sessions if call.tool in session.tools and session.room > more[session.id]]
        if able:
            least = min(able, key=lambda session: session.load_with(more[session.id]))
            given[call.key] = least.id
            more[least.id] += 1
    return given


async def _end(session: Session, task: "asyncio.Task[object] | None") -> None:
    """A worker that does not read does not keep its stream open."""
    await session.over.wait()
    await asyncio.sleep(_FAREWELL_S)
    if task is not None:
        task.cancel()
