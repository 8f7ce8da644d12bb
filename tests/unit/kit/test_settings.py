"""Settings: which source wins, what is refused and how, where a value came from."""

import pytest
from pydantic import Field, SecretStr, ValidationError

from janus_kit.settings import (
    PostgresSettings,
    RedisSettings,
    ServerSettings,
    Settings,
    SettingsError,
    load,
)


class Provider(Settings):
    url: str = ""
    api_key: SecretStr | None = None


class InferenceSettings(Settings):
    default_model: str = "scripted"
    timeout_s: float = 10
    openai_api_key: SecretStr | None = None
    providers: dict[str, Provider] = Field(default_factory=dict)
    aliases: dict[str, list[str]] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()


SECTIONS = {"inference": InferenceSettings, "postgres": PostgresSettings, "redis": RedisSettings}


@pytest.fixture
def yaml(tmp_path):
    def write(text):
        path = tmp_path / "janus.yaml"
        path.write_text(text)
        return path

    return write


def problems(**sources):
    with pytest.raises(SettingsError) as raised:
        load(SECTIONS, **sources)
    return raised.value.problems


def test_without_any_source_there_are_defaults():
    loaded = load(SECTIONS)
    assert loaded["inference"] == InferenceSettings()
    assert loaded.origin("inference.default_model") == "default"


def test_arguments_win_over_environment_over_secrets_over_file(yaml, tmp_path):
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    file = yaml("inference: {default_model: file, timeout_s: 1, openai_api_key: file}")
    (secrets / "janus_inference__openai_api_key").write_text("secret\n")
    (secrets / "janus_inference__default_model").write_text("secret")
    environ = {"JANUS_INFERENCE__DEFAULT_MODEL": "environment", "JANUS_INFERENCE__LABELS": '["a"]'}
    loaded = load(
        SECTIONS,
        file=file,
        environ=environ,
        secrets_dir=secrets,
        overrides={"inference.labels": ("argument",)},
    )
    found = loaded["inference"]
    assert found.timeout_s == 1
    assert found.openai_api_key.get_secret_value() == "secret"
    assert found.default_model == "environment"
    assert found.labels == ("argument",)
    assert loaded.origin("inference.timeout_s") == "file"
    assert loaded.origin("inference.openai_api_key") == "secret"
    assert loaded.origin("inference.default_model") == "environment JANUS_INFERENCE__DEFAULT_MODEL"
    assert loaded.origin("inference.labels") == "argument"


def test_the_environment_reaches_into_nested_models_and_maps():
    environ = {
        "JANUS_INFERENCE__PROVIDERS__OLLAMA__URL": "http://localhost:11434",
        "janus_inference__timeout_s": "2.5",
        "JANUS_INFERENCE__ALIASES": '{"fast": ["a/b"]}',
    }
    loaded = load(SECTIONS, environ=environ)
    assert loaded["inference"].providers["ollama"].url == "http://localhost:11434"
    assert loaded["inference"].timeout_s == 2.5
    assert loaded["inference"].aliases == {"fast": ["a/b"]}
    assert loaded.origin("inference.aliases.fast") == "environment JANUS_INFERENCE__ALIASES"


def test_well_known_names_set_what_they_are_known_for():
    environ = {"JANUS_POSTGRES_URL": "postgresql://x", "OPENAI_API_KEY": "sk-1", "ANTHROPIC_API_KEY": "unused"}
    loaded = load(SECTIONS, environ=environ)
    assert loaded["postgres"].url.get_secret_value() == "postgresql://x"
    assert loaded.origin("postgres.url") == "environment JANUS_POSTGRES_URL"
    assert loaded["inference"].openai_api_key.get_secret_value() == "sk-1"
    assert loaded.origin("inference.openai_api_key") == "environment OPENAI_API_KEY"


