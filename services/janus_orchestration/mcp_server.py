"""One MCP server: a task that keeps it connected, what it offers, and the calls to it.

The last list of its tools is kept while it is away, so that an agent's tools do
not come and go with a server's restarts, nor with ours.
"""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from enum import StrEnum
from typing import NamedTuple

from janus_kit.cancellation import cancel_wins
from janus_kit.errors import Unavailable
from janus_kit.telemetry.logging import get_logger
from janus_kit.waiting import within
from janus_orchestration import state, telemetry
from janus_orchestration.mcp_ports import Connect, McpLost, McpNotTaken, McpOffer, McpSession
from janus_orchestration.model import Tool, ToolOutput, WhenNoWorker
from janus_orchestration.ports import OutcomeUnknown, ToolReport, ToolTask
from janus_orchestration.state import AfterUnknown

_log = get_logger(__name__)

# A call that takes its server down does not do so for ever.
_MOST_ATTEMPTS = 3
_FIRST_RETRY_S = 0.25
# Longest wait between tries to connect while a call that may have run waits for it.
_HURRIED_RETRY_S = 1.0
# A further try of which one hears nothing for so long has got there.
_TAKEN_AFTER_S = 0.5
# A server that says all the time that its tools have changed is not asked all the time.
_BETWEEN_LISTS_S = 0.5
# A connection that lasted so long was well: the next loss begins the back-off anew.
_WELL_AFTER_S = 30.0
# Longest wait for the records of what it offers.
_RECORDS_S = 5.0
# Told to the model, so that it looks before it asks anew.
_UNKNOWN = "whether it did anything is not known"


class Standing(StrEnum):
    """Whether a server can be called."""

    CONNECTING = "connecting"
    """For the first time, or at once after a connection that was well: a restart is no reason to fail calls."""
    CONNECTED = "connected"
    AWAY = "away"
    """A try to connect has failed, or it is lost again and again."""


class McpLimits(NamedTuple):
    """Times in seconds; see the settings. A call that may have run waits for ``lease_s`` for its server to be back."""

    max_concurrency: int
    connect_s: float
    refresh_s: float
    longest_retry_s: float
    lease_s: float


