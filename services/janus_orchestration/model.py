"""The nouns of orchestration: plain data, no behaviour that touches the world.

Contents that only other services interpret (messages, recalled records, what a
model said) travel through as the bytes of their wire form in a field ``wire``,
beside the few facts that are decided on here. What a run has hundreds of is a
NamedTuple: made in half the time.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

MOST_BYTES = 3 * 1024 * 1024
"""Of one answer, of a page, of a prompt's conversation: fits gRPC's 4 MiB with what is around it."""


class RunState(StrEnum):
    """How a run is; see ``state`` for which may follow which."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING_TOOL = "waiting_tool"
    WAITING_APPROVAL = "waiting_approval"
    WAITING_INPUT = "waiting_input"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class StepKind(StrEnum):
    """Kinds of journalled steps."""

    RECALL = "recall"
    MODEL_CALL = "model_call"
    TOOL_CALL = "tool_call"
    STORE = "store"
    HANDOFF = "handoff"


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class DoubleTexting(StrEnum):
    """What a second message does while a run of the thread is going on."""

    ENQUEUE = "enqueue"
    REJECT = "reject"
    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"


class SideEffect(StrEnum):
    """What a call of a tool does to the world, and so what may be done when its outcome is unknown."""

    READ_ONLY = "read_only"
    IDEMPOTENT = "idempotent"
    AT_MOST_ONCE = "at_most_once"


class WhenNoWorker(StrEnum):
    """What happens to a call that no worker can take."""

    FAIL = "fail"
    WAIT = "wait"


class PendingKind(StrEnum):
    """What a run can wait for: a client's result, a person's consent or answer, the end of another agent's run."""

    TOOL = "tool"
    APPROVAL = "approval"
    INPUT = "input"
    AGENT = "agent"


class Verdict(StrEnum):
    """What became of something that a run waited for."""

    APPROVED = "approved"
    DECLINED = "declined"
    ANSWERED = "answered"
    EXPIRED = "expired"


class RecallScope(StrEnum):
    """Whose memories a recall looks at."""

    SUBJECT = "subject"
    THREAD = "thread"
    SPACE = "space"


class Cursor(NamedTuple):
    """A position among a run's events; the zero cursor is before the first."""

    epoch: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and cost; ``cost_micro_usd`` None means that the price is unknown."""

    input_uncached: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    cost_micro_usd: int | None = None
    price_version: str = ""
    source: int = 0


class Message(NamedTuple):
    """One message of a conversation. ``text`` is its text parts, joined."""

    id: str
    role: Role
    text: str
    wire: bytes
    name: str = ""


class ThreadMessage(NamedTuple):
    """A message that is part of a thread for good.

    ``run_id`` is the run that it came with as input, or that made it as output;
    empty when it was put without a run.
    """

    message: Message
    position: int
    run_id: str = ""
    is_output: bool = False


DEFAULT_SPACE = "default"
"""Memory makes it on first use."""


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """What an agent remembers. Tokens are estimates."""

    space: str = DEFAULT_SPACE
    recall_limit: int = 8
    recall_scope: RecallScope = RecallScope.SUBJECT
    window_tokens: int = 8_192
    recall_tokens: int = 2_048
    do_not_store: bool = False
    extract: bool = False
    summarize: bool = False


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits of one run. None or 0: the server's, or no limit where that has none."""

    max_model_steps: int = 0
    max_tool_calls: int = 0
    max_wall_time: timedelta | None = None
    max_tokens: int = 0
    max_cost_micro_usd: int = 0


@dataclass(frozen=True, slots=True)
class AgentTool:
    """A tool as an agent uses it. None or 0: the tool's own, or the server's."""

    name: str
    when_no_worker: WhenNoWorker | None = None
    timeout: timedelta | None = None
    max_concurrency: int = 0
    client_side: bool = False
    description: str = ""
    parameters_schema_json: str = ""
    needs_approval: bool = False


@dataclass(frozen=True, slots=True)
class ApprovalPolicy:
    """What needs a person's consent. None: 7 days, and declined after them."""

    tools: tuple[str, ...] = ()
    expires_after: timedelta | None = None
    on_expiry: Verdict | None = None


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent as its author wrote it.

    ``sampling`` and ``reasoning`` are the wire form of the model's options;
    empty means the model's defaults.
    """

    name: str
    model: str = ""
    instructions: str = ""
    description: str = ""
    memory: MemoryPolicy = field(default_factory=MemoryPolicy)
    # As put: an unset policy is told apart from one that repeats the defaults.
    has_memory: bool = False
    budgets: Budgets | None = None
    double_texting: DoubleTexting | None = None
    sampling: bytes = b""
    reasoning: bytes = b""
    max_output_tokens: int | None = None
    tools: tuple[AgentTool, ...] = ()
    approval: ApprovalPolicy | None = None
    handoffs: tuple[str, ...] = ()
    sub_agents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agent:
    """One version of an agent."""

    spec: AgentSpec
    version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Thread:
    """A conversation."""

    id: str
    agent: str
    subject: str
    title: str
    metadata_json: str
    created_at: datetime
    updated_at: datetime
    last_position: int = 0
    memory_position: int = 0
    active_run: str = ""
    forked_from: str = ""
    forked_at: str = ""
    parent_run: str = ""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run was asked for beside its messages."""

    model: str = ""
    budgets: Budgets | None = None
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """A journalled step; without ``ended_at`` it is, or was, under way.

    ``after`` is the event before its first one. ``error`` is the wire form of
    a status.
    """

    index: int
    kind: StepKind
    attempts: int
    after: Cursor
    started_at: datetime
    ended_at: datetime | None = None
    usage: Usage | None = None
    error: bytes = b""
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as journalled."""

    id: str
    thread_id: str
    agent: str
    agent_version: int
    state: RunState
    options: RunOptions
    subject: str
    epoch: int
    revision: int
    last_sequence: int
    reserved_sequence: int
    created_at: datetime
    stream_broken: bool = False
    cancel_on_disconnect: bool = False
    takeovers: int = 0
    parent_run: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    usage: Usage | None = None
    finish_reason: int = 0
    error: bytes = b""
    cancel_reason: str | None = None
    # Its messages go with its end.
    rolls_back: bool = False
    # How long it has waited for people, without the wait that is going on.
    waited: timedelta = timedelta()
    waiting_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A run among those above another, itself included."""

    run_id: str
    thread_id: str
    agent: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run or a step failed, as callers will read it."""

    status: bytes
    """google.rpc.Status."""
    retryable: bool
    reason: str
    """ErrorInfo reason, for logs and metrics."""


@dataclass(frozen=True, slots=True)
class RecalledHit:
    """A record that memory found, as far as a prompt shows it."""

    record_id: str
    speaker: str
    text: str
    thread_id: str
    kind: str
    occurred_at: datetime | None
    wire: bytes = b""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What memory had to say. ``degraded`` names parts that were away.

    ``summary`` is of what the conversation's window leaves out.
    """

    hits: tuple[RecalledHit, ...] = ()
    degraded: tuple[str, ...] = ()
    took: timedelta = timedelta()
    summary: str = ""


