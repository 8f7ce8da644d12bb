"""What is known of servers and of models, and that nothing is claimed of the others."""

import pytest

from janus_api.inference.v1 import model_pb2
from janus_inference.families import _FAMILIES, UNKNOWN, family
from janus_inference.profiles import (
    OPENAI,
    PROFILES,
    ChatProfile,
    capabilities,
    chat_profile,
    context_window,
    max_output_tokens,
)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("eu.api.openai.com", "openai"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://api.deepseek.com", "deepseek"),
        ("https://api.z.ai/api/paas/v4", "zai"),
        ("https://api.together.xyz/v1", "together"),
        ("https://api.mistral.ai/v1", "mistral"),
        ("http://localhost:11434/v1", "ollama"),
        ("http://[::1]:1234/v1", "lmstudio"),
    ],
)
def test_a_server_is_known_by_its_address(address: str, name: str) -> None:
    assert chat_profile(address) is PROFILES[name]


@pytest.mark.parametrize(
    "address",
    ["api.openai.com.example.org", "http://localhost:8000/v1", "http://localhost:8080", "notopenrouter.ai"],
)
def test_of_any_other_server_nothing_is_assumed(address: str) -> None:
    assert chat_profile(address) == ChatProfile()


def test_openai_s_own_limits_for_embeddings() -> None:
    assert (OPENAI.embed_inputs, OPENAI.embed_tokens) == (2048, 300_000)


@pytest.mark.parametrize(
    ("model", "window", "output"),
    [
        ("gpt-4o-2024-08-06", 128_000, 16_384),
        ("gpt-4", 8192, 8192),
        ("gpt-4.1-mini", 1_047_576, 32_768),
        ("gpt-5.1-mini", 400_000, 128_000),
        ("claude-3-5-haiku-latest", 200_000, 8192),
        ("claude-opus-4-20250514", 200_000, 32_000),
        ("claude-opus-4-5-20251101", 200_000, 64_000),
        ("anthropic/claude-sonnet-4.5", 200_000, 64_000),
        ("claude-opus-5-5", 1_000_000, 128_000),
        ("openai/gpt-oss-120b", 131_072, None),
        ("gpt-4.5-preview", None, None),
        ("claude-opus-4-9", None, None),
        ("somebody's", None, None),
    ],
)
def test_sizes_go_by_the_longest_beginning_and_never_by_another_version(
    model: str, window: int | None, output: int | None
) -> None:
    assert (context_window(model), max_output_tokens(model)) == (window, output)


def test_a_claude_that_is_newer_than_the_table_is_spoken_to_like_the_newest() -> None:
    newer = family("claude-opus-7-1")
    assert (newer.adaptive, newer.budgets, newer.sampling) == (True, False, False)


def test_of_an_unknown_model_nothing_is_claimed() -> None:
    unknown = family("somebody's")
    assert unknown is UNKNOWN
    assert (unknown.capabilities, unknown.efforts) == (frozenset(), None)
    assert unknown.budgets
    assert unknown.quiet
    assert unknown.sampling
    assert capabilities("openai_compatible", "somebody's") == frozenset()


@pytest.mark.parametrize(
    ("kind", "model", "has", "has_not"),
    [
        ("openai", "gpt-4o", {"IMAGE_INPUT", "DOCUMENT_INPUT", "JSON_SCHEMA", "LOGPROBS"}, {"REASONING", "EMBEDDING"}),
        ("openai", "gpt-5-mini", {"REASONING", "TOOLS", "PARALLEL_TOOLS", "PROMPT_CACHE"}, {"LOGPROBS"}),
        ("openai", "gpt-4o-audio-preview", {"AUDIO_INPUT"}, {"IMAGE_INPUT"}),
        ("openai", "text-embedding-3-small", {"EMBEDDING"}, {"TEXT"}),
        ("anthropic", "claude-sonnet-4-5", {"DOCUMENT_INPUT", "JSON_SCHEMA", "REASONING", "PROMPT_CACHE"}, {"JSON"}),
        ("anthropic", "claude-3-5-haiku-latest", {"TOOLS"}, {"JSON_SCHEMA", "REASONING"}),
        ("scripted", "rehearsal", {"TEXT", "TOOLS", "JSON"}, {"JSON_SCHEMA"}),
    ],
)
def test_what_models_can_do(kind: str, model: str, has: set[str], has_not: set[str]) -> None:
    can = capabilities(kind, model)
    assert has <= can
    assert not has_not & can


def test_every_capability_is_a_word_of_the_contract() -> None:
    words = {
        name.removeprefix("CAPABILITY_")
        for name in model_pb2.Capability.keys()  # noqa: SIM118 - an enum wrapper, not a dict
    }
    used = frozenset[str]().union(*(known.capabilities for known in _FAMILIES.values()), capabilities("scripted", "x"))
    assert used <= words - {"UNSPECIFIED"}
