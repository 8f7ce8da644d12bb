"""What inference needs from the outside, as small protocols."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Literal, Protocol

from janus_inference.events import Cost, Numbered, ProviderEvent, Usage
from janus_inference.model import Caller, EmbedPurpose, Prompt


class Stopwatch(Protocol):
    """Told by a provider when waiting for it begins and ends, so that the rest is Janus's own time.

    It is also told where the provider's count can be seen.
    """

    def sent(self) -> None:
        """The request is on its way; the last call counts."""
        ...

    def connected(self) -> None:
        """There is a connection for it: from here on the provider may work, and count."""
        ...

    def heard(self) -> None:
        """The provider said something."""
        ...

    def counts(self, used: Callable[[], Usage | None]) -> None:
        """Where to look for what the provider has counted while its answer goes on, should it not become whole."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """One attempt: a prompt for one model of one provider.

    ``connect_timeout`` is in seconds. ``options`` are further fields of the
    provider's request, already parsed.
    """

    prompt: Prompt
    model: str
    stopwatch: Stopwatch
    connect_timeout: float
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


class Provider(Protocol):
    """One upstream model API.

    ``stream`` says the prompt in the provider's words and raises
    InvalidArgument for one that the provider or the model cannot serve, or
    ProviderFailure where there is nobody to ask; nothing is sent before the
    context manager that it answers is entered. Leaving the block, for any reason, closes
    the upstream connection, because a cancelled call must not keep spending
    tokens. Inside, each item is a batch: all that the provider had said and
    nobody had read, at least one event. Nothing is read ahead of the consumer
    but what the transport's bounded buffer holds, so a slow consumer slows the
    provider down. The last batch ends with Stopped; a stream that breaks or
    ends without it raises ProviderFailure.
    """

    def dialect(self, ask: Ask) -> str:
        """Name of the wire format in which it would ask, for metrics."""
        ...

    def stream(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ProviderEvent]]]: ...

    async def warm(self) -> None:
        """Do now what the first call would otherwise wait for."""
        ...

    async def close(self) -> None:
        """Close idle connections; the provider is not used afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors in the order of the inputs, all of one length."""

    values: tuple[Sequence[float], ...]
    usage: Usage


class Embedder(Protocol):
    """An upstream API that turns texts into vectors."""

    @property
    def most_inputs(self) -> int:
        """Most texts in one request."""
        ...

    @property
    def most_tokens(self) -> int:
        """Most tokens in one request."""
        ...

    async def embed(
        self,
        model: str,
        inputs: Sequence[str],
        dimensions: int | None,
        purpose: EmbedPurpose | None,
        stopwatch: Stopwatch,
    ) -> Vectors:
        """One vector an input, in one request. ``purpose`` means nothing where the API has no place for it.

        Raises ProviderFailure.
        """
        ...


class TokenCounter(Protocol):
    """An upstream API that counts the tokens of a prompt without answering it."""

    async def count_tokens(self, ask: Ask) -> int:
        """Tokens of the whole prompt. Raises ProviderFailure; InvalidArgument for a prompt that it cannot serve."""
        ...


class EventCodec(Protocol):
    """Events as bytes, for what is kept of them: replays, stored answers, the response cache."""

    def dump(self, events: Sequence[Numbered]) -> bytes: ...

    def joined(self, dumps: Sequence[bytes]) -> bytes:
        """What one ``dump`` of all their events would be."""
        ...

    def load(self, data: bytes) -> list[Numbered]:
        """What ``dump`` was given. Raises ValueError for anything else."""
        ...


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One attempt that reached a provider, and what it used; ``cost`` is None when the price is unknown.

    ``outcome`` is one of the words of `janus_inference_attempts_total`, or
    `owner_gone` where others settled for a process that was killed.
    """

    caller: Caller
    generation_id: str
    attempt: int
    operation: str
    provider: str
    model: str
    labels: Mapping[str, str]
    started_at: datetime
    duration_s: float
    outcome: str
    usage: Usage
    cost: Cost | None


@dataclass(frozen=True, slots=True)
class Request:
    """A call that is made once however often it is sent: its method, its id and the digest of its body."""

    caller: Caller
    method: str
    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """The answer that a repeated request gets, as ``EventCodec`` wrote it; ``generation_id`` made the claim."""

    request: Request
    generation_id: str
    answer: bytes


