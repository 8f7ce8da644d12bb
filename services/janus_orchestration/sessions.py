"""A live conversation: what a client says about one thread in, the events of its runs out.

It holds no state that matters: runs, answers and cancels are those of the unary
calls, and everybody else sees the same. What is refused is told, and the
session goes on. Nothing is read ahead in either direction: a client that does
not read is not heard either, once what waits for it is full.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

from janus_kit.auth.identity import Identity
from janus_kit.errors import FailedPrecondition, JanusError, NotFound
from janus_orchestration.agents import Agents
from janus_orchestration.answers import Answers, Reply
from janus_orchestration.events import Handoff
from janus_orchestration.idempotency import Once
from janus_orchestration.model import Cursor
from janus_orchestration.ports import EventCodec
from janus_orchestration.runs import Asking, RunDetails, Runs
from janus_orchestration.threads import Threads
from janus_orchestration.watch import Batch

_MOST_WAITING = 16
_START = Cursor()
_NOT_DEDUPLICATED: Once[RunDetails] = Once("Session", "", b"", lambda _: b"")


@dataclass(frozen=True, slots=True)
class Config:
    """Which conversation; ``resume_run`` is followed from after ``resume_after``."""

    thread_id: str
    agent: str = ""
    resume_run: str = ""
    resume_after: Cursor = _START


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a run; without a name the one that is going on."""

    run_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unfit:
    """A message that is none."""

    error: JanusError


Said = Asking | Reply | Cancel | Unfit


@dataclass(frozen=True, slots=True)
class Rejected:
    """What the client said as its ``place``-th message, the first being the config, could not be done."""

    place: int
    error: JanusError


@dataclass(frozen=True, slots=True)
class _Over:
    """One of those who have something to tell is done, or broke."""

    error: Exception | None


Told = Batch | Rejected


class Sessions:
    """The sessions of all tenants."""

    def __init__(self, agents: Agents, threads: Threads, runs: Runs, answers: Answers, codec: EventCodec) -> None:
        self._agents = agents
        self._threads = threads
        self._runs = runs
        self._answers = answers
        self._codec = codec

    async def converse(self, caller: Identity, config: Config, said: AsyncIterator[Said]) -> AsyncIterator[Told]:
        """What there is to tell, until the client has said all and its runs have ended.

        Raises NotFound for the thread, for an agent that is not there, and for a
        run to resume that is not of the thread, OutOfRange for a cursor that
        this run never had.
        """
        await self._threads.get(caller.tenant, config.thread_id)
        # A run that is resumed goes on also when its agent was taken out.
        if config.agent and not config.resume_run:
            await self._agents.get(caller.tenant, config.agent, 0)
        session = _Session(caller, config, said, self._threads, self._runs, self._answers, self._codec)
        if config.resume_run:
            details = await self._runs.brief(caller.tenant, config.resume_run)
            if details.run.thread_id != config.thread_id:
                raise NotFound("run", config.resume_run)
            session.resume(details)
        async with aclosing(session.told()) as told:  # type: ignore[type-var]
            async for each in told:
                yield each


@dataclass
class _Session:
    caller: Identity
    config: Config
    said: AsyncIterator[Said]
    threads: Threads
    runs: Runs
    answers: Answers
    codec: EventCodec
    out: asyncio.Queue[Told | _Over] = field(default_factory=lambda: asyncio.Queue(_MOST_WAITING))
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    # Whoever still has something to tell.
    tellers: int = 0
    followed: set[str] = field(default_factory=set)
    # The run to go on with comes first: what was said of it before, before anything of other runs.
    caught_up: asyncio.Event = field(default_factory=asyncio.Event)

    def resume(self, details: RunDetails) -> None:
        """Follow a run that is there already."""
        after = self.config.resume_after
        self.followed.add(details.run.id)
        self._tell(self._resumed(self.runs.watch(self.caller.tenant, details.run.id, after), details.last.sequence))
        if after.sequence >= details.last.sequence:
            self.caught_up.set()

    async def told(self) -> AsyncIterator[Told]:
        if not self.config.resume_run:
            self.caught_up.set()
        self._tell(self._hear())
        try:
            while self.tellers:
                told = await self.out.get()
                if not isinstance(told, _Over):
                    yield told
                    continue
                self.tellers -= 1
                if told.error is not None:
                    raise told.error
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    def _tell(self, source: AsyncIterator[Told]) -> asyncio.Task[None]:
        """Tell what comes from there, in a task of its own."""
        self.tellers += 1
        task = asyncio.create_task(self._telling(source), name=f"session-{self.config.thread_id}")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _telling(self, source: AsyncIterator[Told]) -> None:
        error: Exception | None = None
        try:
            async with aclosing(source) as each:  # type: ignore[type-var]
                async for told in each:
                    await self.out.put(told)
        except Exception as broken:  # noqa: BLE001 - raised where the session is told of it
            error = broken
        await self.out.put(_Over(error))

    async def _hear(self) -> AsyncIterator[Told]:
        """Do what the client says, one after the other."""
        place = 1
        async with aclosing(self.said) as messages:  # type: ignore[type-var]
            async for said in messages:
                place += 1
                try:
                    await self._do(said)
                except JanusError as error:
                    yield Rejected(place, error)

    async def _do(self, said: Said) -> None:
        match said:
            case Unfit(error):
                raise error
            case Asking():
                await self._start(said)
            case Reply():
                await self.answers.give(self.caller, said, _NOT_DEDUPLICATED)
            case Cancel(run_id, reason):
                run_id = run_id or await self._active()
                await self.runs.cancel(self.caller.tenant, run_id, reason, _NOT_DEDUPLICATED)

    async def _start(self, asking: Asking) -> None:
        started = await self.runs.start(self.caller, asking)
        if started.run_id in self.followed:
            # Said once more with the same request id.
            return
        self.followed.add(started.run_id)
        task = self._tell(self._started(self.runs.follow(self.caller.tenant, started)))
        # Also when the client goes before the first event is looked for.
        task.add_done_callback(lambda _: self.runs.leave(self.caller.tenant, started))

    async def _active(self) -> str:
        thread = await self.threads.get(self.caller.tenant, self.config.thread_id)
        if not thread.active_run:
            raise FailedPrecondition(
                "STATE_CONFLICT", "no run of the thread is going on", {"state": "IDLE"}, subject=f"thread/{thread.id}"
            )
        return thread.active_run

    async def _started(self, events: AsyncIterator[Batch]) -> AsyncIterator[Told]:
        async with aclosing(events) as batches:  # type: ignore[type-var]
            await self.caught_up.wait()
            async for batch in batches:
                yield batch
                self._follow_on(batch)

    def _follow_on(self, batch: Batch) -> None:
        """Where another agent goes on, the session does too."""
        for event in batch.events:
            if event.kind != Handoff.kind:
                continue
            run_id = self.codec.goes_on(event.wire)
            if run_id not in self.followed:
                self.followed.add(run_id)
                self._tell(self._started(self.runs.watch(self.caller.tenant, run_id, _START)))

    async def _resumed(self, events: AsyncIterator[Batch], last: int) -> AsyncIterator[Told]:
        async with aclosing(events) as batches:  # type: ignore[type-var]
            async for batch in batches:
                yield batch
                self._follow_on(batch)
                if batch.events and batch.events[-1].cursor.sequence >= last:
                    self.caught_up.set()
        self.caught_up.set()
