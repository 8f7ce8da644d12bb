"""What can be asked, for people and programs to choose from."""

import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from janus_inference.breakers import Breakers, BreakerState
from janus_inference.prices import Price
from janus_inference.routing import MAX_MODEL_CHARS
from janus_kit.errors import InvalidArgument, NotFound

DEFAULT_PAGE = 100
MAX_PAGE = 1000


class Kind(Enum):
    """What a name stands for."""

    GENERATIVE = "generative"
    EMBEDDING = "embedding"
    ALIAS = "alias"


class Health(Enum):
    """Whether calls are expected to succeed now."""

    OK = "ok"
    RECOVERING = "recovering"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model or alias; ``targets`` are those of an alias, in order, with their shares of first attempts."""

    name: str
    kind: Kind
    provider: str = ""
    targets: tuple[tuple[str, int], ...] = ()
    context_window_tokens: int | None = None
    max_output_tokens: int | None = None
    capabilities: tuple[str, ...] = ()
    description: str = ""
    price: Price | None = None
    price_version: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries, and the token for the next ones; empty at the end."""

    entries: tuple[Entry, ...]
    next_token: str


class Catalogue:
    """All entries, sorted by name. ``unlisted`` describes what can be asked without being listed."""

    def __init__(
        self, entries: Iterable[Entry], breakers: Breakers, unlisted: Callable[[str], Entry | None] = lambda name: None
    ) -> None:
        self._entries = sorted(entries, key=lambda entry: entry.name)
        self._by_name = {entry.name: entry for entry in self._entries}
        self._breakers = breakers
        self._unlisted = unlisted

    def get(self, name: str) -> Entry:
        """One entry. Raises NotFound, or InvalidArgument for what is no name."""
        if not 1 <= len(name) <= MAX_MODEL_CHARS:
            raise InvalidArgument("name", f"must be 1 to {MAX_MODEL_CHARS} characters")
        found = self._by_name.get(name) or self._unlisted(name)
        if found is None:
            raise NotFound("model", name)
        return found

    def health(self, entry: Entry) -> Health:
        """What the circuit breakers say; an alias is as well as the best of its targets."""
        targets = [target for target, _ in entry.targets] or [entry.name]
        states = {self._breakers.state(target) for target in targets}
        if BreakerState.CLOSED in states:
            return Health.OK
        return Health.RECOVERING if BreakerState.HALF_OPEN in states else Health.UNAVAILABLE

    def page(self, size: int, token: str, kind: Kind | None) -> Page:
        """Entries after the token's, ``size`` at most (0: 100). Raises InvalidArgument."""
        if not 0 <= size <= MAX_PAGE:
            raise InvalidArgument("page_size", f"must be 0 to {MAX_PAGE}")
        after = _name_of(token, kind) if token else ""
        wanted = [entry for entry in self._entries if kind is None or entry.kind is kind]
        start = bisect_right(wanted, after, key=lambda entry: entry.name)
        shown = wanted[start : start + (size or DEFAULT_PAGE)]
        more = start + len(shown) < len(wanted)
        return Page(tuple(shown), _token_of(shown[-1].name, kind) if more else "")


def _token_of(name: str, kind: Kind | None) -> str:
    """Says after which name to go on: entries may come and go between two pages."""
    text = json.dumps([name, kind.value if kind else ""])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _name_of(token: str, kind: Kind | None) -> str:
    try:
        padded = token + "=" * (-len(token) % 4)
        name, of_kind = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if of_kind == (kind.value if kind else "") and isinstance(name, str):
            return name
    except (ValueError, TypeError, binascii.Error):
        pass
    raise InvalidArgument("page_token", "must be one that this query returned", reason="PAGE_TOKEN_INVALID")
