"""What memory needs from the outside, as small protocols.

Everything that reads or writes records goes through ``Records``: a transaction
of one tenant. Failures are janus_kit errors; a part that is away is
``Unavailable`` naming it (`postgres`, `redis`, `chroma`, `embedder`, …).
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple, Protocol

from janus_kit.errors import JanusError, Unavailable
from janus_memory.columns import Columns
from janus_memory.erasure import Erasing, Signer
from janus_memory.extraction import Extracting
from janus_memory.generation import Rebuilding
from janus_memory.model import (
    Backlog,
    Block,
    Cause,
    Claim,
    ContextTurn,
    Document,
    Embeddable,
    HardFilter,
    IndexBatch,
    IndexTask,
    Lexicon,
    Memory,
    MemoryVersion,
    Neighbour,
    NewMemory,
    NewTurn,
    Operation,
    OperationState,
    Said,
    Scope,
    Space,
    SpaceDraft,
    Summary,
    SummaryTask,
    ThreadHead,
    Turn,
    VectorRow,
    View,
)
from janus_memory.reconciliation import Entry, Reconciling


class Purpose(Enum):
    """What a vector is for; some models embed questions and documents differently."""

    DOCUMENT = "document"
    QUERY = "query"


class UnusableEmbedding(Unavailable):
    """A model answered these texts with what is no vector. It is not away: others it may answer well."""

    def __init__(self, message: str) -> None:
        super().__init__("embedder", message)


class Embedder(Protocol):
    """Text to vectors."""

    async def embed(self, texts: Sequence[str], dimensions: int, purpose: Purpose) -> list[list[float]]:
        """A vector a text, in order, each of ``dimensions`` numbers.

        ``dimensions`` 0: the model's own. Raises Unavailable("embedder") when
        it cannot answer now, InvalidArgument when it never will.
        """
        ...


class Embedders(Protocol):
    """Embedders by model name."""

    def named(self, model: str) -> Embedder:
        """Raises InvalidArgument / MODEL_NOT_FOUND for a name that nobody serves."""
        ...


class VectorIndex(Protocol):
    """Vectors of one backend. Derived data: it can be rebuilt from the records."""

    async def upsert(self, tenant: str, space: Space, rows: Sequence[VectorRow]) -> None:
        """Put rows in, in place of lower or equal versions. Idempotent."""
        ...

    async def delete(self, tenant: str, space: Space, units: Sequence[int]) -> None:
        """Take units out, in every view. Idempotent."""
        ...

    async def search(
        self,
        tenant: str,
        space: Space,
        views: Sequence[View],
        vector: Sequence[float],
        where: HardFilter,
        limit: int,
        exact: bool,
    ) -> dict[View, list[Neighbour]]:
        """In each view the nearest allowed units, best first; ties by lower unit first."""
        ...

    async def entries(self, tenant: str, space: Space, view: View, units: Sequence[int]) -> list[Entry]:
        """What the view holds of the units, in any order."""
        ...

    def pages(self, tenant: str, space: Space, view: View) -> AsyncIterator[list[int]]:
        """All units that the view holds, some at a time; those that come or go meanwhile may be missed."""
        ...

    async def vectors(self, tenant: str, space: Space, units: Sequence[int]) -> dict[int, list[float]]:
        """What View.ALONE has of the units; those that are not there are left out."""
        ...

    async def drop(self, tenant: str, space: Space) -> None:
        """Remove everything of the space's generation; may take long. Idempotent."""
        ...

    async def ping(self) -> None:
        """Raise Unavailable when the backend does not answer."""
        ...


class Graphs(Protocol):
    """Graphs of vectors, for spaces that are too large to be scanned."""

    async def outgrown(self) -> list[tuple[str, int]]:
        """(tenant, space number) of spaces of so many records that a graph may be worth it."""
        ...

    async def admit(self, tenant: str, space_no: int) -> int:
        """Put some of a space's vectors into the graph; how many.

        0 when all are there, when the space is none for a graph, or when
        somebody else is at work.
        """
        ...


