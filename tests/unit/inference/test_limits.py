"""Which limits apply to a call and what they count; the counters themselves are tested on a real server."""

import pytest
from pydantic import SecretStr

from janus_inference.adapters.redis_limits import RedisLimits
from janus_inference.events import Usage
from janus_inference.limit_rules import Rule, amount
from janus_inference.limits import Estimate, Holds, Limiter
from janus_inference.model import Caller
from janus_inference.settings import LimitSettings
from janus_kit.errors import FailedPrecondition
from janus_kit.redis import redis
from janus_kit.settings import RedisSettings

ADA = Caller("acme", "ada")
NOWHERE = RedisSettings(url=SecretStr("redis://127.0.0.1:1"))


def ids(limit: LimitSettings, caller: Caller = ADA, target: str = "openai/gpt-5") -> list[str]:
    return [counter.id for counter in Rule(limit).counters(caller, target)]


def test_a_limit_without_filters_applies_to_every_call():
    assert ids(LimitSettings(name="all", requests_per_minute=1)) == ["all:requests"]


@pytest.mark.parametrize(
    ("filters", "applies"),
    [
        ({"tenants": ("acme",)}, True),
        ({"tenants": ("globex", "acme")}, True),
        ({"tenants": ("acm",)}, False),
        ({"tenants": ("ac*",)}, True),
        ({"subjects": ("ada",)}, True),
        ({"subjects": ("bob",)}, False),
        ({"models": ("openai/*",)}, True),
        ({"models": ("*/gpt-5",)}, True),
        ({"models": ("openai/gpt-*-mini",)}, False),
        ({"models": ("openai/gpt.5",)}, False),
        ({"models": ("anthropic/*", "*")}, True),
        ({"tenants": ("acme",), "subjects": ("bob",)}, False),
        ({"tenants": ("acme",), "subjects": ("ada",), "models": ("openai/gpt-5",)}, True),
    ],
)
def test_a_limit_applies_when_all_of_its_filters_fit(filters, applies):
    assert bool(ids(LimitSettings(name="some", concurrent=1, **filters))) is applies


def test_a_star_stands_for_any_characters_and_everything_else_for_itself():
    limit = LimitSettings(name="odd", concurrent=1, models=("lab/(a|b)+*[x]",))
    assert ids(limit, target="lab/(a|b)+ and\nmore[x]")
    assert not ids(limit, target="lab/aax")


def test_a_limit_has_a_counter_for_each_thing_that_it_names():
    limit = LimitSettings(
        name="much", requests_per_minute=2, tokens_per_minute=30, concurrent=4, spend_usd=5.5, spend_window="month"
    )
    counters = Rule(limit).counters(ADA, "openai/gpt-5")
    assert [(each.dimension, each.limit) for each in counters] == [
        ("requests", 2),
        ("tokens", 30),
        ("concurrent", 4),
        ("spend", 5_500_000),
    ]
    assert counters[3].id == "much:spend-month"
    assert counters[3].window == "month"


def test_counters_are_shared_unless_they_are_per_subject_or_model():
    bob = Caller("acme", "bob")
    assert ids(LimitSettings(name="a", concurrent=1)) == ids(LimitSettings(name="a", concurrent=1), bob, "x/y")
    per_subject = LimitSettings(name="a", concurrent=1, per=("subject",))
    assert ids(per_subject) != ids(per_subject, bob)
    assert ids(per_subject) == ids(per_subject, target="x/y")
    per_model = LimitSettings(name="a", concurrent=1, per=("model",))
    assert ids(per_model) == ids(per_model, bob)
    assert ids(per_model) != ids(per_model, target="x/y")
    assert ids(LimitSettings(name="a", concurrent=1, per=("model", "subject"))) == ids(
        LimitSettings(name="a", concurrent=1, per=("subject", "model"))
    )


def test_a_subject_cannot_be_named_so_that_it_shares_another_ones_counter():
    limit = LimitSettings(name="a", concurrent=1, per=("subject", "model"))
    assert ids(limit, Caller("acme", "ada:m"), "x/y") != ids(limit, Caller("acme", "ada"), "m:x/y")
    assert ids(limit, Caller("acme", "ada\0x"), "y") != ids(limit, Caller("acme", "ada"), "x\0y")


def test_tokens_are_input_and_output_together():
    limit = LimitSettings(name="a", requests_per_minute=1, tokens_per_minute=9, concurrent=1, spend_usd=1)
    counters = Rule(limit).counters(ADA, "openai/gpt-5")
    assert [amount(each, "openai/gpt-5", Estimate(10, 5, 77)) for each in counters] == [1, 15, 1, 77]


async def test_money_cannot_be_limited_where_the_price_is_unknown():
    limits = [LimitSettings(name="calls", requests_per_minute=9), LimitSettings(name="budget", spend_usd=1)]
    async with redis(NOWHERE) as client:
        limiter = Limiter(Holds(RedisLimits(client)), limits)
        with pytest.raises(FailedPrecondition) as raised:
            await limiter.reserve(ADA, "local/llama", Estimate(1, 1, None))
    assert raised.value.reason == "PRICE_UNKNOWN"
    assert raised.value.metadata == {"model": "local/llama", "limit": "budget"}


async def test_a_call_that_no_limit_applies_to_needs_no_redis():
    limit = LimitSettings(name="others", tenants=("globex",), requests_per_minute=1)
    async with redis(NOWHERE) as client:
        holds = Holds(RedisLimits(client))
        for limiter in (Limiter(holds, []), Limiter(holds, [limit])):
            assert not limiter.applies(ADA, "openai/gpt-5")
            first = await limiter.reserve(ADA, "openai/gpt-5", Estimate(1, 1, None))
            second = await limiter.reserve(ADA, "openai/gpt-5", Estimate(1, 1, None))
            assert first is second
            first.settle(Usage(1), None)
            second.refund()
        assert Limiter(holds, [limit]).applies(Caller("globex", "ada"), "openai/gpt-5")
        assert not holds.is_behind
