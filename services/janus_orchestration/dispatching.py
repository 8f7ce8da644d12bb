"""The nouns of calls that workers run: what is stored of them, and what is said of them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Self

from janus_orchestration.model import Tool


class CallKey(NamedTuple):
    """A call, whatever the try: the step of a run. As text it is the call's idempotency key."""

    run_id: str
    step: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None for what no call ever was called."""
        run_id, _, step = text.rpartition(":")
        return cls(run_id, int(step)) if run_id and _is_number(step) else None

    def __str__(self) -> str:
        return f"{self.run_id}:{self.step}"


class CallId(NamedTuple):
    """One try at a call. As text it is the id by which a worker knows it."""

    key: CallKey
    attempt: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None for what no call ever was called."""
        front, _, attempt = text.rpartition(":")
        key = CallKey.parse(front)
        return cls(key, int(attempt)) if key is not None and _is_number(attempt) else None

    def __str__(self) -> str:
        return f"{self.key}:{self.attempt}"


def _is_number(text: str) -> bool:
    """A number as we write them, that a column can hold."""
    return text.isascii() and text.isdecimal() and len(text) < 10


class DispatchState(StrEnum):
    """How far a call is."""

    OPEN = "open"
    CLAIMED = "claimed"
    ANSWERED = "answered"
    WITHDRAWN = "withdrawn"
    """Nobody claimed it, and nobody may any more."""


class Standing(StrEnum):
    """Whether the worker that has a call can still be expected to answer."""

    CONNECTED = "connected"
    GONE = "gone"
    """Its stream has ended; it may come back for its calls."""
    LOST = "lost"
    """It was not heard of for longer than its lease."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a worker reported; ``number`` counts the reports of a call."""

    number: int
    fraction: float | None
    message: str


@dataclass(frozen=True, slots=True)
class NewDispatch:
    """A call for workers. ``epoch`` is the owner's; ``timeout_s`` counts from the first dispatch."""

    key: CallKey
    epoch: int
    tool: str
    arguments_json: str
    thread_id: str
    subject: str
    traceparent: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A call as its run's owner sees it; times by the database's clock."""

    state: DispatchState
    attempt: int
    left_s: float
    """Until its deadline; not positive once it has passed."""
    has_takers: bool
    """A worker of the tool is connected and takes calls, at once or when it has room."""
    worker: str = ""
    worker_id: str = ""
    standing: Standing = Standing.LOST
    progress: Progress | None = None
    result: bytes = b""


@dataclass(frozen=True, slots=True)
class Registration:
    """What a worker says of itself."""

    worker_id: str
    tools: tuple[Tool, ...]
    credits: int


class OpenCall(NamedTuple):
    """A call that may be claimed."""

    key: CallKey
    tool: str


@dataclass(frozen=True, slots=True)
class ClaimedCall:
    """A call that a worker connected to this process has now."""

    call_id: CallId
    worker: str
    tool: str
    arguments_json: str
    thread_id: str
    subject: str
    traceparent: str
    deadline: datetime
    left_s: float
    waited_s: float


class Report(NamedTuple):
    """Progress of a try, on its way to the records."""

    call_id: CallId
    fraction: float | None
    message: str


class Answer(NamedTuple):
    """A worker's answer to a try: the wire form of a result without its call's id."""

    call_id: CallId
    result: bytes


class NewsKind(StrEnum):
    """What processes tell each other of calls."""

    OPEN = "open"
    """A tenant has a call to claim."""
    MOVED = "moved"
    """Something happened to a call."""
    DROPPED = "dropped"
    """Nobody waits for a try any more."""
    MISSED = "missed"
    """There may have been news that did not come through."""


class News(NamedTuple):
    """``about`` is a tenant, a call's key or its id as text; empty for MISSED."""

    kind: NewsKind
    about: str
