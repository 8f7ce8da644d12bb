"""The composition root of inference: settings in, ``Mount`` out. The one place that knows every class."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import grpc

from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_inference.adapters.anthropic import Anthropic
from janus_inference.adapters.openai_chat import OpenAIChat
from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.adapters.openai_embeddings import OpenAIEmbeddings
from janus_inference.adapters.scripted import Scripted
from janus_inference.catalogue import Catalogue, Entry, Kind
from janus_inference.embedding import Embedding
from janus_inference.generation import Generation, Limits
from janus_inference.ports import Embedder, Provider
from janus_inference.profiles import OPENAI, chat_profile, max_output_tokens
from janus_inference.provider_errors import not_configured
from janus_inference.routing import ProviderModels, Routes
from janus_inference.servicer import SERVICE, InferenceServicer
from janus_inference.settings import DEFAULT_ALIAS, InferenceSettings, ModelSettings, ProviderSettings
from janus_inference.standing import Standings
from janus_kit.clock import Clock, SystemClock
from janus_kit.mount import BackgroundTask, Mount, Part

_CAPABILITIES = {
    "openai": ("TEXT", "IMAGE_INPUT", "TOOLS", "PARALLEL_TOOLS", "JSON", "JSON_SCHEMA"),
    "anthropic": ("TEXT", "IMAGE_INPUT", "TOOLS", "PARALLEL_TOOLS", "JSON_SCHEMA", "PROMPT_CACHE"),
    "scripted": ("TEXT", "TOOLS", "PARALLEL_TOOLS", "JSON"),
    # What a compatible server's models can do is theirs to say.
    "openai_compatible": (),
}


@asynccontextmanager
async def mount(settings: InferenceSettings, *, clock: Clock | None = None) -> AsyncIterator[Mount]:
    """Inference, ready to be served; leaving the block closes the providers' connections."""
    configured = settings.all_providers()
    standings = Standings(clock or SystemClock())
    providers: dict[str, Provider] = {}
    embedders: dict[str, Embedder] = {}
    for name, each in configured.items():
        providers[name], embedder = _built(name, each, settings)
        if embedder is not None:
            embedders[name] = embedder
    aliases = _aliases(settings)
    routes = Routes(
        {name: _models(each) for name, each in configured.items()},
        aliases,
        settings.default_target(),
        settings.default_embedding_target(),
    )
    limits = Limits(
        settings.connect_timeout_s,
        settings.first_event_timeout_s,
        settings.idle_timeout_s,
        settings.total_timeout_s,
    )
    generation = Generation(providers, routes, limits, standings)
    embedding = Embedding(embedders, routes, settings.total_timeout_s, standings)
    catalogue = Catalogue([*_entries(configured), *_alias_entries(aliases)])
    servicer = InferenceServicer(generation, embedding, catalogue, standings)

    def register(server: grpc.aio.Server) -> None:
        rpc.add_InferenceServiceServicer_to_server(servicer, server)

    async with AsyncExitStack() as stack:
        for provider in providers.values():
            stack.push_async_callback(provider.close)
        yield Mount(
            name="inference",
            register=register,
            services=(SERVICE,),
            parts=tuple(_part(name, each, standings) for name, each in configured.items()),
            background=tuple(
                (f"inference-warm-{name}", _warming(providers[name]))
                for name, each in configured.items()
                if each.kind != "scripted" and _is_usable(each)
            ),
        )


def _built(name: str, provider: ProviderSettings, settings: InferenceSettings) -> tuple[Provider, Embedder | None]:
    key = provider.api_key.get_secret_value() if provider.api_key else None
    match provider.kind:
        case "scripted":
            return Scripted(name, settings.scripted_pace_ms), None
        case "anthropic":
            return Anthropic(name, provider.address, key), None
    official = provider.kind == "openai"
    profile = OPENAI if official else chat_profile(urlsplit(provider.address).hostname or "")
    client = OpenAIClient(provider.address, key)
    chat = OpenAIChat(
        name,
        client,
        profile,
        issuer="openai" if official else name,
        has_key=bool(key),
        needs_key=official,
    )
    return chat, OpenAIEmbeddings(name, client, profile, has_key=bool(key), needs_key=official)


def _models(provider: ProviderSettings) -> ProviderModels:
    return ProviderModels(
        generative=frozenset(model.name for model in provider.listed if model.kind == "generative"),
        embedding=frozenset(model.name for model in provider.listed if model.kind == "embedding"),
        open_ended=provider.open_ended,
    )


def _aliases(settings: InferenceSettings) -> Mapping[str, tuple[str, ...]]:
    """Those configured, and `default` for what a prompt without a model asks."""
    target = settings.default_target()
    return {DEFAULT_ALIAS: settings.aliases.get(target, (target,)), **settings.aliases}


def _entries(providers: Mapping[str, ProviderSettings]) -> list[Entry]:
    return [
        _entry(name, provider, model)
        for name, provider in providers.items()
        if _is_usable(provider)
        for model in provider.listed
    ]


def _entry(name: str, provider: ProviderSettings, model: ModelSettings) -> Entry:
    embeds = model.kind == "embedding"
    described = "Answers by rule, without a language model." if provider.kind == "scripted" else ""
    return Entry(
        name=f"{name}/{model.name}",
        kind=Kind.EMBEDDING if embeds else Kind.GENERATIVE,
        provider=name,
        context_window_tokens=model.context_window_tokens,
        max_output_tokens=model.max_output_tokens or (None if embeds else max_output_tokens(model.name)),
        capabilities=("EMBEDDING",) if embeds else _CAPABILITIES[provider.kind],
        description=model.description or described,
    )


def _alias_entries(aliases: Mapping[str, tuple[str, ...]]) -> list[Entry]:
    return [Entry(name, Kind.ALIAS, targets=targets) for name, targets in aliases.items()]


def _is_usable(provider: ProviderSettings) -> bool:
    """Whether it can be asked at all: it has a key, or needs none."""
    return provider.api_key is not None or provider.kind in ("scripted", "openai_compatible")


def _part(name: str, provider: ProviderSettings, standings: Standings) -> Part:
    """Health of a provider: its configuration and its last call, never a call that costs money."""

    async def check() -> None:
        if not _is_usable(provider):
            raise not_configured(name).error
        if (problem := standings.problem(name)) is not None:
            raise problem.error

    return Part(
        name=f"provider:{name}",
        required=False,
        check=check,
        when_away=f"models of '{name}' fail; the others answer",
    )


def _warming(provider: Provider) -> BackgroundTask:
    async def warm() -> None:
        await provider.warm()

    return warm
