"""Limits on a real Valkey: what is let through, what is given back, and what happens while it is away."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from tests.fakes.tcp_proxy import TcpProxy

from janus_inference.adapters.redis_limits import SCRIPT, RedisLimits
from janus_inference.events import Cost, Usage
from janus_inference.limits import Estimate, Hold, Holds, Limiter
from janus_inference.model import Caller
from janus_inference.settings import LimitSettings
from janus_kit.errors import ResourceExhausted, Unavailable
from janus_kit.redis import RedisClient, key, redis
from janus_kit.settings import RedisSettings

TARGET = "openai/gpt-5"
SMALL = Estimate(1, 1, 1)
USED = Usage(input_uncached_tokens=1, output_tokens=1)
# How long a machine that is busy may stand still, where what is counted matters and not when.
PATIENT_S = 30.0
# The packaged script with a clock that a test sets.
CLOCK = SCRIPT.replace("redis.call('TIME')", "{ redis.call('GET', 'test:now'), '0' }")


@pytest.fixture
def caller() -> Caller:
    """Of a tenant whose counters nobody has touched."""
    return Caller(f"acme-{uuid.uuid4().hex[:8]}", "ada")


class Replica:
    """One process's share of limiting, with a client of its own."""

    def __init__(self, client: RedisClient, holds: Holds) -> None:
        self.client = client
        self.holds = holds

    def limiter(self, *limits: LimitSettings, **options) -> Limiter:
        return Limiter(self.holds, limits, **options)

    async def set_clock(self, seconds: int) -> None:
        await self.client.set("test:now", seconds)


@asynccontextmanager
async def replica(
    url: str, *, runs: bool = True, renew_s: float = 5.0, timeout_s: float = PATIENT_S, **store
) -> AsyncIterator[Replica]:
    async with redis(RedisSettings(url=SecretStr(url))) as client:
        holds = Holds(RedisLimits(client, timeout_s=timeout_s, **store), renew_s=renew_s)
        task = asyncio.create_task(holds.run()) if runs else None
        try:
            yield Replica(client, holds)
        finally:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def refusal(limiter: Limiter, caller: Caller, estimate: Estimate = SMALL) -> ResourceExhausted:
    with pytest.raises(ResourceExhausted) as raised:
        await limiter.reserve(caller, TARGET, estimate)
    return raised.value


async def eventually_reserved(limiter: Limiter, caller: Caller, estimate: Estimate = SMALL) -> Hold:
    """Ask until there is room; the test's own time limit ends it."""
    while True:
        with suppress(ResourceExhausted, Unavailable):
            return await limiter.reserve(caller, TARGET, estimate)
        await asyncio.sleep(0.02)


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Return once it holds; the test's own time limit ends it."""
    while True:
        if await check():
            return
        await asyncio.sleep(0.01)


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_refusal_names_the_limit_and_when_to_come_again(redis_url, caller):
    rejected = {"service": "janus.inference.v1.InferenceService", "reason": "limit_requests"}
    before = count("janus_admission_rejected_total", **rejected)
    async with replica(redis_url, script=CLOCK) as here:
        await here.set_clock(1_900_000_000)
        limiter = here.limiter(LimitSettings(name="calls", requests_per_minute=3, per=("subject",)))
        for _ in range(3):
            await limiter.reserve(caller, TARGET, SMALL)
        error = await refusal(limiter, caller)
        assert error.reason == "QUOTA_EXCEEDED"
        assert error.metadata == {"limit": "calls", "dimension": "requests"}
        assert error.retry_after == 20.0
        assert error.quota == (f"tenant:{caller.tenant} subject:ada", "3 requests a minute")
        assert "'calls'" in error.message
        await here.set_clock(1_900_000_019)
        assert (await refusal(limiter, caller)).retry_after == 1.0
        await here.set_clock(1_900_000_020)
        await limiter.reserve(caller, TARGET, SMALL)
    assert count("janus_admission_rejected_total", **rejected) == before + 2


async def test_a_refund_gives_the_request_back(redis_url, caller):
    async with replica(redis_url) as here:
        limiter = here.limiter(LimitSettings(name="calls", requests_per_minute=1))
        for _ in range(20):
            (await limiter.reserve(caller, TARGET, SMALL)).refund()
        (await limiter.reserve(caller, TARGET, SMALL)).settle(USED, None)
        assert (await refusal(limiter, caller)).metadata["dimension"] == "requests"


