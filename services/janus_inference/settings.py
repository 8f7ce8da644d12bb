"""Settings of inference: providers, models, aliases and time limits."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from janus_kit.settings import Settings

Kind = Literal["openai", "anthropic", "openai_compatible", "scripted"]
Seconds = Annotated[float, Field(ge=0.001, le=3600)]

DEFAULT_ALIAS = "default"
SCRIPTED = "scripted"
SCRIPTED_MODEL = "rehearsal"

_PROVIDER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ALIAS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

# What is listed when a provider names no models; any other of its models can be asked as well.
_KNOWN: dict[str, tuple[str, ...]] = {
    "openai": (
        "gpt-5",
        "gpt-5-mini",
        "gpt-5-nano",
        "gpt-4.1",
        "gpt-4.1-mini",
        "gpt-4o",
        "gpt-4o-mini",
        "text-embedding-3-small",
        "text-embedding-3-large",
    ),
    "anthropic": ("claude-sonnet-4-5", "claude-opus-4-1", "claude-haiku-4-5"),
    "scripted": (SCRIPTED_MODEL,),
}
_BASE_URL = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}


class ModelSettings(Settings):
    """A model of a provider; in a list of models its bare name is enough."""

    name: str = Field(min_length=1, max_length=200)
    kind: Literal["generative", "embedding"] = "generative"
    context_window_tokens: int | None = Field(default=None, ge=1)
    max_output_tokens: int | None = Field(default=None, ge=1)
    description: str = Field(default="", max_length=500)


def _model(value: object) -> object:
    """A bare name is a model; one that says that it embeds is taken at its word."""
    if isinstance(value, str):
        return {"name": value, "kind": "embedding" if "embed" in value.lower() else "generative"}
    return value


class ProviderSettings(Settings):
    """One upstream API under a name of its own, e.g. `openai` or `ollama`."""

    kind: Kind
    base_url: str = ""
    """Where it is, with scheme, and `/v1` where its API has that. Empty: the provider's own address."""
    api_key: SecretStr | None = None
    models: tuple[Annotated[ModelSettings, BeforeValidator(_model)], ...] = ()
    """Models that can be asked. Empty: any, with the well-known ones listed."""

    @field_validator("base_url")
    @classmethod
    def _has_scheme(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.kind == "openai_compatible" and not self.base_url:
            raise ValueError("an openai_compatible provider needs a base_url")
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError("names of models must be unique")
        return self

    @property
    def address(self) -> str:
        """The base URL that is used."""
        return self.base_url or _BASE_URL.get(self.kind, "")

    @property
    def open_ended(self) -> bool:
        """Whether models that are not listed can be asked as well."""
        return not self.models and self.kind != "scripted"

    @property
    def listed(self) -> tuple[ModelSettings, ...]:
        """The models to show."""
        if self.models:
            return self.models
        return tuple(ModelSettings.model_validate(_model(name)) for name in _KNOWN.get(self.kind, ()))


def _targets(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Targets = Annotated[tuple[str, ...], BeforeValidator(_targets), Field(min_length=1, max_length=1)]


class InferenceSettings(Settings):
    """The section `inference`."""

    default_model: str = ""
    """Alias or `provider/model` for prompts that name none. Empty: the first real provider, else the rehearsal."""
    default_embedding_model: str = ""
    """`provider/model` for Embed without a model. Empty: the first embedding model that is listed."""
    providers: dict[str, ProviderSettings] = Field(default_factory=dict)
    """Upstream APIs by name. `scripted` is always there."""
    aliases: dict[str, Targets] = Field(default_factory=dict)
    """Names for models; this version asks one target, so an alias has exactly one."""
    openai_api_key: SecretStr | None = None
    """Shorthand for a provider `openai` with this key."""
    anthropic_api_key: SecretStr | None = None
    """Shorthand for a provider `anthropic` with this key."""
    connect_timeout_s: Seconds = 5.0
    first_event_timeout_s: Seconds = 60.0
    idle_timeout_s: Seconds = 30.0
    total_timeout_s: Seconds = 600.0
    scripted_pace_ms: float = Field(default=2.0, ge=0, le=10_000)
    """Time between two words of the rehearsal."""

    @model_validator(mode="after")
    def _names_are_good(self) -> Self:
        for name in self.providers:
            if not _PROVIDER_NAME.fullmatch(name):
                raise ValueError(f"provider '{name[:64]}': a name is lower-case letters, digits, _ and -")
        for name, targets in self.aliases.items():
            if not _ALIAS_NAME.fullmatch(name):
                raise ValueError(f"alias '{name[:64]}': a name is letters, digits, '.', '_', ':' and '-'")
            for target in targets:
                self._require_known(target, f"alias '{name}'")
        if self.default_model and self.default_model not in self.aliases:
            self._require_known(self.default_model, "default_model")
        if self.default_embedding_model:
            self._require_known(self.default_embedding_model, "default_embedding_model")
        return self

    def _require_known(self, target: str, who: str) -> None:
        provider, _, model = target.partition("/")
        found = self.all_providers().get(provider)
        if found is None or not model:
            raise ValueError(f"{who}: '{target[:128]}' is not provider/model of a configured provider")
        if not found.open_ended and model not in {each.name for each in found.listed}:
            raise ValueError(f"{who}: provider '{provider}' has no model '{model[:128]}'")

    def all_providers(self) -> dict[str, ProviderSettings]:
        """The providers as configured, those of the shorthand keys, and the rehearsal, in this order."""
        found = dict(self.providers)
        for name, key in (("openai", self.openai_api_key), ("anthropic", self.anthropic_api_key)):
            if key is None or not key.get_secret_value():
                continue
            if name not in found:
                found[name] = ProviderSettings.model_validate({"kind": name, "api_key": key})
            elif found[name].api_key is None and found[name].kind == name:
                found[name] = found[name].model_copy(update={"api_key": key})
        found.setdefault(SCRIPTED, ProviderSettings(kind="scripted"))
        return found

    def default_target(self) -> str:
        """What a prompt that names no model asks: an alias or `provider/model`."""
        if self.default_model:
            return self.default_model
        if DEFAULT_ALIAS in self.aliases:
            return DEFAULT_ALIAS
        for name, provider in self.all_providers().items():
            if provider.kind == "scripted" or (provider.kind != "openai_compatible" and not provider.api_key):
                continue
            for model in provider.listed:
                if model.kind == "generative":
                    return f"{name}/{model.name}"
        return f"{SCRIPTED}/{SCRIPTED_MODEL}"

    def default_embedding_target(self) -> str:
        """What Embed without a model asks; empty when no embedding model is configured."""
        if self.default_embedding_model:
            return self.default_embedding_model
        for name, provider in self.all_providers().items():
            if provider.kind == "openai_compatible" or provider.api_key:
                for model in provider.listed:
                    if model.kind == "embedding":
                        return f"{name}/{model.name}"
        return ""
