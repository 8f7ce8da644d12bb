"""What names mean, what is listed, and what settings make of it."""

from typing import Any

import pytest
from pydantic import ValidationError

from janus_inference.catalogue import Catalogue, Entry, Kind
from janus_inference.profiles import OPENAI, chat_profile, max_output_tokens
from janus_inference.provider_errors import broken, unreachable
from janus_inference.routing import ProviderModels, Routes, Target
from janus_inference.settings import InferenceSettings
from janus_inference.standing import FORGET_AFTER_S, Standings
from janus_kit.configuration import load
from janus_kit.errors import InvalidArgument, NotFound

ROUTES = Routes(
    {
        "openai": ProviderModels(frozenset({"gpt"}), frozenset({"vec"}), True),
        "local": ProviderModels(frozenset({"llama", "org/name:7b"}), frozenset(), False),
    },
    {"fast": ("local/llama",)},
    default="fast",
    default_embedding="openai/vec",
)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("", Target("local", "llama")),
        ("fast", Target("local", "llama")),
        ("openai/gpt", Target("openai", "gpt")),
        ("openai/not-listed", Target("openai", "not-listed")),
        ("local/org/name:7b", Target("local", "org/name:7b")),
    ],
)
def test_a_name_is_an_alias_or_a_provider_and_its_model(name: str, target: Target) -> None:
    assert ROUTES.generative(name) == target