async def test_unused_tokens_come_back_and_overuse_is_a_debt(redis_url, caller):
    async with replica(redis_url, script=CLOCK) as here:
        await here.set_clock(1_900_000_000)
        limiter = here.limiter(LimitSettings(name="tokens", tokens_per_minute=600))
        hold = await limiter.reserve(caller, TARGET, Estimate(100, 500, None))
        # All 600 are taken; 10 drain in a second.
        assert (await refusal(limiter, caller, Estimate(10, 0, None))).retry_after == 1.0
        hold.settle(
            Usage(input_uncached_tokens=60, cache_read_tokens=40, output_tokens=200, reasoning_tokens=150), None
        )
        over = await limiter.reserve(caller, TARGET, Estimate(100, 200, None))
        over.settle(Usage(input_uncached_tokens=100, output_tokens=1100), None)
        await here.holds.drain()
        # 300 + 1200 are used of 600: nothing fits until 900 have drained, and as many as are asked for.
        assert (await refusal(limiter, caller, Estimate(60, 0, None))).retry_after == 96.0
        await here.set_clock(1_900_000_095)
        assert (await refusal(limiter, caller, Estimate(60, 0, None))).retry_after == 1.0
        await here.set_clock(1_900_000_096)
        await limiter.reserve(caller, TARGET, Estimate(60, 0, None))


async def test_a_call_larger_than_the_whole_limit_is_let_through_when_nothing_else_is_used(redis_url, caller):
    async with replica(redis_url, script=CLOCK) as here:
        await here.set_clock(1_900_000_000)
        limiter = here.limiter(LimitSettings(name="small", tokens_per_minute=100, spend_usd=0.01))
        huge = Estimate(10_000, 10_000, 5_000_000)
        hold = await limiter.reserve(caller, TARGET, huge)
        hold.settle(Usage(input_uncached_tokens=50, output_tokens=350), Cost(4_000, "v1"))
        await here.holds.drain()
        assert (await refusal(limiter, caller, Estimate(1, 0, 1))).retry_after == pytest.approx(180.6)


@pytest.mark.parametrize(
    ("window", "now", "ends"),
    [
        ("hour", "2027-03-01T09:59:30", "2027-03-01T10:00:00"),
        ("day", "2027-12-31T00:00:00", "2028-01-01T00:00:00"),
        ("month", "2028-02-28T12:00:00", "2028-03-01T00:00:00"),
        ("month", "2027-02-28T23:59:59", "2027-03-01T00:00:00"),
        ("month", "2027-12-01T00:00:00", "2028-01-01T00:00:00"),
        ("month", "2100-02-28T23:59:59", "2100-03-01T00:00:00"),
    ],
)
async def test_money_is_counted_in_calendar_windows(redis_url, caller, window, now, ends):
    began, end = (int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) for text in (now, ends))
    async with replica(redis_url, script=CLOCK) as here:
        await here.set_clock(began)
        limiter = here.limiter(LimitSettings(name="budget", spend_usd=1, spend_window=window))
        kept = await limiter.reserve(caller, TARGET, Estimate(1, 1, 300_000))
        kept.settle(USED, None)  # the price of what was used is unknown: what was reserved stays
        spent = await limiter.reserve(caller, TARGET, Estimate(1, 1, 700_000))
        error = await refusal(limiter, caller, Estimate(1, 1, 1))
        assert error.retry_after == end - began
        assert error.metadata == {"limit": "budget", "dimension": "spend"}
        spent.settle(USED, Cost(600_000, "v1"))
        late = await limiter.reserve(caller, TARGET, Estimate(1, 1, 100_000))
        await refusal(limiter, caller, Estimate(1, 1, 1))
        await here.set_clock(end - 1)
        await refusal(limiter, caller, Estimate(1, 1, 1))
        await here.set_clock(end)
        # A call's money belongs to the window in which it began.
        late.settle(USED, Cost(900_000, "v1"))
        await here.holds.drain()
        await limiter.reserve(caller, TARGET, Estimate(1, 1, 1_000_000))


