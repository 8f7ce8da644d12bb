"""What calls cost: list prices as data with a version, and the prices that a configuration puts over them.

The packaged table has the list prices of OpenAI and Anthropic for standard
processing, and holds for providers of those kinds at their own address. Under
another address the same name may cost anything: such a price is unknown until
it is configured. Unknown is None, never 0; only the rehearsal is free. What
providers charge apart from tokens, such as searches, is not part of a cost.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from janus_inference.events import Cost, Usage, is_list_tier
from janus_inference.settings import InferenceSettings, PriceSettings

# `gpt-4o-2024-08-06`, `claude-sonnet-4-5-20250929`, `claude-sonnet-4-5@20250929`: a dated variant of a family.
_DATED = re.compile(r"(?P<family>.+)[-@](?:20\d\d-[01]\d-[0-3]\d|20\d\d[01]\d[0-3]\d)")
_MILLION = 1_000_000
# Where the packaged prices hold.
_HOSTS = {"openai": "api.openai.com", "anthropic": "api.anthropic.com"}


@dataclass(frozen=True, slots=True)
class Price:
    """Millionths of a US dollar per million tokens.

    A call with more than ``threshold`` input tokens, however they were read,
    costs what ``above`` says, all of it; a threshold without that: unknown.
    """

    input: int
    cache_read: int
    cache_write: int
    output: int
    threshold: int | None = None
    above: "Price | None" = None

    def cost(self, usage: Usage) -> int | None:
        """Millionths of a US dollar, rounded half up once; None when it is not known for so long an input."""
        if self.threshold is not None and usage.input_tokens > self.threshold:
            return self.above.cost(usage) if self.above is not None else None
        exact = (
            usage.input_uncached_tokens * self.input
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
            + usage.output_tokens * self.output
        )
        return (exact + _MILLION // 2) // _MILLION


FREE = Price(0, 0, 0, 0)


@dataclass(frozen=True)
class PriceTable:
    """Prices of the configured providers' models.

    ``kinds``: by provider name, the kind whose packaged prices hold for it.
    ``overrides``: by `provider/model`; they come first, also for the dated
    variants of that model that have no price of their own.
    """

    version: str
    kinds: Mapping[str, str]
    packaged: Mapping[str, Mapping[str, Price]]
    overrides: Mapping[str, Price]

    @classmethod
    def of_settings(cls, settings: InferenceSettings) -> "PriceTable":
        """The packaged table under what the settings say."""
        version, packaged = _packaged()
        kinds = {
            name: provider.kind
            for name, provider in settings.all_providers().items()
            if provider.kind == "scripted"
            or (provider.kind in packaged and _is_at_home(provider.kind, provider.address))
        }
        overrides = {name: _price_from(price) for name, price in settings.prices.items()}
        if overrides:
            version = f"{version}+{_digest(overrides)}"
        return cls(version, kinds, packaged, overrides)

    def of(self, provider: str, model: str) -> Price | None:
        """The price of a model, or of the family that it is a dated variant of; None when it is unknown."""
        kind = self.kinds.get(provider, "")
        known = self.packaged.get(kind, {})
        for name in dict.fromkeys((model, undated(model))):
            price = self.overrides.get(f"{provider}/{name}") or known.get(name)
            if price is not None:
                return price
        return FREE if kind == "scripted" else None

    def cost(self, provider: str, model: str, usage: Usage) -> Cost | None:
        """What a call cost; None when the price is unknown."""
        price = self.of(provider, model)
        micro_usd = price.cost(usage) if price is not None and not usage.off_list else None
        return Cost(micro_usd, self.version) if micro_usd is not None else None


def is_at_list_price(options: Mapping[str, object]) -> bool:
    """Whether further fields of a provider's request leave its price what the table says.

    A tier, a speed, a place or a longer cache are charged at other prices,
    which no answer states in full: such a cost is unknown, not approximate.
    What the answer says of them is in its usage, see ``accounting``.
    """
    if not options:
        return True
    if not is_list_tier(options.get("service_tier")) or options.get("speed") not in (None, "standard"):
        return False
    return "inference_geo" not in options and '"ttl"' not in json.dumps(dict(options))


def undated(model: str) -> str:
    """The family of a dated variant; any other name as it is. `gpt-4o-mini` is no variant of `gpt-4o`."""
    found = _DATED.fullmatch(model)
    return found["family"] if found is not None else model


@cache
def _packaged() -> tuple[str, dict[str, dict[str, Price]]]:
    text = (resources.files(__package__) / "prices.json").read_text(encoding="utf-8")
    data = json.loads(text, parse_float=Decimal)
    models = {
        kind: {name: _price(entry) for entry in entries for name in entry["names"]}
        for kind, entries in data["models"].items()
    }
    return data["version"], models


def _price(entry: Mapping[str, Any]) -> Price:
    above = entry.get("above")
    price = _plain(entry)
    if above is None:
        return price
    return Price(
        price.input,
        price.cache_read,
        price.cache_write,
        price.output,
        threshold=above["input_tokens"],
        above=_plain(above) if "input" in above else None,
    )


def _plain(entry: Mapping[str, Any]) -> Price:
    read, write = entry.get("cache_read", entry["input"]), entry.get("cache_write", entry["input"])
    return Price(_micro(entry["input"]), _micro(read), _micro(write), _micro(entry.get("output", 0)))


def _price_from(price: PriceSettings) -> Price:
    read = price.input_usd if price.cache_read_usd is None else price.cache_read_usd
    write = price.input_usd if price.cache_write_usd is None else price.cache_write_usd
    return Price(_micro(price.input_usd), _micro(read), _micro(write), _micro(price.output_usd))


def _micro(usd: Decimal | float) -> int:
    return int((Decimal(str(usd)) * _MILLION).to_integral_value(ROUND_HALF_UP))


def _is_at_home(kind: str, address: str) -> bool:
    """Whether that is the address of the kind's own API."""
    return _HOSTS.get(kind) == (urlsplit(address).hostname or "")


def _digest(overrides: Mapping[str, Price]) -> str:
    """Changes when any configured price does."""
    said = sorted(
        (name, price.input, price.cache_read, price.cache_write, price.output) for name, price in overrides.items()
    )
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]
