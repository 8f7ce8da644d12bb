"""What an extraction talks about, and what it needs of a transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, Self

from janus_memory.model import Kind, Memory, Role, Scope

KIND = "extract"
LISTED = 1_000
"""Entries of a report."""


class Action(IntEnum):
    """What is done about a proposal; the numbers equal ExtractAction of the contract."""

    ADD = 1
    UPDATE = 2
    INVALIDATE = 3
    NOTHING = 4


class Origin(IntEnum):
    """Who said it; the numbers are stored and equal Origin of the contract."""

    UNKNOWN = 0
    USER = 1
    MODEL = 2
    TOOL = 3


class Source(NamedTuple):
    """A turn as an extraction reads it; a long text is cut. ``answers``: it holds results of tools."""

    position: int
    id: str
    role: Role
    speaker: str
    subject: str
    text: str
    answers: bool
    occurred_at: datetime
    recorded_at: datetime

    @property
    def origin(self) -> Origin:
        """Whose words they are. What a tool answered is not the user's, whoever handed it on."""
        if self.answers or self.role is Role.TOOL:
            return Origin.TOOL
        return {Role.USER: Origin.USER, Role.ASSISTANT: Origin.MODEL}.get(self.role, Origin.UNKNOWN)


def home(asked: Scope, subject: str) -> Scope:
    """Where a memory goes that rests on a turn: to the turn's person in every conversation; without one it stays."""
    return Scope(asked.space, subject, asked.agent, "" if subject else asked.thread)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a model is shown; ``turns`` and ``known`` by numbers from 1. ``before`` is for understanding only."""

    turns: Sequence[Source]
    before: Sequence[Source] = ()
    known: Sequence[Memory] = ()


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a model proposes: well-formed, and not believed yet. ``known`` 0: nothing that is known."""

    action: Action
    known: int
    turn: int
    quote: str
    kind: Kind
    text: str
    predicate: str
    since: datetime | None
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done about a proposal: with what is known, or else beside it. ``note`` says why it is less."""

    action: Action
    proposal: Proposal
    source: Source
    known: Memory | None = None
    note: str = ""


class Usage(NamedTuple):
    """What model calls cost, as Usage of the contract. ``cost`` None: the price of one is unknown."""

    input_uncached_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_micro_usd: int | None = 0
    price_version: str = ""
    source: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """Both together; estimated when one is."""
        known = self.cost_micro_usd is not None and other.cost_micro_usd is not None
        return Usage(
            self.input_uncached_tokens + other.input_uncached_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            (self.cost_micro_usd or 0) + (other.cost_micro_usd or 0) if known else None,
            other.price_version or self.price_version,
            max(self.source, other.source),
        )


class Entry(NamedTuple):
    """What was done about a proposal. It holds no text, so that none is left here when a memory is purged."""

    action: int
    memory_id: str
    kind: int
    message_id: str
    note: str


@dataclass
class Report:
    """What came of an extraction so far. ``turns``: read; ``unusable``: of those, whose answers were."""

    entries: list[Entry] = field(default_factory=list)
    omitted: int = 0
    rejected: int = 0
    turns: int = 0
    unusable: int = 0
    usage: Usage = field(default_factory=Usage)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Self:
        """From what ``saved`` gave."""
        entries = [Entry(*entry) for entry in saved.get("entries", ())]
        return cls(**{**saved, "entries": entries, "usage": Usage(*saved.get("usage", ()))})

    def saved(self) -> Mapping[str, Any]:
        """As JSON."""
        return {**asdict(self), "entries": [list(entry) for entry in self.entries], "usage": list(self.usage)}

    def add(self, entries: Sequence[Entry]) -> None:
        """Note what was done; what is beyond the list is counted."""
        room = LISTED - len(self.entries)
        self.entries += entries[:room]
        self.omitted += len(entries[room:])


class Answered(NamedTuple):
    """What a model said. ``end`` is `whole`, `cut` for one that was stopped by its length, or `declined`."""

    text: str
    end: str
    usage: Usage


class ExtractionModel(Protocol):
    """A language model that answers in JSON."""

    async def answer(self, model: str, instructions: str, material: str, schema: Mapping[str, Any] | None) -> Answered:
        """What it says, unchecked; held to a schema where there is one.

        Raises Unavailable and other errors of janus_kit.
        """
        ...


class Extent(NamedTuple):
    """Turns that are to be read: how many, whose, and the last one's position."""

    turns: int
    subjects: Sequence[str]
    upto: int


@dataclass(frozen=True, slots=True)
class DeadAnswer:
    """An answer that could not be used, and the operation that asks again."""

    subjects: Sequence[str]
    arguments: Mapping[str, Any]
    requested_by: str
    reason: str = ""
    answer: str = ""
    recorded_at: datetime | None = None


class Extracting(Protocol):
    """Statements of extractions, of one tenant's transaction. ``asked``: fields that are set are hard filters."""

    async def positions_of(self, space_no: int, asked: Scope, ids: Sequence[str]) -> Mapping[str, int]:
        """Positions of those of the turns that are there."""
        ...

    async def extent_of(self, space_no: int, asked: Scope, after: int, only: Sequence[int] | None) -> Extent:
        """Turns after a position, of these positions if they are given."""
        ...

    async def sources(
        self, space_no: int, asked: Scope, after: int, upto: int, only: Sequence[int] | None, limit: int, max_chars: int
    ) -> list[Source]:
        """The first of those turns, oldest first; texts cut to so many characters."""
        ...

    async def sources_before(self, space_no: int, asked: Scope, below: int, limit: int, max_chars: int) -> list[Source]:
        """The last turns below a position, oldest first."""
        ...

    async def extracted_upto(self, space_no: int, asked: Scope) -> int:
        """Up to where the thread was read before; 0: not at all."""
        ...

    async def move_extracted(self, space_no: int, asked: Scope, was: int, upto: int) -> bool:
        """It is read up to there; False, and nothing changes, when it is not where it ``was``."""
        ...

    async def add_dead_letter(self, space_no: int, letter: DeadAnswer) -> None: ...

    async def take_dead_answers(self, space_no: int) -> list[DeadAnswer]:
        """Remove the answers that could not be used; of one space, or (0) of all."""
        ...
