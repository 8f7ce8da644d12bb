"""What orchestration needs from the world, as small Protocols.

Failures come as ``janus_kit.errors``: ``Unavailable("postgres")`` from the
store, ``Unavailable("memory")`` from memory, and so on. Four are ours alone and
never reach a caller: ``Fenced``, ``Stale``, ``StreamAway`` and ``OutcomeUnknown``.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from janus_kit.errors import AlreadyExists, JanusError
from janus_orchestration.events import Event
from janus_orchestration.model import (
    Agent,
    AgentSpec,
    Ancestor,
    Claim,
    Cursor,
    Failure,
    MemoryPolicy,
    MemoryScope,
    Message,
    ModelEvent,
    NewMemory,
    Pending,
    PendingKind,
    Prompt,
    Recalled,
    Recorded,
    Removal,
    Run,
    RunState,
    Step,
    StoreDebt,
    Thread,
    ThreadMessage,
    Tool,
    ToolCall,
    ToolOutput,
    Usage,
    Verdict,
    WhenNoWorker,
)
from janus_orchestration.timetable import Schedule
from janus_orchestration.webhook import DeliveryClaim, Letter, Webhook, WebhookDelivery


class Fenced(Exception):
    """Another owner has the run; nothing more may be written for it here."""


class Stale(Exception):
    """A run or its thread is another than its owner knows it."""


class OutcomeUnknown(Exception):
    """A call may have done something, and ``why`` nobody knows: a person has to say whether it is tried again."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class StreamAway(Exception):
    """The event stream's store does not answer."""


def message_taken(ids: Sequence[str]) -> AlreadyExists:
    """One of these new messages has an id that is in its thread already."""
    text = "the thread has a message with one of these ids already"
    return AlreadyExists("RESOURCE_EXISTS", text, "message", ", ".join(ids[:3]))


class EventCodec(Protocol):
    """Events in the form that stores keep and watchers get."""

    def encode(self, run_id: str, cursor: Cursor, at: datetime, event: Event) -> bytes: ...

    def recalled(self, wire: bytes) -> Recalled:
        """What a recorded memory_recalled event said."""

    def goes_on(self, wire: bytes) -> str:
        """The run that a recorded handoff event names."""

    def failure(self, error: JanusError) -> Failure: ...


class ToolCodec(Protocol):
    """Tool calls and their results as messages carry them."""

    def calls(self, answer: Message) -> tuple[ToolCall, ...]:
        """The calls that an answer asks for, in its order."""

    def result(self, call_id: str, output: ToolOutput) -> bytes:
        """The wire form of a call's result."""

    def is_failure(self, output: ToolOutput) -> bool:
        """Whether the tool says that it failed."""

    def recorded(self, event: bytes) -> tuple[str, bytes]:
        """The call's id and the result of a recorded tool_call_completed event."""

    def message(self, results: Sequence[bytes], at: datetime) -> Message:
        """The message that answers an answer's calls."""

    def said(self, text: str, at: datetime) -> Message:
        """A message of the user's side."""


# -- Records in Postgres, a transaction at a time ------------------------------------


class AgentRecords(Protocol):
    """Agents, in a transaction of one tenant."""

    async def lock_agent(self, name: str) -> Agent | None:
        """The newest version, locked until the transaction ends."""

    async def agent(self, name: str, version: int = 0) -> Agent | None: ...

    async def agents(self, after: str, limit: int) -> list[Agent]:
        """Newest versions by name, those after ``after``."""

    async def add_agent(self, agent: Agent) -> None: ...

    async def agent_version(self, name: str, version: int) -> Agent | None:
        """A version that a run keeps, also of an agent that was taken out."""

    async def newest_version(self, name: str) -> int:
        """The last number that was given, also of an agent that was taken out; 0 for none."""

    async def remove_agent(self, name: str) -> None:
        """Take it out; its versions stay for runs that keep them."""

    async def purposes(self, names: Sequence[str]) -> dict[str, str]:
        """The descriptions of those that are there."""


