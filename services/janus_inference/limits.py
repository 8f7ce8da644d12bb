"""What callers may use: requests and tokens a minute, calls at the same time, money.

A call reserves what it will probably use from every limit that applies to it,
all or nothing, and puts that right once it is known. ``Limiter`` knows the
limits of one version of the settings; ``Holds`` outlives them, because a call
ends under other settings than it began with. The counters themselves are in a
store that all replicas share, under the names of the limits, so a changed
number applies at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Literal
from weakref import WeakValueDictionary

from janus_inference import telemetry
from janus_inference.events import Cost, Usage
from janus_inference.limit_rules import Estimate, Rule, amount, words
from janus_inference.model import Caller
from janus_inference.ports import Held, LimitCounter, LimitRefusal, LimitsAway, LimitStore, Settlement
from janus_inference.settings import LimitSettings
from janus_kit.errors import ResourceExhausted, Unavailable
from janus_kit.ids import new_id
from janus_kit.telemetry import metrics
from janus_kit.telemetry.logging import get_logger
from janus_kit.waiting import within

__all__ = ["Estimate", "Hold", "Holds", "Limiter"]

_log = get_logger(__name__)

SERVICE = "janus.inference.v1.InferenceService"
RENEW_S = 5.0
"""Time between two renewals of leases; a third of what they last."""
DRAIN_S = 3.0
"""How long a stop waits for the store."""

_MOST_QUEUED = 50_000
_BATCH = 200
_AGAIN_S = 0.5
_PATIENCE_S = 0.25
# The store recognises a settlement that it had already for twice as long.
_SURE_S = 30.0
_REMEMBERED = 8192  # callers and targets whose limits are at hand


class Hold:
    """What one call has reserved. The first ``settle`` or ``refund`` counts; neither ever waits.

    A hold that is forgotten loses its place among the calls at the same time
    when its lease ends; its tokens and money stay counted.
    """

    __slots__ = ("__weakref__", "_holds", "held")

    def __init__(self, holds: "Holds | None", held: Held) -> None:
        self.held = held
        self._holds = holds

    def settle(self, usage: Usage, cost: Cost | None) -> None:
        """The call is over and used this. Without a cost the money reserved stays counted."""
        used: dict[str, int | None] = {
            "requests": 1,
            "tokens": usage.input_tokens + usage.output_tokens,
            "spend": cost.micro_usd if cost is not None else None,
        }
        self._end(tuple(used.get(counter.dimension, 0) for counter in self.held.counters))

    def refund(self) -> None:
        """Nothing was used: give everything back, the request as well."""
        self._end((0,) * len(self.held.counters))

    def _end(self, used: tuple[int | None, ...]) -> None:
        holds, self._holds = self._holds, None
        if holds is not None:
            holds.end(Settlement(self.held, used))


# What a call gets that no limit applies to.
_NOTHING = Hold(None, Held("", "", ()))


class Holds:
    """The holds of this process: renews those of calls that go on, settles those of calls that are over.

    ``renew_s`` is the time between two renewals in seconds.
    """

    def __init__(self, store: LimitStore, *, renew_s: float = RENEW_S) -> None:
        self.store = store
        self._renew_s = renew_s
        self._open: WeakValueDictionary[str, Hold] = WeakValueDictionary()
        self._queue: deque[Settlement] = deque()
        self._tried: dict[str, float] = {}
        self._work = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._is_away = False

    def new(self, tenant: str, counters: tuple[LimitCounter, ...]) -> Hold:
        """A hold that has reserved nothing yet."""
        return Hold(self, Held(new_id("hold"), tenant, counters))

    def begin(self, hold: Hold) -> None:
        """The call goes on from here until the hold is settled."""
        if any(counter.dimension == "concurrent" for counter in hold.held.counters):
            self._open[hold.held.id] = hold

    def end(self, settlement: Settlement) -> None:
        """Settle soon. The oldest of too many that wait is given up."""
        self._open.pop(settlement.held.id, None)
        if len(self._queue) >= _MOST_QUEUED:
            self._tried.pop(self._queue.popleft().held.id, None)
            telemetry.limits_unsettled_total.inc()
        self._queue.append(settlement)
        self._work.set()

    async def run(self) -> None:
        """Settle and renew, for ever."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(renewed + self._renew_s):
                    await self._work.wait()
            try:
                if (now := loop.time()) >= renewed + self._renew_s:
                    await self._renew()
                    renewed = now
                await self._flush()
            except LimitsAway as error:
                self._note(away=error)
                await asyncio.sleep(_AGAIN_S)
            else:
                self._note()

    @property
    def is_behind(self) -> bool:
        """Whether the store may not know yet that some calls are over."""
        return bool(self._queue) or self._one_at_a_time.locked()

    async def catch_up(self) -> None:
        """Settle what waits, if that is quick."""
        with suppress(LimitsAway, TimeoutError):
            async with within(_PATIENCE_S):
                await self._flush()

    async def drain(self) -> None:
        """Settle what waits; what cannot be settled in DRAIN_S is given up."""
        try:
            async with asyncio.timeout(DRAIN_S):
                while self.is_behind:
                    try:
                        await self._flush()
                    except LimitsAway:
                        await asyncio.sleep(_AGAIN_S / 2)
        except TimeoutError:
            telemetry.limits_unsettled_total.inc(len(self._queue))
            _log.warning("limits_not_settled", holds=len(self._queue))

    async def _flush(self) -> None:
        async with self._one_at_a_time:
            self._work.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                try:
                    await self.store.settle([self._as_sent(each) for each in batch])
                except BaseException:
                    # It may have been done: sent again it has no effect then.
                    self._queue.extendleft(reversed(batch))
                    self._work.set()
                    raise
                for each in batch:
                    self._tried.pop(each.held.id, None)

    def _as_sent(self, settlement: Settlement) -> Settlement:
        """As it is, unless the store may have had it so long ago that it would not recognise it."""
        now = time.monotonic()
        first = self._tried.setdefault(settlement.held.id, now)
        return settlement if now - first < _SURE_S else replace(settlement, charge_unknown=False)

    async def _renew(self) -> None:
        if holds := [hold.held for hold in self._open.values()]:
            await self.store.renew(holds)

    def _note(self, away: LimitsAway | None = None) -> None:
        """Say once that the store went away, and once that it is back."""
        if self._is_away != (away is not None):
            self._is_away = away is not None
            if away is not None:
                _log.warning("limits_away", detail=str(away), waiting=len(self._queue))
            else:
                _log.info("limits_back")


