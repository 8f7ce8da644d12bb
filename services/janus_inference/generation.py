"""The use case: one prompt, asked of one model, as numbered events or as a whole answer.

What holds for every provider is decided here: the order and number of events,
exactly one terminal event, the time limits, and what a failure looks like.
Until the first semantic event nothing is delivered, so a failure before it is
raised; after it the stream ends in Failed.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace

from janus_inference import accounting
from janus_inference.coalesce import coalesced
from janus_inference.events import (
    Answer,
    Event,
    Failed,
    Finished,
    FinishReason,
    Numbered,
    OpaqueAdded,
    ProviderEvent,
    ReasoningDelta,
    RefusalDelta,
    Started,
    Stopped,
    TextDelta,
    Timings,
    ToolCallArguments,
    Usage,
    UsageUpdated,
)
from janus_inference.features import refuse_unbuilt
from janus_inference.fold import Fold
from janus_inference.model import Prompt, Timeouts
from janus_inference.ports import Ask, Provider
from janus_inference.provider_errors import ProviderFailure, timed_out
from janus_inference.routing import Routes, Target
from janus_inference.standing import Standings
from janus_inference.telemetry import Attempt
from janus_inference.validation import validate
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits of the server, in seconds, where a prompt says nothing."""

    connect: float = 5.0
    first_event: float = 60.0
    idle: float = 30.0
    total: float = 600.0

    def of(self, asked: Timeouts) -> "Limits":
        """These, with what a prompt asks for in their place."""
        given = {
            name: value
            for name in ("connect", "first_event", "idle", "total")
            if (value := getattr(asked, name)) is not None
        }
        return replace(self, **given)