class Windows(Protocol):
    """Working memory: the newest turns of threads. May lose everything at any time."""

    async def put(self, tenant: str, incarnation: str, turns: Sequence[Turn]) -> None:
        """Remember turns by their positions, unless the window was erased. Raises Unavailable("redis")."""
        ...

    async def erase(self, tenant: str, incarnations: Sequence[str]) -> int:
        """Remove windows for good: what is put later is not kept. How many there were."""
        ...

    async def kept(self, tenant: str, incarnations: Sequence[str]) -> int:
        """How many of the windows there are."""
        ...

    async def held(self, tenant: str, incarnation: str) -> list[Turn] | None:
        """Everything that a window holds, by position; None when some of it cannot be read."""
        ...

    async def newest(self, tenant: str, incarnation: str, last: int, limit: int) -> list[Turn]:
        """The turns that end at position ``last``, oldest first, without gaps.

        Shorter than asked, down to empty, when they are not known; never others.
        """
        ...

    async def drop(self, tenant: str, incarnations: Sequence[str]) -> None:
        """Forget whole windows. Raises Unavailable("redis")."""
        ...

    async def ping(self) -> None:
        """Raise Unavailable("redis") when it does not answer."""
        ...


class SummaryModel(Protocol):
    """A language model that writes summaries."""

    async def write(self, instructions: str, material: str) -> str:
        """What it answers to instructions and material, unchecked. Raises Unavailable and other janus_kit errors."""
        ...


class StoredAnswer(NamedTuple):
    """What a request id got before: digest of the body, and the answer."""

    body: bytes
    answer: Mapping[str, Any]


class KnownTurn(NamedTuple):
    """A turn on record, as re-appending needs it."""

    position: int
    digest: bytes


class KnownMemory(NamedTuple):
    """The last version of a memory, as remembering it again needs it.

    ``current``: no other version, and no other memory, has taken its place and
    it was not forgotten. ``here``: it is in the space that was asked about.
    """

    id: str
    version: int
    digest: bytes
    expires_at: datetime | None
    recorded_at: datetime
    current: bool = True
    here: bool = True


class AllowedUnits(NamedTuple):
    """Units in no order, those whose validity, life or time on record has a bound apart."""

    unbounded: list[int]
    bounded: list[int]


class Receipts(Protocol):
    """Keys that receipts are signed with."""

    async def signer(self, tx: "Transaction") -> Signer:
        """The key of the transaction's tenant."""
        ...


class DeadLetters(NamedTuple):
    """What one space gave up on for one reason. An empty tenant: the transaction's."""

    tenant: str
    space: str
    reason: str
    rows: int
    oldest: datetime


class KnownVersion(NamedTuple):
    """A version of a memory on record, and whether it is in the space that was asked for."""

    version: MemoryVersion
    here: bool