class WillStore(Protocol):
    """Where processes leave what is to be on record should they be killed. All raise JanusError."""

    async def leave(self, owner: str, records: Sequence[UsageRecord], lease_s: float) -> None:
        """These are the owner's now, in place of those before; until it is heard of again, for so many seconds."""
        ...

    async def withdraw(self, owner: str) -> None:
        """There is nothing to be recorded any more."""
        ...

    async def carry_out(self) -> Sequence[tuple[str, int]]:
        """Put on record what owners left that were not heard of in time; who they were, and of how many calls.

        A record that is there already stays as it is.
        """
        ...


class UsageStore(Protocol):
    """Where usage records are kept."""

    async def write(self, batch: Sequence[tuple[UsageRecord, AnsweredRequest | None]]) -> None:
        """Commit all of them, and the answers with them, or none; those that are there already stay as they are.

        An answer is stored only while its generation holds the claim. Raises
        JanusError when it cannot be done now, ValueError when one of them can
        never be written.
        """
        ...


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of a request: whose generation works on it or did, and the answer once there is one.

    ``is_new``: the claim is the asker's. ``body``: the digest of the body that came with the id.
    """

    is_new: bool
    generation_id: str
    body: bytes
    answer: bytes | None = None


class RequestStore(Protocol):
    """Who works on which request, by one clock for all; each method raises JanusError when it cannot be done now."""

    async def claim(self, request: Request, generation_id: str, lease_s: float) -> Claim:
        """Take a request that nobody works on, or whose owner's lease has run out; else say what there is."""
        ...

    async def renew(self, claims: Sequence[tuple[Request, str]], lease_s: float) -> set[tuple[Request, str]]:
        """Lengthen leases in one round trip; returns those that are still held."""
        ...

    async def release(self, claims: Sequence[tuple[Request, str]]) -> None:
        """Forget requests that these generations hold and have not answered."""
        ...

    async def answer(self, answered: AnsweredRequest) -> None:
        """Store an answer that nothing was used for."""
        ...

    async def forget_old(self) -> bool:
        """Forget some of what is older than 24 h; True when there may be more."""
        ...


class AnswerStore(Protocol):
    """Where the response cache keeps answers, each under a digest and within its tenant."""

    async def get(self, tenant: str, digest: str) -> bytes | None:
        """Raises Unavailable."""
        ...

    async def put(self, tenant: str, digest: str, answer: bytes, keep_s: float) -> None:
        """Kept for so many seconds at most. Raises Unavailable."""
        ...


class ReplayAway(Exception):
    """The store of replays does not answer. What it was asked to do may have been done."""


class ReplayFenced(Exception):
    """Somebody has ended the generation: its owner may write no more."""


class ReplayLost(Exception):
    """The store has forgotten events that it once had; ``last`` is the newest that it still has."""

    def __init__(self, last: int) -> None:
        super().__init__(f"events after {last} are lost")
        self.last = last


@dataclass(frozen=True, slots=True)
class Pledge:
    """What the usage record of a generation needs that its events do not say.

    ``prompt_tokens`` is an estimate. ``at_list_price``: nothing was asked for that is charged otherwise.
    """

    subject: str
    labels: Mapping[str, str]
    started_at: datetime
    prompt_tokens: int
    at_list_price: bool = True


@dataclass(frozen=True, slots=True)
class ReplayHead:
    """What is known of a generation.

    ``has_spoken``: something of an answer was said, so that its end leaves it
    partial. ``is_owned``: somebody works on it. ``is_lost``: events are missing
    and nobody can tell which.
    """

    last: int
    has_spoken: bool
    has_ended: bool
    is_owned: bool
    is_lost: bool = False
    pledge: Pledge | None = None


