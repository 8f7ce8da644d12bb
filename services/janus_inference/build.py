"""From settings to use cases: the one place that knows every provider's class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from janus_inference.adapters.anthropic import Anthropic
from janus_inference.adapters.openai_auto import OpenAIAuto
from janus_inference.adapters.openai_chat import OpenAIChat
from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.adapters.openai_embeddings import OpenAIEmbeddings
from janus_inference.adapters.openai_responses import OpenAIResponses
from janus_inference.adapters.scripted import Scripted
from janus_inference.adapters.tool_names import Fitted, FittedCounter
from janus_inference.asking import Desk, Underway
from janus_inference.breakers import BreakerRules, Breakers
from janus_inference.caching import AnswerCache
from janus_inference.catalogue import Catalogue, Entry, Kind
from janus_inference.counting import Counting
from janus_inference.deadlines import TimeLimits
from janus_inference.embedding import Embedding
from janus_inference.engine import Holding, Shared
from janus_inference.families import family
from janus_inference.generation import Generation
from janus_inference.inference import Inference
from janus_inference.ledger import Ledger
from janus_inference.limits import Holds, Limiter
from janus_inference.ports import Embedder, EventCodec, Provider, TokenCounter
from janus_inference.prices import PriceTable
from janus_inference.profiles import OPENAI, PROFILES, capabilities, chat_profile
from janus_inference.requests import Requests
from janus_inference.resuming import Resumables
from janus_inference.retry_budget import RetryBudget
from janus_inference.routing import Alias, ProviderModels, Routes
from janus_inference.settings import DEFAULT_ALIAS, InferenceSettings, ModelSettings, ProviderSettings
from janus_inference.standing import Standings
from janus_inference.telemetry import Naming
from janus_kit.clock import Clock
from janus_kit.settings import SettingsError


@dataclass(frozen=True)
class Upstream:
    """One configured provider, and what of it embeds and counts."""

    provider: Provider
    embedder: Embedder | None = None
    counter: TokenCounter | None = None

    async def close(self) -> None:
        """Close its connections."""
        await self.provider.close()


@dataclass(frozen=True)
class Process:
    """What outlives a change of the settings."""

    clock: Clock
    upstreams: Shared[Upstream]
    standings: Standings
    breakers: Breakers
    budget: RetryBudget
    holds: Holds
    ledger: Ledger
    requests: Requests
    underway: Underway
    cache: AnswerCache
    resumables: Resumables
    codec: EventCodec
    known: dict[str, ProviderSettings] = field(default_factory=dict)
    """The providers as they are configured now."""


async def build(process: Process, settings: InferenceSettings) -> Inference:
    """The use cases under these settings. Raises SettingsError, leaving all as it was, for a profile that is none."""
    _refuse_unknown_profiles(settings)
    holding = process.upstreams.holding()
    try:
        made = _made(process, settings, holding)
    except BaseException:
        await holding.release()
        raise
    process.breakers.rules = BreakerRules(
        settings.routing.breaker_failures, settings.routing.breaker_open_s, settings.routing.breaker_open_most_s
    )
    process.budget.ratio = settings.routing.retry_budget_ratio
    process.budget.least = settings.routing.retry_budget_least
    _forget_changed(process, settings.all_providers())
    return made


def _refuse_unknown_profiles(settings: InferenceSettings) -> None:
    problems = [
        f"inference.providers.{name}.profile: there is none of that name; there are {', '.join(PROFILES)}"
        for name, provider in settings.providers.items()
        if provider.profile and provider.profile not in PROFILES
    ]
    if problems:
        raise SettingsError(problems)


def _forget_changed(process: Process, configured: Mapping[str, ProviderSettings]) -> None:
    """What is known of a provider does not hold once it has another address or key."""
    for name, provider in configured.items():
        if process.known.get(name, provider) != provider:
            process.breakers.forget(name)
            process.standings.succeeded(name)
    process.known.clear()
    process.known.update(configured)


def _made(process: Process, settings: InferenceSettings, holding: Holding[Upstream]) -> Inference:
    configured = settings.all_providers()
    upstreams = {name: _taken(holding, name, each, settings) for name, each in configured.items()}
    aliases = _aliases(settings)
    routes = Routes(
        {name: _models(each) for name, each in configured.items()},
        aliases,
        settings.default_target(),
        settings.default_embedding_target(),
    )
    prices = PriceTable.of_settings(settings)
    limits = TimeLimits(
        settings.connect_timeout_s,
        settings.first_event_timeout_s,
        settings.idle_timeout_s,
        settings.total_timeout_s,
    )
    naming = Naming.of_settings(settings, prices)
    entries = _entries(configured, prices)
    desk = Desk(
        providers={name: each.provider for name, each in upstreams.items()},
        time_limits=limits,
        routing=settings.routing,
        limiter=Limiter(process.holds, settings.limits, without_store=settings.limits_without_redis),
        prices=prices,
        ledger=process.ledger,
        breakers=process.breakers,
        budget=process.budget,
        standings=process.standings,
        clock=process.clock,
        underway=process.underway,
        naming=naming,
    )
    return Inference(
        settings=settings,
        generation=Generation(
            desk, routes, process.requests, process.cache, process.resumables, process.codec, settings.linger_s
        ),
        embedding=Embedding(
            {name: each.embedder for name, each in upstreams.items() if each.embedder is not None},
            routes,
            settings.total_timeout_s,
            desk,
        ),
        counting=Counting(
            {name: each.counter for name, each in upstreams.items() if each.counter is not None}, routes, limits, naming
        ),
        catalogue=Catalogue(
            [*entries, *_alias_entries(aliases, entries, configured, prices)],
            process.breakers,
            partial(_unlisted, configured, prices),
        ),
        release=holding.release,
        warm=partial(_warm, {name: upstreams[name] for name, each in configured.items() if is_usable(each)}),
    )


async def _warm(upstreams: Mapping[str, Upstream]) -> None:
    for upstream in upstreams.values():
        await upstream.provider.warm()


def is_usable(provider: ProviderSettings) -> bool:
    """Whether it can be asked at all: it has a key, or needs none."""
    return provider.api_key is not None or provider.kind in ("scripted", "openai_compatible")


def _taken(holding: Holding[Upstream], name: str, provider: ProviderSettings, settings: InferenceSettings) -> Upstream:
    # A dump masks what is secret.
    secrets = _secret(provider), tuple(provider.own_headers.items())
    key = (name, provider.model_dump_json(exclude={"models"}), settings.scripted_pace_ms, secrets)
    return holding.take(key, lambda: _upstream(name, provider, settings.scripted_pace_ms))


def _secret(provider: ProviderSettings) -> str | None:
    return provider.api_key.get_secret_value() if provider.api_key else None


def _upstream(name: str, provider: ProviderSettings, pace_ms: float) -> Upstream:
    key, issuer = _secret(provider), provider.issuer or name
    match provider.kind:
        case "scripted":
            scripted = Scripted(name, pace_ms)
            return Upstream(scripted, counter=scripted)
        case "anthropic":
            anthropic = Anthropic(name, provider.address, key, provider.own_headers, issuer=issuer)
            return Upstream(Fitted(anthropic), counter=FittedCounter(anthropic))
    official = provider.kind == "openai"
    profile = PROFILES[provider.profile] if provider.profile else OPENAI if official else chat_profile(provider.address)
    client = OpenAIClient(provider.address, key, provider.own_headers)
    usable = {"has_key": bool(key), "needs_key": official}
    chat = OpenAIChat(name, client, profile, issuer=issuer, **usable)
    responses = OpenAIResponses(name, client, profile, issuer=issuer, **usable)
    embedder = OpenAIEmbeddings(name, client, profile, **usable)
    counter = FittedCounter(responses) if official else None
    api = provider.api or ("auto" if official else "chat")
    if api == "auto":
        return Upstream(Fitted(OpenAIAuto(responses, chat)), embedder, counter)
    return Upstream(Fitted(chat if api == "chat" else responses), embedder, counter)


def _models(provider: ProviderSettings) -> ProviderModels:
    return ProviderModels(
        generative=frozenset(model.name for model in provider.listed if model.kind == "generative"),
        embedding=frozenset(model.name for model in provider.listed if model.kind == "embedding"),
        open_ended=provider.open_ended,
    )


def _aliases(settings: InferenceSettings) -> Mapping[str, Alias]:
    """Those configured, and `default` for what a prompt without a model asks."""
    aliases = {
        name: Alias(tuple((target.model, target.weight) for target in alias.targets), alias.hedge_after_s)
        for name, alias in settings.aliases.items()
    }
    target = settings.default_target()
    return {DEFAULT_ALIAS: aliases.get(target, Alias(((target, 0),))), **aliases}


def _entries(providers: Mapping[str, ProviderSettings], prices: PriceTable) -> list[Entry]:
    return [
        _entry(name, provider, model, prices)
        for name, provider in providers.items()
        if is_usable(provider)
        for model in provider.listed
    ]


def _entry(name: str, provider: ProviderSettings, model: ModelSettings, prices: PriceTable) -> Entry:
    embeds = model.kind == "embedding"
    described = "Answers by rule, without a language model." if provider.kind == "scripted" else ""
    known, price = family(model.name), prices.of(name, model.name)
    return Entry(
        name=f"{name}/{model.name}",
        kind=Kind.EMBEDDING if embeds else Kind.GENERATIVE,
        provider=name,
        context_window_tokens=model.context_window_tokens or known.context_window,
        max_output_tokens=model.max_output_tokens or (None if embeds else known.max_output),
        capabilities=("EMBEDDING",) if embeds else tuple(sorted(capabilities(provider.kind, model.name))),
        description=model.description or described,
        price=price,
        price_version=prices.version if price is not None else "",
    )


def _unlisted(providers: Mapping[str, ProviderSettings], prices: PriceTable, name: str) -> Entry | None:
    """A model that nobody listed, of a provider that can be asked for any."""
    provider, slash, model = name.partition("/")
    known = providers.get(provider)
    if known is None or not slash or not model or not known.open_ended or not is_usable(known):
        return None
    kind = "embedding" if "embed" in model.lower() else "generative"
    return _entry(provider, known, ModelSettings(name=model, kind=kind), prices)  # type: ignore[arg-type]


def _alias_entries(
    aliases: Mapping[str, Alias],
    entries: Sequence[Entry],
    providers: Mapping[str, ProviderSettings],
    prices: PriceTable,
) -> list[Entry]:
    """Aliases, each with what all of its targets can do; a price only where they have the same."""
    known = {entry.name: entry for entry in entries}

    def entry(name: str, alias: Alias) -> Entry:
        targets = [known.get(each) or _unlisted(providers, prices, each) for each in alias.names]
        found = [each for each in targets if each is not None]
        if not found or len(found) < len(targets):
            return Entry(name, Kind.ALIAS, targets=alias.targets)
        of_one_price = len({each.price for each in found}) == 1
        return Entry(
            name,
            Kind.ALIAS,
            targets=alias.targets,
            context_window_tokens=_least([each.context_window_tokens for each in found]),
            max_output_tokens=_least([each.max_output_tokens for each in found]),
            capabilities=tuple(sorted(set.intersection(*(set(each.capabilities) for each in found)))),
            price=found[0].price if of_one_price else None,
            price_version=found[0].price_version if of_one_price else "",
        )

    return [entry(name, alias) for name, alias in aliases.items()]


def _least(numbers: Sequence[int | None]) -> int | None:
    """The least of them; None where one is not known."""
    known = [number for number in numbers if number is not None]
    return min(known) if len(known) == len(numbers) else None