class Transaction(Erasing, Reconciling, Rebuilding, Extracting, Protocol):
    """One transaction of one tenant. Leaving it without an error commits all of it."""

    async def claim_request(
        self, method: str, request_id: str, body: bytes, subjects: Sequence[str] = ()
    ) -> StoredAnswer | None:
        """Take a request id, or get what it was taken for in the last 24 h; waits for a racing twin.

        ``subjects``: whose records the request is about.
        """
        ...

    async def answered_request(self, method: str, request_id: str) -> StoredAnswer | None:
        """What a request id was answered in the last 24 h; waits for nobody."""
        ...

    async def answer_request(self, method: str, request_id: str, answer: Mapping[str, Any]) -> None:
        """Keep the answer of a claimed request id."""
        ...

    async def space(self, name: str) -> Space | None: ...

    async def space_numbered(self, number: int) -> Space | None: ...

    async def lock_space(self, name: str) -> Space | None:
        """The space, held against other changes of it until the transaction ends."""
        ...

    async def add_space(self, draft: SpaceDraft) -> Space:
        """The space as it is now; another writer's when that was first."""
        ...

    async def change_space(self, draft: SpaceDraft) -> Space: ...

    async def spaces(self, after: str, limit: int) -> list[Space]:
        """Spaces by name, beginning after one."""
        ...

    async def backlog(self, space_no: int) -> int: ...

    async def lock_thread(self, space_no: int, thread: str, subject: str = "") -> ThreadHead:
        """The end of the thread, made if absent; appends of others wait from here.

        So does an erasure of ``subject``, whose turns are to be added.
        """
        ...

    async def thread_head(self, space_no: int, thread: str) -> ThreadHead | None: ...

    async def known_turns(self, space_no: int, thread: str, ids: Sequence[str]) -> dict[str, KnownTurn]: ...

    async def add_turns(
        self, space: Space, head: ThreadHead, turns: Sequence[NewTurn], placed: Sequence[Document]
    ) -> list[Turn]:
        """Store turns with what is searched of them, and move the thread's end."""
        ...

    async def turns(self, space: Space, scope: Scope, below: int, limit: int) -> list[Turn]:
        """The newest turns of a thread below a position, oldest first."""
        ...

    async def count_turns(self, space: Space, scope: Scope) -> int: ...

    async def answered(self, space_no: int, thread: str, calls: Sequence[str]) -> set[str]:
        """Those of the calls that some turn of the thread holds the result of."""
        ...

    async def summary(self, space_no: int, thread: str, incarnation: str) -> Summary | None:
        """The summary of a thread's older turns; None when there is none yet."""
        ...

    async def claim_summary(self, space_no: int, thread: str, lease: str, lease_s: float) -> SummaryTask | None:
        """Lease a thread's summary, made if absent; None when another has it, or the thread is gone."""
        ...

    async def said(self, space_no: int, thread: str, after: int, upto: int, limit: int, max_chars: int) -> list[Said]:
        """The first turns after a position, up to another, oldest first; texts cut to so many characters."""
        ...

    async def put_summary(self, space_no: int, thread: str, lease: str, summary: Summary, attempts: int) -> bool:
        """Keep a summary and end the lease; False, and nothing is kept, when it is not held any more."""
        ...

    async def postpone_summary(self, space_no: int, thread: str, lease: str, delay_s: float) -> None:
        """Count a failure and end the lease; nobody tries again before so many seconds."""
        ...

    async def known_memories(self, space_no: int, ids: Sequence[str], digests: Sequence[bytes]) -> list[KnownMemory]:
        """Last versions of the ids (in any space), and current memories that have one of the digests (in this one)."""
        ...

    async def hold_subjects(self, subjects: Collection[str]) -> None:
        """Write about them before or after their erasure and not during it, until the transaction ends."""
        ...

    async def lock_remembering(self, space_no: int, subjects: Collection[str] = ()) -> datetime:
        """Only one writer of memories in a space at a time, until the transaction ends.

        ``subjects`` are held before, as by ``hold_subjects``.
        Gives the database's time with the lock in hand: what is written under
        it is recorded at that time, or later.
        """
        ...

    async def add_memories(
        self,
        space_no: int,
        memories: Sequence[tuple[NewMemory, int]],
        documents: Sequence[Document],
        cause: Cause,
        at: datetime,
    ) -> None:
        """Store versions, recorded at a time, superseding the current one of the same id."""
        ...

    async def latest_version(self, memory_id: str) -> MemoryVersion | None:
        """The last version of a memory, whatever it is."""
        ...

    async def version(self, memory_id: str, number: int) -> MemoryVersion | None: ...

    async def versions(self, memory_id: str, after: int, limit: int) -> tuple[list[MemoryVersion], bool]:
        """Versions after a number, oldest first, as many as an answer holds; and whether there are more."""
        ...

    async def add_version(
        self, space_no: int, version: MemoryVersion, digest: bytes, document: Document | None, *, same_text: bool
    ) -> None:
        """Store the version after the last, superseding the current one; ``same_text``: with its vector too."""
        ...

    async def remove_from_search(self, space_no: int, memory_id: str) -> None:
        """Take every version of a memory out of every search, of any time."""
        ...

    async def purge_versions(self, memory_id: str) -> None:
        """Remove what all versions of a memory say, and all but the last's reason."""
        ...

    async def remembered_at(self, space_no: int) -> datetime:
        """A time up to which no memory of the space will be recorded any more."""
        ...

    async def listed(
        self, space: Space, where: HardFilter, after: tuple[datetime, str] | None, limit: int
    ) -> tuple[Sequence[Memory], bool]:
        """Allowed versions of memories, newest first, after a time on record and id, as many as an
        answer holds; and whether there are more."""
        ...

    async def block(self, space: Space, scope: Scope, name: str) -> Block | None:
        """The block of exactly that scope."""
        ...

    async def put_block(self, space: Space, block: Block, expected_version: int) -> Block | None:
        """Make (0) or change a block; None when its version is another. One that is made may bring its time."""
        ...

    async def blocks(
        self, space: Space, scope: Scope, after: tuple[str, str, str], limit: int
    ) -> tuple[list[Block], bool]:
        """Blocks by name, subject and agent, as many as an answer holds; and whether there are more."""
        ...

    async def lock_sweeping(self, space_no: int) -> bool:
        """Whether nobody else sweeps the space, until the transaction ends."""
        ...

    async def retire_expired(self, space_no: int, limit: int) -> int:
        """Take units that expired out of the statistics; how many."""
        ...

    async def remove_old_memories(self, space_no: int, limit: int) -> int:
        """Remove versions of memories that are older than the space's retention; how many."""
        ...

    async def remove_old_turns(self, space_no: int, limit: int) -> tuple[int, Sequence[str]]:
        """Remove turns that are older than the space's retention; how many, and whose windows had them."""
        ...

    async def remove_turns(self, space_no: int, thread: str, ids: Sequence[str]) -> tuple[int, Sequence[str]]:
        """Remove these turns of a thread; how many there were, and whose windows had them."""
        ...

    async def put_turns(
        self, space_no: int, stored: Sequence[Turn], turns: Sequence[NewTurn], placed: Sequence[Document]
    ) -> None:
        """Store turns of one locked thread as they were recorded elsewhere, and move its end to the last."""
        ...

    async def versions_of(self, space: Space, ids: Sequence[str]) -> list[KnownVersion]:
        """Every version of memories of the tenant."""
        ...

    async def put_versions(
        self, space_no: int, versions: Sequence[MemoryVersion], documents: Sequence[Document]
    ) -> None:
        """Store versions as they were recorded elsewhere."""
        ...

    async def add_import_part(self, import_id: str, number: int, records: bytes) -> None:
        """Keep a piece of an import until its end."""
        ...

    async def import_part(self, import_id: str, number: int) -> bytes | None: ...

    async def drop_import(self, import_id: str) -> None:
        """Remove all pieces of an import."""
        ...

    async def enqueue(self, space_no: int) -> int:
        """Wake the indexer; the number of the last outbox row of this transaction, or of the space."""
        ...

    async def unindexed(self, space_no: int, upto: int) -> list[int]:
        """Units whose outbox rows, up to a number, are still to be applied; dead ones are not."""
        ...

    async def lexicon(self, space_no: int, terms: Sequence[str]) -> Lexicon: ...

    async def space_with_lexicon(self, name: str, terms: Sequence[str]) -> tuple[Space, Lexicon] | None:
        """``space`` and ``lexicon`` at once, with which every recall begins."""
        ...

    async def matching(self, space_no: int, terms: Mapping[str, float], where: HardFilter, limit: int) -> Columns:
        """Allowed units that have at least one term, most weight first."""
        ...

    async def candidates(self, space_no: int, units: Sequence[int], where: HardFilter) -> Columns:
        """Those of the units that are allowed."""
        ...

    async def allowed_units(self, space_no: int, where: HardFilter) -> AllowedUnits:
        """All units that are allowed."""
        ...

    async def around(self, space_no: int, spans: Sequence[tuple[str, int, int]], where: HardFilter) -> Columns:
        """Allowed turns within (thread, first position, last position)."""
        ...

    async def records(self, space: Space, turns: Sequence[int], memories: Sequence[int]) -> dict[int, Turn | Memory]:
        """What units stand for, by unit."""
        ...

    async def cited_turns(
        self, space_no: int, sources: Sequence[tuple[str, str]], where: HardFilter, most_bytes: int
    ) -> dict[tuple[str, str], ContextTurn]:
        """Allowed turns by (thread, id), no thread standing for any: then an id of several threads is nobody's.

        Texts longer than ``most_bytes`` are left out, and what does not fit
        into an answer; in the order asked for.
        """
        ...

    async def turns_around(
        self, space_no: int, spans: Sequence[tuple[str, int, int]], where: HardFilter, most_bytes: int
    ) -> list[ContextTurn]:
        """Allowed turns within (thread, first position, last position), with the bounds of ``cited_turns``."""
        ...

    async def embeddables(self, space_no: int, units: Sequence[int]) -> list[Embeddable]:
        """What to embed of the units; those that are gone or tombstones are left out."""
        ...

    async def held_tasks(self, batch: IndexBatch, ids: Sequence[int]) -> list[IndexTask]:
        """Those of the batch's tasks that are still this lease's, as they are now, locked."""
        ...

    async def count_terms(self, space_no: int, tasks: Sequence[IndexTask]) -> None:
        """Add the tasks' units to the statistics, once."""
        ...

    async def finish_tasks(self, space_no: int, ids: Sequence[int]) -> None: ...

    async def postpone_tasks(
        self, space_no: int, ids: Sequence[int], delay_s: float, error: str, blame: bool, dead_after: int
    ) -> int:
        """Try again later; with ``blame`` count it, and give up at ``dead_after``. How many gave up."""
        ...

    async def dead_letters(self, space_no: int) -> list[DeadLetters]:
        """What indexing and extractions gave up on, by space and reason; of one space, or (0) of all."""
        ...

    async def replay_dead(self, space_no: int) -> int:
        """Have the indexer try that again; how many rows."""
        ...

    async def add_operation(
        self,
        operation_id: str,
        kind: str,
        arguments: Mapping[str, Any],
        requested_by: str,
        subjects: Sequence[str] = (),
    ) -> Operation:
        """Store an operation that is due at once.

        ``subjects``: whose records it is about. Their erasure removes it, in
        whatever state it is; if ``arguments`` name a `space_no`, only an
        erasure that reaches this space does. Hold them first.
        """
        ...

    async def operation(self, operation_id: str) -> Operation | None: ...

    async def ask_to_cancel(self, operation_id: str) -> Operation | None:
        """The operation, which is asked to stop unless it had ended."""
        ...

    async def renew(self, claim: Claim, lease_s: float) -> Operation | None:
        """The operation, ours for so many seconds more; None when it is not ours any more.

        It stays ours until the transaction ends, whatever the time. So it is with
        the next three, which answer whether it was.
        """
        ...

    async def save_progress(
        self, claim: Claim, cursor: Mapping[str, Any], done: int, total: int, phase: str
    ) -> bool: ...

    async def end_operation(
        self, claim: Claim, state: OperationState, result: Mapping[str, Any] | None, error: JanusError | None
    ) -> bool: ...

    async def release_operation(
        self, claim: Claim, delay_s: float, phase: str | None, waits: int = 0, failures: int = 0
    ) -> bool:
        """Leave it to whoever comes after a while. ``waits`` and ``failures`` are added to its own."""
        ...