@dataclass(frozen=True, slots=True)
class NewMemory:
    """Something that a model wants remembered; ``message_id`` is the message in which it said so."""

    kind: str
    text: str
    message_id: str
    importance: float | None = None


@dataclass(frozen=True, slots=True)
class MemoryScope:
    """Where memories are put or looked for; an empty field means any."""

    space: str
    subject: str = ""
    thread: str = ""


class PromptMessage(NamedTuple):
    """A message for a model: a committed one by its bytes, or a text of ours.

    ``asked`` is what the run itself was asked, which is shown as it is or not at all.
    """

    role: Role
    text: str = ""
    wire: bytes = b""
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as whoever runs it describes it. An empty schema takes no arguments.

    ``answered_by`` is set when nobody runs it: the client of the run, the person
    or another agent answers its calls.
    """

    name: str
    description: str
    schema_json: str
    side_effect: SideEffect
    timeout: timedelta
    answered_by: PendingKind | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's request to run a tool; the arguments as the model wrote them."""

    call_id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Pending:
    """Something that a run waits for, because of the call of ``step``.

    ``text`` is the reason of an approval, or the question. ``is_retry`` asks
    for consent to another try, after one of which the outcome is not known.
    What time decides is said beforehand, in ``on_expiry``; the verdict is given
    once, by a person or by time, and ``answer`` goes with it: the wire form of
    a result, the JSON of an answer, or the words of who decided. ``is_taken``
    says that the run has gone on with it.
    """

    id: str
    step: int
    kind: PendingKind
    call: ToolCall
    arguments_sha256: bytes
    expires_at: datetime
    on_expiry: Verdict
    is_retry: bool = False
    text: str = ""
    schema_json: str = ""
    # The run whose end answers a call of another agent.
    child_run: str = ""
    verdict: Verdict | None = None
    answer: bytes = b""
    answered_by: str = ""
    # False as well when it is still awaited: see ``verdict``.
    in_time: bool = False
    is_taken: bool = False


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool answered, in words for the model.

    ``wire`` is the whole result where there is more to it than words; the other
    fields say nothing then.
    """

    text: str = ""
    is_error: bool = False
    wire: bytes = b""
    hands_to: str = ""
    """The agent that goes on when all calls of the answer have their results."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked."""

    model: str
    system: str
    messages: tuple[PromptMessage, ...]
    tools: tuple[Tool, ...] = ()
    sampling: bytes = b""
    reasoning: bytes = b""
    max_output_tokens: int | None = None
    labels: tuple[tuple[str, str], ...] = ()
    # Kinds of parts that the model does not take: beside what was asked they are named, not shown.
    hidden: frozenset[str] = frozenset()


class ModelEventKind(StrEnum):
    """What an event of a model call means for the run."""

    DELTA = "delta"
    """A piece of the answer; lives in the stream only."""
    NOTE = "note"
    """Something about the call that is journalled with the step."""
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, whole; ``message`` is None when it said nothing."""

    message: Message | None
    finish_reason: int
    usage: Usage
    unsupported: str = ""
    """What the answer asks for that this version cannot do; empty for nothing."""
    model: str = ""


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """One event of a model call; ``wire`` is the inference service's event."""

    kind: ModelEventKind
    wire: bytes
    answer: Answer | None = None
    failure: Failure | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event with its place, encoded once and for all.

    ``wire`` is what every store keeps and every watcher gets. ``kept_at`` is
    the monotonic time at which it was persisted in this process; 0 elsewhere.
    """

    cursor: Cursor
    kind: str
    wire: bytes
    durable: bool
    terminal: bool = False
    kept_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this process may work on now."""

    tenant: str
    run_id: str
    epoch: int
    is_takeover: bool
    # Nobody waits for it any more: there is nothing left to do but to end it.
    is_orphan: bool = False


@dataclass(frozen=True, slots=True)
class StoreDebt:
    """Messages of a thread that memory has yet to get, both positions included; and whether to extract facts.

    ``subject`` is the thread's.
    """

    thread_id: str
    from_position: int
    to_position: int
    run_id: str
    space: str
    extract: bool = False
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Removal:
    """Turns of a thread that memory is to forget."""

    id: str
    thread_id: str
    space: str
    message_ids: tuple[str, ...]
    attempts: int = 0
