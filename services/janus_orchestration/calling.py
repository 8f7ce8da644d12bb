"""Tool calls under way: side by side, each bounded, none of them able to break the run.

Whatever becomes of a call, it is one output for the model. Journalling is the
reader's: here nothing is written.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from janus_kit.errors import JanusError
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_orchestration.model import MemoryPolicy, Step, Thread, ToolCall, ToolOutput
from janus_orchestration.ports import Fenced, OutcomeUnknown, ToolTask
from janus_orchestration.tools import BadArguments, Offered, arguments_of

_log = get_logger(__name__)

_MOST_NEWS = 256


@dataclass(frozen=True, slots=True)
class Assignment:
    """A call to run, with its step; ``offered`` is None for a tool that the agent does not have."""

    step: Step
    call: ToolCall
    offered: Offered | None


@dataclass(frozen=True, slots=True)
class CallContext:
    """For whom the calls of one answer run."""

    tenant: str
    run_id: str
    epoch: int
    message_id: str
    thread: Thread
    memory: MemoryPolicy


class Begun(NamedTuple):
    """Somebody has begun a call."""

    step: Step
    worker_id: str
    attempt: int


class Progressed(NamedTuple):
    """A call is so far."""

    step: Step
    fraction: float | None
    message: str


class Done(NamedTuple):
    """A call has its output."""

    step: Step
    output: ToolOutput


News = Begun | Progressed | Done


class Calls:
    """The calls of one answer, while they run."""

    def __init__(self, context: CallContext) -> None:
        self._context = context
        # Bounded: a tool that tells more than is read waits.
        self._news: asyncio.Queue[News] = asyncio.Queue(_MOST_NEWS)
        self._room: dict[str, asyncio.Semaphore] = {}

    async def news(self) -> list[News]:
        """What has happened since; waits for the first of it."""
        found = [await self._news.get()]
        while not self._news.empty():
            found.append(self._news.get_nowait())
        return found

    async def run(self, assignment: Assignment) -> None:
        """Take one call to its output."""
        await self._news.put(Done(assignment.step, await self._output(assignment)))

    async def _output(self, assignment: Assignment) -> ToolOutput:
        call, offered = assignment.call, assignment.offered
        if offered is None:
            _log.warning("tool_call_refused", step=assignment.step.index, why="not granted")
            return ToolOutput(f"there is no tool named '{call.name}'", is_error=True)
        try:
            arguments = arguments_of(offered.tool, call.arguments_json)
        except BadArguments as bad:
            return ToolOutput(str(bad), is_error=True)
        context = self._context
        task = ToolTask(
            tool=offered.tool,
            call=call,
            arguments=arguments,
            attempt=assignment.step.attempts,
            epoch=context.epoch,
            step=assignment.step.index,
            timeout_s=offered.timeout_s,
            when_no_worker=offered.when_no_worker,
            message_id=context.message_id,
            run_id=context.run_id,
            thread=context.thread,
            memory=context.memory,
        )
        room = self._room.setdefault(call.name, asyncio.Semaphore(offered.max_concurrency))
        async with room:
            return await self._called(assignment.step, offered, task)

    async def _called(self, step: Step, offered: Offered, task: ToolTask) -> ToolOutput:
        try:
            return await offered.source.call(self._context.tenant, task, _Report(step, self._news))
        except TimeoutError:
            return ToolOutput(f"the tool did not answer within {offered.timeout_s:g} s", is_error=True)
        except OutcomeUnknown as unknown:
            return outcome_unknown(task, unknown)
        except Fenced:
            # The run is another owner's; what is said here is journalled nowhere.
            return ToolOutput("the run goes on elsewhere", is_error=True)
        except JanusError as error:
            _log.warning("tool_call_failed", step=step.index, reason=error.reason, code=error.code)
            return ToolOutput(error.message, is_error=True)
        except Exception:  # noqa: BLE001 - a tool that breaks is a failed call, not a failed run
            incident = new_id("inc")
            _log.exception("tool_call_broke", step=step.index, incident_id=incident)
            return ToolOutput(f"the tool broke; incident {incident}", is_error=True)


class _Report:
    """What a source tells of one call."""

    def __init__(self, step: Step, news: asyncio.Queue[News]) -> None:
        self._step = step
        self._news = news

    async def started(self, worker_id: str = "", attempt: int | None = None) -> None:
        await self._news.put(Begun(self._step, worker_id, attempt or self._step.attempts))

    async def progress(self, fraction: float | None, message: str) -> None:
        await self._news.put(Progressed(self._step, fraction, message))


def outcome_unknown(task: ToolTask, unknown: OutcomeUnknown) -> ToolOutput:
    """What becomes of an at-most-once call that may have run: it is not tried again, and the model is told why."""
    _log.warning("tool_outcome_unknown", step=task.step)
    return ToolOutput(f"{unknown.why}; whether it did anything is not known, and it was not tried again", is_error=True)


@asynccontextmanager
async def under_way(context: CallContext, assignments: Sequence[Assignment]) -> AsyncIterator[Calls]:
    """Run the calls; leaving the block ends those that are left."""
    calls = Calls(context)
    tasks = [
        asyncio.create_task(calls.run(each), name=f"tool-{context.run_id}-{each.step.index}") for each in assignments
    ]
    try:
        yield calls
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
