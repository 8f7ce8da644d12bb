"""Metrics of inference, as a scrape sees them."""

import time
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Histogram, generate_latest
from tests.fakes.providers.setups import CALLER, Stores, events_of, prompt
from tests.fakes.providers.told import STOP, falling_silent, telling

from janus_inference import telemetry
from janus_inference.asking import Watch
from janus_inference.breakers import BreakerRules, Breakers
from janus_inference.events import Failed, ProviderEvent, Started, TextDelta, Usage, UsageUpdated
from janus_inference.model import CachePolicy, Routing
from janus_inference.prices import PriceTable
from janus_inference.provider_errors import Refused, broken, classify, unreachable
from janus_inference.retry_budget import RetryBudget
from janus_inference.routing import Alias
from janus_inference.settings import InferenceSettings, RoutingSettings
from janus_inference.telemetry import Attempt, Naming, Peer
from janus_inference.telemetry.counted_histogram import CountedHistogram
from janus_kit.clock import SystemClock
from janus_kit.errors import JanusError
from janus_kit.telemetry import names

OVERLOADED = classify("one", "fake", Refused(529))
ANSWER: list[Sequence[ProviderEvent]] = [
    [TextDelta(0, "a")],
    [TextDelta(0, "b")],
    [TextDelta(0, "c")],
    [UsageUpdated(Usage(6, cache_read_tokens=3, cache_write_tokens=1, output_tokens=5, reasoning_tokens=2)), STOP],
]
CALL = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "openai",
    "gen_ai_request_model": "gpt-5-mini",
}


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Rise:
    """How much samples have risen since this was made."""

    def __init__(self) -> None:
        self._before = self._all()

    def __call__(self, name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return self._all().get(key, 0.0) - self._before.get(key, 0.0)

    @staticmethod
    def _all() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in REGISTRY.collect()
            for sample in family.samples
        }


@pytest.fixture
def rise() -> Rise:
    return Rise()


async def test_an_answer_is_counted_as_a_call_to_its_provider_and_as_one_of_its_caller(
    stores: Stores, rise: Rise
) -> None:
    using = stores.generation({"openai": telling(*ANSWER)}, openai_api_key="key")
    await events_of(using, prompt(model="openai/gpt-5-mini"))
    assert rise("gen_ai_client_operation_duration_seconds_count", **CALL, error_type="") == 1
    assert rise("gen_ai_client_operation_time_to_first_chunk_seconds_count", **CALL) == 1
    assert rise("gen_ai_client_operation_time_per_output_chunk_seconds_count", **CALL) == 3
    assert rise("gen_ai_client_token_usage_sum", **CALL, gen_ai_token_type="input") == 10
    assert rise("gen_ai_client_token_usage_sum", **CALL, gen_ai_token_type="output") == 5
    assert rise("gen_ai_server_request_duration_seconds_count", **CALL, error_type="") == 1
    assert rise("gen_ai_server_time_to_first_token_seconds_count", **CALL) == 1
    assert rise("gen_ai_server_time_per_output_token_seconds_count", **CALL) == 1
    assert rise("janus_inference_attempts_total", provider="openai", outcome="ok") == 1
    assert rise("janus_inference_overhead_seconds_count", dialect="told") == 1
    assert rise("janus_inference_streams_in_flight", provider="openai") == 0
    usage = {**CALL, "gen_ai_token_modality": "unknown"}
    assert rise("gen_ai_client_inference_usage_input_tokens_total", **usage) == 0


async def test_a_unary_call_has_no_first_token_of_its_own(stores: Stores, rise: Rise) -> None:
    using = stores.generation({"openai": telling(*ANSWER)}, openai_api_key="key")
    await using.answer(prompt(model="openai/gpt-5-mini"), CALLER)
    assert rise("gen_ai_server_request_duration_seconds_count", **CALL, error_type="") == 1
    assert rise("gen_ai_server_time_to_first_token_seconds_count", **CALL) == 0