class Snapshot(Protocol):
    """A tenant's records as they were at one moment, in pages of some MiB; an empty page is the end."""

    async def space(self, name: str) -> Space | None: ...

    async def turns_after(self, space: Space, scope: Scope, thread: str, position: int) -> list[Turn]:
        """Turns by thread and position, after one."""
        ...

    async def memories_after(self, space: Space, scope: Scope, after: str) -> list[MemoryVersion]:
        """Current versions by id, after one."""
        ...

    async def units_of(self, space: Space, ids: Sequence[str]) -> dict[str, int]:
        """The units that current versions are searched by, by id."""
        ...

    async def blocks_after(self, space: Space, scope: Scope, after: tuple[str, str, str]) -> list[Block]:
        """Blocks by name, subject and agent, after one."""
        ...

    async def superseded_after(self, space: Space, scope: Scope, after: str, number: int) -> list[MemoryVersion]:
        """Superseded versions by id and version, after one."""
        ...


class Records(Protocol):
    """The truth."""

    def transaction(self, tenant: str) -> AbstractAsyncContextManager[Transaction]: ...

    def snapshot(self, tenant: str) -> AbstractAsyncContextManager[Snapshot]:
        """Everything within sees the same moment, and holds a connection."""
        ...

    async def claim(
        self, worker: str, limit: int, lease_s: float, held_back: Collection[tuple[str, int]] = ()
    ) -> IndexBatch | None:
        """Lease due outbox rows of one space that nobody else works on, and that is not ``held_back`` (tenant, number).

        ``worker`` is a UUID; rows that it leased before and did not finish are
        due at once, so a worker must have ended its last batch.
        """
        ...

    async def grown_threads(self, turns: int, limit: int) -> list[tuple[str, int, str]]:
        """(tenant, space, thread) with at least so many turns that no summary covers and nobody works on."""
        ...

    async def backlog(self) -> Backlog: ...

    async def tenants_with_dead_letters(self) -> list[str]: ...

    async def to_sweep(self) -> list[tuple[str, int]]:
        """Tenant and number of spaces where records may have come to their end."""
        ...

    async def forget_requests(self) -> int:
        """Remove stored answers older than 24 h; how many."""
        ...

    async def due_spaces(self, every_s: float, limit: int) -> list[tuple[str, str]]:
        """Spaces of all tenants, by tenant and name, that were not compared with their indexes for so long."""
        ...

    async def spaces_of_all(self, after: tuple[str, str], limit: int) -> list[tuple[str, str]]:
        """Spaces of all tenants, by tenant and name, beginning after one."""
        ...

    async def tenants_erasing(self, older_than_s: float) -> list[str]:
        """Tenants with an erasure that began so long ago and has not ended."""
        ...

    async def forget_imports(self) -> int:
        """Remove pieces of imports that ended a day ago without saying so; how many."""
        ...

    async def forget_vector_changes(self) -> int:
        """Remove what tells of changed vectors to who holds some, ten minutes later; how many rows."""
        ...

    def wakeups(self) -> AsyncIterator[None]:
        """One item a time that there may be new outbox rows."""
        ...

    async def ping(self) -> None: ...


