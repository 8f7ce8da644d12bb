"""Every provider's arithmetic of tokens, in one normal form."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_inference import accounting
from janus_inference.events import Usage
from janus_inference.model import (
    Audio,
    Document,
    Image,
    Media,
    Message,
    Prompt,
    Role,
    Text,
    ToolDefinition,
    ToolResult,
)

OPENAI: list[tuple[str, dict[str, Any], Usage | None]] = [
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
    ("nothing written", {"prompt_tokens": 3, "completion_tokens": 0}, Usage(3)),
    ("nothing said", {}, None),
    ("zeros", {"prompt_tokens": 0, "completion_tokens": 0}, None),
    ("only a sum", {"total_tokens": 15}, None),
    ("nonsense", {"prompt_tokens": -5, "completion_tokens": 1e30}, None),
]

ANTHROPIC: list[tuple[str, dict[str, Any], Usage | None]] = [
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
    ("all read from the cache", {"input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 0}, Usage(0, 4)),
    ("nothing said", {}, None),
    ("zeros", {"input_tokens": 0, "output_tokens": 0}, None),
]


@pytest.mark.parametrize(("said", "normal"), [pytest.param(*row[1:], id=row[0]) for row in OPENAI])
def test_openai(said: dict[str, Any], normal: Usage | None) -> None:
    assert accounting.openai_usage(said) == normal


@pytest.mark.parametrize(("said", "normal"), [pytest.param(*row[1:], id=row[0]) for row in ANTHROPIC])
def test_anthropic(said: dict[str, Any], normal: Usage | None) -> None:
    assert accounting.anthropic_usage(said) == normal


RESPONSES: list[tuple[str, dict[str, Any], Usage]] = [
    ("plain", {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}, Usage(10, 0, 0, 5)),
    (
        "cached, written and reasoning tokens are parts of the whole",
        {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
            "output_tokens": 50,
            "output_tokens_details": {"reasoning_tokens": 40},
            "total_tokens": 60,
        },
        Usage(3, 4, 3, 50, 40),
    ),
    (
        "more cached than read is nonsense and is bounded",
        {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 99}, "output_tokens": 5},
        Usage(0, 10, 0, 5),
    ),
    (
        "a server that counts reasoning beside the output",
        {
            "input_tokens": 10,
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 40},
            "total_tokens": 55,
        },
        Usage(10, 0, 0, 45, 40),
    ),
    (
        "nulls count as nothing",
        {"input_tokens": None, "input_tokens_details": None, "output_tokens": 5},
        Usage(0, 0, 0, 5),
    ),
]


@pytest.mark.parametrize(("said", "normal"), [pytest.param(*row[1:], id=row[0]) for row in RESPONSES])
def test_openai_responses(said: dict[str, Any], normal: Usage) -> None:
    assert accounting.openai_responses_usage(said) == normal


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
    usage = accounting.openai_usage(said) or Usage()
    prompt = said.get("prompt_tokens")
    whole = prompt if isinstance(prompt, int) and not isinstance(prompt, bool) and prompt > 0 else 0
    assert usage.input_uncached_tokens + usage.cache_read_tokens + usage.cache_write_tokens == whole
    assert min(usage.input_uncached_tokens, usage.cache_read_tokens, usage.output_tokens) >= 0
    assert usage.reasoning_tokens <= usage.output_tokens


def test_an_estimate_says_that_it_is_one() -> None:
    prompt = Prompt((Message(Role.USER, (Text("x" * 400),)),), tools=(ToolDefinition("weather", "y" * 393),))
    usage = accounting.estimate(accounting.estimated_prompt_tokens(prompt), 41)
    assert usage == Usage(204, output_tokens=11, estimated=True)


ANTHROPIC_MORE: list[tuple[str, dict[str, Any], Usage]] = [
    (
        "thinking is part of the output",
        {"input_tokens": 10, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 6}},
        Usage(10, 0, 0, 9, 6),
    ),
    (
        "what is written for an hour and for five minutes is in one number",
        {
            "input_tokens": 10,
            "cache_creation_input_tokens": 7,
            "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
            "output_tokens": 1,
        },
        Usage(10, 0, 7, 1, off_list=True),
    ),
    (
        "requests of server-side tools are no tokens",
        {"input_tokens": 10, "output_tokens": 1, "server_tool_use": {"web_search_requests": 3}},
        Usage(10, 0, 0, 1),
    ),
    (
        "the model's own iterations are in the whole already",
        {
            "input_tokens": 30,
            "output_tokens": 5,
            "iterations": [
                {"type": "message", "input_tokens": 10, "output_tokens": 2},
                {"type": "message", "input_tokens": 20, "output_tokens": 3},
            ],
        },
        Usage(30, 0, 0, 5),
    ),
    (
        "an advisor's and a compaction's are not",
        {
            "input_tokens": 30,
            "output_tokens": 5,
            "iterations": [
                {"type": "message", "input_tokens": 30, "output_tokens": 5},
                {"type": "advisor_message", "input_tokens": 100, "cache_read_input_tokens": 40, "output_tokens": 7},
                {"type": "compaction", "input_tokens": 1000, "output_tokens": 50},
            ],
        },
        Usage(1130, 40, 0, 62),
    ),
    ("the list price's tier", {"input_tokens": 3, "output_tokens": 1, "service_tier": "standard"}, Usage(3, 0, 0, 1)),
    ("another tier", {"input_tokens": 3, "service_tier": "priority"}, Usage(3, off_list=True)),
    ("another speed", {"input_tokens": 3, "speed": "fast"}, Usage(3, off_list=True)),
    ("the list price's place", {"input_tokens": 3, "inference_geo": "global"}, Usage(3)),
    ("another place", {"input_tokens": 3, "inference_geo": "us"}, Usage(3, off_list=True)),
    (
        "a cache for five minutes",
        {
            "input_tokens": 3,
            "cache_creation_input_tokens": 7,
            "cache_creation": {"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 0},
        },
        Usage(3, 0, 7),
    ),
    (
        "a cache for an hour",
        {
            "input_tokens": 3,
            "cache_creation_input_tokens": 7,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 7},
        },
        Usage(3, 0, 7, off_list=True),
    ),
    (
        "an iteration that wrote a cache for an hour",
        {
            "input_tokens": 3,
            "iterations": [
                {"type": "compaction", "input_tokens": 2, "cache_creation": {"ephemeral_1h_input_tokens": 1}}
            ],
        },
        Usage(5, off_list=True),
    ),
    ("iterations that make no sense", {"input_tokens": 3, "output_tokens": 1, "iterations": "x"}, Usage(3, 0, 0, 1)),
]


@pytest.mark.parametrize(("said", "meant"), [row[1:] for row in ANTHROPIC_MORE], ids=[row[0] for row in ANTHROPIC_MORE])
def test_anthropic_s_sub_usage(said: dict[str, Any], meant: Usage) -> None:
    assert accounting.anthropic_usage(said) == meant


COUNTS = st.integers(min_value=0, max_value=10**6)


@given(
    st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS), st.lists(st.integers(0, 10**5), min_size=2, max_size=9)
)
def test_shares_add_up_to_the_whole(usage: Usage, weights: list[int]) -> None:
    shares = accounting.apportioned(usage, weights)
    assert accounting.summed(shares) == replace(usage, estimated=True)
    assert all(share.estimated for share in shares)
    if sum(weights):
        exact = usage.input_uncached_tokens * weights[0] / sum(weights)
        assert abs(shares[0].input_uncached_tokens - exact) <= 1


def test_a_single_share_is_the_usage_itself() -> None:
    assert accounting.apportioned(Usage(7), [3]) == [Usage(7)]


def test_a_sum_with_one_estimate_is_an_estimate() -> None:
    assert accounting.summed([Usage(1, 2, 3, 4, 2), Usage(1, estimated=True)]) == Usage(2, 2, 3, 4, 2, estimated=True)


MEDIA_ROWS = [
    (Image(Media("image/png", data=b"x")), 1000),
    (Document(Media("application/pdf", data=b"x" * 2500)), 100),
    (Document(Media("text/plain", data=b"x" * 400)), 100),
    (Document(Media("", uri="https://a/b.pdf")), 1000),
    (Audio(Media("audio/mpeg", data=b"x" * 16_000)), 10),
    (ToolResult("a", (Image(Media("image/png", data=b"x")), Text("x" * 400))), 1100),
]


@pytest.mark.parametrize(("part", "tokens"), MEDIA_ROWS)
def test_media_are_estimated_as_well(part: Any, tokens: int) -> None:
    with_it = accounting.estimated_prompt_tokens(Prompt((Message(Role.USER, (part,)),)))
    without = accounting.estimated_prompt_tokens(Prompt((Message(Role.USER, (Text(""),)),)))
    assert with_it - without == tokens