async def test_tokens_are_counted_under_their_coming_names_where_that_is_wanted(stores: Stores, rise: Rise) -> None:
    using = stores.generation({"openai": telling(*ANSWER)}, openai_api_key="key", usage_counters=True)
    await events_of(using, prompt(model="openai/gpt-5-mini"))
    labels = {**CALL, "gen_ai_token_modality": "unknown"}
    counted = {
        kind: rise(f"gen_ai_client_inference_usage_{kind}_tokens_total", **labels)
        for kind in ("input", "output", "cache_read_input", "cache_write_input", "reasoning_output")
    }
    assert counted == {
        "input": 10,
        "output": 5,
        "cache_read_input": 3,
        "cache_write_input": 1,
        "reasoning_output": 2,
    }


async def test_a_call_with_retries_is_one_call_to_its_caller_and_several_to_providers(
    stores: Stores, rise: Rise
) -> None:
    providers = {"one": telling(OVERLOADED), "two": telling(*ANSWER)}
    using = stores.generation(providers, routing=RoutingSettings(backoff_s=0.001))
    await events_of(using, prompt(model="one/fake", routing=Routing(("two/fake",))))
    one = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "one", "gen_ai_request_model": "_OTHER"}
    two = {**one, "gen_ai_provider_name": "two"}
    assert rise("gen_ai_client_operation_duration_seconds_count", **one, error_type="unavailable") == 1
    assert rise("gen_ai_client_operation_duration_seconds_count", **two, error_type="") == 1
    assert rise("gen_ai_server_request_duration_seconds_count", **two, error_type="") == 1
    assert rise("gen_ai_server_request_duration_seconds_count", **one, error_type="") == 0
    assert rise("janus_inference_overhead_seconds_count", dialect="told") == 1
    assert rise("janus_inference_fallbacks_total", provider="two", reason="PROVIDER_UNAVAILABLE") == 1
    assert rise("janus_inference_retries_total", provider="one", reason="PROVIDER_UNAVAILABLE") == 0


async def test_a_call_that_fails_says_why_with_a_reason_of_janus(stores: Stores, rise: Rise) -> None:
    with pytest.raises(JanusError):
        await stores.generation(
            {"one": telling(OVERLOADED)}, routing=RoutingSettings(max_attempts=3, backoff_s=0)
        ).answer(prompt(model="one/fake"), CALLER)
    labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "one", "gen_ai_request_model": "_OTHER"}
    reason = "PROVIDER_UNAVAILABLE"
    assert rise("gen_ai_server_request_duration_seconds_count", **labels, error_type=reason) == 1
    assert rise("janus_inference_retries_total", provider="one", reason=reason) == 2
    assert rise("janus_inference_attempts_total", provider="one", outcome="unavailable") == 3


async def test_half_an_answer_is_counted_as_truncated_and_failed(stores: Stores, rise: Rise) -> None:
    provider = telling([TextDelta(0, "half")], broken("upstream", "cut"))
    events = await events_of(stores.generation(provider), prompt())
    assert isinstance(events[-1], Failed)
    labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "upstream", "gen_ai_request_model": "_OTHER"}
    reason = "PROVIDER_STREAM_BROKEN"
    assert rise("janus_inference_streams_truncated_total", provider="upstream") == 1
    assert rise("gen_ai_server_request_duration_seconds_count", **labels, error_type=reason) == 1
    assert rise("gen_ai_server_time_to_first_token_seconds_count", **labels) == 0


async def test_a_stream_is_in_flight_until_its_caller_leaves(stores: Stores, rise: Rise) -> None:
    using = stores.generation(falling_silent([TextDelta(0, "half")]))
    async with aclosing(using.run(prompt(), CALLER)) as events:
        while not isinstance((await anext(events)).event, TextDelta):
            pass
        assert rise("janus_inference_streams_in_flight", provider="upstream") == 1
    labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "upstream", "gen_ai_request_model": "_OTHER"}
    assert rise("janus_inference_streams_in_flight", provider="upstream") == 0
    assert rise("janus_inference_upstream_cancel_seconds_count", provider="upstream") == 1
    assert rise("janus_inference_attempts_total", provider="upstream", outcome="cancelled") == 1
    assert rise("gen_ai_server_request_duration_seconds_count", **labels, error_type="") == 1