class Limiter:
    """Lets calls begin that are within the limits of one version of the settings.

    ``without_store`` says what becomes of the others' calls while the store is
    away.
    """

    def __init__(
        self,
        holds: Holds,
        limits: Sequence[LimitSettings],
        *,
        without_store: Literal["refuse", "allow"] = "refuse",
    ) -> None:
        self._holds = holds
        self._without_store = without_store
        self._limits = {limit.name: limit for limit in limits}
        rules = [Rule(limit) for limit in limits]

        @lru_cache(maxsize=_REMEMBERED)
        def counters(caller: Caller, target: str) -> tuple[LimitCounter, ...]:
            return tuple(counter for rule in rules for counter in rule.counters(caller, target))

        self._counters = counters

    def applies(self, caller: Caller, target: str) -> bool:
        """Whether any limit applies; ``target`` is `provider/model`."""
        return bool(self._limits) and bool(self._counters(caller, target))

    async def reserve(self, caller: Caller, target: str, estimate: Estimate) -> Hold:
        """Take what the call will probably use from all limits that apply, or nothing.

        Raises ResourceExhausted (QUOTA_EXCEEDED, when to come again),
        FailedPrecondition (PRICE_UNKNOWN) where money is limited, and
        Unavailable("redis") where the settings refuse calls without the store.
        """
        counters = self._counters(caller, target) if self._limits else ()
        if not counters:
            return _NOTHING
        amounts = [amount(counter, target, estimate) for counter in counters]
        hold = self._holds.new(caller.tenant, counters)
        try:
            was_behind = self._holds.is_behind
            refusal = await self._holds.store.reserve(hold.held, amounts)
            if refusal is not None and was_behind:
                # What a call that is over gives back must be there for the next one of its caller.
                await self._holds.catch_up()
                refusal = await self._holds.store.reserve(hold.held, amounts)
        except LimitsAway:
            if self._without_store == "refuse":
                hold.refund()
                raise Unavailable("redis", "limits cannot be checked while redis is away") from None
            telemetry.limits_unchecked_total.inc()
        except BaseException:
            # It may have been taken, or will be.
            hold.refund()
            raise
        else:
            if refusal is not None:
                raise self._refused(caller, target, refusal)
        self._holds.begin(hold)
        return hold

    def _refused(self, caller: Caller, target: str, refusal: LimitRefusal) -> ResourceExhausted:
        counter = refusal.counter
        limit = self._limits[counter.rule]
        metrics.admission_rejected.labels(SERVICE, f"limit_{counter.dimension}").inc()
        allowed = words(limit, counter)
        whose = [f"tenant:{caller.tenant}"]
        whose += [f"subject:{caller.subject}"] if "subject" in limit.per else []
        whose += [f"model:{target}"] if "model" in limit.per else []
        return ResourceExhausted(
            "QUOTA_EXCEEDED",
            f"limit '{limit.name}' is exhausted: {allowed}",
            {"limit": limit.name, "dimension": counter.dimension},
            refusal.retry_after,
            (" ".join(whose), allowed),
        )
