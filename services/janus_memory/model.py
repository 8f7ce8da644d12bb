"""What memory talks about: frozen values, free of any driver or wire format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from math import hypot
from typing import Any, NamedTuple

from janus_memory.filters import Filter

DEFAULT_SPACE = "default"
LEXICAL_MODEL = "janus/lexical-v1"
ONNX_PREFIX = "onnx/"
"""Of models in a local folder."""
FIRST_TIME, LAST_TIME = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
"""What every store and client agrees on, with a day's margin for time zones."""
LEAST_NORM, MOST_NORM = 1e-9, 1e9
"""Norms of vectors that are compared: indexes reckon with squares, and products of two, in 32 bits."""


class Kind(IntEnum):
    """Kinds of records; the numbers are stored and equal RecordKind of the contract."""

    TURN = 1
    FACT = 2
    PREFERENCE = 3
    EVENT = 4
    SUMMARY = 5
    DOCUMENT_CHUNK = 6


class Role(IntEnum):
    """Who speaks; the numbers are stored and equal Role of the contract."""

    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4


class Backend(IntEnum):
    """Where a space's vectors live; the numbers equal VectorBackend of the contract."""

    PGVECTOR = 1
    CHROMA = 2


class Change(IntEnum):
    """What was done to a memory; the numbers are stored and equal Change of the contract."""

    CREATED = 1
    UPDATED = 2
    SUPERSEDED = 3
    INVALIDATED = 4
    FORGOTTEN = 5
    IMPORTED = 6


class View(IntEnum):
    """The two texts of a record that are embedded."""

    ALONE = 1
    """Session date, speaker and text."""
    BEFORE = 2
    """The same after the two turns before it in its session."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a record is, below the tenant. Empty: nowhere in particular (any, in a read)."""

    space: str = DEFAULT_SPACE
    subject: str = ""
    agent: str = ""
    thread: str = ""


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn as a caller hands it in, decoded and validated.

    ``content`` is the message in the wire's own bytes, kept as it came;
    ``text`` is what of it is searched; ``tokens`` is estimated. ``calls`` and
    ``results`` are ids of tool calls made and answered by it. ``digest``
    identifies everything the caller said about it.
    """

    id: str
    scope: Scope
    role: Role
    speaker: str
    content: bytes
    text: str
    tokens: int
    calls: tuple[str, ...]
    results: tuple[str, ...]
    occurred_at: datetime | None
    metadata_json: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn on record. ``position`` counts from 1 in its thread, without gaps."""

    id: str
    scope: Scope
    speaker: str
    text: str
    content: bytes
    tokens: int
    calls: tuple[str, ...]
    results: tuple[str, ...]
    position: int
    session: int
    occurred_at: datetime
    recorded_at: datetime
    metadata_json: str


@dataclass(frozen=True, slots=True)
class Said:
    """A turn as a summary reads it; a long text is cut."""

    position: int
    role: Role
    speaker: str
    text: str
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class Summary:
    """A thread's turns from the first to the one at position ``upto``, in short."""

    text: str
    upto: int


@dataclass(frozen=True, slots=True)
class SummaryTask:
    """A thread's summary, leased. ``attempts`` counts failures of the model since its last success."""

    lease: str
    last_position: int
    summary: Summary
    attempts: int


@dataclass(frozen=True, slots=True)
class ThreadHead:
    """Where a thread ends. ``incarnation`` tells it from an erased one of the same name.

    ``read_at`` is the database's time when the head was locked: what is written
    under the lock is recorded at that time, so times follow positions. ``removed``
    counts turns that are gone; positions are never given again.
    """

    incarnation: str
    last_position: int
    session: int
    last_occurred_at: datetime | None
    read_at: datetime
    removed: int = 0

    @property
    def turns(self) -> int:
        """Turns on record."""
        return self.last_position - self.removed


