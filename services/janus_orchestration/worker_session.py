"""One worker while it is connected: what it has, what it is told, what it said.

What is to be told is kept as what it is (calls, calls to stop, an answer to a
heartbeat) and not as a queue of messages, so that a worker which does not read
costs no more than its credits.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field

from janus_kit.errors import InvalidArgument, JanusError, Unavailable
from janus_orchestration.dispatching import Answer, CallId, ClaimedCall, Registration, Report
from janus_orchestration.model import Tool
from janus_orchestration.state import AfterUnknown, after_unknown

MOST_CREDITS = 1_000
_DRAINING = "DRAINING"
# Answers that wait to be written before the worker is not listened to.
_MOST_ANSWERS = 16
# Calls to stop that a worker which does not read is told of at most; it asks again by its heartbeat.
_MOST_CANCELS = 2 * MOST_CREDITS


@dataclass(frozen=True, slots=True)
class Registered:
    """The worker may get calls now."""


@dataclass(frozen=True, slots=True)
class Given:
    """A call to run."""

    call: ClaimedCall


@dataclass(frozen=True, slots=True)
class Dropped:
    """Nobody waits for a call any more; an id that is none of ours is repeated as the worker said it."""

    call_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Beat:
    """The calls that the worker has, as far as this side knows."""

    calls: tuple[CallId, ...]


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """The worker should connect anew; what it runs goes on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The stream ends; without an error as the worker asked."""

    error: JanusError | None


Told = Registered | Given | Dropped | Beat | DrainAsked | Closed


@dataclass(slots=True)
class _Held:
    """A call that the worker has; ``ends_at`` is the loop's time."""

    call: ClaimedCall
    ends_at: float
    is_dropped: bool = False
    is_answered: bool = False


@dataclass(slots=True)
class _Telling:
    """What the worker has yet to be told."""

    is_registered: bool = True
    calls: deque[ClaimedCall] = field(default_factory=deque)
    cancels: dict[str, str] = field(default_factory=dict)
    has_beat: bool = False
    drain: str | None = None