async def test_what_costs_nothing_is_let_through_when_the_money_is_spent(redis_url, caller):
    async with replica(redis_url) as here:
        limiter = here.limiter(LimitSettings(name="budget", spend_usd=0.5, spend_window="month"))
        hold = await limiter.reserve(caller, TARGET, Estimate(1, 1, 500_000))
        hold.settle(USED, Cost(700_000, "v1"))
        await here.holds.drain()
        await refusal(limiter, caller, Estimate(1, 1, 1))
        await limiter.reserve(caller, TARGET, Estimate(1, 1, 0))


async def test_a_slot_is_free_for_the_next_call_as_soon_as_its_call_is_over(redis_url, caller):
    async with replica(redis_url) as here:
        limiter = here.limiter(LimitSettings(name="one", concurrent=1))
        for _ in range(100):
            hold = await limiter.reserve(caller, TARGET, SMALL)
            hold.settle(USED, None)
        hold = await limiter.reserve(caller, TARGET, SMALL)
        error = await refusal(limiter, caller)
        assert error.metadata["dimension"] == "concurrent"
        assert error.retry_after is not None
        assert error.retry_after > 0
        hold.refund()
        await limiter.reserve(caller, TARGET, SMALL)


async def test_a_long_call_keeps_its_slot_and_one_of_a_process_that_stopped_loses_it(redis_url, caller):
    limit = LimitSettings(name="one", concurrent=1)
    stopped = Caller(caller.tenant + "-stopped", "ada")
    async with (
        replica(redis_url, script=CLOCK, renew_s=0.02) as alive,
        replica(redis_url, script=CLOCK, runs=False) as dead,
    ):
        await alive.set_clock(1_900_000_000)
        kept = await alive.limiter(limit).reserve(caller, TARGET, SMALL)
        lost = await dead.limiter(limit).reserve(stopped, TARGET, SMALL)
        slots = key(caller.tenant, "limit", "one:concurrent")
        now = 1_900_000_000

        async def is_renewed() -> bool:
            return await alive.client.zscore(slots, kept.held.id) == (now + 15) * 1000

        for _ in range(9):
            now += 10
            await alive.set_clock(now)
            await until(is_renewed)
        await refusal(alive.limiter(limit), caller)
        again = await alive.limiter(limit).reserve(stopped, TARGET, SMALL)
        # Its end comes late and changes nothing for the one that has the slot now.
        lost.settle(USED, None)
        await dead.holds.drain()
        await refusal(alive.limiter(limit), stopped)
        again.settle(USED, None)
        kept.settle(USED, None)
        await alive.holds.drain()
        assert await alive.client.zcard(slots) == 0


HOLDER = """
import asyncio, sys
from pydantic import SecretStr
from janus_inference.adapters.redis_limits import RedisLimits
from janus_inference.limits import Estimate, Holds, Limiter
from janus_inference.model import Caller
from janus_inference.settings import LimitSettings
from janus_kit.redis import redis
from janus_kit.settings import RedisSettings

async def main():
    async with redis(RedisSettings(url=SecretStr(sys.argv[1]))) as client:
        holds = Holds(RedisLimits(client, lease_s=0.5), renew_s=0.1)
        task = asyncio.create_task(holds.run())
        limiter = Limiter(holds, [LimitSettings(name="two", concurrent=2)])
        kept = [await limiter.reserve(Caller(sys.argv[2], "ada"), "openai/gpt-5", Estimate(1, 1, 1)) for _ in "ab"]
        print("held", flush=True)
        await task

asyncio.run(main())
"""