class OperationChange(NamedTuple):
    """An operation changed, or (``due``) wants its owner, or one. An empty id: any may have."""

    id: str
    due: bool


class Operations(Protocol):
    """Long-running operations of every tenant, for their owners and watchers."""

    async def claim(
        self, worker: str, kinds: Sequence[str], lease_s: float, works_on: Collection[str] = ()
    ) -> Claim | None:
        """Own a due operation of one of the kinds, of a tenant that has the fewest running first.

        Due is one that nobody owns, and one whose owner's lease ran out: at
        once, and later each time that it happens; but none that ``worker``, a
        UUID, ``works_on`` still.
        """
        ...

    async def forget_ended(self) -> int:
        """Remove operations that ended more than 30 days ago; how many."""
        ...

    def changes(self) -> AsyncIterator[OperationChange]:
        """What became of operations, of any tenant, as it happens."""
        ...


class Progress(Protocol):
    """How a handler says how far it is."""

    async def save(
        self, cursor: Mapping[str, Any], *, done: int, total: int, phase: str, tx: Transaction | None = None
    ) -> None:
        """Go on from here after a restart. Watchers see it.

        In a transaction of the handler's own, what is written in it counts
        only if the operation still is this owner's. Ends the handler otherwise.
        ``phase`` is for people, at most 256 characters, without user text.
        """
        ...


class Handler(Protocol):
    """What one kind of operation does.

    ``run`` may be stopped anywhere and is run again, by any process: it goes on
    from ``operation.cursor`` and may repeat what it did after it. An error of
    janus_kit that only says "not now" is tried again, any other ends the
    operation as FAILED with it. One that reads a subject's records stores what
    it makes of them in the transaction in which it saves its progress: when an
    erasure has removed the operation, that fails and stores nothing.
    """

    async def run(self, tenant: str, operation: Operation, progress: Progress) -> Mapping[str, Any]:
        """Do it. The result, as JSON."""
        ...

    async def undo(self, tenant: str, operation: Operation) -> bool:
        """Take back what an operation that is not going on has half done; may be repeated.

        False: it is past that, and has to be run to its end.
        """
        ...
