"""Every provider's arithmetic of tokens, in one normal form."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_inference import accounting
from janus_inference.events import Usage
from janus_inference.model import Message, Prompt, Role, Text, ToolDefinition

OPENAI: list[tuple[str, dict[str, Any], Usage]] = [
    ("plain", {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, Usage(10, 0, 0, 5)),
    (
        "cached tokens are part of the prompt and are not counted twice",
        {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}},
        Usage(6, 4, 0, 5),
    ),
    (
        "OpenRouter says what was written to the cache",
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
        },
        Usage(3, 4, 3, 5),
    ),
    (
        "DeepSeek says it beside the details",
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_cache_hit_tokens": 7,
            "prompt_cache_miss_tokens": 3,
        },
        Usage(3, 7, 0, 5),
    ),
    ("Together as well", {"prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 2}, Usage(8, 2, 0, 5)),
    (
        "reasoning is part of the output",
        {
            "prompt_tokens": 10,
            "completion_tokens": 50,
            "total_tokens": 60,
            "completion_tokens_details": {"reasoning_tokens": 40},
        },
        Usage(10, 0, 0, 50, 40),
    ),
    (
        "but some servers count it beside",
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 55,
            "completion_tokens_details": {"reasoning_tokens": 40},
        },
        Usage(10, 0, 0, 45, 40),
    ),
    (
        "nulls and nonsense count as nothing",
        {
            "prompt_tokens": 10,
            "completion_tokens": None,
            "prompt_tokens_details": None,
            "completion_tokens_details": {"reasoning_tokens": "many"},
        },
        Usage(10, 0, 0, 0),
    ),
    (
        "more cached than there was is no credit",
        {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}},
        Usage(0, 3, 0, 1),
    ),
    ("nothing said", {}, Usage()),
]

ANTHROPIC: list[tuple[str, dict[str, Any], Usage]] = [
    ("plain", {"input_tokens": 10, "output_tokens": 5}, Usage(10, 0, 0, 5)),
    (
        "input excludes both cache counts",
        {
            "input_tokens": 10,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 3,
            "output_tokens": 5,
        },
        Usage(10, 4, 3, 5),
    ),
    (
        "thinking is part of the output",
        {"input_tokens": 1, "output_tokens": 50, "output_tokens_details": {"thinking_tokens": 40}},
        Usage(1, 0, 0, 50, 40),
    ),
    ("nothing said", {}, Usage()),
]


@pytest.mark.parametrize(("said", "normal"), [pytest.param(*row[1:], id=row[0]) for row in OPENAI])
def test_openai(said: dict[str, Any], normal: Usage) -> None:
    assert accounting.openai_usage(said) == normal


@pytest.mark.parametrize(("said", "normal"), [pytest.param(*row[1:], id=row[0]) for row in ANTHROPIC])
def test_anthropic(said: dict[str, Any], normal: Usage) -> None:
    assert accounting.anthropic_usage(said) == normal


def test_cumulative_usage_replaces_and_does_not_add() -> None:
    start = {"input_tokens": 10, "output_tokens": 1, "cache_read_input_tokens": 4}
    end = accounting.merged(start, {"output_tokens": 20, "cache_read_input_tokens": None})
    assert accounting.anthropic_usage(end) == Usage(10, 4, 0, 20)


numbers = st.one_of(st.none(), st.integers(-5, 10**12), st.text(max_size=3), st.booleans())
details = st.one_of(st.none(), st.dictionaries(st.sampled_from(["cached_tokens", "cache_write_tokens"]), numbers))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": numbers,
            "completion_tokens": numbers,
            "total_tokens": numbers,
            "prompt_tokens_details": details,
        },
    )
)
def test_counts_never_overlap_and_are_never_negative(said: dict[str, Any]) -> None:
    usage = accounting.openai_usage(said)
    prompt = said.get("prompt_tokens")
    whole = prompt if isinstance(prompt, int) and not isinstance(prompt, bool) and prompt > 0 else 0
    assert usage.input_uncached_tokens + usage.cache_read_tokens + usage.cache_write_tokens == whole
    assert min(usage.input_uncached_tokens, usage.cache_read_tokens, usage.output_tokens) >= 0
    assert usage.reasoning_tokens <= usage.output_tokens


def test_an_estimate_says_that_it_is_one() -> None:
    prompt = Prompt((Message(Role.USER, (Text("x" * 400),)),), tools=(ToolDefinition("weather", "y" * 393),))
    usage = accounting.estimate(accounting.estimated_prompt_tokens(prompt), 41)
    assert usage == Usage(204, output_tokens=11, estimated=True)