@dataclass(frozen=True, slots=True)
class NewMemory:
    """A memory as a caller hands it in. ``provenance_json`` is a JSON list."""

    id: str
    kind: Kind
    text: str
    scope: Scope
    predicate: str
    provenance_json: str
    valid_from: datetime | None
    valid_to: datetime | None
    expires_at: datetime | None
    importance: float
    metadata_json: str
    embedding: tuple[float, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Memory:
    """One version of a memory on record."""

    id: str
    version: int
    kind: Kind
    text: str
    scope: Scope
    predicate: str
    provenance_json: str
    valid_from: datetime | None
    valid_to: datetime | None
    expires_at: datetime | None
    importance: float
    metadata_json: str
    recorded_at: datetime
    superseded_at: datetime | None


@dataclass(frozen=True, slots=True)
class Cause:
    """Who changes a memory, because of which message (empty: none), and why (empty: not said)."""

    changed_by: str
    message_id: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MemoryVersion:
    """A version in a memory's history. Of a purged one only id, version and times of the memory are left.

    ``embedding`` is a vector that came with it, and ``digest`` what makes it
    the same as another; both only where it is moved.
    """

    memory: Memory
    change: Change
    cause: Cause
    purged: bool = False
    embedding: tuple[float, ...] = ()
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of core memory. As asked for, it has no version and no time yet; as imported, those that it had."""

    scope: Scope
    name: str
    text: str
    size_limit: int
    description: str
    version: int = 0
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of the fusion; None: the default of the recipe (see fusion.py)."""

    lexical_turn: float | None = None
    lexical_before: float | None = None
    lexical_around: float | None = None
    lexical_wide: float | None = None
    dense_turn: float | None = None
    dense_before: float | None = None
    speaker: float | None = None
    session: float | None = None
    recency: float | None = None
    importance: float | None = None


@dataclass(frozen=True, slots=True)
class Space:
    """A space on record. ``number`` and ``incarnation`` name it in derived stores.

    ``generation`` counts its rebuilds: vectors are kept by it, and backend,
    model and dimensions are those of this one. ``retention``: how long records are
    kept; None: for ever.
    """

    name: str
    number: int
    incarnation: str
    backend: Backend
    model: str
    dimensions: int
    weights: Weights
    description: str
    version: int
    created_at: datetime
    generation: int = 1
    backlog: int = 0
    retention: timedelta | None = None


@dataclass(frozen=True, slots=True)
class SpaceDraft:
    """What PutSpace asks for. Empty backend, model or dimensions: the default or what is."""

    name: str
    backend: Backend | None
    model: str
    dimensions: int
    weights: Weights
    description: str
    retention: timedelta | None = None


@dataclass(frozen=True, slots=True)
class HardFilter:
    """What a record must satisfy to be a candidate.

    ``valid_at``: valid in the world then. ``recorded_at``: on record then; None
    for what is current. ``now``: not expired then. No kinds: every kind.
    ``filter``: what else must be true of it.

    The last two are for lists, which no vector index answers. ``whenever``:
    whenever it is valid. ``inactive``: superseded and expired ones too.
    """

    scope: Scope
    kinds: tuple[Kind, ...]
    valid_at: datetime
    recorded_at: datetime | None
    now: datetime
    filter: Filter | None = None
    whenever: bool = False
    inactive: bool = False


@dataclass(frozen=True, slots=True)
class Indexed:
    """Attributes of a unit that a vector backend filters by."""

    unit: int
    kind: Kind
    subject: str
    agent: str
    thread: str
    recorded_at: datetime
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    expires_at: datetime | None = None
    superseded_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class VectorRow:
    """A vector to put into an index. A row of a lower version never replaces a higher one."""

    about: Indexed
    view: View
    version: int
    vector: Sequence[float]


class Neighbour(NamedTuple):
    """A vector found: its unit and cosine similarity, -1 to 1."""

    unit: int
    similarity: float


@dataclass(frozen=True, slots=True)
class Document:
    """What a record contributes to search: ``lexemes`` for the index, ``bag`` for scoring."""

    kind: Kind
    record_id: str
    version: int
    scope: Scope
    position: int
    session: int
    speaker: str
    occurred_at: datetime
    lexemes: tuple[str, ...]
    bag: bytes
    importance: float = 0.5
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    expires_at: datetime | None = None
    metadata_json: str = ""
    recorded_at: datetime | None = None
    """None: now."""
    superseded_at: datetime | None = None
    role: Role | None = None
    predicate: str = ""


@dataclass(frozen=True, slots=True)
class Lexicon:
    """A space's statistics: units, their tokens in all, and units that hold each term."""

    units: int
    tokens: int
    frequencies: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class IndexTask:
    """One outbox row, claimed.

    ``attempts`` counts failures that were the row's own fault; ``counted``: its
    terms are in the space's statistics.
    """

    id: int
    unit: int
    attempts: int
    counted: bool


@dataclass(frozen=True, slots=True)
class IndexBatch:
    """Claimed rows of one space; nobody else works on that space while the lease lasts."""

    tenant: str
    space_no: int
    lease: str
    tasks: tuple[IndexTask, ...]


def has_direction(vector: Sequence[float]) -> bool:
    """Whether every index can compare the vector: finite numbers, and neither zero nor as good as infinite."""
    return LEAST_NORM <= hypot(*vector) <= MOST_NORM


@dataclass(frozen=True, slots=True)
class Embeddable:
    """A unit to be embedded: its texts by view, or the caller's own vector."""

    about: Indexed
    version: int
    texts: Mapping[View, str]
    embedding: tuple[float, ...] = ()

    def own(self, dimensions: int) -> tuple[float, ...]:
        """The caller's own vector, unless it is of another length, or none to compare: then the text is embedded."""
        return self.embedding if len(self.embedding) == dimensions and has_direction(self.embedding) else ()


@dataclass(frozen=True, slots=True)
class Detail:
    """One term of a score."""

    leg: str
    raw: float
    standardised: float
    weight: float
    contribution: float
    rank: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A record that was found, with its score and how it came about."""

    record: Turn | Memory
    score: float
    details: tuple[Detail, ...] = ()


@dataclass(frozen=True, slots=True)
class ContextTurn:
    """A turn that may be shown beside what was found, as packing reads it."""

    id: str
    thread: str
    position: int
    session: int
    speaker: str
    text: str
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class Span:
    """Records that are read together, as one text. ``context_ids``: those of them that were not found themselves."""

    text: str
    record_ids: tuple[str, ...]
    context_ids: tuple[str, ...]
    occurred_at: datetime
    score: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """How far the indexer is behind: rows waiting, age of the oldest in seconds, dead rows.

    ``unusable``: answers that extractions gave up on.
    """

    waiting: int
    oldest_s: float
    dead: int
    unusable: int = 0


@dataclass(frozen=True, slots=True)
class RecallQuery:
    """What Recall was asked."""

    query: str
    limit: int
    filter: HardFilter
    weights: Weights
    embedding: tuple[float, ...] = ()
    pack_tokens: int = 0
    pack_neighbours: int = 0
    explain: bool = False
    token: str = ""
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Recalled:
    """What Recall found."""

    hits: tuple[Hit, ...]
    degraded: tuple[str, ...]
    model: str
    spans: tuple[Span, ...] = field(default=())


class OperationState(IntEnum):
    """How an operation is; the numbers are stored and equal OperationState of the contract."""

    PENDING = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5


@dataclass(frozen=True, slots=True)
class Operation:
    """Work that outlives the call that started it.

    ``arguments`` say what to do, ``cursor`` where to go on; both are JSON.
    ``done`` and ``total`` count units of work, a total of 0 is not known yet.
    ``error`` is a google.rpc.Status in the wire's own bytes. ``change`` grows
    with everything that a watcher can see. ``waits`` and ``failures`` count the
    times that it did not get on, by others' fault and by its own.
    """

    id: str
    kind: str
    state: OperationState
    arguments: Mapping[str, Any]
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None = None
    cursor: Mapping[str, Any] = field(default_factory=dict)
    done: int = 0
    total: int = 0
    phase: str = ""
    error: bytes = b""
    result_json: str = ""
    requested_by: str = ""
    cancel_requested: bool = False
    change: int = 1
    waits: int = 0
    failures: int = 0


class Claim(NamedTuple):
    """An operation that this process owns for a while; a later owner has a higher ``epoch``."""

    tenant: str
    id: str
    epoch: int