async def test_the_slots_of_a_killed_process_come_back(redis_url, caller):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, redis_url, caller.tenant, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with replica(redis_url) as here, asyncio.timeout(60):
            assert process.stdout is not None
            assert await process.stdout.readline() == b"held\n"
            limiter = here.limiter(LimitSettings(name="two", concurrent=2))
            await refusal(limiter, caller)
            process.kill()
            await process.wait()
            for _ in range(2):
                await eventually_reserved(limiter, caller)
            await refusal(limiter, caller)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_call_takes_from_all_of_its_limits_or_from_none(redis_url, caller):
    everything = {"requests_per_minute": 100, "tokens_per_minute": 1000, "concurrent": 10, "spend_usd": 1}
    async with replica(redis_url) as here:
        wide = LimitSettings(name="wide", **everything)
        narrow = LimitSettings(name="narrow", concurrent=1)
        both = here.limiter(wide, narrow)
        hold = await both.reserve(caller, TARGET, Estimate(100, 100, 1000))
        hold.settle(Usage(), Cost(1000, "v1"))
        await here.holds.drain()
        await both.reserve(caller, TARGET, Estimate(0, 0, 0))
        keys = [key(caller.tenant, "limit", f"wide:{each}") for each in ("requests", "tokens", "spend-day")]
        before = await here.client.mget(keys)
        for _ in range(5):
            assert (await refusal(both, caller, Estimate(100, 100, 1000))).metadata["limit"] == "narrow"
        assert await here.client.mget(keys) == before
        assert await here.client.zcard(key(caller.tenant, "limit", "wide:concurrent")) == 1


async def test_the_limit_that_takes_longest_to_have_room_is_named(redis_url, caller):
    async with replica(redis_url, script=CLOCK) as here:
        await here.set_clock(1_900_000_000)
        limiter = here.limiter(
            LimitSettings(name="fast", requests_per_minute=60),
            LimitSettings(name="slow", requests_per_minute=2),
            LimitSettings(name="one", concurrent=1),
        )
        for _ in range(2):
            (await limiter.reserve(caller, TARGET, SMALL)).settle(USED, None)
        error = await refusal(limiter, caller)
        assert (error.metadata["limit"], error.retry_after) == ("slow", 30.0)


async def test_replicas_share_counters_and_a_rush_never_goes_over_the_limit(redis_url, caller):
    limits = (
        LimitSettings(name="slots", concurrent=23),
        LimitSettings(name="calls", requests_per_minute=1000, tokens_per_minute=100_000, spend_usd=100),
    )
    async with replica(redis_url) as first, replica(redis_url) as second:
        limiters = [first.limiter(*limits), second.limiter(*limits)]
        tries = await asyncio.gather(
            *(limiters[number % 2].reserve(caller, TARGET, SMALL) for number in range(200)), return_exceptions=True
        )
        holds = [each for each in tries if isinstance(each, Hold)]
        assert len(holds) == 23
        assert all(isinstance(each, Hold | ResourceExhausted) for each in tries)
        assert await first.client.zcard(key(caller.tenant, "limit", "slots:concurrent")) == 23
        assert await first.client.get(key(caller.tenant, "limit", "calls:spend-day")) is not None
        for hold in holds:
            hold.refund()
        await asyncio.gather(first.holds.drain(), second.holds.drain())
        assert await first.client.zcard(key(caller.tenant, "limit", "slots:concurrent")) == 0
        assert not await first.client.exists(
            *(key(caller.tenant, "limit", f"calls:{each}") for each in ("requests", "tokens"))
        )
        spent = await first.client.get(key(caller.tenant, "limit", "calls:spend-day"))
        assert spent.split()[1] == b"0"


async def test_a_rush_through_a_bucket_takes_no_more_than_it_holds(redis_url, caller):
    async with replica(redis_url, script=CLOCK) as first, replica(redis_url, script=CLOCK) as second:
        await first.set_clock(1_900_000_000)
        limit = LimitSettings(name="rush", tokens_per_minute=1000, spend_usd=0.5)
        limiters = [first.limiter(limit), second.limiter(limit)]
        tries = await asyncio.gather(
            *(limiters[number % 2].reserve(caller, TARGET, Estimate(10, 20, 9_000)) for number in range(200)),
            return_exceptions=True,
        )
        assert sum(isinstance(each, Hold) for each in tries) == 33


async def test_tenants_subjects_and_models_have_counters_of_their_own(redis_url, caller):
    async with replica(redis_url) as here:
        limiter = here.limiter(LimitSettings(name="own", requests_per_minute=1, per=("subject", "model")))
        bob, elsewhere = Caller(caller.tenant, "bob"), Caller(caller.tenant + "-2", "ada")
        for who, target in ((caller, TARGET), (bob, TARGET), (elsewhere, TARGET), (caller, "openai/gpt-5-mini")):
            await limiter.reserve(who, target, SMALL)
            with pytest.raises(ResourceExhausted):
                await limiter.reserve(who, target, SMALL)