class ReplayStore(Protocol):
    """The events of resumable generations, for every replica; each method raises ReplayAway.

    A generation has one owner, a word that no other process uses. It writes
    until it, or somebody who found its lease run out, has written a terminal
    event; nothing is written after that. Times are in seconds.
    """

    async def open(self, tenant: str, generation_id: str, owner: str, lease_s: float, pledge: Pledge | None) -> None:
        """Begin, or begin again what was forgotten. Raises ReplayFenced."""
        ...

    async def append(
        self, tenant: str, generation_id: str, owner: str, batch: Sequence[Numbered], *, spoken: bool, terminal: bool
    ) -> int:
        """The next events, whole or not at all; the same batch twice is written once.

        Answers how many bytes they take. Raises ReplayFenced, and ReplayLost when what goes before is missing.
        """
        ...

    async def fence(self, tenant: str, generation_id: str, last: int) -> bool:
        """Take a generation from an owner whose lease has run out, so that ``last`` stays its last event but the end.

        False, and nothing happens, when it is owned, has ended, or has another last event.
        """
        ...

    async def break_off(self, tenant: str, generation_id: str, end: Numbered) -> None:
        """End a generation that nobody owns with a terminal event.

        Nothing happens when it is owned, has ended, or ``end`` is not next.
        """
        ...

    async def discard(self, tenant: str, generation_id: str, owner: str) -> None:
        """Forget a generation that said nothing, or whose events are lost."""
        ...

    async def head(self, tenant: str, generation_id: str) -> ReplayHead | None:
        """None when there is no such generation, or no longer."""
        ...

    async def page(self, tenant: str, generation_id: str, after: int) -> list[Numbered]:
        """Some of the events after that one, in order; none when there are none."""
        ...

    async def wait(self, tenant: str, generation_id: str, after: int, seconds: float) -> list[Numbered]:
        """The same, but waits so long for the first."""
        ...

    async def renew(
        self, owner: str, owned: Sequence[tuple[str, str]], read: Sequence[tuple[str, str]], lease_s: float
    ) -> Sequence[int | None]:
        """Keep leases of owned generations and say which ones are read here, in one round trip.

        Answers for each owned one how many processes read it, None when it is
        no longer the owner's, and -1 when the store has forgotten it.
        """
        ...

    async def leave(self, owner: str, tenant: str, generation_id: str) -> None:
        """Nobody in this process reads it any more."""
        ...

    async def overdue(self, seconds: float, most: int) -> Sequence[tuple[str, str]]:
        """So many generations at most, of all tenants, whose lease ran out so long ago by this process's clock."""
        ...

    async def forget(self, ended: Sequence[tuple[str, str]]) -> None:
        """These are not overdue: they have ended."""
        ...


class LimitsAway(Exception):
    """The store of limits does not answer. What it was asked to do may have been done, or be done later."""


@dataclass(frozen=True, slots=True)
class LimitCounter:
    """One thing that a limit counts for a tenant; ``id`` is unique within it.

    ``limit`` is in requests or tokens a minute, calls at once, or millionths
    of a US dollar a ``window``.
    """

    id: str
    rule: str
    dimension: Literal["requests", "tokens", "concurrent", "spend"]
    limit: int
    window: Literal["hour", "day", "month"] = "day"


@dataclass(frozen=True, slots=True)
class LimitRefusal:
    """The counter that is full, and in how many seconds it has room if nobody else takes it."""

    counter: LimitCounter
    retry_after: float


@dataclass(frozen=True, slots=True)
class Held:
    """A call's hold on counters of its tenant; the same ``id`` is the same hold."""

    id: str
    tenant: str
    counters: tuple[LimitCounter, ...]


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a hold used in the end, a counter; None keeps what was reserved.

    ``charge_unknown``: count it in full when the store does not know the hold,
    because it was away or has forgotten.
    """

    held: Held
    used: tuple[int | None, ...]
    charge_unknown: bool = True


class LimitStore(Protocol):
    """Counters that all replicas share, by the store's own clock; each method raises LimitsAway.

    Requests and tokens are buckets of a minute's worth that drain all the
    time. A call at once is a lease. Money is counted a calendar window in UTC.
    """

    async def reserve(self, held: Held, amounts: Sequence[int]) -> LimitRefusal | None:
        """Take an amount from each counter, or nothing from any; the same hold twice is taken once.

        An amount above a counter's whole limit is cut to it.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Put right what was reserved; counters may go above their limits. Each hold is settled once."""
        ...

    async def renew(self, holds: Sequence[Held]) -> None:
        """Keep the leases of calls that go on; those that ran out are taken again."""
        ...
