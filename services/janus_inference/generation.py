"""The use case: one prompt, answered as numbered events or as a whole answer.

What holds for every provider is decided here: the order and number of events,
exactly one terminal event, what a failure looks like, and that whatever was
used is on record before the end is said. Until the first semantic event nothing
is delivered, so a failure before it is raised; after it the stream ends in
Failed. A resumable generation is different in that it says Started as soon as
somebody is asked, and that it belongs to nobody's call.
"""

import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from dataclasses import dataclass, replace
from types import MappingProxyType

from janus_inference.asking import Asking, Call, Desk, Watch
from janus_inference.attempts import Attempts, Began
from janus_inference.caching import AnswerCache
from janus_inference.coalesce import coalesced
from janus_inference.deadlines import Legs
from janus_inference.events import (
    Answer,
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
    Usage,
    UsageUpdated,
)
from janus_inference.fold import Fold
from janus_inference.model import Caller, Prompt
from janus_inference.ports import AnsweredRequest, EventCodec, Pledge, Request, UsageRecord
from janus_inference.prices import is_at_list_price
from janus_inference.provider_errors import ProviderFailure
from janus_inference.requests import Begun, Requests, Running, Stored
from janus_inference.resuming import Resumables
from janus_inference.routing import Route, Routes
from janus_inference.telemetry import Served
from janus_inference.validation import validate
from janus_kit.errors import Aborted, JanusError, NotFound
from janus_kit.ids import new_id

_COME_BACK_S = 1.0


@dataclass(frozen=True)
class Generation:
    """Answers prompts. ``linger_s`` is for resumable prompts that say nothing."""

    desk: Desk
    routes: Routes
    requests: Requests
    cache: AnswerCache
    resumables: Resumables
    codec: EventCodec
    linger_s: float

    async def answer(
        self, prompt: Prompt, caller: Caller, *, remaining: float | None = None, digest: bytes = b""
    ) -> Answer:
        """The whole answer: the same events, added up. Raises JanusError.

        ``remaining`` seconds are left to the call. ``digest`` stands for the
        request's body where the prompt has a request_id.
        """
        fold = Fold()
        whole = replace(prompt, resumable=False)
        async with aclosing(self._events(whole, caller, remaining, "Generate", digest)) as events:
            async for numbered in events:
                fold.add(numbered.event)
        return fold.answer()

    def run(
        self,
        prompt: Prompt,
        caller: Caller,
        *,
        remaining: float | None = None,
        digest: bytes = b"",
        keep: AbstractContextManager[object] | None = None,
    ) -> AsyncGenerator[Numbered, None]:
        """The answer as events. Raises JanusError before the first one, never after.

        Close the generator to stop: that closes the provider's connection
        before it returns, unless the prompt is resumable; then the generation
        goes on, within ``keep``.
        """
        return self._events(prompt, caller, remaining, "StreamGenerate", digest, keep)

    def resume(self, generation_id: str, caller: Caller, after: int) -> AsyncGenerator[Numbered, None]:
        """The events of a resumable generation after that sequence, then live ones. Raises NotFound, OutOfRange."""
        return self.resumables.follow(caller, generation_id, after)

    async def _events(
        self,
        prompt: Prompt,
        caller: Caller,
        remaining: float | None,
        method: str,
        digest: bytes,
        keep: AbstractContextManager[object] | None = None,
    ) -> AsyncGenerator[Numbered, None]:
        watch = Watch()
        validate(prompt)
        route = self.routes.route(prompt.model, prompt.routing)
        generation_id = new_id("gen")
        request = Request(caller, method, prompt.request_id, digest) if prompt.request_id else None
        if request is not None:
            found = await self.requests.begin(request, generation_id)
            if not isinstance(found, Begun):
                async with aclosing(self._again(found, prompt, caller)) as events:
                    async for numbered in events:
                        yield numbered
                return
        claim = _Claim(self.requests, request, generation_id)
        try:
            cached = await self.cache.get(caller, prompt, route.means) if prompt.cache.read else None
            run = _Run(self, prompt, caller, route, claim, remaining, watch, streaming=method != "Generate")
            events = run.from_cache(cached) if cached is not None else run.events()
            if prompt.resumable:
                # What is refused before anybody is asked is the caller's own error, and not an event.
                first = await anext(events)
                linger = self.linger_s if prompt.linger is None else prompt.linger
                continued = _continued(first, events, claim, keep)
                events = self.resumables.start(
                    caller, generation_id, continued, linger, pledge=run.pledge(), spent=run.spent
                )
            async with aclosing(events):
                async for numbered in events:
                    if prompt.resumable:
                        # The generation, and with it the claim, goes on without this call.
                        claim = _Claim(self.requests, None, generation_id)
                    yield numbered
        finally:
            claim.give_up()

    async def _again(self, found: Stored | Running, prompt: Prompt, caller: Caller) -> AsyncGenerator[Numbered, None]:
        """What a request gets that was sent before."""
        if isinstance(found, Stored):
            for numbered in found.events:
                yield numbered
            return
        if not prompt.resumable:
            raise _in_progress(found.generation_id)
        try:
            async with aclosing(self.resume(found.generation_id, caller, 0)) as events:
                async for numbered in events:
                    yield numbered
        except NotFound:
            # Its owner has yet to begin, or has just given it up.
            raise _in_progress(found.generation_id) from None


