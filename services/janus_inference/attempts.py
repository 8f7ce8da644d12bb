"""Whom to ask next, until somebody speaks: retries, fallbacks and hedges of one call.

All of it happens before the first semantic event has been delivered. Targets
are asked in the order of the route, each at once after the one before it
failed in a way that another may not; when all have failed, those that may do
better later are tried again after a wait. A provider that is asked again in a
call, and a hedge, must fit into the retry budget; the first request of a call
to another provider need not, since it gives no provider more work than its
callers have. None goes to a target whose circuit breaker is open.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from janus_inference import telemetry
from janus_inference.asking import Asking, Call, Desk
from janus_inference.ports import UsageRecord
from janus_inference.provider_errors import ProviderFailure
from janus_inference.routing import Route, Target
from janus_kit.errors import InvalidArgument, JanusError, ResourceExhausted

HEDGED = "HEDGED"


@dataclass(frozen=True, slots=True)
class Began:
    """An attempt begins, or, where two were made at once, is the one that answers.

    ``previous`` is who was asked before; None for the first attempt.
    """

    target: Target
    number: int
    previous: Target | None = None
    reason: str = ""


class _NotAdmitted(Exception):
    """A hedge that the caller's limits have no room for."""


@dataclass(slots=True)
class _Tried:
    """What is known of a target in this call."""

    times: int = 0
    retryable: bool = False
    not_before: float = 0.0