@pytest.mark.parametrize(
    "name", ["nope", "local/not-listed", "away/gpt", "openai/", "/gpt", "local", "openai/vec", "fast/llama"]
)
def test_an_unknown_name_names_the_field(name: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        ROUTES.generative(name)
    assert raised.value.reason == "MODEL_NOT_FOUND"
    assert raised.value.metadata == {"model": name}
    assert raised.value.violations[0].field == "prompt.model"


def test_embedding_asks_embedding_models_only() -> None:
    assert ROUTES.embedding("") == Target("openai", "vec")
    assert ROUTES.embedding("openai/another") == Target("openai", "another")
    for name in ("openai/gpt", "local/llama", "fast"):
        with pytest.raises(InvalidArgument):
            ROUTES.embedding(name)


def test_pages_are_stable_while_entries_come_and_go() -> None:
    names = [f"m{number:03}" for number in range(250)]
    first = Catalogue(Entry(name, Kind.GENERATIVE) for name in names).page(100, "", None)
    changed = Catalogue(Entry(name, Kind.GENERATIVE) for name in [*names, "m099a", "a"] if name != "m099")
    second = changed.page(100, first.next_token, None)
    assert [entry.name for entry in second.entries][:2] == ["m099a", "m100"]
    last = changed.page(0, second.next_token, None)
    assert (last.entries[-1].name, last.next_token) == ("m249", "")


def test_pages_can_be_of_one_kind() -> None:
    catalogue = Catalogue([Entry("b", Kind.ALIAS), Entry("a", Kind.GENERATIVE), Entry("c", Kind.EMBEDDING)])
    assert [entry.name for entry in catalogue.page(0, "", Kind.EMBEDDING).entries] == ["c"]
    assert catalogue.get("b").kind is Kind.ALIAS
    with pytest.raises(NotFound):
        catalogue.get("d")


@pytest.mark.parametrize("size", [-1, 1001])
def test_a_page_has_bounds(size: int) -> None:
    with pytest.raises(InvalidArgument) as raised:
        Catalogue([]).page(size, "", None)
    assert raised.value.violations[0].field == "page_size"


@pytest.mark.parametrize("token", ["nope", "ü", "W10", "bnVsbA", "WyJhIiwgMV0", "====", "x" * 5000])
def test_a_token_of_nobody_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        Catalogue([]).page(0, token, None)
    assert raised.value.reason == "PAGE_TOKEN_INVALID"


def test_a_token_of_another_query_is_refused() -> None:
    catalogue = Catalogue(Entry(f"m{number}", Kind.GENERATIVE) for number in range(3))
    token = catalogue.page(1, "", Kind.GENERATIVE).next_token
    with pytest.raises(InvalidArgument):
        catalogue.page(1, token, None)


def settings(**values: Any) -> InferenceSettings:
    return InferenceSettings.model_validate(values)


def test_without_any_key_the_rehearsal_answers() -> None:
    assert settings().default_target() == "scripted/rehearsal"
    assert settings().default_embedding_target() == ""
    assert list(settings().all_providers()) == ["scripted"]


@pytest.mark.parametrize(
    ("values", "target", "embedding"),
    [
        ({"openai_api_key": "k"}, "openai/gpt-5", "openai/text-embedding-3-small"),
        ({"anthropic_api_key": "k"}, "anthropic/claude-sonnet-4-5", ""),
        ({"openai_api_key": "k", "aliases": {"default": "openai/gpt-x"}}, "default", "openai/text-embedding-3-small"),
        (
            {"openai_api_key": "k", "default_model": "scripted/rehearsal"},
            "scripted/rehearsal",
            "openai/text-embedding-3-small",
        ),
        (
            {
                "providers": {
                    "ollama": {
                        "kind": "openai_compatible",
                        "base_url": "http://localhost:11434/v1",
                        "models": ["nomic-embed-text", "llama3.2"],
                    }
                }
            },
            "ollama/llama3.2",
            "ollama/nomic-embed-text",
        ),
    ],
)
def test_the_first_real_provider_is_the_default(values: dict[str, Any], target: str, embedding: str) -> None:
    assert settings(**values).default_target() == target
    assert settings(**values).default_embedding_target() == embedding


def test_keys_of_the_environment_make_providers() -> None:
    loaded = load({"inference": InferenceSettings}, environ={"OPENAI_API_KEY": "sk-1"})
    section = loaded.section("inference", InferenceSettings)
    assert section.all_providers()["openai"].kind == "openai"
    assert "sk-1" not in repr(section)
    assert "sk-1" not in str(loaded.masked())


def test_a_key_of_the_environment_completes_a_provider_without_one() -> None:
    url = "https://eu.api.openai.com/v1/"
    found = settings(openai_api_key="k", providers={"openai": {"kind": "openai", "base_url": url}})
    provider = found.all_providers()["openai"]
    assert provider.api_key is not None
    assert provider.address == "https://eu.api.openai.com/v1"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"providers": {"Bad Name": {"kind": "scripted"}}}, "lower-case"),
        ({"providers": {"x": {"kind": "openai_compatible"}}}, "base_url"),
        ({"providers": {"x": {"kind": "openai", "base_url": "ftp://x"}}}, "http"),
        ({"providers": {"x": {"kind": "openai", "models": ["a", "a"]}}}, "unique"),
        ({"aliases": {"fast": "away/model"}}, "away/model"),
        ({"aliases": {"fast": ["scripted/rehearsal", "scripted/rehearsal"]}}, "at most 1"),
        ({"aliases": {"a/b": "scripted/rehearsal"}}, "alias"),
        ({"default_model": "nope"}, "default_model"),
        ({"default_model": "scripted/nope"}, "no model"),
        ({"total_timeout_s": 0}, "total_timeout_s"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(**values)


def test_profiles_go_by_host_and_model() -> None:
    assert chat_profile("api.openai.com") is OPENAI
    assert chat_profile("eu.api.openai.com") is OPENAI
    assert chat_profile("api.openai.com.example.org").needs_done is False
    assert max_output_tokens("claude-3-5-haiku-latest") == 8192
    assert max_output_tokens("claude-opus-4-5-20251101") == 64_000
    assert max_output_tokens("somebody's") is None


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> Any:
        raise NotImplementedError


def test_a_provider_s_standing_is_its_last_call_and_is_forgotten() -> None:
    clock = Hand()
    standings = Standings(clock)
    standings.failed("a", broken("a", "cut"))
    assert standings.problem("a") is None  # one broken answer says nothing about the next
    standings.failed("a", unreachable("a"))
    assert standings.problem("a") is not None
    clock.seconds = FORGET_AFTER_S + 1
    assert standings.problem("a") is None
    standings.failed("a", unreachable("a"))
    standings.succeeded("a")
    assert standings.problem("a") is None
