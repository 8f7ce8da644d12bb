"""What happens in a run, as its watchers are told.

Durable events are in Postgres before they are sent. What a model says is in
the run's stream before it is sent; its notes (which model answers, usage, the
end of the call) join the journal with the next commit, and so does that a tool
was begun. How far a tool is stays in the stream.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from janus_orchestration.model import Cursor, Failure, Message, Pending, PendingKind, Recalled, ToolCall, Usage, Verdict


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    kind: ClassVar[str] = ""
    durable: ClassVar[bool] = True
    terminal: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class RunQueued(Event):
    """The run is durable; ``ahead`` runs of the thread are before it."""

    kind: ClassVar[str] = "run_queued"
    thread_id: str
    ahead: int


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """An owner works on it."""

    kind: ClassVar[str] = "run_started"
    thread_id: str
    agent: str
    agent_version: int


@dataclass(frozen=True, slots=True)
class MemoryRecalled(Event):
    """What memory had to say."""

    kind: ClassVar[str] = "memory_recalled"
    recalled: Recalled


@dataclass(frozen=True, slots=True)
class ModelSaid(Event):
    """An event of the inference service; ``wire`` as it came."""

    kind: ClassVar[str] = "model"
    durable: ClassVar[bool] = False
    step: int
    wire: bytes


@dataclass(frozen=True, slots=True)
class ToolCallRequested(Event):
    """The model call of ``step`` asked for a tool."""

    kind: ClassVar[str] = "tool_call_requested"
    step: int
    call: ToolCall
    client_side: bool = False


@dataclass(frozen=True, slots=True)
class ToolCallStarted(Event):
    """Somebody has begun a call: a worker, or the agent of ``child_run``; empty for Janus itself."""

    kind: ClassVar[str] = "tool_call_started"
    call_id: str
    worker_id: str
    attempt: int
    child_run: str = ""


@dataclass(frozen=True, slots=True)
class ToolCallProgress(Event):
    """How far a worker is with a call."""

    kind: ClassVar[str] = "tool_call_progress"
    durable: ClassVar[bool] = False
    call_id: str
    fraction: float | None
    message: str


@dataclass(frozen=True, slots=True)
class ToolCallCompleted(Event):
    """A call has its result, of which ``result`` is the wire form. This event is the record of it."""

    kind: ClassVar[str] = "tool_call_completed"
    result: bytes
    took: timedelta


@dataclass(frozen=True, slots=True)
class ApprovalRequested(Event):
    """A person must consent."""

    kind: ClassVar[str] = "approval_requested"
    pending: Pending


@dataclass(frozen=True, slots=True)
class ApprovalResolved(Event):
    """A person decided, or time ran out; ``decided_by`` is empty then."""

    kind: ClassVar[str] = "approval_resolved"
    approval_id: str
    verdict: Verdict
    decided_by: str
    comment: str


@dataclass(frozen=True, slots=True)
class InputRequested(Event):
    """The run asks the person."""

    kind: ClassVar[str] = "input_requested"
    pending: Pending


@dataclass(frozen=True, slots=True)
class Handoff(Event):
    """Another agent goes on, in a run of its own."""

    kind: ClassVar[str] = "handoff"
    from_agent: str
    to_agent: str
    child_run: str


@dataclass(frozen=True, slots=True)
class BudgetWarning(Event):
    """A budget is at 80 %."""

    kind: ClassVar[str] = "budget_warning"
    budget: str
    used: float
    limit: float


@dataclass(frozen=True, slots=True)
class MessageCommitted(Event):
    """A message is part of the thread for good."""

    kind: ClassVar[str] = "message_committed"
    message: Message
    position: int
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AttemptRestarted(Event):
    """The owner died in a model call, which begins again."""

    kind: ClassVar[str] = "attempt_restarted"
    discard_after: Cursor
    step: int
    attempt: int


@dataclass(frozen=True, slots=True)
class ReplayCompacted(Event):
    """Stands in a replay for the events up to ``through``, whose place it has."""

    kind: ClassVar[str] = "replay_compacted"
    through: Cursor


@dataclass(frozen=True, slots=True)
class RunCompleted(Event):
    """The run is done."""

    kind: ClassVar[str] = "run_completed"
    terminal: ClassVar[bool] = True
    usage: Usage
    finish_reason: int


@dataclass(frozen=True, slots=True)
class RunFailed(Event):
    """The run could not go on."""

    kind: ClassVar[str] = "run_failed"
    terminal: ClassVar[bool] = True
    failure: Failure
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class RunCancelled(Event):
    """The run was cancelled."""

    kind: ClassVar[str] = "run_cancelled"
    terminal: ClassVar[bool] = True
    reason: str
    usage: Usage | None
    rolled_back: bool = False


@dataclass(frozen=True, slots=True)
class RunExpired(Event):
    """The run waited too long."""

    kind: ClassVar[str] = "run_expired"
    terminal: ClassVar[bool] = True
    waited_for: PendingKind
    failure: Failure
    usage: Usage | None