async def test_hedges_are_counted(stores: Stores, rise: Rise) -> None:
    alias = Alias((("one/fake", 0), ("two/fake", 0)), hedge_after=0.001)
    providers = {"one": falling_silent(), "two": telling(*ANSWER)}
    await events_of(
        stores.generation(providers, aliases={"sure": alias}, routing=RoutingSettings()), prompt(model="sure")
    )
    assert rise("janus_inference_hedges_total", provider="two") == 1
    assert rise("janus_inference_fallbacks_total", provider="two", reason="HEDGED") == 1
    assert rise("janus_inference_upstream_cancel_seconds_count", provider="one") == 1


async def test_an_answer_from_the_cache_is_a_call_of_its_caller_alone(stores: Stores, rise: Rise) -> None:
    using = stores.generation({"openai": telling(*ANSWER)}, openai_api_key="key")
    asked = prompt("to be kept", model="openai/gpt-5-mini", cache=CachePolicy(read=True, write=True))
    for _ in range(2):
        await events_of(using, asked)
    assert rise("gen_ai_server_request_duration_seconds_count", **CALL, error_type="") == 2
    assert rise("gen_ai_server_time_per_output_token_seconds_count", **CALL) == 1
    assert rise("gen_ai_client_operation_duration_seconds_count", **CALL, error_type="") == 1


async def test_what_a_call_cost_is_counted(stores: Stores, rise: Rise) -> None:
    prices = {"openai/gpt-5-mini": {"input_usd": 1, "cache_read_usd": 0, "cache_write_usd": 0, "output_usd": 2}}
    using = stores.generation({"openai": telling(*ANSWER)}, openai_api_key="key", prices=prices)
    await events_of(using, prompt(model="openai/gpt-5-mini"))
    assert rise("janus_inference_cost_microusd_total", provider="openai", model="gpt-5-mini") == 16


async def test_a_generation_that_nobody_reads_is_counted_and_so_is_who_asks_for_it(stores: Stores, rise: Rise) -> None:
    using = stores.generation(falling_silent([TextDelta(0, "half")]))
    async with aclosing(using.run(prompt(resumable=True, linger=0.0), CALLER)) as events:
        started = (await anext(events)).event
        assert isinstance(started, Started)
    await stores.resumables.drain()
    assert rise("janus_inference_broken_off_total", cause="linger") == 1
    async with aclosing(using.resume(started.generation_id, CALLER, 0)) as again:
        assert [each async for each in again]
    assert rise("janus_inference_resumes_total", outcome="ended") == 1


def test_overhead_is_what_lies_before_the_first_request_and_after_the_last_word() -> None:
    """Between them are failed attempts, and the waits that providers' failures cost."""
    now = time.perf_counter()
    watch = Watch()
    watch.began, watch.first_sent, watch.last_heard = now - 1000, now - 998, now - 1
    assert 3 <= watch.overhead() < 100


def test_breakers_and_budgets_are_shown_while_their_service_is_there() -> None:
    clock = SystemClock()
    breakers = Breakers(clock, BreakerRules(failures=2))
    budget = RetryBudget(clock, ratio=0.5, least=4)
    with telemetry.shown(lambda: ("one", "two"), breakers, budget):
        assert REGISTRY.get_sample_value("janus_inference_breaker_state", {"provider": "one"}) == 0
        assert REGISTRY.get_sample_value("janus_inference_retry_budget_ratio", {"provider": "one"}) == 0
        for _ in range(2):
            breakers.failed("one/broken", unreachable("one"))
        breakers.failed("one/shaky", unreachable("one"))
        budget.first("one")
        assert budget.take("one")
        assert value("janus_inference_breaker_state", provider="one") == 2
        assert value("janus_inference_breaker_state", provider="two") == 0
        assert value("janus_inference_retry_budget_ratio", provider="one") == 0.25
        breakers.succeeded("one/broken")
        assert REGISTRY.get_sample_value("janus_inference_breaker_state", {"provider": "one"}) == 0
    assert REGISTRY.get_sample_value("janus_inference_breaker_state", {"provider": "one"}) is None


