"""What calls cost: packaged prices, configured ones, and prices that are not known."""

from __future__ import annotations

from typing import Any

import pytest

from janus_inference.events import Cost, Usage
from janus_inference.prices import Price, PriceTable, undated
from janus_inference.settings import InferenceSettings

M = 1_000_000
PACKAGED = PriceTable.of_settings(InferenceSettings()).version


def table(**settings: Any) -> PriceTable:
    settings.setdefault("providers", {"openai": {"kind": "openai"}, "anthropic": {"kind": "anthropic"}})
    return PriceTable.of_settings(InferenceSettings.model_validate(settings))


def micro(prices: PriceTable, provider: str, model: str, usage: Usage) -> int | None:
    cost = prices.cost(provider, model, usage)
    return cost.micro_usd if cost is not None else None


@pytest.mark.parametrize(
    ("provider", "model", "usage", "micro_usd"),
    [
        # (uncached * input + read * cache read + written * cache write + output * output) per million.
        ("openai", "gpt-4o", Usage(M, 0, 0, 0), 2_500_000),
        ("openai", "gpt-4o", Usage(0, M, 0, 0), 1_250_000),
        ("openai", "gpt-4o", Usage(0, 0, 0, M), 10_000_000),
        ("openai", "gpt-4o", Usage(1_000, 2_000, 0, 500), 2_500 + 2_500 + 5_000),
        ("openai", "gpt-4o-mini", Usage(M, 0, 0, M), 150_000 + 600_000),
        ("openai", "gpt-4.1-nano", Usage(M, M, 0, 0), 100_000 + 25_000),
        ("openai", "gpt-5", Usage(1_000, 9_000, 0, 100), 1_250 + 1_125 + 1_000),
        ("openai", "gpt-5-pro", Usage(M, 0, 0, M), 15_000_000 + 120_000_000),
        # No discount for what is read from a cache: as input.
        ("openai", "gpt-5-pro", Usage(0, M, 0, 0), 15_000_000),
        ("openai", "text-embedding-3-small", Usage(M), 20_000),
        ("anthropic", "claude-sonnet-4-5", Usage(1_000, 10_000, 2_000, 100), 3_000 + 3_000 + 7_500 + 1_500),
        ("anthropic", "claude-haiku-4-5", Usage(0, 0, 1_000, 1_000), 1_250 + 5_000),
        ("anthropic", "claude-opus-4-1", Usage(1_000, 0, 0, 1_000), 15_000 + 75_000),
        ("anthropic", "claude-3-haiku", Usage(0, M, M, 0), 30_000 + 300_000),
    ],
)
def test_a_call_costs_what_its_kinds_of_tokens_cost(provider: str, model: str, usage: Usage, micro_usd: int):
    assert table().cost(provider, model, usage) == Cost(micro_usd, PACKAGED)


def test_reasoning_is_part_of_the_output_and_is_not_paid_twice():
    thought = Usage(0, 0, 0, 1_000, reasoning_tokens=900)
    assert micro(table(), "openai", "o3", thought) == micro(table(), "openai", "o3", Usage(0, 0, 0, 1_000)) == 8_000


@pytest.mark.parametrize(
    ("provider", "dated", "family"),
    [
        ("openai", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openai", "gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("openai", "gpt-5-pro-2025-10-06", "gpt-5-pro"),
        ("openai", "gpt-4.1-2025-04-14", "gpt-4.1"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("anthropic", "claude-sonnet-4-20250514", "claude-sonnet-4-0"),
        ("anthropic", "claude-3-haiku-20240307", "claude-3-haiku"),
        ("anthropic", "claude-haiku-4-5@20251001", "claude-haiku-4-5"),
    ],
)
def test_a_dated_variant_costs_what_its_family_costs(provider: str, dated: str, family: str):
    assert table().of(provider, dated) == table().of(provider, family) is not None


def test_a_dated_variant_with_a_price_of_its_own_has_that():
    assert micro(table(), "openai", "gpt-4o-2024-05-13", Usage(M)) == 5_000_000


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gpt-4o", "gpt-4o-mini"),
        ("gpt-5", "gpt-5-pro"),
        ("gpt-5", "gpt-5-nano"),
        ("gpt-4", "gpt-4-turbo"),
        ("gpt-4", "gpt-4.1"),
        ("o1", "o1-pro"),
        ("o3", "o3-pro"),
    ],
)
def test_a_longer_name_is_another_model(one: str, other: str):
    assert table().of("openai", one) != table().of("openai", other)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-audio-preview"),
        ("openai", "gpt-4o-2024"),
        ("openai", "gpt-4o-2024-08-06-tuned"),
        ("openai", "ft:gpt-4o-2024-08-06:acme::1"),
        ("openai", "gpt-99"),
        ("openai", "GPT-4o"),
        ("openai", "claude-sonnet-4-5"),
        ("anthropic", "claude-sonnet-4-5-latest-and-greatest"),
        ("anthropic", "gpt-4o"),
        ("nobody", "gpt-4o"),
        ("openai", ""),
    ],
)
def test_an_unknown_price_is_none_and_never_zero(provider: str, model: str):
    assert table().of(provider, model) is None
    assert table().cost(provider, model, Usage(10, 0, 0, 10)) is None
    assert table().cost(provider, model, Usage()) is None


