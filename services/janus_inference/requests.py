"""A request that is sent twice is worked on once, and answers the same for 24 h, per tenant and method.

Who works on it holds a claim in Postgres with a lease, which ``run`` renews
for all claims of the process at once. The claim of an owner that crashed can
be taken over when the lease has run out. The answer is stored by the ledger,
in the commit of the usage record.
"""

import asyncio
from dataclasses import dataclass

from janus_inference.events import Numbered
from janus_inference.ports import AnsweredRequest, EventCodec, Request, RequestStore
from janus_kit.errors import AlreadyExists, JanusError, Unavailable
from janus_kit.telemetry import metrics
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

LEASE_S = 6.0
RENEW_S = 2.0
_FORGET_EVERY_S, _FORGET_MORE_S = 600.0, 0.1
_RELEASE_RETRY_S = 0.25
_DRAIN_S = 2.0

_Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Begun:
    """The call is this caller's to work on; it holds a lease until it answers or gives up."""


@dataclass(frozen=True, slots=True)
class Stored:
    """It was answered before."""

    events: list[Numbered]


@dataclass(frozen=True, slots=True)
class Running:
    """Somebody works on it, as this generation."""

    generation_id: str


class Requests:
    """The claims of this process. ``run`` keeps them; one task of it for the life of the process."""

    def __init__(
        self, store: RequestStore, codec: EventCodec, *, lease_s: float = LEASE_S, renew_s: float = RENEW_S
    ) -> None:
        self._store, self._codec = store, codec
        self._lease_s, self._renew_s = lease_s, renew_s
        self._held: dict[_Key, tuple[Request, str]] = {}
        # By generation, and until when it is worth trying: then whoever wants the id takes it anyway.
        self._given_up: dict[_Key, dict[str, tuple[Request, float]]] = {}
        self._wake = asyncio.Event()
        self._releasing = asyncio.Lock()

    async def begin(self, request: Request, generation_id: str) -> Begun | Stored | Running:
        """Claim a request, or learn what became of it.

        Raises AlreadyExists / REQUEST_ID_REUSED for another body, also while
        the first one is worked on; Unavailable when Postgres is away, or when
        another version stored the answer.
        """
        if _key(request) in self._given_up:
            await self._release()
        try:
            found = await self._store.claim(request, generation_id, self._lease_s)
        except (JanusError, asyncio.CancelledError):
            # It may have been made all the same.
            self.abandon(request, generation_id)
            raise
        if found.is_new:
            self._held[_key(request)] = (request, generation_id)
            return Begun()
        if found.body != request.body:
            metrics.idempotency_hits.labels("conflict").inc()
            text = f"request_id '{request.id}' was used with another body"
            raise AlreadyExists("REQUEST_ID_REUSED", text, "request", request.id)
        if found.answer is None:
            metrics.idempotency_hits.labels("in_progress").inc()
            return Running(found.generation_id)
        metrics.idempotency_hits.labels("replayed").inc()
        try:
            return Stored(self._codec.load(found.answer))
        except ValueError:
            # While replicas of two versions are running, the other one can read it.
            text = "the answer to this request_id was stored by another version of this service"
            raise Unavailable("inference", text) from None

    async def answer(self, answered: AnsweredRequest) -> None:
        """Store an answer that nothing was used for; any other one is stored by the ledger. Raises Unavailable."""
        await self._store.answer(answered)
        self._held.pop(_key(answered.request), None)

    def abandon(self, request: Request, generation_id: str) -> None:
        """There will be no answer: the id is free again. Never blocks; an answer that was stored stays."""
        key = _key(request)
        if self._held.get(key) == (request, generation_id):
            del self._held[key]
        until = asyncio.get_running_loop().time() + self._lease_s
        self._given_up.setdefault(key, {})[generation_id] = (request, until)
        self._wake.set()

    async def run(self) -> None:
        """Renew leases, free what was given up, forget what is old; for ever."""
        clock = asyncio.get_running_loop().time
        renew_at, forget_at = clock() + self._renew_s, clock()
        while True:
            try:
                async with asyncio.timeout_at(min(renew_at, forget_at)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            try:
                await self._release()
                if clock() >= renew_at:
                    renew_at = clock() + self._renew_s
                    await self._renew()
                if clock() >= forget_at:
                    # Some at a time: leases must not wait for it.
                    forget_at = clock() + (_FORGET_MORE_S if await self._store.forget_old() else _FORGET_EVERY_S)
            except JanusError as error:
                _log.debug("requests_wait", error=error.reason)
                await asyncio.sleep(_RELEASE_RETRY_S)

    async def drain(self) -> None:
        """Free what was given up, within 2 s; can be called again, also after ``run`` has ended."""
        try:
            async with asyncio.timeout(_DRAIN_S):
                await self._release()
        except (TimeoutError, JanusError):
            _log.warning("requests_not_freed", requests=len(self._given_up), free_after_s=self._lease_s)

    async def _renew(self) -> None:
        held = list(self._held.values())
        if not held:
            return
        kept = await self._store.renew(held, self._lease_s)
        for request, generation_id in held:
            # Answered meanwhile; or taken over, because this process slept for longer than the lease.
            if (request, generation_id) not in kept and self._held.get(_key(request)) == (request, generation_id):
                del self._held[_key(request)]

    async def _release(self) -> None:
        async with self._releasing:
            self._wake.clear()
            wanted = [
                (request, generation_id, until)
                for claims in self._given_up.values()
                for generation_id, (request, until) in claims.items()
            ]
            if not wanted:
                return
            failed: JanusError | None = None
            try:
                await self._store.release([(request, generation_id) for request, generation_id, _ in wanted])
            except JanusError as error:
                failed, now = error, asyncio.get_running_loop().time()
                wanted = [each for each in wanted if each[2] <= now]
                self._wake.set()
            for request, generation_id, _ in wanted:
                self._forget(_key(request), generation_id)
            if failed is not None:
                raise failed

    def _forget(self, key: _Key, generation_id: str) -> None:
        claims = self._given_up.get(key, {})
        claims.pop(generation_id, None)
        if not claims:
            self._given_up.pop(key, None)


def _key(request: Request) -> _Key:
    return request.caller.tenant, request.method, request.id
