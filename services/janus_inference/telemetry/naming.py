"""What telemetry calls providers and models, and how much it may tell."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import urlsplit

from janus_inference.prices import PriceTable, undated
from janus_inference.settings import InferenceSettings, ProviderSettings
from janus_kit.telemetry import names

# Names that the GenAI conventions know; any other provider goes by its configured name.
_WELL_KNOWN = ("openai", "anthropic")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Peer:
    """A provider: its `gen_ai.provider.name`, and where it is. No address: it is in this process."""

    name: str
    address: str = ""
    port: int | None = None


@dataclass(frozen=True)
class Naming:
    """Names for labels and spans.

    Callers may ask for any model of some providers, so labels know those alone
    that are listed or have a price: ``models`` are (provider, model).
    ``record_content``: prompts and answers may be put into spans.
    ``usage_counters``: tokens are also counted under their coming names.
    """

    peers: Mapping[str, Peer] = field(default_factory=lambda: MappingProxyType({}))
    models: frozenset[tuple[str, str]] = frozenset()
    record_content: bool = False
    usage_counters: bool = False

    @classmethod
    def of_settings(cls, settings: InferenceSettings, prices: PriceTable) -> "Naming":
        """What is configured, and what has a price there."""
        providers = settings.all_providers()
        listed = {(name, model.name) for name, provider in providers.items() for model in provider.listed}
        priced = {
            (name, model)
            for name, provider in providers.items()
            if provider.open_ended
            for model in prices.packaged.get(prices.kinds.get(name, ""), ())
        }
        configured = {(name, model) for name, _, model in (each.partition("/") for each in prices.overrides)}
        return cls(
            {name: _peer(name, provider) for name, provider in providers.items()},
            frozenset(listed | priced | configured),
            settings.record_content,
            settings.usage_counters,
        )

    def peer(self, provider: str) -> Peer:
        """The provider of that configured name."""
        return self.peers.get(provider) or Peer(provider)

    def model(self, provider: str, model: str) -> str:
        """A label: the model's name, for a dated variant its family's, or `_OTHER`."""
        for name in (model, undated(model)):
            if (provider, name) in self.models:
                return name
        return names.OTHER

    def labels(self, operation: str, provider: str, model: str) -> tuple[str, str, str]:
        """What all GenAI metrics are split by."""
        return operation, self.peer(provider).name, self.model(provider, model)


PLAIN = Naming()
"""Nothing is configured: providers by their names, models not at all."""


def _peer(name: str, provider: ProviderSettings) -> Peer:
    known = provider.kind if provider.kind in _WELL_KNOWN else name
    if not provider.address:
        return Peer(known)
    parts = urlsplit(provider.address)
    try:
        port = parts.port
    except ValueError:
        port = None
    return Peer(known, parts.hostname or "", port or _PORTS.get(parts.scheme))