def _in_progress(generation_id: str) -> Aborted:
    text = "a call with this request_id is still being worked on"
    return Aborted("REQUEST_IN_PROGRESS", text, {"generation_id": generation_id}, _COME_BACK_S)


class _Claim:
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


class _Run:
    """One generation as it goes on."""

    def __init__(
        self,
        generation: Generation,
        prompt: Prompt,
        caller: Caller,
        route: Route,
        claim: _Claim,
        remaining: float | None,
        watch: Watch,
        *,
        streaming: bool,
    ) -> None:
        desk = generation.desk
        self._generation, self._desk = generation, desk
        self._prompt, self._caller, self._route, self._claim = prompt, caller, route, claim
        options = json.loads(prompt.provider_options_json) if prompt.provider_options_json else MappingProxyType({})
        legs = Legs(desk.time_limits.of(prompt.timeouts), None if prompt.resumable else remaining)
        self._call = Call(prompt, caller, claim.generation_id, legs, watch, options, is_at_list_price(options))
        first = route.targets[0]
        self._served = Served("chat", desk.naming, first.provider, first.model, watch.began, streaming=streaming)
        self._keeps = claim.request is not None or prompt.cache.write
        # What a copy of the answer is made of, where one is wanted; of a stream that can be resumed, all
        # of it as it was numbered.
        self._heads: list[Event] = []
        self._kept: list[ProviderEvent] = []
        self._as_numbered: list[Numbered] | None = [] if claim.request is not None and prompt.resumable else None
        self._attempts: Attempts | None = None
        self._sequence = 0
        self._timings = Timings(0.0, 0.0, 0.0)

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
                # What the attempts used is on record before the end is told.
                await self._desk.ledger.flushed()
                if not failure.filtered and not self._prompt.resumable:
                    raise failure.error from None
                for event in waiting:
                    yield self._number(event)
                yield await self._failed(failure, attempts.recorded, partial=False)
                return
            except JanusError as error:
                await self._desk.ledger.flushed()
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
            async with aclosing(self._relayed(asking)) as relayed:
                async for numbered in relayed:
                    yield numbered
        except BaseException as error:
            self._served.raised(error)
            raise
        finally:
            await attempts.aclose()
            if self._prompt.resumable:
                # Whoever ended it tells its end next.
                await self._desk.ledger.flushed()

    def pledge(self) -> Pledge:
        """What a record of this generation needs that its events do not say."""
        call = self._call
        return Pledge(
            self._caller.subject,
            self._prompt.labels,
            self._desk.clock.now(),
            call.prompt_tokens(),
            call.at_list_price,
        )

    def spent(self) -> tuple[Usage, Cost | None] | None:
        """What the last attempt without an answer used, once it is over; None when nothing was used."""
        record = self._attempts.recorded if self._attempts is not None else None
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
                event = self._timed(replace(event, usage=Usage(), cost=None, from_cache=True))
            told.append(self._number(event))
        answered = self._claim.answered(self._generation.codec.dump(told)) if self._claim.request else None
        if answered is not None:
            await self._generation.requests.answer(answered)
            self._claim.kept()
        for numbered in told:
            yield numbered

    async def _relayed(self, asking: Asking) -> AsyncGenerator[Numbered, None]:
        """What the provider says, to the end."""
        keep = self._kept.append if self._keeps else None
        as_numbered = self._as_numbered
        try:
            async with aclosing(asking.batches()) as batches:
                async for batch in batches:
                    for event in coalesced(batch):
                        if isinstance(event, Stopped):
                            yield await self._finished(asking, event)
                            return
                        asking.note(event)
                        if type(event) is UsageUpdated:
                            event = self._usage(asking, event.usage)
                        if keep is not None:
                            keep(event)
                        self._sequence += 1
                        numbered = Numbered(self._sequence, event)
                        if as_numbered is not None:
                            as_numbered.append(numbered)
                        yield numbered
        except ProviderFailure as failure:
            record = asking.failed(failure)
            # First what costs tokens.
            await asking.close()
            if record is not None:
                self._desk.ledger.record_later(record)
                await self._desk.ledger.flushed()
            yield await self._failed(failure, record, partial=True)

    async def _finished(self, asking: Asking, stopped: Stopped) -> Numbered:
        """The end of a whole answer, once its usage is on record."""
        record = asking.succeeded(stopped)
        usage = record.usage if record is not None else Usage()
        cost = record.cost if record is not None else None
        finished = Finished(stopped.reason, stopped.provider_reason, usage, self._timings, stopped.response_id, cost)
        event = self._timed(finished)
        answered = self._claim.answered(self._stored(event)) if self._claim.request is not None else None
        try:
            if record is not None and await self._desk.ledger.record(record, answered):
                self._claim.kept()
        except JanusError as error:
            # An end that is not on record is not said.
            return self._number(Failed(error, True, partial=True, usage=usage, cost=cost))
        if self._prompt.cache.write:
            await self._generation.cache.put(self._caller, self._prompt, self._route.means, self._told(event))
        return self._number(event)

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
        first = time.perf_counter() - self._call.watch.began
        self._timings = Timings(first, first, self._call.watch.overhead())

    def _timed(self, finished: Finished) -> Finished:
        total = time.perf_counter() - self._call.watch.began
        return replace(finished, timings=replace(self._timings, total=total))

    def _usage(self, asking: Asking, usage: Usage) -> UsageUpdated:
        return UsageUpdated(usage, asking.cost(usage))

    async def _failed(self, failure: ProviderFailure, record: UsageRecord | None, *, partial: bool) -> Numbered:
        """The terminal event of a failure; what a provider's filter stopped has finished, and is stored as such."""
        usage = record.usage if record is not None else Usage()
        cost = record.cost if record is not None else None
        if not failure.filtered:
            return self._number(Failed(failure.error, failure.retryable, partial=partial, usage=usage, cost=cost))
        finished = Finished(FinishReason.CONTENT_FILTER, "content_filter", usage, self._timings, cost=cost)
        event = self._timed(finished)
        if (answered := self._claim.answered(self._stored(event))) is not None:
            with suppress(JanusError):
                await self._generation.requests.answer(answered)
                self._claim.kept()
        return self._number(event)

    def _told(self, finished: Finished) -> list[Event]:
        """The whole answer in as few events as say the same."""
        return [*self._heads, *(event for event in coalesced(self._kept) if not isinstance(event, Stopped)), finished]

    def _stored(self, finished: Finished) -> bytes:
        if self._as_numbered is not None:
            return self._generation.codec.dump([*self._as_numbered, Numbered(self._sequence + 1, finished)])
        numbered = [Numbered(number, event) for number, event in enumerate(self._told(finished), 1)]
        return self._generation.codec.dump(numbered)

    def _number(self, event: Event) -> Numbered:
        self._served.note(event)
        self._sequence += 1
        numbered = Numbered(self._sequence, event)
        if self._as_numbered is not None:
            self._as_numbered.append(numbered)
        return numbered


async def _continued(
    first: Numbered,
    events: AsyncGenerator[Numbered, None],
    claim: _Claim,
    keep: AbstractContextManager[object] | None,
) -> AsyncGenerator[Numbered, None]:
    """A stream whose first event was taken already."""
    with keep or nullcontext():
        try:
            async with aclosing(events):
                yield first
                async for numbered in events:
                    yield numbered
        finally:
            claim.give_up()