async def test_a_changed_limit_applies_at_once_and_calls_under_the_old_one_are_settled(redis_url, caller):
    async with replica(redis_url) as here:
        old = here.limiter(LimitSettings(name="slots", concurrent=1), LimitSettings(name="gone", concurrent=1))
        held = await old.reserve(caller, TARGET, SMALL)
        wider = here.limiter(LimitSettings(name="slots", concurrent=2))
        second = await wider.reserve(caller, TARGET, SMALL)
        await refusal(wider, caller)
        narrower = here.limiter(LimitSettings(name="slots", concurrent=1))
        held.settle(USED, None)
        await refusal(narrower, caller)
        second.settle(USED, None)
        await narrower.reserve(caller, TARGET, SMALL)
        assert await here.client.zcard(key(caller.tenant, "limit", "gone:concurrent")) == 0


async def test_a_hold_is_settled_once(redis_url, caller):
    async with replica(redis_url, script=CLOCK) as here:
        await here.set_clock(1_900_000_000)
        limiter = here.limiter(LimitSettings(name="tokens", tokens_per_minute=100))
        hold = await limiter.reserve(caller, TARGET, Estimate(40, 0, None))
        await limiter.reserve(caller, TARGET, Estimate(40, 0, None))
        hold.settle(Usage(input_uncached_tokens=10), None)
        hold.refund()
        hold.settle(Usage(input_uncached_tokens=90), None)
        await here.holds.drain()
        assert (await refusal(limiter, caller, Estimate(51, 0, None))).retry_after == 0.6
        await limiter.reserve(caller, TARGET, Estimate(50, 0, None))


async def test_calls_are_refused_while_redis_is_away_where_the_settings_say_so(redis_url, caller):
    proxy = TcpProxy.to(redis_url)
    try:
        async with replica(proxy.through(redis_url)) as here:
            limiter = here.limiter(LimitSettings(name="slots", concurrent=2))
            free = here.limiter(LimitSettings(name="slots", concurrent=2, tenants=("others",)))
            held = await limiter.reserve(caller, TARGET, SMALL)
            proxy.cut()
            with pytest.raises(Unavailable) as raised:
                await limiter.reserve(caller, TARGET, SMALL)
            assert raised.value.metadata == {"part": "redis"}
            assert raised.value.retry_after is not None
            (await free.reserve(caller, TARGET, SMALL)).settle(USED, None)
            held.settle(USED, None)
            proxy.mend()
            async with asyncio.timeout(30):
                for _ in range(2):
                    await eventually_reserved(limiter, caller)
            await refusal(limiter, caller)
    finally:
        proxy.close()


async def test_calls_go_on_uncounted_while_redis_is_away_where_that_is_allowed_and_are_charged_later(redis_url, caller):
    proxy = TcpProxy.to(redis_url)
    unchecked = count("janus_inference_limits_unchecked_total")
    try:
        async with replica(proxy.through(redis_url)) as here, redis(RedisSettings(url=SecretStr(redis_url))) as client:
            limit = LimitSettings(name="budget", requests_per_minute=1, spend_usd=1, spend_window="month")
            limiter = here.limiter(limit, without_store="allow")
            proxy.cut()
            for _ in range(3):
                hold = await limiter.reserve(caller, TARGET, Estimate(1, 1, 400_000))
                hold.settle(USED, Cost(400_000, "v1"))
            (await limiter.reserve(caller, TARGET, SMALL)).refund()
            assert count("janus_inference_limits_unchecked_total") == unchecked + 4
            proxy.mend()
            counter = key(caller.tenant, "limit", "budget:spend-month")

            async def is_charged() -> bool:
                return (await client.get(counter) or b"0 0").split()[1] == b"1200000"

            async with asyncio.timeout(30):
                await until(is_charged)
            assert (await refusal(limiter, caller)).metadata["dimension"] == "spend"
    finally:
        proxy.close()


