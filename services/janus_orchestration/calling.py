"""Tool calls under way: side by side, each bounded, none of them able to break the run.

Whatever becomes of a call, it is one output for the model, or, when nobody can
tell what became of it, a question to a person. Journalling is the reader's:
here nothing is written.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from janus_kit.errors import JanusError
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import telemetry
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


class Unknown(NamedTuple):
    """A call may have done something, and a person has to say how to go on."""

    step: Step
    why: str


class Answered(NamedTuple):
    """Something that the run waits for may have been answered."""


News = Begun | Progressed | Done | Unknown | Answered


class Calls:
    """The calls of one answer, while they run. ``is_failure`` tells an output that says so."""

    def __init__(self, context: CallContext, is_failure: Callable[[ToolOutput], bool]) -> None:
        self._context = context
        self._is_failure = is_failure
        # Bounded: a tool that tells more than is read waits.
        self._news: asyncio.Queue[News] = asyncio.Queue(_MOST_NEWS)
        self._room: dict[str, asyncio.Semaphore] = {}
        # By step; a call that has ended is here until that was read.
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._was_answered = False

    @property
    def is_idle(self) -> bool:
        """Nothing runs, and all that has ended was read."""
        return not self._tasks

    def start(self, assignment: Assignment) -> None:
        """Run a call."""
        name = f"tool-{self._context.run_id}-{assignment.step.index}"
        self._tasks[assignment.step.index] = asyncio.create_task(self._run(assignment), name=name)

    def answered(self) -> None:
        """Have what was answered looked at."""
        self._was_answered = True
        # A full queue is being read anyway.
        with suppress(asyncio.QueueFull):
            self._news.put_nowait(Answered())

    async def news(self) -> list[News]:
        """What has happened since; waits for the first of it."""
        found = [await self._news.get()]
        while not self._news.empty():
            found.append(self._news.get_nowait())
        for told in found:
            if isinstance(told, Done | Unknown):
                self._tasks.pop(told.step.index, None)
        if self._was_answered:
            self._was_answered = False
            found = [*(told for told in found if not isinstance(told, Answered)), Answered()]
        return found

    async def close(self) -> None:
        """End the calls that are left."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, assignment: Assignment) -> None:
        """Take one call to its output."""
        try:
            told: News = Done(assignment.step, await self._output(assignment))
        except OutcomeUnknown as unknown:
            told = Unknown(assignment.step, unknown.why)
        await self._news.put(told)

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
            assert offered.source is not None, "a call that nobody runs is asked about"
            with telemetry.tool_executed(task) as execution:
                output = await offered.source.call(self._context.tenant, task, _Report(step, self._news))
                if self._is_failure(output):
                    execution.failed()
                return output
        except TimeoutError:
            return ToolOutput(f"the tool did not answer within {offered.timeout_s:g} s", is_error=True)
        except OutcomeUnknown:
            raise
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


@asynccontextmanager
async def under_way(
    context: CallContext, assignments: Sequence[Assignment], is_failure: Callable[[ToolOutput], bool]
) -> AsyncIterator[Calls]:
    """Run the calls; leaving the block ends those that are left."""
    calls = Calls(context, is_failure)
    for each in assignments:
        calls.start(each)
    try:
        yield calls
    finally:
        await calls.close()