@pytest.mark.parametrize(
    ("provider", "known"),
    [
        ({"kind": "openai"}, True),
        ({"kind": "openai", "base_url": "https://api.openai.com/v1"}, True),
        ({"kind": "openai", "base_url": "https://gateway.example/v1"}, False),
        ({"kind": "openai", "base_url": "https://api.openai.com.example/v1"}, False),
        ({"kind": "openai_compatible", "base_url": "http://127.0.0.1:8000/v1"}, False),
        ({"kind": "openai_compatible", "base_url": "https://api.openai.com/v1"}, False),
    ],
)
def test_packaged_prices_hold_at_the_providers_own_address_only(provider: dict[str, str], known: bool):
    assert (table(providers={"mine": provider}).of("mine", "gpt-4o") is not None) is known


def test_the_rehearsal_is_free():
    assert table().cost("scripted", "rehearsal", Usage(M, 0, 0, M)) == Cost(0, PACKAGED)


def test_a_long_input_moves_the_whole_call_to_the_higher_price():
    at, above = Usage(100_000, 100_000, 0, 1_000), Usage(100_000, 100_000, 1, 1_000)
    assert micro(table(), "anthropic", "claude-sonnet-4-5", at) == 300_000 + 30_000 + 15_000
    assert micro(table(), "anthropic", "claude-sonnet-4-5", above) == 600_000 + 60_000 + 8 + 22_500


def test_above_a_threshold_without_a_price_the_cost_is_unknown():
    price = Price(1, 1, 1, 1, threshold=10)
    assert price.cost(Usage(10)) == 0
    assert price.cost(Usage(5, 5, 1)) is None


@pytest.mark.parametrize(
    ("tokens", "micro_usd"), [(0, 0), (1, 0), (24, 0), (25, 1), (74, 1), (75, 2), (M, 20_000), (10**15, 2 * 10**13)]
)
def test_a_cost_is_rounded_half_up_once(tokens: int, micro_usd: int):
    assert micro(table(), "openai", "text-embedding-3-small", Usage(tokens)) == micro_usd


def test_parts_of_a_millionth_add_up_before_they_are_rounded():
    prices = table(prices={"openai/own": {"input_usd": 0.4, "output_usd": 0.4}})
    assert micro(prices, "openai", "own", Usage(1, 1, 1, 1)) == 2


def test_configured_prices_come_first_also_for_dated_variants():
    prices = table(prices={"openai/gpt-4o": {"input_usd": 1, "output_usd": 2}})
    for model in ("gpt-4o", "gpt-4o-2024-08-06"):
        assert micro(prices, "openai", model, Usage(M, 0, 0, M)) == 3_000_000
    assert micro(prices, "openai", "gpt-4o-mini", Usage(M)) == 150_000
    assert micro(prices, "openai", "gpt-4o-2024-05-13", Usage(M)) == 5_000_000


def test_configured_cache_prices_are_as_input_unless_they_are_said():
    prices = table(
        prices={
            "openai/plain": {"input_usd": 2},
            "openai/full": {"input_usd": 2, "cache_read_usd": 0, "cache_write_usd": 3},
        }
    )
    assert micro(prices, "openai", "plain", Usage(0, M, M, M)) == 4_000_000
    assert micro(prices, "openai", "full", Usage(0, M, M, M)) == 3_000_000


def test_a_compatible_server_has_the_prices_that_are_configured_for_it():
    providers = {"vllm": {"kind": "openai_compatible", "base_url": "http://127.0.0.1:8000/v1"}}
    prices = table(providers=providers, prices={"vllm/org/llama": {"input_usd": 0.1}})
    assert micro(prices, "vllm", "org/llama", Usage(M)) == 100_000
    assert prices.cost("vllm", "other", Usage(M)) is None


def test_a_price_of_zero_is_known():
    prices = table(prices={"openai/own": {"input_usd": 0}})
    assert prices.cost("openai", "own", Usage(M, 0, 0, M)) == Cost(0, prices.version)


def test_the_version_is_a_date_and_tells_other_configured_prices_apart():
    one = table(prices={"openai/own": {"input_usd": 1}})
    same = table(prices={"openai/own": {"input_usd": 1.0}})
    other = table(prices={"openai/own": {"input_usd": 2}})
    assert len(PACKAGED) == len("2026-01-31")
    assert one.version == same.version != other.version
    assert {one.version.partition("+")[0], other.version.partition("+")[0]} == {PACKAGED}


def test_every_packaged_price_makes_sense():
    prices = table()
    listed = [(kind, name, price) for kind, models in prices.packaged.items() for name, price in models.items()]
    assert len(listed) > 50
    for kind, name, price in listed:
        for each in filter(None, (price, price.above)):
            assert 0 < each.input <= 200 * M, (kind, name)
            assert each.cache_read <= each.input <= each.cache_write, (kind, name)
            assert "embedding" in name or each.input < each.output <= 1000 * M, (kind, name)
        if price.above is not None:
            assert price.above.input >= price.input, (kind, name)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("claude-opus-4-1-20250805", "claude-opus-4-1"),
        ("gpt-4-0613", "gpt-4-0613"),
        ("llama-3.1-8b", "llama-3.1-8b"),
        ("2024-08-06", "2024-08-06"),
        ("model-99999999", "model-99999999"),
    ],
)
def test_a_date_at_the_end_of_a_name_is_no_part_of_the_family(model: str, family: str):
    assert undated(model) == family
