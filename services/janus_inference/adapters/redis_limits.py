"""Counters of limits in Redis: one script does all that belongs to a hold, in one round trip.

All keys of a call share the tenant's hash tag, so they are on one shard. A
hold leaves a record until it is settled, and for a while after that, so that
each of its steps may be sent again when an answer got lost.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from janus_inference.ports import Held, LimitCounter, LimitRefusal, LimitsAway, Settlement
from janus_kit.redis import RedisClient, answering, key

SCRIPT = files("janus_inference.adapters").joinpath("limits.lua").read_text(encoding="utf-8")

LEASE_S = 15.0
"""How long a slot stays taken after its process was last heard of."""
_KINDS = {"requests": "rate", "tokens": "rate", "concurrent": "slots", "spend": "spend"}
_BATCH = 200  # steps sent at once; the server does nothing else meanwhile
_AT_ONCE = 16  # calls that reserve at the same time, each on a connection


class RedisLimits:
    """Counters in Redis. Times are in seconds; a server that takes longer than ``timeout_s`` is away."""

    def __init__(
        self, client: RedisClient, *, timeout_s: float = 1.0, lease_s: float = LEASE_S, script: str = SCRIPT
    ) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._lease_ms = round(lease_s * 1000)
        self._script = script
        self._sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._failures = 0

    async def reserve(self, held: Held, amounts: Sequence[int]) -> LimitRefusal | None:
        step = self._step("reserve", held, held.counters, amounts)
        async with self._turn(), self._answering():
            try:
                number, wait_ms = await self._client.evalsha(self._sha, *step)
            except NoScriptError:
                number, wait_ms = await self._client.eval(self._script, *step)
        if not number:
            return None
        return LimitRefusal(held.counters[number - 1], wait_ms / 1000)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self._all(
            self._step("settle", each.held, each.held.counters, each.used, charge_unknown=each.charge_unknown)
            for each in settlements
        )

    async def renew(self, holds: Sequence[Held]) -> None:
        await self._all(self._step("renew", held, _slots(held), [0] * len(_slots(held))) for held in holds)

    async def _all(self, steps: Iterable[list[Any]]) -> None:
        waiting = list(steps)
        for start in range(0, len(waiting), _BATCH):
            async with self._answering():
                await self._send(waiting[start : start + _BATCH])

    async def _send(self, steps: Sequence[list[Any]]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for step in steps:
            pipeline.evalsha(self._sha, *step)
        answers = await pipeline.execute(raise_on_error=False)
        unknown = [step for step, answer in zip(steps, answers, strict=True) if isinstance(answer, NoScriptError)]
        if unknown:
            # The server was restarted or flushed. Steps may be sent twice, so what did get through stays.
            for step in unknown:
                pipeline.eval(self._script, *step)
            answers = await pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, NoScriptError):
                raise answer

    def _step(
        self,
        operation: str,
        held: Held,
        counters: Sequence[LimitCounter],
        amounts: Sequence[int | None],
        *,
        charge_unknown: bool = False,
    ) -> list[Any]:
        """The script's number of keys, its keys and its arguments."""
        step: list[Any] = [1 + len(counters), key(held.tenant, "limit", "hold", held.id)]
        step += [key(held.tenant, "limit", counter.id) for counter in counters]
        step += (operation, held.id, self._lease_ms, int(charge_unknown))
        for counter, amount in zip(counters, amounts, strict=True):
            step += (_KINDS[counter.dimension], counter.limit, "" if amount is None else amount, counter.window)
        return step

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Where a rush waits, and no time runs: to make all its connections at once takes longer than an answer may.

        Whoever waits behind a call that got no answer would get none either, only later.
        """
        failures = self._failures
        async with self._turns:
            if self._failures != failures:
                raise LimitsAway("others that asked got no answer")
            try:
                yield
            except LimitsAway:
                self._failures += 1
                raise

    def _answering(self) -> AbstractAsyncContextManager[None]:
        return answering(self._timeout_s, LimitsAway)


def _slots(held: Held) -> list[LimitCounter]:
    return [counter for counter in held.counters if counter.dimension == "concurrent"]
