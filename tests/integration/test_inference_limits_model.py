"""The limits' script against a plain model of it, with a clock that both are given."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from redis.asyncio import Redis

from janus_inference.adapters.redis_limits import SCRIPT, RedisLimits
from janus_inference.ports import Held, LimitCounter, Settlement
from janus_kit.ids import new_id
from janus_kit.redis import key

SLOTS, CALLS, TOKENS, MONEY = 3, 12, 240, 100
LEASE_S = 15
COUNTERS = (
    LimitCounter("a:concurrent", "a", "concurrent", SLOTS),
    LimitCounter("a:requests", "a", "requests", CALLS),
    LimitCounter("b:tokens", "b", "tokens", TOKENS),
    LimitCounter("b:spend-hour", "b", "spend", MONEY, "hour"),
)
CLOCKED = SCRIPT.replace("redis.call('TIME')", "{ redis.call('GET', 'test:now'), '0' }")
amounts = st.integers(0, 400)


@dataclass
class Taken:
    """What a hold has reserved, and when."""

    tokens: int
    money: int
    hour: datetime
    settled: bool = False


@dataclass
class Model:
    """The counters as one would write them down, times in whole seconds."""

    now: int
    calls: float = 0.0
    tokens: float = 0.0
    money: dict[datetime, int] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    holds: dict[str, Taken] = field(default_factory=dict)

    @property
    def hour(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC).replace(minute=0, second=0)

    @property
    def running(self) -> set[str]:
        return {hold for hold, ends in self.leases.items() if ends > self.now}

    def advance(self, seconds: int) -> None:
        self.now += seconds
        self.calls = max(0.0, self.calls - seconds * CALLS / 60)
        self.tokens = max(0.0, self.tokens - seconds * TOKENS / 60)

    def reserve(self, hold: str, tokens: int, money: int) -> dict[str, float]:
        """What has no room, by the seconds until it has; nothing when all of it was taken."""
        tokens, money = min(tokens, TOKENS), min(money, MONEY)
        full: dict[str, float] = {}
        if len(self.running) >= SLOTS:
            full["concurrent"] = 1.0
        if self.calls + 1 > CALLS + 1e-6:
            full["requests"] = (self.calls + 1 - CALLS) * 60 / CALLS
        if self.tokens + tokens > TOKENS + 1e-6:
            full["tokens"] = (self.tokens + tokens - TOKENS) * 60 / TOKENS
        if money and self.money.get(self.hour, 0) + money > MONEY:
            full["spend"] = 3600 - self.now % 3600
        if not full:
            self.calls += 1
            self.tokens += tokens
            self.money[self.hour] = self.money.get(self.hour, 0) + money
            self.leases[hold] = self.now + LEASE_S
            self.holds[hold] = Taken(tokens, money, self.hour)
        return full

    def settle(self, hold: str, calls: int, tokens: int, money: int | None) -> None:
        taken = self.holds[hold]
        if taken.settled:
            return
        taken.settled = True
        self.leases.pop(hold, None)
        self.calls = max(0.0, self.calls + calls - 1)
        self.tokens = max(0.0, self.tokens + tokens - taken.tokens)
        if money is not None and taken.hour == self.hour:
            self.money[self.hour] += money - taken.money

    def charge(self, tokens: int, money: int) -> None:
        self.calls += 1
        self.tokens += tokens
        self.money[self.hour] = self.money.get(self.hour, 0) + money


class Limits(RuleBasedStateMachine):
    """Any order of calls that begin, end, end twice, go on, are lost or were never known, as time passes."""

    url = ""
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.client = Redis.from_url(self.url)
        self.store = RedisLimits(self.client, timeout_s=30, lease_s=LEASE_S, script=CLOCKED)
        self.tenant = new_id("tenant")
        # A leap year's last minutes of February.
        self.model = Model(int(datetime(2028, 2, 29, 23, 58, tzinfo=UTC).timestamp()))
        self.pass_time(0)

    def teardown(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()

    @rule(seconds=st.integers(0, 40) | st.just(3600))
    def pass_time(self, seconds: int) -> None:
        self.model.advance(seconds)
        self.runner.run(self.client.set("test:now", self.model.now))

    @rule(target=held, tokens=amounts, money=st.integers(0, 150))
    def begin(self, tokens: int, money: int):
        hold = Held(new_id("hold"), self.tenant, COUNTERS)
        full = self.model.reserve(hold.id, tokens, money)
        refusal = self.runner.run(self.store.reserve(hold, (1, 1, tokens, money)))
        if not full:
            assert refusal is None
            return hold
        assert refusal is not None
        assert refusal.retry_after == pytest.approx(max(full.values()), abs=0.002)
        assert refusal.retry_after == pytest.approx(full[refusal.counter.dimension], abs=0.002)
        return multiple()

    @rule(hold=held, tokens=amounts)
    def begin_again(self, hold: Held, tokens: int) -> None:
        """An answer got lost and the same is asked again: no effect, whatever became of the hold."""
        assert self.runner.run(self.store.reserve(hold, (1, 1, tokens, 10))) is None

    @rule(hold=held, tokens=amounts, money=st.none() | st.integers(0, 150))
    def end(self, hold: Held, tokens: int, money: int | None) -> None:
        self.model.settle(hold.id, 1, tokens, money)
        self.runner.run(self.store.settle([Settlement(hold, (0, 1, tokens, money))]))

    @rule(hold=held)
    def give_back(self, hold: Held) -> None:
        self.model.settle(hold.id, 0, 0, 0)
        self.runner.run(self.store.settle([Settlement(hold, (0, 0, 0, 0))]))

    @rule(hold=held)
    def go_on(self, hold: Held) -> None:
        if not self.model.holds[hold.id].settled:
            self.model.leases[hold.id] = self.model.now + LEASE_S
        self.runner.run(self.store.renew([hold]))

    @rule(tokens=amounts, money=st.integers(0, 150), charge=st.booleans())
    def end_unknown(self, tokens: int, money: int, charge: bool) -> None:
        hold = Held(new_id("hold"), self.tenant, COUNTERS)
        if charge:
            self.model.charge(tokens, money)
        self.runner.run(self.store.settle([Settlement(hold, (0, 1, tokens, money), charge_unknown=charge)]))
        # A reserve that the settlement overtook takes nothing any more.
        assert self.runner.run(self.store.reserve(hold, (1, 1, tokens, money))) is None

    @invariant()
    def counters_are_as_they_should_be(self) -> None:
        slots, calls, tokens, money = self.runner.run(self._counters())
        assert slots == self.model.running
        assert calls == pytest.approx(self.model.calls, abs=1e-6)
        assert tokens == pytest.approx(self.model.tokens, abs=1e-6)
        assert money == self.model.money.get(self.model.hour, 0)

    async def _counters(self) -> tuple[set[str], float, float, int]:
        slots, *others = (key(self.tenant, "limit", counter.id) for counter in COUNTERS)
        running = await self.client.zrangebyscore(slots, f"({self.model.now * 1000}", "+inf")
        calls, tokens, money = [(await self.client.get(each) or b"0 0").split() for each in others]
        hour = self.model.now // 3600
        return (
            {each.decode() for each in running},
            self._now(calls, CALLS),
            self._now(tokens, TOKENS),
            int(money[1]) if int(money[0]) == hour else 0,
        )

    def _now(self, stored: list[bytes], limit: int) -> float:
        used, at = map(float, stored)
        return max(0.0, used - (self.model.now - at / 1e6) * limit / 60) if at else 0.0


def test_the_script_counts_as_the_model_does(redis_url):
    assert CLOCKED != SCRIPT, "the script asks for the time in other words"
    machine = type("LimitsOnServer", (Limits,), {"url": redis_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