def test_of_two_services_in_a_process_the_worse_is_shown() -> None:
    clock = SystemClock()
    well, ill = Breakers(clock, BreakerRules(failures=1)), Breakers(clock, BreakerRules(failures=1))
    ill.failed("one/fake", unreachable("one"))
    budget = RetryBudget(clock, ratio=0, least=1)
    with telemetry.shown(lambda: ("one",), ill, budget), telemetry.shown(lambda: ("one",), well, budget):
        assert value("janus_inference_breaker_state", provider="one") == 2


def test_names_are_well_known_where_the_kind_is_and_labels_are_bounded() -> None:
    settings = InferenceSettings.model_validate(
        {
            "providers": {
                "west": {"kind": "openai", "api_key": "k", "base_url": "https://west.example:8443/v1"},
                "claude": {"kind": "anthropic", "api_key": "k"},
                "ollama": {"kind": "openai_compatible", "base_url": "http://localhost:11434/v1"},
            },
            "prices": {"ollama/llama": {"input_usd": 0}},
        }
    )
    naming = Naming.of_settings(settings, PriceTable.of_settings(settings))
    assert naming.peer("west") == Peer("openai", "west.example", 8443)
    assert naming.peer("claude") == Peer("anthropic", "api.anthropic.com", 443)
    assert naming.peer("ollama") == Peer("ollama", "localhost", 11434)
    assert naming.peer("scripted") == Peer("scripted")
    assert naming.model("west", "gpt-5-mini") == "gpt-5-mini"
    assert naming.model("claude", "claude-sonnet-4-5-20250929") == "claude-sonnet-4-5"
    assert naming.model("ollama", "llama") == "llama"
    assert naming.model("ollama", "gpt-5-mini") == "_OTHER"
    assert naming.model("west", "made-up-by-a-caller") == "_OTHER"


@pytest.mark.parametrize("values", [[], [0.0], [0.01, 0.010001, 5, 1000], [0.02] * 100])
def test_points_added_at_once_read_like_points_observed(values: list[float]) -> None:
    one, other = CollectorRegistry(), CollectorRegistry()
    observed = Histogram("gap", "Help.", ["model"], buckets=names.GEN_AI_BUCKETS, registry=one)
    counted = CountedHistogram("gap", "Help.", ["model"], buckets=names.GEN_AI_BUCKETS)
    other.register(counted)
    observed.labels("m")
    counted.add(("m",), counted.counts())
    counts = counted.counts()
    for each in values:
        observed.labels("m").observe(each)
        counts.add(each)
    counted.add(("m",), counts)
    assert sorted(generate_latest(other).splitlines()) == sorted(generate_latest(one).splitlines())


def test_every_metric_has_its_name_in_one_place() -> None:
    known = {each for each in vars(names).values() if isinstance(each, str)}
    exported = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in REGISTRY.collect()
        if family.name.startswith(("gen_ai_", "janus_inference_"))
    }
    assert len(exported) > 25
    assert exported <= known


def test_an_attempt_that_is_no_answer_is_not_in_flight(rise: Rise) -> None:
    with Attempt("embeddings", "upstream", "fake") as attempt:
        assert rise("janus_inference_streams_in_flight", provider="upstream") == 0
        attempt.succeeded()
    assert rise("janus_inference_attempts_total", provider="upstream", outcome="ok") == 1
