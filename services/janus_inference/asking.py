"""One attempt: from its reservation to the closed connection and the usage record that it leaves behind."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial

from janus_inference import accounting
from janus_inference.breakers import Breakers
from janus_inference.deadlines import Legs, Limit, LimitReached, TimeLimits, Waits
from janus_inference.events import (
    Cost,
    FinishReason,
    ProviderEvent,
    Stopped,
    Usage,
    UsageUpdated,
)
from janus_inference.ledger import Ledger
from janus_inference.limits import Estimate, Hold, Limiter
from janus_inference.model import Caller, Prompt
from janus_inference.ports import Ask, Provider, UsageRecord
from janus_inference.prices import PriceTable
from janus_inference.provider_errors import ProviderFailure, broken, stopping, timed_out
from janus_inference.retry_budget import RetryBudget
from janus_inference.routing import Target
from janus_inference.settings import RoutingSettings
from janus_inference.standing import Standings
from janus_inference.telemetry import PLAIN, Attempt, Naming, Said, asked
from janus_kit.clock import Clock
from janus_kit.telemetry import names
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

# An answer is reserved as so long where neither the prompt nor the model says how long it may be.
_LIKELY_OUTPUT_TOKENS = 1024


@dataclass(frozen=True)
class Desk:
    """All that asking works with."""

    providers: Mapping[str, Provider]
    time_limits: TimeLimits
    routing: RoutingSettings
    limiter: Limiter
    prices: PriceTable
    ledger: Ledger
    breakers: Breakers
    budget: RetryBudget
    standings: Standings
    clock: Clock
    underway: "Underway"
    naming: Naming = PLAIN


class Watch:
    """When things happened, by a clock that only goes forward.

    What lies between the first request and the last word heard is the
    providers' time; the rest is Janus's own.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first_sent = 0.0
        self.last_heard = 0.0

    def overhead(self) -> float:
        """Seconds since the beginning that were not spent waiting for a provider."""
        waited = max(0.0, self.last_heard - self.first_sent) if self.first_sent else 0.0
        return max(0.0, time.perf_counter() - self.began - waited)


@dataclass(frozen=True)
class Call:
    """What all attempts of one call share.

    ``options`` are the prompt's provider options, parsed. ``at_list_price``:
    they ask for nothing that is charged at another price.
    """

    prompt: Prompt
    caller: Caller
    generation_id: str
    legs: Legs
    watch: Watch
    options: Mapping[str, object]
    at_list_price: bool

    @cached_property
    def prompt_tokens(self) -> int:
        """An estimate."""
        return accounting.estimated_prompt_tokens(self.prompt)


class Underway:
    """The attempts of this process that are asked or answered now."""

    def __init__(self) -> None:
        self._all: set[Asking] = set()

    def add(self, asking: "Asking") -> None:
        self._all.add(asking)

    def discard(self, asking: "Asking") -> None:
        self._all.discard(asking)

    def stop(self) -> None:
        """End them with a failure that says that this server stops."""
        for asking in tuple(self._all):
            asking.stop()

    def records(self) -> list[UsageRecord]:
        """What there would be to record of them if this process were gone now."""
        return [record for asking in self._all if (record := asking.if_gone()) is not None]


