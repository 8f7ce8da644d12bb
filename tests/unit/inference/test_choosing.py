"""What names mean, what is listed, and what settings make of it."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from pydantic import ValidationError

from janus_inference.breakers import BreakerRules, Breakers
from janus_inference.catalogue import Catalogue, Entry, Health, Kind
from janus_inference.model import Routing
from janus_inference.profiles import OPENAI, chat_profile, max_output_tokens
from janus_inference.provider_errors import broken, unreachable
from janus_inference.routing import Alias, ProviderModels, Route, Routes, Target
from janus_inference.settings import InferenceSettings
from janus_inference.standing import FORGET_AFTER_S, Standings
from janus_kit.configuration import load
from janus_kit.errors import InvalidArgument, NotFound

ROUTES = Routes(
    {
        "openai": ProviderModels(frozenset({"gpt"}), frozenset({"vec"}), True),
        "local": ProviderModels(frozenset({"llama", "org/name:7b"}), frozenset(), False),
    },
    {
        "fast": Alias((("local/llama", 0),)),
        "sure": Alias((("openai/gpt", 0), ("local/llama", 0)), hedge_after=0.5),
        "spread": Alias((("openai/gpt", 3), ("local/llama", 1), ("openai/spare", 0))),
    },
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
    assert ROUTES.route(name).targets == (target,)


def test_an_alias_names_its_targets_in_order_and_when_to_hedge() -> None:
    targets = Target("openai", "gpt"), Target("local", "llama")
    assert ROUTES.route("sure") == Route(targets, 0.5, ("openai/gpt", "local/llama"))
    assert ROUTES.route("sure", Routing(hedge_after=0.1)).hedge_after == 0.1


def test_weights_are_shares_of_first_attempts_and_the_rest_follows() -> None:
    firsts = Counter(ROUTES.route("spread").targets[0].name for _ in range(4000))
    assert set(firsts) == {"openai/gpt", "local/llama"}
    assert 2800 < firsts["openai/gpt"] < 3200
    for _ in range(20):
        names = tuple(target.name for target in ROUTES.route("spread").targets)
        assert sorted(names) == ["local/llama", "openai/gpt", "openai/spare"]
        assert names[-1] == "openai/spare"


def test_fallbacks_come_after_the_targets_and_nobody_is_asked_twice() -> None:
    route = ROUTES.route("openai/gpt", Routing(("sure", "openai/other")))
    assert tuple(target.name for target in route.targets) == ("openai/gpt", "local/llama", "openai/other")
    with pytest.raises(InvalidArgument) as raised:
        ROUTES.route("fast", Routing(("sure", "nope")))
    assert raised.value.violations[0].field == "prompt.routing.fallbacks[1]"


@pytest.mark.parametrize(
    "name", ["nope", "local/not-listed", "away/gpt", "openai/", "/gpt", "local", "openai/vec", "fast/llama"]
)
def test_an_unknown_name_names_the_field(name: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        ROUTES.route(name)
    assert raised.value.reason == "MODEL_NOT_FOUND"
    assert raised.value.metadata == {"model": name}
    assert raised.value.violations[0].field == "prompt.model"


def test_embedding_asks_embedding_models_only() -> None:
    assert ROUTES.embedding("") == Target("openai", "vec")
    assert ROUTES.embedding("openai/another") == Target("openai", "another")
    for name in ("openai/gpt", "local/llama", "fast"):
        with pytest.raises(InvalidArgument):
            ROUTES.embedding(name)


def catalogue(entries: Iterable[Entry]) -> Catalogue:
    return Catalogue(entries, Breakers(Hand(), BreakerRules(failures=1)))


def test_pages_are_stable_while_entries_come_and_go() -> None:
    names = [f"m{number:03}" for number in range(250)]
    first = catalogue(Entry(name, Kind.GENERATIVE) for name in names).page(100, "", None)
    changed = catalogue(Entry(name, Kind.GENERATIVE) for name in [*names, "m099a", "a"] if name != "m099")
    second = changed.page(100, first.next_token, None)
    assert [entry.name for entry in second.entries][:2] == ["m099a", "m100"]
    last = changed.page(0, second.next_token, None)
    assert (last.entries[-1].name, last.next_token) == ("m249", "")


def test_pages_can_be_of_one_kind() -> None:
    found = catalogue([Entry("b", Kind.ALIAS), Entry("a", Kind.GENERATIVE), Entry("c", Kind.EMBEDDING)])
    assert [entry.name for entry in found.page(0, "", Kind.EMBEDDING).entries] == ["c"]
    assert found.get("b").kind is Kind.ALIAS
    with pytest.raises(NotFound):
        found.get("d")


def test_health_is_what_the_breakers_say_and_an_alias_is_as_well_as_its_best_target() -> None:
    clock = Hand()
    breakers = Breakers(clock, BreakerRules(failures=1, open_s=5))
    one, two = Entry("a/one", Kind.GENERATIVE), Entry("a/two", Kind.GENERATIVE)
    both = Entry("both", Kind.ALIAS, targets=(("a/one", 0), ("a/two", 0)))
    found = Catalogue([one, two, both], breakers)
    assert found.health(one) is Health.OK
    breakers.failed("a/one", unreachable("a"))
    assert (found.health(one), found.health(two), found.health(both)) == (Health.UNAVAILABLE, Health.OK, Health.OK)
    breakers.failed("a/two", unreachable("a"))
    assert found.health(both) is Health.UNAVAILABLE
    clock.seconds += 5
    assert found.health(both) is Health.RECOVERING


@pytest.mark.parametrize("size", [-1, 1001])
def test_a_page_has_bounds(size: int) -> None:
    with pytest.raises(InvalidArgument) as raised:
        catalogue([]).page(size, "", None)
    assert raised.value.violations[0].field == "page_size"


@pytest.mark.parametrize("token", ["nope", "ü", "W10", "bnVsbA", "WyJhIiwgMV0", "====", "x" * 5000])
def test_a_token_of_nobody_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        catalogue([]).page(0, token, None)
    assert raised.value.reason == "PAGE_TOKEN_INVALID"


def test_a_token_of_another_query_is_refused() -> None:
    found = catalogue(Entry(f"m{number}", Kind.GENERATIVE) for number in range(3))
    token = found.page(1, "", Kind.GENERATIVE).next_token
    with pytest.raises(InvalidArgument):
        found.page(1, token, None)


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
        ({"aliases": {"fast": ["scripted/rehearsal", "scripted/rehearsal"]}}, "unique"),
        ({"aliases": {"fast": []}}, "at least 1"),
        ({"aliases": {"fast": {"targets": ["scripted/rehearsal"], "hedge_after_s": 0}}}, "hedge_after_s"),
        ({"limits": [{"name": "x"}]}, "must set one of"),
        ({"limits": [{"name": "x", "concurrent": 1}, {"name": "x", "concurrent": 2}]}, "unique"),
        ({"prices": {"away/model": {"input_usd": 1}}}, "away/model"),
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