class ThreadRecords(Protocol):
    """Threads and their messages."""

    async def thread(self, thread_id: str) -> Thread | None: ...

    async def lock_thread(self, thread_id: str) -> Thread | None: ...

    async def lock_thread_for(
        self, thread_id: str, agent: str, otherwise: str, *, limit: int, most_bytes: int
    ) -> tuple[Thread | None, Agent | None, list[ThreadMessage]]:
        """Lock a thread: as it is then, the newest version of an agent, and what was said.

        The agent is the named one, else the thread's, else ``otherwise``. Of the messages the newest ones, oldest
        first, as ``messages`` limits them; none when a run has the thread's turn.
        """

    async def add_thread(self, thread: Thread) -> bool:
        """False when the id is taken."""

    async def threads(self, subject: str, agent: str, after: tuple[datetime, str] | None, limit: int) -> list[Thread]:
        """Last used first, beyond a time and an id; an empty name filters nothing."""

    async def copy_messages(self, source: Thread, to: Thread, position: int) -> None:
        """The source's messages up to a position, as the first of another thread; of no run, and not for memory."""

    async def message_of(self, thread_id: str, message_id: str) -> ThreadMessage | None:
        """A committed message by its id."""

    async def message_ids(self, thread_id: str) -> list[str]:
        """Of all committed messages, in order."""

    async def spaces_of(self, thread_id: str) -> list[str]:
        """Where the turns of the thread's runs are stored."""

    async def remove_thread(self, thread_id: str) -> list[str]:
        """Take a thread out with all that is its own; the ids of its runs."""

    async def messages(
        self,
        thread_id: str,
        *,
        after: int,
        limit: int,
        descending: bool = False,
        most_bytes: int | None = None,
    ) -> list[ThreadMessage]:
        """Committed messages beyond a position, in the order asked for.

        With ``most_bytes`` they end with the first that makes them larger, but
        not before the second one.
        """

    async def commit_messages(
        self, thread: Thread, messages: Sequence[Message], *, run_id: str, is_output: bool
    ) -> None:
        """Put messages after the thread's last, as ``write_thread`` is yet to say. It must be locked.

        Raises AlreadyExists for an id that is there, at the latest when the transaction ends.
        """

    async def write_thread(self, thread: Thread) -> None:
        """Store what changes of a thread: its places, whose turn it is, when it was used. It must be locked."""

    async def take_back(self, run_ids: Sequence[str], thread: Thread, at: datetime) -> list[ThreadMessage]:
        """Take the messages of runs out of the thread, whose last ones they are, and what memory is owed of them.

        ``thread`` must be locked. What was committed is returned.
        """

    async def threads_below(self, thread_id: str) -> list[str]:
        """Threads of agents that runs of this one asked, and so on."""

    async def set_thread_agent(self, thread_id: str, agent: str) -> None: ...


class RunRecords(Protocol):
    """Runs."""

    async def add_run(self, run: Run, *, has_turn: bool, owner: str | None = None, lease_s: float = 0.0) -> None:
        """Store a run. One that has its thread's turn, as ``write_thread`` says, gets a lease: held, or to claim."""

    async def add_waiting_messages(self, run: Run, messages: Sequence[Message], *, is_output: bool) -> None:
        """Keep messages until they join the thread: a queued run's input, an answer whose calls have no results."""

    async def waiting_messages(self, run_id: str) -> list[Message]:
        """What waits, in its order."""

    async def commit_waiting_messages(self, run: Run, thread: Thread) -> None:
        """Put what waits after the thread's last message, as ``write_thread`` is yet to say. It must be locked."""

    async def run(self, run_id: str) -> Run | None: ...

    async def lock_run(self, run_id: str) -> Run | None: ...

    async def lock_thread_and_run(self, thread_id: str, run_id: str) -> tuple[Thread | None, Run | None]:
        """Both; a thread is always locked before its runs."""

    def expect(self, run: Run, thread: Thread | None) -> None:
        """Lock what its owner knows, together with the next statement, which raises Stale where it is otherwise."""

    async def waiting_runs(self, thread_id: str, *, besides: str) -> int: ...

    async def lock_queued(self, thread_id: str) -> list[Run]:
        """Runs of a thread that nobody has begun, in the order of their turns."""

    async def runs(
        self, thread_id: str, states: Collection[RunState], after: tuple[datetime, str] | None, limit: int
    ) -> list[Run]:
        """Newest first, beyond a time and an id; an empty filter filters nothing."""

    async def take_waiting_messages(self, run_id: str) -> list[Message]:
        """What waits, in its order; it does not any more."""

    async def messages_of(self, run_id: str) -> list[ThreadMessage]:
        """The committed messages that a run was asked and that it made, in order."""

    async def request_cancel(self, run_id: str, reason: str, state: RunState, *, rolls_back: bool) -> None: ...

    async def notify_cancel(self, run_id: str) -> None: ...

    async def end_turn(self, thread_id: str, run_id: str, following: str = "") -> None:
        """The run has ended, and with it its lease: ``following`` gets the turn, else the oldest that waits."""

    async def lineage(self, run_id: str) -> list[Ancestor]:
        """The run, the run that brought it in, and so on to one that a client started."""

    async def tell_asker(self, run_id: str) -> None:
        """The run has ended, which answers the run that asked it. Locks that one."""

    async def pass_question(self, run_id: str, child_run: str) -> None:
        """What the run was asked, another one will answer. Locks the run that asked."""

    async def orphan(self, run_id: str, *, all_of_them: bool) -> None:
        """Runs that this one does not wait for any more, or any of its, are to end.

        Whoever works on them is told, or whoever claims them; a worker cancels those that are left.
        """


