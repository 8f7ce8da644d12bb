"""One generation as it goes on: from its first attempt to the one terminal event, with everything on record."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from janus_inference import answer_size
from janus_inference.asking import Asking, Call, Desk, Watch
from janus_inference.attempts import Attempts, Began
from janus_inference.caching import AnswerCache
from janus_inference.coalesce import Joined, coalesced
from janus_inference.deadlines import Legs
from janus_inference.events import (
    Cost,
    Event,
    Failed,
    Finished,
    FinishReason,
    Numbered,
    ProviderEvent,
    RouteChanged,
    Started,
    Stopped,
    Timings,
    ToolCallArguments,
    Usage,
    UsageUpdated,
)
from janus_inference.model import Caller, Prompt
from janus_inference.ports import AnsweredRequest, EventCodec, Pledge, Request, UsageRecord
from janus_inference.prices import is_at_list_price
from janus_inference.provider_errors import ProviderFailure
from janus_inference.requests import Requests
from janus_inference.routing import Route
from janus_inference.telemetry import Served
from janus_kit.errors import JanusError

# Events of a stream that can be resumed are many times larger than what is stored of them.
_MOST_NUMBERED = 1024


class Around(Protocol):
    """What generations work with."""

    @property
    def desk(self) -> Desk: ...

    @property
    def requests(self) -> Requests: ...

    @property
    def cache(self) -> AnswerCache: ...

    @property
    def codec(self) -> EventCodec: ...


class Claim:
    """The right to answer a request; given up unless the answer was stored."""

    def __init__(self, requests: Requests, request: Request | None, generation_id: str) -> None:
        self._requests = requests
        self.request = request
        self.generation_id = generation_id

    def answered(self, answer: bytes) -> AnsweredRequest | None:
        """What to store together with the usage record."""
        return AnsweredRequest(self.request, self.generation_id, answer) if self.request is not None else None

    def kept(self) -> None:
        """The answer is stored."""
        self.request = None

    def give_up(self) -> None:
        """Let the same request be tried anew."""
        if self.request is not None:
            self._requests.abandon(self.request, self.generation_id)
            self.request = None


class Run:
    """One generation as it goes on."""

    def __init__(
        self,
        around: Around,
        prompt: Prompt,
        caller: Caller,
        route: Route,
        claim: Claim,
        remaining: float | None,
        watch: Watch,
        *,
        streaming: bool,
    ) -> None:
        desk = around.desk
        self._around, self._desk = around, desk
        self._prompt, self._caller, self._route, self._claim = prompt, caller, route, claim
        options = json.loads(prompt.provider_options_json) if prompt.provider_options_json else MappingProxyType({})
        legs = Legs(desk.time_limits.of(prompt.timeouts), None if prompt.resumable else remaining)
        self._call = Call(prompt, caller, claim.generation_id, legs, watch, options, is_at_list_price(options))
        first = route.targets[0]
        self._served = Served("chat", desk.naming, first.provider, first.model, watch.began, streaming=streaming)
        # An answer that its caller or a store gets whole is held, and so it may not grow without end.
        self._must_hold = not streaming or claim.request is not None
        self._size = answer_size.AnswerSize()
        # What a copy of the answer is made of, where one is wanted; of a stream that can be resumed, all
        # of it as it was numbered: the newest events, and the others as they are stored.
        self._heads: list[Event] = []
        self._as_numbered: list[Numbered] | None = [] if claim.request is not None and prompt.resumable else None
        self._numbered_before: list[bytes] = []
        is_copied = prompt.cache.write or (claim.request is not None and not prompt.resumable)
        self._copy: Joined | None = Joined() if is_copied else None
        self._is_held = self._must_hold or is_copied
        self._attempts: Attempts | None = None
        self._record: UsageRecord | None = None
        self._sequence = 0
        self._first_s = self._overhead_s = 0.0

    async def events(self) -> AsyncGenerator[Numbered, None]:
        """Ask, relay, and end in exactly one terminal event. Raises JanusError before the first event."""
        attempts = self._attempts = Attempts(self._desk, self._call, self._route)
        waiting: list[Event] = []
        try:
            try:
                async with aclosing(attempts.speaking()) as steps:
                    async for step in steps:
                        if isinstance(step, Asking):
                            asking = step
                        elif self._prompt.resumable:
                            yield self._number(self._begun(step))
                        else:
                            waiting.append(self._begun(step))
            except ProviderFailure as failure:
                await self._on_record(attempts)
                if not failure.filtered and not self._prompt.resumable:
                    raise failure.error from None
                for event in waiting:
                    yield self._number(event)
                yield await self._failed(failure, attempts.recorded, partial=False)
                return
            except JanusError as error:
                await self._on_record(attempts)
                if not self._sequence:
                    raise
                usage, cost = self.spent() or (Usage(), None)
                yield self._number(Failed(error, error.retry_after is not None, partial=False, usage=usage, cost=cost))
                return
            self._speaks()
            for event in waiting:
                yield self._number(event)
            if asking.usage is not None:
                yield self._number(self._usage(asking, asking.usage))
            async with aclosing(self._relayed(attempts, asking)) as relayed:
                async for numbered in relayed:
                    yield numbered
        except BaseException as error:
            self._served.raised(error)
            raise
        finally:
            await attempts.aclose()
            if self._prompt.resumable:
                # Whoever ended it tells its end next.
                await self._on_record(attempts)

    def pledge(self) -> Pledge:
        """What a record of this generation needs that its events do not say."""
        call = self._call
        return Pledge(
            self._caller.subject,
            self._prompt.labels,
            self._desk.clock.now(),
            call.prompt_tokens,
            call.at_list_price,
        )

    def spent(self) -> tuple[Usage, Cost | None] | None:
        """What was used, once it is over: by the answer, else by the last attempt without one; None for nothing."""
        record = self._record
        if record is None and self._attempts is not None:
            record = self._attempts.recorded
        return (record.usage, record.cost) if record is not None else None

    async def from_cache(self, events: Sequence[Event]) -> AsyncGenerator[Numbered, None]:
        """A stored answer, told anew: nothing is asked and nothing is used."""
        told: list[Numbered] = []
        for event in events:
            if isinstance(event, UsageUpdated):
                continue
            if isinstance(event, Started):
                event = replace(event, generation_id=self._call.generation_id)
            elif isinstance(event, Finished):
                self._speaks()
                event = replace(event, usage=Usage(), cost=None, timings=self._times(), from_cache=True)
            told.append(self._number(event))
        answered = self._claim.answered(self._around.codec.dump(told)) if self._claim.request else None
        if answered is not None:
            await self._around.requests.answer(answered)
            self._claim.kept()
        for numbered in told:
            yield numbered

    async def _on_record(self, attempts: Attempts) -> None:
        """What the attempts used is on record before the end is told; nobody waits who used nothing."""
        if attempts.recorded is not None:
            await self._desk.ledger.flushed()

    async def _relayed(self, attempts: Attempts, asking: Asking) -> AsyncGenerator[Numbered, None]:
        """What the provider says, to the end."""
        try:
            async with aclosing(asking.batches()) as batches:
                async for batch in batches:
                    is_last = isinstance(batch[-1], Stopped)
                    for event in coalesced(batch):
                        if isinstance(event, Stopped):
                            yield await self._finished(attempts, asking, event)
                            return
                        asking.note(event)
                        if type(event) is UsageUpdated:
                            if is_last:
                                continue  # the end that follows at once says it
                            event = self._usage(asking, event.usage)
                        # The arguments of a tool call are held in any case: they are said again, whole.
                        if self._is_held or type(event) is ToolCallArguments:
                            self._hold(event)
                        self._sequence += 1
                        numbered = Numbered(self._sequence, event)
                        if self._as_numbered is not None:
                            self._keep(self._as_numbered, numbered)
                        yield numbered
        except ProviderFailure as failure:
            record = self._record = asking.failed(failure)
            # First what costs tokens.
            await asking.close()
            if record is not None:
                self._desk.ledger.record_later(record)
                await self._desk.ledger.flushed()
            yield await self._failed(failure, record, partial=True)

    async def _finished(self, attempts: Attempts, asking: Asking, stopped: Stopped) -> Numbered:
        """The end of a whole answer, once its usage is on record; meanwhile the connection is let go."""
        record = self._record = asking.succeeded(stopped)
        # Begun a turn later, and so after the record is on its way, which is what the caller waits for.
        asyncio.get_running_loop().call_soon(attempts.closing)
        usage = record.usage if record is not None else Usage()
        cost = record.cost if record is not None else None
        event = Finished(stopped.reason, stopped.provider_reason, usage, self._times(), stopped.response_id, cost)
        answered = self._claim.answered(self._stored(event)) if self._claim.request is not None else None
        try:
            if record is not None and await self._desk.ledger.record(record, answered):
                self._claim.kept()
        except JanusError as error:
            # An end that is not on record is not said.
            return self._number(Failed(error, True, partial=True, usage=usage, cost=cost))
        if self._prompt.cache.write and self._copy is not None:
            await self._around.cache.put(self._caller, self._prompt, self._route.means, self._told(event))
        return self._number(event)

    def _hold(self, event: ProviderEvent) -> None:
        """Raises ProviderFailure when the answer is larger than may be held."""
        self._size.add(event)
        if self._size.bytes > answer_size.MOST_BYTES:
            if self._must_hold or not self._is_held:
                raise answer_size.broken_off()
            # A copy for the cache alone, which keeps none so large.
            self._copy, self._is_held, self._size = None, False, answer_size.AnswerSize()
        if self._copy is not None:
            self._copy.add(event)

    def _begun(self, began: Began) -> Event:
        if began.previous is None:
            event: Event = Started(self._call.generation_id, began.target.provider, began.target.model, began.number)
        else:
            event = RouteChanged(began.previous.name, began.target.name, began.reason, began.number)
        self._heads.append(event)
        self._served.note(event)
        return event

    def _speaks(self) -> None:
        self._served.spoke()
        self._first_s = time.perf_counter() - self._call.watch.began
        self._overhead_s = self._call.watch.overhead()

    def _times(self) -> Timings:
        """Up to now."""
        return Timings(self._first_s, time.perf_counter() - self._call.watch.began, self._overhead_s)

    def _usage(self, asking: Asking, usage: Usage) -> UsageUpdated:
        return UsageUpdated(usage, asking.cost(usage))

    async def _failed(self, failure: ProviderFailure, record: UsageRecord | None, *, partial: bool) -> Numbered:
        """The terminal event of a failure; what a provider's filter stopped has finished, and is stored as such."""
        usage = record.usage if record is not None else Usage()
        cost = record.cost if record is not None else None
        if not failure.filtered:
            return self._number(Failed(failure.error, failure.retryable, partial=partial, usage=usage, cost=cost))
        event = Finished(FinishReason.CONTENT_FILTER, "content_filter", usage, self._times(), cost=cost)
        if self._claim.request is not None and (answered := self._claim.answered(self._stored(event))) is not None:
            with suppress(JanusError):
                await self._around.requests.answer(answered)
                self._claim.kept()
        return self._number(event)

    def _told(self, finished: Finished) -> list[Event]:
        """The whole answer in as few events as say the same."""
        assert self._copy is not None
        return [*self._heads, *(event for event in self._copy if not isinstance(event, Stopped)), finished]

    def _stored(self, finished: Finished) -> bytes:
        codec = self._around.codec
        if self._as_numbered is not None:
            newest = codec.dump([*self._as_numbered, Numbered(self._sequence + 1, finished)])
            return codec.joined([*self._numbered_before, newest])
        numbered = [Numbered(number, event) for number, event in enumerate(self._told(finished), 1)]
        return codec.dump(numbered)

    def _number(self, event: Event) -> Numbered:
        self._served.note(event)
        self._sequence += 1
        numbered = Numbered(self._sequence, event)
        if self._as_numbered is not None:
            self._keep(self._as_numbered, numbered)
        return numbered

    def _keep(self, as_numbered: list[Numbered], numbered: Numbered) -> None:
        as_numbered.append(numbered)
        if len(as_numbered) >= _MOST_NUMBERED:
            self._numbered_before.append(self._around.codec.dump(as_numbered))
            as_numbered.clear()