class Attempts:
    """The attempts of one call."""

    def __init__(self, desk: Desk, call: Call, route: Route) -> None:
        self._desk, self._call, self._route = desk, call, route
        self._rules = desk.routing
        self._clock = asyncio.get_running_loop().time
        self._made = 0
        # Providers that were asked, and what the budget knows of each attempt: its provider, and if it was the first.
        self._asked_of: set[str] = set()
        self._counted: dict[int, tuple[str, bool]] = {}
        self._tried: dict[Target, _Tried] = {}
        self._verdict: JanusError | None = None
        self._failure: ProviderFailure | None = None
        self._previous: Target | None = None
        self._open: set[Asking] = set()
        self._racing: dict[asyncio.Task[None], Asking] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self.recorded: UsageRecord | None = None
        """The last attempt that is on record, or will be, without an answer."""

    async def speaking(self) -> AsyncGenerator[Began | Asking, None]:
        """Every attempt that begins, and last the one whose provider speaks.

        One that its dialect cannot say begins nothing, and nobody is asked
        before its beginning was taken. Raises ProviderFailure or JanusError
        when nobody speaks.
        """
        while (target := await self._next()) is not None:
            asking = self._asking(target)
            if not await self._reserved(asking) or not await self._prepared(asking):
                continue
            yield self._began(asking)
            if self._route.hedge_after is None:
                winner = await self._asked(asking)
            else:
                winner = await self._raced(asking, self._route.hedge_after)
            if winner is None:
                continue
            if winner is not asking:
                yield self._began(winner, HEDGED if asking in self._open else None)
            yield winner
            return
        raise self._last_word()

    async def aclose(self) -> None:
        """End what is still under way, and close every connection."""
        for task in self._racing:
            task.cancel()
        for asking in self._open:
            self._abandon(asking)
        closing = self.closing()
        cancelled: asyncio.CancelledError | None = None
        while not closing.done():
            # A deadline may cancel a call that is being cancelled already; connections are closed all the same.
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError as error:
                cancelled = error
        closing.result()
        if cancelled is not None:
            raise cancelled

    def closing(self) -> asyncio.Task[None]:
        """Closes every connection; ``aclose`` awaits it. May be begun early, beside another wait."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._closed(), name=f"close-{self._call.generation_id}")
        return self._closing

    async def _closed(self) -> None:
        await asyncio.gather(*self._racing, *self._leaving, return_exceptions=True)
        for asking in tuple(self._open):
            await self._let_go(asking)

    async def _asked(self, asking: Asking) -> Asking | None:
        try:
            await asking.open()
        except (ProviderFailure, JanusError) as error:
            await self._note(asking, error)
            return None
        return asking

    async def _raced(self, first: Asking, hedge_after: float) -> Asking | None:
        """Ask, and after a while another target as well; the first to speak wins.

        One that refuses has not spoken: what would end the call by itself waits for the other one.
        """
        self._start(first)
        may_hedge = True
        refusal: ProviderFailure | JanusError | None = None
        while self._racing:
            done, _ = await asyncio.wait(
                self._racing, timeout=hedge_after if may_hedge else None, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                may_hedge = False
                try:
                    while (other := self._other()) is not None:
                        if await self._prepared(hedge := self._asking(other)):
                            self._start(hedge, self._hedged)
                            break
                except (ProviderFailure, JanusError) as unsaid:
                    refusal = unsaid
                continue
            # Of two that spoke in the same moment the one that was asked first wins.
            winner: Asking | None = None
            for task in sorted(done, key=lambda task: self._racing[task].number):
                asking, error = self._racing.pop(task), task.exception()
                if error is None and winner is None:
                    winner = asking
                elif isinstance(error, _NotAdmitted):
                    await self._not_made(asking)
                elif isinstance(error, ProviderFailure | JanusError):
                    try:
                        await self._note(asking, error)
                    except (ProviderFailure, JanusError) as final:
                        if _is_over(final):
                            raise
                        refusal = refusal or final
                elif error is not None:
                    raise error
                else:
                    self._leave(asking)
            if winner is not None:
                for task, asking in self._racing.items():
                    task.cancel()
                    self._leave(asking, task)
                self._racing.clear()
                return winner
        if refusal is not None:
            raise refusal
        return None

    def _start(self, asking: Asking, begin: Callable[[Asking], Coroutine[Any, Any, None]] = Asking.open) -> None:
        task = asyncio.create_task(begin(asking), name=f"attempt-{self._call.generation_id}-{asking.number}")
        self._racing[task] = asking

    async def _hedged(self, asking: Asking) -> None:
        """An attempt beside another one: where the caller's limits have no room for it, it is not made."""
        try:
            await asking.reserve()
        except JanusError as error:
            raise _NotAdmitted from error
        telemetry.hedges_total.labels(asking.target.provider).inc()
        await asking.open()

    def _leave(self, asking: Asking, opening: asyncio.Task[None] | None = None) -> None:
        """Close a loser's connection without making the winner wait; its record comes before the winner's."""
        self._abandon(asking)

        async def leave() -> None:
            if opening is not None:
                await asyncio.gather(opening, return_exceptions=True)
            await self._let_go(asking)

        task = asyncio.create_task(leave(), name=f"leave-{self._call.generation_id}-{asking.number}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _let_go(self, asking: Asking) -> None:
        self._open.discard(asking)
        self._abandon(asking)
        await asking.close()

    def _abandon(self, asking: Asking) -> None:
        if (record := asking.abandoned()) is not None:
            self._record_later(record)

    def _record_later(self, record: UsageRecord) -> None:
        self.recorded = record
        self._desk.ledger.record_later(record)

    async def _next(self) -> Target | None:
        """The next target to ask, after any wait; None when there is none."""
        while self._made < self._rules.max_attempts:
            for target in self._route.targets:
                if target not in self._tried and self._may_ask(target):
                    return target
            again = self._soonest()
            if again is None:
                return None
            wait = self._tried[again].not_before - self._clock()
            if wait > 0:
                if wait > min(self._rules.backoff_most_s, self._call.legs.remaining):
                    return None
                await asyncio.sleep(wait)
            if self._may_ask(again):
                telemetry.retries_total.labels(again.provider, self._reason()).inc()
                return again
            self._tried[again].retryable = False
        return None

    def _other(self) -> Target | None:
        """A target that has not been asked, for a hedge."""
        if self._made >= self._rules.max_attempts:
            return None
        fresh = (each for each in self._route.targets if each not in self._tried)
        return next((each for each in fresh if self._may_ask(each, hedges=True)), None)

    def _soonest(self) -> Target | None:
        again = [target for target in self._route.targets if target in self._tried and self._tried[target].retryable]
        return min(again, key=lambda target: self._tried[target].not_before, default=None)

    def _may_ask(self, target: Target, *, hedges: bool = False) -> bool:
        """Whether breaker and budget allow it; a target that they refuse is not asked in this call again.

        But that there is no budget for a hedge says nothing of a fallback, which needs none.
        """
        breakers = self._desk.breakers
        if not breakers.enter(target.name):
            self._tried.setdefault(target, _Tried())
            self._refuse_for(target)
            return False
        provider, budget = target.provider, self._desk.budget
        is_first = not hedges and provider not in self._asked_of
        if is_first:
            budget.first(provider)
        elif not budget.take(provider):
            breakers.left(target.name)
            if not hedges:
                self._tried.setdefault(target, _Tried())
            return False
        self._asked_of.add(provider)
        self._counted[self._made + 1] = provider, is_first
        return True

    def _unmade(self, asking: Asking) -> None:
        """An attempt that sent nothing is none: neither for the budget nor for the most there may be."""
        self._made -= 1
        provider, is_first = self._counted.pop(asking.number)
        self._desk.budget.back(provider, is_first=is_first)
        if is_first:
            self._asked_of.discard(provider)

    def _asking(self, target: Target) -> Asking:
        self._made += 1
        self._tried.setdefault(target, _Tried()).times += 1
        asking = Asking(self._desk, self._call, target, self._made)
        self._open.add(asking)
        return asking

    async def _reserved(self, asking: Asking) -> bool:
        """Whether the caller's limits have room for this attempt."""
        try:
            await asking.reserve()
        except JanusError as error:
            if not isinstance(error, ResourceExhausted) and error.reason != "PRICE_UNKNOWN":
                raise
            # Another model may be under another limit, or have a price.
            await self._not_made(asking)
            self._verdict = self._verdict or error
            return False
        return True

    async def _prepared(self, asking: Asking) -> bool:
        """Whether this target's dialect and model can say the prompt."""
        try:
            asking.prepare()
        except (ProviderFailure, JanusError) as error:
            await self._note(asking, error)
            return False
        return True

    async def _not_made(self, asking: Asking) -> None:
        self._open.discard(asking)
        self._unmade(asking)
        self._tried[asking.target].retryable = False
        asking.refused()
        await asking.close()

    def _began(self, asking: Asking, reason: str | None = None) -> Began:
        previous, self._previous = self._previous, asking.target
        if previous is None:
            return Began(asking.target, asking.number)
        reason = reason or self._reason()
        if previous != asking.target:
            telemetry.fallbacks_total.labels(asking.target.provider, reason).inc()
        return Began(asking.target, asking.number, previous, reason)

    async def _note(self, asking: Asking, error: ProviderFailure | JanusError) -> None:
        """Remember a failed attempt. Raises what no other attempt can mend."""
        self._open.discard(asking)
        target = asking.target
        if isinstance(error, JanusError):
            asking.refused()
            await asking.close()
            if not (isinstance(error, InvalidArgument) and error.reason == "CAPABILITY_UNSUPPORTED"):
                raise error
            self._unmade(asking)
            self._verdict = self._verdict or error
            return
        record = asking.failed(error)
        await asking.close()
        if record is not None:
            self._record_later(record)
        if _is_over(error) or not (error.elsewhere or error.retryable):
            raise error
        tried = self._tried[target]
        tried.retryable = error.retryable
        tried.not_before = self._clock() + self._rules.wait(tried.times, error.retry_after)
        if self._failure is None or error.retryable or not self._failure.retryable:
            self._failure = error

    def _refuse_for(self, target: Target) -> None:
        """What a call is told that an open breaker keeps from its target: why it opened, and when to come back."""
        why, wait = self._desk.breakers.why(target.name), self._desk.breakers.wait(target.name)
        assert why is not None
        self._verdict = self._verdict or why.error.again(wait)

    def _reason(self) -> str:
        if self._failure is not None:
            return self._failure.error.reason
        return self._verdict.reason if self._verdict is not None else ""

    def _last_word(self) -> ProviderFailure | JanusError:
        """Why nobody spoke: the failure that gives most hope, else what kept targets from being asked."""
        if self._failure is not None:
            return self._failure
        assert self._verdict is not None
        return self._verdict


def _is_over(error: ProviderFailure | JanusError) -> bool:
    """Whether the whole call has ended with it: its time, or, by a filter, its answer."""
    if isinstance(error, JanusError):
        return False
    is_late = error.outcome == "timeout" and error.detail in ("total", "call")
    return error.outcome == "cancelled" or is_late or error.filtered