class Watch:
    """When things happened, by a clock that only goes forward; see ``ports.Stopwatch``."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self._sent = self.began
        self._heard = self.began

    def sent(self) -> None:
        self._sent = time.perf_counter()

    def heard(self) -> None:
        self._heard = time.perf_counter()

    def overhead(self) -> float:
        """Seconds since the beginning that were not spent waiting for the provider."""
        waited = max(0.0, self._heard - self._sent)
        return max(0.0, time.perf_counter() - self.began - waited)


class _Legs:
    """Runs waits under whichever limit ends first, and says which one it was."""

    def __init__(self, provider: str, limits: Limits, remaining: float | None) -> None:
        self._provider, self._limits = provider, limits
        now = asyncio.get_running_loop().time()
        self._ends = [(now + limits.total, "total", limits.total)]
        if remaining is not None:
            self._ends.append((now + remaining, "call", remaining))
        self._first = (now + limits.first_event, "first_event", limits.first_event)
        self._last = min(self._ends)

    def limit(self, *, first: bool) -> tuple[float, str, float]:
        """Until when the next event must come, and the leg that this limit belongs to."""
        if first:
            return min(self._first, self._last)
        idle = (asyncio.get_running_loop().time() + self._limits.idle, "idle", self._limits.idle)
        return min(idle, self._last)

    def expired(self, limit: tuple[float, str, float]) -> ProviderFailure:
        """The failure that reaching the limit is."""
        return timed_out(self._provider, limit[1], limit[2])


class Generation:
    """Asks models."""

    def __init__(self, providers: Mapping[str, Provider], routes: Routes, limits: Limits, standings: Standings) -> None:
        self._providers = providers
        self._routes = routes
        self._limits = limits
        self._standings = standings

    async def answer(self, prompt: Prompt, *, remaining: float | None = None) -> Answer:
        """The whole answer: the same events, added up. Raises JanusError."""
        fold = Fold()
        async with aclosing(self._run(prompt, remaining, streaming=False)) as events:
            async for numbered in events:
                fold.add(numbered.event)
        return fold.answer()

    def run(self, prompt: Prompt, *, remaining: float | None = None) -> AsyncGenerator[Numbered, None]:
        """The answer as events. Raises JanusError before the first one, never after.

        ``remaining`` seconds are left to the call. Close the generator to stop:
        that closes the provider's connection before it returns.
        """
        return self._run(prompt, remaining, streaming=True)

    async def _run(self, prompt: Prompt, remaining: float | None, *, streaming: bool) -> AsyncGenerator[Numbered, None]:
        validate(prompt)
        refuse_unbuilt(prompt)
        target = self._routes.generative(prompt.model)
        run = _Run(prompt, target, self._providers[target.provider].dialect)
        with Attempt("chat", target.provider, target.model, streaming=streaming) as attempt:
            try:
                async with AsyncExitStack() as stack:
                    try:
                        batches = self._batches(stack, run, remaining)
                        async with aclosing(batches):
                            async for batch in batches:
                                for event in coalesced(batch):
                                    if isinstance(event, Stopped):
                                        self._standings.succeeded(target.provider)
                                    for numbered in run.take(event, attempt):
                                        yield numbered
                    except (asyncio.CancelledError, GeneratorExit):
                        attempt.cancelling()
                        raise
            except ProviderFailure as failure:
                self._standings.failed(target.provider, failure)
                attempt.failed(failure.outcome, partial=run.speaking)
                _log.warning(
                    "provider failed",
                    generation_id=run.generation_id,
                    provider=target.provider,
                    model=target.model,
                    outcome=failure.outcome,
                    detail=failure.detail,
                    partial=run.speaking,
                )
                for numbered in run.end(failure):
                    yield numbered

    async def _batches(
        self, stack: AsyncExitStack, run: "_Run", remaining: float | None
    ) -> AsyncGenerator[Sequence[ProviderEvent], None]:
        """What the provider says, each wait under its limit."""
        limits = self._limits.of(run.prompt.timeouts)
        legs = _Legs(run.target.provider, limits, remaining)
        ask = Ask(run.prompt, run.target.model, run.watch, limits.connect, run.options)
        limit = legs.limit(first=True)
        try:
            async with asyncio.timeout_at(limit[0]):
                batches = await stack.enter_async_context(self._providers[run.target.provider].stream(ask))
            while True:
                limit = legs.limit(first=not run.speaking)
                async with asyncio.timeout_at(limit[0]):
                    batch = await anext(batches, None)
                if batch is None:
                    return
                yield batch
        except TimeoutError:
            raise legs.expired(limit) from None


class _Run:
    """One generation as it goes on: what was sent, and what is known so far."""

    def __init__(self, prompt: Prompt, target: Target, dialect: str) -> None:
        self.prompt, self.target = prompt, target
        self.options = json.loads(prompt.provider_options_json) if prompt.provider_options_json else {}
        self.generation_id = new_id("gen")
        self.watch = Watch()
        self.speaking = False
        self._dialect = dialect
        self._sequence = 0
        self._usage: Usage | None = None
        self._output_bytes = 0
        self._timings = Timings(0.0, 0.0, 0.0)

    def take(self, event: ProviderEvent, attempt: Attempt) -> "list[Numbered]":
        """What one event of the provider becomes for the caller."""
        if isinstance(event, UsageUpdated):
            self._usage = event.usage
            # Usage alone is no answer: it is sent once the provider speaks.
            return [self._number(event)] if self.speaking else []
        out: list[Numbered] = []
        if not self.speaking:
            out += self._begin(attempt)
            if self._usage is not None:
                out.append(self._number(UsageUpdated(self._usage)))
        if isinstance(event, Stopped):
            usage = self._usage or self._estimate()
            attempt.succeeded(usage)
            timings = replace(self._timings, total=time.perf_counter() - self.watch.began)
            finished = Finished(event.reason, event.provider_reason, usage, timings, event.response_id)
            return [*out, self._number(finished)]
        self._output_bytes += _size(event)
        out.append(self._number(event))
        return out

    def end(self, failure: ProviderFailure) -> "list[Numbered]":
        """The terminal event of a failure. Raises its error when nothing was delivered yet."""
        if failure.filtered:
            out = [] if self.speaking else [self._number(self._started())]
            total = time.perf_counter() - self.watch.began
            usage = self._usage or self._estimate()
            timings = replace(self._timings, total=total)
            word = "content_filter"
            return [*out, self._number(Finished(FinishReason.CONTENT_FILTER, word, usage, timings))]
        if not self.speaking:
            raise failure.error from None
        usage = self._usage or self._estimate()
        return [self._number(Failed(failure.error, failure.retryable, partial=True, usage=usage))]

    def _begin(self, attempt: Attempt) -> "list[Numbered]":
        self.speaking = True
        first = time.perf_counter() - self.watch.began
        self._timings = Timings(first, first, self.watch.overhead())
        attempt.first_event(first, self._timings.overhead, self._dialect)
        return [self._number(self._started())]

    def _started(self) -> Started:
        return Started(self.generation_id, self.target.provider, self.target.model, attempt=1)

    def _number(self, event: Event) -> Numbered:
        self._sequence += 1
        return Numbered(self._sequence, event)

    def _estimate(self) -> Usage:
        return accounting.estimate(accounting.estimated_prompt_tokens(self.prompt), self._output_bytes)


def _size(event: ProviderEvent) -> int:
    """Bytes that the model wrote, for an estimate of its tokens."""
    match event:
        case TextDelta(text=text) | RefusalDelta(text=text) | ReasoningDelta(text=str(text)):
            return len(text.encode())
        case ToolCallArguments(fragment=text):
            return len(text.encode())
        case OpaqueAdded(part=part):
            return len(part.data)
    return 0