class McpServer:
    """A server by its configured name."""

    def __init__(self, name: str, connect: Connect, limits: McpLimits, offer: McpOffer) -> None:
        self.name = name
        # Told the names of tools that it did not offer before.
        self.on_tools: Callable[[Collection[str]], None] = lambda names: None
        self._connect = connect
        self._limits = limits
        self._room = asyncio.Semaphore(limits.max_concurrency)
        self._tools: Mapping[str, Tool] = {}
        self._offer = offer
        # As the records have it; None until that is known.
        self._recorded: Mapping[str, Tool] | None = None
        self._standing = Standing.CONNECTING
        # What went wrong last, to be shown to anybody.
        self._why = ""
        self._session: McpSession | None = None
        self._moved = asyncio.Event()
        self._calls = 0
        # Calls that may have run and wait for a connection; the event is set while there are any.
        self._waiting = 0
        self._hurry = asyncio.Event()

    # -- the connection ------------------------------------------------------------------

    async def keep(self) -> None:
        """Stay connected, for ever."""
        wait_s = _FIRST_RETRY_S
        while True:
            began = time.monotonic()
            try:
                with cancel_wins():
                    await self._connected()
            except Exception as error:  # noqa: BLE001 - whatever a server does, it is tried again
                self._why = _why(error)
                _log.warning("mcp_server_lost", server=self.name, why=self._why)
            await self._recall()
            was_connected = self._standing is Standing.CONNECTED
            if was_connected and time.monotonic() - began > _WELL_AFTER_S:
                wait_s = _FIRST_RETRY_S
            is_soon_tried = was_connected and wait_s <= _FIRST_RETRY_S
            self._stands(Standing.CONNECTING if is_soon_tried else Standing.AWAY)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s * random.uniform(0.5, 1.0)):  # noqa: S311
                    await self._hurry.wait()
                    await asyncio.sleep(_HURRIED_RETRY_S)
            wait_s = min(wait_s * 2, self._limits.longest_retry_s)

    async def _connected(self) -> None:
        """One connection, to its end."""
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._limits.connect_s):
                session = await stack.enter_async_context(self._connect())
                await self._list(session)
            self._stands(Standing.CONNECTED, session)
            _log.info("mcp_server_connected", server=self.name, tools=len(self._tools))
            telemetry.mcp_connected.labels(self.name).set(1)
            telemetry.mcp_connections.labels(self.name).inc()
            try:
                while True:
                    await self._record()
                    await self._refreshed(session)
            finally:
                self._session = None
                telemetry.mcp_connected.labels(self.name).set(0)

    async def _refreshed(self, session: McpSession) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.refresh_s):
                await session.changed()
                await asyncio.sleep(_BETWEEN_LISTS_S)
        try:
            async with asyncio.timeout(self._limits.connect_s):
                await self._list(session)
        except TimeoutError:
            # A server that does one thing at a time is busy, not dead, while it is called.
            if not self._calls:
                raise

    async def _list(self, session: McpSession) -> None:
        self._offers(await session.tools())

    def _offers(self, offered: Sequence[Tool]) -> None:
        tools = {tool.name: tool for tool in offered}
        before, self._tools = self._tools, tools
        if tools == before:
            return
        if before:
            _log.info("mcp_tools_changed", server=self.name, tools=len(tools))
        self.on_tools(tools.keys() - before.keys())

    async def _recall(self) -> None:
        """What it offered before we began, where it has not been reached since."""
        if self._tools or self._recorded is not None:
            return
        try:
            async with within(_RECORDS_S):
                tools = await self._offer.read()
        except Exception as error:  # noqa: BLE001 - they are asked again after the next try
            _log.warning("mcp_tools_not_recalled", server=self.name, error=type(error).__name__)
            return
        self._offers(tools)
        self._recorded = self._tools

    async def _record(self) -> None:
        """For those who begin while it is away."""
        tools = self._tools
        if tools == self._recorded:
            return
        try:
            async with within(_RECORDS_S):
                await self._offer.write(list(tools.values()))
        except Exception as error:  # noqa: BLE001 - it is tried again with the next list
            _log.warning("mcp_tools_not_recorded", server=self.name, error=type(error).__name__)
        else:
            self._recorded = tools

    def _stands(self, standing: Standing, session: McpSession | None = None) -> None:
        self._standing, self._session = standing, session
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def check(self) -> None:
        """Raises Unavailable unless it is connected."""
        if self._session is None:
            why = self._why and f": {self._why}"
            raise Unavailable(f"mcp-{self.name}", f"the MCP server '{self.name}' is not connected{why}")

    # -- its tools -----------------------------------------------------------------------

    async def tools(self) -> Mapping[str, Tool]:
        """What it offered last, maybe to our predecessor; waits for the first try to reach it."""
        while not self._tools and self._standing is Standing.CONNECTING:
            await self._moved.wait()
        return self._tools

    async def call(self, name: str, task: ToolTask, report: ToolReport) -> ToolOutput:
        """Run a call of the tool that the server calls so; see ``ToolSource``."""
        began, outcome = time.monotonic(), "cancelled"
        call = _Call(name, task, report)
        try:
            async with asyncio.timeout(task.timeout_s):
                output = await self._run(call)
            outcome = call.outcome
            return output
        except TimeoutError:
            outcome = "timed_out"
            if call.may_have_run and call.must_not_repeat:
                raise OutcomeUnknown(f"the tool did not answer within {task.timeout_s:g} s") from None
            if not call.was_begun and self._session is None:
                outcome = "away"
                return self._not_connected()
            if not call.was_begun:
                return self._not_taken(task)
            if self._session is None:
                return self._not_back()
            raise
        except OutcomeUnknown:
            outcome = "lost"
            raise
        except Exception:
            outcome = "broken"
            raise
        finally:
            telemetry.mcp_calls.labels(self.name, outcome).inc()
            telemetry.mcp_call_duration.labels(self.name).observe(time.monotonic() - began)

    async def _run(self, call: "_Call") -> ToolOutput:
        async with self._room:
            while True:
                session = await self._session_for(call)
                if session is None:
                    if call.was_begun:
                        call.outcome = "lost"
                        return self._not_back()
                    call.outcome = "away"
                    return self._not_connected()
                self._calls += 1
                try:
                    return await call.over(session)
                except McpNotTaken:
                    pass
                except McpLost:
                    if call.must_not_repeat:
                        raise OutcomeUnknown("the tool's server was lost before it answered") from None
                    if call.attempt >= _MOST_ATTEMPTS:
                        call.outcome = "lost"
                        why = f"the tool's server was lost before it answered, {call.attempt} times; {_UNKNOWN}"
                        return ToolOutput(why, is_error=True)
                finally:
                    self._calls -= 1
                _log.warning("mcp_call_lost", server=self.name, step=call.task.step, attempt=call.attempt)
                # Its end is about to be seen; or it goes on, and lost this one call only.
                with suppress(TimeoutError):
                    async with within(_FIRST_RETRY_S):
                        while self._session is session:
                            await self._moved.wait()

    async def _session_for(self, call: "_Call") -> McpSession | None:
        """A connection; None when the server is away and is not waited for.

        With a call that was begun it has time to come back: a restart is no reason to give up.
        """
        if self._session is None and call.was_begun:
            with suppress(TimeoutError), self._hurried():
                async with within(self._limits.lease_s):
                    while self._session is None:
                        await self._moved.wait()
        while self._session is None:
            if self._standing is Standing.AWAY and call.task.when_no_worker is WhenNoWorker.FAIL:
                return None
            await self._moved.wait()
        return self._session

    @contextmanager
    def _hurried(self) -> Iterator[None]:
        """Have it tried often to connect."""
        self._waiting += 1
        self._hurry.set()
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._hurry.clear()

    def _not_connected(self) -> ToolOutput:
        return ToolOutput(f"the tool's server '{self.name}' is not connected", is_error=True)

    def _not_taken(self, task: ToolTask) -> ToolOutput:
        why = f"the tool's server '{self.name}' did not take the call within {task.timeout_s:g} s"
        return ToolOutput(why, is_error=True)

    def _not_back(self) -> ToolOutput:
        why = f"the call was begun, but the tool's server '{self.name}' is not connected any more; {_UNKNOWN}"
        return ToolOutput(why, is_error=True)