class JournalRecords(Protocol):
    """What the owner of a run writes, under its epoch."""

    async def take(self, run_id: str, epoch: int, *, is_takeover: bool) -> Run | None:
        """Fence older owners; None when the run has ended or a newer owner has it.

        A take-over counts: the owner before was not heard of.
        """

    async def write_run(self, run: Run) -> None: ...

    async def put_steps(self, run_id: str, steps: Sequence[Step]) -> None: ...

    async def steps(self, run_id: str) -> list[Step]: ...

    async def drop_calls(self, run_id: str, steps: Sequence[int]) -> None:
        """The results of these tool calls are in the journal; a worker that still runs one is told to stop."""

    async def hold_calls(self, run_id: str, steps: Sequence[int]) -> None:
        """No other worker may get these calls; the one that has one may still answer."""

    async def reopen_calls(self, run_id: str, again: Sequence[tuple[int, float]]) -> None:
        """Calls (step, seconds) that a worker had and may not answer any more get their next try.

        One that was answered meanwhile keeps its answer.
        """

    async def add_events(self, run: Run, events: Sequence[Recorded]) -> None: ...

    async def events(self, run_id: str, first: int, last: int, limit: int) -> list[Recorded]: ...

    async def events_of_kind(self, run_id: str, kind: str, *, after: int = 0) -> list[Recorded]:
        """Those beyond a sequence, oldest first."""

    async def set_epoch_start(self, run_id: str, epoch: int, first_sequence: int) -> None: ...

    async def epoch_starts(self, run_id: str) -> list[tuple[int, int]]:
        """(epoch, first sequence), ascending; epoch 1 begins at 1."""

    async def epoch_starts_of(self, run_ids: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        """The same of many runs."""

    async def mark_stream_broken(self, run_id: str, epoch: int) -> bool:
        """False when a newer owner has the run."""

    async def reserve(self, run_id: str, epoch: int, sequence: int) -> bool: ...

    async def release_lease(self, run_id: str) -> None: ...

    async def add_debt(self, debt: StoreDebt, delay_s: float) -> None: ...

    async def debts(self, thread_id: str, *, as_before: bool = False) -> list[StoreDebt]:
        """What is to be paid, in order of position; without what was put aside.

        ``as_before`` may leave out what this transaction added.
        """

    async def pay_debt(self, debt: StoreDebt) -> None: ...

    async def bury_debt(self, debt: StoreDebt, reason: str) -> None:
        """Put a debt aside for good, for people to look at."""

    async def add_removal(self, removal: Removal, *, final_after_s: float) -> None:
        """Have memory forget turns: now, and once more after so long."""

    async def removal(self, removal_id: str) -> Removal | None: ...

    async def settle_removal(self, removal_id: str) -> None:
        """Memory has forgotten; the last time, unless it is too early for that."""


class PendingRecords(Protocol):
    """What runs wait for."""

    async def add_pending(self, run_id: str, pending: Sequence[Pending]) -> None: ...

    async def pending(self, run_id: str, after_step: int) -> list[Pending]:
        """All that was asked because of later steps, answered or not, in their order."""

    async def awaited(self, run_ids: Sequence[str], most_bytes: int) -> dict[str, list[Pending]]:
        """What still can be answered, by run, the newest first; up to what goes beyond so many bytes."""

    async def find_pending(self, run_id: str, kind: PendingKind, name: str) -> Pending | None:
        """By the id of the call for a TOOL, else by its own; the newest."""

    async def answer_pending(self, run_id: str, pending_id: str, verdict: Verdict, answer: bytes, by: str) -> None: ...

    async def bytes_of(self, run_id: str, turn: Sequence[str]) -> int:
        """About what the next prompt must hold: messages of the ``turn`` (its runs), and the results that have come."""

    async def expire_pending(self, run_id: str) -> None:
        """Let time decide what is due. The run must be locked."""

    async def take_pending(self, run_id: str, ids: Sequence[str]) -> None:
        """The run goes on with these verdicts."""

    async def let_go(self, run_id: str, epoch: int) -> None:
        """The owner lets the run go until something is answered or due; at once when something is."""

    async def wake(self, run_id: str) -> None:
        """Have a run that waits claimed now; the owner of one that is worked on is told."""


class RequestRecords(Protocol):
    """Idempotency of writes."""

    async def answered(self, method: str, request_id: str, body_hash: bytes, response: bytes) -> bytes | None:
        """Claim the request id in this transaction, or give the stored answer.

        Raises AlreadyExists / REQUEST_ID_REUSED for another body.
        """

    async def set_answer(self, method: str, request_id: str, response: bytes) -> None: ...


class ScheduleRecords(Protocol):
    """Schedules."""

    async def now(self) -> datetime:
        """The database's time, which all replicas share."""

    async def lock_schedule(self, name: str) -> Schedule | None:
        """The schedule; its name is locked until the transaction ends, even when there is none."""

    async def hold_schedule(self, name: str) -> Schedule | None:
        """The schedule, locked; None also when another transaction has it."""

    async def schedule(self, name: str) -> Schedule | None: ...

    async def schedules(self, after: str, limit: int) -> list[Schedule]:
        """By name, those after ``after``."""

    async def put_schedule(self, schedule: Schedule) -> None:
        """Store what its author wrote and its next time; what it last did stays."""

    async def delete_schedule(self, name: str) -> bool:
        """False when it is not there."""

    async def add_occurrence(self, name: str, due_at: datetime, run_id: str) -> bool:
        """Mark a due time as started; False when it was before."""

    async def move_schedule(self, name: str, next_run_at: datetime | None, run_id: str, error: bytes | None) -> None:
        """Set the time to decide on next, and what became of the one before."""


class WebhookRecords(Protocol):
    """Webhooks, and what they have yet to tell. ``JournalRecords.add_events`` makes the deliveries."""

    async def lock_webhooks(self) -> int:
        """Lock all names until the transaction ends; how many webhooks there are."""

    async def webhook(self, name: str) -> Webhook | None: ...

    async def webhooks(self, after: str, limit: int) -> list[Webhook]:
        """By name, those after ``after``."""

    async def put_webhook(self, webhook: Webhook) -> None:
        """Store it; a secret that is replaced stays good for a day."""

    async def delete_webhook(self, name: str) -> bool:
        """With all its deliveries. False when it is not there."""

    async def deliveries(
        self, webhook: str, dead_only: bool, after: tuple[str, str, int], limit: int
    ) -> list[WebhookDelivery]:
        """By webhook, run and sequence, those after ``after``; an empty webhook is all."""

    async def retry_deliveries(self, webhook: str, only: tuple[str, int] | None) -> int:
        """Make one (run, sequence), or all that are dead, due now and as if new."""

    async def letter(self, claim: DeliveryClaim) -> Letter | None:
        """What a claimed delivery says to whom; None when there is nobody or nothing any more."""

    async def settle_delivery(self, claim: DeliveryClaim) -> None:
        """It is over: told, or there is nobody to tell."""

    async def postpone_delivery(self, claim: DeliveryClaim, delay_s: float, hold_s: float, error: str) -> None:
        """Try again later; nothing at all is sent to its webhook for ``hold_s``."""

    async def bury_delivery(self, claim: DeliveryClaim, error: str) -> None:
        """Give it up."""


class Records(
    AgentRecords,
    ThreadRecords,
    RunRecords,
    JournalRecords,
    PendingRecords,
    RequestRecords,
    ScheduleRecords,
    WebhookRecords,
    Protocol,
):
    """Everything of one tenant, in one transaction."""


class Store(Protocol):
    """Transactions on the records. They commit when their block ends well."""

    def tenant(self, tenant: str) -> AbstractAsyncContextManager[Records]: ...


class Leases(Protocol):
    """Who works on which run, across tenants and replicas, by the database's clock."""

    async def renew(self, owner: str, run_ids: Sequence[str], lease_s: float) -> dict[str, bool]:
        """Keep these runs; those that are still ours, with whether a cancel was asked for."""

    async def claim(self, owner: str, limit: int, lease_s: float, works_on: Sequence[str] = ()) -> list[Claim]:
        """Take runs that nobody works on, or whose owner was not heard of: none that ``owner`` ``works_on`` still."""

    async def release(self, owner: str) -> None:
        """Let all go at once, for other replicas to take."""

    async def orphaned(self, limit: int) -> list[tuple[str, str]]:
        """(tenant, run) that nobody waits for any more and that are not cancelled yet."""

    def news(self) -> AsyncIterator[tuple[str, str]]:
        """("ready", "") when a run may be claimed; ("cancel", "orphan" or "answer", run id); all may be missed.

        ("", "") after a (re)connection.
        """


class Outbox(Protocol):
    """Threads that owe memory their turns, across tenants."""

    async def due(self, limit: int, lease_s: float) -> list[tuple[str, str]]:
        """(tenant, thread) to work on; others do not get them for ``lease_s``."""

    async def due_removals(self, limit: int, lease_s: float) -> list[tuple[str, str]]:
        """(tenant, removal) to work on; others do not get them for ``lease_s``."""

    async def forget_old_requests(self) -> None:
        """Throw away answers to requests that are older than 24 h."""


class Timetable(Protocol):
    """Which schedules are due, across tenants."""

    async def due(self, limit: int, lease_s: float) -> list[tuple[str, str]]:
        """(tenant, name) to look at; others do not get them for ``lease_s``."""

    async def forget_old(self) -> None:
        """Throw away marks of due times that nothing could start again."""


class DeliveryQueue(Protocol):
    """What webhooks have yet to tell, across tenants."""

    async def claim(
        self, limit: int, per_webhook: int, busy: Mapping[tuple[str, str], int], lease_s: float
    ) -> list[DeliveryClaim]:
        """Deliveries to try now; others do not get them for ``lease_s``.

        Of a webhook at most ``per_webhook``, less what is ``busy`` for its
        (tenant, name).
        """

    def news(self) -> AsyncIterator[None]:
        """Something may be due; may be missed."""

    async def forget_dead(self) -> None:
        """Throw away dead letters that are older than 30 days."""


class MessageCodec(Protocol):
    """Messages that are said more than once."""

    def fresh(self, wire: bytes, at: datetime) -> Message:
        """The message with an id of its own."""


class LetterCodec(Protocol):
    """What webhooks' receivers read."""

    def body(self, letter: Letter) -> bytes: ...


class Answer(NamedTuple):
    """What a receiver said. ``retry_after`` is in seconds, 0 for at once."""

    status: int
    retry_after: float = 0.0


class NotReached(Exception):
    """A receiver could not be asked, or did not answer; the text may be shown to its tenant."""


class Receivers(Protocol):
    """Those who are told, by HTTP."""

    def broken_rule(self, url: str) -> str:
        """The rule that a URL breaks by what it says; empty for none."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Raises NotReached."""


# -- The event stream in Redis -------------------------------------------------------


class Opened(NamedTuple):
    """A stream that this epoch may write; events go on after ``base``."""

    base: int
    intact: bool


class EventStream(Protocol):
    """Events of runs until they expire. Raises StreamAway when it cannot say."""

    async def open(self, tenant: str, run_id: str, epoch: int, *, known: int, otherwise: int) -> Opened:
        """Fence older epochs and find where to go on.

        ``known`` is the newest sequence known elsewhere. When the stream may
        have lost events, it goes on after ``otherwise``.
        """

    async def append(
        self, tenant: str, run_id: str, epoch: int, events: Sequence[Recorded], *, begins: bool = False
    ) -> None:
        """Raises Fenced when a newer epoch has written or opened the stream.

        The first owner's stream ``begins`` with its first events: there is no
        older epoch that opening it would fence.
        """

    async def page(self, tenant: str, run_id: str, after: Cursor, limit: int) -> list[Recorded]:
        """Events beyond a cursor, oldest first."""

    async def wait(self, tenant: str, run_id: str, after: Cursor, seconds: float) -> list[Recorded]:
        """Like ``page``, waiting for the first of them."""

    async def head(self, tenant: str, run_id: str) -> Cursor | None: ...

    async def drop(self, tenant: str, run_ids: Sequence[str]) -> None:
        """Forget the events of runs that are gone."""


# -- Other services ------------------------------------------------------------------


class Model(Protocol):
    """The inference service."""

    def stream(self, prompt: Prompt) -> AbstractAsyncContextManager[AsyncIterator[ModelEvent]]:
        """One model call. Leaving the block closes it upstream at once.

        Ends after exactly one FINISHED or FAILED; raises when the call was
        refused or the stream broke.
        """

    def hides(self, prompt: Prompt, kinds: Set[str]) -> bool:
        """Whether the prompt shows parts of these kinds that it could do without."""

    async def can_answer(self, name: str, timeout_s: float) -> bool:
        """Whether prompts may name this model or alias. Raises what keeps it from saying."""


class Stored(NamedTuple):
    """What memory said to a write."""

    degraded: tuple[str, ...] = ()


class Memory(Protocol):
    """The memory service."""

    async def recall(
        self, scope: MemoryScope, query: str, limit: int, timeout_s: float, *, with_tools: bool = True
    ) -> Recalled:
        """The best for a query; without what tools answered if so wished."""

    async def summary(self, scope: MemoryScope, shown: int, timeout_s: float) -> str:
        """What was said in a thread before its newest ``shown`` messages, in short; empty when there is nothing yet."""

    async def remember(self, scope: MemoryScope, memory: NewMemory, request_id: str, timeout_s: float) -> str:
        """Store a memory once; its id."""

    async def append(
        self, scope: MemoryScope, messages: Sequence[ThreadMessage], request_id: str, timeout_s: float
    ) -> Stored: ...

    async def extract(self, scope: MemoryScope, message_ids: Sequence[str], request_id: str, timeout_s: float) -> None:
        """Begin to turn turns of the scope's thread into facts, once."""

    async def forget(self, scope: MemoryScope, message_ids: Sequence[str], timeout_s: float) -> None:
        """Take turns of the scope's thread out; what is not there is gone already."""

    async def has_space(self, name: str, timeout_s: float) -> bool:
        """Whether the space is there. Raises what keeps it from saying."""


# -- Tools ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolTask:
    """A call to run, whose arguments are what the tool takes.

    ``attempt`` is the number of the try, as far as the journal knows; ``epoch``
    is the run's owner's. ``idempotency_key`` is the same for all of them.
    ``message_id`` is the answer that asked for the call.
    """

    tool: Tool
    call: ToolCall
    arguments: Mapping[str, Any]
    attempt: int
    epoch: int
    step: int
    timeout_s: float
    when_no_worker: WhenNoWorker
    message_id: str
    run_id: str
    thread: Thread
    memory: MemoryPolicy

    @property
    def idempotency_key(self) -> str:
        return f"{self.run_id}:{self.step}"


class ToolReport(Protocol):
    """What is told of a call while it runs."""

    async def started(self, worker_id: str = "", attempt: int | None = None) -> None:
        """Somebody has it: a worker, or Janus itself. ``attempt`` where the source counts the tries."""

    async def progress(self, fraction: float | None, message: str) -> None:
        """How far it is."""


class ToolSource(Protocol):
    """Where tools come from."""

    @property
    def knows_calls(self) -> bool:
        """Whether it finds a call that an earlier owner of the run has begun, and goes on with it."""

    async def find(self, tenant: str, names: Collection[str]) -> Sequence[Tool]:
        """Those of the names that it offers."""

    async def call(self, tenant: str, task: ToolTask, report: ToolReport) -> ToolOutput:
        """Run a call. Cancelled when this process does not wait for it any more.

        Takes no longer than the task's time, and raises TimeoutError then. A
        JanusError is told to the model in its own words. Raises OutcomeUnknown
        when a person has to say how to go on, Fenced when the run is another's.
        """


__all__ = [
    "AgentRecords",
    "AgentSpec",
    "EventCodec",
    "EventStream",
    "Fenced",
    "JournalRecords",
    "Leases",
    "Memory",
    "Model",
    "Opened",
    "Outbox",
    "OutcomeUnknown",
    "PendingRecords",
    "Records",
    "RequestRecords",
    "RunRecords",
    "Store",
    "Stored",
    "StreamAway",
    "ThreadRecords",
    "ToolCodec",
    "ToolReport",
    "ToolSource",
    "ToolTask",
    "Usage",
]