class Asking:
    """One attempt: ``reserve``, ``prepare``, ``open``, read ``batches``, exactly one of the endings, ``close``."""

    def __init__(self, desk: Desk, call: Call, target: Target, number: int) -> None:
        self.target, self.number = target, number
        self.usage: Usage | None = None
        self.spoke = False
        self._desk, self._call = desk, call
        self._provider = desk.providers[target.provider]
        self._waits = Waits()
        self._stack = AsyncExitStack()
        self._upstream = AsyncExitStack()
        self._is_waiting = False
        self._expired: asyncio.Task[None] | None = None
        with_content = desk.naming.record_content
        describe = partial(asked, call.prompt, call.generation_id, number, with_content=with_content)
        self._meter = Attempt("chat", target.provider, target.model, naming=desk.naming, describe=describe)
        self._said: Said | None = None
        self._hold: Hold | None = None
        self._first: Sequence[ProviderEvent] = ()
        self._counted: Callable[[], Usage | None] = lambda: None
        self._output_bytes = 0
        self._is_connected = False
        self._heard_at = 0.0
        self._ended = False
        self._stops = False
        self._began = time.perf_counter()
        self._started_at: datetime = desk.clock.now()

    def sent(self) -> None:
        """The request is on its way; see ``ports.Stopwatch``."""
        if not self._call.watch.first_sent:
            self._call.watch.first_sent = time.perf_counter()

    def connected(self) -> None:
        """The provider may have the request."""
        self._is_connected = True

    def heard(self) -> None:
        """The provider said something."""
        self._heard_at = self._call.watch.last_heard = time.perf_counter()

    def counts(self, used: Callable[[], Usage | None]) -> None:
        """See ``ports.Stopwatch``."""
        self._counted = used

    async def reserve(self) -> None:
        """Take what the call will use from its caller's limits. Raises JanusError when that is too much."""
        limiter, call = self._desk.limiter, self._call
        if not limiter.applies(call.caller, self.target.name):
            return
        output = call.prompt.max_output_tokens or _LIKELY_OUTPUT_TOKENS
        likely = Usage(input_uncached_tokens=call.prompt_tokens, output_tokens=output)
        cost = self.cost(likely)
        estimate = Estimate(likely.input_tokens, output, cost.micro_usd if cost is not None else None)
        self._hold = await limiter.reserve(call.caller, self.target.name, estimate)

    def prepare(self) -> None:
        """Say the prompt in the provider's words; nothing is sent. Raises InvalidArgument of the dialect, or
        ProviderFailure of a provider that cannot be asked at all."""
        call = self._call
        # Not kept: it refers to this object, and what refers to itself waits for the collector.
        ask = Ask(call.prompt, self.target.model, self, call.legs.limits.connect, call.options)
        self._dialect = self._provider.dialect(ask)
        try:
            self._answer = self._provider.stream(ask)
        except BaseException:
            # It counts as an attempt all the same.
            self._stack.enter_context(self._meter)
            raise

    async def open(self) -> None:
        """Ask, and wait until the provider speaks. Raises ProviderFailure.

        Usage alone is no answer, and neither are pings: the limit of the first
        event stands until there is something to deliver.
        """
        call, limit = self._call, self._call.legs.first_event()
        self._stack.enter_context(self._meter)
        self._desk.underway.add(self)
        if self._desk.naming.record_content and self._meter.is_recorded:
            self._said = Said()
        try:
            self._stack.push_async_callback(self._upstream.aclose)
            opening = self._upstream.enter_async_context(self._answer)
            self._batches = await self._waits.within(limit, opening)
            while True:
                batch = await self._waits.within(limit, anext(self._batches, None))
                if batch is None:
                    raise broken(self.target.provider, "the stream ended before the answer began")
                if any(type(event) is not UsageUpdated for event in batch):
                    break
                self._note_usage(batch)
        except LimitReached as reached:
            raise self._timed_out(reached.limit) from None
        self._first = batch
        self.spoke = True
        self._desk.breakers.spoke(self.target.name)
        first = time.perf_counter() - self._began
        self._meter.first_event(first, call.watch.overhead(), self._dialect, self._heard_at)

    async def batches(self) -> AsyncGenerator[Sequence[ProviderEvent], None]:
        """All that the provider says, each wait under its limit. Raises ProviderFailure.

        The limit of the whole call holds also while nobody reads.
        """
        legs, waits, upstream = self._call.legs, self._waits, self._batches
        timer = asyncio.get_running_loop().call_at(legs.whole.until, self._expire)
        batch: Sequence[ProviderEvent] | None = self._first
        self._first = ()
        limit = legs.idle()
        try:
            while batch is not None:
                yield batch
                if self._expired is not None or self._stops:
                    raise self._timed_out(legs.whole)
                if len(batch) > 1 or type(batch[0]) is not UsageUpdated:
                    limit = legs.idle()
                self._is_waiting = True
                batch = await waits.within(limit, anext(upstream, None))
                self._is_waiting = False
                if batch is not None:
                    self._meter.chunk(self._heard_at)
        except LimitReached as reached:
            raise self._timed_out(reached.limit) from None
        finally:
            timer.cancel()

    def note(self, event: ProviderEvent) -> None:
        """Count what was said, for an estimate of its tokens and for what the provider reports."""
        if self._said is not None:
            self._said.add(event)
        if isinstance(event, UsageUpdated):
            self.usage = event.usage
        else:
            self._output_bytes += accounting.said_bytes(event)

    def succeeded(self, stopped: Stopped) -> UsageRecord | None:
        """The answer is whole."""
        usage = self.usage if self.usage is not None and not self.usage.estimated else self._so_far()
        self._meter.succeeded()
        self._meter.answered(stopped.reason, stopped.response_id, stopped.model)
        self._desk.standings.succeeded(self.target.provider)
        self._desk.breakers.succeeded(self.target.name)
        return self._end("ok", usage, stopped.reason, reached=True)

    def failed(self, failure: ProviderFailure) -> UsageRecord | None:
        """It failed; None when no provider was reached."""
        _log.warning(
            "attempt failed",
            generation_id=self._call.generation_id,
            attempt=self.number,
            provider=self.target.provider,
            model=self.target.model,
            outcome=failure.outcome,
            detail=failure.detail,
            partial=self.spoke,
        )
        self._meter.failed(failure.outcome, partial=self.spoke)
        if failure.said and self._desk.naming.record_content:
            self._meter.tell({names.UPSTREAM_MESSAGE: failure.said})
        self._desk.standings.failed(self.target.provider, failure)
        if failure.is_trouble and self._is_fair(failure):
            self._desk.breakers.failed(self.target.name, failure)
        elif failure.is_trouble or not failure.reached or self._stops:
            self._desk.breakers.left(self.target.name)
        else:
            self._desk.breakers.succeeded(self.target.name)
        used = failure.worked or self.spoke or (self._counted() or self.usage) is not None
        reason = FinishReason.CONTENT_FILTER if failure.filtered else None
        usage = self._so_far() if used else Usage()
        return self._end(failure.outcome, usage, reason, reached=self._is_connected and failure.reached)

    def refused(self) -> None:
        """The dialect could not say it, or a limit of the caller's stood in the way; nothing was sent."""
        self._meter.failed("refused")
        self._desk.breakers.left(self.target.name)
        self._end("refused", Usage(), reached=False)

    def abandoned(self) -> UsageRecord | None:
        """Nobody wants the answer any more; from now on every moment costs tokens."""
        if self._ended:
            return None
        self._meter.cancelling()
        self._desk.breakers.left(self.target.name)
        return self._end("cancelled", self._so_far(), reached=self._is_connected)

    def if_gone(self) -> UsageRecord | None:
        """What there would be to record of it if this process were gone now."""
        if self._ended or not self._is_connected:
            return None
        usage = self._so_far()
        return self._record("owner_gone", usage, self.cost(usage))

    def stop(self) -> None:
        """This server stops: whoever waits for the provider gets a failure that says so."""
        self._stops = True
        self._waits.interrupt()

    async def close(self) -> None:
        """Close the provider's connection."""
        self._desk.underway.discard(self)
        self._waits.close()
        if self._expired is not None:
            await asyncio.gather(self._expired, return_exceptions=True)
        await self._stack.aclose()

    def _expire(self) -> None:
        """The whole call's time is up. A wait of ours has this limit itself; while there is none, nobody reads."""
        if not self._is_waiting:
            self._expired = asyncio.create_task(self._upstream.aclose(), name=f"expire-{self._call.generation_id}")

    def _end(
        self, outcome: str, usage: Usage, reason: FinishReason | None = None, *, reached: bool
    ) -> UsageRecord | None:
        self._ended = True
        if self._said is not None:
            self._meter.tell(self._said.attributes(reason))
        cost = self.cost(usage) if reached else None
        if self._hold is not None:
            if reached:
                self._hold.settle(usage, cost)
            else:
                self._hold.refund()
        if not reached:
            return None
        self._meter.used(usage)
        return self._record(outcome, usage, cost)

    def _record(self, outcome: str, usage: Usage, cost: Cost | None) -> UsageRecord:
        call = self._call
        return UsageRecord(
            caller=call.caller,
            generation_id=call.generation_id,
            attempt=self.number,
            operation="chat",
            provider=self.target.provider,
            model=self.target.model,
            labels=call.prompt.labels,
            started_at=self._started_at,
            duration_s=time.perf_counter() - self._began,
            outcome=outcome,
            usage=usage,
            cost=cost,
        )

    def _is_fair(self, failure: ProviderFailure) -> bool:
        """A time-out tells about the target only where the caller was as patient as the server is."""
        asked = self._call.legs.limits
        usual = self._desk.time_limits
        return failure.outcome != "timeout" or (
            failure.detail not in ("total", "call")
            and asked.first_event >= usual.first_event
            and asked.idle >= usual.idle
            and asked.connect >= usual.connect
        )

    def _so_far(self) -> Usage:
        """What was used by an answer that did not become whole."""
        return accounting.so_far(self._counted() or self.usage, self._estimate())

    def _estimate(self) -> Usage:
        return accounting.estimate(self._call.prompt_tokens, self._output_bytes)

    def cost(self, usage: Usage) -> Cost | None:
        """What so much usage of this target costs; None when that is not known."""
        if not self._call.at_list_price:
            return None
        return self._desk.prices.cost(self.target.provider, self.target.model, usage)

    def _note_usage(self, batch: Sequence[ProviderEvent]) -> None:
        for event in batch:
            self.note(event)

    def _timed_out(self, limit: Limit) -> ProviderFailure:
        if self._stops:
            return stopping(self.target.provider)
        return timed_out(self.target.provider, limit.leg, limit.seconds)
