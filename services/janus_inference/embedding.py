"""The use case: texts to vectors.

What is too much for one request of the provider is sent as several, and small
requests that wait anyway are sent as one; an answer is whole or an error.
"""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from janus_inference.accounting import summed
from janus_inference.asking import Desk
from janus_inference.embedding_batches import batches, require_room, tokens_of
from janus_inference.events import Cost, Usage
from janus_inference.families import family
from janus_inference.joining import MOST_JOINED_INPUTS, Lanes
from janus_inference.limits import Estimate, Hold
from janus_inference.model import Caller, EmbedPurpose
from janus_inference.ports import Embedder, Stopwatch, UsageRecord, Vectors
from janus_inference.provider_errors import ProviderFailure, of_embedding, timed_out, unusable
from janus_inference.routing import Routes, Target
from janus_inference.stopwatch import Unwatched
from janus_inference.telemetry import Attempt, Served, retries_total
from janus_inference.validation import validate_embedding
from janus_kit.errors import InvalidArgument, JanusError
from janus_kit.ids import new_id
from janus_kit.telemetry import names
from janus_kit.telemetry.tracing import Attributes

_MOST_AT_ONCE = 4
# An upstream request ends by itself when the call's time is up, and says what it ran into.
_GRACE_S = 0.1
_MOST_LENGTHS = 1024


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors in the order of the inputs."""

    vectors: tuple[Sequence[float], ...]
    target: Target
    usage: Usage
    cost: Cost | None


@dataclass(frozen=True, slots=True)
class Lot:
    """What upstream requests that may be joined have in common."""

    caller: Caller
    target: Target
    dimensions: int | None
    purpose: EmbedPurpose | None
    labels: frozenset[tuple[str, str]]


class Embedding:
    """Asks embedding models."""

    def __init__(
        self,
        embedders: Mapping[str, Embedder],
        routes: Routes,
        total_s: float,
        desk: Desk,
    ) -> None:
        self._embedders = embedders
        self._routes = routes
        self._total_s = total_s
        self._desk = desk
        self._lanes: Lanes[Lot] = Lanes(self._asked)
        # How long the vectors of a model turned out to be.
        self._lengths: dict[Target, int] = {}

    async def embed(
        self,
        model: str,
        inputs: list[str],
        *,
        caller: Caller,
        labels: Mapping[str, str],
        dimensions: int | None = None,
        purpose: EmbedPurpose | None = None,
        remaining: float | None = None,
    ) -> Embedded:
        """One vector an input, all of one length; ``remaining`` seconds are left to the call. Raises JanusError."""
        began = time.perf_counter()
        validate_embedding(model, inputs, dimensions, labels)
        target = self._routes.embedding(model)
        embedder = self._embedders.get(target.provider)
        if embedder is None:
            raise InvalidArgument(
                "model",
                f"provider '{target.provider}' has no embeddings",
                reason="MODEL_NOT_FOUND",
                metadata={"model": target.name},
            )
        known = dimensions or self._lengths.get(target) or family(target.model).dimensions
        require_room(len(inputs), known)
        lot = Lot(caller, target, dimensions, purpose, frozenset(labels.items()))
        limit = self._total_s if remaining is None else min(self._total_s, remaining)
        until = asyncio.get_running_loop().time() + limit
        with Served("embeddings", self._desk.naming, target.provider, target.model, began):
            try:
                async with asyncio.timeout_at(until + _GRACE_S) as timeout:
                    made = await self._vectors(lot, inputs, until, embedder)
            except TimeoutError:
                if not timeout.expired():
                    raise
                raise timed_out(target.provider, "total", limit).error from None
        return Embedded(made.values, target, made.usage, self._cost(lot, made.usage))

    async def close(self) -> None:
        """End what is under way."""
        await self._lanes.close()

    async def _vectors(self, lot: Lot, inputs: Sequence[str], until: float, embedder: Embedder) -> Vectors:
        parts = batches(inputs, embedder.most_inputs, embedder.most_tokens)
        if len(parts) > 1:
            return await self._in_parts(lot, parts, until)
        if len(inputs) > MOST_JOINED_INPUTS:
            return await self._asked(lot, inputs, until)
        return await self._lanes.vectors(
            lot, inputs, until, most_inputs=embedder.most_inputs, most_tokens=embedder.most_tokens
        )

    async def _in_parts(self, lot: Lot, parts: list[Sequence[str]], until: float) -> Vectors:
        """All parts, a few at a time; the first failure ends the others."""
        turns = asyncio.Semaphore(_MOST_AT_ONCE)
        count = sum(map(len, parts))
        used: list[Usage] = []

        async def part(inputs: Sequence[str]) -> Vectors:
            async with turns:
                made = await self._recorded(lot, inputs, until, used)
            require_room(count, len(made.values[0]))
            return made

        # To the caller's limits they are one call.
        hold = await self._reserved(lot, [text for inputs in parts for text in inputs])
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(part(inputs)) for inputs in parts]
        except* JanusError as failed:
            # Whichever came first: the others were ended by it, or failed alike.
            raise _first(failed) from None
        finally:
            self._settle(lot, hold, used)
        made = [task.result() for task in tasks]
        values = tuple(vector for each in made for vector in each.values)
        if len({len(vector) for vector in values}) != 1:
            raise unusable(lot.target.provider, "the vectors are not all of one length").error
        return Vectors(values, summed(each.usage for each in made))

    async def _asked(self, lot: Lot, inputs: Sequence[str], until: float) -> Vectors:
        """One upstream request within its caller's limits, and on record. Raises JanusError."""
        used: list[Usage] = []
        hold = await self._reserved(lot, inputs)
        try:
            return await self._recorded(lot, inputs, until, used)
        finally:
            self._settle(lot, hold, used)

    async def _reserved(self, lot: Lot, inputs: Sequence[str]) -> Hold | None:
        """What the caller's limits hold for these texts; None where no limit applies. Raises JanusError."""
        limiter = self._desk.limiter
        if not limiter.applies(lot.caller, lot.target.name):
            return None
        likely = _likely(inputs)
        cost = self._cost(lot, likely)
        estimate = Estimate(likely.input_tokens, 0, cost.micro_usd if cost is not None else None)
        return await limiter.reserve(lot.caller, lot.target.name, estimate)

    def _settle(self, lot: Lot, hold: Hold | None, used: Sequence[Usage]) -> None:
        """Put right what was reserved; ``used`` are the requests that reached the provider."""
        if hold is None:
            return
        if used:
            usage = summed(used)
            hold.settle(usage, self._cost(lot, usage))
        else:
            hold.refund()

    async def _recorded(self, lot: Lot, inputs: Sequence[str], until: float, used: list[Usage]) -> Vectors:
        """What one upstream request answers, sent again where that may help. Raises JanusError."""
        provider, rules, budget = lot.target.provider, self._desk.routing, self._desk.budget
        request_id, attempt = new_id("emb"), 1
        budget.first(provider)
        while True:
            try:
                return await self._attempted(lot, inputs, until, used, request_id, attempt)
            except ProviderFailure as failure:
                wait = rules.wait(attempt, failure.retry_after)
                left = until - asyncio.get_running_loop().time()
                again = failure.retryable and attempt < rules.max_attempts and wait <= min(rules.backoff_most_s, left)
                if not again or not budget.take(provider):
                    raise of_embedding(failure.error) from None
                retries_total.labels(provider, failure.error.reason).inc()
                attempt += 1
                await asyncio.sleep(wait)

    async def _attempted(
        self, lot: Lot, inputs: Sequence[str], until: float, used: list[Usage], request_id: str, number: int
    ) -> Vectors:
        """One upstream request, whose usage is on record before its end is told, and in ``used``.

        Raises ProviderFailure for what the provider did, and JanusError.
        """
        target, breakers, ledger = lot.target, self._desk.breakers, self._desk.ledger
        likely, stopwatch = _likely(inputs), Unwatched()
        began, started_at = time.perf_counter(), self._desk.clock.now()
        if not breakers.enter(target.name):
            why = breakers.why(target.name)
            assert why is not None
            raise why.error.again(breakers.wait(target.name))

        def closed(outcome: str, usage: Usage) -> UsageRecord:
            attempt.used(usage)
            used.append(usage)
            return UsageRecord(
                caller=lot.caller,
                generation_id=request_id,
                attempt=number,
                operation="embeddings",
                provider=target.provider,
                model=target.model,
                labels=dict(lot.labels),
                started_at=started_at,
                duration_s=time.perf_counter() - began,
                outcome=outcome,
                usage=usage,
                cost=self._cost(lot, usage),
            )

        naming, describe = self._desk.naming, partial(_described, lot)
        with Attempt("embeddings", target.provider, target.model, naming=naming, describe=describe) as attempt:
            try:
                made = await self._answered(lot, inputs, until, stopwatch)
            except ProviderFailure as failure:
                attempt.failed(failure.outcome)
                self._desk.standings.failed(target.provider, failure)
                if failure.is_trouble:
                    breakers.failed(target.name, failure)
                else:
                    breakers.left(target.name)
                if failure.reached and stopwatch.is_connected:
                    ledger.record_later(closed(failure.outcome, likely if failure.worked else Usage()))
                    await ledger.flushed()
                raise
            except asyncio.CancelledError:
                attempt.cancelling()
                breakers.left(target.name)
                if stopwatch.is_connected:
                    ledger.record_later(closed("cancelled", likely))
                raise
            usage = likely if made.usage.estimated else made.usage
            attempt.succeeded()
            self._desk.standings.succeeded(target.provider)
            breakers.succeeded(target.name)
            record = closed("ok", usage)
        await ledger.record(record)
        self._note_length(lot, len(made.values[0]))
        require_room(len(inputs), len(made.values[0]))
        return Vectors(made.values, usage)

    def _cost(self, lot: Lot, usage: Usage) -> Cost | None:
        return self._desk.prices.cost(lot.target.provider, lot.target.model, usage)

    async def _answered(self, lot: Lot, inputs: Sequence[str], until: float, stopwatch: Stopwatch) -> Vectors:
        """What the provider answers by ``until``, a time of the loop's clock. Raises ProviderFailure."""
        target = lot.target
        embedder = self._embedders[target.provider]
        limit = max(0.0, until - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout_at(until) as timeout:
                made = await embedder.embed(target.model, inputs, lot.dimensions, lot.purpose, stopwatch)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise timed_out(target.provider, "total", limit) from None
        _check(target.provider, made.values, len(inputs))
        return made

    def _note_length(self, lot: Lot, length: int) -> None:
        """Raises InvalidArgument when the model gave another length than was asked for."""
        if lot.dimensions is None:
            if len(self._lengths) < _MOST_LENGTHS:
                self._lengths[lot.target] = length
        elif length != lot.dimensions:
            rule = f"this model gives {length} and cannot give {lot.dimensions}"
            raise InvalidArgument(
                "dimensions",
                rule,
                reason="CAPABILITY_UNSUPPORTED",
                metadata={"model": lot.target.name, "capability": "dimensions"},
            )


def _likely(inputs: Sequence[str]) -> Usage:
    return Usage(input_uncached_tokens=tokens_of(inputs), estimated=True)


def _check(provider: str, vectors: tuple[Sequence[float], ...], wanted: int) -> None:
    """A vector that is missing or not finite would poison an index silently; so would one of another length."""
    if len(vectors) != wanted or len({len(vector) for vector in vectors}) != 1 or not vectors[0]:
        raise unusable(provider, "the vectors do not fit the inputs")
    if not all(math.isfinite(number) for vector in vectors for number in vector):
        raise unusable(provider, "a vector holds a number that is not finite")


def _described(lot: Lot) -> Attributes:
    return {names.GEN_AI_EMBEDDINGS_DIMENSION_COUNT: lot.dimensions} if lot.dimensions is not None else {}


def _first(failed: BaseExceptionGroup[JanusError]) -> JanusError:
    found = failed.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
