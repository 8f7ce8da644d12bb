"""Settings of inference: providers, models, aliases and time limits."""

import random
import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

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
# The key is `api_key`'s, and the others say how a request is framed and read.
_OWN_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-api-key",
    }
)
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
    api: Literal["auto", "responses", "chat"] | None = None
    """OpenAI's wire format. `auto`, the default of kind `openai`: Responses, and Chat Completions for what only
    that can say. `chat`: the default of kind `openai_compatible`."""
    profile: str = ""
    """Name of the server's profile, e.g. `vllm`, where its address does not tell. Empty: by the address."""
    issuer: str = Field(default="", pattern=r"^([a-z0-9][a-z0-9_-]{0,63})?$")
    """Whose reasoning, sources and blocks may be sent back here: the same for providers that share an account at the
    same API. Empty: the provider's name, so that no other gets them."""
    headers: dict[str, SecretStr] = Field(default_factory=dict, max_length=32)
    """Sent with every request beside those that Janus sets, e.g. `anthropic-beta`, or what a proxy asks for."""

    @field_validator("base_url")
    @classmethod
    def _has_scheme(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        if value:
            try:
                parts = urlsplit(value)
                is_one = bool(parts.hostname) and parts.port != 0
            except ValueError:
                is_one = False
            if not is_one:
                raise ValueError("must be an address: http://host:port/path")
        return value.rstrip("/")

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[\x21-\x7e]*", value.get_secret_value()):
            raise ValueError("must be printable ASCII without spaces, since it is sent in a header")
        return value

    @field_validator("headers")
    @classmethod
    def _may_be_added(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in value.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", name):
                raise ValueError(f"'{name[:64]}' is no name of a header")
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"'{name}' is set by Janus")
            if not re.fullmatch(r"[\x20-\x7e]{1,4096}", secret.get_secret_value().strip()):
                raise ValueError(f"the value of '{name}' must be 1 to 4,096 printable ASCII characters")
        if len({name.lower() for name in value}) != len(value):
            raise ValueError("names of headers must be unique, whatever their case")
        return value

    @property
    def own_headers(self) -> dict[str, str]:
        """The headers as they are sent."""
        return {name: secret.get_secret_value().strip() for name, secret in self.headers.items()}

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


class TargetSettings(Settings):
    """One target of an alias; in a list of targets its bare `provider/model` is enough."""

    model: str = Field(min_length=3, max_length=256)
    weight: int = Field(default=0, ge=0, le=1000)
    """Share of first attempts. 0 for all: they are asked in order."""


def _target(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


class AliasSettings(Settings):
    """A name for one or more models; a bare target, or a list of them, is enough."""

    targets: tuple[Annotated[TargetSettings, BeforeValidator(_target)], ...] = Field(min_length=1, max_length=16)
    hedge_after_s: float | None = Field(default=None, ge=0.01, le=60)
    """Ask the next target as well after so long without a first event. Unset: no hedging."""

    @model_validator(mode="after")
    def _weights_make_sense(self) -> Self:
        names = [target.model for target in self.targets]
        if len(set(names)) != len(names):
            raise ValueError("targets of an alias must be unique")
        return self


def _alias(value: object) -> object:
    if isinstance(value, str):
        return {"targets": (value,)}
    return {"targets": value} if isinstance(value, list | tuple) else value


class RoutingSettings(Settings):
    """Retries, fallbacks and circuit breakers; the same for every target."""

    max_attempts: int = Field(default=4, ge=1, le=16)
    """Most attempts of one call: the first, retries, fallbacks and hedges."""
    backoff_s: float = Field(default=0.2, ge=0, le=60)
    """Wait before the first retry of the same target; doubles each time, and half of it is random. A provider's
    `retry-after` comes first."""
    backoff_most_s: float = Field(default=5.0, ge=0, le=300)
    """Longest wait before a retry; a provider that asks for more is not retried in this call."""
    retry_budget_ratio: float = Field(default=0.2, ge=0, le=1)
    """Most extra attempts to a provider (retries and hedges), as a share of its first ones in the last minute."""
    retry_budget_least: int = Field(default=10, ge=0, le=10_000)
    """Extra attempts to a provider that are allowed in a minute whatever the share."""
    breaker_failures: int = Field(default=5, ge=1, le=1000)
    """Failures in a row after which a target's circuit breaker opens."""
    breaker_open_s: float = Field(default=5.0, ge=0.01, le=3600)
    """How long it stays open the first time; doubles while trials fail."""
    breaker_open_most_s: float = Field(default=60.0, ge=0.01, le=3600)

    def wait(self, times: int, asked: float | None) -> float:
        """Seconds before a target that failed so many times is asked again: what it said, or exponential back-off,
        half of it random."""
        if asked is not None:
            return asked
        backoff = min(self.backoff_s * 2.0 ** (times - 1), self.backoff_most_s)
        return backoff * random.uniform(0.5, 1.0)  # noqa: S311 - it spreads load, it guards nothing


class LimitSettings(Settings):
    """One limit. It applies to calls whose tenant, subject and model fit, each empty list fitting all.

    `*` in them stands for any characters. Counters are always per tenant;
    ``per`` splits them further.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    tenants: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """`provider/model`."""
    per: tuple[Literal["subject", "model"], ...] = ()
    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10_000_000_000)
    """Input and output tokens together."""
    concurrent: int | None = Field(default=None, ge=1, le=1_000_000)
    """Calls and streams at the same time."""
    spend_usd: float | None = Field(default=None, gt=0, le=100_000_000)
    spend_window: Literal["hour", "day", "month"] = "day"
    """Calendar window in UTC that spend_usd is for."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if all(
            each is None for each in (self.requests_per_minute, self.tokens_per_minute, self.concurrent, self.spend_usd)
        ):
            raise ValueError("must set one of requests_per_minute, tokens_per_minute, concurrent and spend_usd")
        return self


class PriceSettings(Settings):
    """Price of a model in US dollars per million tokens."""

    input_usd: float = Field(ge=0, le=1_000_000)
    output_usd: float = Field(default=0.0, ge=0, le=1_000_000)
    cache_read_usd: float | None = Field(default=None, ge=0, le=1_000_000)
    """Unset: as input."""
    cache_write_usd: float | None = Field(default=None, ge=0, le=1_000_000)
    """Unset: as input."""


class InferenceSettings(Settings):
    """The section `inference`."""

    default_model: str = ""
    """Alias or `provider/model` for prompts that name none. Empty: the first real provider, else the rehearsal."""
    default_embedding_model: str = ""
    """`provider/model` for Embed without a model. Empty: the first embedding model that is listed."""
    providers: dict[str, ProviderSettings] = Field(default_factory=dict)
    """Upstream APIs by name. `scripted` is always there."""
    aliases: dict[str, Annotated[AliasSettings, BeforeValidator(_alias)]] = Field(default_factory=dict)
    """Names for one or more models, in order or by weight."""
    routing: RoutingSettings = RoutingSettings()
    limits: tuple[LimitSettings, ...] = Field(default=(), max_length=256)
    """What callers may use. Empty: no limits."""
    limits_without_redis: Literal["refuse", "allow"] = "refuse"
    """What happens to calls that a limit applies to while Redis, which counts, is away."""
    prices: dict[str, PriceSettings] = Field(default_factory=dict)
    """Prices by `provider/model`, over those that come with Janus."""
    usage_wait_s: Seconds = 5.0
    """How long an answer waits for Postgres to take its usage record before the call fails."""
    replay_s: Seconds = 600.0
    """How long the events of a resumable generation are kept after its end."""
    linger_s: float = Field(default=30.0, ge=0, le=600)
    """How long a resumable generation goes on without a reader where the prompt says nothing."""
    cache_max_bytes: int = Field(default=262_144, ge=1024, le=4_194_304)
    """Largest answer that the response cache keeps."""
    record_content: bool = False
    """Put prompts and answers into traces. They hold whatever people write: off unless that is wanted."""
    usage_counters: bool = False
    """Also count tokens as `gen_ai_client_inference_usage_*`, the names that the GenAI conventions are moving to."""
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
        self._require_one_kind_an_issuer()
        for name, alias in self.aliases.items():
            if not _ALIAS_NAME.fullmatch(name):
                raise ValueError(f"alias '{name[:64]}': a name is letters, digits, '.', '_', ':' and '-'")
            for target in alias.targets:
                self._require_known(target.model, f"alias '{name}'")
        for name in self.prices:
            provider, _, model = name.partition("/")
            if provider not in self.all_providers() or not model:
                raise ValueError(f"prices: '{name[:128]}' is not provider/model of a configured provider")
        if len({limit.name for limit in self.limits}) != len(self.limits):
            raise ValueError("names of limits must be unique")
        if self.default_model and self.default_model not in self.aliases:
            self._require_known(self.default_model, "default_model")
        if self.default_embedding_model:
            self._require_known(self.default_embedding_model, "default_embedding_model")
        return self

    def _require_one_kind_an_issuer(self) -> None:
        """What one kind of API issued another cannot read."""
        kinds: dict[str, str] = {}
        for name, provider in self.all_providers().items():
            issuer = provider.issuer or name
            if kinds.setdefault(issuer, provider.kind) != provider.kind:
                raise ValueError(f"provider '{name}': the providers of issuer '{issuer}' must all be of one kind")

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