async def test_a_redis_that_hangs_holds_a_call_no_longer_than_its_limit_and_loses_nothing(own_stack, caller):
    url = own_stack.addresses.redis_url
    limits = (LimitSettings(name="slots", concurrent=2), LimitSettings(name="budget", spend_usd=1))
    async with replica(url, timeout_s=0.2) as here, asyncio.timeout(60):
        limiter = here.limiter(*limits)
        allowing = here.limiter(*limits, without_store="allow")
        (await limiter.reserve(caller, TARGET, SMALL)).refund()
        await here.holds.drain()
        pid = own_stack.stack.process_ids["redis"]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable):
                await limiter.reserve(caller, TARGET, Estimate(1, 1, 300_000))
            gone = asyncio.create_task(limiter.reserve(caller, TARGET, Estimate(1, 1, 300_000)))
            await asyncio.sleep(0)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            unchecked = await allowing.reserve(caller, TARGET, Estimate(1, 1, 300_000))
        finally:
            os.kill(pid, signal.SIGCONT)
        unchecked.settle(USED, Cost(200_000, "v1"))
        # Those that were given up may have been taken by then: all of it comes back, but what was used.
        await eventually_reserved(limiter, caller, Estimate(1, 1, 800_000))
        assert (await refusal(limiter, caller, Estimate(1, 1, 1))).metadata["dimension"] == "spend"


async def test_a_rush_takes_few_connections_and_is_not_sent_to_a_redis_that_hangs(own_stack, caller):
    async with replica(own_stack.addresses.redis_url, runs=False, timeout_s=1) as here, asyncio.timeout(60):
        limiter = here.limiter(LimitSettings(name="calls", requests_per_minute=1000))
        await limiter.reserve(caller, TARGET, SMALL)
        connected = (await here.client.info("clients"))["connected_clients"]
        await asyncio.gather(*(limiter.reserve(caller, TARGET, SMALL) for _ in range(200)))
        assert (await here.client.info("clients"))["connected_clients"] - connected < 20

        async def asked() -> int:
            return (await here.client.info("commandstats"))["cmdstat_evalsha"]["calls"]

        before = await asked()
        pid = own_stack.stack.process_ids["redis"]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            rush = [limiter.reserve(caller, TARGET, SMALL) for _ in range(200)]
            tries = await asyncio.gather(*rush, return_exceptions=True)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert all(isinstance(each, Unavailable) for each in tries)
        assert await asked() - before < 40
        await limiter.reserve(caller, TARGET, SMALL)


async def test_counters_and_holds_outlive_a_killed_redis(own_stack, caller):
    async with replica(own_stack.addresses.redis_url) as here, asyncio.timeout(60):
        limiter = here.limiter(LimitSettings(name="budget", spend_usd=1, spend_window="month", concurrent=3))
        first = await limiter.reserve(caller, TARGET, Estimate(1, 1, 600_000))
        second = await limiter.reserve(caller, TARGET, Estimate(1, 1, 300_000))
        own_stack.kill("redis")
        first.settle(USED, Cost(100_000, "v1"))
        # 100,000 used, 300,000 reserved: so much is left once the first is settled, and no more.
        third = await eventually_reserved(limiter, caller, Estimate(1, 1, 600_000))
        assert (await refusal(limiter, caller, Estimate(1, 1, 1))).metadata["dimension"] == "spend"
        second.refund()
        await limiter.reserve(caller, TARGET, Estimate(1, 1, 300_000))
        third.refund()


async def test_a_redis_that_forgot_everything_learns_what_calls_used(own_stack, caller):
    async with replica(own_stack.addresses.redis_url, renew_s=0.02) as here:
        limiter = here.limiter(LimitSettings(name="all", concurrent=1, spend_usd=1, spend_window="month"))
        hold = await limiter.reserve(caller, TARGET, Estimate(1, 1, 900_000))
        await here.client.flushall()
        await here.client.script_flush()
        slots = key(caller.tenant, "limit", "all:concurrent")

        async def is_renewed() -> bool:
            return await here.client.zcard(slots) == 1

        async with asyncio.timeout(30):
            await until(is_renewed)
        assert (await refusal(limiter, caller)).metadata["dimension"] == "concurrent"
        hold.settle(USED, Cost(700_000, "v1"))
        await here.holds.drain()
        await refusal(limiter, caller, Estimate(1, 1, 300_001))
        await limiter.reserve(caller, TARGET, Estimate(1, 1, 300_000))