def test_the_full_name_wins_over_a_well_known_one():
    environ = {"JANUS_POSTGRES__URL": "postgresql://full", "JANUS_POSTGRES_URL": "postgresql://short"}
    assert load(SECTIONS, environ=environ)["postgres"].url.get_secret_value() == "postgresql://full"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "inference: {defualt_model: x}",
            "inference.defualt_model: unknown key, did you mean 'default_model'? (from file)",
        ),
        (
            "inference: {providers: {a: {ulr: x}}}",
            "inference.providers.a.ulr: unknown key, did you mean 'url'? (from file)",
        ),
        ("inferense: {default_model: x}", "inferense: unknown section, did you mean 'inference'? (from file)"),
        ("inference: {timeout_s: soon}", "inference.timeout_s: Input should be a valid number"),
        ("[1, 2]", "must hold a mapping of sections"),
        ("just text", "must hold a mapping of sections"),
        (" \n", "is empty"),
        ("inference: [1]", "inference: must be a mapping of keys (from file)"),
        ("a: b: c", "line 1: not valid YAML"),
        ("inference: {}\npostgres: {}\ninference: {}\n", "line 3: 'inference' is there twice"),
        ("inference:\n  providers:\n    a: {url: x, 'url': y}\n", "line 3: 'url' is there twice"),
        ("postgres: [{a: 1}, {a: 1, b: 2, b: 3}]", "line 1: 'b' is there twice"),
    ],
)
def test_a_mistake_in_the_file_is_named(yaml, text, problem):
    assert any(problem in found for found in problems(file=yaml(text))), problems(file=yaml(text))


def test_a_mistake_in_the_environment_is_named():
    assert problems(environ={"JANUS_INFERENCE__DEFAULT_MODLE": "x"}) == [
        "inference.default_modle: unknown key, did you mean 'default_model'? "
        "(from environment JANUS_INFERENCE__DEFAULT_MODLE)"
    ]
    assert problems(environ={"JANUS_INFERENC__TIMEOUT_S": "1"}) == [
        "JANUS_INFERENC__TIMEOUT_S: unknown section 'inferenc', did you mean 'inference'? (from environment)"
    ]


def test_the_same_key_may_be_in_two_mappings_and_behind_an_alias(yaml):
    text = "inference: {providers: {a: &one {url: x}, b: *one}}"
    providers = load(SECTIONS, file=yaml(text))["inference"].providers
    assert providers["a"] == providers["b"]


def test_all_mistakes_are_listed_at_once():
    environ = {"JANUS_INFERENCE__X": "1", "JANUS_POSTGRES__POOL_MAX": "0", "JANUS_NOTHING__X": "1"}
    assert len(problems(environ=environ)) == 3


def test_a_file_or_folder_that_is_not_there_is_named(tmp_path):
    assert "no such file" in problems(file=tmp_path / "absent.yaml")[0]
    assert "no such secrets directory" in problems(secrets_dir=tmp_path / "absent")[0]


def test_other_processes_sections_and_other_programs_names_are_left_alone(yaml, tmp_path):
    (tmp_path / "someone_elses_secret").write_text("x")
    (tmp_path / "..data").mkdir()
    loaded = load(
        {"inference": InferenceSettings},
        file=yaml("memory: {anything: 1}\ninference:"),
        environ={"JANUS_MEMORY__X": "1", "JANUS_CONFIG": "x", "PATH": "/bin", "JANUS_REDIS_URL": "redis://x"},
        secrets_dir=tmp_path,
        elsewhere=["memory"],
    )
    assert loaded["inference"] == InferenceSettings()


def test_secrets_are_masked_wherever_settings_are_shown():
    environ = {"JANUS_INFERENCE__PROVIDERS__A__API_KEY": "sk-secret", "JANUS_REDIS_URL": "redis://u:sk-secret@h"}
    loaded = load(SECTIONS, environ=environ)
    assert "sk-secret" not in repr(loaded) + str(loaded.masked()) + str(loaded["redis"])
    assert loaded.masked()["redis"]["url"] == "**********"


def test_a_rejected_secret_is_not_in_the_error():
    assert problems(environ={"JANUS_POSTGRES_URL": "mysql://u:hunter2@h"}) == [
        "postgres.url: must begin with postgresql:// or postgres:// (from environment JANUS_POSTGRES_URL)"
    ]
    assert "hunter2" not in str(problems(environ={"JANUS_POSTGRES__POOL_MAX": "hunter2"}))


def test_settings_do_not_change_once_loaded():
    with pytest.raises(ValidationError):
        ServerSettings().listen = "0.0.0.0:1"


def test_a_section_comes_out_typed():
    loaded = load(SECTIONS)
    assert loaded.section("postgres", PostgresSettings).pool_max == 10
    with pytest.raises(TypeError):
        loaded.section("postgres", RedisSettings)