class Session:
    """A worker's connection. Used on one event loop; ``id`` is new for every connection."""

    def __init__(self, session_id: str, tenant: str, registration: Registration) -> None:
        self.id = session_id
        self.tenant = tenant
        self.worker_id = registration.worker_id
        self.tools: dict[str, Tool] = {tool.name: tool for tool in registration.tools}
        # Called when there is room for a call.
        self.on_room: Callable[[], None] = lambda: None
        self.takes_calls = True
        self.over = asyncio.Event()
        self._began_at = self._now()
        self._heard_at = self._now()
        self._credits = registration.credits
        self._held: dict[CallId, _Held] = {}
        self._telling = _Telling()
        self._error: JanusError | None = None
        self._by_worker = False
        self._was_sent_elsewhere = False
        self._news = asyncio.Event()
        self._answers: list[Answer] = []
        self._reports: dict[CallId, Report] = {}
        self._written = asyncio.Event()
        self._to_write = asyncio.Event()

    # -- what it has -----------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        return self.over.is_set()

    @property
    def room(self) -> int:
        """Calls that it takes now."""
        return max(0, self._credits - len(self._held)) if self.takes_calls and not self.is_over else 0

    def load_with(self, more: int) -> float:
        """Share of its credits that is used with so many more calls."""
        return (len(self._held) + more) / self._credits

    @property
    def calls(self) -> list[CallId]:
        """Those that it has, dropped ones and those whose answers are not in the records yet included."""
        return list(self._held)

    @property
    def awaited(self) -> list[CallId]:
        """Those that the records should know it has."""
        return [call_id for call_id, held in self._held.items() if not held.is_dropped and not held.is_answered]

    @property
    def silent_s(self) -> float:
        """Since the worker was heard of; none while it is this side that does not listen."""
        return 0.0 if len(self._answers) >= _MOST_ANSWERS else self._now() - self._heard_at

    @property
    def age_s(self) -> float:
        return self._now() - self._began_at

    def overdue(self, by_s: float) -> list[CallId]:
        """Calls whose deadline passed so long ago, and whose answers count no more.

        The answer to a call that must not be sent again counts until a person
        has decided: only the records know when that is.
        """
        now = self._now() - by_s
        late = [(call_id, held) for call_id, held in self._held.items() if held.ends_at < now and not held.is_dropped]
        return [call_id for call_id, held in late if self._may_resend(held.call)]

    def _may_resend(self, call: ClaimedCall) -> bool:
        # One that was taken over from an earlier connection may be of a tool that this one does not offer.
        tool = self.tools.get(call.tool)
        return tool is not None and after_unknown(tool.side_effect) is AfterUnknown.RESEND

    # -- what it is told -------------------------------------------------------------

    def give(self, call: ClaimedCall) -> bool:
        """Send a call; False when the stream is over."""
        if self.is_over:
            return False
        self.hold(call)
        self._telling.calls.append(call)
        self._news.set()
        return True

    def hold(self, call: ClaimedCall) -> None:
        """It has this call already."""
        self._held[call.call_id] = _Held(call, self._now() + call.left_s)

    def drop(self, call_id: CallId, reason: str) -> None:
        """Nobody waits for this call. Its credit comes back with the worker's answer."""
        held = self._held.get(call_id)
        if held is not None and not held.is_answered:
            held.is_dropped = True
            self.cancel(str(call_id), reason)

    def cancel(self, call_id: str, reason: str) -> None:
        if len(self._telling.cancels) < _MOST_CANCELS:
            self._telling.cancels[call_id] = reason
            self._news.set()

    def release(self, call_id: CallId) -> None:
        """It has this call no more: the worker took it to another connection."""
        if self._held.pop(call_id, None) is not None:
            self._settle()

    def answer_heartbeat(self) -> None:
        self._telling.has_beat = True
        self._news.set()

    def stop_calls(self, reason: str | None) -> None:
        """No more calls, by the worker's wish (None) or this side's; ends when it has none."""
        if reason is None:
            self._by_worker = True
        elif self.takes_calls:
            self._telling.drain = reason
            self._was_sent_elsewhere = True
        self.takes_calls = False
        self._settle()
        self._news.set()

    def end(self, error: JanusError | None) -> None:
        """End the stream; the first word counts."""
        if not self.is_over:
            self.over.set()
            self.takes_calls = False
            self._error = error
            self._was_sent_elsewhere |= error is not None and error.reason == _DRAINING
            self._news.set()
            self._to_write.set()
            self._written.set()

    async def told(self) -> AsyncIterator[Told]:
        """What the worker is told, to the last message."""
        telling = self._telling
        while True:
            self._news.clear()
            if telling.is_registered:
                telling.is_registered = False
                yield Registered()
            while telling.calls and not self.is_over:
                yield Given(telling.calls.popleft())
            while telling.cancels:
                call_id = next(iter(telling.cancels))
                yield Dropped(call_id, telling.cancels.pop(call_id))
            if telling.has_beat:
                telling.has_beat = False
                yield Beat(tuple(self._held))
            if telling.drain is not None:
                reason, telling.drain = telling.drain, None
                yield DrainAsked(reason)
            if self.is_over:
                yield Closed(self._error)
                return
            await self._news.wait()

    @property
    def was_sent_elsewhere(self) -> bool:
        """This side has asked the worker to connect anew."""
        return self._was_sent_elsewhere

    def unsent(self) -> list[CallId]:
        """Calls that the worker was never told of."""
        return [call.call_id for call in self._telling.calls]

    # -- what it said ----------------------------------------------------------------

    def heard(self) -> None:
        """A sign of life."""
        self._heard_at = self._now()

    def add_credits(self, more: int) -> None:
        if self._credits + more > MOST_CREDITS:
            raise InvalidArgument("credits.credits", f"must leave at most {MOST_CREDITS} calls at the same time")
        self._credits += more
        self.on_room()

    def report(self, report: Report) -> None:
        """Progress; of several, the newest is written."""
        held = self._held.get(report.call_id)
        if held is not None and not held.is_dropped and not held.is_answered:
            self._reports[report.call_id] = report
            self._to_write.set()

    async def complete(self, answer: Answer) -> None:
        """A call is done. Waits when too many answers are to be written."""
        held = self._held.get(answer.call_id)
        if held is None or held.is_answered:
            return
        self._reports.pop(answer.call_id, None)
        if held.is_dropped:
            self._finish([answer.call_id])
            return
        while len(self._answers) >= _MOST_ANSWERS and not self.is_over:
            self._written.clear()
            await self._written.wait()
        held.is_answered = True
        self._answers.append(answer)
        self._to_write.set()

    async def to_write(self, reports_after_s: float) -> tuple[Sequence[Answer], Sequence[Report]]:
        """What was said and has yet to be written: answers at once, reports of progress a little later.

        Nothing, once the stream is over and all is written.
        """
        while not self._answers and not self.is_over:
            try:
                async with asyncio.timeout(reports_after_s if self._reports else None):
                    self._to_write.clear()
                    await self._to_write.wait()
            except TimeoutError:
                break
        reports, self._reports = list(self._reports.values()), {}
        return list(self._answers), [] if self.is_over else reports

    def written(self, answers: Collection[Answer]) -> None:
        """These answers are in the records."""
        del self._answers[: len(answers)]
        self._written.set()
        self._finish([answer.call_id for answer in answers])

    def _finish(self, calls: Sequence[CallId]) -> None:
        for call_id in calls:
            self._held.pop(call_id, None)
        self._settle()
        if self.room:
            self.on_room()

    def _settle(self) -> None:
        """A connection that takes no calls and has none is done."""
        if not self.takes_calls and not self._held:
            self.end(None if self._by_worker else connect_again())

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def connect_again() -> Unavailable:
    """Why a stream ends that only has to go on elsewhere."""
    return Unavailable("", "the server ends this stream; connect again", reason=_DRAINING, retry_after=0.0)