class _Call:
    """One call, over all its tries."""

    def __init__(self, name: str, task: ToolTask, report: ToolReport) -> None:
        self.task = task
        self.attempt = 0
        self.may_have_run = False
        self.outcome = "answered"
        self.must_not_repeat = state.after_unknown(task.tool.side_effect) is not AfterUnknown.RESEND
        self._name = name
        self._report = report
        self._told = 0

    @property
    def was_begun(self) -> bool:
        """Whether it may have done something, in a try of ours or of an earlier owner."""
        return self.may_have_run or self.task.attempt > 1

    async def over(self, session: McpSession) -> ToolOutput:
        """Try it over a connection."""
        self.attempt += 1
        if self.attempt == 1:
            await self._tell_started()
        before, self.may_have_run = self.may_have_run, True
        latest = _Latest()
        telling = asyncio.create_task(self._tell(latest), name=f"mcp-progress-{self.task.run_id}-{self.task.step}")
        was_taken = False
        try:
            output = await session.call(self._name, self.task.arguments, self.task.idempotency_key, latest.put)
            was_taken = True
            return output
        except McpNotTaken:
            self.attempt, self.may_have_run = self.attempt - 1, before
            raise
        except McpLost:
            was_taken = True
            raise
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            if was_taken:
                await self._tell_started()

    async def _tell(self, latest: "_Latest") -> None:
        if self.attempt > self._told:
            with suppress(TimeoutError):
                async with within(_TAKEN_AFTER_S):
                    await latest.wait()
            await self._tell_started()
        while True:
            await self._report.progress(*await latest.next())

    async def _tell_started(self) -> None:
        """Once for each try; a further one may never get to the server, and is told of when it has."""
        if self.attempt > self._told:
            # A run that was taken over goes on counting.
            await self._report.started(attempt=self.task.attempt + self.attempt - 1)
            self._told = self.attempt


class _Latest:
    """The newest progress. A server that tells more than is read loses the older, and nothing grows."""

    def __init__(self) -> None:
        self._news: tuple[float | None, str] | None = None
        self._there = asyncio.Event()

    def put(self, fraction: float | None, message: str) -> None:
        self._news = (fraction, message)
        self._there.set()

    async def wait(self) -> None:
        """Until there is one."""
        await self._there.wait()

    async def next(self) -> tuple[float | None, str]:
        await self._there.wait()
        self._there.clear()
        assert self._news is not None
        return self._news


def _why(error: BaseException) -> str:
    """What may be shown of an error, whose text may be the server's own words, or have a secret in it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case McpLost():
            return str(error) or "its connection ended"
        case TimeoutError():
            return "it does not answer in time"
    return type(error).__name__
